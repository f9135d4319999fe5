/* A directory's two files, read in pieces. The header is read once and kept: whoever rewrites the
 * file while its tensors are read is found out by the stamp (size, times, inode) that is taken
 * before the first byte and compared after the last, or by the hash. peft_read_dir, for who wants
 * the whole file in memory, is here too. */
#include "server/adapter/peft/reader.h"
#include "server/adapter/peft/id.h"
#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/model/foreign.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char tensors_name[] = "adapter_model.safetensors";

static bool has_entry(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct stat sb;
    return (size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) < sizeof(path) &&
           lstat(path, &sb) == 0;
}

static enum status open_tensors(struct peft_reader *r, const char *dir,
                                const struct file_roots *roots, uint64_t bytes_max,
                                struct errtext *err)
{
    static const char pickle[] = "adapter_model.bin";
    if (!has_entry(dir, tensors_name) && has_entry(dir, pickle))
        return err_set(
            err, STATUS_UNSUPPORTED,
            "%s: pickled weights run code when read and are refused; save the adapter as "
            "%s",
            pickle, tensors_name);
    enum status st = peft_folder_open(dir, roots, tensors_name, &r->fd, err);
    if (!st)
        st = seal_stamp_take(&r->seen.file, r->fd, tensors_name, err);
    if (!st && r->seen.file.bytes > bytes_max)
        st = err_set(err, STATUS_TOO_LARGE, "%s: %" PRIu64 " bytes, at most %" PRIu64 " are read",
                     tensors_name, r->seen.file.bytes, bytes_max);
    r->seen.is_set = !st && seal_stamp_is_settled(&r->seen.file, clock_wall_ms());
    return st;
}

/* The length prefix and as much of the header as the file has; the parser says what is wrong. */
static enum status read_head(struct peft_reader *r, struct errtext *err)
{
    uint64_t n = 0, have = MIN(r->seen.file.bytes, 8);
    uint8_t prefix[8] = {0};
    enum status st = peft_read_exact(r->fd, 0, (char *)prefix, (size_t)have, err);
    if (st)
        return st;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | prefix[i];
    r->head_bytes = (size_t)MIN(MIN(n, PEFT_HEADER_BYTES_MAX) + 8, r->seen.file.bytes);
    r->head = mem_try_alloc(r->head_bytes + 1);
    if (!r->head)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for its header", tensors_name);
    return peft_read_exact(r->fd, 0, r->head, r->head_bytes, err);
}

static enum status open_in(struct peft_reader *r, const char *dir, const struct file_roots *roots,
                           const struct model_config *base, uint64_t bytes_max, struct errtext *err)
{
    char *config = NULL;
    struct peft_head head = {0};
    int fd;
    enum status st = peft_folder_open(dir, roots, "adapter_config.json", &fd, err);
    if (st)
        return st;
    st = file_read_fd(fd, "adapter_config.json", PEFT_CONFIG_BYTES_MAX, &config, &head.config_bytes,
                      err);
    close(fd);
    if (!st)
        st = open_tensors(r, dir, roots, bytes_max, err);
    if (!st)
        st = read_head(r, err);
    if (!st) {
        head.config_json = config;
        head.tensors = r->head;
        head.tensor_bytes = r->head_bytes;
        head.file_bytes = r->seen.file.bytes;
        st = peft_from_head(&r->a, &head, base, err);
    }
    if (st) {
        mem_free(config);
        return st;
    }
    seal_head(r->seen.head, config, head.config_bytes, r->head, r->head_bytes);
    r->a.config_json = config;
    r->a.config_bytes = head.config_bytes;
    return STATUS_OK;
}

enum status peft_reader_open(struct peft_reader *out, const char *dir,
                             const struct file_roots *roots, const struct model_config *base,
                             uint64_t bytes_max, struct errtext *err)
{
    memset(out, 0, sizeof(*out));
    out->fd = -1;
    if (sodium_init() < 0)
        return err_set(err, STATUS_IO, "libsodium does not start");
    enum status st = open_in(out, dir, roots, base, bytes_max, err);
    if (st) {
        peft_reader_close(out);
        st = foreign_folder(dir, FOREIGN_WANT_ADAPTER, st, err);
        err_prefix(err, "adapter %s", dir);
    }
    return st;
}

