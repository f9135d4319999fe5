/* A byte trie per set. From each position the longest walk to a token end wins, which costs at most
 * ADDED_CONTENT_BYTES_MAX steps per byte of text. The rules for single_word, lstrip and rstrip
 * repeat the reference to the letter: a discarded match still hides what it covered, and stripped
 * blanks never reach back over an earlier token. */
#include "server/text/added.h"
#include "server/base/json.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/text/utf8.h"

#include <string.h>

/* Everything but the id. */
static enum status load_flags(struct added_token *t, const json_t *json, struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "added_tokens", .err = err};
    t->content = json_need_copy(&r, "content", &t->len);
    t->single_word = json_read_bool(&r, "single_word", false);
    t->lstrip = json_read_bool(&r, "lstrip", false);
    t->rstrip = json_read_bool(&r, "rstrip", false);
    t->special = json_read_bool(&r, "special", false);
    t->normalized = json_read_bool(&r, "normalized", !t->special);
    if (t->len == 0 || t->len > ADDED_CONTENT_BYTES_MAX)
        json_fail(&r, STATUS_INVALID, "content", "found %zu bytes, expected 1 to %u", t->len,
                  ADDED_CONTENT_BYTES_MAX);
    return r.st;
}

static enum status load_token(struct added_token *t, const json_t *json, struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "added_tokens", .err = err};
    t->id = (int32_t)json_need_int(&r, "id", (struct json_range){0, TOKENIZER_ID_MAX});
    return r.st ? r.st : load_flags(t, json, err);
}

static enum status check_total(const struct added *a, struct errtext *err)
{
    size_t total = 0;
    for (size_t i = 0; i < a->n; i++)
        total += a->tokens[i].len;
    if (total > ADDED_TOTAL_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "added_tokens: more than %u bytes of text",
                       ADDED_TOTAL_BYTES_MAX);
    return STATUS_OK;
}

/* The id of a text that is no added token yet: the vocabulary's, or the next that is free. The
 * reference gives ids so, whatever id a file claims for a text that the vocabulary lacks. */
static int32_t new_id(const struct vocab *vocab, const struct added_token *t, int32_t id_max)
{
    int32_t id = vocab_get(vocab, t->content, t->len);
    if (id >= 0)
        return id;
    return id_max >= (int32_t)vocab->count ? id_max + 1 : (int32_t)vocab->count;
}

static void number_tokens(struct added *a, const struct vocab *vocab)
{
    int32_t id_max = -1;
    for (size_t i = 0; i < a->n; i++) {
        struct added_token *t = &a->tokens[i];
        int32_t id = new_id(vocab, t, id_max);
        if (id != t->id && vocab_get(vocab, t->content, t->len) < 0) {
            log_warn("tokenizer", "added_tokens: \"%.40s\" says id %d, it is the token %d",
                     t->content, t->id, id);
            t->id = id;
        }
        id_max = t->id > id_max ? t->id : id_max;
    }
}

enum status added_load(struct added *a, const json_t *json, const struct vocab *vocab,
                       struct errtext *err)
{
    if (!json || json_is_null(json))
        return STATUS_OK;
    if (!json_is_array(json) || json_array_size(json) > ADDED_COUNT_MAX)
        return err_set(err, STATUS_INVALID, "added_tokens: expected an array of at most %u items",
                       ADDED_COUNT_MAX);
    a->tokens = mem_try_array(json_array_size(json) + 1, sizeof(*a->tokens));
    if (!a->tokens)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the added tokens");
    for (size_t i = 0; i < json_array_size(json); i++) {
        a->n++;
        enum status st = load_token(&a->tokens[i], json_array_get(json, i), err);
        if (st)
            return st;
    }
    number_tokens(a, vocab);
    return check_total(a, err);
}

/* ---- what other files add ---- */

struct extending {
    struct added *a;
    const struct vocab *vocab;
    struct vocab at; /* content -> index in a->tokens */
    int32_t id_max;  /* of the added tokens */
};

