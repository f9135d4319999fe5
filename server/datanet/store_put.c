/* What comes into the store: a list is read aside first, by the one who reads every datanet, and
 * takes its place under the lock; a text is normalised, hashed and written outside of it. */
#include "chain_client/eth/addr.h"
#include "server/base/clock.h"
#include "server/base/hex.h"
#include "server/base/mem.h"
#include "server/datanet/store_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a list ---- */

static enum status check_publisher(const struct store_list *old, const struct datanet_list *l,
                                   struct errtext *err)
{
    bool own = old->head.own && strcmp(old->head.publisher, l->publisher) == 0;
    return own || l->admin || (!old->head.own && old->head.missing)
               ? STATUS_OK
               : err_set(err, STATUS_CONFLICT,
                         "documents: a list with this document root is here already, brought by %s",
                         old->head.own ? "another publisher" : "the operator");
}

static enum status is_copy(const struct store_list *earlier, const struct store_text *there,
                           const struct store_text *t, struct errtext *err)
{
    char digest[65], root[65], owner[ADDR_TEXT_BYTES];
    hex_encode(digest, t->digest, 32);
    hex_encode(root, earlier->head.root, 32);
    addr_format(owner, there->owner);
    return err_param(err, STATUS_DENIED, "documents",
                     "documents: 0x%s is a copy of a document that %s owns in the datanet \"%s\" "
                     "version %llu (document root 0x%s), which was here before; withdraw it, or "
                     "name its owner",
                     digest, owner, earlier->head.name, (unsigned long long)earlier->head.version,
                     root);
}

/* A document of somebody else in a list that was here before? Both ascend by digest. */
static enum status check_copies(const struct datanet_store *s, const struct store_list *h,
                                struct errtext *err)
{
    for (uint32_t k = 0; k < s->count; k++) {
        const struct store_list *e = s->list[k];
        if (memcmp(e->head.root, h->head.root, 32) == 0)
            return STATUS_OK; /* what came after it does not matter */
        for (uint32_t i = 0, j = 0; i < h->head.documents && j < e->head.documents;) {
            int c = memcmp(h->text[i].digest, e->text[j].digest, 32);
            if (c == 0 && memcmp(h->text[i].owner, e->text[j].owner, 20) != 0)
                return is_copy(e, &e->text[j], &h->text[i], err);
            i += c <= 0;
            j += c >= 0;
        }
    }
    return STATUS_OK;
}

/* Texts that other lists of this store have. */
static void link_texts(const struct datanet_store *s, struct store_list *h)
{
    for (uint32_t k = 0; k < s->count; k++) {
        const struct store_list *e = s->list[k];
        for (uint32_t i = 0, j = 0;
             e->head.own && i < h->head.documents && j < e->head.documents;) {
            int c = memcmp(h->text[i].digest, e->text[j].digest, 32);
            if (c == 0 && e->text[j].here && !h->text[i].here &&
                store_disk_link(e->dir, h->dir, h->text[i].digest)) {
                h->text[i].here = true;
                h->head.missing--;
            }
            i += c <= 0;
            j += c >= 0;
        }
    }
}

/* It takes its place on disk, and then in the table. */
static enum status write_list(struct datanet_store *s, struct store_list *h,
                              const struct datanet_list *l, struct errtext *err)
{
    for (uint32_t i = 0; i < h->head.documents; i++)
        h->text[i].here = false;
    h->head.missing = h->head.documents;
    datanet_release(h->open); /* of the folder aside, which is gone */
    h->open = NULL;
    enum status st = store_disk_write(h->dir, l->datanet, err);
    if (!st)
        st = datanet_open(&h->open, h->dir, NULL, err);
    if (!st) {
        store_value_load(h); /* of the list whose place it takes */
        link_texts(s, h);
    }
    return st ? st : store_disk_hold(h, !h->head.missing, err);
}

static enum status put_locked(struct datanet_store *s, struct store_list *h,
                              const struct datanet_list *l, struct errtext *err)
{
    uint32_t place = s->count;
    struct store_list *old = store_find_list(s, h->head.root, &place);
    enum status st = old ? check_publisher(old, l, err) : STATUS_OK;
    if (!st)
        st = check_copies(s, h, err);
    if (!st)
        st = store_check_room(s, h, old, err);
    if (st)
        return st;
    if (old)
        h->head.created_ms = old->head.created_ms;
    st = write_list(s, h, l, err);
    if (!st)
        store_take_place(s, h, place);
    else if (!old || !old->head.own)
        store_disk_remove(h->dir);
    return st;
}

