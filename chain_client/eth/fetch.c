/* One curl handle a client. The body is collected in a buffer with a maximum: past it curl is told
 * to stop, so a hostile peer costs no more memory than configured. */
#include "chain_client/eth/fetch.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define TIMEOUT_MS_STANDARD     10000u
#define ANSWER_BYTES_STANDARD   (16u << 20)
#define AUTHORIZATION_BYTES_MAX 8192

struct fetch {
    CURL *curl;
    struct curl_slist *headers;
    char *what, *base;
    char error[CURL_ERROR_SIZE];
    struct fetch_answer answer;
    const struct fetch_file *into; /* of the request at hand */
    uint64_t into_bytes;
    enum status into_failed;
    struct errtext into_why;
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void curl_start(void)
{
    CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK);
}

static size_t collect_file(struct fetch *f, const char *data, size_t len)
{
    if (len > f->into->bytes_max - f->into_bytes)
        f->into_failed = err_set(&f->into_why, STATUS_TOO_LARGE,
                                 "the %s's answer is longer than %" PRIu64 " bytes", f->what,
                                 f->into->bytes_max);
    else
        f->into_failed = file_write_fd(f->into->fd, f->into->name, data, len, &f->into_why);
    f->into_bytes += len;
    return f->into_failed ? 0 : len;
}

static size_t collect(char *data, size_t size, size_t count, void *arg)
{
    struct fetch *f = arg;
    long code = 0;
    if (f->into && !curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &code) && code >= 200 &&
        code <= 299)
        return collect_file(f, data, size * count);
    buf_put(&f->answer.body, data, size * count);
    return f->answer.body.failed ? 0 : size * count; /* 0 aborts the transfer */
}

static enum status no_memory(struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory for an HTTP client");
}

static enum status add_header(struct fetch *f, const char *line, struct errtext *err)
{
    struct curl_slist *list = curl_slist_append(f->headers, line);
    if (!list)
        return no_memory(err);
    f->headers = list;
    return STATUS_OK;
}

static enum status set_headers(struct fetch *f, const struct fetch_config *config,
                               struct errtext *err)
{
    const char *authorization = config->authorization;
    char line[AUTHORIZATION_BYTES_MAX];
    enum status st = add_header(f, "Content-Type: application/json", err);
    /* No pause for 100-continue; but libcurl signs this line too, and does not send it. */
    if (!st && !config->sigv4)
        st = add_header(f, "Expect:", err);
    if (st || !authorization)
        return st;
    int n = snprintf(line, sizeof(line), "Authorization: %s", authorization);
    if (n < 0 || (size_t)n >= sizeof(line) || strpbrk(line, "\r\n"))
        st = err_param(err, STATUS_INVALID, "authorization",
                       "authorization: longer than %d bytes, or holds a line break",
                       AUTHORIZATION_BYTES_MAX);
    else
        st = add_header(f, line, err);
    mem_wipe(line, sizeof(line));
    return st;
}

static enum status set_signing(struct fetch *f, const struct fetch_config *config,
                               struct errtext *err)
{
    if (!config->sigv4)
        return STATUS_OK;
    CURLcode e = curl_easy_setopt(f->curl, CURLOPT_AWS_SIGV4, config->sigv4);
    e = e ? e : curl_easy_setopt(f->curl, CURLOPT_USERPWD, config->credential);
    return e ? err_set(err, STATUS_INVALID, "%s: this libcurl cannot sign requests (%s)", f->what,
                       curl_easy_strerror(e))
             : STATUS_OK;
}

static enum status set_options(struct fetch *f, const struct fetch_config *config,
                               struct errtext *err)
{
    CURL *c = f->curl;
    uint32_t timeout_ms = config->timeout_ms ? config->timeout_ms : TIMEOUT_MS_STANDARD;
    uint32_t connect_ms = config->connect_ms ? config->connect_ms : timeout_ms;
    CURLcode e = curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    e = e ? e : curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_PROXY, "");
    e = e ? e : curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    e = e ? e : curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)connect_ms);
    e = e ? e : curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, config->stall_s ? 1L : 0L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)config->stall_s);
    e = e ? e : curl_easy_setopt(c, CURLOPT_HTTPHEADER, f->headers);
    e = e ? e : curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, collect);
    e = e ? e : curl_easy_setopt(c, CURLOPT_WRITEDATA, f);
    e = e ? e : curl_easy_setopt(c, CURLOPT_ERRORBUFFER, f->error);
    return e ? err_set(err, STATUS_INVALID, "%s: %s", f->what, curl_easy_strerror(e)) : STATUS_OK;
}

enum status fetch_open(struct fetch **out, const struct fetch_config *config, struct errtext *err)
{
    *out = NULL;
    if (strncmp(config->base, "http://", 7) != 0 && strncmp(config->base, "https://", 8) != 0)
        return err_param(err, STATUS_INVALID, "url", "%s: expected a URL http://... or https://...",
                         config->what);
    pthread_once(&curl_once, curl_start);
    struct fetch *f = mem_alloc(sizeof(*f));
    buf_init(&f->answer.body,
             config->answer_bytes_max ? config->answer_bytes_max : ANSWER_BYTES_STANDARD);
    f->what = mem_strdup(config->what);
    f->base = mem_strdup(config->base);
    for (size_t n = strlen(f->base); n > 0 && f->base[n - 1] == '/'; n--)
        f->base[n - 1] = '\0';
    f->curl = curl_easy_init();
    enum status st = f->curl ? STATUS_OK : no_memory(err);
    if (!st)
        st = set_headers(f, config, err);
    if (!st)
        st = set_options(f, config, err);
    if (!st)
        st = set_signing(f, config, err);
    if (st)
        fetch_close(f);
    else
        *out = f;
    return st;
}

