/* The file of an index: every byte is part of the root, and what the root cannot promise (a file
 * made by someone else's program is well hashed too) is checked field by field before anything is
 * believed, so that scoring may run without looking back. */
#include "server/influence/events.h"
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/influence/events_impl.h"
#include "server/influence/whiten.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file is mapped as it is");
static_assert(sizeof(struct events_row) == 20, "rows of the file");
static_assert(sizeof(struct events_owner) == 24, "owners of the file");
static_assert(sizeof(struct events_head) % 8 == 0 && sizeof(struct events_head) == 328,
              "the head has no hidden padding");

static uint64_t round_up(uint64_t n)
{
    return (n + 63) & ~UINT64_C(63);
}

void events_layout(const struct events_head *h, uint64_t at[EVENTS_SECTIONS + 1])
{
    uint64_t blocks = ((uint64_t)h->n_events + EVENTS_LANES - 1) / EVENTS_LANES;
    uint64_t basis = (uint64_t)h->d_model * EVENTS_HALF * 2;
    uint64_t lists = (uint64_t)h->n_lists_learned + h->n_lists_rest;
    const uint64_t bytes[EVENTS_SECTIONS] = {
        [EVENTS_SECTION_HEAD] = sizeof(struct events_head),
        [EVENTS_SECTION_W] = basis,
        [EVENTS_SECTION_BIAS] = EVENTS_HALF * sizeof(float),
        [EVENTS_SECTION_CONTEXT_W] = basis,
        [EVENTS_SECTION_CONTEXT_BIAS] = EVENTS_HALF * sizeof(float),
        [EVENTS_SECTION_SURPRISE] = (uint64_t)h->n_vocab * sizeof(uint16_t),
        [EVENTS_SECTION_DOCUMENTS] = (uint64_t)h->n_documents * 32,
        [EVENTS_SECTION_OWNERS] = (uint64_t)h->n_owners * sizeof(struct events_owner),
        [EVENTS_SECTION_ROWS] = (uint64_t)h->n_rows * sizeof(struct events_row),
        [EVENTS_SECTION_LISTS] = lists * sizeof(struct events_list),
        [EVENTS_SECTION_EVENT_ROW] = (uint64_t)h->n_events * sizeof(uint32_t),
        [EVENTS_SECTION_LEARNED] = (uint64_t)h->n_events * sizeof(uint16_t),
        [EVENTS_SECTION_KEY1] = blocks * EVENTS_BLOCK,
        [EVENTS_SECTION_KEY2] = blocks * EVENTS_BLOCK,
        [EVENTS_SECTION_ROOT] = EVENTS_ROOT,
    };
    at[0] = 0;
    for (uint32_t s = 0; s < EVENTS_SECTIONS; s++)
        at[s + 1] = s + 1 < EVENTS_SECTIONS ? round_up(at[s] + bytes[s]) : at[s] + bytes[s];
}

void events_bind(struct events *e, const uint8_t *image)
{
    uint64_t at[EVENTS_SECTIONS + 1];
    e->head = (const struct events_head *)image;
    events_layout(e->head, at);
    e->basis_w = (const uint16_t *)(image + at[EVENTS_SECTION_W]);
    e->basis_bias = (const float *)(image + at[EVENTS_SECTION_BIAS]);
    e->context_w = (const uint16_t *)(image + at[EVENTS_SECTION_CONTEXT_W]);
    e->context_bias = (const float *)(image + at[EVENTS_SECTION_CONTEXT_BIAS]);
    e->surprise = (const uint16_t *)(image + at[EVENTS_SECTION_SURPRISE]);
    e->document = image + at[EVENTS_SECTION_DOCUMENTS];
    e->owner = (const struct events_owner *)(image + at[EVENTS_SECTION_OWNERS]);
    e->row = (const struct events_row *)(image + at[EVENTS_SECTION_ROWS]);
    e->list = (const struct events_list *)(image + at[EVENTS_SECTION_LISTS]);
    e->event_row = (const uint32_t *)(image + at[EVENTS_SECTION_EVENT_ROW]);
    e->learned = (const uint16_t *)(image + at[EVENTS_SECTION_LEARNED]);
    e->key1 = (const int8_t *)(image + at[EVENTS_SECTION_KEY1]);
    e->key2 = (const int8_t *)(image + at[EVENTS_SECTION_KEY2]);
    e->root = image + at[EVENTS_SECTION_ROOT];
}

