/* config.json and generation_config.json (after the first zero byte): what parses must be usable.
 */
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/model/config.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config c;
    struct errtext err = ERRTEXT_INIT;
    const char *text = (const char *)data;
    size_t len = strnlen(text, size);
    const char *generation = len < size ? text + len + 1 : NULL;
    if (model_config_parse(&c, text, len, generation, generation ? size - len - 1 : 0, &err)) {
        CHECK(err.text[0] != '\0');
        return 0;
    }
    CHECK(c.n_head % c.n_kv_head == 0 && c.d_head % 2 == 0 && c.n_layer <= MODEL_LAYERS_MAX);
    float *cos_out = mem_array(8 * c.d_head, sizeof(*cos_out));
    model_rope_fill(&c, 8, cos_out, cos_out + 4 * c.d_head);
    mem_free(cos_out);
    return 0;
}
