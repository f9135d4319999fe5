/* The table, and a linear search: forty string compares are less than one system call. Exact paths
 * come before the prefixes that would swallow them. */
#include "server/http/route.h"
#include "server/base/check.h"
#include "server/http/handlers.h"
#include "server/http/metrics.h"

#include <string.h>

#define INFER   HTTP_ROLE_INFER
#define PUBLISH (HTTP_ROLE_PUBLISH | HTTP_ROLE_ADMIN)
#define ADMIN   HTTP_ROLE_ADMIN
#define WORKER  HTTP_ROLE_WORKER
#define LIST    (HTTP_ROLE_INFER | HTTP_ROLE_PUBLISH | HTTP_ROLE_ADMIN)
#define NOBODY  ROUTE_ROLE_NONE
#define NONE    ROUTE_BODY_NONE
#define JSON    ROUTE_BODY_JSON
#define UPLOAD  ROUTE_BODY_UPLOAD
#define TEXT    ROUTE_BODY_TEXT
#define FORM    ROUTE_BODY_FORM

static const struct route table[] = {
    {HTTP_POST, "/v1/chat/completions", handle_chat, INFER, JSON, false},
    {HTTP_POST, "/v1/completions", handle_completions, INFER, JSON, false},
    {HTTP_GET, "/v1/models", handle_models, LIST, NONE, false},
    {HTTP_GET, "/v1/models/", handle_model, LIST, NONE, false},
    {HTTP_POST, "/v1/load_lora_adapter", handle_lora_load, ADMIN, JSON, true},
    {HTTP_POST, "/v1/unload_lora_adapter", handle_lora_unload, ADMIN, JSON, true},
    {HTTP_POST, "/load_lora_adapter", handle_lora_load, ADMIN, JSON, true},
    {HTTP_POST, "/unload_lora_adapter", handle_lora_unload, ADMIN, JSON, true},
    {HTTP_GET, "/v1/adapters", handle_adapters_list, LIST, NONE, false},
    {HTTP_POST, "/v1/adapters", handle_publish, PUBLISH, JSON, true},
    {HTTP_GET, "/v1/adapters/", handle_adapter_get, LIST, NONE, true},
    {HTTP_DELETE, "/v1/adapters/", handle_adapter_delete, PUBLISH, NONE, true},
    {HTTP_PUT, "/v1/uploads/", handle_upload, PUBLISH, UPLOAD, true},
    {HTTP_GET, "/v1/attribution/", handle_attribution, INFER | ADMIN, NONE, true},
    {HTTP_GET, "/v1/indexes/", handle_index, ADMIN | WORKER, NONE, true},
    {HTTP_GET, "/v1/receipts/", handle_receipt, INFER | ADMIN, NONE, true},
    {HTTP_GET, "/v1/lane/range", handle_lane_range, WORKER, NONE, true},
    {HTTP_GET, "/v1/datanets", handle_datanets_list, NOBODY, NONE, true},
    {HTTP_POST, "/v1/datanets", handle_datanet_publish, PUBLISH, JSON, true},
    {HTTP_GET, "/v1/datanets/", handle_datanet_get, NOBODY, NONE, true},
    {HTTP_PUT, "/v1/datanets/", handle_datanet_put, PUBLISH, TEXT, true},
    {HTTP_DELETE, "/v1/datanets/", handle_datanet_delete, PUBLISH, NONE, true},
    {HTTP_GET, "/v1/files", handle_files_list, PUBLISH, NONE, true},
    {HTTP_POST, "/v1/files", handle_file_upload, PUBLISH, FORM, true},
    {HTTP_GET, "/v1/files/", handle_file_get, PUBLISH, NONE, true},
    {HTTP_DELETE, "/v1/files/", handle_file_delete, PUBLISH, NONE, true},
    {HTTP_GET, "/api/v1/healthz", handle_tinker_health, NOBODY, NONE, false},
    {HTTP_GET, "/api/v1/get_server_capabilities", handle_tinker_capabilities, LIST, NONE, false},
    {HTTP_POST, "/api/v1/client/config", handle_tinker_config, LIST, JSON, false},
    {HTTP_POST, "/api/v1/client/dynamic_config", handle_tinker_dynamic_config, LIST, JSON, false},
    {HTTP_POST, "/api/v1/telemetry", handle_tinker_telemetry, LIST, JSON, false},
    {HTTP_POST, "/api/v1/create_session", handle_tinker_create_session, LIST, JSON, false},
    {HTTP_POST, "/api/v1/session_heartbeat", handle_tinker_heartbeat, LIST, JSON, false},
    {HTTP_POST, "/api/v1/sessions/", handle_tinker_finish, LIST, JSON, false},
    {HTTP_POST, "/api/v1/create_sampling_session", handle_tinker_create_sampler, INFER, JSON,
     false},
    {HTTP_GET, "/api/v1/samplers/", handle_tinker_sampler, INFER, NONE, false},
    {HTTP_POST, "/api/v1/asample", handle_tinker_sample, INFER, JSON, false},
    {HTTP_POST, "/api/v1/retrieve_future", handle_tinker_retrieve, LIST, JSON, false},
    {HTTP_POST, "/api/v1/create_model", handle_tinker_create_model, PUBLISH, JSON, true},
    {HTTP_POST, "/api/v1/get_info", handle_tinker_get_info, PUBLISH, JSON, false},
    {HTTP_POST, "/api/v1/forward_backward", handle_tinker_forward_backward, PUBLISH, JSON, true},
    {HTTP_POST, "/api/v1/optim_step", handle_tinker_optim_step, PUBLISH, JSON, false},
    {HTTP_POST, "/api/v1/save_weights", handle_tinker_save, PUBLISH, JSON, true},
    {HTTP_POST, "/api/v1/load_weights", handle_tinker_load, PUBLISH, JSON, true},
    {HTTP_POST, "/api/v1/weights_info", handle_tinker_weights_info, PUBLISH, JSON, true},
    {HTTP_POST, "/api/v1/save_weights_for_sampler", handle_tinker_save_sampler, PUBLISH, JSON,
     true},
    {HTTP_GET, "/v1/fine_tuning/jobs", handle_tune_list, PUBLISH, NONE, true},
    {HTTP_POST, "/v1/fine_tuning/jobs", handle_tune_create, PUBLISH, JSON, true},
    {HTTP_GET, "/v1/fine_tuning/jobs/", handle_tune_get, PUBLISH, NONE, true},
    {HTTP_POST, "/v1/fine_tuning/jobs/", handle_tune_act, PUBLISH, NONE, true},
    {HTTP_POST, "/tokenize", handle_tokenize, INFER, JSON, false},
    {HTTP_POST, "/detokenize", handle_detokenize, INFER, JSON, false},
    {HTTP_GET, "/tokenizer_info", handle_tokenizer_info, INFER, NONE, false},
    {HTTP_GET, "/health", handle_health, NOBODY, NONE, false},
    {HTTP_GET, "/livez", handle_livez, NOBODY, NONE, false},
    {HTTP_GET, "/readyz", handle_readyz, NOBODY, NONE, false},
    {HTTP_GET, "/ping", handle_health, NOBODY, NONE, false},
    {HTTP_POST, "/ping", handle_health, NOBODY, NONE, false},
    {HTTP_GET, "/version", handle_version, NOBODY, NONE, false},
    {HTTP_GET, "/metrics", handle_metrics, NOBODY, NONE, false},
    {HTTP_GET, "/openapi.json", handle_openapi, NOBODY, NONE, false},
    {HTTP_GET, "/", handle_page, NOBODY, NONE, false},
    {HTTP_GET, "/page/", handle_page, NOBODY, NONE, false},
};
_Static_assert(ARRAY_COUNT(table) <= METRICS_ROUTES_MAX, "metrics has fewer routes than there are");

