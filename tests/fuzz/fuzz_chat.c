/* A chat template, then (after the first zero byte) a JSON context: it renders or it is refused
 * with a sentence, inside its budgets; its turns stand inside of the text. */
#include "server/base/check.h"
#include "server/text/chat.h"
#include "server/text/shape.h"
#include "server/text/turns.h"

#include <jansson.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char usual[] =
    "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":"
    "null,\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,true]}}}]}],"
    "\"tools\":[{\"type\":\"function\"}],\"add_generation_prompt\":true,\"bos_token\":\"<s>\"}";

/* Of what renders at little cost: turns lie inside of the text, and the context is as it was. */
static void find_turns(const struct chat_template *t, json_t *context)
{
    uint64_t work = 500000;
    struct buf text;
    struct errtext err = ERRTEXT_INIT;
    json_t *messages = json_object_get(context, "messages");
    size_t n = json_is_array(messages) ? json_array_size(messages) : 0;
    buf_init(&text, 1 << 16);
    json_object_set_new(context, "add_generation_prompt", json_false());
    json_t *before = json_deep_copy(context);
    bool good = n > 0 && !chat_template_try(t, context, &work, &text, &err);
    for (size_t m = 0; m < n && m < 3 && good; m++) {
        struct chat_span turn;
        struct errtext why = ERRTEXT_INIT;
        if (!chat_turn_find(t, context, m, &text, &turn, &why))
            CHECK(turn.begin <= turn.end && turn.end <= text.len);
    }
    CHECK(!good || json_equal(before, context));
    json_decref(before);
    buf_fini(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct errtext err = ERRTEXT_INIT;
    struct chat_template *t = NULL;
    const char *text = (const char *)data;
    size_t len = strnlen(text, size);
    json_error_t why;
    json_t *context = NULL;
    if (len < size)
        context = json_loadb(text + len + 1, size - len - 1, JSON_ALLOW_NUL, &why);
    if (!context)
        context = json_loads(usual, 0, &why);
    CHECK(context != NULL);
    enum status st = chat_template_parse(&t, text, len, &err);
    if (!st) {
        struct buf out;
        buf_init(&out, 1 << 20);
        st = chat_template_render(t, context, &out, &err);
        CHECK(st != STATUS_OK || !out.failed);
        buf_fini(&out);
        if (!st)
            find_turns(t, context);
    }
    chat_template_free(t);
    json_decref(context);
    return 0;
}
