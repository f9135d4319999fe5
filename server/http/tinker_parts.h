/* What the parts of http/tinker*.c do for each other. */
#ifndef RS_HTTP_TINKER_PARTS_H
#define RS_HTTP_TINKER_PARTS_H

#include "server/http/tinker_impl.h"

/* ---- tinker.c ---- */

/* The body of x as an object; *root is the caller's. in->st: it is none. */
void tinker_body(struct exchange *x, json_t **root, struct json_reader *in, struct errtext *err);
/* An error as the SDK reads it: a status of 4xx or 5xx with our error object. GONE is 410. */
void tinker_fail(struct exchange *x, enum status st, const struct errtext *err);
void tinker_gone(struct exchange *x, const char *what, const char *id);

/* The lock is held. */
struct tinker_session *tinker_find_session(struct tinker *t, uint64_t fair_key, const char *id);
/* A session of x's key, held; NULL: there is none, and x has its answer. id: the session's, or that
 * of a model, sampler or future in it. */
struct tinker_session *tinker_hold(struct exchange *x, const char *id);
void tinker_release(struct tinker *t, struct tinker_session *s);
MUST_CHECK bool tinker_has_model(struct tinker *t, struct tinker_session *s, const char *id,
                                 struct tinker_model **out);
/* Of a held session; NULL: x has its answer. */
struct tinker_model *tinker_find_model(struct exchange *x, struct tinker_session *s,
                                       const char *id);

/* What calls training, where there is none: true, and x has its answer. tinker_train.c */
bool tinker_is_off(struct exchange *x);

/* ---- tinker_future.c ---- */

/* A new future in a held session, TINKER_OPEN; NULL: x has its answer (an error, or the id of the
 * future that an earlier call began). */
struct tinker_future *tinker_open(struct exchange *x, struct tinker_session *s,
                                  enum tinker_kind kind, const char *of, int64_t seq);
/* It could not begin. */
void tinker_drop(struct tinker_future *f);
/* Give f->work to the factory, and x the answer {request_id} or an error. f is gone or running. */
void tinker_begin_work(struct exchange *x, struct tinker_future *f);
/* It has so many bytes now: past TINKER_BYTES_MAX there are no new ones. */
void tinker_charge(struct tinker_future *f, uint64_t bytes);
/* A call with model_id and seq_id: its future, prepared (f->work) and begun. What prepare returns
 * refuses the call. */
typedef enum status tinker_prepare(struct exchange *x, struct tinker_future *f,
                                   struct json_reader *in);
void tinker_call(struct exchange *x, enum tinker_kind kind, tinker_prepare *prepare);
/* It runs from now on: answer {request_id}. */
void tinker_begun(struct exchange *x, struct tinker_future *f);
/* It could not after all: it is gone. */
void tinker_not_begun(struct tinker_future *f);
/* The same as tinker_begun of what is over already. */
void tinker_done_at_once(struct exchange *x, struct tinker_future *f);
/* It has run. Thread: any; must not block. */
void tinker_post(struct tinker_future *f);
/* Make its answer. Thread rs-tinker. */
void tinker_finish(struct tinker_future *f);
/* Answer who has waited long enough; all: whoever waits. */
void tinker_answer_overdue(struct tinker *t, uint64_t now_ns, bool all);
/* The engine's chain still has its request. */
bool tinker_chain_has(const struct tinker_future *f);
/* The lock is held: out of its session; and one whose answer went out before then, or NULL. */
void tinker_unlink(struct tinker_session *s, struct tinker_future *f);
struct tinker_future *tinker_take_sent(struct tinker_session *s, uint64_t before_ns);
void tinker_free_future(struct tinker_future *f);
/* The answer of a future that failed. */
void tinker_put_failure(struct tinker_future *f, enum status st, const struct errtext *err);

/* A new session of x's key. FULL. */
MUST_CHECK enum status tinker_session_new(struct exchange *x, char id[TINKER_SESSION_ID],
                                          struct errtext *err);
void tinker_session_close(struct tinker *t, struct tinker_session *s); /* held */
/* Into a held session; false: it has as many as it may, or one of this id: a is the caller's. */
MUST_CHECK bool tinker_add_sampler(struct tinker *t, struct tinker_session *s,
                                   struct tinker_sampler *a);
/* A copy; false: there is none. */
MUST_CHECK bool tinker_get_sampler(struct tinker *t, struct tinker_session *s, const char *id,
                                   struct tinker_sampler *out);

/* ---- the makers of answers: thread rs-tinker, f is theirs ---- */

void tinker_finish_train(struct tinker_future *f);   /* tinker_train.c */
void tinker_finish_weights(struct tinker_future *f); /* tinker_weights.c */
void tinker_finish_sample(struct tinker_future *f);  /* tinker_sample.c */
/* Of a closed session, nothing of it runs: its adapters without a name go. tinker_weights.c */
void tinker_forget_samplers(struct tinker *t, struct tinker_model *m);

/* ---- tinker_checkpoint.c ---- */

MUST_CHECK enum status tinker_finish_save(struct tinker_future *f, struct errtext *err);
void tinker_drop_save(struct tinker_future *f); /* it failed */
void tinker_finish_load(struct tinker_future *f);

/* ---- tinker_weights.c ---- */

MUST_CHECK enum status tinker_check_name(const char *name, const char *param, struct errtext *err);
/* tinker://MODEL/<kind>/NAME. INVALID. */
MUST_CHECK enum status tinker_path_parse(const char *path, const char *kind,
                                         char model[TINKER_ID_BYTES],
                                         char name[TINKER_NAME_MAX + 1], struct errtext *err);
/* The adapter's name of a model's sampler weights. */
void tinker_put_path(struct tinker_future *f, const char *kind, const char *name);
void tinker_adapter_name(char out[CATALOG_NAME_MAX + 1], const char *model, const char *name);
void tinker_sampler_id(struct tinker_sampler *a, const char *session, int64_t seq);
/* Opens a learner and adds the model to a held session. */
MUST_CHECK enum status tinker_new_model(struct exchange *x, struct tinker_session *s, uint32_t seq,
                                        const struct tinker_lora *lora, struct tinker_model **out,
                                        struct errtext *err);

/* ---- tinker_rows.c ---- */

/* The rows that the batch's spans name, checked, in out. Errors name datum and span. */
MUST_CHECK enum status tinker_rows_of(struct tinker_rows *out, struct http_server *s,
                                      const struct tinker_batch *b, struct errtext *err);
/* All that gradients will have come from when what was asked for has run: added to out, or held
 * against more; either may be NULL. INVALID: more are of another datanet. */
MUST_CHECK enum status tinker_rows_asked(struct tinker_model *m, struct tinker_rows *out,
                                         const struct tinker_rows *more, struct errtext *err);
/* More rows of the same datanet. INVALID: of another. */
MUST_CHECK enum status tinker_rows_add(struct tinker_rows *to, const struct tinker_rows *more,
                                       struct errtext *err);
void tinker_rows_fini(struct tinker_rows *r);
/* The training manifest, a text in *out (mem_free), NULL where there are no rows. */
MUST_CHECK enum status tinker_rows_render(char **out, size_t *len, const struct tinker_rows *r,
                                          struct http_server *s, struct errtext *err);
MUST_CHECK enum status tinker_rows_read(struct tinker_rows *out, const char *text, size_t len,
                                        struct http_server *s, struct errtext *err);

#endif