enum status peft_reader_pack(struct peft_reader *r, const struct peft_target *to, char *piece,
                             uint8_t id[32], struct errtext *err)
{
    crypto_generichash_state hash;
    struct peft_source from = {.fd = r->fd, .piece = piece, .hash = id ? &hash : NULL};
    enum status st = peft_pack_from(&r->a, &from, to, err);
    if (!st && id)
        crypto_generichash_final(&hash, id, 32);
    return st;
}

/* *same: nothing has touched the file since it was opened. */
static enum status check_file(const struct peft_reader *r, bool *same, struct errtext *err)
{
    struct seal_stamp now;
    *same = false;
    enum status st = seal_stamp_take(&now, r->fd, tensors_name, err);
    if (st)
        return st;
    if (now.bytes != r->seen.file.bytes)
        return err_set(err, STATUS_CORRUPT,
                       "%s: its size changed from %" PRIu64 " to %" PRIu64
                       " bytes while it was read",
                       tensors_name, r->seen.file.bytes, now.bytes);
    *same = seal_stamp_equal(&now, &r->seen.file);
    return STATUS_OK;
}

static enum status refuse_content(const uint8_t want[32], const uint8_t found[32],
                                  struct errtext *err)
{
    char want_hex[65], found_hex[65];
    hex_encode(want_hex, want, 32);
    hex_encode(found_hex, found, 32);
    return err_set(err, STATUS_CORRUPT,
                   "its files changed since it was registered: content id 0x%s, found 0x%s; load "
                   "it again in place to serve the new content",
                   want_hex, found_hex);
}

enum status peft_reader_fill(struct peft_reader *r, const struct peft_target *to, char *piece,
                             struct peft_proof *proof, struct errtext *err)
{
    struct seal kept = *proof->seal;
    uint8_t id[32];
    bool same;
    proof->seal->is_set = false;
    proof->hashed = false;
    if (seal_covers(&kept, &r->seen)) {
        enum status st = peft_reader_pack(r, to, piece, NULL, err);
        if (!st)
            st = check_file(r, &same, err);
        if (!st && same) {
            *proof->seal = kept;
            proof->seal->uses++;
        }
        if (st || same)
            return st;
    }
    proof->hashed = true;
    enum status st = peft_reader_pack(r, to, piece, id, err);
    if (!st)
        st = check_file(r, &same, err);
    if (!st && memcmp(id, proof->id, sizeof(id)) != 0)
        st = refuse_content(proof->id, id, err);
    if (!st && same)
        *proof->seal = r->seen;
    return st;
}

void peft_reader_close(struct peft_reader *r)
{
    if (r->fd >= 0)
        close(r->fd);
    mem_free(r->head);
    peft_fini(&r->a);
    memset(r, 0, sizeof(*r));
    r->fd = -1;
}

/* ---- the whole file ---- */

static enum status read_all(struct peft_reader *r, struct errtext *err)
{
    size_t len = (size_t)r->seen.file.bytes;
    bool same;
    r->a.tensor_bytes = mem_try_alloc(len + 1);
    if (!r->a.tensor_bytes)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu bytes", tensors_name, len);
    enum status st = peft_read_exact(r->fd, 0, r->a.tensor_bytes, len, err);
    if (!st)
        st = check_file(r, &same, err);
    if (!st && memcmp(r->a.tensor_bytes, r->head, r->head_bytes) != 0)
        st = err_set(err, STATUS_CORRUPT, "%s: its header changed while it was read", tensors_name);
    if (st)
        return st;
    r->a.tensor_file_bytes = len;
    r->a.seal = r->seen;
    r->a.seal.is_set = r->seen.is_set && same;
    peft_id_compute(&r->a, r->a.id);
    return STATUS_OK;
}

enum status peft_read_dir(struct peft_adapter *out, const char *dir, const struct file_roots *roots,
                          const struct model_config *base, uint64_t bytes_max, struct errtext *err)
{
    struct peft_reader r;
    memset(out, 0, sizeof(*out));
    enum status st = peft_reader_open(&r, dir, roots, base, bytes_max, err);
    if (st)
        return st;
    st = read_all(&r, err);
    if (st) {
        err_prefix(err, "adapter %s", dir);
    } else {
        *out = r.a;
        memset(&r.a, 0, sizeof(r.a));
    }
    peft_reader_close(&r);
    return st;
}
