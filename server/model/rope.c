/* Rotary embeddings: the settings and the tables, as transformers computes them. Frequencies are
 * f32 arithmetic in the same order of operations, angles are the f32 product position * frequency,
 * and the attention factor multiplies cos and sin. Unknown rope types and unknown keys are refused.
 */
#include "server/model/rope.h"
#include "server/base/check.h"
#include "server/base/log.h"

#include <math.h>
#include <string.h>

/* Keys that any kind may carry; those a kind does not use do nothing, as in transformers. */
static const char *const known_keys[] = {
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "finetuned",
    "attn_factor",
};

static void check_keys(struct json_reader *r)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)r->obj, key, value)
    {
        bool known = json_is_null(value);
        for (size_t i = 0; i < ARRAY_COUNT(known_keys); i++)
            known = known || !strcmp(known_keys[i], key);
        if (!known && json_is_object(value))
            json_fail(r, STATUS_UNSUPPORTED, key, "rope settings per layer type are not supported");
        else if (!known)
            json_fail(r, STATUS_UNSUPPORTED, key, "found %s, this key is not known",
                      json_shown(value));
    }
}

static void parse_kind(struct json_reader *r, struct rope_config *rope)
{
    static const char *const names[] = {[ROPE_DEFAULT] = "default",
                                        [ROPE_LINEAR] = "linear",
                                        [ROPE_LLAMA3] = "llama3",
                                        [ROPE_YARN] = "yarn"};
    const char *key = json_has(r, "rope_type") ? "rope_type" : "type";
    const char *kind = json_read_string(r, key);
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        if (!kind || !strcmp(names[i], kind)) {
            rope->kind = (enum rope_kind)i;
            return;
        }
    }
    const char *why = "";
    if (!strcmp(kind, "longrope") || !strcmp(kind, "su"))
        why = " (its list of factors changes with the length of each sequence, which this server "
              "does not compute; take the model's short-context variant)";
    else if (!strcmp(kind, "dynamic"))
        why = " (its frequencies change with the length of each sequence, which this server does "
              "not compute; without rope_scaling the model serves its original context)";
    json_fail(r, STATUS_UNSUPPORTED, key,
              "found \"%.40s\"%s, expected default, linear, llama3 or yarn", kind, why);
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static void parse_yarn(struct json_reader *r, struct model_config *c)
{
    struct rope_config *rope = &c->rope;
    if (!json_object_get(r->obj, "factor"))
        json_fail(r, STATUS_INVALID, "factor", "missing, yarn needs a number from 1 to 1e6");
    rope->factor =
        json_read_num(r, "factor", 1e-3, 1e6, (double)c->pos_max / rope->original_pos_max);
    rope->beta_fast = json_read_num(r, "beta_fast", 0, 1e6, 32);
    rope->beta_slow = json_read_num(r, "beta_slow", 0, 1e6, 1);
    if (rope->beta_fast == 0)
        rope->beta_fast = 32;
    if (rope->beta_slow == 0)
        rope->beta_slow = 1;
    rope->truncate = json_read_bool(r, "truncate", true);
    double mscale = json_read_num(r, "mscale", -1e6, 1e6, 0);
    double all_dim = json_read_num(r, "mscale_all_dim", -1e6, 1e6, 0);
    double inferred = mscale != 0 && all_dim != 0
                          ? yarn_mscale(rope->factor, mscale) / yarn_mscale(rope->factor, all_dim)
                          : yarn_mscale(rope->factor, 1);
    rope->attention_factor = json_read_num(r, "attention_factor", 0, 1e6, inferred);
    double unread = json_read_num(r, "attn_factor", 0, 1e6, 1);
    if (unread != 1)
        log_warn("model",
                 "config.json: attn_factor %.9g changes nothing, here as in transformers; "
                 "attention_factor would",
                 unread);
    if (rope->theta <= 1)
        json_fail(r, STATUS_INVALID, "rope_theta", "found %.9g, yarn needs more than 1",
                  rope->theta);
}

static void parse_llama3(struct json_reader *r, struct rope_config *rope)
{
    rope->factor = json_need_num(r, "factor", 1e-3, 1e6);
    rope->low_freq_factor = json_need_num(r, "low_freq_factor", 1e-6, 1e6);
    rope->high_freq_factor = json_need_num(r, "high_freq_factor", 1e-6, 1e6);
    if (rope->high_freq_factor <= rope->low_freq_factor)
        json_fail(r, STATUS_INVALID, "high_freq_factor",
                  "found %.9g, expected more than low_freq_factor (%.9g)", rope->high_freq_factor,
                  rope->low_freq_factor);
}

