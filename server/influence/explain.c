/* Written by hand, key by key, as replies are: numbers are integers wherever money reads them. */
#include "server/influence/explain.h"
#include "chain_client/eth/addr.h"
#include "server/base/check.h"
#include "server/base/hex.h"

#include <inttypes.h>
#include <sodium.h>
#include <string.h>

static void put_payee(struct buf *out, const char *key, const uint8_t payee[20])
{
    char text[ADDR_TEXT_BYTES];
    addr_format(text, payee);
    buf_printf(out, "\"%s\":\"%s\"", key, text);
}

/* ---- what is shown ---- */

static void put_index(struct buf *out, const struct score_part *p)
{
    buf_printf(out, "\"index\":{\"state\":\"%s\"", index_state_name(p->state));
    if (!p->index) {
        buf_puts(out, ",\"reason\":");
        buf_put_json_string(out, p->why, strlen(p->why));
        buf_putc(out, '}');
        return;
    }
    const struct events_head *h = events_head(p->index->events);
    buf_putc(out, ',');
    buf_put_json_hex(out, "root", events_root(p->index->events), 32);
    buf_printf(out, ",\"lambda_ppb\":%" PRIu32 ",\"rows\":%" PRIu32 ",\"events\":%" PRIu32 ",",
               h->trust.lambda, h->n_rows, h->n_events);
    buf_put_json_hex(out, "document_root", h->document_root, 32);
    buf_putc(out, ',');
    buf_put_json_hex(out, "training", h->training_digest, 32);
    buf_putc(out, '}');
}

static void put_signal(struct buf *out, const char *key, bool has, uint32_t ppb)
{
    if (has)
        buf_printf(out, "\"%s\":%" PRIu32, key, ppb);
    else
        buf_printf(out, "\"%s\":null", key);
}

/* In the order of the record's list. */
static void put_contributors(struct buf *out, const struct score_task *t, uint32_t k)
{
    const struct tail_credit *credit = &t->result.influence.adapter[k];
    const struct shares *s = &t->result.shares[k];
    buf_puts(out, "\"contributors\":[");
    for (uint32_t i = 0; i < credit->share_count; i++) {
        buf_puts(out, i ? ",{" : "{");
        put_payee(out, "payee", credit->share[i].payee);
        buf_printf(out, ",\"ppb\":%" PRIu32, credit->share[i].ppb);
        if (i >= s->count) { /* nobody moved the answer */
            buf_puts(out, ",\"treasury\":true}");
            continue;
        }
        const struct shares_item *c = &s->item[i];
        buf_printf(
            out, ",\"documents\":%" PRIu32 ",\"interval\":[%" PRIu32 ",%" PRIu32 "],\"signals\":{",
            events_owner(t->part[k].index->events, c->owner)->documents, c->low_ppb, c->high_ppb);
        put_signal(out, "events", s->has_events, c->events_ppb);
        buf_putc(out, ',');
        put_signal(out, "spans", s->has_spans, c->spans_ppb);
        buf_printf(out, ",\"prior\":%" PRIu32 "}}", c->prior_ppb);
    }
    buf_putc(out, ']');
}

/* Where a text stands, and under what terms: document is a place in the datanet's list. */
static void put_source(struct buf *out, const struct index *index, uint32_t document,
                       uint32_t offset, uint32_t bytes)
{
    const struct documents *list = datanet_documents(index->datanet);
    const struct documents_facts *f = &list->facts[document];
    buf_put_json_hex(out, "document", list->item[document].digest, 32);
    buf_printf(out, ",\"docId\":%" PRIu64 ",", f->doc_id);
    put_payee(out, "owner", list->item[document].owner);
    buf_printf(out, ",\"offset\":%" PRIu32 ",\"bytes\":%" PRIu32 ",\"licence\":", offset, bytes);
    buf_put_json_string(out, f->licence, strlen(f->licence));
    buf_printf(out, ",\"display\":%s", f->display ? "true" : "false");
}

