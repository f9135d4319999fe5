/* Arrays of integers of one length a choice. What does not fit sets `bad` and is left NULL; the
 * first word of why is said by who looks at it. */
#include "chain_client/cli/attribution_inputs.h"
#include "server/base/check.h"
#include "server/base/hex.h"
#include "server/base/json.h"
#include "server/base/mem.h"

#include <sodium.h>
#include <string.h>

#define CHOICES_MAX 4096

static enum status malformed(struct errtext *err, const char *what)
{
    return err_set(err, STATUS_CORRUPT, "the logged inputs: %s is not as SPEC 10 has it", what);
}

/* n UINT32_MAX: whatever there are. */
static int32_t *read_ints(const json_t *list, uint32_t *n, bool *bad)
{
    size_t count = json_array_size(list);
    if (!json_is_array(list) || count > EVENTS_QUERY_MAX || (*n != UINT32_MAX && count != *n)) {
        *bad = true;
        return NULL;
    }
    *n = (uint32_t)count;
    int32_t *out = mem_array(count, sizeof(*out));
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t v = json_integer_value(item);
        *bad |= !json_is_integer(item) || v < INT32_MIN || v > INT32_MAX;
        out[i] = (int32_t)v;
    }
    return out;
}

static void read_choice(struct attribution_inputs *x, struct gain_choice *c, const json_t *from,
                        bool *bad)
{
    const json_t *alone = json_object_get(from, "alone"), *less = json_object_get(from, "without");
    c->n = UINT32_MAX;
    c->target = read_ints(json_object_get(from, "target"), &c->n, bad);
    c->set = read_ints(json_object_get(from, "set"), &c->n, bad);
    c->row[0] = read_ints(json_object_get(from, "base"), &c->n, bad);
    int32_t *wide = read_ints(json_object_get(from, "in_prompt"), &c->n, bad);
    uint8_t *in_prompt = mem_array(wide ? c->n : 0, 1);
    for (uint32_t t = 0; wide && t < c->n; t++) {
        *bad |= wide[t] != 0 && wide[t] != 1;
        in_prompt[t] = (uint8_t)wide[t];
    }
    c->in_prompt = in_prompt;
    mem_free(wide);
    uint32_t rows = gain_row_count(x->in.adapter_count), end = MIN(rows, 1 + x->in.adapter_count);
    *bad |= json_array_size(alone) != end - 1 || json_array_size(less) != rows - end;
    for (uint32_t r = 1; r < rows && !*bad; r++)
        c->row[r] = read_ints(
            r < end ? json_array_get(alone, r - 1) : json_array_get(less, r - end), &c->n, bad);
}

static enum status read_choices(struct attribution_inputs *x, const json_t *list,
                                struct errtext *err)
{
    size_t n = json_array_size(list);
    bool bad = n == 0 || n > CHOICES_MAX;
    x->choice = mem_array(bad ? 0 : n, sizeof(*x->choice));
    x->in.choice = x->choice;
    for (size_t i = 0; i < n && !bad; i++) {
        x->in.choice_count++;
        read_choice(x, &x->choice[i], json_array_get(list, i), &bad);
    }
    return bad ? malformed(err, "choices") : STATUS_OK;
}

static enum status read_keys(struct attribution_inputs *x, uint32_t k, const json_t *list,
                             struct errtext *err)
{
    if (json_array_size(list) != x->in.choice_count)
        return malformed(err, "keys");
    x->key[k] = mem_array(x->in.choice_count, sizeof(*x->key[k]));
    for (uint32_t i = 0; i < x->in.choice_count; i++) {
        size_t want = (size_t)x->in.choice[i].n * EVENTS_KEY, got = 0;
        const char *text = json_string_value(json_array_get(list, i));
        x->key[k][i] = mem_array(want, 1);
        if (!text ||
            sodium_base642bin((unsigned char *)x->key[k][i], want, text, strlen(text), NULL, &got,
                              NULL, sodium_base64_VARIANT_ORIGINAL) ||
            got != want)
            return malformed(err, "a key");
    }
    x->in.adapter[k].key = (const int8_t *const *)x->key[k];
    return STATUS_OK;
}

static enum status read_spans(struct attribution_inputs *x, uint32_t k, const json_t *list,
                              struct errtext *err)
{
    uint32_t owners = events_head(x->in.adapter[k].events)->n_owners;
    const json_t *entry;
    size_t i;
    x->spans[k] = mem_array(owners, sizeof(*x->spans[k]));
    x->in.adapter[k].spans = x->spans[k];
    json_array_foreach(list, i, entry)
    {
        json_int_t owner = json_integer_value(json_array_get(entry, 0));
        const char *text = json_string_value(json_array_get(entry, 1));
        u128 weight = 0;
        if (owner < 0 || owner >= owners || !text || !u128_parse(&weight, text) ||
            weight > UINT64_MAX)
            return malformed(err, "spans");
        x->spans[k][owner] = (uint64_t)weight;
    }
    return STATUS_OK;
}

