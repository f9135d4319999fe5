/* Module name patterns of adapter_config.json: regular expressions written by strangers, so compile
 * size, steps per match and the number of matches are bounded. Thread: one. */
#ifndef RS_ADAPTER_PEFT_MATCH_H
#define RS_ADAPTER_PEFT_MATCH_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stdint.h>

#define PEFT_PATTERN_BYTES_MAX 4096
#define PEFT_MATCHES_MAX       1000000 /* per adapter */

struct peft_pattern; /* compiled */

/* How the pattern meets a module path, in Python's terms. */
enum peft_pattern_kind {
    PEFT_PATTERN_FULL,   /* re.fullmatch(pattern, path) */
    PEFT_PATTERN_SUFFIX, /* re.match(rf"(.*\.)?({pattern})$", path) */
    PEFT_PATTERN_LAYER,  /* re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", path) */
};

/* field names the config key in errors: INVALID for a pattern that does not compile, TOO_LARGE. */
MUST_CHECK enum status peft_pattern_compile(struct peft_pattern **out, enum peft_pattern_kind kind,
                                            const char *text, const char *field,
                                            struct errtext *err);
void peft_pattern_free(struct peft_pattern *p);
/* *layer is the idx of a PEFT_PATTERN_LAYER match (may be NULL). Errors: INVALID when the pattern
 * takes too many steps, or *budget (matches left) is spent. */
MUST_CHECK enum status peft_pattern_test(const struct peft_pattern *p, const char *path,
                                         uint32_t *budget, bool *matched, uint32_t *layer,
                                         struct errtext *err);

#endif
