/* Learners of the factory (factory.h): adapters in memory that clients train step by step. Thread:
 * any; what is called back runs on the factory's and must not block. */
#ifndef RS_TRAIN_FACTORY_LEARNERS_H
#define RS_TRAIN_FACTORY_LEARNERS_H

#include "server/train/factory.h"

struct factory_learner_spec {
    const char *owner;
    const char *peft_config; /* adapter_config.json */
    size_t peft_config_bytes;
    uint64_t seed;
};
/* Errors: FULL, INVALID naming the field, NO_MEMORY. */
MUST_CHECK enum status factory_learner_open(struct factory *f,
                                            const struct factory_learner_spec *spec,
                                            uint64_t *learner, struct errtext *err);
/* Its queued works are told CANCELLED. */
void factory_learner_close(struct factory *f, uint64_t learner);

enum factory_work_kind {
    FACTORY_PASS,    /* forward, and backward: gradients add up until the next OPTIM */
    FACTORY_OPTIM,   /* one step of AdamW, then the gradient is zero */
    FACTORY_SAVE,    /* the whole state to `path`, the folder exists */
    FACTORY_LOAD,    /* weights from `path`; with_optim: moments and steps too */
    FACTORY_PUBLISH, /* as it is, under `name`, with a training manifest or without */
};
/* Of a loss that depends on the log-probabilities: weight [n] of a sequence from them, before the
 * backward pass. Factory's thread. */
typedef void factory_weigh(void *arg, uint32_t seq, const float *logprob, float *weight);
struct factory_seq {
    const int32_t *ids, *target; /* [n]; target below 0: none */
    float *weight;               /* [n]; with weigh: written by it */
    float *logprob;              /* [n] out */
    uint32_t n;
};
struct factory_work { /* the caller's until on_done */
    enum factory_work_kind kind;
    uint64_t learner;
    /* PASS */
    struct factory_seq *seq;
    uint32_t n_seq;
    bool forward_only;
    factory_weigh *weigh; /* NULL: the weights as they are */
    /* OPTIM: schedule constant, no warm-up; norm out */
    struct optim_options optim;
    double norm;
    /* SAVE, LOAD */
    const char *path;
    bool with_optim;
    /* PUBLISH: adapter_id out */
    const char *name, *training;
    size_t training_bytes;
    uint64_t quota_bytes;
    uint8_t adapter_id[32];

    enum status status;
    struct errtext err;
    void (*on_done)(struct factory_work *w, void *arg);
    void *arg;                 /* of on_done and weigh */
    struct factory_work *next; /* the factory's */
};
/* Works of a learner are done in the order they came. OK, FULL, NOT_FOUND the learner, INVALID a
 * sequence longer than `tokens` or an id outside of the vocabulary (named), CANCELLED. */
MUST_CHECK enum status factory_work(struct factory *f, struct factory_work *w, struct errtext *err);

#endif
