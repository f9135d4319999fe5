/* Shared by the tests of server/text: golden files, and a tiny tokenizer.json with named parts to
 * replace. Include after cmocka.h. */
#ifndef RS_TESTS_TEXT_FIXTURE_H
#define RS_TESTS_TEXT_FIXTURE_H

#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/text/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static inline json_t *golden_load(const char *name)
{
    char path[512];
    char *data = NULL;
    size_t len = 0;
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/text/%s", RS_TEST_DATA, name);
    if (file_read(path, (size_t)8 << 20, &data, &len, &err))
        fail_msg("%s", err.text);
    json_error_t why;
    json_t *root = json_loadb(data, len, JSON_ALLOW_NUL, &why);
    mem_free(data);
    if (!root)
        fail_msg("%s: line %d: %s", path, why.line, why.text);
    return root;
}

/* A tokenizer.json of the given parts (JSON texts; NULL: the default). */
struct tiny_parts {
    const char *model, *added, *normalizer, *pre, *post, *decoder;
};

static inline enum status tiny_load(const struct tiny_parts *p, struct tokenizer **t,
                                    struct errtext *err)
{
    struct buf b;
    buf_init(&b, (size_t)64 << 20);
    buf_puts(&b, "{\"version\":\"1.0\",\"added_tokens\":");
    buf_puts(&b, p->added ? p->added : "[]");
    buf_puts(&b, ",\"normalizer\":");
    buf_puts(&b, p->normalizer ? p->normalizer : "null");
    buf_puts(&b, ",\"pre_tokenizer\":");
    buf_puts(&b, p->pre ? p->pre : "null");
    buf_puts(&b, ",\"post_processor\":");
    buf_puts(&b, p->post ? p->post : "null");
    buf_puts(&b, ",\"decoder\":");
    buf_puts(&b, p->decoder ? p->decoder : "null");
    buf_puts(&b, ",\"model\":");
    buf_puts(&b, p->model ? p->model
                          : "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\" \":3},"
                            "\"merges\":[\"a b\"]}");
    buf_puts(&b, "}");
    enum status st = tokenizer_load(t, b.data, b.len, err);
    buf_fini(&b);
    return st;
}

static inline double cpu_seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

#endif
