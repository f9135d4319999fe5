/* The text library behind a pipe, for the Python judges: JSON lines in, JSON lines out.
 *   text_tool tokenizer FILE   {"text": s, "special": bool, "parse": bool} ->
 *                              {"ids": [...], "text": s, "stream": s, "kept": s}
 *                              text is the decode without special tokens, stream the same through
 *                              detok, kept the decode with them
 *   text_tool chat             {"template": s, "context": {...}} -> {"text": s} or {"error": s} */
#include "server/base/errtext.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/text/chat.h"
#include "server/text/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define OUTPUT_BYTES_MAX ((size_t)64 << 20)

static void print_text(const char *key, const struct buf *text)
{
    json_t *s = json_stringn(text->data ? text->data : "", text->len);
    char *dump = json_dumps(s, JSON_ENCODE_ANY);
    printf("\"%s\": %s", key, dump ? dump : "null");
    mem_free(dump);
    json_decref(s);
}

static int print_error(const struct errtext *err)
{
    struct buf text;
    buf_init(&text, sizeof(err->text));
    buf_puts(&text, err->text);
    printf("{");
    print_text("error", &text);
    printf("}\n");
    buf_fini(&text);
    return 0;
}

static void stream_all(const struct tokenizer *t, const struct token_list *ids, struct buf *out)
{
    struct detok d;
    detok_init(&d, t, true);
    for (size_t i = 0; i < ids->n; i++)
        detok_push(&d, ids->ids[i], out);
    detok_finish(&d, out);
}

static void print_ids(const struct tokenizer *t, const struct token_list *ids)
{
    struct errtext err = ERRTEXT_INIT;
    struct buf text, stream, kept;
    buf_init(&text, OUTPUT_BYTES_MAX);
    buf_init(&stream, OUTPUT_BYTES_MAX);
    buf_init(&kept, OUTPUT_BYTES_MAX);
    stream_all(t, ids, &stream);
    if (tokenizer_decode(t, ids->ids, ids->n, true, &text, &err) ||
        tokenizer_decode(t, ids->ids, ids->n, false, &kept, &err)) {
        print_error(&err);
    } else {
        printf("{\"ids\": [");
        for (size_t i = 0; i < ids->n; i++)
            printf(i ? ", %d" : "%d", ids->ids[i]);
        printf("], ");
        print_text("text", &text);
        printf(", ");
        print_text("stream", &stream);
        printf(", ");
        print_text("kept", &kept);
        printf("}\n");
    }
    buf_fini(&text);
    buf_fini(&stream);
    buf_fini(&kept);
}

static void serve_text(const struct tokenizer *t, const json_t *line)
{
    struct errtext err = ERRTEXT_INIT;
    struct token_list ids = {0};
    const json_t *text = json_object_get(line, "text");
    unsigned flags = (json_is_true(json_object_get(line, "special")) ? TOKENIZE_ADD_SPECIAL : 0) |
                     (json_is_true(json_object_get(line, "parse")) ? TOKENIZE_PARSE_SPECIAL : 0);
    if (tokenizer_encode(t, json_string_value(text), json_string_length(text), flags, &ids, &err))
        print_error(&err);
    else
        print_ids(t, &ids);
    mem_free(ids.ids);
}

static void serve_chat(const json_t *line)
{
    struct errtext err = ERRTEXT_INIT;
    struct chat_template *t = NULL;
    struct buf out;
    buf_init(&out, OUTPUT_BYTES_MAX);
    const json_t *text = json_object_get(line, "template");
    if (chat_template_parse(&t, json_string_value(text), json_string_length(text), &err) ||
        chat_template_render(t, json_object_get(line, "context"), &out, &err)) {
        print_error(&err);
    } else {
        printf("{");
        print_text("text", &out);
        printf("}\n");
    }
    chat_template_free(t);
    buf_fini(&out);
}

static int serve(const struct tokenizer *t)
{
    char *line = NULL;
    size_t cap = 0;
    while (getline(&line, &cap, stdin) > 0) {
        json_error_t why;
        json_t *request = json_loads(line, JSON_ALLOW_NUL, &why);
        if (!request) {
            fprintf(stderr, "text_tool: %s\n", why.text);
            return 2;
        }
        if (t)
            serve_text(t, request);
        else
            serve_chat(request);
        fflush(stdout);
        json_decref(request);
    }
    mem_free(line);
    return 0;
}

int main(int argc, char **argv)
{
    struct errtext err = ERRTEXT_INIT;
    if (argc == 2 && strcmp(argv[1], "chat") == 0)
        return serve(NULL);
    if (argc != 3 || strcmp(argv[1], "tokenizer") != 0) {
        fprintf(stderr, "usage: text_tool tokenizer FILE | text_tool chat\n");
        return 2;
    }
    char *json = NULL;
    size_t len = 0;
    struct tokenizer *t = NULL;
    enum status st = file_read(argv[2], TOKENIZER_JSON_BYTES_MAX, &json, &len, &err);
    if (!st)
        st = tokenizer_load(&t, json, len, &err);
    mem_free(json);
    if (st) {
        fprintf(stderr, "text_tool: %s\n", err.text);
        return 1;
    }
    int rc = serve(t);
    tokenizer_free(t);
    return rc;
}
