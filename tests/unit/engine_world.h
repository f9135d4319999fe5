/* A small world for the engine's tests: a random llama-shaped model in memory, random LoRA
 * adapters, a store whose loader is a script (how many polls a load takes, whether it fails,
 * whether it is stuck), and requests made by hand. The engine is stepped by the test, so every run
 * is repeatable. The store's double counts pins: world_close fails on any that is left. */
#ifndef RS_TESTS_UNIT_ENGINE_WORLD_H
#define RS_TESTS_UNIT_ENGINE_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/steps.h"

#define WORLD_ADAPTERS_MAX 40
#define WORLD_BASE         UINT32_MAX

struct world_options {
    const char *backend; /* "ref", "cpu"; "cuda" where the program has one */
    uint32_t thread_count, device;
    enum dtype dtype;
    uint32_t n_vocab, context_max, rows_max, seqs_max, waiting_max, kv_pages;
    uint32_t adapter_count, store_slots, adapters_per_batch_max, adapter_wait_ms_max;
    uint32_t score_rows_max, step_stretch_max, share_wait_ms_max;
    uint64_t basis_places, keys_bytes_max;
    bool prefix_cache;
    uint32_t load_polls; /* polls that a cold load takes */
    uint64_t seed;       /* of the weights */
    bool real_clock;
    uint64_t step_us, row_us; /* what a step takes on the fake clock, and each row of it */
    bool late;                /* a CPU backend's results come late, as a device's: late_backend.h */
    bool in_turn;             /* each step is delivered before the next is planned */
};

struct world_adapter {
    struct adapter_entry *entry;
    struct lora_entry *layout; /* [n_layer][LORA_MODULE_COUNT] */
    void *blob;                /* row-major, host */
    uint64_t blob_bytes;
    struct lora_entry *device_layout; /* the device's form, where the backend is a device */
    void *device_blob;
    uint64_t device_bytes;
    uint32_t rank_sum;
    bool fails; /* its load fails */
};

struct world {
    struct world_options opt;
    struct model model;
    struct model_layer *layers;
    void *blocks[256]; /* weights, to be freed */
    uint32_t block_count;
    struct backend *backend;
    struct store *store;
    struct world_adapter adapter[WORLD_ADAPTERS_MAX];
    struct engine *engine;
    struct backend_ops timed; /* the backend's, with step_us */
};

extern const struct world_options world_default;

void world_open(struct world *w, const struct world_options *opt);
/* Everything must have finished: no page, slot or pin may be in use. */
void world_close(struct world *w);

/* What engine_world_store.c needs of the world, and gives it. */
struct lora_dims world_dims(void);
struct store *world_store_open(struct world *w);

/* The store's script. */
void world_store_stick(struct world *w, bool stuck); /* no load completes while stuck */
uint32_t world_store_pins(const struct world *w);
void world_store_evict_all(struct world *w);

/* A greedy request of one prompt with n_prompt tokens drawn from `seed`, under adapter a (or
 * WORLD_BASE). Change params before submitting. */
struct request *world_request(struct world *w, uint64_t seed, uint32_t n_prompt,
                              uint32_t max_tokens, uint32_t n, uint32_t adapter);
/* Add a part to the composition (before submit). */
void world_mix(struct world *w, struct request *r, uint32_t adapter, int32_t weight_q16);
/* What the tokenizer of these worlds says for an id. */
void world_token_text(int32_t id, char text[5]);
/* A basis of random directions: w [SKETCH_DIM, d_model] bf16, bias [SKETCH_DIM]. */
void world_basis_numbers(const struct world *w, uint64_t seed, uint16_t *m, float *bias);
struct engine_basis *world_basis(struct world *w, uint64_t seed);
void world_submit(struct world *w, struct request *r);
/* Step until nothing is in the engine; panics after too many steps. */
void world_run(struct world *w);
void world_step(struct world *w);
bool world_done(const struct request *r);
uint32_t world_out_count(const struct request *r, uint32_t i);
enum finish_reason world_finish(const struct request *r, uint32_t i);
void world_release_all(struct request **r, uint32_t n);

/* Bitwise: ids, log-probabilities, alternatives, finish. */
void assert_same_seq(const struct request *a, uint32_t ia, const struct request *b, uint32_t ib);
void world_advance_ms(uint64_t ms);
uint32_t world_random(uint64_t *state, uint32_t below);

#endif