void events_power_fill(uint32_t *power, uint32_t dot_max, uint32_t squarings)
{
    for (uint64_t d = 0; d <= dot_max; d++) {
        uint64_t c = MIN(((uint64_t)d << 30) / dot_max, (uint64_t)EVENTS_C_ONE);
        for (uint32_t i = 0; i < squarings; i++)
            c = (c * c) >> 30;
        power[d] = (uint32_t)c;
    }
}

void events_target_range(const struct events *e, uint32_t part, int32_t target, uint32_t *begin,
                         uint32_t *end)
{
    const struct events_head *h = e->head;
    const struct events_list *list = e->list + (part ? h->n_lists_learned : 0);
    uint32_t n = part ? h->n_lists_rest : h->n_lists_learned, low = 0, high = n;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (list[mid].target < (uint32_t)target)
            low = mid + 1;
        else
            high = mid;
    }
    *begin = *end = 0;
    if (low == n || list[low].target != (uint32_t)target)
        return;
    *begin = list[low].begin;
    *end = low + 1 < n ? list[low + 1].begin : part ? h->n_events : h->n_learned;
}

uint32_t events_row_bound(const struct events *e, uint32_t begin, uint32_t end, uint64_t row)
{
    while (begin < end) {
        uint32_t mid = begin + (end - begin) / 2;
        if (e->event_row[mid] < row)
            begin = mid + 1;
        else
            end = mid;
    }
    return begin;
}

void events_key_gather(int8_t out[EVENTS_HALF], const int8_t *blocks, uint32_t event)
{
    const int8_t *block = blocks + (size_t)(event / EVENTS_LANES) * EVENTS_BLOCK;
    for (uint32_t g = 0; g < EVENTS_HALF / 4; g++)
        memcpy(out + 4 * g, block + 64 * g + 4 * (event % EVENTS_LANES), 4);
}

void events_root_of(uint8_t out[EVENTS_ROOT], const uint8_t *file, size_t bytes_before)
{
    crypto_generichash(out, EVENTS_ROOT, file, bytes_before, NULL, 0);
}

static enum status corrupt(struct errtext *err, const char *path, const char *field,
                           unsigned long long found, const char *expected)
{
    return err_set(err, STATUS_CORRUPT,
                   "%s: %s is %llu, expected %s; delete the file, it is built again", path, field,
                   found, expected);
}

struct limit {
    const char *field;
    uint64_t value, low, high;
};

static enum status check_limits(const char *path, const struct limit *limit, size_t n,
                                struct errtext *err)
{
    for (size_t i = 0; i < n; i++) {
        char expected[64];
        if (limit[i].value >= limit[i].low && limit[i].value <= limit[i].high)
            continue;
        snprintf(expected, sizeof(expected), "%llu to %llu", (unsigned long long)limit[i].low,
                 (unsigned long long)limit[i].high);
        return corrupt(err, path, limit[i].field, limit[i].value, expected);
    }
    return STATUS_OK;
}

static enum status check_counts(const char *path, const struct events_head *h, struct errtext *err)
{
    const struct limit limit[] = {
        {"version", h->version, EVENTS_VERSION, EVENTS_VERSION},
        {"head_bytes", h->head_bytes, sizeof(*h), sizeof(*h)},
        {"n_events", h->n_events, 0, EVENTS_MAX},
        {"n_learned", h->n_learned, 0, h->n_events},
        {"n_rows", h->n_rows, 0, EVENTS_ROWS_MAX},
        {"n_joined", h->n_joined, 0, h->n_rows},
        {"n_documents", h->n_documents, 0, EVENTS_ROWS_MAX},
        {"n_owners", h->n_owners, 0, h->n_documents},
        {"n_vocab", h->n_vocab, 1, EVENTS_VOCAB_MAX},
        {"d_model", h->d_model, 1, EVENTS_MODEL_MAX},
        {"n_lists_learned", h->n_lists_learned, 0, MIN(h->n_learned, h->n_vocab)},
        {"n_lists_rest", h->n_lists_rest, 0, MIN(h->n_events - h->n_learned, h->n_vocab)},
    };
    return check_limits(path, limit, ARRAY_COUNT(limit), err);
}

