/* Encoding and decoding with a loaded tokenizer: added tokens out of the raw text, normalize, added
 * tokens out of the normalized text, pre-tokenize, merge, frame with the post-processor's ids. All
 * scratch memory belongs to the call, which is what makes a tokenizer safe to share. */
#include "server/text/tokenizer.h"
#include "server/base/mem.h"
#include "server/text/tokenizer_impl.h"
#include "server/text/utf8.h"

#include <string.h>

struct encode_work {
    struct pieces a, b;
    struct normalize_work normalize;
    struct pretokenize_work pretokenize;
    struct bpe_work bpe;
    struct regex_scratch *scratch;
};

static bool work_init(struct encode_work *w)
{
    *w = (struct encode_work){0};
    pieces_init(&w->a);
    pieces_init(&w->b);
    normalize_work_init(&w->normalize);
    w->scratch = regex_scratch_create();
    return w->scratch != NULL;
}

static void work_fini(struct encode_work *w)
{
    pieces_fini(&w->a);
    pieces_fini(&w->b);
    normalize_work_fini(&w->normalize);
    pretokenize_work_fini(&w->pretokenize);
    bpe_work_fini(&w->bpe);
    regex_scratch_free(w->scratch);
}

/* Raw text -> w->b: added tokens found, the rest normalized. */
static enum status extract(const struct tokenizer *t, struct encode_work *w,
                           const struct normalize_io *text, bool skip_special, struct errtext *err)
{
    added_split(&t->added, &t->added.raw, skip_special, text, &w->a);
    for (size_t i = 0; i < w->a.n; i++) {
        const struct piece *item = &w->a.items[i];
        struct normalize_io io = {
            .text = piece_text(&w->a, item), .len = item->len, .at_start = item->at_start};
        if (item->id >= 0) {
            pieces_add(&w->b, io.text, io.len, item->id, false);
            continue;
        }
        enum status st = normalizer_run(&t->normalizer, &w->normalize, w->scratch, &io, err);
        if (st)
            return st;
        added_split(&t->added, &t->added.normalized, skip_special, &io, &w->b);
    }
    if (w->a.failed || w->b.failed)
        return err_set(err, STATUS_NO_MEMORY, "no memory to tokenize %zu bytes", text->len);
    return STATUS_OK;
}

static enum status encode_with(const struct tokenizer *t, struct encode_work *w,
                               const struct normalize_io *text, bool skip_special,
                               struct token_list *out, struct errtext *err)
{
    enum status st = extract(t, w, text, skip_special, err);
    if (st)
        return st;
    struct pretokenize_io io = {.a = &w->b, .b = &w->a};
    st = pretokenizer_run(&t->pretokenizer, &w->pretokenize, w->scratch, &io, err);
    if (st)
        return st;
    const struct pieces *words = io.result;
    for (size_t i = 0; !st && i < words->n; i++) {
        const struct piece *item = &words->items[i];
        if (item->id >= 0)
            st = token_list_add(out, item->id, err);
        else
            st = bpe_encode(&t->bpe, &w->bpe, piece_text(words, item), item->len, out, err);
    }
    return st;
}

static enum status add_all(struct token_list *out, const int32_t *ids, size_t n,
                           struct errtext *err)
{
    enum status st = STATUS_OK;
    for (size_t i = 0; !st && i < n; i++)
        st = token_list_add(out, ids[i], err);
    return st;
}

enum status tokenizer_encode(const struct tokenizer *t, const char *text, size_t len,
                             unsigned flags, struct token_list *out, struct errtext *err)
{
    if (len > TOKENIZE_TEXT_BYTES_MAX)
        return err_set(err, STATUS_TOO_LARGE, "a text of %zu bytes; at most %zu", len,
                       TOKENIZE_TEXT_BYTES_MAX);
    size_t valid = utf8_valid_prefix(text, len);
    if (valid != len)
        return err_set(err, STATUS_INVALID, "the text is not UTF-8 at byte %zu", valid);
    bool framed = flags & TOKENIZE_ADD_SPECIAL;
    struct encode_work w;
    enum status st = STATUS_OK;
    if (!work_init(&w))
        st = err_set(err, STATUS_NO_MEMORY, "no memory to tokenize %zu bytes", len);
    struct normalize_io io = {.text = text, .len = len, .at_start = true};
    if (!st && framed)
        st = add_all(out, t->prefix, t->n_prefix, err);
    if (!st)
        st = encode_with(t, &w, &io, t->split_special || !(flags & TOKENIZE_PARSE_SPECIAL), out,
                         err);
    if (!st && framed)
        st = add_all(out, t->suffix, t->n_suffix, err);
    work_fini(&w);
    return st;
}

uint32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->n_ids;
}

static const struct token_info *find_info(const struct tokenizer *t, int32_t id)
{
    if (id < 0 || (uint32_t)id >= t->n_ids || !t->info[id].content)
        return NULL;
    return &t->info[id];
}

const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, size_t *len)
{
    const struct token_info *info = find_info(t, id);
    *len = info ? info->bytes_len : 0;
    return info ? t->bytes.data + info->bytes_start : NULL;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    const struct token_info *info = find_info(t, id);
    return info && info->special;
}

int32_t tokenizer_token_to_id(const struct tokenizer *t, const char *content)
{
    int32_t id = vocab_get(&t->added_ids, content, strlen(content));
    return id >= 0 ? id : vocab_get(&t->bpe.vocab, content, strlen(content));
}

enum status tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n,
                             bool skip_special, struct buf *out, struct errtext *err)
{
    struct pieces a, b;
    pieces_init(&a);
    pieces_init(&b);
    for (size_t i = 0; i < n; i++) {
        const struct token_info *info = find_info(t, ids[i]);
        if (info && !(skip_special && info->special))
            pieces_add_always(&a, info->content, info->content_len);
    }
    enum status st = decoder_run(&t->decoder, &a, &b, out, err);
    pieces_fini(&a);
    pieces_fini(&b);
    return st;
}
