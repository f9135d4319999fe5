/* The host's side of struct cuda_step and of recorded passes: made by prepare, gone with the
 * backend. */
#ifndef RS_KERNELS_CUDA_TABLES_H
#define RS_KERNELS_CUDA_TABLES_H

#include "kernels/cuda/cuda.h"

#define KV_TOK_PER_PAGE 16 /* kv_cache.page_tok of every cache given to this backend */

/* step.c */
enum status cuda_tables_prepare(struct cuda_backend *c, struct errtext *err);
void cuda_tables_release(struct cuda_backend *c);
enum status cuda_step(struct backend *b, const struct step_args *a);

/* results.c */
enum status cuda_results_prepare(struct cuda_backend *c, struct errtext *err);
void cuda_results_release(struct cuda_backend *c);

/* upload.c */
extern const struct backend_adapter_ops cuda_adapter_ops;
enum status cuda_uploads_create(struct cuda_backend *c, struct errtext *err);
void cuda_uploads_release(struct cuda_backend *c);

/* pass.c */
uint32_t cuda_pass_rows(const struct backend *b, uint32_t n_tok);
enum status cuda_pass_begin(struct backend *b, const struct pass_args *a, struct pass *out);
enum status cuda_pass_end(struct backend *b, struct pass *p, enum status st);
void cuda_graphs_create(struct cuda_backend *c);
void cuda_graphs_forget(struct cuda_backend *c); /* tables have moved: none is valid */
void cuda_graphs_release(struct cuda_backend *c);
uint32_t cuda_graphs_max(void); /* recorded at a time */

#endif