static enum status check_method(const char *path, const struct events_head *h, struct errtext *err)
{
    const struct events_method *m = &h->method;
    uint64_t w = (uint64_t)m->w[0] + m->w[1] + m->w[2];
    const struct limit limit[] = {
        {"gain_floor", m->gain_floor, 0, UINT16_MAX},
        {"learned_floor", m->learned_floor, 0, UINT16_MAX},
        {"learned_min", m->learned_min, 1, UINT16_MAX},
        {"fallback_tokens", m->fallback_tokens, 0, EVENTS_FALLBACK_MAX},
        {"squarings", m->squarings, 0, 8},
        {"half1_part", m->half1_part, 0, 256},
        {"w1 + w2 + w3", w, EVENTS_WEIGHT_ONE, EVENTS_WEIGHT_ONE},
        {"taught_min", m->taught_min, 1, UINT16_MAX},
        {"cluster_dot", m->cluster_dot, 1, EVENTS_HALF_DOT},
        {"by_names", h->trust.by_names, 0, 1},
        {"lambda", h->trust.lambda, 0, EVENTS_WEIGHT_ONE},
        {"known", h->trust.known, 0, EVENTS_WEIGHT_ONE},
        {"own", h->trust.own, 0, EVENTS_WEIGHT_ONE},
        {"chance", h->trust.chance, 0, EVENTS_WEIGHT_ONE},
    };
    return check_limits(path, limit, ARRAY_COUNT(limit), err);
}

static enum status check_basis(const char *path, const struct events *e, struct errtext *err)
{
    for (uint32_t half = 0; half < 2; half++) {
        const uint16_t *w = half ? e->context_w : e->basis_w;
        const float *bias = half ? e->context_bias : e->basis_bias;
        for (size_t i = 0; i < (size_t)EVENTS_HALF * e->head->d_model; i++) {
            if ((w[i] & 0x7f80) == 0x7f80)
                return corrupt(err, path, half ? "context basis" : "basis", w[i], "a finite bf16");
        }
        for (uint32_t i = 0; i < EVENTS_HALF; i++) {
            if (!isfinite(bias[i]))
                return corrupt(err, path, half ? "context bias" : "bias", i,
                               "the index of a finite f32");
        }
    }
    return STATUS_OK;
}

static enum status check_tables(const char *path, const struct events *e, struct errtext *err)
{
    const struct events_head *h = e->head;
    uint64_t documents = 0;
    for (uint32_t i = 1; i < h->n_documents; i++) {
        if (memcmp(events_document(e, i - 1), events_document(e, i), 32) >= 0)
            return corrupt(err, path, "document", i, "digests in ascending order");
    }
    for (uint32_t i = 0; i < h->n_owners; i++) {
        if (i > 0 && memcmp(e->owner[i - 1].payee, e->owner[i].payee, 20) >= 0)
            return corrupt(err, path, "owner", i, "payees in ascending order");
        documents += e->owner[i].documents;
    }
    if (documents != h->n_documents)
        return corrupt(err, path, "the owners' documents", documents, "n_documents");
    return STATUS_OK;
}

