/* One answer, sent whole and streamed in random pieces, says the same: text, log-probabilities,
 * offsets, ids, ends. 1 000 random answers of two tokenizers, byte-level and byte fallback, with
 * stop strings, special tokens, echo and several choices; their texts are also those of the
 * whole-text decoder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "server/http/reply.h"
#include "server/http/state.h"
#include "server/text/utf8.h"
#include "tests/unit/http_double.h"
#include "tests/unit/text_fixture.h"

#define ANSWERS    1000
#define TOKENS_MAX 40

struct answer {
    struct generation g;
    struct exchange x;
    struct request_stop stop[2];
    bool chat;
};

static struct http_server server;
static struct recorder recorder;
static struct model byte_level, fallback;
static uint64_t rng = 20261130;

static uint32_t draw(uint32_t below)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((rng >> 33) % below);
}

static void load_fallback(void)
{
    struct errtext err = ERRTEXT_INIT;
    struct buf vocab;
    buf_init(&vocab, 1u << 16);
    buf_puts(&vocab, "{\"vocab\":{");
    for (int i = 0; i < 256; i++)
        buf_printf(&vocab, "\"<0x%02X>\":%d,", i, i);
    for (int i = 0; i < 26; i++)
        buf_printf(&vocab, "\"%s%c\":%d,", i % 3 ? "" : "\xE2\x96\x81", 'a' + i, 256 + i);
    buf_puts(&vocab, "\"\xC3\xA9\":282},\"merges\":[]}");
    struct tiny_parts parts = {
        .model = vocab.data,
        .added = "[{\"id\":283,\"content\":\"<s>\",\"special\":true},{\"id\":284,\"content\":"
                 "\"</s>\",\"special\":true}]",
        .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{"
                   "\"String\":\"\xE2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{"
                   "\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,"
                   "\"stop\":0}]}"};
    if (tiny_load(&parts, &fallback.tokenizer, &err))
        fail_msg("%s", err.text);
    buf_fini(&vocab);
    fallback.config.n_vocab = tokenizer_vocab_size(fallback.tokenizer);
    fallback.config.eos_count = 1;
    fallback.config.eos_id[0] = 284;
}

/* Ids that meet in characters often, in bad bytes often, in special tokens now and then. */
static int32_t draw_id(const struct model *m)
{
    static const uint8_t fox[] = {0xF0, 0x9F, 0xA6, 0x8A, 0xC3, 0xA9};
    static int32_t bytes[6];
    if (m == &fallback) {
        uint32_t kind = draw(10);
        return kind < 5   ? fox[draw(6)]
               : kind < 9 ? 256 + (int32_t)draw(27)
                          : 283 + (int32_t)draw(2);
    }
    if (!bytes[5]) {
        struct token_list ids = {0};
        assert_int_equal(
            tokenizer_encode(m->tokenizer, "\xF0\x9F\xA6\x8A\xC3\xA9", 6, 0, &ids, NULL),
            STATUS_OK);
        for (size_t i = 0; i < 6; i++)
            bytes[i] = ids.ids[i % ids.n];
        mem_free(ids.ids);
    }
    static const char zero[1]; /* jansson takes no NUL in a key */
    uint32_t kind = draw(12), any = draw(m->config.n_vocab);
    size_t len = 0;
    const char *text = tokenizer_token_bytes(m->tokenizer, (int32_t)any, &len);
    if (kind < 5 || (text && memmem(text, len, zero, 1)))
        return bytes[draw(6)];
    return kind < 11 ? (int32_t)any : m->config.eos_id[0];
}

static void fill_logprobs(struct sample_out *top, float *logprob, int32_t id)
{
    *logprob = -0.125f * (float)draw(64);
    top->id = id;
    for (int32_t k = 0; k < SAMPLE_TOP_MAX; k++) {
        top->top_id[k] = 40 + k;
        top->top_logprob[k] = *logprob - 0.25f * (float)k;
    }
}

/* A piece of the text that the choice would have: the likeliest way to a stop. */
static void draw_stop(struct request_stop *s, const struct model *m, const int32_t *ids,
                      const struct request_params *p)
{
    struct buf text;
    buf_init(&text, 1u << 16);
    assert_int_equal(tokenizer_decode(m->tokenizer, ids, TOKENS_MAX, !p->show_special, &text, NULL),
                     STATUS_OK);
    size_t from = text.len ? draw((uint32_t)text.len) : 0, to;
    while (from > 0 && ((unsigned char)text.data[from] & 0xC0) == 0x80)
        from--;
    for (to = from + 1 + draw(6); to < text.len && ((unsigned char)text.data[to] & 0xC0) == 0x80;)
        to++;
    to = MIN(to, text.len);
    s->len = to > from ? (uint32_t)(to - from) : 1;
    memcpy(s->text, to > from ? text.data + from : "x", s->len);
    buf_fini(&text);
}

