/* adapterId: what an adapter computes, as 32 bytes.
 *
 *   id = BLAKE2b-256(
 *     "residual.adapter.1"                       18 bytes, no terminator
 *     per adapted module, in bytewise order of its path:
 *       u32  length of the path
 *       path, e.g. "model.layers.0.self_attn.q_proj" (PEFT's "base_model.model." removed)
 *       u32  rank
 *       f64  scale: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA, after rank_pattern and
 *            alpha_pattern; its IEEE-754 bits, big-endian
 *       A, then B, each:
 *         u8   dtype as stored: F16 7, BF16 8, F32 11 (st_dtype_code)
 *         u32  rows     (A: rank, B: d_out)
 *         u32  columns  (A: d_in, B: rank)
 *         the elements, row-major, little-endian, exactly as stored)
 *
 * Integers are big-endian. Names of files, order of tensors, metadata and every field of the config
 * that does not reach rank or scale do not enter. tests/oracle/adapter_id.py is an independent
 * implementation. */
#include "server/adapter/peft_id.h"
#include "server/base/hex.h"

#include <sodium.h>
#include <string.h>

static void put_matrix(crypto_generichash_state *h, const struct peft_adapter *a,
                       const struct st_tensor *t)
{
    uint8_t head[9];
    head[0] = st_dtype_code(t->dtype);
    be_put(head + 1, t->dim[0], 4);
    be_put(head + 5, t->dim[1], 4);
    crypto_generichash_update(h, head, sizeof head);
    crypto_generichash_update(h, (const uint8_t *)a->tensor_bytes + t->begin, t->end - t->begin);
}

void peft_id_compute(const struct peft_adapter *a, uint8_t id[32])
{
    static const char domain[] = "residual.adapter.1";
    crypto_generichash_state h;
    crypto_generichash_init(&h, NULL, 0, 32);
    crypto_generichash_update(&h, (const uint8_t *)domain, sizeof domain - 1);
    for (uint32_t i = 0; i < a->module_count; i++) {
        const struct peft_module *m = &a->module[i];
        char path[96];
        uint8_t fixed[8];
        uint64_t bits;
        model_module_path(m->layer, m->module, path, sizeof path);
        be_put(fixed, strlen(path), 4);
        crypto_generichash_update(&h, fixed, 4);
        crypto_generichash_update(&h, (const uint8_t *)path, strlen(path));
        be_put(fixed, m->rank, 4);
        crypto_generichash_update(&h, fixed, 4);
        memcpy(&bits, &m->scale, sizeof bits);
        be_put(fixed, bits, 8);
        crypto_generichash_update(&h, fixed, 8);
        put_matrix(&h, a, m->a);
        put_matrix(&h, a, m->b);
    }
    crypto_generichash_final(&h, id, 32);
}
