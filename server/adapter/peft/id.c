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
#include "server/adapter/peft/id.h"
#include "server/base/hex.h"

#include <string.h>

void peft_id_begin(crypto_generichash_state *h)
{
    static const char domain[] = "residual.adapter.1";
    crypto_generichash_init(h, NULL, 0, 32);
    crypto_generichash_update(h, (const uint8_t *)domain, sizeof(domain) - 1);
}

void peft_id_module(crypto_generichash_state *h, const struct peft_module *m)
{
    uint8_t fixed[8];
    uint64_t bits;
    be_put(fixed, strlen(m->path), 4);
    crypto_generichash_update(h, fixed, 4);
    crypto_generichash_update(h, (const uint8_t *)m->path, strlen(m->path));
    be_put(fixed, m->rank, 4);
    crypto_generichash_update(h, fixed, 4);
    memcpy(&bits, &m->scale, sizeof(bits));
    be_put(fixed, bits, 8);
    crypto_generichash_update(h, fixed, 8);
}

void peft_id_matrix(crypto_generichash_state *h, const struct st_tensor *t)
{
    uint8_t head[9];
    head[0] = st_dtype_code(t->dtype);
    be_put(head + 1, t->dim[0], 4);
    be_put(head + 5, t->dim[1], 4);
    crypto_generichash_update(h, head, sizeof(head));
}

void peft_id_compute(const struct peft_adapter *a, uint8_t id[32])
{
    crypto_generichash_state h;
    peft_id_begin(&h);
    for (uint32_t i = 0; i < a->module_count; i++) {
        const struct peft_module *m = &a->module[i];
        const struct st_tensor *pair[] = {m->a, m->b};
        peft_id_module(&h, m);
        for (int k = 0; k < 2; k++) {
            peft_id_matrix(&h, pair[k]);
            crypto_generichash_update(&h, (const uint8_t *)a->tensor_bytes + pair[k]->begin,
                                      pair[k]->end - pair[k]->begin);
        }
    }
    crypto_generichash_final(&h, id, 32);
}
