/* Chat template precedence, as transformers: chat_template of tokenizer_config.json (a string, or a
 * list of {name, template}) < chat_template.jinja, which becomes the default <
 * additional_chat_templates/<name>.jinja. Where any .jinja file exists those of
 * tokenizer_config.json are not used. Two names matter to us: default and tool_use. */
#include "server/model/model_text.h"
#include "server/base/file.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/model/foreign.h"
#include "server/model/token_config.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#define TEMPLATE_BYTES_MAX (1u << 20)

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

struct model_templates {
    struct model *m;
    bool strict;
};

static enum status parse_template(struct chat_template **out, const char *text, size_t len,
                                  const char *where, struct errtext *err)
{
    enum status st = memchr(text, '\0', len) ? err_set(err, STATUS_INVALID, "holds a zero byte")
                                             : chat_template_parse(out, text, len, err);
    if (st)
        err_prefix(err, "%s", where);
    return st;
}

/* A template that cannot be used costs chat, not the server: completions need none. */
static enum status set_default(struct model_templates *t, const char *text, size_t len,
                               const char *where, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    t->m->chat_text = mem_try_strndup(text, len);
    enum status st = t->m->chat_text ? parse_template(&t->m->chat, text, len, where, &why)
                                     : err_set(&why, STATUS_NO_MEMORY, "%s: no memory", where);
    if (st && (t->strict || st == STATUS_NO_MEMORY))
        return err_set(err, st, "%s", why.text);
    if (!st)
        return STATUS_OK;
    log_warn("model", "no chat is served: %s", why.text);
    t->m->chat_refusal = mem_try_strndup(why.text, strlen(why.text));
    return t->m->chat_refusal ? STATUS_OK : err_set(err, STATUS_NO_MEMORY, "%s: no memory", where);
}

/* The one for tools is a second template: without it there is the first. */
static enum status set_tools(struct model_templates *t, const char *text, size_t len,
                             const char *where, struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = parse_template(&t->m->chat_tools, text, len, where, &why);
    if (st && (t->strict || st == STATUS_NO_MEMORY))
        return err_set(err, st, "%s", why.text);
    if (st)
        log_warn("model", "the template for tools is not used: %s", why.text);
    return STATUS_OK;
}

static enum status templates_from_config(struct model_templates *t, const json_t *v,
                                         struct errtext *err)
{
    const char *where = "tokenizer_config.json: chat_template";
    if (!v || json_is_null(v))
        return STATUS_OK;
    if (json_is_string(v))
        return set_default(t, json_string_value(v), json_string_length(v), where, err);
    if (!json_is_array(v))
        return err_set(err, STATUS_INVALID, "%s: expected a string or a list", where);
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *item = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *text = json_object_get(item, "template");
        enum status st = STATUS_OK;
        if (!name || !json_is_string(text))
            return err_set(err, STATUS_INVALID, "%s[%zu]: expected {name, template}", where, i);
        if (!strcmp(name, "default") && !t->m->chat_text)
            st = set_default(t, json_string_value(text), json_string_length(text), where, err);
        else if (!strcmp(name, "tool_use") && !t->m->chat_tools)
            st = set_tools(t, json_string_value(text), json_string_length(text), where, err);
        if (st)
            return st;
    }
    return STATUS_OK;
}

static enum status load_templates(struct model_templates *t, const char *dir, const json_t *config,
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
        st = set_default(t, main_text, main_len, main_name, err);
    if (!st && tools_text)
        st = set_tools(t, tools_text, tools_len, tools_name, err);
    if (!st && !main_text && !tools_text)
        st = templates_from_config(t, json_object_get(config, "chat_template"), err);
    mem_free(main_text);
    mem_free(tools_text);
    return st;
}

const char *model_special_text(const struct model *m, const char *name)
{
    for (size_t i = 0; i < m->special_count; i++) {
        if (strcmp(m->special[i].name, name) == 0)
            return m->special[i].text;
    }
    return NULL;
}

/* vLLM's rule: what the tokenizer calls its end token ends an answer, beside the config's ids. */
static void add_tokenizer_eos(struct model *m)
{
    struct model_config *c = &m->config;
    const char *text = model_special_text(m, "eos_token");
    int32_t id = text ? tokenizer_token_to_id(m->tokenizer, text) : -1;
    bool known = id < 0 || (uint32_t)id >= c->n_vocab || c->eos_count == MODEL_EOS_MAX;
    for (uint32_t i = 0; i < c->eos_count; i++)
        known = known || c->eos_id[i] == id;
    if (!known)
        c->eos_id[c->eos_count++] = id;
}

/* Whether the post-processor puts the BOS token in front. */
static enum status probe_bos(struct model *m, struct errtext *err)
{
    struct token_list ids = {.n_max = 64};
    enum status st = tokenizer_encode(m->tokenizer, "a", 1, TOKENIZE_ADD_SPECIAL, &ids, err);
    const char *text = model_special_text(m, "bos_token");
    int32_t bos = text ? tokenizer_token_to_id(m->tokenizer, text) : m->config.bos_id;
    if (!st)
        m->add_bos = ids.n > 0 && bos >= 0 && ids.ids[0] == bos;
    mem_free(ids.ids);
    return st;
}

static enum status load_tokenizer(struct model *m, struct model_text *text, const char *dir,
                                  const struct tokenizer_extra *extra, struct errtext *err)
{
    enum status st = read_member(dir, "tokenizer.json", TOKENIZER_JSON_BYTES_MAX,
                                 &text->tokenizer_json, &text->tokenizer_bytes, err);
    if (st)
        return st == STATUS_NOT_FOUND ? foreign_tokenizer(dir, st, err) : st;
    const char *foreign = foreign_bytes(text->tokenizer_json, text->tokenizer_bytes);
    if (foreign)
        return err_set(err, STATUS_INVALID, "tokenizer.json: %s", foreign);
    st =
        tokenizer_load_with(&m->tokenizer, text->tokenizer_json, text->tokenizer_bytes, extra, err);
    if (st) {
        err_prefix(err, "tokenizer.json");
        return st;
    }
    uint32_t ids = tokenizer_vocab_size(m->tokenizer);
    if (ids > m->config.n_vocab)
        log_warn("model",
                 "the tokenizer's ids reach %u, config.json's vocab_size is %u: prompts with ids "
                 "above are refused",
                 ids - 1, m->config.n_vocab);
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

enum status model_text_load(struct model *m, struct model_text *text, const char *dir, bool strict,
                            struct errtext *err)
{
    struct token_config config;
    struct model_templates templates = {.m = m, .strict = strict};
    memset(text, 0, sizeof(*text));
    enum status st = token_config_load(&config, dir, err);
    if (!st)
        st = load_tokenizer(m, text, dir, &config.extra, err);
    if (!st)
        st = load_templates(&templates, dir, config.root, err);
    m->special = config.special;
    m->special_count = config.special_count;
    config.special = NULL;
    config.special_count = 0;
    if (!st)
        st = keep_info(m, config.root, err);
    if (!st)
        st = probe_bos(m, err);
    if (!st)
        add_tokenizer_eos(m);
    token_config_fini(&config);
    return st;
}

void model_text_drop(struct model *m)
{
    tokenizer_free(m->tokenizer);
    chat_template_free(m->chat);
    chat_template_free(m->chat_tools);
    mem_free(m->chat_text);
    mem_free(m->tokenizer_info);
    mem_free(m->chat_refusal);
    model_special_free(m->special, m->special_count);
}
