/* Assembles a model from its directory. Every tensor the family needs must be there with the shape
 * that config.json implies, and every tensor that is there must be one the family uses (but for
 * stored rope frequencies): a checkpoint that differs from its config is refused, never half used.
 *
 * Matrices whose stored dtype is the compute dtype are used where they lie in the mapped file (see
 * shards.h on files that shrink); others, and those at an odd address, are converted into owned
 * memory. Norms and biases are small and become owned f32. */
#include "server/model/model.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/model/convert.h"
#include "server/model/foreign.h"
#include "server/model/model_id.h"
#include "server/model/model_text.h"
#include "server/model/shards.h"
#include "server/model/token_config.h"

#include <inttypes.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_BYTES_MAX (4u << 20)
#define CHUNK_ELEMENTS   (256u << 10)

struct owned_block {
    void *data;
    size_t bytes;
};

struct model_store {
    struct shard_set shards;
    struct owned_block *block;
    size_t block_count, block_cap;
};

struct load {
    struct model *m;
    const struct model_options *opt;
    uint64_t done, total;
    struct errtext *err;
};

static void *own_block(struct model_store *s, size_t bytes)
{
    if (s->block_count == s->block_cap) {
        size_t cap = s->block_cap ? 2 * s->block_cap : 64;
        struct owned_block *grown = mem_try_realloc(s->block, cap * sizeof(*grown));
        if (!grown)
            return NULL;
        s->block = grown;
        s->block_cap = cap;
    }
    void *p = mem_try_alloc_aligned(bytes);
    if (p)
        s->block[s->block_count++] = (struct owned_block){p, bytes};
    return p;
}

static void show_progress(struct load *l, uint64_t bytes)
{
    l->done += bytes;
    if (l->opt->progress)
        l->opt->progress(l->opt->progress_arg, "reading weights", l->done, l->total);
}

/* Quantised weights go by other names beside the one that is missing. */
static enum status refuse_missing(struct load *l, const char *name)
{
    static const char *const others[] = {"qweight", "weight_packed", "weight.absmax", "scales"};
    const char *dot = strrchr(name, '.');
    int stem = dot ? (int)(dot + 1 - name) : 0;
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        char other[256], text[256];
        snprintf(other, sizeof(other), "%.*s%s", stem, name, others[i]);
        if (!shard_set_find(&l->m->store->shards, other))
            continue;
        foreign_quantised(NULL, text, sizeof(text));
        return err_set(l->err, STATUS_UNSUPPORTED, "tensor '%s' is there instead of '%s': %s",
                       other, name, text);
    }
    return err_set(l->err, STATUS_INVALID, "tensor '%s' is missing from the weights", name);
}

static enum status find_tensor(struct load *l, const char *name, uint32_t rank, const uint64_t *dim,
                               struct shard_tensor **out, enum dtype *dtype)
{
    struct shard_tensor *t = shard_set_find(&l->m->store->shards, name);
    char want[64], found[160] = "";
    if (!t)
        return refuse_missing(l, name);
    if (rank == 1)
        snprintf(want, sizeof(want), "[%" PRIu64 "]", dim[0]);
    else
        snprintf(want, sizeof(want), "[%" PRIu64 ", %" PRIu64 "]", dim[0], dim[1]);
    bool same = t->t->rank == rank;
    for (uint32_t i = 0, at = 0; i < t->t->rank; i++) {
        same = same && t->t->dim[i] == dim[i];
        at += (uint32_t)snprintf(found + at, sizeof(found) - at, "%s%" PRIu64, i ? ", " : "",
                                 t->t->dim[i]);
        if (at >= sizeof(found))
            break;
    }
    if (!same)
        return err_set(l->err, STATUS_INVALID,
                       "%s: tensor '%s' has shape [%s], config.json implies %s", t->shard->name,
                       name, found, want);
    if (!convert_dtype(t->t->dtype, dtype))
        return err_set(l->err, STATUS_UNSUPPORTED,
                       "%s: tensor '%s' has dtype %s, expected F32, BF16 or F16", t->shard->name,
                       name, st_dtype_name(t->t->dtype));
    t->used = true;
    *out = t;
    return STATUS_OK;
}

