/* registry.json: what the book knew, as the views' own bytes, so that a restart begins with it and
 * asks only what changed since.
 *
 * {"format": "residual.registry.1", "chain_id", "registry", "lane", "model", "notice_s", "block",
 *  "time_s", "base": [now, next], "datanets": [{"id", "answer"}],
 *  "adapters": [{"id", "owner", "now", "next"}]}          answers as hex, "" where there is none */
#include "chain_client/eth/abi.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/terms/book_impl.h"

#include <inttypes.h>
#include <string.h>

#define FORMAT           "residual.registry.1"
#define FILE_BYTES_MAX   (1ull << 30)
#define ANSWER_BYTES_MAX (1u << 14)

/* ---- writing; the lock is held ---- */

static void put_hex(struct buf *out, const char *key, const void *data, size_t len)
{
    char hex[2 * 256 + 1];
    buf_printf(out, "\"%s\":\"", key);
    for (size_t at = 0; at < len; at += 256) {
        size_t n = MIN(len - at, (size_t)256);
        hex_encode(hex, (const uint8_t *)data + at, n);
        buf_put(out, hex, 2 * n);
    }
    buf_putc(out, '"');
}

static void put_tariff(struct buf *out, const struct registry_tariff *t)
{
    char in[40], price_out[40];
    u128_format(in, t->price_in);
    u128_format(price_out, t->price_out);
    buf_printf(out, "{\"active_at\":%" PRIu64 ",\"in\":\"%s\",\"out\":\"%s\"}", t->active_at, in,
               price_out);
}

static void put_terms(struct buf *out, const char *key, const struct terms *t)
{
    buf_putc(out, ',');
    put_hex(out, key, t ? t->answer : NULL, t ? t->answer_len : 0);
}

static void put_entries(struct book *b, struct buf *out)
{
    const char *comma = "";
    for (uint32_t i = 0; i < b->count; i++) {
        const struct book_entry *e = b->entry[i];
        if (!e->now)
            continue;
        buf_printf(out, "%s{", comma);
        put_hex(out, "id", e->id, 32);
        buf_putc(out, ',');
        put_hex(out, "owner", e->next ? e->next->owner : e->now->owner, 20);
        put_terms(out, "now", e->now);
        put_terms(out, "next", e->next);
        buf_putc(out, '}');
        comma = ",";
    }
}

static void render(struct book *b, struct buf *out)
{
    buf_printf(out, "{\"format\":\"" FORMAT "\",\"chain_id\":%" PRIu64 ",\"lane\":%u,",
               b->opt.chain_id, b->opt.lane);
    put_hex(out, "registry", b->opt.registry, 20);
    buf_putc(out, ',');
    put_hex(out, "model", b->opt.model_id, 32);
    buf_printf(out,
               ",\"notice_s\":%" PRIu64 ",\"block\":%" PRIu64 ",\"time_s\":%" PRIu64 ",\"base\":[",
               b->notice_s, b->block, b->time_s);
    put_tariff(out, &b->base_now);
    buf_putc(out, ',');
    put_tariff(out, &b->base_next);
    buf_puts(out, "],\"datanets\":[");
    for (uint32_t i = 0; i < b->net_count; i++) {
        buf_puts(out, i ? ",{" : "{");
        put_hex(out, "id", b->net[i].id, 32);
        buf_putc(out, ',');
        put_hex(out, "answer", b->net[i].answer, sizeof(b->net[i].answer));
        buf_putc(out, '}');
    }
    buf_puts(out, "],\"adapters\":[");
    put_entries(b, out);
    buf_puts(out, "]}\n");
}

enum status book_save(struct book *b, struct errtext *err)
{
    struct buf text;
    buf_init(&text, FILE_BYTES_MAX);
    pthread_mutex_lock(&b->lock);
    render(b, &text);
    uint64_t time_s = b->time_s;
    b->is_changed = false;
    pthread_mutex_unlock(&b->lock);
    enum status st = text.failed ? err_set(err, STATUS_TOO_LARGE, "%s: more than %llu bytes",
                                           b->path, FILE_BYTES_MAX)
                                 : file_write_atomic(b->path, text.data, text.len, 0600, err);
    if (!st)
        b->saved_s = time_s;
    buf_fini(&text);
    return st;
}

/* ---- reading; no thread runs yet ---- */

static const struct json_range whole = {0, INT64_MAX};

/* The bytes at key in out; "" gives none. */
static void need_answer(struct json_reader *r, const char *key, struct buf *out)
{
    const char *hex = json_need_string(r, key);
    size_t len = strlen(hex) / 2;
    buf_clear(out);
    if (r->st || !len)
        return;
    if (len > ANSWER_BYTES_MAX || !buf_reserve(out, len) ||
        !hex_decode((uint8_t *)out->data, len, hex))
        json_fail(r, STATUS_CORRUPT, key, "expected at most %u bytes as hex", ANSWER_BYTES_MAX);
    else
        out->len = len;
}

static void need_tariff(struct json_reader *r, size_t i, const json_t *item,
                        struct registry_tariff *t)
{
    struct json_reader e = json_enter_item(r, "base", i, item);
    t->active_at = (uint64_t)json_need_int(&e, "active_at", whole);
    if (!u128_parse(&t->price_in, json_need_string(&e, "in")) ||
        !u128_parse(&t->price_out, json_need_string(&e, "out")))
        json_fail(&e, STATUS_CORRUPT, "in", "expected decimal prices");
}

