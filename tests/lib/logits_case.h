/* One case folder of tests/oracle/logits_golden.py, judged on one backend and dtype. */
#ifndef RS_TESTS_LOGITS_CASE_H
#define RS_TESTS_LOGITS_CASE_H

#include "tests/lib/logits_rig.h"

struct logits_case_options {
    const char *backend;
    enum dtype_choice dtype; /* F32 or BF16 */
    uint32_t thread_count, chunk;
    void (*report)(void *arg, const char *line); /* one line per setting; may be NULL */
    void *report_arg;
};

/* UNSUPPORTED: the case's stored dtype has no bar for this compute dtype. CONFLICT: a bar is
 * missed, err says which. */
MUST_CHECK enum status logits_case_check(const char *dir, const struct logits_case_options *opt,
                                         struct errtext *err);

#endif
