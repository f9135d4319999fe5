/* An adapter directory on its way into a blob, without the file ever lying in memory as a whole:
 * open checks config and header, pack reads the tensors. What the facts say and what pack hashes
 * are the bytes that were read, whatever happens to the file meanwhile. Thread: one. */
#ifndef RS_ADAPTER_PEFT_READER_H
#define RS_ADAPTER_PEFT_READER_H

#include "server/adapter/peft/pack.h"

struct peft_reader {
    int fd;
    struct seal seen; /* the tensor file before its first byte was read; is_set: it is settled */
    struct peft_adapter a; /* facts: no tensor bytes, no id */
    char *head;            /* length prefix and header */
    size_t head_bytes;
};

/* Files of dir, links as folder.h follows them. Errors: NOT_FOUND, DENIED, TOO_LARGE past
 * bytes_max, and what peft.h refuses. */
MUST_CHECK enum status peft_reader_open(struct peft_reader *out, const char *dir,
                                        const struct file_roots *roots,
                                        const struct model_config *base, uint64_t bytes_max,
                                        struct errtext *err);
/* Fill the blob; piece: PEFT_PIECE_BYTES of scratch. id: the content is hashed into it; NULL: it is
 * not. May be called again. Errors: as peft_pack_from. */
MUST_CHECK enum status peft_reader_pack(struct peft_reader *r, const struct peft_target *to,
                                        char *piece, uint8_t id[32], struct errtext *err);

struct peft_proof {
    const uint8_t *id; /* what the content must be */
    struct seal *seal; /* in: what an earlier load or admission left; out: what this one leaves */
    bool hashed;       /* out: the content was hashed */
};
/* Fill the blob with the adapter whose id is proof->id, or fail: a seal covers the file and nothing
 * touched it until its last byte was read, or the content is hashed. Errors: CORRUPT if it is other
 * content or its size changed meanwhile; as peft_pack_from. The seal is then unset. */
MUST_CHECK enum status peft_reader_fill(struct peft_reader *r, const struct peft_target *to,
                                        char *piece, struct peft_proof *proof, struct errtext *err);
void peft_reader_close(struct peft_reader *r);

#endif
