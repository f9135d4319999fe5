/* Tiny PEFT directories on disk, and a base that fits them, for the tests of residency and
 * publishing. */
#ifndef RS_TESTS_ADAPTER_FIXTURE_H
#define RS_TESTS_ADAPTER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/adapter/catalog.h"
#include "server/adapter/peft/peft.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "tests/lib/st_build.h"

static char test_dir[64];
static struct model_config base;

static inline int make_world(void **state)
{
    static const char json[] =
        "{\"model_type\":\"llama\",\"hidden_size\":16,\"intermediate_size\":24,"
        "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
        "\"head_dim\":6,\"vocab_size\":32}";
    (void)state;
    log_set_level((enum log_level) - 1);
    snprintf(test_dir, sizeof(test_dir), "/tmp/rs-adapter-XXXXXX");
    return sodium_init() >= 0 && mkdtemp(test_dir) &&
                   model_config_parse(&base, json, strlen(json), NULL, 0, NULL) == STATUS_OK
               ? 0
               : -1;
}

static inline int drop_world(void **state)
{
    (void)state;
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", test_dir);
    return system(cmd);
}

/* Config and tensors of an adapter of q_proj in both layers: content is decided by seed and rank.
 */
static inline char *adapter_config(uint32_t rank)
{
    char text[256];
    snprintf(text, sizeof(text),
             "{\"peft_type\":\"LORA\",\"r\":%u,\"lora_alpha\":%u,\"target_modules\":[\"q_proj\"]}",
             rank, 2 * rank);
    return mem_strdup(text);
}

static inline char *adapter_tensors(uint32_t seed, uint32_t rank, size_t *len)
{
    struct st_build b;
    float v[64 * 24];
    CHECK(rank <= 64);
    st_build_init(&b);
    for (uint32_t layer = 0; layer < 2; layer++) {
        for (int is_b = 0; is_b < 2; is_b++) {
            char name[128];
            uint32_t rows = is_b ? 24 : rank, columns = is_b ? rank : 16;
            for (uint32_t i = 0; i < rows * columns; i++)
                v[i] = (float)((i * 7 + seed * 13 + layer) % 11) / 8 - 0.5f;
            snprintf(name, sizeof(name),
                     "base_model.model.model.layers.%u.self_attn.q_proj.lora_%c.weight", layer,
                     is_b ? 'B' : 'A');
            st_build_add(&b, name, "F32", rows, columns, v);
        }
    }
    char *bytes = st_build_bytes(&b, len);
    st_build_fini(&b);
    return bytes;
}

static inline void write_file(const char *dir, const char *name, const char *data, size_t len)
{
    char path[512];
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (file_write_atomic(path, data, len, 0600, &err))
        fail_msg("%s", err.text);
}

static inline void write_adapter(const char *dir, uint32_t seed, uint32_t rank)
{
    size_t len;
    char *config = adapter_config(rank), *tensors = adapter_tensors(seed, rank, &len);
    assert_int_equal(file_mkdirs(dir, 0700, NULL), STATUS_OK);
    write_file(dir, "adapter_config.json", config, strlen(config));
    write_file(dir, "adapter_model.safetensors", tensors, len);
    mem_free(config);
    mem_free(tensors);
}

/* The entry of a directory as a publisher would make it. */
static inline struct adapter_entry *entry_of(const char *name, const char *dir)
{
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    struct lora_entry *layout = mem_array(2 * LORA_MODULE_COUNT, sizeof(*layout));
    struct adapter_entry *e = catalog_entry_new();
    if (peft_read_dir(&a, dir, NULL, &base, 1 << 20, &err))
        fail_msg("%s", err.text);
    snprintf(e->name, sizeof(e->name), "%s", name);
    memcpy(e->id, a.id, 32);
    e->dir = mem_strdup(dir);
    peft_layout(&a, 2, DTYPE_F32, layout, &e->blob_bytes);
    e->rank_max = a.rank_max;
    peft_fini(&a);
    mem_free(layout);
    return e;
}

static inline struct adapter_entry *make_entry(const char *name, uint32_t seed, uint32_t rank)
{
    char dir[256];
    snprintf(dir, sizeof(dir), "%s/%s", test_dir, name);
    write_adapter(dir, seed, rank);
    return entry_of(name, dir);
}

#endif