/* Read and convert a whole tensor into owned memory, through a bounded window. */
static enum status read_converted(struct load *l, const struct shard_tensor *t, enum dtype from,
                                  enum dtype to, void **out)
{
    uint64_t n = (t->t->end - t->t->begin) / dtype_bytes(from);
    char *data = own_block(l->m->store, (size_t)(n * dtype_bytes(to)));
    void *chunk = mem_try_array(CHUNK_ELEMENTS, dtype_bytes(from));
    enum status st = STATUS_OK;
    if (!data || !chunk)
        st = err_set(l->err, STATUS_NO_MEMORY, "tensor '%s': no memory for %" PRIu64 " bytes",
                     t->t->name, n * dtype_bytes(to));
    for (uint64_t at = 0; !st && at < n; at += CHUNK_ELEMENTS) {
        size_t count = n - at < CHUNK_ELEMENTS ? (size_t)(n - at) : CHUNK_ELEMENTS;
        st = shard_read(t, at * dtype_bytes(from), chunk, count * dtype_bytes(from), l->err);
        if (!st)
            convert_elements(data + at * dtype_bytes(to), to, chunk, from, count);
    }
    mem_free(chunk);
    *out = data;
    return st;
}

static enum status load_matrix(struct load *l, const char *name, uint32_t d_out, uint32_t d_in,
                               struct weight *out)
{
    struct shard_tensor *t;
    enum dtype stored, compute = l->m->dtype;
    void *owned = NULL;
    enum status st = find_tensor(l, name, 2, (uint64_t[]){d_out, d_in}, &t, &stored);
    if (st)
        return st;
    *out = (struct weight){.dtype = compute, .d_out = d_out, .d_in = d_in};
    if (stored == compute && t->t->begin % dtype_bytes(stored) == 0) {
        st = shard_map(t->shard, l->err);
        out->data = st ? NULL : t->shard->map + t->t->begin;
    } else {
        st = read_converted(l, t, stored, compute, &owned);
        out->data = owned;
    }
    show_progress(l, t->t->end - t->t->begin);
    return st;
}

static enum status load_vector(struct load *l, const char *name, uint32_t n, const float **out)
{
    struct shard_tensor *t;
    enum dtype stored;
    void *owned = NULL;
    enum status st = find_tensor(l, name, 1, (uint64_t[]){n}, &t, &stored);
    if (st)
        return st;
    st = read_converted(l, t, stored, DTYPE_F32, &owned);
    *out = owned;
    show_progress(l, t->t->end - t->t->begin);
    return st;
}

static enum status load_linear(struct load *l, uint32_t layer, enum lora_module module,
                               struct weight *w, const float **bias)
{
    char path[96], name[112];
    uint32_t d_out, d_in;
    model_module_path(layer, module, path, sizeof(path));
    model_module_shape(&l->m->config, module, &d_out, &d_in);
    snprintf(name, sizeof(name), "%s.weight", path);
    enum status st = load_matrix(l, name, d_out, d_in, w);
    if (st || !bias)
        return st;
    snprintf(name, sizeof(name), "%s.bias", path);
    return load_vector(l, name, d_out, bias);
}

static enum status load_layer_vector(struct load *l, uint32_t layer, const char *leaf, uint32_t n,
                                     const float **out)
{
    char name[112];
    snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer, leaf);
    return load_vector(l, name, n, out);
}

static enum status load_layer(struct load *l, uint32_t i)
{
    const struct model_config *c = &l->m->config;
    struct model_layer *y = &l->m->layer[i];
    const struct {
        enum lora_module module;
        struct weight *w;
        const float **bias;
    } linear[] = {
        {LORA_MODULE_Q, &y->q, c->bias_qkv ? &y->bias_q : NULL},
        {LORA_MODULE_K, &y->k, c->bias_qkv ? &y->bias_k : NULL},
        {LORA_MODULE_V, &y->v, c->bias_qkv ? &y->bias_v : NULL},
        {LORA_MODULE_O, &y->o, c->bias_o ? &y->bias_o : NULL},
        {LORA_MODULE_GATE, &y->gate, c->bias_mlp ? &y->bias_gate : NULL},
        {LORA_MODULE_UP, &y->up, c->bias_mlp ? &y->bias_up : NULL},
        {LORA_MODULE_DOWN, &y->down, c->bias_mlp ? &y->bias_down : NULL},
    };
    enum status st = load_layer_vector(l, i, "input_layernorm", c->d_model, &y->attn_norm);
    if (!st)
        st = load_layer_vector(l, i, "post_attention_layernorm", c->d_model, &y->mlp_norm);
    if (!st && c->qk_norm)
        st = load_layer_vector(l, i, "self_attn.q_norm", c->d_head, &y->q_norm);
    if (!st && c->qk_norm)
        st = load_layer_vector(l, i, "self_attn.k_norm", c->d_head, &y->k_norm);
    for (size_t k = 0; !st && k < ARRAY_COUNT(linear); k++)
        st = load_linear(l, i, linear[k].module, linear[k].w, linear[k].bias);
    return st;
}

