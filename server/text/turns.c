/* See turns.h. What a template refuses is looked for by halves: it is between a part that it takes
 * and a longer one that it does not. */
#include "server/text/turns.h"
#include "server/base/check.h"
#include "server/text/messages.h"
#include "server/text/utf8.h"

#include <string.h>

#define SHOWN 24 /* bytes of a difference */

/* The context's first n messages, with or without what a generation begins behind. */
static enum status render_first(const struct chat_template *t, json_t *context, size_t n,
                                bool generation, struct buf *out, struct errtext *err)
{
    json_t *all = json_incref(json_object_get(context, "messages")), *some = json_array();
    int failed = some ? 0 : 1;
    for (size_t i = 0; i < n && !failed; i++)
        failed = json_array_append(some, json_array_get(all, i));
    failed |= json_object_set_new(context, "messages", some);
    failed |= json_object_set_new(context, "add_generation_prompt", json_boolean(generation));
    enum status st = failed ? err_set(err, STATUS_NO_MEMORY, "no memory for a conversation")
                            : chat_template_render(t, context, out, err);
    failed = json_object_set_new(context, "messages", all);
    failed |= json_object_set_new(context, "add_generation_prompt", json_false());
    return failed && !st ? err_set(err, STATUS_NO_MEMORY, "no memory for a conversation") : st;
}

static bool begins_with(const struct buf *text, const struct buf *start)
{
    return start->len <= text->len && (!start->len || !memcmp(text->data, start->data, start->len));
}

static int shown(const struct buf *text, size_t at)
{
    return text->len ? (int)utf8_valid_prefix(text->data + at, MIN(text->len - at, SHOWN)) : 0;
}

static enum status differs(size_t m, const struct buf *text, const struct buf *start,
                           struct errtext *err)
{
    size_t at = 0;
    while (at < text->len && at < start->len && text->data[at] == start->data[at])
        at++;
    while (at > 0 && at < text->len && ((unsigned char)text->data[at] & 0xc0) == 0x80)
        at--; /* whole characters */
    return err_set(err, STATUS_UNSUPPORTED,
                   "messages[%zu]: the chat template writes it otherwise once messages follow "
                   "(byte %zu: \"%.*s\", alone \"%.*s\"), so its tokens cannot be told from "
                   "others: give it \"weight\": 0, or the base a template with {%% generation %%}",
                   m, at, shown(text, at), text->len ? text->data + at : "", shown(start, at),
                   start->len ? start->data + at : "");
}

/* Where the turn begins: behind the generation prompt where the template writes a turn as it would
 * be generated, else behind the messages before it. */
static enum status find_begin(const struct chat_template *t, json_t *context, size_t m,
                              const struct buf *text, size_t *begin, struct errtext *err)
{
    struct buf start;
    struct errtext why = ERRTEXT_INIT;
    buf_init(&start, text->bytes_max);
    *begin = 0;
    enum status st = render_first(t, context, m, true, &start, &why);
    bool found = !st && begins_with(text, &start);
    if (!found && m > 0) {
        buf_clear(&start);
        st = render_first(t, context, m, false, &start, err);
        found = !st && begins_with(text, &start);
    }
    if (found)
        *begin = start.len;
    else if (m > 0 && !st)
        st = differs(m - 1, text, &start, err);
    else if (m == 0)
        st = STATUS_OK; /* nothing stands before it */
    buf_fini(&start);
    return st;
}

/* ---- a turn that is written otherwise once messages follow ---- */

/* The first n messages, of which the last says `word`; again: one more behind them that does. */
static enum status render_saying(const struct chat_template *t, json_t *context, size_t n,
                                 const char *word, bool again, struct buf *out)
{
    struct errtext why = ERRTEXT_INIT;
    json_t *all = json_incref(json_object_get(context, "messages")), *some = json_array();
    json_t *last = json_copy(json_array_get(all, n - 1));
    json_t *says = json_is_array(json_object_get(last, "content"))
                       ? json_pack("[{s:s, s:s}]", "type", "text", "text", word)
                       : json_string(word);
    int failed = json_object_set_new(last, "content", says);
    for (size_t i = 0; i < n - (again ? 0 : 1); i++)
        failed |= json_array_append(some, json_array_get(all, i));
    failed |= json_array_append_new(some, last);
    failed |= json_object_set_new(context, "messages", some);
    enum status st = failed ? STATUS_NO_MEMORY : chat_template_render(t, context, out, &why);
    failed = json_object_set_new(context, "messages", all);
    return failed ? STATUS_NO_MEMORY : st;
}

