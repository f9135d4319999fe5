/* Datanets come from strangers: the list, the training manifest, value.json and the texts. Whatever
 * the bytes, each is answered; what is accepted keeps its own rules. The first byte says which it
 * is. */
#include "server/base/mem.h"
#include "server/datanet/training.h"
#include "server/datanet/value_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static const char *folder(void)
{
    static char path[] = "/tmp/fuzz_datanet.XXXXXX", made;
    if (!made && !mkdtemp(path))
        abort();
    made = 1;
    return path;
}

struct rows_seen {
    size_t end, len;
};

static enum status see(void *arg, size_t offset, size_t bytes, struct errtext *err)
{
    struct rows_seen *s = arg;
    if (offset < s->end || !bytes || offset + bytes > s->len)
        abort();
    s->end = offset + bytes;
    return STATUS_OK;
}

static void try_text(const char *text, size_t len)
{
    struct buf out;
    struct errtext err = ERRTEXT_INIT;
    buf_init(&out, 4 * (size_t)DOCUMENT_BYTES_MAX);
    if (document_normal(&out, text, len, &err) == STATUS_OK) {
        for (int k = 0; k < ROWS_KIND_COUNT; k++) {
            struct rows_seen s = {.len = out.len};
            if (rows_each((enum rows_kind)k, out.data, out.len, see, &s, NULL) == STATUS_OK &&
                k < ROWS_ROWS && !s.end)
                abort(); /* a text that is not empty has a row */
        }
    } else if (!err.text[0]) {
        abort();
    }
    buf_fini(&out);
}

static void check_training(const struct training *t, const struct datanet *d, const char *text,
                           size_t len)
{
    struct buf out;
    buf_init(&out, TRAINING_BYTES_MAX);
    for (uint32_t i = 0; i < t->n; i++) {
        const struct training_row *r = &t->row[i];
        if (r->document >= datanet_head(d)->n ||
            (uint64_t)r->offset + r->bytes > datanet_document(d, r->document)->bytes)
            abort();
    }
    if (training_render(&out, t, d, NULL) || out.len != len || memcmp(out.data, text, len) != 0)
        abort();
    buf_fini(&out);
}

static void try_list(const char *text, size_t len)
{
    char path[64];
    struct datanet *d;
    struct errtext err = ERRTEXT_INIT;
    snprintf(path, sizeof(path), "%s/datanet.json", folder());
    FILE *f = fopen(path, "w");
    if (!f || (len && fwrite(text, len, 1, f) != 1) || fclose(f))
        abort();
    if (datanet_open(&d, folder(), NULL, &err)) {
        if (!err.text[0])
            abort();
        return;
    }
    const struct documents *list = datanet_documents(d);
    for (uint32_t i = 1; i < list->count; i++) {
        if (memcmp(list->item[i - 1].digest, list->item[i].digest, 32) >= 0)
            abort();
    }
    datanet_release(d);
}

static const struct datanet *known(void)
{
    static struct datanet *d;
    if (!d && datanet_open(&d, RS_TEST_ROOT "/configs/demo/adapters/elm-reach", NULL, NULL))
        abort();
    return d;
}

static void try_value(const char *text, size_t len)
{
    struct value_report *v;
    struct errtext err = ERRTEXT_INIT;
    if (value_report_parse(&v, text, len, known(), &err) == STATUS_OK) {
        for (uint32_t i = 1; i < v->n; i++) {
            if (v->line[i - 1].worth.value < v->line[i].worth.value)
                abort();
        }
        value_report_free(v);
    } else if (!err.text[0]) {
        abort();
    }
}

static void try_training(const char *text, size_t len)
{
    struct training *t;
    struct errtext err = ERRTEXT_INIT;
    if (training_parse(&t, text, len, known(), &err) == STATUS_OK) {
        check_training(t, known(), text, len);
        training_free(t);
    } else if (!err.text[0]) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (!len)
        return 0;
    char *text = mem_try_strndup((const char *)data + 1, len - 1);
    if (data[0] % 4 == 0)
        try_text(text, len - 1);
    else if (data[0] % 4 == 1)
        try_list(text, len - 1);
    else if (data[0] % 4 == 3)
        try_value(text, len - 1);
    else
        try_training(text, len - 1);
    mem_free(text);
    return 0;
}