/* A tied checkpoint may ship lm_head.weight too; it must then be the embedding. */
static enum status check_tied_head(struct load *l)
{
    struct shard_set *s = &l->m->store->shards;
    struct shard_tensor *head = shard_set_find(s, "lm_head.weight");
    struct shard_tensor *embed = shard_set_find(s, "model.embed_tokens.weight");
    if (!head)
        return STATUS_OK;
    uint64_t bytes = head->t->end - head->t->begin;
    bool same = head->t->dtype == embed->t->dtype && bytes == embed->t->end - embed->t->begin;
    enum { WINDOW = 64 << 10 };
    char *a = mem_try_alloc(WINDOW), *b = mem_try_alloc(WINDOW);
    enum status st = a && b ? STATUS_OK : err_set(l->err, STATUS_NO_MEMORY, "no memory");
    for (uint64_t at = 0; !st && same && at < bytes; at += WINDOW) {
        size_t n = bytes - at < WINDOW ? (size_t)(bytes - at) : WINDOW;
        st = shard_read(head, at, a, n, l->err);
        if (!st)
            st = shard_read(embed, at, b, n, l->err);
        same = same && (st || !memcmp(a, b, n));
    }
    mem_free(a);
    mem_free(b);
    if (!st && !same)
        return err_set(l->err, STATUS_INVALID,
                       "config.json: tie_word_embeddings is true, but lm_head.weight differs from "
                       "model.embed_tokens.weight; set it to false if the head is meant");
    head->used = true;
    return st;
}

static enum status load_ends(struct load *l)
{
    struct model *m = l->m;
    uint32_t n_vocab = m->config.n_vocab, d = m->config.d_model;
    enum status st = load_matrix(l, "model.embed_tokens.weight", n_vocab, d, &m->embed);
    if (!st)
        st = load_vector(l, "model.norm.weight", d, &m->final_norm);
    if (st || !m->config.tied)
        return st ? st : load_matrix(l, "lm_head.weight", n_vocab, d, &m->lm_head);
    m->lm_head = m->embed;
    return check_tied_head(l);
}

static enum status check_all_used(struct load *l)
{
    static const char inert[] = ".rotary_emb.inv_freq";
    struct shard_set *s = &l->m->store->shards;
    for (size_t i = 0; i < s->tensor_count; i++) {
        const char *name = s->tensor[i].t->name;
        size_t n = strlen(name), k = sizeof(inert) - 1;
        if (s->tensor[i].used || (n > k && !strcmp(name + n - k, inert)))
            continue;
        return err_set(
            l->err, STATUS_UNSUPPORTED,
            "%s: tensor '%.200s' is no part of this %s model as config.json describes it",
            s->tensor[i].shard->name, name, l->m->config.family_name);
    }
    return STATUS_OK;
}

static uint64_t matrix_bytes(const struct weight *w)
{
    return (uint64_t)w->d_out * w->d_in * dtype_bytes(w->dtype);
}

static uint64_t step_bytes(const struct model *m)
{
    uint64_t sum = matrix_bytes(&m->lm_head);
    for (uint32_t i = 0; i < m->config.n_layer; i++) {
        const struct model_layer *y = &m->layer[i];
        const struct weight *w[] = {&y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down};
        for (size_t k = 0; k < ARRAY_COUNT(w); k++)
            sum += matrix_bytes(w[k]);
        sum += 2ull * m->config.d_model * sizeof(float);
    }
    return sum + m->config.d_model * sizeof(float);
}

/* The dtype that holds most bytes is what the model is stored in. */
static enum dtype stored_dtype(const struct shard_set *s, enum dtype claimed)
{
    uint64_t bytes[3] = {0};
    for (size_t i = 0; i < s->tensor_count; i++) {
        enum dtype t;
        if (convert_dtype(s->tensor[i].t->dtype, &t))
            bytes[t] += s->tensor[i].t->end - s->tensor[i].t->begin;
    }
    enum dtype best = claimed;
    for (int t = 0; t < 3; t++)
        best = bytes[t] > bytes[best] ? (enum dtype)t : best;
    return best;
}

