/* Three generations of files say which tokens a tokenizer has beside tokenizer.json's own:
 *
 *   added_tokens_decoder      in tokenizer_config.json; where it stands, the other two are not read
 *   special_tokens_map.json   its names replace those of tokenizer_config.json
 *   added_tokens.json         {text: id}; special where a name of the map says so
 *
 * Added in this order: the tokens of the decoder (or of added_tokens.json) by id, the named special
 * tokens (bos_token, ..., any other *_token), the extra ones without a name. An id that a file
 * claims only orders: the tokenizer gives a new token the next free id, as the reference does. */
#include "server/model/token_config.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/model/foreign.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXTRA_TOKENS_MAX  (1u << 18)
#define SPECIAL_NAMES_MAX 256

static const char config_name[] = "tokenizer_config.json";
static const char map_name[] = "special_tokens_map.json";
static const char added_name[] = "added_tokens.json";

static enum status no_memory(struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY, "%s: no memory", config_name);
}

/* NULL where there is no such file. model_max_length is 1e30 in digits wherever a tokenizer has no
 * length; json_doc_parse takes it. */
static enum status read_object(const char *dir, const char *name, json_t **root,
                               struct errtext *err)
{
    char path[PATH_MAX], *data;
    size_t len;
    struct errtext why = ERRTEXT_INIT;
    *root = NULL;
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
        return err_set(err, STATUS_INVALID, "%s/%s: path too long", dir, name);
    enum status st = file_read(path, TEXT_CONFIG_BYTES_MAX, &data, &len, &why);
    if (st == STATUS_NOT_FOUND)
        return STATUS_OK;
    if (st)
        return err_set(err, st, "%s", why.text);
    st = json_doc_parse(root, name, data, len, JSON_DOC_NUL | JSON_DOC_REPEATS, &why);
    const char *foreign = st ? foreign_bytes(data, len) : NULL;
    mem_free(data);
    if (foreign)
        return err_set(err, st, "%s: %s", name, foreign);
    return st ? err_set(err, st, "%s", why.text) : STATUS_OK;
}

/* A token is a string, or an object with its content; NULL: neither. */
static const json_t *token_text(const json_t *v)
{
    const json_t *text = json_is_object(v) ? json_object_get(v, "content") : v;
    return json_is_string(text) && json_string_length(text) > 0 ? text : NULL;
}

static enum status extra_add(struct token_config *c, const json_t *token, enum tokenizer_add how,
                             struct errtext *err)
{
    struct tokenizer_extra *e = &c->extra;
    if (e->count == EXTRA_TOKENS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%s: more than %u tokens", config_name,
                       EXTRA_TOKENS_MAX);
    if ((e->count & (e->count - 1)) == 0) {
        size_t cap = e->count ? 2 * e->count : 1;
        struct tokenizer_extra_token *grown = mem_try_realloc(e->token, cap * sizeof(*grown));
        if (!grown)
            return no_memory(err);
        e->token = grown;
    }
    e->token[e->count++] = (struct tokenizer_extra_token){token, how};
    return STATUS_OK;
}

/* {"content": text, "special": special} of c->made, or NULL without memory. */
static const json_t *made_token(struct token_config *c, const json_t *text, bool special)
{
    json_t *token = json_object();
    if (json_object_set(token, "content", (json_t *)(uintptr_t)text) ||
        json_object_set_new(token, "special", json_boolean(special)) ||
        json_array_append_new(c->made, token))
        return NULL;
    return token;
}

/* ---- names ---- */

/* Any "*_token" is a name in the reference; add_bos_token and its kind are no tokens, by type. */
static bool is_token_name(const char *key)
{
    static const char tail[] = "_token";
    size_t n = strlen(key);
    return n >= sizeof(tail) && strcmp(key + n - (sizeof(tail) - 1), tail) == 0;
}

