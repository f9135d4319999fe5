/* Paths of this machine and what the publisher notes for itself stay here. */
#include "chain_client/cli/datanet_send.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define URL_BYTES 192

static json_t *parcel_json(const struct datanet_parcel *p)
{
    static const char *const keys[] = {"name", "version", "datanetId", "tokenizerDigest"};
    size_t i;
    char id[67] = "0x";
    json_t *doc, *out = json_object();
    json_t *documents =
        json_deep_copy(p->documents ? p->documents : json_object_get(p->list, "documents"));
    for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        json_t *v = json_object_get(p->list, keys[i]);
        if (v)
            json_object_set(out, keys[i], v);
    }
    json_array_foreach(documents, i, doc) json_object_del(doc, "file");
    json_object_set_new(out, "documents", documents);
    if (p->id) {
        hex_encode(id + 2, p->id, 32);
        json_object_set_new(out, "datanetId", json_string(id));
    }
    return out;
}

/* The same list of somebody else, with all its texts, serves as well. */
static enum status is_there(struct http *h, const struct datanet_parcel *p, struct errtext *err)
{
    char url[URL_BYTES], hex[65];
    json_t *answer = NULL;
    hex_encode(hex, datanet_head(p->datanet)->document_root, 32);
    snprintf(url, sizeof(url), "/v1/datanets/0x%s?first=0&last=0", hex);
    bool whole = http_call(h, "GET", url, NULL, &answer, NULL) == STATUS_OK &&
                 json_integer_value(json_object_get(answer, "missing")) == 0;
    json_decref(answer);
    if (whole)
        err_clear(err);
    return whole ? STATUS_OK : STATUS_EXISTS;
}

static enum status send_list(struct http *h, const struct datanet_parcel *p, json_t **answer,
                             struct errtext *err)
{
    json_t *list = parcel_json(p);
    char *text = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    if (!text)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the list of documents");
    struct http_body body = {.text = text, .len = strlen(text)};
    enum status st = http_call(h, "POST", "/v1/datanets", &body, answer, err);
    mem_free(text);
    return st == STATUS_EXISTS ? is_there(h, p, err) : st;
}

static int by_digest(const void *digest, const void *document)
{
    return memcmp(digest, ((const struct datanet_document *)document)->digest, 32);
}

static enum status send_text(struct http *h, const struct datanet_parcel *p, const char *hex,
                             struct buf *text, struct errtext *err)
{
    char url[URL_BYTES], root[65];
    uint8_t digest[32];
    json_t *answer;
    const struct datanet_head *head = datanet_head(p->datanet);
    const struct datanet_document *all = datanet_document(p->datanet, 0), *found = NULL;
    if (hex && hex_decode(digest, 32, hex))
        found = bsearch(digest, all, head->n, sizeof(*all), by_digest);
    if (!found)
        return err_set(err, STATUS_CORRUPT, "the server asks for a text that the list has not");
    enum status st = datanet_text(p->datanet, (uint32_t)(found - all), text, err);
    if (st)
        return st == STATUS_NOT_FOUND ? STATUS_INVALID : st;
    hex_encode(root, head->document_root, 32);
    snprintf(url, sizeof(url), "/v1/datanets/0x%s/documents/%.66s", root, hex);
    struct http_body body = {.text = text->data, .len = text->len};
    st = http_call(h, "PUT", url, &body, &answer, err);
    json_decref(answer);
    return st;
}

enum status datanet_send(struct http *h, const struct datanet_parcel *p, uint32_t *texts,
                         struct errtext *err)
{
    size_t i;
    const json_t *digest;
    struct buf text;
    json_t *answer = NULL;
    *texts = 0;
    enum status st = send_list(h, p, &answer, err);
    buf_init(&text, 4 * (size_t)DOCUMENT_BYTES_MAX);
    json_array_foreach(json_object_get(answer, "texts"), i, digest)
    {
        if (!st)
            st = send_text(h, p, json_string_value(digest), &text, err);
        *texts += !st;
    }
    buf_fini(&text);
    json_decref(answer);
    return st;
}