static enum dtype choose_dtype(enum dtype stored, const struct model_options *opt)
{
    if (opt->dtype == DTYPE_CHOICE_F32)
        return DTYPE_F32;
    if (opt->dtype == DTYPE_CHOICE_BF16)
        return DTYPE_BF16;
    return stored == DTYPE_BF16 && opt->cpu_has_bf16 ? DTYPE_BF16 : DTYPE_F32;
}

static enum status load_weights(struct load *l)
{
    struct model *m = l->m;
    struct shard_set *s = &m->store->shards;
    m->config.stored_dtype = stored_dtype(s, m->config.stored_dtype);
    m->dtype = choose_dtype(m->config.stored_dtype, l->opt);
    m->layer = mem_try_array(m->config.n_layer, sizeof(*m->layer));
    if (!m->layer)
        return err_set(l->err, STATUS_NO_MEMORY, "no memory for %u layers", m->config.n_layer);
    for (size_t i = 0; i < s->tensor_count; i++)
        l->total += s->tensor[i].t->end - s->tensor[i].t->begin;
    enum status st = load_ends(l);
    for (uint32_t i = 0; !st && i < m->config.n_layer; i++)
        st = load_layer(l, i);
    if (!st)
        st = check_all_used(l);
    if (!st)
        m->weight_bytes = step_bytes(m);
    return st;
}

struct config_text {
    char *json, *generation;
    size_t json_bytes, generation_bytes;
};

static enum status load_config(struct model *m, struct config_text *text, const char *dir,
                               struct errtext *err)
{
    char path[PATH_MAX], generation[PATH_MAX];
    if ((size_t)snprintf(path, sizeof(path), "%s/config.json", dir) >= sizeof(path) ||
        (size_t)snprintf(generation, sizeof(generation), "%s/generation_config.json", dir) >=
            sizeof(generation))
        return err_set(err, STATUS_INVALID, "%s: path too long", dir);
    enum status st = file_read(path, CONFIG_BYTES_MAX, &text->json, &text->json_bytes, err);
    if (!st && file_exists(generation))
        st = file_read(generation, CONFIG_BYTES_MAX, &text->generation, &text->generation_bytes,
                       err);
    if (st)
        return st;
    return model_config_parse(&m->config, text->json, text->json_bytes, text->generation,
                              text->generation_bytes, err);
}

static enum status compute_id(struct load *l, const struct config_text *config,
                              const struct model_text *text, const char *dir)
{
    struct model *m = l->m;
    struct model_id_parts parts = {
        .config_json = config->json,
        .config_bytes = config->json_bytes,
        .tokenizer_json = text->tokenizer_json,
        .tokenizer_bytes = text->tokenizer_bytes,
        .chat_text = m->chat_text,
    };
    enum status st = model_tensors_digest(parts.tensors, &m->store->shards, dir, l->opt, l->err);
    if (st)
        return st;
    model_id_compute(m->id, &parts);
    model_bytes_digest(m->tokenizer_digest, text->tokenizer_json, text->tokenizer_bytes);
    return STATUS_OK;
}

enum status model_load(struct model **out, const char *dir, const struct model_options *opt,
                       struct errtext *err)
{
    struct config_text config = {0};
    struct model_text text = {0};
    *out = NULL;
    if (sodium_init() < 0)
        return err_set(err, STATUS_IO, "libsodium does not start");
    struct model *m = mem_alloc(sizeof(*m));
    m->store = mem_alloc(sizeof(*m->store));
    struct load l = {.m = m, .opt = opt, .err = err};
    enum status st = load_config(m, &config, dir, err);
    if (!st)
        st = model_text_load(m, &text, dir, opt->strict, err);
    if (!st)
        st = shard_set_open(&m->store->shards, dir, err);
    if (!st)
        st = compute_id(&l, &config, &text, dir);
    if (!st)
        st = load_weights(&l);
    if (!st)
        st = shard_set_verify(&m->store->shards, err);
    shard_set_close_fds(&m->store->shards);
    mem_free(config.json);
    mem_free(config.generation);
    model_text_fini(&text);
    if (st) {
        st = foreign_folder(dir, FOREIGN_WANT_MODEL, st, err);
        err_prefix(err, "model %s", dir);
        model_free(m);
        return st;
    }
    *out = m;
    return STATUS_OK;
}

void model_free(struct model *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->store->block_count; i++)
        mem_free_aligned(m->store->block[i].data, m->store->block[i].bytes);
    mem_free(m->store->block);
    shard_set_fini(&m->store->shards);
    mem_free(m->store);
    model_text_drop(m);
    mem_free(m->layer);
    mem_free(m);
}