static enum status check_rows(const char *path, const struct events *e, struct errtext *err)
{
    const struct events_head *h = e->head;
    uint32_t joined = 0;
    for (uint32_t i = 0; i < h->n_rows; i++) {
        const struct events_row *r = &e->row[i];
        if (r->document >= h->n_documents)
            return corrupt(err, path, "a row's document", r->document, "less than n_documents");
        if (r->owner >= h->n_owners)
            return corrupt(err, path, "a row's owner", r->owner, "less than n_owners");
        if (r->cluster >= h->n_rows || e->row[r->cluster].cluster != r->cluster)
            return corrupt(err, path, "a row's cluster", r->cluster, "a row that joins no other");
        joined += r->cluster != i;
    }
    if (joined != h->n_joined)
        return corrupt(err, path, "n_joined", h->n_joined, "the rows that join another");
    return STATUS_OK;
}

/* Both parts' lists: targets ascend, and their events fill the part without a gap. */
static enum status check_lists(const char *path, const struct events *e, struct errtext *err)
{
    const struct events_head *h = e->head;
    for (uint32_t part = 0; part < 2; part++) {
        const struct events_list *list = e->list + (part ? h->n_lists_learned : 0);
        uint32_t n = part ? h->n_lists_rest : h->n_lists_learned;
        uint32_t first = part ? h->n_learned : 0, end = part ? h->n_events : h->n_learned;
        if (n == 0 && first != end)
            return corrupt(err, path, "n_lists", 0, "a list for the events");
        for (uint32_t i = 0; i < n; i++) {
            if (list[i].target >= h->n_vocab || (i > 0 && list[i].target <= list[i - 1].target))
                return corrupt(err, path, "a list's target", list[i].target,
                               "ascending and less than n_vocab");
            if (i == 0 ? list[i].begin != first
                       : list[i].begin <= list[i - 1].begin || list[i].begin >= end)
                return corrupt(err, path, "a list's begin", list[i].begin,
                               "ascending, within its part's events");
        }
    }
    return STATUS_OK;
}

static enum status check_list_rows(const char *path, const struct events *e, uint32_t begin,
                                   uint32_t end, struct errtext *err)
{
    for (uint32_t i = begin; i < end; i++) {
        if (e->event_row[i] >= e->head->n_rows)
            return corrupt(err, path, "an event's row", e->event_row[i], "less than n_rows");
        if (i > begin && e->event_row[i] < e->event_row[i - 1])
            return corrupt(err, path, "an event's row", e->event_row[i],
                           "not less than the one before in its list");
        if ((e->learned[i] >= e->head->method.learned_min) != (i < e->head->n_learned))
            return corrupt(err, path, "an event's learned", e->learned[i],
                           "as its part has it (learned_min)");
    }
    return STATUS_OK;
}

static enum status check_events(const char *path, const struct events *e, struct errtext *err)
{
    const struct events_head *h = e->head;
    enum status st = STATUS_OK;
    uint32_t n_lists = h->n_lists_learned + h->n_lists_rest;
    for (uint32_t i = 0; !st && i < n_lists; i++) {
        uint32_t end = i + 1 < n_lists ? e->list[i + 1].begin : h->n_events;
        st = check_list_rows(path, e, e->list[i].begin, end, err);
    }
    size_t blocks = ((size_t)h->n_events + EVENTS_LANES - 1) / EVENTS_LANES;
    for (uint32_t half = 0; !st && half < 2; half++) {
        const int8_t *key = half ? e->key2 : e->key1;
        if (memchr(key, 0x80, blocks * EVENTS_BLOCK))
            st = corrupt(err, path, "a key's byte", 0x80, "-127 to 127");
        for (size_t i = h->n_events; !st && i < blocks * EVENTS_LANES; i++) {
            int8_t lane[EVENTS_HALF];
            events_key_gather(lane, key, (uint32_t)i);
            for (uint32_t k = 0; !st && k < EVENTS_HALF; k++)
                st = lane[k] ? corrupt(err, path, "a key past the last event", i, "zeros") : st;
        }
    }
    return st;
}

