/* The state of training in one file, little-endian:
 *
 *   "RSTRAIN1" | what 32 | done u32 | 0 u32 | weights u64 | losses [done] f32 | w, m, v [weights]
 *   f32 each | BLAKE2b-256 of all before */
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/train/trainer_impl.h"

#include <inttypes.h>
#include <sodium.h>
#include <string.h>

#define HEAD_BYTES  56
#define STATE_MAGIC "RSTRAIN1"

static void put_head(uint8_t head[HEAD_BYTES], const struct trainer *t, const uint8_t what[32])
{
    uint64_t weights = t->lora->n;
    memset(head, 0, HEAD_BYTES);
    memcpy(head, STATE_MAGIC, 8);
    memcpy(head + 8, what, 32);
    memcpy(head + 40, &t->done, 4);
    memcpy(head + 48, &weights, 8);
}

enum status trainer_save(const struct trainer *t, const char *path, const uint8_t what[32],
                         struct errtext *err)
{
    uint8_t head[HEAD_BYTES], digest[32];
    size_t bytes = t->lora->n * sizeof(float);
    const struct file_part part[] = {{head, sizeof(head)},   {t->loss, t->done * sizeof(float)},
                                     {t->lora->blob, bytes}, {t->m, bytes},
                                     {t->v, bytes},          {digest, sizeof(digest)}};
    const uint32_t n = sizeof(part) / sizeof(*part);
    crypto_generichash_state h;
    put_head(head, t, what);
    crypto_generichash_init(&h, NULL, 0, sizeof(digest));
    for (uint32_t i = 0; i + 1 < n; i++)
        crypto_generichash_update(&h, part[i].data, part[i].len);
    crypto_generichash_final(&h, digest, sizeof(digest));
    return file_write_parts(path, part, n, 0644, err);
}

static enum status check_state(const struct trainer *t, const char *path, const uint8_t *data,
                               size_t len, const uint8_t what[32], struct errtext *err)
{
    uint8_t digest[32];
    uint32_t done = 0;
    uint64_t weights = 0;
    if (len < HEAD_BYTES + 32 || memcmp(data, STATE_MAGIC, 8) != 0)
        return err_set(err, STATUS_CORRUPT, "%s: no state of training", path);
    crypto_generichash(digest, 32, data, len - 32, NULL, 0);
    if (sodium_memcmp(digest, data + len - 32, 32) != 0)
        return err_set(err, STATUS_CORRUPT, "%s: fails its check: it was cut or changed", path);
    if (memcmp(data + 8, what, 32) != 0)
        return err_set(err, STATUS_CONFLICT,
                       "%s: of training with another base, other rows or other options; remove it "
                       "to begin anew",
                       path);
    memcpy(&done, data + 40, 4);
    memcpy(&weights, data + 48, 8);
    uint64_t expected = HEAD_BYTES + 32 + done * sizeof(float) + 3 * weights * sizeof(float);
    if (weights != t->lora->n || done > t->opt.optim.steps || len != expected)
        return err_set(err, STATUS_CORRUPT, "%s: %" PRIu64 " weights after %u steps, expected %zu",
                       path, weights, done, t->lora->n);
    return STATUS_OK;
}

enum status trainer_resume(struct trainer *t, const char *path, const uint8_t what[32],
                           struct errtext *err)
{
    char *data;
    size_t len, bytes = t->lora->n * sizeof(float);
    size_t most = HEAD_BYTES + 32 + t->opt.optim.steps * sizeof(float) + 3 * bytes;
    enum status st = file_read(path, most, &data, &len, err);
    if (st)
        return st;
    st = check_state(t, path, (const uint8_t *)data, len, what, err);
    if (!st) {
        const char *at = data + HEAD_BYTES;
        memcpy(&t->done, data + 40, 4);
        t->open = false;
        memcpy(t->loss, at, t->done * sizeof(float));
        at += t->done * sizeof(float);
        memcpy(t->lora->blob, at, bytes);
        memcpy(t->m, at + bytes, bytes);
        memcpy(t->v, at + 2 * bytes, bytes);
    }
    mem_free(data);
    return st;
}
