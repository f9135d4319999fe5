/* magic "RSC1" | upto u64 | count u32 | count x {seq u64, digest 32, request id 32} | BLAKE2b-256
 * of all before it. */
#include "server/record/checkpoint.h"
#include "chain_client/ids.h"
#include "server/base/buf.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/mem.h"

#include <string.h>

#define MAGIC      "RSC1"
#define HEAD_BYTES 16u
#define ITEM_BYTES 72u
#define SUM_BYTES  32u
#define BYTES_MAX  (1u << 30)

/* The first place whose seq is not below. */
static size_t place_of(const struct open_list *l, uint64_t seq)
{
    size_t lo = 0, hi = l->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (l->item[mid].seq < seq)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

struct open_inference *open_list_put(struct open_list *l, const struct open_inference *o)
{
    size_t at = place_of(l, o->seq);
    if (l->count == l->cap) {
        size_t cap = l->cap ? 2 * l->cap : 1024;
        struct open_inference *grown = mem_try_realloc(l->item, cap * sizeof(*grown));
        CHECK(grown);
        l->item = grown;
        l->cap = cap;
    }
    memmove(l->item + at + 1, l->item + at, (l->count - at) * sizeof(*l->item));
    l->item[at] = *o;
    l->count++;
    return &l->item[at];
}

struct open_inference *open_list_find(struct open_list *l, uint64_t seq)
{
    size_t at = place_of(l, seq);
    return at < l->count && l->item[at].seq == seq ? &l->item[at] : NULL;
}

void open_list_drop_closed(struct open_list *l)
{
    size_t kept = 0;
    for (size_t i = 0; i < l->count; i++) {
        if (!l->item[i].closed)
            l->item[kept++] = l->item[i];
    }
    l->count = kept;
    l->closed_count = 0;
}

void open_list_close(struct open_list *l, uint64_t seq)
{
    struct open_inference *o = open_list_find(l, seq);
    if (!o || o->closed)
        return;
    o->closed = true;
    if (2 * ++l->closed_count > l->count)
        open_list_drop_closed(l);
}

void open_list_fini(struct open_list *l)
{
    mem_free(l->item);
    *l = (struct open_list){.item = NULL};
}

enum status checkpoint_write(const char *path, uint64_t upto, const struct open_list *l,
                             struct errtext *err)
{
    struct buf out;
    uint8_t head[HEAD_BYTES] = MAGIC, seq[8], sum[SUM_BYTES];
    uint32_t count = 0;
    buf_init(&out, BYTES_MAX);
    buf_put(&out, head, sizeof(head));
    for (size_t i = 0; i < l->count && l->item[i].seq <= upto; i++) {
        if (l->item[i].closed)
            continue;
        be_put(seq, l->item[i].seq, 8);
        buf_put(&out, seq, 8);
        buf_put(&out, l->item[i].digest, 32);
        buf_put(&out, l->item[i].request_id, 32);
        count++;
    }
    if (out.failed) {
        buf_fini(&out);
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %u entries", path, count);
    }
    be_put((uint8_t *)out.data + 4, upto, 8);
    be_put((uint8_t *)out.data + 12, count, 4);
    ids_hash(sum, out.data, out.len);
    buf_put(&out, sum, sizeof(sum));
    enum status st = out.failed ? err_set(err, STATUS_NO_MEMORY, "%s: no memory", path)
                                : file_write_atomic(path, out.data, out.len, 0600, err);
    buf_fini(&out);
    return st;
}

static enum status read_items(const uint8_t *p, size_t len, uint64_t *upto, struct open_list *l)
{
    uint8_t sum[SUM_BYTES];
    if (len < HEAD_BYTES + SUM_BYTES || memcmp(p, MAGIC, 4) != 0)
        return STATUS_CORRUPT;
    size_t count = (size_t)be_get(p + 12, 4);
    if (len != HEAD_BYTES + count * ITEM_BYTES + SUM_BYTES)
        return STATUS_CORRUPT;
    ids_hash(sum, p, len - SUM_BYTES);
    if (memcmp(sum, p + len - SUM_BYTES, SUM_BYTES) != 0)
        return STATUS_CORRUPT;
    *upto = (uint64_t)be_get(p + 4, 8);
    for (p += HEAD_BYTES; count > 0; count--, p += ITEM_BYTES) {
        struct open_inference o = {.seq = (uint64_t)be_get(p, 8)};
        memcpy(o.digest, p + 8, 32);
        memcpy(o.request_id, p + 40, 32);
        (void)open_list_put(l, &o);
    }
    return STATUS_OK;
}

enum status checkpoint_read(const char *path, uint64_t *upto, struct open_list *l,
                            struct errtext *err)
{
    char *data;
    size_t len;
    enum status st = file_read(path, BYTES_MAX, &data, &len, err);
    if (st)
        return st;
    st = read_items((const uint8_t *)data, len, upto, l);
    mem_free(data);
    return st ? err_set(err, st, "%s: not a whole checkpoint", path) : STATUS_OK;
}