/* Between the sections: zeros, so that one index has one file. */
static enum status check_gaps(const char *path, const struct events *e, struct errtext *err)
{
    struct events_head h = *e->head;
    uint64_t at[EVENTS_SECTIONS + 1];
    const uint8_t *file = e->map;
    events_layout(&h, at);
    size_t blocks = ((size_t)h.n_events + EVENTS_LANES - 1) / EVENTS_LANES;
    const uint64_t end[] = {
        sizeof(h),
        at[EVENTS_SECTION_SURPRISE] + (uint64_t)h.n_vocab * sizeof(uint16_t),
        at[EVENTS_SECTION_DOCUMENTS] + (uint64_t)h.n_documents * 32,
        at[EVENTS_SECTION_OWNERS] + (uint64_t)h.n_owners * sizeof(struct events_owner),
        at[EVENTS_SECTION_ROWS] + (uint64_t)h.n_rows * sizeof(struct events_row),
        at[EVENTS_SECTION_LISTS] +
            ((uint64_t)h.n_lists_learned + h.n_lists_rest) * sizeof(struct events_list),
        at[EVENTS_SECTION_EVENT_ROW] + (uint64_t)h.n_events * sizeof(uint32_t),
        at[EVENTS_SECTION_LEARNED] + (uint64_t)h.n_events * sizeof(uint16_t),
    };
    CHECK(at[EVENTS_SECTION_ROOT] - at[EVENTS_SECTION_KEY2] == blocks * EVENTS_BLOCK);
    for (size_t i = 0; i < ARRAY_COUNT(end); i++) {
        for (uint64_t b = end[i]; b < round_up(end[i]); b++) {
            if (file[b])
                return corrupt(err, path, "a byte between two sections", file[b], "0");
        }
    }
    return STATUS_OK;
}

static enum status check_root(const char *path, const struct events *e, struct errtext *err)
{
    uint8_t root[EVENTS_ROOT];
    char found[2 * EVENTS_ROOT + 1], expected[2 * EVENTS_ROOT + 1];
    events_root_of(root, e->map, e->bytes - EVENTS_ROOT);
    if (memcmp(root, e->root, EVENTS_ROOT) == 0)
        return STATUS_OK;
    hex_encode(found, root, EVENTS_ROOT);
    hex_encode(expected, e->root, EVENTS_ROOT);
    return err_set(
        err, STATUS_CORRUPT,
        "%s: root: the bytes hash to %s, expected %s as its end says: it was changed or cut; "
        "delete it, it is built again",
        path, found, expected);
}

static enum status check_file(const char *path, struct events *e, struct errtext *err)
{
    static const uint8_t magic[8] = "RSEVENTS";
    const struct events_head *h = e->map;
    uint64_t at[EVENTS_SECTIONS + 1];
    if (e->bytes < sizeof(*h) + EVENTS_ROOT)
        return corrupt(err, path, "the file's size", e->bytes, "a head and a root at least");
    if (memcmp(h->magic, magic, sizeof(magic)) != 0)
        return err_set(err, STATUS_CORRUPT, "%s: magic: found other bytes, expected RSEVENTS",
                       path);
    enum status st = check_counts(path, h, err);
    if (st)
        return st;
    events_layout(h, at);
    if (h->file_bytes != at[EVENTS_SECTIONS])
        return corrupt(err, path, "file_bytes", h->file_bytes, "what the counts add up to");
    if (e->bytes != at[EVENTS_SECTIONS])
        return err_set(
            err, STATUS_CORRUPT,
            "%s: the file has %zu bytes, file_bytes says %llu: it was cut or appended to; "
            "delete it, it is built again",
            path, e->bytes, (unsigned long long)at[EVENTS_SECTIONS]);
    events_bind(e, e->map);
    enum status (*const check[])(const char *, const struct events *, struct errtext *) = {
        check_root, check_basis, check_tables, check_rows, check_lists, check_events, check_gaps};
    st = check_method(path, h, err);
    for (size_t i = 0; !st && i < ARRAY_COUNT(check); i++)
        st = check[i](path, e, err);
    return st;
}

