/* See row_mask.h. Places in a text become places in its tokens by tokenizing the text up to there:
 * as many ids as both begin with stand before it. A token across a place where a turn begins is
 * learned, and so is one across its end, as transformers' assistant masks have it. */
#include "server/datanet/row_mask.h"
#include "server/base/check.h"
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/datanet/row_chat.h"
#include "server/text/messages.h"
#include "server/text/turns.h"

#include <string.h>

static const char *const mask_name[ROW_MASK_COUNT] = {"all", "completion", "assistant"};

const char *row_mask_name(enum row_mask mask)
{
    return mask_name[mask];
}

bool row_mask_parse(enum row_mask *out, const char *name)
{
    for (unsigned k = 0; k < ROW_MASK_COUNT; k++) {
        if (strcmp(name, mask_name[k]) == 0) {
            *out = (enum row_mask)k;
            return true;
        }
    }
    return false;
}

static void set(const struct row_masking *r, size_t begin, size_t end)
{
    for (uint64_t i = r->at + begin; i < r->at + MIN(end, r->n); i++)
        r->learn[i / 8] |= (uint8_t)(1u << i % 8);
}

static size_t common(const struct row_masking *r, const struct token_list *own)
{
    size_t n = 0;
    while (n < own->n && n < r->n && own->ids[n] == r->ids[n])
        n++;
    return n;
}

static enum status mask_prompt(const struct row_masking *r, struct errtext *err)
{
    struct token_list own = {0};
    enum status st = row_prompt(r->form, r->kind, r->row, r->len, &own, err);
    if (!st)
        set(r, common(r, &own), r->n);
    mem_free(own.ids);
    return st;
}

/* ---- conversations ---- */

/* Tokens of the row that stand before the text's byte `at`; *across: the next one does not begin
 * there but before. */
static enum status tokens_before(const struct row_masking *r, const struct buf *text, size_t at,
                                 size_t *n, bool *across, struct errtext *err)
{
    struct token_list own = {.n_max = CHAT_TEXT_BYTES_MAX};
    enum status st = STATUS_OK;
    if (at > 0)
        st = tokenizer_encode(r->form->model->tokenizer, text->data, at, TOKENIZE_PARSE_SPECIAL,
                              &own, err);
    *n = common(r, &own);
    *across = *n < own.n;
    mem_free(own.ids);
    return st;
}

/* *done: the turn begins behind the tokens that there are. */
static enum status set_turn(const struct row_masking *r, const struct buf *text,
                            struct chat_span turn, bool *done, struct errtext *err)
{
    size_t begin, end;
    bool across;
    if (turn.begin >= turn.end)
        return STATUS_OK;
    enum status st = tokens_before(r, text, turn.begin, &begin, &across, err);
    *done = !st && begin >= r->n;
    if (st || *done)
        return st;
    st = tokens_before(r, text, turn.end, &end, &across, err);
    if (!st)
        set(r, begin, end + (across ? 1 : 0));
    return st;
}

static const json_t *message_of(const json_t *row, size_t m)
{
    return json_array_get(json_object_get(row, "messages"), m);
}

static bool is_assistant(const json_t *row, size_t m)
{
    const char *role = json_string_value(json_object_get(message_of(row, m), "role"));
    return role && strcmp(role, "assistant") == 0;
}

/* An assistant's that does not have the weight 0, and where only completions are learned, the last
 * one of the assistant's. */
static bool is_learned(const struct row_masking *r, const json_t *row, size_t m, size_t last)
{
    const json_t *weight = json_object_get(message_of(row, m), "weight");
    return is_assistant(row, m) && (r->mask == ROW_MASK_ASSISTANT || m == last) &&
           !(json_is_integer(weight) && json_integer_value(weight) == 0);
}

static size_t last_assistant(const json_t *row)
{
    size_t m = json_array_size(json_object_get(row, "messages"));
    while (m-- > 0) {
        if (is_assistant(row, m))
            return m;
    }
    return SIZE_MAX;
}

/* The template's own marks: one for each of the assistant's messages, in order. */
static enum status mask_marked(const struct row_masking *r, const struct row_chat *c,
                               struct errtext *err)
{
    struct chat_spans *marks = mem_alloc(sizeof(*marks));
    struct buf text;
    size_t k = 0, n = 0, last = last_assistant(c->row);
    bool done = false;
    buf_init(&text, CHAT_TEXT_BYTES_MAX);
    enum status st = row_chat_render(c, r->form, &text, marks, err);
    size_t messages = json_array_size(c->messages);
    for (size_t m = 0; m < messages; m++)
        n += is_assistant(c->row, m);
    if (!st && n != marks->n)
        st = err_set(err, STATUS_UNSUPPORTED,
                     "the chat template marks %zu generations of %zu messages of the assistant, "
                     "expected one for each",
                     marks->n, n);
    for (size_t m = 0; m < messages && !st && !done; m++) {
        if (!is_assistant(c->row, m))
            continue;
        const struct chat_span turn = marks->at[k++];
        if (is_learned(r, c->row, m, last))
            st = set_turn(r, &text, turn, &done, err);
    }
    buf_fini(&text);
    mem_free(marks);
    return st;
}

static enum status mask_turns(const struct row_masking *r, const struct row_chat *c,
                              struct errtext *err)
{
    struct buf text;
    size_t messages = json_array_size(c->messages), last = last_assistant(c->row);
    bool done = false;
    buf_init(&text, CHAT_TEXT_BYTES_MAX);
    enum status st = row_chat_render(c, r->form, &text, NULL, err);
    for (size_t m = 0; m < messages && !st && !done; m++) {
        struct chat_span turn;
        if (!is_learned(r, c->row, m, last))
            continue;
        st = chat_turn_find(r->form->chat, c->context, m, &text, &turn, err);
        if (!st)
            st = set_turn(r, &text, turn, &done, err);
    }
    buf_fini(&text);
    return st;
}

enum status row_mask_set(const struct row_masking *r, struct errtext *err)
{
    struct row_chat c;
    if (r->mask != ROW_MASK_ALL && r->kind == ROWS_ROWS)
        return mask_prompt(r, err);
    if (r->mask == ROW_MASK_ALL || r->kind != ROWS_CHATS) {
        set(r, 0, r->n);
        return STATUS_OK;
    }
    enum status st = row_chat_open(&c, r->form, r->row, r->len, err);
    if (st)
        return st;
    st = chat_template_has_marks(r->form->chat) ? mask_marked(r, &c, err) : mask_turns(r, &c, err);
    row_chat_close(&c);
    return st;
}
