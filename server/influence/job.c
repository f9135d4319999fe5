/* A job's two forms: in memory one block with its arrays behind it, on disk the encoding of job.h.
 * The reader trusts no count: each is compared with the bytes that are left before it is used. */
#include "server/influence/job.h"
#include "server/base/check.h"
#include "server/base/mem.h"
#include "server/engine/basis.h"

#include <math.h>
#include <string.h>

#define JOB_VERSION    2
#define JOB_HEAD_BYTES (1 + 8 + 32 * 3 + 8 + 16 + 1)
#define ADAPTER_BYTES  (32 + 4 + 1 + 32)

static _Atomic size_t all_key_bytes;

int32_t job_q8(float nats)
{
    float scaled = nats * 256.0f;
    if (!(scaled > -2147483520.0f))
        return INT32_MIN + 1;
    return scaled > 2147483520.0f ? INT32_MAX : (int32_t)lrintf(scaled);
}

uint64_t job_bytes_for(uint32_t prompt_tokens, uint64_t out_tokens)
{
    return JOB_HEAD_BYTES + LORA_PARTS_MAX * ADAPTER_BYTES + REQUEST_SEQS_MAX * 16u +
           4ull * prompt_tokens + 8 * out_tokens;
}

/* ---- from a request ---- */

static void copy_adapters(struct job *j, const struct request *r, bool bound)
{
    j->adapter_count = r->comp.n;
    for (uint32_t i = 0; i < r->comp.n; i++) {
        const struct terms *t = r->terms[i];
        struct job_adapter *a = &j->adapter[i];
        memcpy(a->id, r->comp.part[i].adapter, 32);
        a->weight_q16 = r->comp.part[i].weight_q16;
        a->index = bound ? JOB_INDEX_NONE : JOB_INDEX_OWN;
        if (!bound || !terms_has_datanet(t))
            continue;
        memcpy(a->document_root, t->document_root, 32);
        a->index = JOB_INDEX_REGISTERED;
    }
}

/* Best effort: without them a scoring row does the same work again. */
static void copy_keys(struct job *j, const struct request *r)
{
    if (!r->basis)
        return;
    j->basis = engine_basis_ref(r->basis);
    for (uint32_t i = 0; i < j->seq_count; i++) {
        size_t bytes = (size_t)j->seq[i].n_out * SKETCH_DIM;
        if (!r->seq[i].out_key || bytes == 0)
            continue;
        if (atomic_fetch_add(&all_key_bytes, bytes) + bytes <= JOB_KEYS_BYTES_MAX)
            j->seq[i].key = mem_try_array(bytes, 1);
        if (j->seq[i].key)
            memcpy(j->seq[i].key, r->seq[i].out_key, bytes);
        else
            atomic_fetch_sub(&all_key_bytes, bytes);
    }
}

static bool copy_prompts(struct job *j, const struct request *r)
{
    j->prompt = mem_try_array(r->prompt_count, sizeof(*j->prompt));
    if (!j->prompt)
        return false;
    j->prompt_count = r->prompt_count;
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        j->prompt[i].ids = mem_try_array(r->prompt[i].n_ids, sizeof(int32_t));
        if (!j->prompt[i].ids)
            return false;
        j->prompt[i].n_ids = r->prompt[i].n_ids;
        memcpy(j->prompt[i].ids, r->prompt[i].ids, r->prompt[i].n_ids * sizeof(int32_t));
    }
    return true;
}

static bool copy_seq(struct job_seq *to, const struct request_seq *from, uint32_t n_out)
{
    *to = (struct job_seq){.prompt_idx = from->prompt_idx, .n_out = n_out};
    to->ids = mem_try_array(n_out, sizeof(int32_t));
    to->set_q8 = mem_try_array(n_out, sizeof(int32_t));
    if (!to->ids || !to->set_q8)
        return false;
    memcpy(to->ids, from->out_id, n_out * sizeof(int32_t));
    for (uint32_t t = 0; t < n_out; t++)
        to->set_q8[t] = job_q8(from->out_logprob[t]);
    return true;
}