static void put_rows(struct buf *out, const struct score_task *t, uint32_t k)
{
    const struct score_part *p = &t->part[k];
    struct events_top top[EXPLAIN_ROWS_MAX];
    const struct events_scores *scores = t->result.scores[k];
    uint32_t n = scores ? events_scores_top(scores, top, EXPLAIN_ROWS_MAX) : 0;
    u128 sum = scores ? events_scores_rows_sum(scores) : 0;
    buf_puts(out, "\"rows\":[");
    for (uint32_t i = 0; i < n; i++) {
        const struct events_row *row = events_row(p->index->events, top[i].row);
        uint32_t choice = 0, token = top[i].best_token;
        while (choice + 1 < t->job->seq_count && token >= t->job->seq[choice].n_out)
            token -= t->job->seq[choice++].n_out;
        buf_puts(out, i ? ",{" : "{");
        put_source(out, p->index, row->document, row->offset, row->bytes);
        buf_printf(out, ",\"ppb\":%" PRIu32 ",\"choice\":%" PRIu32 ",\"token\":%" PRIu32 "}",
                   sum ? (uint32_t)((u128)top[i].score * TAIL_E9 / sum) : 0, choice, token);
    }
    buf_putc(out, ']');
}

static void put_spans(struct buf *out, const struct score_task *t, uint32_t k)
{
    const struct score_part *p = &t->part[k];
    buf_puts(out, "\"spans\":[");
    for (uint32_t i = 0; i < p->hit_count; i++) {
        const struct score_hit *h = &p->hit[i];
        struct spans_place place[EXPLAIN_SOURCES_MAX];
        uint32_t n = spans_places(p->index->spans, &h->hit, place, EXPLAIN_SOURCES_MAX);
        uint32_t prompt = t->job->prompt[t->job->seq[h->choice].prompt_idx].n_ids;
        buf_printf(out,
                   "%s{\"choice\":%" PRIu32 ",\"begin\":%" PRIu32 ",\"tokens\":%" PRIu32
                   ",\"output_begin\":%" PRId64 ",\"count\":%" PRIu32 ",\"sources\":[",
                   i ? "," : "", h->choice, h->hit.begin, h->hit.n_tok,
                   (int64_t)h->hit.begin - prompt, h->hit.count);
        for (uint32_t s = 0; s < n; s++) {
            buf_puts(out, s ? ",{" : "{");
            put_source(out, p->index, place[s].document, place[s].offset, place[s].bytes);
            buf_putc(out, '}');
        }
        buf_puts(out, "]}");
    }
    buf_putc(out, ']');
}

static void put_adapter(struct buf *out, const struct score_task *t, uint32_t k)
{
    buf_printf(out, "{\"gain_ppb\":%" PRIu32 ",\"solo_q8\":%" PRIu64 ",",
               t->result.influence.adapter[k].gain, t->result.solo_q8[k]);
    put_index(out, &t->part[k]);
    buf_putc(out, ',');
    put_contributors(out, t, k);
    buf_putc(out, ',');
    put_rows(out, t, k);
    buf_putc(out, ',');
    put_spans(out, t, k);
    buf_putc(out, '}');
}

static void put_choice(struct buf *out, const struct score_task *t, const struct gain_in *in,
                       uint32_t i)
{
    const struct gain_choice *c = &in->choice[i];
    buf_printf(out, "{\"index\":%" PRIu32 ",\"prompt_tokens\":%" PRIu32 ",\"tokens\":[", i,
               t->job->prompt[t->job->seq[i].prompt_idx].n_ids);
    for (uint32_t k = 0; k < c->n; k++) {
        double set = (double)c->set[k] / 256, base = (double)c->row[0][k] / 256;
        buf_printf(out, "%s{\"gain_nats\":%.4f,\"logprob\":%.4f,\"base_logprob\":%.4f}",
                   k ? "," : "", MAX(set - base, 0), set, base);
    }
    buf_puts(out, "]}");
}

static void put_shown(struct buf *out, const struct score_task *t, const struct gain_in *in)
{
    buf_puts(out, "{\"adapters\":[");
    for (uint32_t k = 0; k < in->adapter_count; k++) {
        if (k)
            buf_putc(out, ',');
        put_adapter(out, t, k);
    }
    buf_puts(out, "],\"choices\":[");
    for (uint32_t i = 0; i < in->choice_count; i++) {
        if (i)
            buf_putc(out, ',');
        put_choice(out, t, in, i);
    }
    buf_puts(out, "]}");
}

/* ---- what is logged ---- */

static void put_ints(struct buf *out, const int32_t *v, uint32_t n)
{
    buf_putc(out, '[');
    for (uint32_t i = 0; i < n; i++)
        buf_printf(out, "%s%" PRId32, i ? "," : "", v[i]);
    buf_putc(out, ']');
}

