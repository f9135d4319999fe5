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
    if (!st && (!begins_with(text, &start) || start.len < out->begin))
        st = differs(m, text, &start, err);
    out->end = start.len;
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