/* NULL for "". */
static struct terms *need_terms(struct book *b, struct json_reader *e, const char *key)
{
    need_answer(e, key, &b->answer);
    if (e->st || !b->answer.len)
        return NULL;
    struct terms *t = terms_new();
    if (registry_decode_terms(&t->r, b->answer.data, b->answer.len, e->err)) {
        json_fail(e, STATUS_CORRUPT, key, "not an answer of adapterAt");
        terms_release(t);
        return NULL;
    }
    t->answer_len = b->answer.len;
    t->answer = mem_alloc(b->answer.len);
    memcpy(t->answer, b->answer.data, b->answer.len);
    json_need_hex(e, "owner", t->owner, 20);
    book_complete(b, t);
    t->contributors = terms_has_datanet(t) ? owners_find(b->owners, t->owner_root) : NULL;
    return t;
}

static void need_entry(struct book *b, struct json_reader *r, size_t i, const json_t *item)
{
    uint8_t id[32];
    struct json_reader e = json_enter_item(r, "adapters", i, item);
    json_need_hex(&e, "id", id, 32);
    struct terms *now = need_terms(b, &e, "now"), *next = need_terms(b, &e, "next");
    if (r->st || b->count == b->opt.ids_max) {
        terms_release(now);
        terms_release(next);
        return;
    }
    struct book_entry *entry = book_take(b, id);
    terms_release(entry->now);
    terms_release(entry->next);
    entry->now = now ? now : terms_new();
    entry->next = next;
    entry->is_stale = false;
}

static void need_net(struct book *b, struct json_reader *r, size_t i, const json_t *item)
{
    uint8_t id[32];
    struct json_reader e = json_enter_item(r, "datanets", i, item);
    json_need_hex(&e, "id", id, 32);
    need_answer(&e, "answer", &b->answer);
    if (!r->st && !book_add_net(b, id, b->answer.data, b->answer.len))
        json_fail(&e, STATUS_CORRUPT, "answer", "not an answer of datanetVersion");
}

/* Another chain, Registry, lane or base: the file is of another life of this folder. */
static void check_own(const struct book *b, struct json_reader *r)
{
    uint8_t registry[20], model[32];
    const char *format = json_need_string(r, "format");
    json_need_hex(r, "registry", registry, 20);
    json_need_hex(r, "model", model, 32);
    uint64_t chain_id = (uint64_t)json_need_int(r, "chain_id", whole);
    uint64_t lane = (uint64_t)json_need_int(r, "lane", whole);
    if (r->st)
        return;
    if (strcmp(format, FORMAT) != 0)
        json_fail(r, STATUS_CORRUPT, "format", "found \"%.40s\", expected " FORMAT, format);
    else if (chain_id != b->opt.chain_id || memcmp(registry, b->opt.registry, 20) != 0)
        json_fail(r, STATUS_CONFLICT, "chain_id",
                  "it is of another Registry (chain %" PRIu64
                  "; this lane is bound to chain %" PRIu64 ")",
                  chain_id, b->opt.chain_id);
    else if (lane != b->opt.lane || memcmp(model, b->opt.model_id, 32) != 0)
        json_fail(r, STATUS_CONFLICT, "lane", "it is of another lane or base");
}

static void read_all(struct book *b, struct json_reader *r)
{
    size_t i;
    const json_t *item;
    check_own(b, r);
    b->notice_s = (uint64_t)json_need_int(r, "notice_s", whole);
    b->time_s = (uint64_t)json_need_int(r, "time_s", whole);
    b->seen_block = (uint64_t)json_need_int(r, "block", (struct json_range){1, INT64_MAX});
    const json_t *base = json_need_list(r, "base", 2);
    if (json_array_size(base) != 2)
        json_fail(r, STATUS_CORRUPT, "base", "expected two tariffs");
    if (r->st)
        return;
    need_tariff(r, 0, json_array_get(base, 0), &b->base_now);
    need_tariff(r, 1, json_array_get(base, 1), &b->base_next);
    const json_t *nets = json_need_list(r, "datanets", b->net_max);
    json_array_foreach(nets, i, item)
    {
        if (!r->st)
            need_net(b, r, i, item);
    }
    const json_t *entries = json_need_list(r, "adapters", SIZE_MAX);
    json_array_foreach(entries, i, item)
    {
        if (!r->st)
            need_entry(b, r, i, item);
    }
}

static void forget_all(struct book *b)
{
    for (uint32_t i = 0; i < b->count; i++) {
        terms_release(b->entry[i]->now);
        terms_release(b->entry[i]->next);
        mem_free(b->entry[i]);
    }
    b->count = b->net_count = 0;
    b->base_now = b->base_next = (struct registry_tariff){0};
    b->notice_s = b->time_s = b->seen_block = 0;
}

void book_load(struct book *b)
{
    struct errtext err = ERRTEXT_INIT;
    json_t *root = NULL;
    if (!file_exists(b->path))
        return;
    enum status st = json_doc_load(&root, b->path, FILE_BYTES_MAX, 0, &err);
    struct json_reader r = {
        .obj = root, .where = b->path, .wrong = STATUS_CORRUPT, .st = st, .err = &err};
    if (!st)
        read_all(b, &r);
    if (r.st) {
        forget_all(b);
        log_warn("registry", "the cache is not used, the Registry is read anew: %s", err.text);
    } else {
        b->block = b->seen_block;
        b->saved_s = b->time_s;
        log_info("registry", "as of block %" PRIu64 " from the cache, %u adapters", b->block,
                 b->count);
    }
    json_decref(root);
}
