/* What one load of an adapter costs, stage by stage, in CPU time of the loading thread:
 *
 *     bench_load MODEL_DIR ADAPTER_DIR [repeats]
 *
 * The stages are those of the loader: open (config, header, shapes), read (every byte, through the
 * piece), pack (the form for the device: the rest of a load whose seal holds), hash (the rest of a
 * load without a seal); then what admission does. Medians; the file is in the page cache. */
#include "server/adapter/peft/reader.h"
#include "server/base/file.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REPEATS_MAX 1000

enum stage { OPEN, READ, PACK, HASH, READ_DIR, CHECK_VALUES, STAGE_COUNT };
static const char *const stage_name[STAGE_COUNT] = {"open", "read",     "pack",
                                                    "hash", "read_dir", "check_values"};

struct bench {
    struct model_config model;
    const char *dir;
    struct lora_entry *layout;
    void *blob;
    uint64_t blob_bytes, file_bytes;
    char *piece;
    uint32_t repeats;
    double ms[STAGE_COUNT][REPEATS_MAX];
};

static void die(const struct errtext *err)
{
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void read_tensors(const struct bench *b, const struct peft_reader *r)
{
    struct errtext err = ERRTEXT_INIT;
    for (uint64_t at = r->head_bytes; at < b->file_bytes; at += PEFT_PIECE_BYTES) {
        size_t n =
            (size_t)(b->file_bytes - at < PEFT_PIECE_BYTES ? b->file_bytes - at : PEFT_PIECE_BYTES);
        if (peft_read_exact(r->fd, at, b->piece, n, &err))
            die(&err);
    }
}

static void load_once(struct bench *b, uint32_t i)
{
    struct peft_reader r;
    struct errtext err = ERRTEXT_INIT;
    uint8_t id[32];
    double begin = now_ms();
    if (peft_reader_open(&r, b->dir, NULL, &b->model, UINT64_MAX, &err))
        die(&err);
    double opened = now_ms();
    b->file_bytes = r.seen.file.bytes;
    if (!b->layout) {
        b->layout = mem_array((size_t)b->model.n_layer * LORA_MODULE_COUNT, sizeof(*b->layout));
        peft_layout(&r.a, b->model.n_layer, DTYPE_BF16, b->layout, &b->blob_bytes);
        b->blob = mem_alloc_aligned(b->blob_bytes);
    }
    struct peft_target to = {
        .dtype = DTYPE_BF16, .n_layer = b->model.n_layer, .entry = b->layout, .blob = b->blob};
    double packing = now_ms();
    if (peft_reader_pack(&r, &to, b->piece, NULL, &err))
        die(&err);
    double packed = now_ms();
    read_tensors(b, &r);
    double read = now_ms();
    if (peft_reader_pack(&r, &to, b->piece, id, &err))
        die(&err);
    double hashed = now_ms();
    b->ms[OPEN][i] = opened - begin;
    b->ms[READ][i] = read - packed;
    b->ms[PACK][i] = packed - packing - b->ms[READ][i];
    b->ms[HASH][i] = hashed - read - (packed - packing);
    peft_reader_close(&r);
}

static void admit_once(struct bench *b, uint32_t i)
{
    struct peft_adapter a;
    struct errtext err = ERRTEXT_INIT;
    double begin = now_ms();
    if (peft_read_dir(&a, b->dir, NULL, &b->model, UINT64_MAX, &err))
        die(&err);
    double read = now_ms();
    if (peft_check_values(&a, &err))
        die(&err);
    b->ms[READ_DIR][i] = read - begin;
    b->ms[CHECK_VALUES][i] = now_ms() - read;
    peft_fini(&a);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(struct bench *b)
{
    double m[STAGE_COUNT];
    for (int s = 0; s < STAGE_COUNT; s++) {
        qsort(b->ms[s], b->repeats, sizeof(b->ms[s][0]), by_value);
        m[s] = b->ms[s][b->repeats / 2];
        printf("%-12s %7.2f ms %7.1f GB/s\n", stage_name[s], m[s],
               (double)b->file_bytes / m[s] * 1e-6);
    }
    double again = m[OPEN] + m[READ] + m[PACK];
    printf("a load of %.1f MB: %.2f ms of CPU where a seal holds, %.2f with the hash (of %u)\n",
           (double)b->file_bytes * 1e-6, again, again + m[HASH], b->repeats);
}

int main(int argc, char **argv)
{
    static struct bench b;
    struct errtext err = ERRTEXT_INIT;
    char path[4096], *text;
    size_t len;
    if (argc < 3) {
        fprintf(stderr, "usage: bench_load MODEL_DIR ADAPTER_DIR [repeats]\n");
        return 2;
    }
    b.dir = argv[2];
    b.repeats = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 21;
    b.repeats = b.repeats < 1 ? 1 : b.repeats > REPEATS_MAX ? REPEATS_MAX : b.repeats;
    b.piece = mem_alloc_aligned(PEFT_PIECE_BYTES);
    snprintf(path, sizeof(path), "%s/config.json", argv[1]);
    if (file_read(path, 1u << 20, &text, &len, &err) ||
        model_config_parse(&b.model, text, len, NULL, 0, &err))
        die(&err);
    for (uint32_t i = 0; i < b.repeats; i++)
        load_once(&b, i);
    for (uint32_t i = 0; i < b.repeats; i++)
        admit_once(&b, i);
    report(&b);
    mem_free_aligned(b.blob, b.blob_bytes);
    mem_free_aligned(b.piece, PEFT_PIECE_BYTES);
    mem_free(b.layout);
    mem_free(text);
    return 0;
}