static enum status extend_one(struct extending *x, const struct tokenizer_extra_token *extra,
                              struct errtext *err)
{
    struct added_token t = {0};
    enum status st = load_flags(&t, extra->token, err);
    int32_t idx = st ? -1 : vocab_get(&x->at, t.content, t.len);
    struct added_token *old = idx >= 0 ? &x->a->tokens[idx] : NULL;
    if (!st && !old) {
        t.id = new_id(x->vocab, &t, x->id_max);
        if (t.id > TOKENIZER_ID_MAX)
            st = err_set(err, STATUS_TOO_LARGE, "added_tokens: ids above %d", TOKENIZER_ID_MAX);
    }
    if (st) {
        mem_free(t.content);
        return st;
    }
    if (!old) {
        vocab_set(&x->at, t.content, t.len, (int32_t)x->a->n);
        x->id_max = t.id > x->id_max ? t.id : x->id_max;
        x->a->tokens[x->a->n++] = t;
        return STATUS_OK;
    }
    if (extra->how == TOKENIZER_ADD_SPECIAL) {
        old->special = true;
    } else if (extra->how == TOKENIZER_ADD_SET) {
        old->single_word = t.single_word;
        old->lstrip = t.lstrip;
        old->rstrip = t.rstrip;
        old->special = t.special;
        old->normalized = t.normalized;
    }
    mem_free(t.content);
    return STATUS_OK;
}

enum status added_extend(struct added *a, const struct tokenizer_extra *extra,
                         const struct vocab *vocab, struct errtext *err)
{
    struct extending x = {.a = a, .vocab = vocab, .id_max = -1};
    if (extra->count > ADDED_COUNT_MAX - a->n)
        return err_set(err, STATUS_TOO_LARGE, "added_tokens: more than %u tokens", ADDED_COUNT_MAX);
    struct added_token *grown =
        mem_try_realloc(a->tokens, (a->n + extra->count + 1) * sizeof(*grown));
    if (!grown || !vocab_init(&x.at, a->n + extra->count)) {
        a->tokens = grown ? grown : a->tokens;
        return err_set(err, STATUS_NO_MEMORY, "no memory for the added tokens");
    }
    a->tokens = grown;
    for (size_t i = 0; i < a->n; i++) {
        vocab_set(&x.at, a->tokens[i].content, a->tokens[i].len, (int32_t)i);
        x.id_max = a->tokens[i].id > x.id_max ? a->tokens[i].id : x.id_max;
    }
    enum status st = STATUS_OK;
    for (size_t i = 0; !st && i < extra->count; i++)
        st = extend_one(&x, &extra->token[i], err);
    vocab_fini(&x.at);
    return st ? st : check_total(a, err);
}

static uint32_t trie_node(struct added_trie *t, unsigned char byte, uint32_t sibling)
{
    if (t->n + 1 >= t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        struct added_node *nodes = mem_try_realloc(t->nodes, cap * sizeof(*nodes));
        if (!nodes)
            return 0;
        t->nodes = nodes;
        t->cap = cap;
    }
    t->n++;
    t->nodes[t->n] = (struct added_node){.byte = byte, .token = -1, .sibling = sibling};
    return (uint32_t)t->n;
}

static uint32_t trie_step(const struct added_trie *t, uint32_t node, unsigned char byte)
{
    uint32_t child = t->nodes[node].child;
    while (child && t->nodes[child].byte != byte)
        child = t->nodes[child].sibling;
    return child;
}

static bool trie_add(struct added_trie *t, const char *text, size_t len, int32_t token)
{
    const unsigned char *s = (const unsigned char *)text;
    uint32_t node = t->first[s[0]];
    if (!node && !(node = t->first[s[0]] = trie_node(t, s[0], 0)))
        return false;
    for (size_t i = 1; i < len; i++) {
        uint32_t next = trie_step(t, node, s[i]);
        if (!next) {
            next = trie_node(t, s[i], t->nodes[node].child);
            if (!next)
                return false;
            t->nodes[node].child = next;
        }
        node = next;
    }
    if (t->nodes[node].token < 0)
        t->nodes[node].token = token;
    return true;
}

