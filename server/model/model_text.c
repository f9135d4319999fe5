/* Chat template precedence, as transformers: chat_template of tokenizer_config.json (a string, or a
 * list of {name, template}) < chat_template.jinja, which becomes the default <
 * additional_chat_templates/<name>.jinja. Where any .jinja file exists those of
 * tokenizer_config.json are not used. Two names matter to us: default and tool_use. */
#include "server/model/model_text.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/model/foreign.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define TEXT_CONFIG_BYTES_MAX (32u << 20)
#define TEMPLATE_BYTES_MAX    (1u << 20)

void model_text_fini(struct model_text *text)
{
    mem_free(text->tokenizer_json);
    memset(text, 0, sizeof(*text));
}

/* A file of the directory; NOT_FOUND leaves *data NULL and is no error when optional. */
static enum status read_member(const char *dir, const char *name, size_t bytes_max, char **data,
                               size_t *len, struct errtext *err)
{
    char path[PATH_MAX];
    *data = NULL;
    *len = 0;
    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
        return err_set(err, STATUS_INVALID, "%s/%s: path too long", dir, name);
    return file_read(path, bytes_max, data, len, err);
}

static enum status read_optional(const char *dir, const char *name, size_t bytes_max, char **data,
                                 size_t *len, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = read_member(dir, name, bytes_max, data, len, &why);
    if (st == STATUS_NOT_FOUND)
        return STATUS_OK;
    return st ? err_set(err, st, "%s", why.text) : STATUS_OK;
}

static enum status read_json_optional(const char *dir, const char *name, json_t **root,
                                      struct errtext *err)
{
    char *data;
    size_t len;
    json_error_t je;
    *root = NULL;
    enum status st = read_optional(dir, name, TEXT_CONFIG_BYTES_MAX, &data, &len, err);
    if (st || !data)
        return st;
    *root = json_loadb(data, len, 0, &je);
    mem_free(data);
    if (json_is_object(*root))
        return STATUS_OK;
    st = *root ? err_set(err, STATUS_INVALID, "%s: expected a JSON object", name)
               : err_set(err, STATUS_INVALID, "%s: not valid JSON at line %d: %s", name, je.line,
                         je.text);
    json_decref(*root);
    *root = NULL;
    return st;
}

/* A special token is a string, or an added-token object with its content. */
static void copy_token(char *out, size_t out_bytes, const json_t *root, const char *key)
{
    const json_t *v = json_object_get(root, key);
    const char *text =
        json_is_object(v) ? json_string_value(json_object_get(v, "content")) : json_string_value(v);
    if (text && strlen(text) < out_bytes)
        snprintf(out, out_bytes, "%s", text);
}

static enum status parse_template(struct chat_template **out, const char *text, const char *where,
                                  struct errtext *err)
{
    if (strlen(text) > TEMPLATE_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "%s: %zu bytes, at most %u are read", where,
                       strlen(text), TEMPLATE_BYTES_MAX);
    enum status st = chat_template_parse(out, text, strlen(text), err);
    if (st)
        err_prefix(err, "%s", where);
    return st;
}

static enum status set_default(struct model *m, const char *text, const char *where,
                               struct errtext *err)
{
    m->chat_text = mem_try_strndup(text, strlen(text));
    if (!m->chat_text)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory", where);
    return parse_template(&m->chat, text, where, err);
}