static enum status name_special(struct token_config *c, const char *name, const json_t *v,
                                enum tokenizer_add how, struct errtext *err)
{
    (void)how;
    const json_t *text = token_text(v);
    if (!text || memchr(json_string_value(text), '\0', json_string_length(text)))
        return STATUS_OK;
    if (c->special_count == SPECIAL_NAMES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%s: more than %d special tokens", config_name,
                       SPECIAL_NAMES_MAX);
    struct model_special *s = &c->special[c->special_count++];
    s->name = mem_try_strndup(name, strlen(name));
    s->text = mem_try_strndup(json_string_value(text), json_string_length(text));
    return s->name && s->text ? STATUS_OK : no_memory(err);
}

/* The names every tokenizer has, in the reference's order; those of a model follow. */
static const char *const common_names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                           "pad_token", "cls_token", "mask_token"};

static bool is_common(const char *key)
{
    for (size_t i = 0; i < ARRAY_COUNT(common_names); i++) {
        if (strcmp(key, common_names[i]) == 0)
            return true;
    }
    return false;
}

/* Calls visit(c, name, value, how, err) for every named special token in order. */
typedef enum status special_visit(struct token_config *c, const char *name, const json_t *v,
                                  enum tokenizer_add how, struct errtext *err);

static enum status for_each_special(struct token_config *c, special_visit *visit,
                                    enum tokenizer_add how, struct errtext *err)
{
    const char *key;
    json_t *value;
    enum status st = STATUS_OK;
    for (size_t i = 0; !st && i < ARRAY_COUNT(common_names); i++)
        st = visit(c, common_names[i], json_object_get(c->root, common_names[i]), how, err);
    json_object_foreach(c->root, key, value)
    {
        if (!st && is_token_name(key) && !is_common(key))
            st = visit(c, key, value, how, err);
    }
    json_object_foreach(json_object_get(c->root, "extra_special_tokens"), key, value)
    {
        if (!st)
            st = visit(c, key, value, how, err);
    }
    return st;
}

static bool is_named(const struct token_config *c, const json_t *text)
{
    for (size_t i = 0; i < c->special_count; i++) {
        if (strcmp(c->special[i].text, json_string_value(text)) == 0)
            return true;
    }
    return false;
}

/* ---- tokens ---- */

struct numbered {
    long long id;
    const json_t *token;
};

static int by_id(const void *a, const void *b)
{
    long long x = ((const struct numbered *)a)->id, y = ((const struct numbered *)b)->id;
    return (x > y) - (x < y);
}

static enum status add_numbered(struct token_config *c, struct numbered *list, size_t n,
                                enum tokenizer_add how, struct errtext *err)
{
    enum status st = STATUS_OK;
    qsort(list, n, sizeof(*list), by_id);
    for (size_t i = 0; !st && i < n; i++)
        st = extra_add(c, list[i].token, how, err);
    return st;
}

/* {"id": {"content", flags}}; a named one is special whatever its flag says. */
static enum status add_decoder(struct token_config *c, json_t *decoder, struct errtext *err)
{
    const char *key;
    json_t *value;
    size_t n = 0;
    struct numbered *list = mem_try_array(json_object_size(decoder) + 1, sizeof(*list));
    enum status st = list ? STATUS_OK : no_memory(err);
    json_object_foreach(decoder, key, value)
    {
        char *end;
        long long id = strtoll(key, &end, 10);
        const json_t *text = token_text(value);
        if (!st && (end == key || *end || !json_is_object(value) || !text))
            st = err_set(err, STATUS_INVALID,
                         "%s: added_tokens_decoder.%.40s: expected an id and {\"content\": ...}",
                         config_name, key);
        if (!st && is_named(c, text) && json_object_set_new(value, "special", json_true()))
            st = no_memory(err);
        if (!st)
            list[n++] = (struct numbered){id, value};
    }
    if (!st)
        st = add_numbered(c, list, n, TOKENIZER_ADD_SET, err);
    mem_free(list);
    return st;
}

