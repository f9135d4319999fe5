/* Every field is asked for by type, since the worker may be anybody's: what has another form ends
 * in a sentence, and what is printed is printed as text. */
#include "chain_client/cli/books.h"
#include "chain_client/cli/http.h"
#include "chain_client/eth/addr.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define BOOKS_PAGES_MAX 10

static const char *text_of(const json_t *v, const char *key)
{
    const char *s = json_string_value(json_object_get(v, key));
    return s ? s : "none";
}

static bool amount_of(const json_t *v, const char *key, u128 *out)
{
    const char *s = json_string_value(json_object_get(v, key));
    *out = 0;
    return s && u128_parse(out, s);
}

/* ---- reading ---- */

static enum status bad_answer(const char *what, struct errtext *err)
{
    return err_set(err, STATUS_CORRUPT, "the settlement worker's %s have another form than ours",
                   what);
}

static enum status check_list(const json_t *list, const char *const *amounts, const char *what,
                              struct errtext *err)
{
    size_t i;
    u128 v;
    const json_t *item;
    if (!json_is_array(list))
        return bad_answer(what, err);
    json_array_foreach(list, i, item)
    {
        for (const char *const *key = amounts; *key; key++)
            if (!amount_of(item, *key, &v))
                return bad_answer(what, err);
    }
    return STATUS_OK;
}

static enum status read_reward(struct books *b, struct http *h, const char *base,
                               struct errtext *err)
{
    enum status st = http_call(h, "GET", base, NULL, &b->reward, err);
    if (st == STATUS_NOT_FOUND && http_answered_json(h)) {
        err_clear(err);
        return STATUS_OK;
    }
    u128 v;
    const json_t *pending = json_object_get(b->reward, "pending");
    if (!st && (!amount_of(json_object_get(b->reward, "undivided"), "fee_sum", &v) ||
                (json_is_object(pending) && !amount_of(pending, "amount", &v))))
        st = bad_answer("rewards", err);
    return st;
}

/* `next` holds 0x, digits, a colon and a word: it needs no escape in a URL. */
static bool is_plain(const char *next)
{
    static const char allowed[] = "0123456789abcdefghijklmnopqrstuvwxyz:";
    return strlen(next) < 100 && next[strspn(next, allowed)] == '\0';
}

static enum status read_sources(struct books *b, struct http *h, const char *base,
                                struct errtext *err)
{
    static const char *const amounts[] = {"earned", "pending", NULL};
    char path[256];
    enum status st = STATUS_OK;
    b->sources = json_array();
    b->more = false;
    snprintf(path, sizeof(path), "%s/sources", base);
    for (int page = 0; page < BOOKS_PAGES_MAX && !st; page++) {
        json_t *answer;
        st = http_call(h, "GET", path, NULL, &answer, err);
        const json_t *list = json_object_get(answer, "sources");
        const char *next = json_string_value(json_object_get(answer, "next"));
        if (!st)
            st = check_list(list, amounts, "sources", err);
        if (!st && (json_array_extend(b->sources, (json_t *)(uintptr_t)list) != 0 ||
                    (next && !is_plain(next))))
            st = bad_answer("sources", err);
        b->more = next != NULL;
        if (next && !st)
            snprintf(path, sizeof(path), "%s/sources?after=%s", base, next);
        json_decref(answer);
        if (!b->more)
            break;
    }
    return st;
}

static enum status read_epochs(struct books *b, struct http *h, const char *base,
                               struct errtext *err)
{
    static const char *const amounts[] = {"earned", "cumulative", NULL};
    char path[256];
    json_t *answer;
    snprintf(path, sizeof(path), "%s/history", base);
    enum status st = http_call(h, "GET", path, NULL, &answer, err);
    if (st)
        return st;
    b->epochs = json_incref(json_object_get(answer, "epochs"));
    b->more |= !json_is_null(json_object_get(answer, "next"));
    json_decref(answer);
    return check_list(b->epochs, amounts, "epochs", err);
}

