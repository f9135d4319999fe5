/* value.json: what each contributor's rows were worth, measured by training without them. Losses
 * are in micronats (1e-6 nat of -log p) and whole, so that the file is canonical: keys ascend, no
 * blanks, a newline at its end. It is its maker's claim with its recipe: whoever has datanet and
 * base measures again and compares the bytes.
 *
 * {"base":"0x…","baseLoss":…,"contributors":[{"high":…,"low":…,"own":…,"owner":"0x…","repeated":…,
 * "rows":…,"tokens":…,"total":…,"value":…},…],"documentRoot":"0x…","eval":"0x…"|null,"folds":…,
 * "format":"residual.value.1","gain":{…},"loss":…,"options":{…},"program":"…","seeds":[…],
 * "training":"0x…","unit":"micronat"}
 *
 * Immutable once parsed; thread: any. */
#ifndef RS_DATANET_VALUE_FILE_H
#define RS_DATANET_VALUE_FILE_H

#include "server/datanet/datanet.h"

#define VALUE_FILE             "value.json"
#define VALUE_FORMAT           "residual.value.1"
#define VALUE_BYTES_MAX        (1u << 20)
#define VALUE_CONTRIBUTORS_MAX 256u
#define VALUE_FOLDS_MAX        20u
#define VALUE_SEEDS_MAX        20u

struct value_figure {         /* micronats */
    int64_t value, low, high; /* per held-out token; 95 % over parts and seeds */
    int64_t total;            /* of all held-out tokens once */
    uint64_t tokens;          /* held out, once */
};
struct value_line {
    uint8_t owner[20];
    uint32_t rows, repeated;   /* rows that count for him; and that an earlier row said already */
    struct value_figure worth; /* what others' held-out rows cost more without his */
    int64_t own;               /* the same of his own held-out rows: judges nobody */
    bool has_own;
};
struct value_report {
    uint8_t digest[32]; /* BLAKE2b-256 of the file */
    uint8_t base[32], document_root[32], training[32], eval[32];
    bool has_eval;
    uint32_t folds, seeds;
    uint64_t seed;            /* the first */
    int64_t base_loss, loss;  /* per held-out token: of the base, with the adapter of all rows */
    struct value_figure gain; /* the first less the second */
    uint32_t n;
    struct value_line *line; /* [n] the worthiest first */
};

struct value_recipe {      /* the rest of what fixes the numbers */
    const json_t *options; /* of training, the adapter's configuration among them */
    const char *program;
};
/* The file, at the end of out; digest is set. NO_MEMORY. */
MUST_CHECK enum status value_report_render(struct buf *out, struct value_report *r,
                                           const struct value_recipe *recipe, struct errtext *err);
/* Errors: INVALID names the field: not canonical, of other rows than d's (stale), a contributor
 * that d has not; NO_MEMORY. */
MUST_CHECK enum status value_report_parse(struct value_report **out, const char *text, size_t len,
                                          const struct datanet *d, struct errtext *err);
void value_report_free(struct value_report *r); /* NULL is fine */
/* The order of lines: worth descending, owner ascending. For qsort. */
int value_line_order(const void *a, const void *b);

#endif