/* {text: id}. */
static enum status add_file(struct token_config *c, const json_t *file, struct errtext *err)
{
    const char *key;
    json_t *value;
    size_t n = 0;
    struct numbered *list = mem_try_array(json_object_size(file) + 1, sizeof(*list));
    enum status st = list ? STATUS_OK : no_memory(err);
    json_object_foreach((json_t *)(uintptr_t)file, key, value)
    {
        json_t *text = json_string(key);
        const json_t *token = st ? NULL : made_token(c, text, text && is_named(c, text));
        if (!st && !json_is_number(value))
            st = err_set(err, STATUS_INVALID, "%s: \"%.40s\": expected an id", added_name, key);
        else if (!st && !token)
            st = no_memory(err);
        if (!st)
            list[n++] = (struct numbered){(long long)json_number_value(value), token};
        json_decref(text);
    }
    if (!st)
        st = add_numbered(c, list, n, TOKENIZER_ADD_MISSING, err);
    mem_free(list);
    return st;
}

static enum status add_special(struct token_config *c, const char *name, const json_t *v,
                               enum tokenizer_add how, struct errtext *err)
{
    const json_t *text = token_text(v), *token = v;
    (void)name;
    if (!text)
        return STATUS_OK;
    if (json_is_string(v))
        token = made_token(c, text, true);
    else if (json_object_set_new((json_t *)(uintptr_t)v, "special", json_true()))
        token = NULL;
    return token ? extra_add(c, token, how, err) : no_memory(err);
}

/* Named special tokens, then those without a name. Where the older files count, every token of
 * tokenizer.json that has a name is special too. */
static enum status add_specials(struct token_config *c, bool old, struct errtext *err)
{
    size_t i;
    json_t *value, *extra = json_object_get(c->root, "extra_special_tokens");
    enum status st =
        for_each_special(c, add_special, old ? TOKENIZER_ADD_SPECIAL : TOKENIZER_ADD_MISSING, err);
    if (!json_is_object(extra) && json_array_size(extra) == 0)
        extra = json_object_get(c->root, "additional_special_tokens");
    json_array_foreach(extra, i, value)
    {
        if (!st)
            st = add_special(c, "", value, TOKENIZER_ADD_MISSING, err);
    }
    return st;
}

static enum status merge_map(struct token_config *c, const char *dir, struct errtext *err)
{
    json_t *map;
    enum status st = read_object(dir, map_name, &map, err);
    if (!st && map && json_object_update(c->root, map))
        st = no_memory(err);
    json_decref(map);
    return st;
}

enum status token_config_load(struct token_config *c, const char *dir, struct errtext *err)
{
    json_t *file = NULL;
    *c = (struct token_config){.made = json_array()};
    enum status st = read_object(dir, config_name, &c->root, err);
    if (!st && !c->root)
        c->root = json_object();
    if (!st && (!c->root || !c->made))
        st = no_memory(err);
    json_t *decoder = json_object_get(c->root, "added_tokens_decoder");
    bool old = !json_is_object(decoder);
    if (!st && decoder && old && !json_is_null(decoder))
        st = err_set(err, STATUS_INVALID, "%s: added_tokens_decoder: expected an object",
                     config_name);
    if (!st && old)
        st = merge_map(c, dir, err);
    if (!st && old)
        st = read_object(dir, added_name, &file, err);
    if (!st)
        c->special = mem_try_array(SPECIAL_NAMES_MAX, sizeof(*c->special));
    if (!st && !c->special)
        st = no_memory(err);
    if (!st)
        st = for_each_special(c, name_special, TOKENIZER_ADD_MISSING, err);
    if (!st)
        st = old ? add_file(c, file, err) : add_decoder(c, decoder, err);
    if (!st)
        st = add_specials(c, old, err);
    c->extra.split_special = json_is_true(json_object_get(c->root, "split_special_tokens"));
    json_decref(file);
    return st;
}

void model_special_free(struct model_special *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        mem_free(list[i].name);
        mem_free(list[i].text);
    }
    mem_free(list);
}

void token_config_fini(struct token_config *c)
{
    json_decref(c->root);
    json_decref(c->made);
    mem_free(c->extra.token);
    model_special_free(c->special, c->special_count);
    *c = (struct token_config){0};
}
