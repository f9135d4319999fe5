/* modelId (SPEC 1): what computes, as 32 bytes. Thread: one. */
#ifndef RS_MODEL_MODEL_ID_H
#define RS_MODEL_MODEL_ID_H

#include "server/model/model.h"
#include "server/model/shards.h"

struct model_id_parts {
    const char *config_json, *tokenizer_json, *chat_text; /* chat_text NULL: no template */
    size_t config_bytes, tokenizer_bytes;
    uint8_t tensors[32]; /* model_tensors_digest */
};

/* Digest of the tensor list. Reads all weights, unless a cache file for the same files (name, size,
 * mtime, inode) is found; writes one where it can. A cache that cannot be written costs time at the
 * next start and nothing else. */
MUST_CHECK enum status model_tensors_digest(uint8_t out[32], const struct shard_set *s,
                                            const char *dir, const struct model_options *opt,
                                            struct errtext *err);
void model_id_compute(uint8_t out[32], const struct model_id_parts *parts);
void model_bytes_digest(uint8_t out[32], const void *data, size_t bytes);

#endif