enum status books_read(struct books *b, const struct cli *c, const uint8_t account[20],
                       struct errtext *err)
{
    struct http *h;
    char base[64 + ADDR_TEXT_BYTES], text[ADDR_TEXT_BYTES];
    *b = (struct books){.more = false};
    addr_format(text, account);
    snprintf(base, sizeof(base), "/v1/rewards/%s", text);
    enum status st = http_open(&h, c->value[OPT_SETTLE], NULL, "settlement worker", err);
    if (!st)
        st = read_reward(b, h, base, err);
    if (!st)
        st = read_sources(b, h, base, err);
    if (!st)
        st = read_epochs(b, h, base, err);
    http_close(h);
    return st;
}

void books_fini(struct books *b)
{
    json_decref(b->reward);
    json_decref(b->sources);
    json_decref(b->epochs);
    *b = (struct books){.more = false};
}

/* ---- printing ---- */

static void put_value(struct buf *out, const char *key, const json_t *v)
{
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    buf_printf(out, ",\"%s\":", key);
    buf_puts(out, text ? text : "null");
    mem_free(text);
}

void books_put_json(struct buf *out, const struct books *b)
{
    put_value(out, "pending", json_object_get(b->reward, "pending"));
    put_value(out, "undivided", json_object_get(b->reward, "undivided"));
    put_value(out, "sources", b->sources);
    put_value(out, "epochs", b->epochs);
    buf_printf(out, ",\"more\":%s", b->more ? "true" : "false");
}

static void put_amount(struct buf *out, const json_t *v, const char *key)
{
    char text[CLI_AMOUNT_BYTES];
    u128 amount;
    (void)amount_of(v, key, &amount);
    cli_amount(text, amount);
    buf_puts(out, text);
}

/* What is still to come, before the lists. */
static void put_outlook(struct buf *out, const json_t *reward)
{
    u128 v;
    const json_t *pending = json_object_get(reward, "pending");
    const json_t *undivided = json_object_get(reward, "undivided");
    if (json_is_object(pending)) {
        buf_puts(out, "\n  pending         ");
        put_amount(out, pending, "amount");
        buf_printf(out, " in epoch %" JSON_INTEGER_FORMAT " (%s)",
                   json_integer_value(json_object_get(pending, "epoch")),
                   text_of(pending, "state"));
    }
    if (amount_of(undivided, "fee_sum", &v) && v) {
        buf_puts(out, "\n  undivided       ");
        put_amount(out, undivided, "fee_sum");
        buf_puts(out, " of all accounts together: committed, in no epoch so far");
    }
}

static void put_source(struct buf *out, const json_t *s)
{
    const char *adapter = text_of(s, "adapter"), *source = text_of(s, "source");
    if (strcmp(source, "unpaid") == 0) {
        buf_printf(out,
                   "\n  adapter %s\n    uses this account's documents, and its split has no share "
                   "for data: it pays nothing for them; its owner can change that",
                   adapter);
        return;
    }
    buf_printf(out, "\n  adapter %s\n    datanet %s\n    as %s, earned ", adapter,
               text_of(s, "datanet"), source);
    put_amount(out, s, "earned");
    buf_puts(out, ", pending ");
    put_amount(out, s, "pending");
}

void books_put_text(struct buf *out, const struct books *b)
{
    size_t i;
    const json_t *item;
    put_outlook(out, b->reward);
    if (json_array_size(b->sources))
        buf_puts(out, "\nby adapter and datanet, as the worker counts");
    json_array_foreach(b->sources, i, item) put_source(out, item);
    if (json_array_size(b->epochs))
        buf_puts(out, "\nby epoch, newest first");
    json_array_foreach(b->epochs, i, item)
    {
        buf_printf(out, "\n  epoch %" JSON_INTEGER_FORMAT ", %s: ",
                   json_integer_value(json_object_get(item, "epoch")), text_of(item, "state"));
        put_amount(out, item, "earned");
    }
    if (b->more)
        buf_puts(out, "\nthere is more: the worker's page shows all of it");
}
