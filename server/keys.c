/* Keys are stored as digests only, so a config that leaks lets nobody in. Every field is checked
 * and named. */
#include "server/keys.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <string.h>

#define KEYS_FILE_BYTES_MAX (16u << 20)

static enum status bad(struct errtext *err, size_t i, const char *field, const char *expected)
{
    return err_param(err, STATUS_INVALID, "api_keys", "api_keys[%zu].%s: expected %s", i, field,
                     expected);
}

static enum status parse_roles(struct http_key *k, size_t i, json_t *roles, struct errtext *err)
{
    static const struct {
        const char *name;
        unsigned role;
    } known[] = {{"infer", HTTP_ROLE_INFER},
                 {"publish", HTTP_ROLE_PUBLISH},
                 {"admin", HTTP_ROLE_ADMIN},
                 {"worker", HTTP_ROLE_WORKER}};
    size_t at;
    json_t *role;
    json_array_foreach(roles, at, role)
    {
        unsigned bit = 0;
        for (size_t j = 0; j < ARRAY_COUNT(known) && json_is_string(role); j++) {
            if (strcmp(known[j].name, json_string_value(role)) == 0)
                bit = known[j].role;
        }
        if (!bit)
            return bad(err, i, "roles", "infer, publish, admin or worker");
        k->roles |= bit;
    }
    return k->roles ? STATUS_OK
                    : bad(err, i, "roles",
                          "an array with at least one of infer, publish, admin, worker");
}

static enum status parse_adapters(struct http_key *k, size_t i, json_t *list, struct errtext *err)
{
    size_t at;
    json_t *name;
    if (!list)
        return STATUS_OK;
    if (!json_is_array(list) || json_array_size(list) > HTTP_KEY_ADAPTERS_MAX)
        return bad(err, i, "adapters", "an array of at most 64 names");
    json_array_foreach(list, at, name)
    {
        if (!json_is_string(name) || json_string_length(name) == 0 ||
            json_string_length(name) > CATALOG_NAME_MAX)
            return bad(err, i, "adapters", "adapter names (a trailing * is a prefix)");
        snprintf(k->adapter[k->adapter_count++], CATALOG_NAME_MAX + 1, "%s",
                 json_string_value(name));
    }
    return STATUS_OK;
}

static enum status parse_key(struct http_key *k, size_t i, json_t *v, struct errtext *err)
{
    static const char *const fields[] = {"name",     "digest",  "roles",
                                         "adapters", "account", "publish_bytes_max"};
    const char *field;
    json_t *value;
    json_object_foreach(v, field, value)
    {
        bool known = false;
        for (size_t j = 0; j < ARRAY_COUNT(fields); j++)
            known |= strcmp(fields[j], field) == 0;
        if (!known)
            return bad(err, i, field,
                       "name, digest, roles, adapters, account or publish_bytes_max only");
    }
    const char *name = json_string_value(json_object_get(v, "name"));
    const char *digest = json_string_value(json_object_get(v, "digest"));
    json_t *account = json_object_get(v, "account"),
           *quota = json_object_get(v, "publish_bytes_max");
    if (!name || !*name || strlen(name) >= sizeof(k->name))
        return bad(err, i, "name", "1 to 63 characters");
    snprintf(k->name, sizeof(k->name), "%s", name);
    if (!digest || !hex_decode(k->digest, 32, digest))
        return bad(err, i, "digest", "64 hex digits: BLAKE2b-256 of the key (residual key hash)");
    if (account &&
        (!json_is_string(account) || !hex_decode(k->account, 20, json_string_value(account))))
        return bad(err, i, "account", "a chain address, 0x and 40 hex digits");
    if (quota && (!json_is_integer(quota) || json_integer_value(quota) < 0))
        return bad(err, i, "publish_bytes_max", "a whole number of bytes");
    k->publish_bytes_max = quota ? (uint64_t)json_integer_value(quota) : 0;
    enum status st = parse_roles(k, i, json_object_get(v, "roles"), err);
    return st ? st : parse_adapters(k, i, json_object_get(v, "adapters"), err);
}

/* A name stands for quota and ownership, a digest for who asks: neither may mean two keys. */
static enum status check_unique(const struct http_key *all, size_t i, struct errtext *err)
{
    for (size_t k = 0; k < i; k++) {
        if (strcmp(all[k].name, all[i].name) == 0)
            return bad(err, i, "name", "a name that no other key has");
        if (memcmp(all[k].digest, all[i].digest, sizeof(all[i].digest)) == 0)
            return bad(err, i, "digest", "a digest that no other key has");
    }
    return STATUS_OK;
}

static enum status parse_array(struct http_key **keys, uint32_t *count, json_t *array,
                               struct errtext *err)
{
    size_t n = json_array_size(array);
    if (!json_is_array(array) || n > HTTP_KEYS_MAX)
        return err_param(err, STATUS_INVALID, "api_keys",
                         "api_keys: expected a JSON array of at most %d keys", HTTP_KEYS_MAX);
    struct http_key *all = mem_array(n ? n : 1, sizeof(*all));
    for (size_t i = 0; i < n; i++) {
        enum status st = parse_key(&all[i], i, json_array_get(array, i), err);
        if (!st)
            st = check_unique(all, i, err);
        if (st) {
            mem_free(all);
            return st;
        }
    }
    *keys = all;
    *count = (uint32_t)n;
    return STATUS_OK;
}

enum status keys_load(struct http_key **keys, uint32_t *count, const struct config *c,
                      struct errtext *err)
{
    char *text;
    size_t len;
    *keys = NULL;
    *count = 0;
    if (c->api_keys && c->api_keys_file)
        return err_param(err, STATUS_INVALID, "api_keys",
                         "api_keys and api_keys_file: give one of them");
    if (c->api_keys)
        return parse_array(keys, count, c->api_keys, err);
    if (!c->api_keys_file)
        return STATUS_OK;
    enum status st = file_read_secret(c->api_keys_file, KEYS_FILE_BYTES_MAX, &text, &len, err);
    if (st)
        return st;
    json_t *array; /* the parser's text is not shown: it quotes a file in which a key may stand */
    if (json_doc_parse(&array, "api_keys", text, len, JSON_DOC_LIST, NULL))
        array = NULL;
    mem_free(text);
    st = parse_array(keys, count, array, err);
    json_decref(array);
    return st;
}