static enum status read_prior(struct attribution_inputs *x, uint32_t k, struct errtext *err)
{
    const struct events *e = x->in.adapter[k].events;
    uint32_t owners = events_head(e)->n_owners, *documents = mem_array(owners, sizeof(*documents));
    x->prior[k] = mem_array(owners, sizeof(*x->prior[k]));
    x->in.adapter[k].prior_ppb = x->prior[k];
    for (uint32_t i = 0; i < owners; i++)
        documents[i] = events_owner(e, i)->documents;
    enum status st = shares_prior(x->prior[k], documents, owners);
    mem_free(documents);
    return st ? err_set(err, st, "the index of adapter %u of the set has no documents", k) : st;
}

static enum status read_index(struct attribution_inputs *x, uint32_t k, const json_t *from,
                              attribution_find_index *find, void *arg, struct errtext *err)
{
    const char *hex = json_string_value(json_object_get(from, "root"));
    uint8_t root[32];
    if (!hex)
        return json_is_null(json_object_get(from, "root")) ? STATUS_OK : malformed(err, "root");
    if (strncmp(hex, "0x", 2) != 0 || !hex_decode(root, 32, hex + 2))
        return malformed(err, "root");
    enum status st = find(arg, root, &x->in.adapter[k].events, err);
    if (!st)
        st = read_prior(x, k, err);
    if (!st)
        st = read_keys(x, k, json_object_get(from, "keys"), err);
    return st ? st : read_spans(x, k, json_object_get(from, "spans"), err);
}

static enum status read_set(struct attribution_inputs *x, const json_t *set, struct errtext *err)
{
    x->in.adapter_count = (uint32_t)MIN(json_array_size(set), TAIL_ADAPTERS_MAX + 1u);
    if (x->in.adapter_count == 0 || x->in.adapter_count > TAIL_ADAPTERS_MAX)
        return malformed(err, "set");
    for (uint32_t k = 0; k < x->in.adapter_count; k++) {
        const json_t *weight = json_object_get(json_array_get(set, k), "weight");
        json_int_t v = json_integer_value(weight);
        if (!json_is_integer(weight) || v == 0 || v < INT32_MIN || v > INT32_MAX)
            return malformed(err, "a weight of the set");
        x->in.adapter[k].weight_q16 = (int32_t)v;
    }
    return STATUS_OK;
}

enum status attribution_inputs_read(struct attribution_inputs *x, const json_t *logged,
                                    attribution_find_index *find, void *arg, struct errtext *err)
{
    const json_t *adapters = json_object_get(logged, "adapters");
    struct json_reader in = {.obj = logged, .where = "the logged inputs", .err = err};
    const char *method = json_read_string(&in, "method");
    json_need_hex(&in, "salt", x->salt, 32);
    if (in.st)
        return in.st;
    if (!method || strcmp(method, GAIN_METHOD) != 0)
        return err_set(err, STATUS_UNSUPPORTED, "method %.60s: this program knows %s",
                       method ? method : "", GAIN_METHOD);
    enum status st = read_set(x, json_object_get(logged, "set"), err);
    if (!st && json_array_size(adapters) != x->in.adapter_count)
        st = malformed(err, "adapters");
    if (!st)
        st = read_choices(x, json_object_get(logged, "choices"), err);
    for (uint32_t k = 0; !st && k < x->in.adapter_count; k++)
        st = read_index(x, k, json_array_get(adapters, k), find, arg, err);
    return st;
}

void attribution_inputs_fini(struct attribution_inputs *x)
{
    for (uint32_t i = 0; i < x->in.choice_count; i++) {
        mem_free((void *)x->choice[i].target);
        mem_free((void *)x->choice[i].set);
        mem_free((void *)x->choice[i].in_prompt);
        for (uint32_t r = 0; r < GAIN_ROWS_MAX; r++)
            mem_free((void *)x->choice[i].row[r]);
    }
    for (uint32_t k = 0; k < TAIL_ADAPTERS_MAX; k++) {
        for (uint32_t i = 0; x->key[k] && i < x->in.choice_count; i++)
            mem_free(x->key[k][i]);
        mem_free(x->key[k]);
        mem_free(x->prior[k]);
        mem_free(x->spans[k]);
    }
    mem_free(x->choice);
}
