/* The "model" object of a tokenizer file into struct bpe. Everything is copied out of the JSON, all
 * counts have a maximum, and every merge must lead to a token of the vocabulary. */
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/text/bpe.h"
#include "server/text/utf8.h"

#include <stdio.h>
#include <string.h>

#define WHERE "model"

static enum status refuse_affix(const json_t *json, const char *key, struct errtext *err)
{
    const json_t *v = json_object_get(json, key);
    if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0))
        return STATUS_OK;
    return err_set(err, STATUS_UNSUPPORTED, WHERE ": \"%s\" is not supported", key);
}

static enum status load_flags(struct bpe *b, const json_t *json, struct errtext *err)
{
    const json_t *type = json_object_get(json, "type");
    if (type && !json_is_null(type) &&
        !(json_is_string(type) && strcmp(json_string_value(type), "BPE") == 0))
        return err_set(err, STATUS_UNSUPPORTED, WHERE ": type \"%s\" is not supported, only BPE",
                       json_is_string(type) ? json_string_value(type) : "?");
    const json_t *dropout = json_object_get(json, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
        return err_set(err, STATUS_UNSUPPORTED,
                       WHERE ": \"dropout\" is not supported: encoding must be deterministic");
    enum status st = refuse_affix(json, "continuing_subword_prefix", err);
    if (!st)
        st = refuse_affix(json, "end_of_word_suffix", err);
    if (st)
        return st;
    struct json_reader r = {.obj = json, .where = WHERE, .err = err};
    b->fuse_unk = json_read_bool(&r, "fuse_unk", false);
    b->byte_fallback = json_read_bool(&r, "byte_fallback", false);
    b->ignore_merges = json_read_bool(&r, "ignore_merges", false);
    if (json_has(&r, "unk_token"))
        b->unk_token = json_need_copy(&r, "unk_token", &b->unk_len);
    return r.st;
}

static enum status check_entry(const char *key, const json_t *v, struct errtext *err)
{
    size_t len = strlen(key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 ||
        json_integer_value(v) > TOKENIZER_ID_MAX)
        return err_set(err, STATUS_INVALID, WHERE ": the id of \"%.40s\" must be 0 to %d", key,
                       TOKENIZER_ID_MAX);
    if (len > BPE_TOKEN_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, WHERE ": a token of %zu bytes; at most %u", len,
                       BPE_TOKEN_BYTES_MAX);
    return STATUS_OK;
}

static enum status load_vocab(struct bpe *b, json_t *vocab, struct errtext *err)
{
    const char *key;
    json_t *v;
    size_t total = 0;
    json_object_foreach(vocab, key, v)
    {
        enum status st = check_entry(key, v, err);
        if (st)
            return st;
        total += strlen(key) + 1;
    }
    b->text = mem_try_alloc(total + 1);
    if (!b->text || !vocab_init(&b->vocab, json_object_size(vocab)))
        return err_set(err, STATUS_NO_MEMORY, WHERE ": no memory for the vocabulary");
    json_object_foreach(vocab, key, v)
    {
        size_t len = strlen(key);
        char *copy = b->text + b->text_len;
        memcpy(copy, key, len + 1);
        b->text_len += len + 1;
        int32_t id = (int32_t)json_integer_value(v);
        vocab_set(&b->vocab, copy, len, id);
        if (id > b->id_max)
            b->id_max = id;
    }
    return STATUS_OK;
}

/* The two halves of one line: "a b" or ["a", "b"]. */
static bool merge_halves(const json_t *line, const char *half[2], size_t len[2])
{
    if (json_is_array(line) && json_array_size(line) == 2) {
        for (size_t i = 0; i < 2; i++) {
            const json_t *v = json_array_get(line, i);
            if (!json_is_string(v))
                return false;
            half[i] = json_string_value(v);
            len[i] = json_string_length(v);
        }
        return true;
    }
    if (!json_is_string(line))
        return false;
    half[0] = json_string_value(line);
    const char *blank = strchr(half[0], ' ');
    if (!blank)
        return false;
    half[1] = blank + 1;
    len[0] = (size_t)(blank - half[0]);
    len[1] = json_string_length(line) - len[0] - 1;
    return memchr(half[1], ' ', len[1]) == NULL;
}

static enum status load_merge(struct bpe *b, const json_t *line, uint32_t rank, struct buf *joined,
                              struct errtext *err)
{
    const char *half[2];
    size_t len[2];
    if (!merge_halves(line, half, len))
        return err_set(err, STATUS_INVALID,
                       WHERE ": merge %u must be \"left right\" or [\"left\", \"right\"]", rank);
    buf_clear(joined);
    buf_put(joined, half[0], len[0]);
    buf_put(joined, half[1], len[1]);
    if (joined->failed)
        return err_set(err, STATUS_TOO_LARGE, WHERE ": merge %u is too long", rank);
    int32_t left = vocab_get(&b->vocab, half[0], len[0]);
    int32_t right = vocab_get(&b->vocab, half[1], len[1]);
    int32_t id = vocab_get(&b->vocab, joined->data ? joined->data : "", joined->len);
    if (left < 0 || right < 0 || id < 0)
        return err_set(err, STATUS_INVALID,
                       WHERE ": merge %u (\"%.40s\" \"%.40s\") uses a token out of the vocabulary",
                       rank, half[0], half[1]);
    merges_set(&b->merges, left, right, rank, id);
    return STATUS_OK;
}

static enum status load_merges(struct bpe *b, const json_t *list, struct errtext *err)
{
    size_t n = json_array_size(list);
    if (!merges_init(&b->merges, n))
        return err_set(err, STATUS_NO_MEMORY, WHERE ": no memory for %zu merges", n);
    struct buf joined;
    buf_init(&joined, 2 * BPE_TOKEN_BYTES_MAX);
    enum status st = STATUS_OK;
    for (size_t i = 0; !st && i < n; i++)
        st = load_merge(b, json_array_get(list, i), (uint32_t)i, &joined, err);
    buf_fini(&joined);
    return st;
}

static void fill_tables(struct bpe *b)
{
    for (unsigned i = 0; i < 256; i++) {
        char name[8];
        int len = snprintf(name, sizeof(name), "<0x%02X>", i);
        b->byte_ids[i] = vocab_get(&b->vocab, name, (size_t)len);
    }
    for (uint32_t cp = 0; cp < BPE_SHORT_CP_MAX; cp++) {
        char text[4];
        b->short_ids[cp] = vocab_get(&b->vocab, text, utf8_put(cp, text));
    }
}

enum status bpe_load(struct bpe *b, const json_t *json, struct errtext *err)
{
    b->id_max = -1;
    if (!json_is_object(json))
        return err_set(err, STATUS_INVALID, "tokenizer.json: \"model\" must be an object");
    enum status st = load_flags(b, json, err);
    if (st)
        return st;
    json_t *vocab = json_object_get(json, "vocab");
    if (!json_is_object(vocab) || json_object_size(vocab) > (size_t)TOKENIZER_ID_MAX)
        return err_set(err, STATUS_INVALID, WHERE ": \"vocab\" must be an object of at most %d ids",
                       TOKENIZER_ID_MAX);
    struct json_reader r = {.obj = json, .where = WHERE, .err = err};
    const json_t *merges = json_need_list(&r, "merges", BPE_MERGES_MAX);
    st = r.st;
    if (!st)
        st = load_vocab(b, vocab, err);
    if (!st)
        st = load_merges(b, merges, err);
    if (!st)
        fill_tables(b);
    return st;
}

void bpe_fini(struct bpe *b)
{
    vocab_fini(&b->vocab);
    merges_fini(&b->merges);
    mem_free(b->text);
    mem_free(b->unk_token);
    *b = (struct bpe){0};
}
