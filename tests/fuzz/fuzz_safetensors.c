/* safetensors headers: arbitrary bytes as a file. A parsed file's tensors must lie inside it. */
#include "server/base/check.h"
#include "server/model/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct st_file f;
    struct errtext err = ERRTEXT_INIT;
    if (safetensors_parse(&f, data, size, size, 1u << 20, &err)) {
        CHECK(err.text[0] != '\0');
        return 0;
    }
    for (size_t i = 0; i < f.tensor_count; i++) {
        const struct st_tensor *t = &f.tensor[i];
        CHECK(t->begin >= f.data_begin && t->begin <= t->end && t->end <= size);
        CHECK(safetensors_find(&f, t->name) == t);
    }
    safetensors_fini(&f);
    return 0;
}
