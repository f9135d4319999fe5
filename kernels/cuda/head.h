/* Inside the head family: its memory, its uploads, and what its files share. What the ops need of
 * the host goes up in one copy a pass, through a ring of pinned buffers: a buffer is used again
 * when the stream has come by its copy. Outputs (sample_out, logprob, sketches) are gathered in
 * device memory, h->out, and copied from there to the host's, where the args say. */
#ifndef RS_KERNELS_CUDA_HEAD_H
#define RS_KERNELS_CUDA_HEAD_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SAMPLE_ROWS_MAX  64   /* of a pass of sample or top_logprobs */
#define SAMPLE_TILES_MAX 512  /* of the vocabulary: 524288 tokens */
#define SAMPLE_BIAS_MAX  4096 /* of a row */
#define SCORE_ROWS_MAX   512  /* rows that share a walk over the vocabulary */
#define SCORE_SPAN_TILES 16   /* tiles of a step of that walk */
#define BUCKETS          1024
#define BUCKET_WORDS     (3 * BUCKETS) /* counts, low and high words of the weights */
#define HEAD_UPLOADS     12            /* two steps of 256 sequences: neither waits for the other */

/* What is known of a tile of a row: 16 bytes, one store. */
struct tile_stat {
    uint32_t key;      /* the best raw logit */
    float sum;         /* of e^(x - best), raw */
    uint32_t pick_key; /* the best adjusted logit */
    float low;         /* the lowest finite adjusted logit; inf: none */
};

/* What the device has of a slot's history. */
struct head_seen {
    uint64_t history; /* 0: nothing */
    uint32_t n_known;
};

struct head_buffer {
    char *pinned;
    void *event; /* the copy has come by */
};

struct cuda_head {
    struct tile_stat *stat; /* [MAX(sample_rows, score_rows), n_tile] */
    uint32_t *bucket;       /* [sample_rows, BUCKET_WORDS] */
    float *adjusted;        /* [sample_rows, n_vocab] */
    int32_t *history;       /* [seqs_max, history_stride] tokens of penalised rows */
    int32_t *latest;        /* [seqs_max] the id sampled last for each slot */
    float *logits;          /* [score_rows, span_tiles * SCORE_TILE] */
    float *target_logit;    /* [score_rows] */
    char *upload;           /* [upload_bytes] */
    char *out;              /* [result_bytes] */
    struct head_buffer uploads[HEAD_UPLOADS];
    struct head_seen *seen; /* [seqs_max] host */
    size_t upload_bytes, result_bytes;
    uint32_t sample_rows, score_rows, span_tiles, n_tile, history_stride, turn;
};

/* Pinned memory for upload_bytes, and its way to h->upload in stream order. */
enum status head_upload_begin(struct cuda_backend *c, char **pinned);
enum status head_upload_end(struct cuda_backend *c, size_t bytes);
/* h->out to where the caller wants it, waiting. bytes > 0. */
enum status head_result(struct cuda_backend *c, void *host, size_t bytes);

/* struct sample_row as the device reads it: positions in the upload instead of pointers. */
struct pick_row {
    double scale; /* log2(e) / temperature; 0: greedy */
    double unit;  /* the draw, uniform in (0, 1): Philox runs on the host */
    float top_p, min_p, repetition, frequency, presence;
    uint32_t limit; /* top_k; UINT32_MAX: off */
    uint32_t top_count;
    uint32_t bias_at, bias_count;
    uint32_t token_at, n_prompt, n_tok, n_known; /* tokens [0, n_known) are in the history */
    uint32_t slot;                               /* CUDA_NONE: nothing is kept */
    bool adjusted, penalised;
};

/* sample_rows.c: what of a call goes up together. */
struct sample_upload {
    size_t bytes, bias_at, token_at; /* rows first, then biases, then tokens */
    uint32_t n_row;
    bool adjusted, weighed; /* some row is adjusted; has a temperature */
};
/* As many of n_row rows as fit, at least one; the histories of these rows count as seen. */
struct sample_upload sample_upload_fill(struct cuda_head *h, char *to, const struct sample_row *row,
                                        uint32_t n_row);
void sample_rows_check(const struct cuda_backend *c, const struct sample_row *row, uint32_t n_row);

static inline uint32_t vocab_tiles(uint32_t n_vocab)
{
    return (n_vocab + SCORE_TILE - 1) / SCORE_TILE;
}

#ifdef __cplusplus
}
#endif

#endif
