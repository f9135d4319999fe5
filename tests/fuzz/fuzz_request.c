/* libFuzzer: bodies of completions (first byte even) and chat (odd) through the whole parser, with
 * the demo's tokenizer and template. What is accepted must keep the parser's promises. */
#include "server/http/auth.h"
#include "server/http/request_parse.h"
#include "tests/unit/http_double.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct model model;
    static struct catalog *catalog;
    static struct publisher publisher;
    static uint8_t digest[32];
    if (!catalog) {
        world_model(&model);
        catalog = publisher.catalog = catalog_create(8);
        if (double_register(&publisher, "alpha", 0xA1, false, NULL))
            PANIC("no adapter");
    }
    struct parse_env env = {.model = &model,
                            .catalog = catalog,
                            .model_name = "base",
                            .chat_digest = digest,
                            .n_max = 8,
                            .context_max = 512,
                            .roles = AUTH_ROLES_ALL,
                            .chat = size > 0 && data[0] & 1};
    struct gen_spec spec;
    struct request *r = NULL;
    struct errtext err = ERRTEXT_INIT;
    if (size == 0)
        return 0;
    if (request_parse(&env, (const char *)data + 1, size - 1, &spec, &r, &err)) {
        CHECK(!r && err.text[0]);
        return 0;
    }
    CHECK(r->seq_count == r->prompt_count * r->params.n && r->comp.n <= LORA_PARTS_MAX);
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        CHECK(r->prompt[i].n_ids > 0);
        CHECK(r->prompt[i].n_ids + r->params.max_tokens <= env.context_max);
        for (uint32_t t = 0; t < r->prompt[i].n_ids; t++)
            CHECK(r->prompt[i].ids[t] >= 0 && (uint32_t)r->prompt[i].ids[t] < model.config.n_vocab);
    }
    for (uint32_t i = 0; i < r->comp.n; i++)
        CHECK(r->entry[i] && r->comp.part[i].weight_q16 != 0);
    request_discard(r);
    gen_spec_fini(&spec);
    return 0;
}
