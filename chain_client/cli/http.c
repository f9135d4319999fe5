/* The settlement worker's and the server's JSON API as the command line uses it: fetch carries the
 * request, this file turns what came back into a status and a sentence. */
#include "chain_client/cli/http.h"
#include "chain_client/eth/fetch.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <string.h>

#define ANSWER_BYTES_MAX (64u << 20)
#define TIMEOUT_MS       600000 /* a large upload over a slow line */
#define CONNECT_MS       10000
#define STALL_S          60

struct http {
    struct fetch *fetch;
    char what[1100]; /* "server at URL" */
    bool is_json;
};

enum status http_open(struct http **out, const char *base_url, const char *api_key_file,
                      const char *what, struct errtext *err)
{
    char bearer[FETCH_BEARER_BYTES] = "";
    struct http *h = mem_alloc(sizeof(*h));
    *out = NULL;
    snprintf(h->what, sizeof(h->what), "%s at %.1024s", what, base_url);
    const struct fetch_config config = {.base = base_url,
                                        .authorization = api_key_file ? bearer : NULL,
                                        .what = h->what,
                                        .timeout_ms = TIMEOUT_MS,
                                        .connect_ms = CONNECT_MS,
                                        .stall_s = STALL_S,
                                        .answer_bytes_max = ANSWER_BYTES_MAX};
    enum status st =
        api_key_file ? fetch_bearer(bearer, api_key_file, FETCH_KEY_BYTES_MAX, err) : STATUS_OK;
    if (!st)
        st = fetch_open(&h->fetch, &config, err);
    mem_wipe(bearer, sizeof(bearer));
    if (st)
        http_close(h);
    else
        *out = h;
    return st;
}

void http_close(struct http *h)
{
    if (!h)
        return;
    fetch_close(h->fetch);
    mem_free(h);
}

static enum status status_of(long code)
{
    switch (code) {
    case 401:
    case 403:
        return STATUS_DENIED;
    case 404:
        return STATUS_NOT_FOUND;
    case 409:
        return STATUS_EXISTS;
    case 413:
        return STATUS_TOO_LARGE;
    case 429:
    case 503:
        return STATUS_BUSY;
    case 504:
        return STATUS_TIMEOUT;
    default:
        return code >= 500 || code < 400 ? STATUS_IO : STATUS_INVALID;
    }
}

/* The server's own sentence: error.message (OpenAI's form), or a text answer. */
static enum status refused(struct http *h, long code, const json_t *root, struct errtext *err)
{
    const json_t *error = json_object_get(root, "error");
    const char *text = json_is_string(error) ? json_string_value(error)
                                             : json_string_value(json_object_get(error, "message"));
    if (!text)
        text = json_string_value(json_object_get(root, "message"));
    if (text)
        return err_set(err, status_of(code), "the %s says: %s", h->what, text);
    return err_set(err, status_of(code), "the %s answered with HTTP status %ld", h->what, code);
}

enum status http_call(struct http *h, const char *method, const char *path,
                      const struct http_body *body, json_t **answer, struct errtext *err)
{
    const struct fetch_request q = {.method = method,
                                    .path = path,
                                    .body = body ? body->text : NULL,
                                    .body_bytes = body ? body->len : 0,
                                    .file_path = body ? body->file_path : NULL};
    *answer = NULL;
    h->is_json = false;
    enum status st = fetch_perform(h->fetch, &q, err);
    if (st)
        return st;
    const struct fetch_answer *a = fetch_answer(h->fetch);
    json_t *root;
    h->is_json = !json_doc_parse(&root, "the answer", a->body.data, a->body.len, 0, NULL);
    if (a->code < 200 || a->code > 299)
        st = refused(h, a->code, root, err);
    else if (!h->is_json)
        st = err_set(err, STATUS_CORRUPT, "the %s did not answer %s with a JSON object", h->what,
                     path);
    if (st)
        json_decref(root);
    else
        *answer = root;
    return st;
}

enum status http_call_file(struct http *h, const char *path, const struct fetch_file *into,
                           struct errtext *err)
{
    const struct fetch_request q = {.method = "GET", .path = path, .into = into};
    json_t *root = NULL;
    h->is_json = false;
    enum status st = fetch_perform(h->fetch, &q, err);
    if (st)
        return st;
    const struct fetch_answer *a = fetch_answer(h->fetch);
    if (a->code >= 200 && a->code <= 299)
        return STATUS_OK;
    h->is_json = !json_doc_parse(&root, "the answer", a->body.data, a->body.len, 0, NULL);
    st = refused(h, a->code, root, err);
    json_decref(root);
    return st;
}

bool http_answered_json(const struct http *h)
{
    return h->is_json;
}

const char *http_hint(enum status st)
{
    switch (st) {
    case STATUS_IO:
    case STATUS_TIMEOUT:
        return "Is it running, and is the URL right? `curl URL/health` shows.";
    case STATUS_DENIED:
        return "Give a key that may do this with --api-key-file FILE (mode 600).";
    case STATUS_BUSY:
        return "It is busy now: run the command again in a moment.";
    default:
        return NULL;
    }
}
