/* Adapters: adapter_config.json up to the first zero byte, then the safetensors file. What is
 * accepted must pack. */
#include "server/adapter/peft/peft.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char base_json[] =
    "{\"model_type\":\"llama\",\"hidden_size\":8,\"intermediate_size\":4,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":2,\"vocab_size\":32}";

static void pack(const struct peft_adapter *a, const struct model_config *base)
{
    struct lora_entry entry[2 * LORA_MODULE_COUNT];
    uint64_t bytes;
    peft_layout(a, base->n_layer, DTYPE_BF16, entry, &bytes);
    void *blob = mem_alloc_aligned(bytes);
    peft_pack(a, base->n_layer, DTYPE_BF16, entry, blob);
    mem_free_aligned(blob, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config base;
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    size_t config_len = strnlen((const char *)data, size);
    size_t rest = config_len < size ? size - config_len - 1 : 0;
    CHECK(!model_config_parse(&base, base_json, sizeof(base_json) - 1, NULL, 0, NULL));
    char *config = mem_alloc(config_len + 1), *tensors = mem_alloc(rest + 1);
    memcpy(config, data, config_len);
    if (rest)
        memcpy(tensors, data + config_len + 1, rest);
    if (peft_from_bytes(&a, config, config_len, tensors, rest, &base, &err)) {
        CHECK(err.text[0] != '\0');
        mem_free(config);
        mem_free(tensors);
        return 0;
    }
    (void)!peft_check_values(&a, &err);
    pack(&a, &base);
    peft_fini(&a);
    return 0;
}
