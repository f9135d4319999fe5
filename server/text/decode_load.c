/* The "decoder" object into a list of steps. */
#include "server/base/mem.h"
#include "server/text/decode.h"
#include "server/text/jsonget.h"
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

static enum status load_char(struct decode_step *s, const json_t *json, const char *where,
                             const char *key, struct errtext *err)
{
    enum status st = json_get_text(json, where, key, &s->content, &s->content_len, err);
    if (!st && utf8_count(s->content, s->content_len) != 1)
        st = err_set(err, STATUS_INVALID, "%s: \"%s\" must be one character", where, key);
    return st;
}

static enum status load_strip(struct decode_step *s, const json_t *json, struct errtext *err)
{
    static const char where[] = "decoder Strip";
    s->kind = DECODE_STRIP;
    enum status st = load_char(s, json, where, "content", err);
    if (!st)
        st = json_get_count(json, where, "start", DECODE_STRIP_MAX, &s->strip_start, err);
    return st ? st : json_get_count(json, where, "stop", DECODE_STRIP_MAX, &s->strip_stop, err);
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
        s->kind = DECODE_METASPACE;
        enum status st = load_char(s, json, "decoder Metaspace", "replacement", err);
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
    const char *type;
    enum status st = json_get_type(json, "decoder", &type, err);
    if (st)
        return st;
    if (strcmp(type, "Sequence") == 0) {
        json_t *list;
        st = json_get_array(json, "decoder Sequence", "decoders", DECODE_STEPS_MAX, &list, err);
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