static enum status check_expected(const char *path, const struct events_head *h,
                                  const struct events_expect *x, struct errtext *err)
{
    const struct {
        const char *field;
        const uint8_t *found, *expected;
    } id[] = {
        {"adapter id", h->adapter_id, x ? x->adapter_id : NULL},
        {"document root", h->document_root, x ? x->document_root : NULL},
        {"training digest", h->training_digest, x ? x->training_digest : NULL},
        {"tokenizer digest", h->tokenizer_digest, x ? x->tokenizer_digest : NULL},
    };
    for (size_t i = 0; i < ARRAY_COUNT(id); i++) {
        char found[65], expected[65];
        if (!id[i].expected || memcmp(id[i].found, id[i].expected, 32) == 0)
            continue;
        hex_encode(found, id[i].found, 32);
        hex_encode(expected, id[i].expected, 32);
        return err_set(err, STATUS_INVALID,
                       "%s: %s: the index is of %s, expected %s; delete it, the right one is built",
                       path, id[i].field, found, expected);
    }
    return STATUS_OK;
}

static enum status map_file(struct events *e, const char *path, struct errtext *err)
{
    struct stat sb;
    enum status st = STATUS_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: open: %s", path,
                       strerror(errno));
    if (fstat(fd, &sb) != 0)
        st = err_set(err, STATUS_IO, "%s: stat: %s", path, strerror(errno));
    else if (!S_ISREG(sb.st_mode) || sb.st_size == 0)
        st = err_set(err, STATUS_CORRUPT, "%s: found no regular file with bytes in it", path);
    if (!st) {
        e->bytes = (size_t)sb.st_size;
        e->map = mmap(NULL, e->bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (e->map == MAP_FAILED) {
            e->map = NULL;
            st = err_set(err, STATUS_IO, "%s: mmap of %zu bytes: %s", path, e->bytes,
                         strerror(errno));
        }
    }
    close(fd);
    return st;
}

static enum status derive(struct events *e, const char *path, struct errtext *err)
{
    e->power = mem_try_array(EVENTS_DOT + 1, sizeof(*e->power));
    e->context_w_t = mem_try_array((size_t)e->head->d_model * EVENTS_HALF, sizeof(float));
    if (!e->power || !e->context_w_t)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory to open it", path);
    events_power_fill(e->power, EVENTS_DOT, e->head->method.squarings);
    whiten_transpose(e->context_w_t, e->context_w, e->head->d_model);
    return STATUS_OK;
}

enum status events_open(struct events **out, const char *path, const struct events_expect *expect,
                        struct errtext *err)
{
    *out = NULL;
    struct events *e = mem_alloc(sizeof(*e));
    atomic_init(&e->refs, 1);
    enum status st = map_file(e, path, err);
    if (!st)
        st = check_file(path, e, err);
    if (!st)
        st = check_expected(path, e->head, expect, err);
    if (!st)
        st = derive(e, path, err);
    if (st)
        events_release(e);
    else
        *out = e;
    return st;
}

struct events *events_ref(struct events *e)
{
    atomic_fetch_add_explicit(&e->refs, 1, memory_order_relaxed);
    return e;
}

void events_release(struct events *e)
{
    if (!e || atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (e->map)
        munmap(e->map, e->bytes);
    mem_free(e->power);
    mem_free(e->context_w_t);
    mem_free(e);
}

const struct events_head *events_head(const struct events *e)
{
    return e->head;
}

const uint8_t *events_root(const struct events *e)
{
    return e->root;
}

size_t events_file_bytes(const struct events *e)
{
    return e->bytes;
}

const uint8_t *events_file(const struct events *e)
{
    return e->map;
}

const struct events_row *events_row(const struct events *e, uint32_t row)
{
    CHECK(row < e->head->n_rows);
    return &e->row[row];
}

const struct events_owner *events_owner(const struct events *e, uint32_t owner)
{
    CHECK(owner < e->head->n_owners);
    return &e->owner[owner];
}

const uint8_t *events_document(const struct events *e, uint32_t document)
{
    CHECK(document < e->head->n_documents);
    return e->document + (size_t)document * 32;
}

const uint16_t *events_basis_w(const struct events *e)
{
    return e->basis_w;
}

const float *events_basis_bias(const struct events *e)
{
    return e->basis_bias;
}
