/* adapterId (SPEC 1). */
#ifndef RS_ADAPTER_PEFT_ID_H
#define RS_ADAPTER_PEFT_ID_H

#include "server/adapter/peft.h"

/* a->module must be in bytewise order of the module paths. */
void peft_id_compute(const struct peft_adapter *a, uint8_t id[32]);

#endif
