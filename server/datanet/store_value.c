/* value.json beside a list: what its publisher measured. Read with the list; one that does not fit
 * it (any more) is not shown. */
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/datanet/store_impl.h"

#include <stdio.h>
#include <string.h>

void store_value_load(struct store_list *h)
{
    struct errtext err = ERRTEXT_INIT;
    char *text = NULL;
    size_t len;
    value_report_free(h->value);
    h->value = NULL;
    enum status st = datanet_read(h->open, VALUE_FILE, VALUE_BYTES_MAX, &text, &len, &err);
    if (st == STATUS_NOT_FOUND)
        return;
    if (!st)
        st = value_report_parse(&h->value, text, len, h->open, &err);
    if (st)
        log_warn("datanets", "%s/" VALUE_FILE " is not shown: %s", h->dir, err.text);
    mem_free(text);
}

struct value_report *datanet_store_value(struct datanet_store *s, const uint8_t root[32])
{
    struct value_report *out = NULL;
    pthread_mutex_lock(&s->lock);
    const struct store_list *h = store_find_list(s, root, NULL);
    if (h && h->value) {
        out = mem_alloc(sizeof(*out));
        *out = *h->value;
        out->line = mem_array((size_t)out->n + 1, sizeof(*out->line));
        memcpy(out->line, h->value->line, out->n * sizeof(*out->line));
    }
    pthread_mutex_unlock(&s->lock);
    return out;
}

enum status datanet_store_value_file(struct datanet_store *s, const uint8_t root[32],
                                     struct buf *out, struct errtext *err)
{
    char *text = NULL;
    size_t len = 0;
    pthread_mutex_lock(&s->lock);
    const struct store_list *h = store_find_list(s, root, NULL);
    struct datanet *d = h && h->value ? datanet_ref(h->open) : NULL;
    pthread_mutex_unlock(&s->lock);
    enum status st = d ? datanet_read(d, VALUE_FILE, VALUE_BYTES_MAX, &text, &len, err)
                       : err_set(err, STATUS_NOT_FOUND,
                                 "nobody has measured this datanet's value; residual datanet value "
                                 "does, and residual datanet publish brings it");
    if (!st)
        buf_put(out, text, len);
    mem_free(text);
    datanet_release(d);
    return st;
}

static enum status check_base(const struct value_report *v, const uint8_t base[32],
                              struct errtext *err)
{
    char found[65], want[65];
    hex_encode(found, v->base, 32);
    hex_encode(want, base, 32);
    return memcmp(v->base, base, 32) == 0
               ? STATUS_OK
               : err_param(err, STATUS_INVALID, "base",
                           VALUE_FILE ": base: it was measured on 0x%s, this server's is 0x%s",
                           found, want);
}

/* The list that may take one from this sender; the lock is held. */
static enum status find_own(const struct datanet_store *s, const uint8_t root[32],
                            const struct datanet_value_sent *v, struct store_list **out,
                            struct errtext *err)
{
    char hex[65];
    struct store_list *h = store_find_list(s, root, NULL);
    *out = h;
    hex_encode(hex, root, 32);
    if (!h)
        return err_set(err, STATUS_NOT_FOUND,
                       "there is no datanet with the document root 0x%s here", hex);
    if (!h->head.own || (!v->admin && strcmp(h->head.publisher, v->publisher) != 0))
        return err_set(err, STATUS_DENIED, "the datanet 0x%s was brought by %s", hex,
                       h->head.own ? "another publisher" : "the operator");
    return STATUS_OK;
}

static enum status keep(struct store_list *h, struct value_report *report,
                        const struct datanet_value_sent *v, struct errtext *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%.*s/" VALUE_FILE, PATH_MAX - 32, h->dir);
    enum status st = file_spare(h->dir, v->len, err);
    if (!st)
        st = file_write_atomic(path, v->text, v->len, 0600, err);
    if (st)
        return st;
    value_report_free(h->value);
    h->value = report;
    return STATUS_OK;
}

enum status datanet_store_put_value(struct datanet_store *s, const uint8_t root[32],
                                    const struct datanet_value_sent *v, struct errtext *err)
{
    struct store_list *h;
    struct value_report *report = NULL;
    pthread_mutex_lock(&s->lock);
    enum status st = find_own(s, root, v, &h, err);
    if (!st)
        st = value_report_parse(&report, v->text, v->len, h->open, err);
    if (!st)
        st = check_base(report, v->base, err);
    if (!st)
        st = keep(h, report, v, err);
    if (st)
        value_report_free(report);
    pthread_mutex_unlock(&s->lock);
    return st;
}
