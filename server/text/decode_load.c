/* The "decoder" object into a flat list of steps: a Sequence is opened, each step keeps only what
 * running needs, and where Fuse stands is remembered: what follows it sees the whole text. */
#include "server/base/json.h"
#include "server/base/mem.h"
#include "server/text/decode.h"
#include "server/text/utf8.h"

#include <string.h>

#define SEQUENCE_DEPTH 8

void decoder_fini(struct decoder *d)
{
    for (size_t i = 0; i < d->n; i++) {
        normalize_step_fini(&d->steps[i].replace);
        mem_free(d->steps[i].content);
    }
    *d = (struct decoder){0};
}

static void load_char(struct decode_step *s, struct json_reader *r, const char *key)
{
    s->content = json_need_copy(r, key, &s->content_len);
    if (s->content && utf8_count(s->content, s->content_len) != 1)
        json_fail(r, STATUS_INVALID, key, "found \"%.40s\", expected one character", s->content);
}

static enum status load_strip(struct decode_step *s, const json_t *json, struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "decoder Strip", .err = err};
    struct json_range range = {0, DECODE_STRIP_MAX};
    s->kind = DECODE_STRIP;
    load_char(s, &r, "content");
    s->strip_start = (uint32_t)json_need_int(&r, "start", range);
    s->strip_stop = (uint32_t)json_need_int(&r, "stop", range);
    return r.st;
}

static enum status load_step(struct decode_step *s, const json_t *json, const char *type,
                             struct errtext *err)
{
    if (strcmp(type, "ByteLevel") == 0) {
        s->kind = DECODE_BYTE_LEVEL;
        return STATUS_OK;
    }
    if (strcmp(type, "ByteFallback") == 0) {
        s->kind = DECODE_BYTE_FALLBACK;
        return STATUS_OK;
    }
    if (strcmp(type, "Fuse") == 0) {
        s->kind = DECODE_FUSE;
        return STATUS_OK;
    }
    if (strcmp(type, "Replace") == 0) {
        s->kind = DECODE_REPLACE;
        return normalize_replace_load(&s->replace, json, "decoder Replace", err);
    }
    if (strcmp(type, "Strip") == 0)
        return load_strip(s, json, err);
    if (strcmp(type, "Metaspace") == 0) {
        enum prepend_scheme scheme;
        struct json_reader r = {.obj = json, .where = "decoder Metaspace", .err = err};
        s->kind = DECODE_METASPACE;
        load_char(s, &r, "replacement");
        enum status st = r.st;
        if (!st)
            st = metaspace_load_scheme(json, &scheme, err);
        if (!st)
            s->drop_first = scheme != PREPEND_NEVER;
        return st;
    }
    return err_set(err, STATUS_UNSUPPORTED, "decoder \"%.64s\" is not supported", type);
}

static enum status load_into(struct decoder *d, const json_t *json, int depth, struct errtext *err)
{
    struct json_reader r = {.obj = json, .where = "decoder", .err = err};
    const char *type = json_need_string(&r, "type");
    if (r.st)
        return r.st;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_need_list(&r, "decoders", DECODE_STEPS_MAX);
        enum status st = r.st;
        if (!st && depth == 0)
            st = err_set(err, STATUS_TOO_LARGE, "decoder: Sequences nested too deep");
        for (size_t i = 0; !st && i < json_array_size(list); i++)
            st = load_into(d, json_array_get(list, i), depth - 1, err);
        return st;
    }
    if (d->n == DECODE_STEPS_MAX)
        return err_set(err, STATUS_TOO_LARGE, "decoder: more than %d steps", DECODE_STEPS_MAX);
    return load_step(&d->steps[d->n++], json, type, err);
}

/* What a stream must know, and cannot do: text already sent is not taken back, so a Strip of the
 * end of the whole text is refused. */
static enum status summarize(struct decoder *d, struct errtext *err)
{
    d->fuse_idx = d->n;
    for (size_t i = 0; i < d->n; i++) {
        const struct decode_step *s = &d->steps[i];
        d->byte_level |= s->kind == DECODE_BYTE_LEVEL;
        d->byte_fallback |= s->kind == DECODE_BYTE_FALLBACK;
        if (d->fuse_idx == d->n && (s->kind == DECODE_FUSE || s->kind == DECODE_BYTE_LEVEL))
            d->fuse_idx = i;
        if (i > d->fuse_idx && s->kind == DECODE_STRIP && s->strip_stop)
            return err_set(err, STATUS_UNSUPPORTED,
                           "decoder Strip with \"stop\" after Fuse is not supported");
    }
    return STATUS_OK;
}

enum status decoder_load(struct decoder *d, const json_t *json, struct errtext *err)
{
    if (!json || json_is_null(json))
        return STATUS_OK;
    d->present = true;
    enum status st = load_into(d, json, SEQUENCE_DEPTH, err);
    return st ? st : summarize(d, err);
}