static bool copy_seqs(struct job *j, const struct request *r)
{
    j->seq = mem_try_array(r->seq_count, sizeof(*j->seq));
    if (!j->seq)
        return false;
    j->seq_count = r->seq_count;
    for (uint32_t i = 0; i < r->seq_count; i++) {
        uint32_t n_out = atomic_load_explicit(&r->seq[i].n_out, memory_order_acquire);
        if (!copy_seq(&j->seq[i], &r->seq[i], n_out))
            return false;
    }
    return true;
}

struct job *job_from_request(const struct request *r, bool bound)
{
    struct job *j = mem_try_alloc(sizeof(*j));
    if (!j)
        return NULL;
    memcpy(j->request_id, r->id, 32);
    j->created_ms = r->finish_wall_ms;
    memcpy(j->cache_salt, r->params.cache_salt, sizeof(j->cache_salt));
    copy_adapters(j, r, bound);
    if (copy_prompts(j, r) && copy_seqs(j, r)) {
        copy_keys(j, r);
        return j;
    }
    job_free(j);
    return NULL;
}

int32_t *job_text(const struct job *j, uint32_t seq_idx)
{
    const struct job_seq *seq = &j->seq[seq_idx];
    const struct job_prompt *p = &j->prompt[seq->prompt_idx];
    int32_t *ids = mem_try_array(p->n_ids + seq->n_out, sizeof(*ids));
    if (ids) {
        memcpy(ids, p->ids, p->n_ids * sizeof(*ids));
        memcpy(ids + p->n_ids, seq->ids, seq->n_out * sizeof(*ids));
    }
    return ids;
}

void job_free(struct job *j)
{
    if (!j)
        return;
    for (uint32_t i = 0; i < j->prompt_count; i++) {
        mem_wipe(j->prompt[i].ids, j->prompt[i].n_ids * sizeof(int32_t));
        mem_free(j->prompt[i].ids);
    }
    for (uint32_t i = 0; i < j->seq_count; i++) {
        mem_wipe(j->seq[i].ids, j->seq[i].n_out * sizeof(int32_t));
        mem_free(j->seq[i].ids);
        mem_free(j->seq[i].set_q8);
        if (j->seq[i].key)
            atomic_fetch_sub(&all_key_bytes, (size_t)j->seq[i].n_out * SKETCH_DIM);
        mem_free(j->seq[i].key);
    }
    engine_basis_release(j->basis);
    mem_free(j->prompt);
    mem_free(j->seq);
    mem_wipe(j, sizeof(*j));
    mem_free(j);
}

/* ---- encoding ---- */

static void put_int(struct buf *b, uint64_t v, size_t bytes)
{
    uint8_t tmp[8];
    be_put(tmp, v, bytes);
    buf_put(b, tmp, bytes);
}

static void put_ids(struct buf *b, const int32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        put_int(b, (uint32_t)ids[i], 4);
}

static void encode_adapter(const struct job_adapter *a, struct buf *out)
{
    buf_put(out, a->id, 32);
    put_int(out, (uint32_t)a->weight_q16, 4);
    put_int(out, a->index, 1);
    buf_put(out, a->document_root, 32);
}

void job_encode(const struct job *j, struct buf *out)
{
    put_int(out, JOB_VERSION, 1);
    put_int(out, j->inf_seq, 8);
    buf_put(out, j->inf_digest, 32);
    buf_put(out, j->request_id, 32);
    buf_put(out, j->salt, 32);
    put_int(out, j->created_ms, 8);
    buf_put(out, j->cache_salt, sizeof(j->cache_salt));
    put_int(out, j->adapter_count, 1);
    for (uint32_t i = 0; i < j->adapter_count; i++)
        encode_adapter(&j->adapter[i], out);
    put_int(out, j->prompt_count, 2);
    for (uint32_t i = 0; i < j->prompt_count; i++) {
        put_int(out, j->prompt[i].n_ids, 4);
        put_ids(out, j->prompt[i].ids, j->prompt[i].n_ids);
    }
    put_int(out, j->seq_count, 2);
    for (uint32_t i = 0; i < j->seq_count; i++) {
        put_int(out, j->seq[i].prompt_idx, 2);
        put_int(out, j->seq[i].n_out, 4);
        put_ids(out, j->seq[i].ids, j->seq[i].n_out);
        put_ids(out, j->seq[i].set_q8, j->seq[i].n_out);
    }
}