void fetch_close(struct fetch *f)
{
    if (!f)
        return;
    curl_easy_cleanup(f->curl);
    for (struct curl_slist *h = f->headers; h; h = h->next)
        mem_wipe(h->data, strlen(h->data)); /* one of them may be a credential */
    curl_slist_free_all(f->headers);
    buf_fini(&f->answer.body);
    mem_free(f->what);
    mem_free(f->base);
    mem_free(f);
}

enum status fetch_bearer(char out[FETCH_BEARER_BYTES], const char *key_path, size_t key_bytes_max,
                         struct errtext *err)
{
    CHECK(key_bytes_max <= FETCH_KEY_BYTES_MAX);
    char *key;
    size_t len;
    enum status st = file_read_secret(key_path, key_bytes_max, &key, &len, err);
    if (st)
        return st;
    if (len == 0 || strpbrk(key, "\r\n"))
        st = err_set(err, STATUS_INVALID, "%s: expected one API key on one line", key_path);
    else
        snprintf(out, FETCH_BEARER_BYTES, "Bearer %s", key);
    mem_wipe(key, len);
    mem_free(key);
    return st;
}

static enum status set_file(struct fetch *f, const char *path, FILE **file, struct errtext *err)
{
    struct stat s;
    *file = fopen(path, "rbe");
    if (!*file || fstat(fileno(*file), &s) != 0 || !S_ISREG(s.st_mode))
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO,
                       "%s: not a readable file (%s)", path, strerror(errno));
    CURLcode e = curl_easy_setopt(f->curl, CURLOPT_UPLOAD, 1L);
    e = e ? e : curl_easy_setopt(f->curl, CURLOPT_READDATA, *file);
    e = e ? e : curl_easy_setopt(f->curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)s.st_size);
    return e ? err_set(err, STATUS_IO, "%s: %s", path, curl_easy_strerror(e)) : STATUS_OK;
}

static enum status set_request(struct fetch *f, const struct fetch_request *q, FILE **file,
                               struct errtext *err)
{
    char url[FETCH_URL_BYTES_MAX];
    CURL *c = f->curl;
    int n = snprintf(url, sizeof(url), "%s%s", f->base, q->path);
    if (n < 0 || (size_t)n >= sizeof(url))
        return err_set(err, STATUS_INVALID, "%s: the URL is longer than %zu bytes", f->what,
                       sizeof(url) - 1);
    CURLcode e = curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, NULL);
    e = e ? e : curl_easy_setopt(c, CURLOPT_URL, url);
    e = e ? e : curl_easy_setopt(c, CURLOPT_UPLOAD, 0L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_HTTPGET, 1L);
    if (!e && q->file_path) {
        enum status st = set_file(f, q->file_path, file, err);
        if (st)
            return st;
    } else if (!e && q->body) {
        e = curl_easy_setopt(c, CURLOPT_POST, 1L);
        e = e ? e : curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)q->body_bytes);
        e = e ? e : curl_easy_setopt(c, CURLOPT_POSTFIELDS, q->body);
    }
    e = e ? e : curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, q->method);
    return e ? err_set(err, STATUS_INVALID, "%s: %s", url, curl_easy_strerror(e)) : STATUS_OK;
}

static enum status perform(struct fetch *f, struct errtext *err)
{
    curl_off_t wait_s = 0;
    CURLcode e = curl_easy_perform(f->curl);
    curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &f->answer.code);
    if (curl_easy_getinfo(f->curl, CURLINFO_RETRY_AFTER, &wait_s) == CURLE_OK && wait_s > 0)
        f->answer.retry_after_s = (uint32_t)MIN(wait_s, (curl_off_t)UINT32_MAX);
    if (e == CURLE_WRITE_ERROR && f->into_failed)
        return err_set(err, f->into_failed, "%s", f->into_why.text);
    if (e == CURLE_WRITE_ERROR && f->answer.body.failed)
        return err_set(err, STATUS_TOO_LARGE, "the %s's answer is longer than %zu bytes", f->what,
                       f->answer.body.bytes_max);
    if (e)
        return err_set(err, e == CURLE_OPERATION_TIMEDOUT ? STATUS_TIMEOUT : STATUS_IO,
                       "the %s was not reached: %s", f->what,
                       f->error[0] ? f->error : curl_easy_strerror(e));
    return STATUS_OK;
}

/* The request's own header in front of the client's. */
static enum status perform_with(struct fetch *f, const char *header, struct errtext *err)
{
    struct curl_slist own = {.data = (char *)(uintptr_t)header, .next = f->headers};
    if (!header)
        return perform(f, err);
    if (curl_easy_setopt(f->curl, CURLOPT_HTTPHEADER, &own))
        return no_memory(err);
    enum status st = perform(f, err);
    curl_easy_setopt(f->curl, CURLOPT_HTTPHEADER, f->headers);
    return st;
}

enum status fetch_perform(struct fetch *f, const struct fetch_request *request, struct errtext *err)
{
    FILE *file = NULL;
    f->answer.code = 0;
    f->answer.retry_after_s = 0;
    buf_clear(&f->answer.body);
    f->answer.body.failed = false;
    f->error[0] = '\0';
    f->into = request->into;
    f->into_bytes = 0;
    f->into_failed = STATUS_OK;
    enum status st = set_request(f, request, &file, err);
    if (!st)
        st = perform_with(f, request->header, err);
    if (file)
        fclose(file);
    return st;
}

const struct fetch_answer *fetch_answer(const struct fetch *f)
{
    return &f->answer;
}
