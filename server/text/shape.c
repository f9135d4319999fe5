/* A template is asked, once, by rendering: a short conversation with words that occur nowhere else
 * is given in one form and in the other, and the form whose words come out whole wins. A form that
 * raises, loses its words, or shows Python's own spelling of a value (None, {'key': ...}, or JSON
 * quoted into JSON) is not what the template was written for. Where both forms work the one of the
 * reference is taken: objects, strings, none. Conversations come in variants, with a tool list and
 * without, ending at the tool's answer or going on, because templates raise on what they do not
 * expect; the first variant that says something decides. */
#include "server/text/shape.h"
#include "server/base/check.h"

#include <string.h>

#define PROBE_WORK_MAX  200000u /* a render */
#define PROBES_WORK_MAX 400000u /* all of a template's: eight times what published ones take */
#define PROBE_BYTES_MAX ((size_t)256 << 10)

#define KEY       "zprobekey"
#define VALUE     "zprobevalue"
#define QUESTION  "zprobequestion"
#define FUNCTION  "zprobefunction"
#define JSON_TEXT "{\"" KEY "\": \"" VALUE "\"}"
#define QUOTED    "\"{\\\"" KEY "\\\": \\\"" VALUE "\\\"}\"" /* the same as a JSON string */

struct probe {
    const struct chat_template *t;
    uint64_t work_left;
};

struct variant {
    bool tools, goes_on;
};

static const struct variant variants[] = {
    {false, false}, {false, true}, {true, false}, {true, true}};

/* Each form is a complete "content" member, or none. */
static const char *const null_member[] = {[CHAT_NULL_NONE] = "\"content\": null,",
                                          [CHAT_NULL_EMPTY] = "\"content\": \"\",",
                                          [CHAT_NULL_ABSENT] = ""};
static const char *const null_part_member[] = {[CHAT_NULL_NONE] = "\"content\": null,",
                                               [CHAT_NULL_EMPTY] = "\"content\": [],",
                                               [CHAT_NULL_ABSENT] = ""};

static void put_content(struct buf *b, const char *text, bool parts)
{
    if (parts)
        buf_printf(b, "\"content\": [{\"type\": \"text\", \"text\": \"%s\"}]", text);
    else
        buf_printf(b, "\"content\": \"%s\"", text);
}

static void put_message(struct buf *b, const char *role, const char *text, bool parts)
{
    buf_printf(b, "{\"role\": \"%s\", ", role);
    put_content(b, text, parts);
    buf_puts(b, "}");
}

/* The text of a context is finished and rendered; true when the template took it. */
static bool render(struct probe *p, struct buf *context, const struct variant *v, struct buf *out)
{
    struct errtext why = ERRTEXT_INIT;
    buf_puts(context, "], \"documents\": null, \"add_generation_prompt\": false, \"tools\": ");
    buf_puts(context, v->tools ? "[{\"type\": \"function\", \"function\": {\"name\": \"" FUNCTION
                                 "\", \"description\": \"d\", \"parameters\": {\"type\": "
                                 "\"object\", \"properties\": {}}}}]"
                               : "null");
    static const char *const specials[] = {"bos", "eos", "unk", "pad"};
    for (size_t i = 0; i < ARRAY_COUNT(specials); i++)
        buf_printf(context, ", \"%s_token\": \"<%s>\"", specials[i], specials[i]);
    buf_puts(context, "}");
    json_t *root = context->failed ? NULL : json_loadb(context->data, context->len, 0, NULL);
    buf_init(out, PROBE_BYTES_MAX);
    uint64_t given = MIN(p->work_left, PROBE_WORK_MAX), left = given;
    bool ok = root && !chat_template_try(p->t, root, &left, out, &why);
    p->work_left -= given - left;
    buf_putc(out, '\0');
    json_decref(root);
    buf_fini(context);
    return ok && !out->failed;
}

static void begin(struct buf *context)
{
    buf_init(context, PROBE_BYTES_MAX);
    buf_puts(context, "{\"messages\": [");
}

/* A question, a call whose content member and arguments are given as JSON, the tool's answer. */
static bool render_call(struct probe *p, const struct variant *v, bool parts, const char *content,
                        const char *arguments, struct buf *out)
{
    struct buf context;
    begin(&context);
    put_message(&context, "user", QUESTION, parts);
    buf_printf(&context,
               ", {\"role\": \"assistant\", %s \"tool_calls\": [{\"id\": \"zprobe001\", \"type\": "
               "\"function\", \"function\": {\"name\": \"" FUNCTION "\", \"arguments\": %s}}]}, ",
               content, arguments);
    buf_puts(&context,
             "{\"role\": \"tool\", \"tool_call_id\": \"zprobe001\", \"name\": \"" FUNCTION "\", ");
    put_content(&context, "answer", parts);
    buf_puts(&context, "}");
    if (v->goes_on) {
        buf_puts(&context, ", ");
        put_message(&context, "assistant", "so it is", parts);
        buf_puts(&context, ", ");
        put_message(&context, "user", "thanks", parts);
    }
    return render(p, &context, v, out);
}