/* ---- decoding ---- */

struct reader {
    const uint8_t *p;
    size_t left;
    bool bad;
};

static const uint8_t *take(struct reader *r, size_t n)
{
    static const uint8_t zeros[32];
    if (r->bad || n > r->left) {
        r->bad = true;
        return zeros;
    }
    const uint8_t *at = r->p;
    r->p += n;
    r->left -= n;
    return at;
}

static uint64_t take_int(struct reader *r, size_t bytes)
{
    return (uint64_t)be_get(take(r, bytes), bytes);
}

static int32_t *take_ids(struct reader *r, uint32_t n)
{
    if (r->bad || n > r->left / 4) {
        r->bad = true;
        return NULL;
    }
    int32_t *ids = mem_try_array(n, sizeof(*ids));
    for (uint32_t i = 0; ids && i < n; i++)
        ids[i] = (int32_t)take_int(r, 4);
    r->bad |= !ids;
    return ids;
}

static void decode_adapter(struct reader *r, struct job_adapter *a)
{
    memcpy(a->id, take(r, 32), 32);
    a->weight_q16 = (int32_t)take_int(r, 4);
    uint64_t index = take_int(r, 1);
    memcpy(a->document_root, take(r, 32), 32);
    r->bad |= a->weight_q16 == 0 || index > JOB_INDEX_OWN;
    a->index = (enum job_index)index;
}

static void decode_prompts(struct reader *r, struct job *j)
{
    uint32_t count = (uint32_t)take_int(r, 2);
    if (r->bad || count == 0 || count > REQUEST_PROMPTS_MAX) {
        r->bad = true;
        return;
    }
    j->prompt = mem_array(count, sizeof(*j->prompt));
    j->prompt_count = count;
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        uint32_t n = (uint32_t)take_int(r, 4);
        j->prompt[i].ids = take_ids(r, n);
        j->prompt[i].n_ids = j->prompt[i].ids ? n : 0;
    }
}

static void decode_seqs(struct reader *r, struct job *j)
{
    uint32_t count = (uint32_t)take_int(r, 2);
    if (r->bad || count == 0 || count > REQUEST_SEQS_MAX) {
        r->bad = true;
        return;
    }
    j->seq = mem_array(count, sizeof(*j->seq));
    j->seq_count = count;
    for (uint32_t i = 0; i < count && !r->bad; i++) {
        struct job_seq *s = &j->seq[i];
        s->prompt_idx = (uint32_t)take_int(r, 2);
        uint32_t n = (uint32_t)take_int(r, 4);
        s->ids = take_ids(r, n);
        s->n_out = s->ids ? n : 0;
        s->set_q8 = take_ids(r, n);
        r->bad |= s->prompt_idx >= j->prompt_count;
    }
}

enum status job_decode(struct job **out, const uint8_t *data, size_t len, struct errtext *err)
{
    struct reader r = {.p = data, .left = len};
    struct job *j = mem_alloc(sizeof(*j));
    *out = NULL;
    r.bad = take_int(&r, 1) != JOB_VERSION;
    j->inf_seq = take_int(&r, 8);
    memcpy(j->inf_digest, take(&r, 32), 32);
    memcpy(j->request_id, take(&r, 32), 32);
    memcpy(j->salt, take(&r, 32), 32);
    j->created_ms = take_int(&r, 8);
    memcpy(j->cache_salt, take(&r, sizeof(j->cache_salt)), sizeof(j->cache_salt));
    j->adapter_count = (uint32_t)take_int(&r, 1);
    if (j->adapter_count == 0 || j->adapter_count > LORA_PARTS_MAX) {
        j->adapter_count = 0;
        r.bad = true;
    }
    for (uint32_t i = 0; i < j->adapter_count && !r.bad; i++)
        decode_adapter(&r, &j->adapter[i]);
    if (!r.bad)
        decode_prompts(&r, j);
    if (!r.bad)
        decode_seqs(&r, j);
    if (r.bad || r.left != 0) {
        job_free(j);
        return err_set(err, STATUS_CORRUPT, "scoring job of %zu bytes: malformed at byte %zu", len,
                       len - r.left);
    }
    *out = j;
    return STATUS_OK;
}
