#include "chain_client/cli/http.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#define KEY_BYTES_MAX    4096
#define ANSWER_BYTES_MAX (64u << 20)
#define TIMEOUT_S        600L /* a large upload over a slow line */
#define CONNECT_MS       10000L
#define STALL_S          60L

struct http {
    CURL *curl;
    struct curl_slist *headers;
    const char *what;
    char *base;
    char error[CURL_ERROR_SIZE];
    struct buf answer;
    bool is_json;
};

static size_t collect(char *data, size_t size, size_t count, void *arg)
{
    struct http *h = arg;
    buf_put(&h->answer, data, size * count);
    return h->answer.failed ? 0 : size * count;
}

static enum status add_key(struct http *h, const char *path, struct errtext *err)
{
    char *key, line[KEY_BYTES_MAX + 32];
    size_t len;
    enum status st = file_read_secret(path, KEY_BYTES_MAX, &key, &len, err);
    if (st)
        return st;
    snprintf(line, sizeof(line), "Authorization: Bearer %s", key);
    if (len == 0 || strpbrk(key, "\r\n"))
        st = err_set(err, STATUS_INVALID, "%s: expected one API key on one line", path);
    else if (!(h->headers = curl_slist_append(h->headers, line)))
        st = err_set(err, STATUS_NO_MEMORY, "no memory for HTTP headers");
    mem_wipe(line, sizeof(line));
    mem_wipe(key, len);
    mem_free(key);
    return st;
}

static enum status set_options(struct http *h, struct errtext *err)
{
    CURL *c = h->curl;
    CURLcode e = curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    e = e ? e : curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_PROXY, "");
    e = e ? e : curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_TIMEOUT, TIMEOUT_S);
    e = e ? e : curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS);
    e = e ? e : curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, STALL_S);
    e = e ? e : curl_easy_setopt(c, CURLOPT_HTTPHEADER, h->headers);
    e = e ? e : curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, collect);
    e = e ? e : curl_easy_setopt(c, CURLOPT_WRITEDATA, h);
    e = e ? e : curl_easy_setopt(c, CURLOPT_ERRORBUFFER, h->error);
    return e ? err_set(err, STATUS_INVALID, "%s: %s", h->what, curl_easy_strerror(e)) : STATUS_OK;
}

enum status http_open(struct http **out, const char *base_url, const char *api_key_file,
                      const char *what, struct errtext *err)
{
    *out = NULL;
    if (strncmp(base_url, "http://", 7) != 0 && strncmp(base_url, "https://", 8) != 0)
        return err_set(err, STATUS_INVALID, "%s: found '%s', expected http://... or https://...",
                       what, base_url);
    struct http *h = mem_alloc(sizeof(*h));
    buf_init(&h->answer, ANSWER_BYTES_MAX);
    h->what = what;
    h->base = mem_strdup(base_url);
    for (size_t n = strlen(h->base); n > 0 && h->base[n - 1] == '/'; n--)
        h->base[n - 1] = '\0';
    h->curl = curl_easy_init();
    h->headers = curl_slist_append(NULL, "Expect:"); /* no pause for 100-continue */
    enum status st =
        h->curl && h->headers ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "no memory for curl");
    if (!st && !curl_slist_append(h->headers, "Content-Type: application/json"))
        st = err_set(err, STATUS_NO_MEMORY, "no memory for HTTP headers");
    if (!st && api_key_file)
        st = add_key(h, api_key_file, err);
    if (!st)
        st = set_options(h, err);
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
    curl_easy_cleanup(h->curl);
    for (struct curl_slist *s = h->headers; s; s = s->next)
        mem_wipe(s->data, strlen(s->data)); /* one of them may be a key */
    curl_slist_free_all(h->headers);
    buf_fini(&h->answer);
    mem_free(h->base);
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
    return err_set(err, status_of(code), "the %s at %s answered with HTTP status %ld", h->what,
                   h->base, code);
}