/* What the engine does with the tokens one after the other; returns how many there are. */
static uint32_t run_engine(const struct model *m, const struct request_params *p,
                           struct request_seq *s)
{
    struct stop_search search;
    struct buf text;
    uint32_t n = 0;
    enum finish_reason why = FINISH_NONE;
    buf_init(&text, 1u << 16);
    stop_search_init(&search, m->tokenizer, p->show_special);
    while (why == FINISH_NONE) {
        struct stop_hit hit;
        int32_t id = s->out_id[n++];
        if (id == m->config.eos_id[0] && !p->ignore_eos) {
            why = FINISH_STOP;
            s->stop_token = id;
        } else if (p->stop_count &&
                   stop_search_feed(&search, p, id, n > p->min_tokens, &text, &hit)) {
            why = FINISH_STOP;
            s->stop_index = (int32_t)hit.index;
            s->cut_byte = (uint32_t)hit.begin;
        } else if (n == p->max_tokens) {
            why = FINISH_LENGTH;
        }
    }
    buf_fini(&text);
    atomic_store(&s->end_tokens, n);
    atomic_store(&s->n_out, n);
    atomic_store(&s->finish, why);
    return n;
}

static void draw_params(struct answer *a, struct request *r)
{
    struct request_params *p = &r->params;
    struct gen_spec *spec = &a->g.spec;
    spec->chat = draw(2);
    spec->return_token_ids = draw(2);
    spec->tokens_as_ids = draw(4) == 0;
    spec->include_stop = draw(2);
    spec->prompt_logprobs = -1;
    spec->echo = !spec->chat && draw(2);
    snprintf(spec->model, sizeof(spec->model), "m");
    p->show_special = draw(2);
    p->ignore_eos = draw(2);
    p->logprobs = draw(3) > 0;
    p->top_count = draw(3);
    p->min_tokens = draw(3) == 0 ? draw(8) : 0;
    p->prompt_top_count = spec->echo && p->logprobs ? (int32_t)p->top_count : -1;
}

static void make_prompt(struct answer *a, const struct model *m, struct request *r)
{
    struct request_prompt *prompt = &r->prompt[0];
    struct buf text;
    buf_init(&text, 1u << 16);
    prompt->n_ids = 1 + draw(12);
    prompt->ids = mem_array(prompt->n_ids, sizeof(int32_t));
    prompt->logprob = mem_array(prompt->n_ids, sizeof(float));
    prompt->top = mem_array(prompt->n_ids, sizeof(*prompt->top));
    for (uint32_t i = 0; i < prompt->n_ids; i++) {
        prompt->ids[i] = draw_id(m);
        fill_logprobs(&prompt->top[i], &prompt->logprob[i], prompt->ids[i]);
    }
    if (!a->g.spec.echo)
        return;
    assert_int_equal(tokenizer_decode(m->tokenizer, prompt->ids, prompt->n_ids,
                                      !r->params.show_special, &text, NULL),
                     STATUS_OK);
    a->g.spec.echo_text = mem_array(1, sizeof(struct gen_text));
    a->g.spec.echo_count = 1;
    buf_puts(&text, "");
    a->g.spec.echo_text[0].data = buf_steal(&text, &a->g.spec.echo_text[0].len);
}

static void make_answer(struct answer *a, const struct model *m)
{
    uint32_t n = 1 + draw(3);
    *a = (struct answer){0};
    struct request *r = request_create(1, n, TOKENS_MAX, true);
    assert_non_null(r);
    draw_params(a, r);
    make_prompt(a, m, r);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t t = 0; t < TOKENS_MAX; t++) {
            r->seq[i].out_id[t] = draw_id(m);
            fill_logprobs(&r->seq[i].out_top[t], &r->seq[i].out_logprob[t], r->seq[i].out_id[t]);
        }
    }
    r->params.stop_count = draw(3);
    r->params.stop = mem_array(2, sizeof(struct request_stop));
    for (uint32_t k = 0; k < r->params.stop_count; k++)
        draw_stop(&r->params.stop[k], m, r->seq[draw(n)].out_id, &r->params);
    for (uint32_t i = 0; i < n; i++)
        (void)run_engine(m, &r->params, &r->seq[i]);
    r->receipt.recorded = true;
    a->g.req = r;
    a->g.server = &server;
    a->g.x = &a->x;
    a->g.rules = (struct textout_rules){
        .model = m, .params = &r->params, .include_stop = a->g.spec.include_stop};
}