static void put_base64(struct buf *out, const int8_t *data, size_t n)
{
    size_t most = sodium_base64_ENCODED_LEN(n, sodium_base64_VARIANT_ORIGINAL);
    buf_putc(out, '"');
    if (buf_reserve(out, most)) {
        sodium_bin2base64(out->data + out->len, most, (const unsigned char *)data, n,
                          sodium_base64_VARIANT_ORIGINAL);
        out->len += strlen(out->data + out->len);
    }
    buf_putc(out, '"');
}

static void put_rows_between(struct buf *out, const struct gain_choice *c, uint32_t first,
                             uint32_t end)
{
    buf_putc(out, '[');
    for (uint32_t r = first; r < end; r++) {
        if (r > first)
            buf_putc(out, ',');
        put_ints(out, c->row[r], c->n);
    }
    buf_putc(out, ']');
}

static void put_logged_choice(struct buf *out, const struct gain_in *in, uint32_t i)
{
    const struct gain_choice *c = &in->choice[i];
    buf_puts(out, i ? ",{\"target\":" : "{\"target\":");
    put_ints(out, c->target, c->n);
    buf_puts(out, ",\"set\":");
    put_ints(out, c->set, c->n);
    buf_puts(out, ",\"base\":");
    put_ints(out, c->row[0], c->n);
    uint32_t rows = gain_row_count(in->adapter_count), end = MIN(rows, 1 + in->adapter_count);
    buf_puts(out, ",\"alone\":");
    put_rows_between(out, c, 1, end);
    buf_puts(out, ",\"without\":");
    put_rows_between(out, c, end, rows);
    buf_puts(out, ",\"in_prompt\":[");
    for (uint32_t t = 0; t < c->n; t++)
        buf_printf(out, "%s%u", t ? "," : "", c->in_prompt[t]);
    buf_puts(out, "]}");
}

static void put_logged_adapter(struct buf *out, const struct gain_in *in, uint32_t k)
{
    const struct gain_adapter *a = &in->adapter[k];
    bool any = false;
    buf_puts(out, k ? ",{" : "{");
    if (!a->events) {
        buf_puts(out, "\"root\":null}");
        return;
    }
    buf_put_json_hex(out, "root", events_root(a->events), 32);
    buf_puts(out, ",\"keys\":[");
    for (uint32_t i = 0; i < in->choice_count; i++) {
        if (i)
            buf_putc(out, ',');
        put_base64(out, a->key[i], (size_t)in->choice[i].n * EVENTS_KEY);
    }
    buf_puts(out, "],\"spans\":[");
    for (uint32_t o = 0; a->spans && o < events_head(a->events)->n_owners; o++) {
        if (a->spans[o])
            buf_printf(out, "%s[%" PRIu32 ",\"%" PRIu64 "\"]", any ? "," : "", o, a->spans[o]);
        any |= a->spans[o] != 0;
    }
    buf_puts(out, "]}");
}

static void put_logged(struct buf *out, const struct gain_in *in)
{
    buf_puts(out, "\"choices\":[");
    for (uint32_t i = 0; i < in->choice_count; i++)
        put_logged_choice(out, in, i);
    buf_puts(out, "],\"adapters\":[");
    for (uint32_t k = 0; k < in->adapter_count; k++)
        put_logged_adapter(out, in, k);
    buf_putc(out, ']');
}

void explain_put(struct buf *out, const struct score_task *t, const struct gain_in *in)
{
    uint8_t length[4] = {0};
    size_t at = out->len;
    buf_put(out, length, sizeof(length));
    put_shown(out, t, in);
    if (!out->failed)
        be_put((uint8_t *)out->data + at, out->len - at - sizeof(length), sizeof(length));
    put_logged(out, in);
}

bool explain_split(const struct buf *evidence, const char **shown, size_t *shown_len,
                   const char **inputs, size_t *inputs_len)
{
    uint64_t n =
        evidence->len >= 4 ? (uint64_t)be_get((const uint8_t *)evidence->data, 4) : UINT64_MAX;
    if (n > evidence->len - 4)
        return false;
    *shown = evidence->data + 4;
    *shown_len = (size_t)n;
    *inputs = *shown + n;
    *inputs_len = evidence->len - 4 - (size_t)n;
    return true;
}
