/* modelId = BLAKE2b-256("residual.base.1" | D(config.json) | D(tokenizer.json) | D(chat template
 * text, empty if none) | D(tensor list)), D = BLAKE2b-256. The tensor list has, per tensor of all
 * files in bytewise name order: u32 length of the name, name, u8 dtype (st_dtype_code), u8 rank,
 * u64 per dimension, D(bytes as stored). Integers are big-endian. Files, their number and the order
 * inside them do not enter.
 *
 * Digesting is the only pass that must read every byte, so its result is cached: JSON beside the
 * model (or in id_cache_dir) that names each file with size, mtime and inode. Whoever can write
 * that file can also write the model. */
#include "server/model/model_id.h"
#include "server/base/buf.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES     (4u << 20)
#define CACHE_BYTES_MAX (1u << 20)

static const char cache_name[] = ".residual-model-id.json";

void model_bytes_digest(uint8_t out[32], const void *data, size_t bytes)
{
    crypto_generichash(out, 32, data, bytes, NULL, 0);
}

void model_id_compute(uint8_t out[32], const struct model_id_parts *p)
{
    static const char domain[] = "residual.base.1";
    crypto_generichash_state h;
    uint8_t d[32];
    crypto_generichash_init(&h, NULL, 0, 32);
    crypto_generichash_update(&h, (const uint8_t *)domain, sizeof(domain) - 1);
    model_bytes_digest(d, p->config_json, p->config_bytes);
    crypto_generichash_update(&h, d, 32);
    model_bytes_digest(d, p->tokenizer_json, p->tokenizer_bytes);
    crypto_generichash_update(&h, d, 32);
    model_bytes_digest(d, p->chat_text ? p->chat_text : "",
                       p->chat_text ? strlen(p->chat_text) : 0);
    crypto_generichash_update(&h, d, 32);
    crypto_generichash_update(&h, p->tensors, 32);
    crypto_generichash_final(&h, out, 32);
}

/* ---- the tensor list ---- */

struct digest_run {
    const struct model_options *opt;
    uint8_t *chunk;
    uint64_t done, total;
};

static enum status digest_tensor(uint8_t out[32], const struct shard_tensor *t,
                                 struct digest_run *run, struct errtext *err)
{
    crypto_generichash_state h;
    uint64_t bytes = t->t->end - t->t->begin;
    crypto_generichash_init(&h, NULL, 0, 32);
    for (uint64_t at = 0; at < bytes;) {
        size_t n = bytes - at < CHUNK_BYTES ? (size_t)(bytes - at) : CHUNK_BYTES;
        enum status st = shard_read(t, at, run->chunk, n, err);
        if (st)
            return st;
        crypto_generichash_update(&h, run->chunk, n);
        at += n;
        run->done += n;
        if (run->opt->progress)
            run->opt->progress(run->opt->progress_arg, "digesting weights", run->done, run->total);
    }
    crypto_generichash_final(&h, out, 32);
    return STATUS_OK;
}

static enum status digest_list(uint8_t out[32], const struct shard_set *s, struct digest_run *run,
                               struct errtext *err)
{
    crypto_generichash_state h;
    crypto_generichash_init(&h, NULL, 0, 32);
    for (size_t i = 0; i < s->tensor_count; i++) {
        const struct st_tensor *t = s->tensor[i].t;
        uint8_t fixed[8], d[32];
        be_put(fixed, strlen(t->name), 4);
        crypto_generichash_update(&h, fixed, 4);
        crypto_generichash_update(&h, (const uint8_t *)t->name, strlen(t->name));
        fixed[0] = st_dtype_code(t->dtype);
        fixed[1] = (uint8_t)t->rank;
        crypto_generichash_update(&h, fixed, 2);
        for (uint32_t k = 0; k < t->rank; k++) {
            be_put(fixed, t->dim[k], 8);
            crypto_generichash_update(&h, fixed, 8);
        }
        enum status st = digest_tensor(d, &s->tensor[i], run, err);
        if (st)
            return st;
        crypto_generichash_update(&h, d, 32);
    }
    crypto_generichash_final(&h, out, 32);
    return STATUS_OK;
}

