/* HTTP for the JSON-RPC client. The body is collected in a buffer with a maximum: past it curl is
 * told to stop, so a hostile node costs no more memory than configured. Nothing is taken from the
 * environment, and only the scheme of the configured URL is ever used. */
#include "chain_client/eth/rpc_transport.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define TIMEOUT_MS_DEFAULT     10000
#define RESPONSE_BYTES_DEFAULT (16u << 20)
#define REQUEST_BYTES_MAX      (1u << 20)

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void curl_start(void)
{
    CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK);
}

static size_t collect(char *data, size_t size, size_t count, void *arg)
{
    struct rpc *r = arg;
    buf_put(&r->response, data, size * count);
    return r->response.failed ? 0 : size * count; /* 0 aborts the transfer */
}

static enum status set_headers(struct rpc *r, const struct rpc_config *config, struct errtext *err)
{
    char line[1024];
    struct curl_slist *list = curl_slist_append(NULL, "Content-Type: application/json");
    r->headers = list;
    if (list && config->authorization) {
        int n = snprintf(line, sizeof(line), "Authorization: %s", config->authorization);
        if (n < 0 || (size_t)n >= sizeof(line) || strpbrk(line, "\r\n"))
            return err_param(err, STATUS_INVALID, "authorization",
                             "authorization: too long, or holds a line break");
        list = curl_slist_append(r->headers, line);
        mem_wipe(line, sizeof(line));
    }
    if (!list)
        return err_set(err, STATUS_NO_MEMORY, "no memory for HTTP headers");
    return STATUS_OK;
}

static enum status set_options(struct rpc *r, uint32_t timeout_ms, struct errtext *err)
{
    CURL *c = r->curl;
    CURLcode e = curl_easy_setopt(c, CURLOPT_URL, r->url);
    e = e ? e : curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    e = e ? e : curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_PROXY, "");
    e = e ? e : curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    e = e ? e : curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    e = e ? e : curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)timeout_ms);
    e = e ? e : curl_easy_setopt(c, CURLOPT_HTTPHEADER, r->headers);
    e = e ? e : curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, collect);
    e = e ? e : curl_easy_setopt(c, CURLOPT_WRITEDATA, r);
    e = e ? e : curl_easy_setopt(c, CURLOPT_ERRORBUFFER, r->curl_error);
    e = e ? e : curl_easy_setopt(c, CURLOPT_POST, 1L);
    if (e)
        return err_set(err, STATUS_INVALID, "chain URL: %s", curl_easy_strerror(e));
    return STATUS_OK;
}

enum status rpc_open(struct rpc **out, const struct rpc_config *config, struct errtext *err)
{
    *out = NULL;
    if (strncmp(config->url, "http://", 7) != 0 && strncmp(config->url, "https://", 8) != 0)
        return err_param(err, STATUS_INVALID, "url",
                         "chain URL: expected http://... or https://...");
    pthread_once(&curl_once, curl_start);
    struct rpc *r = mem_alloc(sizeof(*r));
    buf_init(&r->request, REQUEST_BYTES_MAX);
    buf_init(&r->params, REQUEST_BYTES_MAX);
    buf_init(&r->response,
             config->response_bytes_max ? config->response_bytes_max : RESPONSE_BYTES_DEFAULT);
    r->url = mem_strdup(config->url);
    r->curl = curl_easy_init();
    enum status st = r->curl ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "no memory for curl");
    if (!st)
        st = set_headers(r, config, err);
    if (!st)
        st = set_options(r, config->timeout_ms ? config->timeout_ms : TIMEOUT_MS_DEFAULT, err);
    if (st)
        rpc_close(r);
    else
        *out = r;
    return st;
}

void rpc_close(struct rpc *r)
{
    if (!r)
        return;
    curl_easy_cleanup(r->curl);
    for (struct curl_slist *h = r->headers; h; h = h->next)
        mem_wipe(h->data, strlen(h->data)); /* one of them may be a credential */
    curl_slist_free_all(r->headers);
    buf_fini(&r->request);
    buf_fini(&r->params);
    buf_fini(&r->response);
    mem_free(r->url);
    mem_free(r);
}

enum status rpc_transport_post(struct rpc *r, long *http_code, struct errtext *err)
{
    buf_clear(&r->response);
    r->response.failed = false;
    r->curl_error[0] = '\0';
    CURLcode e = curl_easy_setopt(r->curl, CURLOPT_POSTFIELDS, r->request.data);
    if (!e)
        e = curl_easy_setopt(r->curl, CURLOPT_POSTFIELDSIZE, (long)r->request.len);
    if (!e)
        e = curl_easy_perform(r->curl);
    if (e == CURLE_WRITE_ERROR && r->response.failed)
        return err_set(err, STATUS_TOO_LARGE, "the chain node's answer is longer than %zu bytes",
                       r->response.bytes_max);
    if (e)
        return err_set(err, e == CURLE_OPERATION_TIMEDOUT ? STATUS_TIMEOUT : STATUS_IO,
                       "chain node: %s", r->curl_error[0] ? r->curl_error : curl_easy_strerror(e));
    curl_easy_getinfo(r->curl, CURLINFO_RESPONSE_CODE, http_code);
    return STATUS_OK;
}