/* Special tokens come first, as in the reference: of two with one text the first is found. */
static enum status index_pass(struct added *a, const struct normalizer *n, bool special,
                              struct normalize_work *work, struct regex_scratch *scratch)
{
    for (size_t i = 0; i < a->n; i++) {
        struct added_token *t = &a->tokens[i];
        if (t->special != special)
            continue;
        struct normalize_io io = {.text = t->content, .len = t->len};
        if (t->normalized) {
            enum status st = normalizer_run(n, work, scratch, &io, NULL);
            if (st)
                return st;
        }
        t->shown = mem_try_strndup(io.text, io.len);
        t->shown_len = io.len;
        if (!t->shown)
            return STATUS_NO_MEMORY;
        struct added_trie *trie = t->normalized ? &a->normalized : &a->raw;
        if (io.len && !trie_add(trie, io.text, io.len, (int32_t)i))
            return STATUS_NO_MEMORY;
    }
    return STATUS_OK;
}

enum status added_index(struct added *a, const struct normalizer *n, struct errtext *err)
{
    struct normalize_work work;
    normalize_work_init(&work);
    struct regex_scratch *scratch = regex_scratch_create();
    enum status st = scratch ? index_pass(a, n, true, &work, scratch) : STATUS_NO_MEMORY;
    if (!st)
        st = index_pass(a, n, false, &work, scratch);
    regex_scratch_free(scratch);
    normalize_work_fini(&work);
    return st ? err_set(err, st, "the added tokens could not be indexed (%s)", status_name(st))
              : STATUS_OK;
}

void added_fini(struct added *a)
{
    for (size_t i = 0; i < a->n; i++) {
        mem_free(a->tokens[i].content);
        mem_free(a->tokens[i].shown);
    }
    mem_free(a->tokens);
    mem_free(a->raw.nodes);
    mem_free(a->normalized.nodes);
    *a = (struct added){0};
}

/* Longest token at s[0]; its index and length, or -1. */
static int32_t longest_at(const struct added_trie *t, const char *s, size_t left, size_t *len)
{
    int32_t best = -1;
    uint32_t node = t->first[(unsigned char)s[0]];
    for (size_t i = 1; node; i++) {
        if (t->nodes[node].token >= 0) {
            best = t->nodes[node].token;
            *len = i;
        }
        if (i == left)
            break;
        node = trie_step(t, node, (unsigned char)s[i]);
    }
    return best;
}

static bool is_inside_word(const struct normalize_io *io, size_t start, size_t end)
{
    size_t n;
    if (start > 0) {
        size_t prev = utf8_prev(io->text, start);
        if (cp_is_word(utf8_next(io->text + prev, io->len - prev, &n)))
            return true;
    }
    return end < io->len && cp_is_word(utf8_next(io->text + end, io->len - end, &n));
}

static size_t blanks_before(const struct normalize_io *io, size_t start, size_t floor)
{
    while (start > floor) {
        size_t n, prev = utf8_prev(io->text, start);
        if (!cp_is_space(utf8_next(io->text + prev, io->len - prev, &n)))
            break;
        start = prev;
    }
    return start < floor ? floor : start;
}

static size_t blanks_after(const struct normalize_io *io, size_t end)
{
    size_t n;
    while (end < io->len && cp_is_space(utf8_next(io->text + end, io->len - end, &n)))
        end += n;
    return end;
}

void added_split(const struct added *a, const struct added_trie *trie, bool skip_special,
                 const struct normalize_io *io, struct pieces *out)
{
    size_t done = 0; /* everything before is in out */
    for (size_t i = 0; trie->n && i < io->len;) {
        size_t len = 0;
        int32_t found = longest_at(trie, io->text + i, io->len - i, &len);
        if (found < 0) {
            i++;
            continue;
        }
        const struct added_token *t = &a->tokens[found];
        size_t start = i, end = i + len;
        i = end;
        if (skip_special && t->special)
            continue;
        if (t->single_word && is_inside_word(io, start, end))
            continue;
        if (t->lstrip)
            start = blanks_before(io, start, done);
        if (t->rstrip)
            end = blanks_after(io, end);
        if (done < start)
            pieces_add(out, io->text + done, start - done, -1, io->at_start && done == 0);
        if (start < end) /* else an earlier token's rstrip took all of it */
            pieces_add(out, io->text + start, end - start, t->id, false);
        done = end < start ? start : end;
    }
    if (done < io->len)
        pieces_add(out, io->text + done, io->len - done, -1, io->at_start && done == 0);
}