static const char *const method_names[HTTP_METHOD_COUNT] = {"GET", "POST", "PUT", "DELETE",
                                                            "OPTIONS"};

enum http_method route_method(const char *text)
{
    if (strcmp(text, "HEAD") == 0) /* the transport sends no body */
        return HTTP_GET;
    for (int m = 0; m < HTTP_METHOD_COUNT; m++) {
        if (strcmp(text, method_names[m]) == 0)
            return (enum http_method)m;
    }
    return HTTP_METHOD_OTHER;
}

const char *route_method_name(enum http_method m)
{
    return m < HTTP_METHOD_COUNT ? method_names[m] : "?";
}

bool route_is_prefix(const struct route *r)
{
    size_t len = strlen(r->path);
    return len > 1 && r->path[len - 1] == '/';
}

static bool matches(const struct route *r, const char *path, const char **tail)
{
    size_t len = strlen(r->path);
    *tail = "";
    if (!route_is_prefix(r))
        return strcmp(r->path, path) == 0;
    *tail = path + len;
    return strncmp(r->path, path, len) == 0 && path[len] != '\0';
}

/* "GET, POST": which methods a path has, as a constant text. */
static const char *allow_text(unsigned methods)
{
    static const struct {
        unsigned methods;
        const char *text;
    } known[] = {
        {1u << HTTP_GET, "GET, HEAD, OPTIONS"},
        {1u << HTTP_POST, "POST, OPTIONS"},
        {1u << HTTP_PUT, "PUT, OPTIONS"},
        {1u << HTTP_GET | 1u << HTTP_POST, "GET, HEAD, POST, OPTIONS"},
        {1u << HTTP_GET | 1u << HTTP_DELETE, "GET, HEAD, DELETE, OPTIONS"},
        {1u << HTTP_GET | 1u << HTTP_PUT | 1u << HTTP_DELETE, "GET, HEAD, PUT, DELETE, OPTIONS"}};
    for (size_t i = 0; i < ARRAY_COUNT(known); i++) {
        if (known[i].methods == methods)
            return known[i].text;
    }
    return methods ? "OPTIONS" : NULL;
}

const struct route *route_find(enum http_method m, const char *path, const char **tail,
                               const char **allow)
{
    unsigned methods = 0;
    const char *rest;
    *allow = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(table); i++) {
        if (!matches(&table[i], path, &rest))
            continue;
        if (table[i].method == m) {
            *tail = rest;
            *allow = NULL;
            return &table[i];
        }
        methods |= 1u << table[i].method;
    }
    *tail = "";
    *allow = allow_text(methods);
    return NULL;
}

uint32_t route_count(void)
{
    return ARRAY_COUNT(table);
}

const struct route *route_at(uint32_t idx)
{
    CHECK(idx < ARRAY_COUNT(table));
    return &table[idx];
}

uint32_t route_index(const struct route *r)
{
    return (uint32_t)(r - table);
}