static void open_choices(struct answer *a)
{
    a->g.choice_count = a->g.req->seq_count;
    a->g.choice = mem_array(a->g.choice_count, sizeof(*a->g.choice));
    a->g.begun_count = a->g.finished_count = 0;
    for (uint32_t i = 0; i < a->g.choice_count; i++) {
        textout_init(&a->g.choice[i].text, &a->g.rules);
        buf_init(&a->g.choice[i].ready, TEXTOUT_BYTES_MAX);
        buf_init(&a->g.choice[i].offsets, TEXTOUT_BYTES_MAX);
    }
}

static void close_choices(struct answer *a)
{
    for (uint32_t i = 0; i < a->g.choice_count; i++) {
        textout_fini(&a->g.choice[i].text);
        buf_fini(&a->g.choice[i].ready);
        buf_fini(&a->g.choice[i].offsets);
    }
    mem_free(a->g.choice);
}

static json_t *read_json(const char *text, size_t len)
{
    json_error_t why;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (!root)
        fail_msg("%s in %.*s", why.text, (int)len, text);
    return root;
}

/* ---- whole and streamed, brought to one shape: {choice: {field: value}} ---- */

static void add_list(json_t *to, const char *key, const json_t *list)
{
    if (!json_object_get(to, key))
        json_object_set_new(to, key, json_array());
    if (json_is_array(list))
        json_array_extend(json_object_get(to, key), (json_t *)(uintptr_t)list);
}

static void add_text(json_t *to, const json_t *part)
{
    struct buf all;
    const json_t *before = json_object_get(to, "text");
    buf_init(&all, 1u << 20);
    buf_put(&all, json_string_value(before), json_string_length(before));
    buf_put(&all, json_string_value(part), json_string_length(part));
    json_object_set_new(to, "text", json_stringn(all.data ? all.data : "", all.len));
    buf_fini(&all);
}

static void add_choice(json_t *all, const json_t *root, const json_t *choice, bool chat)
{
    static const char *const lists[] = {"tokens", "token_logprobs", "top_logprobs", "text_offset",
                                        "content"};
    char name[8];
    snprintf(name, sizeof(name), "%d", (int)json_integer_value(json_object_get(choice, "index")));
    if (!json_object_get(all, name))
        json_object_set_new(all, name, json_object());
    json_t *to = json_object_get(all, name);
    const json_t *message =
        json_object_get(choice, json_object_get(choice, "delta") ? "delta" : "message");
    add_text(to, chat ? json_object_get(message, "content") : json_object_get(choice, "text"));
    const json_t *logprobs = json_object_get(choice, "logprobs");
    for (size_t i = 0; i < ARRAY_COUNT(lists); i++)
        add_list(to, lists[i], json_object_get(logprobs, lists[i]));
    add_list(to, "token_ids", json_object_get(choice, "token_ids"));
    add_list(to, "prompt_token_ids", json_object_get(chat ? root : choice, "prompt_token_ids"));
    if (json_is_string(json_object_get(choice, "finish_reason"))) {
        json_object_set(to, "finish_reason", json_object_get(choice, "finish_reason"));
        json_object_set(to, "stop_reason", json_object_get(choice, "stop_reason"));
    }
}

static void add_root(json_t *all, const json_t *root, bool chat)
{
    size_t i;
    json_t *choice;
    json_array_foreach(json_object_get(root, "choices"), i, choice)
        add_choice(all, root, choice, chat);
}

static json_t *whole(struct answer *a)
{
    json_t *all = json_object();
    struct buf out;
    buf_init(&out, 1u << 24);
    open_choices(a);
    reply_put_completion(&out, &a->g);
    json_t *root = read_json(out.data, out.len);
    add_root(all, root, a->g.spec.chat);
    json_decref(root);
    close_choices(a);
    buf_fini(&out);
    return all;
}

/* The engine's memory as it was when it had given `n` tokens of each choice. */
static bool rewind_to(struct request *r, const uint32_t *total, const uint32_t *finish,
                      const uint32_t *n)
{
    bool all = true;
    for (uint32_t i = 0; i < r->seq_count; i++) {
        bool ended = n[i] == total[i];
        atomic_store(&r->seq[i].end_tokens, ended ? total[i] : 0);
        atomic_store(&r->seq[i].n_out, n[i]);
        /* the last token is seen before the end is, now and then */
        bool told = ended && draw(2);
        atomic_store(&r->seq[i].finish, told ? finish[i] : FINISH_NONE);
        all = all && told;
    }
    atomic_store(&r->done, all);
    return all;
}

