/* Tensor bytes to the device form, from memory or from an open file. From a file they come in
 * pieces of at most PEFT_PIECE_BYTES: matrices that are stored as the blob wants them are read in
 * place, the others through one piece that stays in the L2 cache, so that each byte crosses memory
 * once. Every byte of the blob is written: its memory may be dirty. Thread: any. */
#ifndef RS_ADAPTER_PEFT_PACK_H
#define RS_ADAPTER_PEFT_PACK_H

#include "server/adapter/peft/peft.h"

#include <sodium.h>

#define PEFT_PIECE_BYTES (256u << 10)

struct peft_source {
    const char *bytes; /* the whole file, or NULL: */
    int fd;
    char *piece;                    /* PEFT_PIECE_BYTES, for fd */
    crypto_generichash_state *hash; /* what is read goes into the content id; or NULL */
};

struct peft_target {
    enum dtype dtype; /* F32 or BF16 */
    uint32_t n_layer;
    const struct lora_entry *entry; /* as peft_layout made it */
    void *blob;
};

/* n bytes at `at`. Errors: IO, CORRUPT if the file ends before. */
MUST_CHECK enum status peft_read_exact(int fd, uint64_t at, char *out, size_t n,
                                       struct errtext *err);
/* Errors, with fd only: IO, CORRUPT if the file ends early. The blob is then incomplete. */
MUST_CHECK enum status peft_pack_from(const struct peft_adapter *a, const struct peft_source *from,
                                      const struct peft_target *to, struct errtext *err);

#endif
