/* adapterId (SPEC 1). */
#ifndef RS_ADAPTER_PEFT_ID_H
#define RS_ADAPTER_PEFT_ID_H

#include "server/adapter/peft/peft.h"

#include <sodium.h>

/* a->module must be in bytewise order of the module paths. */
void peft_id_compute(const struct peft_adapter *a, uint8_t id[32]);

/* The same in steps, for who reads the tensors one by one: begin; per module peft_id_module, then
 * for A and for B peft_id_matrix and its bytes (crypto_generichash_update); then
 * crypto_generichash_final with 32 bytes. */
void peft_id_begin(crypto_generichash_state *h);
void peft_id_module(crypto_generichash_state *h, const struct peft_module *m);
void peft_id_matrix(crypto_generichash_state *h, const struct st_tensor *t);

#endif