static json_t *streamed(struct answer *a)
{
    struct request *r = a->g.req;
    uint32_t total[4], finish[4], n[4] = {0};
    json_t *all = json_object();
    struct buf out;
    buf_init(&out, 1u << 24);
    open_choices(a);
    for (uint32_t i = 0; i < r->seq_count; i++) {
        total[i] = atomic_load(&r->seq[i].n_out);
        finish[i] = atomic_load(&r->seq[i].finish);
    }
    a->g.spec.stream = true;
    for (bool over = false; !over;) {
        for (uint32_t i = 0; i < r->seq_count; i++) {
            uint32_t more = draw(3);
            n[i] = MIN(total[i], n[i] + more);
        }
        over = rewind_to(r, total, finish, n);
        assert_int_equal(sse_fill(&a->g, &out), over);
    }
    char *at = out.data;
    for (char *end; (end = strstr(at, "\n\n")); at = end + 2) {
        assert_memory_equal(at, "data: ", 6);
        if (strncmp(at, "data: [DONE]", 12) == 0)
            continue;
        json_t *root = read_json(at + 6, (size_t)(end - at) - 6);
        assert_null(json_object_get(root, "error"));
        add_root(all, root, a->g.spec.chat);
        json_decref(root);
    }
    close_choices(a);
    buf_fini(&out);
    return all;
}

/* ---- what must hold of the answer itself ---- */

/* The decoder's text of the tokens that show, cut where the stop string is. */
static void check_text(const struct answer *a, const struct request_seq *s, const char *text,
                       size_t len)
{
    const struct request_params *p = &a->g.req->params;
    uint32_t n = s->n_out - (s->stop_token >= 0 && !a->g.spec.include_stop);
    const struct gen_text *echo = a->g.spec.echo ? &a->g.spec.echo_text[0] : NULL;
    struct buf want, answer;
    buf_init(&want, 1u << 16);
    buf_init(&answer, 1u << 16);
    /* as text that continues a prompt: behind a word of its own, which is taken away again */
    int32_t *ids = mem_array(n + 1, sizeof(*ids));
    ids[0] = a->g.rules.model == &fallback ? 257 : tokenizer_token_to_id(byte_level.tokenizer, "b");
    memcpy(ids + 1, s->out_id, n * sizeof(*ids));
    assert_int_equal(
        tokenizer_decode(a->g.rules.model->tokenizer, ids, n + 1, !p->show_special, &answer, NULL),
        STATUS_OK);
    mem_free(ids);
    buf_drop_front(&answer, 1);
    if (s->stop_index >= 0) {
        const struct request_stop *stop = &p->stop[s->stop_index];
        assert_true(s->cut_byte + stop->len <= answer.len);
        assert_memory_equal(answer.data + s->cut_byte, stop->text, stop->len);
        answer.len = s->cut_byte + (a->g.spec.include_stop ? stop->len : 0);
    }
    if (echo)
        buf_put(&want, echo->data, echo->len);
    buf_put(&want, answer.data, answer.len);
    assert_int_equal(len, want.len);
    if (len)
        assert_memory_equal(text, want.data, len);
    buf_fini(&want);
    buf_fini(&answer);
}

static const char *skip_characters(const char *text, size_t len, size_t n)
{
    const char *end = text + len;
    for (size_t step; n > 0 && text < end; n--, text += step)
        utf8_next(text, (size_t)(end - text), &step);
    return text;
}

/* Each token that shows as it is stands at its offset; offsets rise and stay inside. */
static void check_offsets(const struct answer *a, const json_t *choice, const char *text,
                          size_t len)
{
    const json_t *offsets = json_object_get(choice, "text_offset"), *item;
    const json_t *tokens = json_object_get(choice, "tokens");
    json_int_t last = 0;
    size_t i;
    json_array_foreach(offsets, i, item)
    {
        json_int_t at = json_integer_value(item);
        const char *token = json_string_value(json_array_get(tokens, i));
        size_t token_len = json_string_length(json_array_get(tokens, i));
        assert_true(at >= last && (size_t)at <= utf8_count(text, len));
        last = at;
        const char *place = skip_characters(text, len, (size_t)at);
        bool plain = !a->g.spec.tokens_as_ids && !strstr(token, UTF8_REPLACEMENT) &&
                     token[0] != '<' && token[0] != ' ';
        if (plain && place + token_len <= text + len && memcmp(place, token, token_len) != 0)
            fail_msg("'%s' is not at %d of '%.*s'", token, (int)at, (int)len, text);
    }
}

