/* What the tests of server/influence share: adapters, finished requests made by hand, folders. */
#ifndef RS_TESTS_INFLUENCE_FIXTURE_H
#define RS_TESTS_INFLUENCE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/base/check.h"
#include "server/base/clock.h"
#include "server/base/file.h"
#include "server/base/hex.h"
#include "server/base/log.h"
#include "server/base/mem.h"
#include "server/record/build.h"

static char test_dir[64];

static inline int make_dir(void **state)
{
    (void)state;
    log_set_level(LOG_LEVEL_ERROR);
    snprintf(test_dir, sizeof(test_dir), "/tmp/rs-infl-XXXXXX");
    return sodium_init() >= 0 && mkdtemp(test_dir) ? 0 : -1;
}

static inline int drop_dir(void **state)
{
    (void)state;
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", test_dir);
    return system(cmd);
}

/* An adapter: its id is 32 times `byte`. Its name begins with "free" (not registered), else its
 * terms are make_terms'. */
static inline struct adapter_entry *make_adapter(const char *name, uint8_t byte, bool datanet)
{
    struct adapter_entry *e = catalog_entry_new();
    snprintf(e->name, sizeof(e->name), "%s", name);
    memset(e->id, byte, 32);
    e->dir = mem_strdup(datanet ? "/datanet" : "/nowhere");
    return e;
}

/* Prices 1000 and 2000 base units per 1000 tokens; with a datanet three owners of 1, 2 and 3
 * documents. */
static inline struct terms *make_terms(const struct adapter_entry *e)
{
    if (strncmp(e->name, "free", 4) == 0)
        return NULL;
    struct terms *t = terms_new();
    t->r = (struct registry_terms){.registered = true, .price_in = 1000, .price_out = 2000};
    if (strcmp(e->dir, "/datanet") != 0)
        return t;
    struct contributors *c = mem_alloc(sizeof(*c));
    atomic_init(&c->refs, 1);
    memset(t->r.datanet_id, 0xa0, 32);
    memset(t->document_root, 0xd0 | (e->id[0] & 15), 32);
    c->count = 3;
    for (uint32_t i = 0; i < 3; i++) {
        memset(c->item[i].payee, 0x10 * (int)(i + 1), 20);
        c->item[i].document_count = i + 1;
    }
    t->contributors = c;
    return t;
}

/* A finished request of `count` adapters (references are taken), one prompt of 5 tokens, n choices
 * of n_out tokens, each token at -1 nat under the set. */
static inline struct request *make_request(struct adapter_entry *const *entry, uint32_t count,
                                           uint32_t n, uint32_t n_out)
{
    struct request *r = request_create(1, n, n_out ? n_out : 1, false);
    assert_non_null(r);
    randombytes_buf(r->id, 32);
    hex_encode(r->id_hex, r->id, 32);
    r->comp.n = count;
    for (uint32_t i = 0; i < count; i++) {
        r->entry[i] = entry[i];
        atomic_fetch_add(&entry[i]->refs, 1);
        r->terms[i] = make_terms(entry[i]);
        memcpy(r->comp.part[i].adapter, entry[i]->id, 32);
        r->comp.part[i].weight_q16 = COMPOSITION_WEIGHT_ONE * (int32_t)(i + 1);
    }
    assert_int_equal(composition_seal(&r->comp, NULL), STATUS_OK);
    r->params = (struct request_params){.temperature = 1,
                                        .top_p = 1,
                                        .repetition = 1,
                                        .n = n,
                                        .max_tokens = n_out ? n_out : 1,
                                        .top_k = -1,
                                        .prompt_top_count = -1,
                                        .fair_key = 77};
    r->prompt[0].n_ids = 5;
    r->prompt[0].ids = mem_array(5, sizeof(int32_t));
    for (int32_t i = 0; i < 5; i++)
        r->prompt[0].ids[i] = 100 + i;
    for (uint32_t s = 0; s < n; s++) {
        for (uint32_t t = 0; t < n_out; t++) {
            r->seq[s].out_id[t] = (int32_t)(200 + 10 * s + t);
            r->seq[s].out_logprob[t] = -1;
        }
        atomic_store(&r->seq[s].n_out, n_out);
        atomic_store(&r->seq[s].finish, FINISH_LENGTH);
        r->seq[s].stop_token = r->seq[s].stop_index = -1;
    }
    r->base_tariff = (struct tariff){10, 20};
    memset(r->payer, 0x5a, 20);
    memset(r->params.cache_salt, 0x3c, sizeof(r->params.cache_salt));
    r->arrive_wall_ms = clock_wall_ms();
    r->finish_wall_ms = r->arrive_wall_ms + 7;
    return r;
}

/* Both references of a request that never entered a chain. */
static inline void drop_request(struct request *r)
{
    request_release(r);
    request_release(r);
}

#endif