/* ---- the cache ---- */

static bool cache_path(char *path, size_t path_bytes, const char *dir,
                       const struct model_options *opt)
{
    char real[PATH_MAX], hex[33];
    uint8_t d[32];
    if (opt->id_cache_dir && opt->id_cache_dir[0] == '\0')
        return false;
    if (!opt->id_cache_dir)
        return (size_t)snprintf(path, path_bytes, "%s/%s", dir, cache_name) < path_bytes;
    if (!realpath(dir, real))
        return false;
    model_bytes_digest(d, real, strlen(real));
    hex_encode(hex, d, 16);
    return (size_t)snprintf(path, path_bytes, "%s/model-%s.json", opt->id_cache_dir, hex) <
           path_bytes;
}

static void cache_print(struct buf *out, const struct shard_set *s, const uint8_t digest[32])
{
    char hex[65];
    hex_encode(hex, digest, 32);
    buf_printf(out, "{\"version\": 1, \"tensors\": \"%s\", \"files\": [", hex);
    for (uint32_t i = 0; i < s->shard_count; i++) {
        const struct shard *f = &s->shard[i];
        buf_puts(out, i ? ",\n  {\"name\": " : "\n  {\"name\": ");
        buf_put_json_string(out, f->name, strlen(f->name));
        buf_printf(
            out, ", \"bytes\": %" PRIu64 ", \"mtime_ns\": %" PRId64 ", \"inode\": \"%" PRIu64 "\"}",
            f->bytes, f->mtime_ns, f->inode);
    }
    buf_puts(out, "\n]}\n");
}

/* A cache is believed only if it is, byte for byte, what we would write now with its digest. */
static bool cache_read(uint8_t out[32], const struct shard_set *s, const char *path)
{
    char *text;
    size_t len;
    json_t *root;
    if (file_read(path, CACHE_BYTES_MAX, &text, &len, NULL))
        return false;
    if (json_doc_parse(&root, path, text, len, 0, NULL))
        root = NULL;
    const char *hex = json_string_value(json_object_get(root, "tensors"));
    struct buf now;
    buf_init(&now, CACHE_BYTES_MAX);
    bool ok = hex && hex_decode(out, 32, hex);
    if (ok) {
        cache_print(&now, s, out);
        ok = !now.failed && now.len == len && !memcmp(now.data, text, len);
    }
    buf_fini(&now);
    json_decref(root);
    mem_free(text);
    return ok;
}

static void cache_write(const uint8_t digest[32], const struct shard_set *s, const char *path)
{
    struct buf text;
    struct errtext why = ERRTEXT_INIT;
    buf_init(&text, CACHE_BYTES_MAX);
    cache_print(&text, s, digest);
    if (text.failed || file_write_atomic(path, text.data, text.len, 0644, &why))
        log_info("model", "the model's digest is not cached: %s", why.text);
    buf_fini(&text);
}

enum status model_tensors_digest(uint8_t out[32], const struct shard_set *s, const char *dir,
                                 const struct model_options *opt, struct errtext *err)
{
    char path[PATH_MAX];
    bool has_path = cache_path(path, sizeof(path), dir, opt);
    if (has_path && cache_read(out, s, path))
        return shard_set_verify(s, err);
    struct digest_run run = {.opt = opt, .chunk = mem_try_alloc(CHUNK_BYTES)};
    if (!run.chunk)
        return err_set(err, STATUS_NO_MEMORY, "no memory to digest the weights");
    for (size_t i = 0; i < s->tensor_count; i++)
        run.total += s->tensor[i].t->end - s->tensor[i].t->begin;
    enum status st = digest_list(out, s, &run, err);
    mem_free(run.chunk);
    if (!st)
        st = shard_set_verify(s, err);
    if (!st && has_path)
        cache_write(out, s, path);
    return st;
}