static void check_choice(const struct answer *a, uint32_t idx, const json_t *all)
{
    char name[8];
    snprintf(name, sizeof(name), "%u", idx);
    const json_t *choice = json_object_get(all, name), *text = json_object_get(choice, "text");
    const struct request_seq *s = &a->g.req->seq[idx];
    uint32_t n = s->n_out, n_prompt = a->g.req->prompt[0].n_ids;
    check_text(a, s, json_string_value(text), json_string_length(text));
    check_offsets(a, choice, json_string_value(text), json_string_length(text));
    assert_int_equal(json_array_size(json_object_get(choice, "token_ids")),
                     a->g.spec.return_token_ids ? n : 0);
    assert_int_equal(json_array_size(json_object_get(choice, "prompt_token_ids")),
                     a->g.spec.return_token_ids ? n_prompt : 0);
    if (a->g.req->params.logprobs)
        assert_int_equal(
            json_array_size(json_object_get(choice, a->g.spec.chat ? "content" : "text_offset")),
            n + (a->g.spec.echo ? n_prompt : 0));
}

static void test_streamed_and_whole_say_the_same(void **state)
{
    uint32_t stopped = 0;
    (void)state;
    for (uint32_t i = 0; i < ANSWERS; i++) {
        struct answer a;
        make_answer(&a, i % 2 ? &fallback : &byte_level);
        json_t *one = whole(&a);
        for (uint32_t k = 0; k < a.g.req->seq_count; k++) {
            check_choice(&a, k, one);
            stopped += a.g.req->seq[k].stop_index >= 0;
        }
        json_t *two = streamed(&a);
        if (!json_equal(one, two))
            fail_msg("answer %u:\n%s\n%s", i, json_dumps(one, 0), json_dumps(two, 0));
        json_decref(one);
        json_decref(two);
        gen_spec_fini(&a.g.spec);
        request_discard(a.g.req);
    }
    assert_true(stopped > ANSWERS / 4);
}

/* The bytes of a character stand where it does; those of a bad run are a mark each. */
static void test_bytes_of_a_run_have_their_places(void **state)
{
    static const struct {
        int32_t ids[7];
        uint32_t offset[7];
    } cases[] = {{{257, 0xF0, 0x9F, 0xA6, 0x8A, 257, 257}, {0, 1, 1, 1, 1, 2, 3}},
                 {{257, 0xF0, 0x9F, 0xA6, 0x8A, 0xC3, 257}, {0, 1, 2, 3, 4, 5, 6}},
                 {{257, 0xC3, 0xA9, 283, 0xA9, 257, 257}, {0, 1, 2, 3, 3, 4, 5}},
                 {{0xC3, 283, 0xA9, 257, 0xC3, 257, 0xC3}, {0, 0, 0, 1, 2, 3, 4}}};
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct request_params params = {0};
        struct textout_rules rules = {.model = &fallback, .params = &params};
        struct request_seq s = {.stop_token = -1, .stop_index = -1};
        struct textout t;
        struct buf out, offsets;
        s.out_id = (int32_t *)(uintptr_t)cases[i].ids;
        buf_init(&out, 1024);
        buf_init(&offsets, 1024);
        textout_init(&t, &rules);
        for (uint32_t n = 1; n <= 7; n++) {
            atomic_store(&s.end_tokens, n == 7 ? 7 : 0);
            atomic_store(&s.n_out, n);
            textout_pull(&t, &rules, &s, &out, &offsets);
        }
        assert_int_equal(offsets.len, sizeof(cases[i].offset));
        assert_memory_equal(offsets.data, cases[i].offset, offsets.len);
        textout_fini(&t);
        buf_fini(&out);
        buf_fini(&offsets);
    }
}

static int setup(void **state)
{
    (void)state;
    world_model(&byte_level);
    load_fallback();
    server.deps.recorder = &recorder;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tokenizer_free(byte_level.tokenizer);
    chat_template_free(byte_level.chat);
    mem_free(byte_level.chat_text);
    tokenizer_free(fallback.tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_streamed_and_whole_say_the_same),
                                       cmocka_unit_test(test_bytes_of_a_run_have_their_places)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