/* Written aside and read back by the one who reads every datanet: what it refuses is not kept. */
static enum status read_aside(struct datanet_store *s, struct store_list **out,
                              const struct datanet_list *l, struct errtext *err)
{
    char aside[PATH_MAX];
    snprintf(aside, sizeof(aside), "%.*s/" STORE_ASIDE "XXXXXX", PATH_MAX - 32, s->dir);
    *out = NULL;
    if (!mkdtemp(aside))
        return err_set(err, STATUS_IO, "%s: %s", aside, strerror(errno));
    enum status st = store_disk_write(aside, l->datanet, err);
    if (!st)
        st = store_list_open(out, aside, NULL, err);
    store_disk_remove(aside);
    return st;
}

/* Its place: known to nobody yet, and no text of it is here. */
static enum status settle(struct datanet_store *s, struct store_list *h,
                          const struct datanet_list *l, struct errtext *err)
{
    char dir[PATH_MAX];
    store_disk_dir(dir, s->dir, h->head.root);
    mem_free(h->dir);
    h->dir = mem_strdup(dir);
    h->head.own = true;
    h->head.created_ms = (int64_t)clock_wall_ms();
    snprintf(h->head.publisher, sizeof(h->head.publisher), "%s", l->publisher);
    pthread_mutex_lock(&s->lock);
    enum status st = put_locked(s, h, l, err);
    pthread_mutex_unlock(&s->lock);
    return st;
}

enum status datanet_store_put_list(struct datanet_store *s, const struct datanet_list *l,
                                   uint8_t root[32], struct errtext *err)
{
    struct store_list *h;
    enum status st = read_aside(s, &h, l, err);
    if (st)
        return st;
    memcpy(root, h->head.root, 32);
    st = l->check ? l->check(l->arg, h->open, err) : STATUS_OK;
    if (!st)
        st = settle(s, h, l, err);
    if (st)
        store_list_free(h);
    return st;
}

/* ---- a text ---- */

/* *dir (mem_free): where it is missing, or NULL: it is here. */
static enum status find_missing(struct datanet_store *s, const uint8_t root[32],
                                const uint8_t digest[32], char **dir, struct errtext *err)
{
    char hex[65];
    *dir = NULL;
    pthread_mutex_lock(&s->lock);
    const struct store_list *h = store_find_list(s, root, NULL);
    const struct store_text *t = h && h->head.own ? store_list_text(h, digest) : NULL;
    if (t && !t->here)
        *dir = mem_strdup(h->dir);
    pthread_mutex_unlock(&s->lock);
    hex_encode(hex, h ? digest : root, 32);
    return t ? STATUS_OK
             : err_param(err, STATUS_NOT_FOUND, "document",
                         h ? "the list has no document 0x%s, or is the operator's"
                           : "there is no datanet with the document root 0x%s here; POST "
                             "/v1/datanets brings its list",
                         hex);
}

static enum status came(struct datanet_store *s, const uint8_t root[32], const uint8_t digest[32],
                        struct errtext *err)
{
    enum status st = STATUS_OK;
    pthread_mutex_lock(&s->lock);
    struct store_list *h = store_find_list(s, root, NULL);
    struct store_text *t = h && h->head.own ? store_list_text(h, digest) : NULL;
    if (t && !t->here) {
        t->here = true;
        h->head.missing--;
        store_near_came(s, h, (uint32_t)(t - h->text));
        if (!h->head.missing)
            st = store_disk_hold(h, true, err);
    }
    pthread_mutex_unlock(&s->lock);
    return st;
}

static enum status normalise(struct buf *out, const char *text, size_t len, const uint8_t want[32],
                             struct errtext *err)
{
    uint8_t found[32];
    char hex[65], expected[65];
    enum status st = document_normal(out, text, len, err);
    if (st)
        return st;
    document_digest(found, out);
    hex_encode(hex, found, 32);
    hex_encode(expected, want, 32);
    return memcmp(found, want, 32) == 0
               ? STATUS_OK
               : err_param(err, STATUS_INVALID, "document",
                           "the normalised text has the digest 0x%s, expected 0x%s", hex, expected);
}

enum status datanet_store_put_text(struct datanet_store *s, const uint8_t root[32],
                                   const uint8_t digest[32], const char *text, size_t len,
                                   struct errtext *err)
{
    char *dir;
    struct buf normal;
    enum status st = find_missing(s, root, digest, &dir, err);
    if (st || !dir)
        return st;
    buf_init(&normal, 4 * (size_t)DOCUMENT_BYTES_MAX);
    st = normalise(&normal, text, len, digest, err);
    if (!st)
        st = store_disk_put_text(dir, digest, normal.data, normal.len, err);
    if (!st)
        st = came(s, root, digest, err);
    buf_fini(&normal);
    mem_free(dir);
    return st;
}
