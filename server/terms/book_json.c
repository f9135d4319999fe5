/* What people are told of an adapter's terms: the same members in the listing and in the reply to a
 * publish. Who is not registered is told so, and why. */
#include "chain_client/eth/addr.h"
#include "server/terms/book_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void put_contributors(struct buf *out, const struct contributors *c)
{
    buf_puts(out, ",\"contributors\":[");
    for (uint32_t i = 0; c && i < c->count; i++) {
        buf_puts(out, i ? ",{" : "{");
        buf_put_json_hex(out, "payee", c->item[i].payee, 20);
        buf_printf(out, ",\"documents\":%u}", c->item[i].document_count);
    }
    buf_putc(out, ']');
}

static void put_split(struct buf *out, const struct registry_terms *r)
{
    buf_puts(out, ",\"split\":[");
    for (size_t i = 0; i < r->entry_count; i++) {
        buf_puts(out, i ? ",{" : "{");
        buf_put_json_hex(out, "payee", r->entry[i].payee, 20);
        buf_printf(out, ",\"role\":%u,\"bps\":%u}", r->entry[i].role, r->entry[i].bps);
    }
    buf_puts(out, "],\"parents\":[");
    for (size_t i = 0; i < r->parent_count; i++) {
        buf_puts(out, i ? ",{" : "{");
        buf_put_json_hex(out, "id", r->parent[i].adapter_id, 32);
        buf_printf(out, ",\"bps\":%u}", r->parent[i].bps);
    }
    buf_putc(out, ']');
}

static void put_registered(struct buf *out, const struct terms *t)
{
    char in[40], price_out[40];
    u128_format(in, t->r.price_in);
    u128_format(price_out, t->r.price_out);
    buf_puts(out, "\"registered\":true,");
    buf_put_json_hex(out, "owner", t->owner, 20);
    buf_printf(out,
               ",\"active_at\":%" PRIu64
               ",\"price_per_1000_tokens\":{\"in\":\"%s\",\"out\":\"%s\"},\"datanet\":",
               t->r.active_at, in, price_out);
    if (terms_has_datanet(t)) {
        buf_putc(out, '{');
        buf_put_json_hex(out, "id", t->r.datanet_id, 32);
        buf_printf(out, ",\"version\":%" PRIu64 ",", t->r.datanet_version);
        buf_put_json_hex(out, "document_root", t->document_root, 32);
        buf_printf(out, ",\"owners_known\":%s}", t->contributors ? "true" : "false");
    } else {
        buf_puts(out, "null");
    }
    put_contributors(out, t->contributors);
    put_split(out, &t->r);
}

static void put_reason(struct buf *out, const char *reason)
{
    buf_puts(out, "\"registered\":false,\"reason\":");
    buf_put_json_string(out, reason, strlen(reason));
}

/* Of an adapter that has no terms in force. */
static void say_why(struct book *b, const uint8_t id[32], char *why, size_t why_bytes)
{
    pthread_mutex_lock(&b->lock);
    const struct book_entry *e = book_find(b, id);
    if (e && e->next)
        snprintf(why, why_bytes,
                 "registered, and in force from second %" PRIu64
                 " on: until then it costs 0 and pays nobody",
                 e->next->r.active_at);
    else
        snprintf(why, why_bytes,
                 "not in the Registry of chain %" PRIu64 " as of final block %" PRIu64
                 ": it costs 0 and pays nobody",
                 b->opt.chain_id, b->block);
    pthread_mutex_unlock(&b->lock);
}

void book_put_json(struct book *b, const uint8_t adapter_id[32], uint64_t now_s, uint32_t wait_ms,
                   struct buf *out)
{
    struct errtext err = ERRTEXT_INIT;
    struct terms *t = NULL;
    char why[256];
    if (!b) {
        put_reason(out, "this server's lane is bound to no chain: adapters cost 0 and pay nobody");
        return;
    }
    enum status st = wait_ms ? book_terms_wait(b, adapter_id, now_s, wait_ms, &t, &err)
                             : book_terms(b, adapter_id, now_s, &t, &err);
    if (st) {
        put_reason(out, err.text);
    } else if (t->r.registered) {
        put_registered(out, t);
    } else {
        say_why(b, adapter_id, why, sizeof(why));
        put_reason(out, why);
    }
    terms_release(t);
}