static bool render_plain(struct probe *p, bool parts, const char *content, struct buf *out)
{
    static const struct variant plain = {false, true};
    struct buf context;
    begin(&context);
    put_message(&context, "user", QUESTION, parts);
    if (content) {
        buf_printf(&context, ", {%s \"role\": \"assistant\"}, ", content);
        put_message(&context, "user", "thanks", parts);
    }
    return render(p, &context, &plain, out);
}

static bool shows_object(const char *s)
{
    return strstr(s, KEY) && strstr(s, VALUE) && !strstr(s, "'" KEY "'") && !strstr(s, "\\\"" KEY);
}

static uint32_t count_none(const char *s)
{
    uint32_t n = 0;
    for (; (s = strstr(s, "None")); s += 4)
        n++;
    return n;
}

static bool probe_parts(struct probe *p)
{
    struct buf text, list;
    bool as_text = render_plain(p, false, NULL, &text) && strstr(text.data, QUESTION);
    bool as_list = !as_text && render_plain(p, true, NULL, &list) && strstr(list.data, QUESTION) &&
                   !strstr(list.data, "'" QUESTION "'");
    if (!as_text)
        buf_fini(&list);
    buf_fini(&text);
    return as_list;
}

/* Which variant decided, or NULL: the template shows calls in none of them. */
static const struct variant *probe_arguments(struct probe *p, struct chat_shape *shape)
{
    const char *const *member = shape->content_parts ? null_part_member : null_member;
    for (size_t i = 0; i < ARRAY_COUNT(variants) * ARRAY_COUNT(null_member); i++) {
        const struct variant *v = &variants[i % ARRAY_COUNT(variants)];
        const char *content = member[i / ARRAY_COUNT(variants)];
        struct buf object, text;
        bool as_object = render_call(p, v, shape->content_parts, content, JSON_TEXT, &object) &&
                         shows_object(object.data);
        bool as_text = render_call(p, v, shape->content_parts, content, QUOTED, &text) &&
                       strstr(text.data, JSON_TEXT);
        buf_fini(&object);
        buf_fini(&text);
        if (as_object || as_text) {
            shape->arguments_text = !as_object;
            return v;
        }
    }
    return NULL;
}

/* One conversation with a call (or none) whose assistant has the given content member. */
static bool render_null(struct probe *p, const struct chat_shape *shape, const struct variant *call,
                        const char *content, struct buf *out)
{
    return call ? render_call(p, call, shape->content_parts, content,
                              shape->arguments_text ? QUOTED : JSON_TEXT, out)
                : render_plain(p, shape->content_parts, content, out);
}

/* The first form of null that is taken, keeps the call, and shows "None" no more often than a
 * message with content does. */
static enum chat_null probe_null(struct probe *p, const struct chat_shape *shape,
                                 const struct variant *call)
{
    const char *const *member = shape->content_parts ? null_part_member : null_member;
    struct buf out, content;
    buf_init(&content, PROBE_BYTES_MAX);
    put_content(&content, "so it is", shape->content_parts);
    buf_puts(&content, ",");
    uint32_t base = render_null(p, shape, call, content.data, &out) ? count_none(out.data) : 0;
    buf_fini(&content);
    buf_fini(&out);
    for (int i = 0; i < (int)ARRAY_COUNT(null_member); i++) {
        bool ok = render_null(p, shape, call, member[i], &out) && count_none(out.data) <= base;
        ok = ok && (!call || (strstr(out.data, KEY) && strstr(out.data, VALUE)));
        buf_fini(&out);
        if (ok)
            return (enum chat_null)i;
    }
    return CHAT_NULL_NONE;
}

struct chat_shape chat_shape_probe(const struct chat_template *t)
{
    struct probe p = {.t = t, .work_left = PROBES_WORK_MAX};
    struct chat_shape shape = {.content_parts = probe_parts(&p)};
    const struct variant *call = probe_arguments(&p, &shape);
    shape.null_plain = probe_null(&p, &shape, NULL);
    shape.null_call = call ? probe_null(&p, &shape, call) : shape.null_plain;
    return shape;
}
