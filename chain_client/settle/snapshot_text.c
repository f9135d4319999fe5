/* snapshot.json: every list in the order of the snapshot's arrays, keys ascending (SPEC 8). */
#include "chain_client/settle/archive.h"
#include "chain_client/settle/snapshot.h"

#include <inttypes.h>
#include <string.h>

static void put_split(struct buf *out, const struct reward_entry *entry, size_t count)
{
    buf_puts(out, "\"entries\":[");
    for (size_t i = 0; i < count; i++) {
        buf_printf(out, "%s{\"bps\":%u,\"payee\":", i ? "," : "", entry[i].bps);
        archive_put_hex(out, entry[i].payee, 20);
        buf_printf(out, ",\"role\":%u}", entry[i].role);
    }
    buf_putc(out, ']');
}

static void put_prices(struct buf *out, const struct reward_terms *t)
{
    buf_puts(out, "\"price_in\":");
    archive_put_amount(out, t->price_in);
    buf_puts(out, ",\"price_out\":");
    archive_put_amount(out, t->price_out);
    buf_putc(out, '}');
}

static void put_adapter(struct buf *out, const struct snapshot *s, const struct snapshot_adapter *a)
{
    const struct registry_terms *t = &a->at_t;
    buf_puts(out, "{\"datanet\":");
    archive_put_hex(out, t->datanet_id, 32);
    buf_putc(out, ',');
    put_split(out, t->entry, t->entry_count);
    buf_puts(out, ",\"id\":");
    archive_put_hex(out, a->id, 32);
    buf_puts(out, ",\"model\":");
    archive_put_hex(out, t->model_id, 32);
    buf_puts(out, ",\"parents\":[");
    for (size_t i = 0; i < t->parent_count; i++) {
        buf_printf(out, "%s{\"bps\":%u,\"id\":", i ? "," : "", t->parent[i].bps);
        archive_put_hex(out, t->parent[i].adapter_id, 32);
        buf_putc(out, '}');
    }
    buf_printf(out, "],\"registered\":%s,\"terms\":[", t->registered ? "true" : "false");
    for (size_t i = 0; i < a->named.count; i++) {
        const struct reward_terms *e = &s->terms[a->named.first + i];
        buf_printf(out, "%s{\"active_at\":%" PRIu64 ",\"datanet_version\":%" PRIu64 ",",
                   i ? "," : "", e->active_at, e->datanet_version);
        put_prices(out, e);
    }
    buf_puts(out, "]}");
}

static void put_bases(struct buf *out, const struct snapshot *s)
{
    buf_puts(out, "\"bases\":[");
    for (size_t i = 0; i < s->base_count; i++) {
        const struct snapshot_base *b = &s->base[i];
        buf_puts(out, i ? ",{" : "{");
        put_split(out, b->at_t.entry, b->at_t.entry_count);
        buf_puts(out, ",\"id\":");
        archive_put_hex(out, b->id, 32);
        buf_printf(out, ",\"registered\":%s}", b->at_t.registered ? "true" : "false");
    }
    buf_puts(out, "],");
}

static void put_batches(struct buf *out, const struct snapshot *s)
{
    buf_puts(out, "\"batches\":[");
    for (size_t i = 0; i < s->batch_count; i++) {
        const struct snapshot_batch *b = &s->batch[i];
        buf_printf(out, "%s{\"beacon_block\":%" PRIu64 ",\"mix_hash\":", i ? "," : "",
                   b->beacon_block);
        archive_put_hex(out, b->mix_hash, 32);
        buf_printf(out, ",\"rate_ppb\":%" PRIu32 ",\"seq\":%" PRIu64 "}", b->rate_ppb, b->seq);
    }
    buf_puts(out, "],");
}

