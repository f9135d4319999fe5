/* tokenizer.json -> struct tokenizer. The file may come from anyone: duplicate keys, wrong types,
 * ids out of range and counts past their maximum are refused with a sentence; components are loaded
 * by the file that runs them. Ids of added tokens must not collide with the vocabulary's.
 * "truncation" and "padding" are ignored: a server never cuts a prompt silently. */
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/text/tokenizer.h"
#include "server/text/tokenizer_impl.h"

#include <string.h>

#define TOKEN_BYTES_TOTAL_MAX ((size_t)1 << 30)
#define POST_PROCESSORS_MAX   16

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    normalizer_fini(&t->normalizer);
    pretokenizer_fini(&t->pretokenizer);
    added_fini(&t->added);
    bpe_fini(&t->bpe);
    decoder_fini(&t->decoder);
    vocab_fini(&t->added_ids);
    buf_fini(&t->bytes);
    mem_free(t->info);
    mem_free(t);
}

/* The ids of one entry of special_tokens, appended to list. */
static enum status template_ids(const json_t *specials, const char *name, int32_t *list, size_t *n,
                                struct errtext *err)
{
    static const char where[] = "post_processor TemplateProcessing";
    struct json_reader r = {.obj = specials, .where = where, .err = err};
    struct json_reader entry = json_enter(&r, name);
    const json_t *ids = json_need_list(&entry, "ids", TEMPLATE_IDS_MAX);
    for (size_t i = 0; !r.st && i < json_array_size(ids); i++) {
        int64_t id = json_item_int(&entry, "ids", i, json_array_get(ids, i),
                                   (struct json_range){0, TOKENIZER_ID_MAX});
        if (*n == TEMPLATE_IDS_MAX)
            return err_set(err, STATUS_TOO_LARGE, "%s: more than %d ids", where, TEMPLATE_IDS_MAX);
        list[(*n)++] = (int32_t)id;
    }
    return r.st;
}

struct frame {
    int32_t before[TEMPLATE_IDS_MAX], after[TEMPLATE_IDS_MAX];
    size_t n_before, n_after;
};

static enum status read_template(const json_t *json, struct frame *f, struct errtext *err)
{
    static const char where[] = "post_processor TemplateProcessing";
    struct json_reader r = {.obj = json, .where = where, .err = err};
    const json_t *specials = json_object_get(json, "special_tokens");
    const json_t *single = json_need_list(&r, "single", TEMPLATE_IDS_MAX);
    enum status st = r.st;
    bool seen = false;
    for (size_t i = 0; !st && i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken");
        const json_t *sequence = json_object_get(item, "Sequence");
        const char *name = json_string_value(json_object_get(special ? special : sequence, "id"));
        if (!name)
            return err_set(err, STATUS_INVALID, "%s: an item is neither SpecialToken nor Sequence",
                           where);
        if (sequence && (seen || strcmp(name, "A") != 0))
            return err_set(err, STATUS_UNSUPPORTED, "%s: \"single\" must use $A once", where);
        if (sequence)
            seen = true;
        else
            st = template_ids(specials, name, seen ? f->after : f->before,
                              seen ? &f->n_after : &f->n_before, err);
    }
    if (!st && !seen)
        st = err_set(err, STATUS_UNSUPPORTED, "%s: \"single\" must use $A once", where);
    return st;
}

/* A template around what earlier post-processors already framed. */
static enum status load_template(struct tokenizer *t, const json_t *json, struct errtext *err)
{
    struct frame f = {.n_before = 0};
    enum status st = read_template(json, &f, err);
    if (st)
        return st;
    if (f.n_before + t->n_prefix > TEMPLATE_IDS_MAX || f.n_after + t->n_suffix > TEMPLATE_IDS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "post_processor: more than %d ids", TEMPLATE_IDS_MAX);
    memmove(t->prefix + f.n_before, t->prefix, t->n_prefix * sizeof(*t->prefix));
    memcpy(t->prefix, f.before, f.n_before * sizeof(*t->prefix));
    memcpy(t->suffix + t->n_suffix, f.after, f.n_after * sizeof(*t->suffix));
    t->n_prefix += f.n_before;
    t->n_suffix += f.n_after;
    return STATUS_OK;
}

