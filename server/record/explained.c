/* Texts are added where the document's licence consents to their display, from the datanet version
 * of the index while that is held; the rest is shown as it was kept. */
#include "server/record/explained.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/influence/explain.h"

#include <inttypes.h>
#include <string.h>

#define TEXT_BYTES_MAX    1024       /* of one source */
#define DOCUMENT_READ_MAX (8u << 20) /* a larger document is named, and not read for a reply */

struct text_source {
    struct datanet *datanet;
    uint32_t place; /* whose text it is; UINT32_MAX: none */
    struct buf text;
};

static bool find_document(const struct documents *list, const char *hex, uint32_t *place)
{
    uint8_t digest[32];
    uint32_t lo = 0, hi = list->count;
    if (!hex || strncmp(hex, "0x", 2) != 0 || !hex_decode(digest, 32, hex + 2))
        return false;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (memcmp(list->item[mid].digest, digest, 32) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    *place = lo;
    return lo < list->count && memcmp(list->item[lo].digest, digest, 32) == 0;
}

/* One object with document, offset and bytes. */
static void add_text(struct text_source *s, json_t *source)
{
    uint32_t place;
    uint64_t at = (uint64_t)json_integer_value(json_object_get(source, "offset"));
    uint64_t n = (uint64_t)json_integer_value(json_object_get(source, "bytes"));
    const struct documents *list = datanet_documents(s->datanet);
    if (!find_document(list, json_string_value(json_object_get(source, "document")), &place) ||
        !list->facts[place].display || list->item[place].bytes > DOCUMENT_READ_MAX)
        return;
    if (s->place != place) {
        s->place = UINT32_MAX;
        if (datanet_text(s->datanet, place, &s->text, NULL))
            return;
        s->place = place;
    }
    if (at > s->text.len || n > s->text.len - at)
        return;
    n = MIN(n, TEXT_BYTES_MAX);
    while (n > 0 && at + n < s->text.len && ((uint8_t)s->text.data[at + n] & 0xc0) == 0x80)
        n--; /* not inside of a character */
    json_t *text = json_stringn(s->text.data + at, (size_t)n);
    if (text)
        (void)json_object_set_new(source, "text", text);
}

static void add_texts(struct recorder *r, json_t *adapter)
{
    uint8_t root[32];
    const char *hex = json_string_value(json_object_get(json_object_get(adapter, "index"), "root"));
    if (!r->deps.indexes || !hex || !hex_decode(root, 32, hex + 2))
        return;
    struct index *index = indexes_by_root(r->deps.indexes, root);
    if (!index)
        return;
    struct text_source s = {.datanet = index->datanet, .place = UINT32_MAX};
    json_t *row, *span, *source;
    size_t i, k;
    buf_init(&s.text, DOCUMENT_BYTES_MAX);
    json_array_foreach(json_object_get(adapter, "rows"), i, row) add_text(&s, row);
    json_array_foreach(json_object_get(adapter, "spans"), i, span)
    {
        json_array_foreach(json_object_get(span, "sources"), k, source) add_text(&s, source);
    }
    buf_fini(&s.text);
    index_release(index);
}

enum status explained_load(struct explained *out, struct recorder *r, uint64_t inf_seq,
                           struct errtext *err)
{
    const char *shown;
    size_t shown_len, i;
    json_t *adapter;
    *out = (struct explained){0};
    buf_init(&out->evidence, EVIDENCE_ENTRY_BYTES_MAX);
    enum status st = evidence_get(r->evidence, inf_seq, &out->evidence, err);
    if (!st && !explain_split(&out->evidence, &shown, &shown_len, &out->inputs, &out->inputs_len))
        st = err_set(err, STATUS_CORRUPT, "evidence of record %" PRIu64 ": %zu bytes", inf_seq,
                     out->evidence.len);
    if (!st && !(out->shown = json_loadb(shown, shown_len, 0, NULL)))
        st = err_set(err, STATUS_CORRUPT, "evidence of record %" PRIu64 ": malformed", inf_seq);
    if (st) {
        explained_fini(out);
        return st;
    }
    json_array_foreach(json_object_get(out->shown, "adapters"), i, adapter) add_texts(r, adapter);
    return STATUS_OK;
}

void explained_fini(struct explained *e)
{
    json_decref(e->shown);
    if (e->evidence.data)
        mem_wipe(e->evidence.data, e->evidence.len);
    buf_fini(&e->evidence);
    *e = (struct explained){0};
}

/* ---- out ---- */

static int put_json(const char *data, size_t len, void *out)
{
    buf_put(out, data, len);
    return 0;
}

static void put_value(struct buf *out, const char *key, const json_t *value)
{
    buf_printf(out, "\"%s\":", key);
    if (!value || json_dump_callback(value, put_json, out, JSON_COMPACT | JSON_ENCODE_ANY))
        buf_puts(out, "null");
}

static const json_t *adapter_of(const struct explained *e, uint32_t k)
{
    return e && e->shown ? json_array_get(json_object_get(e->shown, "adapters"), k) : NULL;
}

void explained_fill(const struct explained *e, struct lookup_entry *entry)
{
    for (uint32_t k = 0; k < entry->adapter_count; k++) {
        const json_t *a = adapter_of(e, k);
        entry->gain[k] = (uint32_t)json_integer_value(json_object_get(a, "gain_ppb"));
        entry->solo_q8[k] = (uint64_t)json_integer_value(json_object_get(a, "solo_q8"));
    }
    if (entry->state == LOOKUP_NOT_SCORED)
        entry->state = LOOKUP_PREVIEW;
}

/* Is this what the record says, entry by entry? */
static bool agrees(const json_t *list, const struct tail_credit *credit)
{
    if (json_array_size(list) != credit->share_count)
        return false;
    for (uint32_t i = 0; i < credit->share_count; i++) {
        const json_t *c = json_array_get(list, i);
        const char *text = json_string_value(json_object_get(c, "payee"));
        char payee[ADDR_TEXT_BYTES];
        addr_format(payee, credit->share[i].payee);
        if (!text || strcmp(text, payee) != 0 ||
            json_integer_value(json_object_get(c, "ppb")) != credit->share[i].ppb)
            return false;
    }
    return true;
}

void explained_put_contributors(struct buf *out, const struct explained *e, uint32_t k,
                                const struct tail_credit *credit)
{
    const json_t *list = json_object_get(adapter_of(e, k), "contributors");
    if (list && (!credit || agrees(list, credit))) {
        put_value(out, "contributors", list);
        return;
    }
    buf_puts(out, "\"contributors\":[");
    for (uint32_t i = 0; credit && i < credit->share_count; i++) {
        char payee[ADDR_TEXT_BYTES];
        addr_format(payee, credit->share[i].payee);
        buf_printf(out, "%s{\"payee\":\"%s\",\"ppb\":%" PRIu32 "%s}", i ? "," : "", payee,
                   credit->share[i].ppb,
                   addr_is_zero(credit->share[i].payee) ? ",\"treasury\":true" : "");
    }
    buf_putc(out, ']');
}

void explained_put_sources(struct buf *out, const struct explained *e, uint32_t k)
{
    static const char *const key[] = {"index", "rows", "spans"};
    const json_t *a = adapter_of(e, k);
    for (uint32_t i = 0; a && i < ARRAY_COUNT(key); i++) {
        buf_putc(out, ',');
        put_value(out, key[i], json_object_get(a, key[i]));
    }
}

void explained_put_choices(struct buf *out, const struct explained *e)
{
    if (!e || !e->shown)
        return;
    put_value(out, "choices", json_object_get(e->shown, "choices"));
    buf_putc(out, ',');
}
