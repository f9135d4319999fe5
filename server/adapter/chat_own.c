/* Whatever keeps a template from being read is a refusal of chat, not of the adapter: a file that
 * is no JSON, a link out of the folder, a statement that this server does not have. */
#include "server/adapter/chat_own.h"
#include "server/adapter/kept.h"
#include "server/adapter/peft/folder.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char jinja_name[] = "chat_template.jinja";
static const char config_name[] = "tokenizer_config.json";

enum status chat_own_make(struct chat_own **out, const char *text, size_t len, const char *where,
                          struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    struct chat_own *c = mem_try_alloc(sizeof(*c));
    *out = NULL;
    if (!c)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory", where);
    *c = (struct chat_own){.text = mem_try_strndup(text, len)};
    atomic_init(&c->refs, 1);
    crypto_generichash(c->digest, sizeof(c->digest), (const uint8_t *)text, len, NULL, 0);
    enum status st = !c->text                  ? STATUS_NO_MEMORY
                     : memchr(text, '\0', len) ? err_set(&why, STATUS_INVALID, "holds a zero byte")
                                               : chat_template_parse(&c->chat, text, len, &why);
    if (st && st != STATUS_NO_MEMORY) {
        err_prefix(&why, "%s", where);
        c->refusal = mem_try_strndup(why.text, strlen(why.text));
        st = c->refusal ? STATUS_OK : STATUS_NO_MEMORY;
    }
    if (st) {
        chat_own_release(c);
        return err_set(err, st, "%s: no memory", where);
    }
    *out = c;
    return STATUS_OK;
}

/* A template that was meant and cannot be read. */
static enum status make_refused(struct chat_own **out, const struct errtext *why,
                                struct errtext *err)
{
    enum status st = chat_own_make(out, "", 0, jinja_name, err);
    if (st)
        return st;
    chat_template_free((*out)->chat);
    (*out)->chat = NULL;
    mem_free((*out)->refusal);
    (*out)->refusal = mem_strdup(why->text);
    return STATUS_OK;
}

/* The default of a list of {name, template}, or the string itself; NULL: none. */
static const json_t *default_of(const json_t *v)
{
    if (!json_is_array(v))
        return json_is_string(v) ? v : NULL;
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *item = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *text = json_object_get(item, "template");
        if (name && !strcmp(name, "default") && json_is_string(text))
            return text;
    }
    return NULL;
}

static enum status read_config(struct chat_own **out, const char *dir,
                               const struct file_roots *roots, struct errtext *err)
{
    json_t *root = NULL;
    struct errtext why = ERRTEXT_INIT;
    enum status st = kept_read_json(&root, dir, roots, config_name, &why);
    if (st)
        return make_refused(out, &why, err);
    const json_t *text = default_of(json_object_get(root, "chat_template"));
    if (text)
        st = chat_own_make(out, json_string_value(text), json_string_length(text),
                           "tokenizer_config.json: chat_template", err);
    json_decref(root);
    return st;
}

enum status chat_own_read(struct chat_own **out, const char *dir, const struct file_roots *roots,
                          struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    char *text;
    size_t len;
    int fd;
    *out = NULL;
    enum status st = peft_folder_open(dir, roots, jinja_name, &fd, &why);
    if (st == STATUS_NOT_FOUND)
        return read_config(out, dir, roots, err);
    if (st)
        return make_refused(out, &why, err);
    st = file_read_fd(fd, jinja_name, CHAT_TEMPLATE_BYTES_MAX, &text, &len, &why);
    close(fd);
    if (st)
        return make_refused(out, &why, err);
    st = chat_own_make(out, text, len, jinja_name, err);
    mem_free(text);
    return st;
}

struct chat_own *chat_own_ref(struct chat_own *c)
{
    if (c)
        atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    return c;
}

void chat_own_release(struct chat_own *c)
{
    /* acq_rel: as catalog_release */
    if (!c || atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1)
        return;
    chat_template_free(c->chat);
    mem_free(c->text);
    mem_free(c->refusal);
    mem_free(c);
}