static enum status load_post(struct tokenizer *t, const json_t *json, int depth,
                             struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "post_processor", .err = err};
    if (!json || json_is_null(json))
        return STATUS_OK;
    const char *type = json_need_string(&r, "type");
    if (r.st)
        return r.st;
    if (strcmp(type, "ByteLevel") == 0) /* changes offsets only */
        return STATUS_OK;
    if (strcmp(type, "TemplateProcessing") == 0)
        return load_template(t, json, err);
    if (strcmp(type, "Sequence") != 0)
        return err_set(err, STATUS_UNSUPPORTED, "post_processor \"%.64s\" is not supported", type);
    const json_t *list = json_need_list(&r, "processors", POST_PROCESSORS_MAX);
    enum status st = r.st;
    if (!st && depth == 0)
        st = err_set(err, STATUS_TOO_LARGE, "post_processor: Sequences nested too deep");
    for (size_t i = 0; !st && i < json_array_size(list); i++)
        st = load_post(t, json_array_get(list, i), depth - 1, err);
    return st;
}

static enum status set_info(struct tokenizer *t, int32_t id, const char *content, size_t len,
                            struct errtext *err)
{
    struct token_info *info = &t->info[id];
    if (info->content && (info->content_len != len || memcmp(info->content, content, len) != 0))
        return err_set(err, STATUS_INVALID,
                       "tokenizer.json: id %d is used by \"%.40s\" and by \"%.40s\"", id,
                       info->content, content);
    info->content = content;
    info->content_len = (uint32_t)len;
    return STATUS_OK;
}

static enum status fill_added(struct tokenizer *t, struct errtext *err)
{
    if (!vocab_init(&t->added_ids, t->added.n))
        return err_set(err, STATUS_NO_MEMORY, "no memory for the added tokens");
    enum status st = STATUS_OK;
    for (size_t i = 0; !st && i < t->added.n; i++) {
        const struct added_token *a = &t->added.tokens[i];
        int32_t model_id = vocab_get(&t->bpe.vocab, a->content, a->len);
        if (vocab_get(&t->added_ids, a->content, a->len) >= 0)
            return err_set(err, STATUS_INVALID, "added_tokens: \"%.40s\" appears twice",
                           a->content);
        if (model_id >= 0 && model_id != a->id)
            return err_set(err, STATUS_INVALID,
                           "added_tokens: \"%.40s\" has id %d here and %d in the vocabulary",
                           a->content, a->id, model_id);
        vocab_set(&t->added_ids, a->content, a->len, a->id);
        st = set_info(t, a->id, a->content, a->len, err);
        t->info[a->id].content = a->shown;
        t->info[a->id].content_len = (uint32_t)a->shown_len;
        t->info[a->id].special = a->special;
    }
    return st;
}

static enum status fill_info(struct tokenizer *t, struct errtext *err)
{
    int32_t id_max = t->bpe.id_max;
    for (size_t i = 0; i < t->added.n; i++)
        id_max = t->added.tokens[i].id > id_max ? t->added.tokens[i].id : id_max;
    t->n_ids = (uint32_t)(id_max + 1);
    t->info = mem_try_array(t->n_ids + 1, sizeof(*t->info));
    if (!t->info)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u tokens", t->n_ids);
    enum status st = STATUS_OK;
    for (size_t i = 0; !st && i <= t->bpe.vocab.mask; i++) {
        const struct vocab_slot *slot = &t->bpe.vocab.slots[i];
        if (slot->id >= 0)
            st = set_info(t, slot->id, slot->key, slot->len, err);
    }
    return st ? st : fill_added(t, err);
}

