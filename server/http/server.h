/* The HTTP server: libmicrohttpd in epoll + suspend/resume mode on a few threads. Parses,
 * authenticates, tokenizes, submits to the engine, streams back. Routes are a table
 * (route.c); what a body may hold is in request_parse.c and params.c, what a connection may do in
 * connections.c. */
#ifndef RS_HTTP_SERVER_H
#define RS_HTTP_SERVER_H

#include "server/adapter/publish.h"
#include "server/base/hostport.h"
#include "server/base/logfile.h"
#include "server/datanet/store.h"
#include "server/engine/engine.h"
#include "server/model/model.h"
#include "server/record/recorder.h"

#define HTTP_KEYS_MAX         1024
#define HTTP_KEY_ADAPTERS_MAX 64

enum http_role {
    HTTP_ROLE_INFER = 1,
    HTTP_ROLE_PUBLISH = 2,
    HTTP_ROLE_ADMIN = 4,
    HTTP_ROLE_WORKER = 8
};

struct http_key {
    char name[64];
    uint8_t digest[32]; /* BLAKE2b-256 of the key's text */
    unsigned roles;
    char adapter[HTTP_KEY_ADAPTERS_MAX][CATALOG_NAME_MAX + 1]; /* allowed names; trailing '*' is a
                                                                  prefix; 0 entries: all */
    uint32_t adapter_count;
    uint8_t account[20];        /* payer */
    uint64_t publish_bytes_max; /* 0: the default quota */
};

/* Defaults and ranges are those of the settings (server/config.c); nothing is filled in here. */
struct http_options {
    struct hostport listen; /* port 0: any free one; http_port tells */
    uint32_t thread_count;
    uint32_t connections_max, connections_per_ip_max;
    uint32_t idle_timeout_s;
    uint32_t stream_rest_ms;   /* most that a token of a stream waits to leave with others */
    uint64_t body_bytes_max;   /* JSON bodies */
    uint64_t bodies_bytes_max; /* memory of all bodies together; at least two of the largest */
    uint32_t header_timeout_s, body_timeout_s; /* for the whole; a body gains time with its bytes */
    uint32_t n_max;                            /* choices per prompt */
    uint32_t drain_s, lame_duck_s;
    const struct http_key
        *key; /* none: anyone on loopback has every role; beyond loopback it refuses to start */
    uint32_t key_count;
    const struct logfile *access_log;      /* NULL: none; it must outlive the server */
    char model_name[CATALOG_NAME_MAX + 1]; /* what clients call the base */
    const char *model_path;
    uint32_t adapters_per_batch_max;
    bool allow_runtime_loading; /* vLLM's load/unload routes (admin role) */
    bool page;                  /* serve the page for people at / */
    uint64_t chain_id;          /* of licences; 0: the lane is bound to no chain */
    uint8_t registry[20];       /* with chain_id */
    const char *settle_url;     /* the worker as browsers reach it, or NULL: see page.h */
    uint32_t context_max;       /* the engine's; 0: the model's pos_max */
    const char *train_dir;      /* what training keeps; NULL without a factory */
    const char *upload_dir; /* where bodies of uploads are staged (unnamed files); NULL: /var/tmp */
    uint64_t upload_bytes_max; /* staged bytes of one API key */
    const char *train_price;   /* of 1000 trained tokens, base units */
    uint64_t (*clock_ns)(void);
};

struct factory;
struct http_deps {
    const struct model *model;
    struct engine *engine;
    struct catalog *catalog;
    struct publisher *publisher;
    struct recorder *recorder;
    struct book *book; /* NULL: a lane without a chain */
    struct datanet_store *datanets;
    struct indexes *indexes; /* NULL: scoring is off */
    struct file_store *files;
    struct factory *factory; /* NULL: nothing is trained here */
};

struct file_store;
struct http_server;
/* The listening socket, bound: worth doing before anything heavy is loaded. Errors: IO with
 * "address already in use: ..." and what to change; DENIED for a public address without keys. */
MUST_CHECK enum status http_bind(int *fd, const struct http_options *opt, struct errtext *err);
/* listen_fd: from http_bind; the server's once it runs. */
MUST_CHECK enum status http_start(struct http_server **out, const struct http_options *opt,
                                  const struct http_deps *deps, int listen_fd, struct errtext *err);
/* New API keys, copied; what runs keeps the key it came with. DENIED: none is left. Thread: any. */
MUST_CHECK enum status http_set_keys(struct http_server *s, const struct http_key *key,
                                     uint32_t count, struct errtext *err);
uint16_t http_port(const struct http_server *s);
/* Readiness fails at once; new requests are refused after lame_duck_s; streams run on to drain_s.
 * Then http_stop. */
void http_begin_drain(struct http_server *s);
void http_stop(struct http_server *s);

#endif