/* Where the last of n messages, whose rendering is `text`, says what it says; again: where one
 * more of its role does behind it. Two words that differ at once show it. 0: nowhere. */
static size_t find_content(const struct chat_template *t, json_t *context, size_t n, bool again,
                           const struct buf *text, struct buf *said)
{
    struct buf other;
    size_t at = 0;
    buf_init(&other, text->bytes_max);
    if (!render_saying(t, context, n, "Z", again, said) &&
        !render_saying(t, context, n, "Q", again, &other)) {
        while (at < said->len && at < other.len && said->data[at] == other.data[at])
            at++;
    }
    buf_fini(&other);
    bool there = at > 0 && (again ? at >= text->len : at <= text->len) &&
                 memcmp(said->data, text->data, MIN(at, text->len)) == 0;
    return there ? at : 0;
}

/* The turn ends where the next message begins: before what the template puts before the words of
 * its role, as it does once more behind it. 0: that is not seen. */
static size_t find_next(const struct chat_template *t, json_t *context, size_t n,
                        const struct buf *upto)
{
    struct buf here, behind;
    buf_init(&here, upto->bytes_max);
    buf_init(&behind, upto->bytes_max);
    size_t a = find_content(t, context, n, false, upto, &here), end = 0;
    size_t b = a ? find_content(t, context, n, true, upto, &behind) : 0;
    size_t head = b - (b ? upto->len : 0);
    if (b && head && head <= a && memcmp(upto->data + a - head, behind.data + upto->len, head) == 0)
        end = a - head;
    buf_fini(&here);
    buf_fini(&behind);
    return end;
}

/* Messages are written otherwise behind this one, as where thoughts are dropped once the user goes
 * on. NOT_FOUND: it cannot be seen where it ends. */
static enum status find_end(const struct chat_template *t, json_t *context, size_t m,
                            const struct buf *text, struct chat_span *turn)
{
    struct buf upto;
    struct errtext why = ERRTEXT_INIT;
    buf_init(&upto, text->bytes_max);
    bool ok = !render_first(t, context, m + 2, false, &upto, &why) && begins_with(text, &upto);
    size_t end = ok ? find_next(t, context, m + 2, &upto) : 0;
    buf_fini(&upto);
    if (end < turn->begin || end == 0)
        return STATUS_NOT_FOUND;
    turn->end = end;
    return STATUS_OK;
}

enum status chat_turn_find(const struct chat_template *t, json_t *context, size_t m,
                           const struct buf *text, struct chat_span *out, struct errtext *err)
{
    struct buf start;
    *out = (struct chat_span){0, text->len};
    enum status st = find_begin(t, context, m, text, &out->begin, err);
    if (st || m + 1 == json_array_size(json_object_get(context, "messages")))
        return st;
    buf_init(&start, text->bytes_max);
    st = render_first(t, context, m + 1, false, &start, err);
    out->end = start.len;
    if (!st && (!begins_with(text, &start) || start.len < out->begin) &&
        find_end(t, context, m, text, out))
        st = differs(m, text, &start, err);
    buf_fini(&start);
    return st;
}

size_t chat_turn_refused(const struct chat_template *t, json_t *context)
{
    size_t takes = 0, not = json_array_size(json_object_get(context, "messages"));
    struct buf text;
    struct errtext why = ERRTEXT_INIT;
    buf_init(&text, CHAT_TEXT_BYTES_MAX);
    while (not > takes + 1) {
        size_t n = takes + (not -takes) / 2;
        buf_clear(&text);
        err_clear(&why);
        if (render_first(t, context, n, false, &text, &why))
            not = n;
        else
            takes = n;
    }
    buf_fini(&text);
    return takes;
}