/* Every token's bytes in a stream, once. */
static enum status fill_bytes(struct tokenizer *t, struct errtext *err)
{
    buf_init(&t->bytes, TOKEN_BYTES_TOTAL_MAX);
    buf_puts(&t->bytes, "");
    for (uint32_t id = 0; id < t->n_ids; id++) {
        struct token_info *info = &t->info[id];
        size_t start = t->bytes.len;
        if (!info->content)
            continue;
        enum status st =
            decoder_token(&t->decoder, info->content, info->content_len, false, &t->bytes, err);
        if (st)
            return st;
        if (t->bytes.failed)
            return err_set(err, STATUS_TOO_LARGE, "tokenizer.json: the tokens' text is too large");
        info->bytes_start = (uint32_t)start;
        info->bytes_len = (uint32_t)(t->bytes.len - start);
    }
    for (size_t i = t->decoder.fuse_idx + 1; i < t->decoder.n; i++) {
        if (t->decoder.steps[i].kind != DECODE_STRIP)
            continue;
        if (t->lead_strip)
            return err_set(err, STATUS_UNSUPPORTED, "decoder: two Strips after Fuse");
        t->lead_strip = &t->decoder.steps[i];
    }
    return STATUS_OK;
}

static enum status check_frame(const struct tokenizer *t, struct errtext *err)
{
    for (size_t i = 0; i < t->n_prefix + t->n_suffix; i++) {
        int32_t id = i < t->n_prefix ? t->prefix[i] : t->suffix[i - t->n_prefix];
        if ((uint32_t)id >= t->n_ids || !t->info[id].content)
            return err_set(err, STATUS_INVALID, "post_processor: id %d is not a token", id);
    }
    return STATUS_OK;
}

static enum status load_all(struct tokenizer *t, const json_t *root,
                            const struct tokenizer_extra *extra, struct errtext *err)
{
    enum status st = bpe_load(&t->bpe, json_object_get(root, "model"), err);
    if (!st)
        st = normalizer_load(&t->normalizer, json_object_get(root, "normalizer"), err);
    if (!st)
        st = pretokenizer_load(&t->pretokenizer, json_object_get(root, "pre_tokenizer"), err);
    if (!st)
        st = decoder_load(&t->decoder, json_object_get(root, "decoder"), err);
    if (!st)
        st = load_post(t, json_object_get(root, "post_processor"), 4, err);
    if (!st)
        st = added_load(&t->added, json_object_get(root, "added_tokens"), &t->bpe.vocab, err);
    if (!st && extra)
        st = added_extend(&t->added, extra, &t->bpe.vocab, err);
    if (!st)
        st = added_index(&t->added, &t->normalizer, err);
    if (!st)
        st = fill_info(t, err);
    if (!st)
        st = fill_bytes(t, err);
    if (!st)
        st = check_frame(t, err);
    if (!st)
        tokenizer_set_bound(t);
    return st;
}

enum status tokenizer_load(struct tokenizer **out, const char *json, size_t len,
                           struct errtext *err)
{
    return tokenizer_load_with(out, json, len, NULL, err);
}

enum status tokenizer_load_with(struct tokenizer **out, const char *json, size_t len,
                                const struct tokenizer_extra *extra, struct errtext *err)
{
    *out = NULL;
    if (len > TOKENIZER_JSON_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "tokenizer.json: %zu bytes; at most %zu", len,
                       TOKENIZER_JSON_BYTES_MAX);
    json_t *root;
    enum status st = json_doc_parse(&root, "tokenizer.json", json, len, JSON_DOC_NUL, err);
    if (st)
        return st;
    struct tokenizer *t = mem_try_alloc(sizeof(*t));
    st = t ? STATUS_OK : STATUS_NO_MEMORY;
    if (!st)
        st = load_all(t, root, extra, err);
    if (!st)
        t->split_special = extra && extra->split_special;
    json_decref(root);
    if (st) {
        tokenizer_free(t);
        return err_set(err, st, "tokenizer.json could not be loaded (%s)", status_name(st));
    }
    *out = t;
    return STATUS_OK;
}
