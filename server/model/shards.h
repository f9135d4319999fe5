/* The weight files of a model directory: model.safetensors, or the shards that
 * model.safetensors.index.json names. Headers are parsed and kept; data is read with pread, or
 * mapped on demand.
 *
 * A mapped file that shrinks would end the process with SIGBUS at the next touch. So everything
 * that is read once (digests, conversions) goes through pread, which reports a short file, and
 * shard_set_verify compares size, mtime and inode again after loading. What stays mapped is served
 * from the map for the life of the process: the operator must replace model files by rename, never
 * by truncation in place. Thread: one. */
#ifndef RS_MODEL_SHARDS_H
#define RS_MODEL_SHARDS_H

#include "server/model/safetensors.h"

#include <stdbool.h>

#define SHARDS_MAX             1024
#define SHARD_HEADER_BYTES_MAX 100000000u
#define SHARD_INDEX_BYTES_MAX  (64u << 20)

struct shard {
    char *name; /* file name inside the directory */
    int fd;     /* -1 once closed */
    uint64_t bytes, inode;
    int64_t mtime_ns;
    struct st_file st;
    uint8_t *map; /* whole file, or NULL */
};

struct shard_tensor {
    const struct st_tensor *t;
    struct shard *shard;
    bool used;
};

struct shard_set {
    struct shard *shard;
    uint32_t shard_count;
    struct shard_tensor *tensor; /* all shards' tensors, bytewise name order */
    size_t tensor_count;
};

MUST_CHECK enum status shard_set_open(struct shard_set *s, const char *dir, struct errtext *err);
void shard_set_close_fds(struct shard_set *s);
void shard_set_fini(struct shard_set *s); /* unmaps */
struct shard_tensor *shard_set_find(struct shard_set *s, const char *name);
/* Read bytes of a tensor. CORRUPT when the file ends early. */
MUST_CHECK enum status shard_read(const struct shard_tensor *t, uint64_t offset, void *out,
                                  size_t bytes, struct errtext *err);
MUST_CHECK enum status shard_map(struct shard *s, struct errtext *err);
/* CORRUPT if any file's size, mtime or inode differs from what it was when opened. */
MUST_CHECK enum status shard_set_verify(const struct shard_set *s, struct errtext *err);

#endif