static enum status templates_from_config(struct model *m, const json_t *v, struct errtext *err)
{
    const char *where = "tokenizer_config.json: chat_template";
    if (!v || json_is_null(v))
        return STATUS_OK;
    if (json_is_string(v))
        return set_default(m, json_string_value(v), where, err);
    if (!json_is_array(v))
        return err_set(err, STATUS_INVALID, "%s: expected a string or a list", where);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *item = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        const char *text = json_string_value(json_object_get(item, "template"));
        enum status st = STATUS_OK;
        if (!name || !text)
            return err_set(err, STATUS_INVALID, "%s[%zu]: expected {name, template}", where, i);
        if (!strcmp(name, "default") && !m->chat)
            st = set_default(m, text, where, err);
        else if (!strcmp(name, "tool_use") && !m->chat_tools)
            st = parse_template(&m->chat_tools, text, where, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status check_text(const char *text, size_t len, const char *name, struct errtext *err)
{
    if (memchr(text, '\0', len))
        return err_set(err, STATUS_INVALID, "%s: holds a zero byte", name);
    return STATUS_OK;
}

static enum status load_templates(struct model *m, const char *dir, const json_t *config,
                                  struct errtext *err)
{
    static const char main_name[] = "chat_template.jinja";
    static const char tools_name[] = "additional_chat_templates/tool_use.jinja";
    char *main_text, *tools_text = NULL;
    size_t main_len, tools_len = 0;
    enum status st = read_optional(dir, main_name, TEMPLATE_BYTES_MAX, &main_text, &main_len, err);
    if (!st)
        st = read_optional(dir, tools_name, TEMPLATE_BYTES_MAX, &tools_text, &tools_len, err);
    if (!st && main_text)
        st = check_text(main_text, main_len, main_name, err);
    if (!st && main_text)
        st = set_default(m, main_text, main_name, err);
    if (!st && tools_text)
        st = check_text(tools_text, tools_len, tools_name, err);
    if (!st && tools_text)
        st = parse_template(&m->chat_tools, tools_text, tools_name, err);
    if (!st && !main_text && !tools_text)
        st = templates_from_config(m, json_object_get(config, "chat_template"), err);
    mem_free(main_text);
    mem_free(tools_text);
    return st;
}

static enum status load_special_tokens(struct model *m, const char *dir, const json_t *config,
                                       struct errtext *err)
{
    json_t *map = NULL;
    enum status st = STATUS_OK;
    if (!json_object_get(config, "bos_token") && !json_object_get(config, "eos_token"))
        st = read_json_optional(dir, "special_tokens_map.json", &map, err);
    const json_t *from = map ? map : config;
    copy_token(m->bos_token, sizeof(m->bos_token), from, "bos_token");
    copy_token(m->eos_token, sizeof(m->eos_token), from, "eos_token");
    json_decref(map);
    return st;
}

/* Whether the post-processor puts the BOS token in front. */
static enum status probe_bos(struct model *m, struct errtext *err)
{
    struct token_list ids = {.n_max = 64};
    enum status st = tokenizer_encode(m->tokenizer, "a", 1, TOKENIZE_ADD_SPECIAL, &ids, err);
    int32_t bos =
        m->bos_token[0] ? tokenizer_token_to_id(m->tokenizer, m->bos_token) : m->config.bos_id;
    if (!st)
        m->add_bos = ids.n > 0 && bos >= 0 && ids.ids[0] == bos;
    mem_free(ids.ids);
    return st;
}

static enum status load_tokenizer(struct model *m, struct model_text *text, const char *dir,
                                  struct errtext *err)
{
    enum status st = read_member(dir, "tokenizer.json", TOKENIZER_JSON_BYTES_MAX,
                                 &text->tokenizer_json, &text->tokenizer_bytes, err);
    if (st)
        return st == STATUS_NOT_FOUND ? foreign_tokenizer(dir, st, err) : st;
    const char *foreign = foreign_bytes(text->tokenizer_json, text->tokenizer_bytes);
    if (foreign)
        return err_set(err, STATUS_INVALID, "tokenizer.json: %s", foreign);
    st = tokenizer_load(&m->tokenizer, text->tokenizer_json, text->tokenizer_bytes, err);
    if (st) {
        err_prefix(err, "tokenizer.json");
        return st;
    }
    if (tokenizer_vocab_size(m->tokenizer) > m->config.n_vocab)
        return err_set(err, STATUS_INVALID,
                       "tokenizer.json: ids reach %u, but config.json: vocab_size is %u",
                       tokenizer_vocab_size(m->tokenizer) - 1, m->config.n_vocab);
    return STATUS_OK;
}

static int put_json(const char *data, size_t len, void *arg)
{
    buf_put(arg, data, len);
    return ((struct buf *)arg)->failed ? -1 : 0;
}

/* tokenizer_config.json with the template that is served and without file names, as vLLM shows it.
 */
static enum status keep_info(struct model *m, const json_t *config, struct errtext *err)
{
    static const char class_key[] = "tokenizer_class";
    struct buf text;
    size_t len;
    json_t *info = config ? json_copy((json_t *)(uintptr_t)config) : json_object();
    int failed = info ? 0 : 1;
    (void)json_object_del(info, "vocab_file");
    (void)json_object_del(info, "merges_file");
    if (!json_is_string(json_object_get(info, class_key)))
        failed |= json_object_set_new(info, class_key, json_string("PreTrainedTokenizerFast"));
    if (m->chat_text)
        failed |= json_object_set_new(info, "chat_template", json_string(m->chat_text));
    buf_init(&text, 2 * TEXT_CONFIG_BYTES_MAX);
    failed |= failed ? 0 : json_dump_callback(info, put_json, &text, JSON_COMPACT);
    m->tokenizer_info = failed ? NULL : buf_steal(&text, &len);
    buf_fini(&text);
    json_decref(info);
    return m->tokenizer_info ? STATUS_OK
                             : err_set(err, STATUS_NO_MEMORY, "tokenizer_config.json: no memory");
}

enum status model_text_load(struct model *m, struct model_text *text, const char *dir,
                            struct errtext *err)
{
    json_t *config = NULL;
    memset(text, 0, sizeof(*text));
    enum status st = load_tokenizer(m, text, dir, err);
    if (!st)
        st = read_json_optional(dir, "tokenizer_config.json", &config, err);
    if (!st)
        st = load_special_tokens(m, dir, config, err);
    if (!st)
        st = load_templates(m, dir, config, err);
    if (!st)
        st = keep_info(m, config, err);
    if (!st)
        st = probe_bos(m, err);
    json_decref(config);
    return st;
}