void rope_config_parse(struct json_reader *r, struct model_config *c)
{
    struct rope_config *rope = &c->rope;
    struct json_range positions = {1, 1 << 24};
    /* the order of transformers: rope_scaling, where set, replaces rope_parameters */
    const char *key = json_has(r, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    struct json_reader d = json_enter(r, key);
    rope->attention_factor = 1;
    rope->factor = 1;
    parse_kind(&d, rope); /* first: an unknown kind explains its unknown keys */
    check_keys(&d);
    double theta = json_read_num(r, "rope_theta", 1e-3, 1e12, 1e4);
    rope->theta = json_read_num(&d, "rope_theta", 1e-3, 1e12, theta);
    double partial = json_read_num(&d, "partial_rotary_factor", 0, 1, 1);
    if (partial != 1)
        json_fail(&d, STATUS_UNSUPPORTED, "partial_rotary_factor",
                  "found %.9g, only a full rotation (1) is supported", partial);
    /* a top-level original_max_position_embeddings has priority, as in transformers */
    int64_t inner = json_read_int(&d, "original_max_position_embeddings", positions, c->pos_max);
    rope->original_pos_max =
        (uint32_t)json_read_int(r, "original_max_position_embeddings", positions, inner);
    if (rope->kind == ROPE_LINEAR)
        rope->factor = json_need_num(&d, "factor", 1e-3, 1e6);
    else if (rope->kind == ROPE_LLAMA3)
        parse_llama3(&d, rope);
    else if (rope->kind == ROPE_YARN)
        parse_yarn(&d, c);
}

/* theta^(2i/dim), f32 as torch computes it. */
static float pos_freq(const struct model_config *c, uint32_t i)
{
    return powf((float)c->rope.theta, (float)(2 * i) / (float)c->d_head);
}

static float llama3_freq(const struct rope_config *rope, float freq)
{
    float old = (float)rope->original_pos_max;
    float low = (float)rope->low_freq_factor;
    float factor = (float)rope->factor;
    float low_wavelen = (float)((double)rope->original_pos_max / rope->low_freq_factor);
    float high_wavelen = (float)((double)rope->original_pos_max / rope->high_freq_factor);
    float wavelen = (float)(2 * M_PI) / freq;
    if (wavelen < high_wavelen)
        return freq;
    if (wavelen > low_wavelen)
        return freq / factor;
    float smooth = (old / wavelen - low) / (float)(rope->high_freq_factor - rope->low_freq_factor);
    return (1 - smooth) * freq / factor + smooth * freq;
}

/* The (fractional) dimension whose frequency makes `rotations` turns over the original context. */
static double yarn_dim(const struct model_config *c, double rotations)
{
    return c->d_head * log(c->rope.original_pos_max / (rotations * 2 * M_PI)) /
           (2 * log(c->rope.theta));
}

static void yarn_freqs(const struct model_config *c, float *freq)
{
    const struct rope_config *rope = &c->rope;
    double low = yarn_dim(c, rope->beta_fast), high = yarn_dim(c, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, c->d_head - 1);
    if (low == high)
        high += 0.001;
    for (uint32_t i = 0; i < c->d_head / 2; i++) {
        float pf = pos_freq(c, i);
        float ramp = ((float)i - (float)low) / (float)(high - low);
        ramp = fminf(fmaxf(ramp, 0), 1);
        float extrapolate = 1 - ramp;
        freq[i] = 1 / ((float)rope->factor * pf) * (1 - extrapolate) + 1 / pf * extrapolate;
    }
}

static void fill_freqs(const struct model_config *c, float *freq)
{
    if (c->rope.kind == ROPE_YARN) {
        yarn_freqs(c, freq);
        return;
    }
    for (uint32_t i = 0; i < c->d_head / 2; i++) {
        freq[i] = 1 / pos_freq(c, i);
        if (c->rope.kind == ROPE_LINEAR)
            freq[i] /= (float)c->rope.factor;
        else if (c->rope.kind == ROPE_LLAMA3)
            freq[i] = llama3_freq(&c->rope, freq[i]);
    }
}

void model_rope_fill(const struct model_config *c, uint32_t pos_count, float *cos_out,
                     float *sin_out)
{
    float freq[256]; /* d_head <= 512 */
    uint32_t half = c->d_head / 2;
    float factor = (float)c->rope.attention_factor;
    CHECK(half <= ARRAY_COUNT(freq));
    fill_freqs(c, freq);
    for (uint32_t pos = 0; pos < pos_count; pos++) {
        for (uint32_t i = 0; i < half; i++) {
            float angle = (float)pos * freq[i];
            cos_out[(size_t)pos * half + i] = cosf(angle) * factor;
            sin_out[(size_t)pos * half + i] = sinf(angle) * factor;
        }
    }
}
