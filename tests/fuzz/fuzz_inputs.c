/* The logged inputs of an attribution come from the server that is audited: whatever the JSON, they
 * are refused with a sentence, or the shares follow, and gains and shares sum to E9. Every root in
 * hex is that of one small index. */
#include "chain_client/cli/attribution_inputs.h"
#include "tests/unit/events_fixture.h"

#include <stdio.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static const struct events *the_index(void)
{
    static struct events *index;
    if (!index) {
        char path[64];
        struct world w;
        struct errtext err = ERRTEXT_INIT;
        snprintf(path, sizeof(path), "/tmp/fuzz-inputs-%ld.events", (long)getpid());
        world_make(&w, 3);
        if (world_build(&w, path, false, &err) || events_open(&index, path, NULL, &err))
            PANIC("%s", err.text);
        unlink(path);
        world_free(&w);
    }
    return index;
}

static enum status find(void *arg, const uint8_t root[32], const struct events **out,
                        struct errtext *err)
{
    (void)arg;
    *out = root[0] ? the_index() : NULL;
    return root[0] ? STATUS_OK : err_set(err, STATUS_NOT_FOUND, "no such index");
}

static void check(const struct gain_result *g, const struct attribution_inputs *x)
{
    uint8_t digest[32], tail[TAIL_INFLUENCE_BYTES_MAX];
    size_t len;
    CHECK(tail_influence_encode(tail, &len, &g->influence, NULL) == STATUS_OK); /* sums are E9 */
    gain_inputs_digest(digest, &x->in, x->salt);
    gain_index_hash(digest, &x->in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct attribution_inputs x = {0};
    struct gain_result g;
    struct errtext err = ERRTEXT_INIT;
    json_t *json = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(json)) {
        enum status st = attribution_inputs_read(&x, json, find, NULL, &err);
        if (!st)
            st = gain_compute(&g, &x.in, &err);
        if (!st) {
            check(&g, &x);
            gain_result_fini(&g);
        } else {
            CHECK(err.text[0]);
        }
        attribution_inputs_fini(&x);
    }
    json_decref(json);
    return 0;
}