static void put_datanets(struct buf *out, const struct snapshot *s)
{
    buf_puts(out, "\"datanets\":[");
    for (size_t i = 0; i < s->version_count; i++) {
        const struct snapshot_version *d = &s->version[i];
        bool is_first = !i || memcmp(d[-1].datanet_id, d->datanet_id, 32) != 0;
        bool is_last = i + 1 == s->version_count || memcmp(d[1].datanet_id, d->datanet_id, 32) != 0;
        if (is_first) {
            buf_puts(out, i ? ",{\"id\":" : "{\"id\":");
            archive_put_hex(out, d->datanet_id, 32);
            buf_puts(out, ",\"versions\":[");
        }
        buf_printf(out, "%s{\"documents\":%" PRIu32 ",\"owner_root\":", is_first ? "" : ",",
                   d->found.documents);
        archive_put_hex(out, d->found.owner_root, 32);
        buf_printf(out, ",\"owners\":%" PRIu32 ",\"version\":%" PRIu64 "}", d->found.owners,
                   d->version);
        if (is_last)
            buf_puts(out, "]}");
    }
    buf_puts(out, "],");
}

static void put_tariffs(struct buf *out, const struct snapshot *s, uint32_t lane)
{
    bool has_one = false;
    for (size_t i = 0; i < s->tariff_count; i++) {
        const struct snapshot_tariff *t = &s->tariff[i];
        for (size_t k = 0; t->lane == lane && k < t->named.count; k++) {
            const struct reward_terms *e = &s->terms[t->named.first + k];
            buf_printf(out, "%s{\"active_at\":%" PRIu64 ",\"model\":", has_one ? "," : "",
                       e->active_at);
            archive_put_hex(out, t->model_id, 32);
            buf_putc(out, ',');
            put_prices(out, e);
            has_one = true;
        }
    }
}

static void put_lanes(struct buf *out, const struct snapshot *s)
{
    buf_puts(out, "\"lanes\":[");
    for (size_t i = 0; i < s->lane_count; i++) {
        buf_printf(out, "%s{\"lane\":%" PRIu32 ",\"operator\":", i ? "," : "", s->lane[i].lane);
        archive_put_hex(out, s->lane[i].account, 20);
        buf_puts(out, ",\"tariffs\":[");
        put_tariffs(out, s, s->lane[i].lane);
        buf_puts(out, "]}");
    }
    buf_puts(out, "],\"ledger\":");
    archive_put_hex(out, s->d->ledger, 20);
}

static void put_methods(struct buf *out, const struct snapshot *s)
{
    buf_puts(out, ",\"methods\":[");
    for (size_t i = 0; i < s->method_count; i++) {
        buf_puts(out, i ? ",{\"hash\":" : "{\"hash\":");
        archive_put_hex(out, s->method[i].hash, 32);
        buf_printf(out, ",\"registered_at\":%" PRIu64 "}", s->method[i].registered_at);
    }
    buf_puts(out, "],");
}

void snapshot_put(struct buf *out, const struct snapshot *s)
{
    const struct reward_policy *p = &s->policy;
    buf_puts(out, "{\"adapters\":[");
    for (size_t i = 0; i < s->adapter_count; i++) {
        if (i)
            buf_putc(out, ',');
        put_adapter(out, s, &s->adapter[i]);
    }
    buf_printf(out, "],\"at\":%" PRIu64 ",", s->at);
    put_bases(out, s);
    put_batches(out, s);
    buf_printf(out, "\"chain_id\":%" PRIu64 ",", s->d->chain_id);
    put_datanets(out, s);
    buf_puts(out, "\"format\":\"residual.snapshot.1\",");
    put_lanes(out, s);
    put_methods(out, s);
    buf_printf(out, "\"policy\":{\"adapters\":%u,\"base\":%u,\"operator\":%u,\"protocol\":%u,",
               p->adapters_bps, p->base_bps, p->operator_bps, p->protocol_bps);
    buf_puts(out, "\"treasury\":");
    archive_put_hex(out, p->treasury, 20);
    buf_puts(out, "},\"registry\":");
    archive_put_hex(out, s->d->registry, 20);
    buf_puts(out, "}\n");
}