static enum status perform(struct http *h, long *code, struct errtext *err)
{
    h->error[0] = '\0';
    buf_clear(&h->answer);
    h->answer.failed = false;
    CURLcode e = curl_easy_perform(h->curl);
    if (e == CURLE_WRITE_ERROR && h->answer.failed)
        return err_set(err, STATUS_TOO_LARGE, "the %s's answer is longer than %u bytes", h->what,
                       ANSWER_BYTES_MAX);
    if (e)
        return err_set(err, e == CURLE_OPERATION_TIMEDOUT ? STATUS_TIMEOUT : STATUS_IO,
                       "the %s at %s was not reached: %s", h->what, h->base,
                       h->error[0] ? h->error : curl_easy_strerror(e));
    curl_easy_getinfo(h->curl, CURLINFO_RESPONSE_CODE, code);
    return STATUS_OK;
}

static enum status set_file(struct http *h, const char *path, FILE **file, struct errtext *err)
{
    struct stat s;
    *file = fopen(path, "rbe");
    if (!*file || fstat(fileno(*file), &s) != 0 || !S_ISREG(s.st_mode))
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO,
                       "%s: not a readable file (%s)", path, strerror(errno));
    CURLcode e = curl_easy_setopt(h->curl, CURLOPT_UPLOAD, 1L);
    e = e ? e : curl_easy_setopt(h->curl, CURLOPT_READDATA, *file);
    e = e ? e : curl_easy_setopt(h->curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)s.st_size);
    return e ? err_set(err, STATUS_IO, "%s: %s", path, curl_easy_strerror(e)) : STATUS_OK;
}

static enum status set_request(struct http *h, const char *method, const char *path,
                               const struct http_body *body, FILE **file, struct errtext *err)
{
    char url[2048];
    CURL *c = h->curl;
    int n = snprintf(url, sizeof(url), "%s%s", h->base, path);
    if (n < 0 || (size_t)n >= sizeof(url))
        return err_set(err, STATUS_INVALID, "the URL is longer than %zu bytes", sizeof(url) - 1);
    CURLcode e = curl_easy_setopt(c, CURLOPT_URL, url);
    e = e ? e : curl_easy_setopt(c, CURLOPT_UPLOAD, 0L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_HTTPGET, 1L);
    if (!e && body && body->file_path)
        return set_file(h, body->file_path, file, err);
    if (body && body->text) {
        e = e ? e : curl_easy_setopt(c, CURLOPT_POST, 1L);
        e = e ? e : curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)body->len);
        e = e ? e : curl_easy_setopt(c, CURLOPT_POSTFIELDS, body->text);
    }
    e = e ? e : curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, method);
    return e ? err_set(err, STATUS_INVALID, "%s: %s", url, curl_easy_strerror(e)) : STATUS_OK;
}

enum status http_call(struct http *h, const char *method, const char *path,
                      const struct http_body *body, json_t **answer, struct errtext *err)
{
    FILE *file = NULL;
    long code = 0;
    *answer = NULL;
    h->is_json = false;
    (void)curl_easy_setopt(h->curl, CURLOPT_CUSTOMREQUEST, NULL);
    enum status st = set_request(h, method, path, body, &file, err);
    if (!st)
        st = perform(h, &code, err);
    if (file)
        fclose(file);
    if (st)
        return st;
    json_t *root = json_loadb(h->answer.data ? h->answer.data : "", h->answer.len,
                              JSON_REJECT_DUPLICATES, NULL);
    h->is_json = json_is_object(root);
    if (code < 200 || code > 299)
        st = refused(h, code, root, err);
    else if (!json_is_object(root))
        st = err_set(err, STATUS_CORRUPT, "the %s at %s did not answer %s with a JSON object",
                     h->what, h->base, path);
    if (st)
        json_decref(root);
    else
        *answer = root;
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
