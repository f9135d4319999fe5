/* adapter_config.json -> rules: which modules of the base are adapted, at which rank and scale.
 * Semantics are those of peft's LoRA; a field that changes inference in a way we do not compute is
 * refused by name, a field that only matters in training is ignored, a field we have never heard of
 * is refused unless it is off. Thread: one. */
#ifndef RS_ADAPTER_PEFT_CONFIG_H
#define RS_ADAPTER_PEFT_CONFIG_H

#include "server/adapter/peft/match.h"

#include <jansson.h>

#define PEFT_RANK_MAX     4096
#define PEFT_PATTERNS_MAX 4096

struct peft_pattern_entry { /* of rank_pattern or alpha_pattern, file order */
    struct peft_pattern *pattern;
    double value;
};

struct peft_rules {
    json_t *root;
    uint32_t r;
    double alpha;
    bool use_rslora;
    struct peft_pattern *target, *exclude; /* string forms, or NULL */
    const json_t *target_list, *exclude_list;
    bool is_all_linear, is_target_open; /* "all-linear"; null: the tensors say */
    const json_t *layers;               /* layers_to_transform: int or list, or NULL */
    struct peft_pattern **layers_pattern;
    uint32_t layers_pattern_count;
    struct peft_pattern_entry *rank, *alpha_of;
    uint32_t rank_count, alpha_count;
    uint32_t budget; /* matches left */
};

MUST_CHECK enum status peft_rules_parse(struct peft_rules *r, const char *json, size_t len,
                                        struct errtext *err);
void peft_rules_fini(struct peft_rules *r);
/* Does the config adapt the module at path ("model.layers.0.self_attn.q_proj", "lm_head")? Unknown
 * (is_target_open) counts as `open`. */
MUST_CHECK enum status peft_rules_selects(struct peft_rules *r, const char *path, bool open,
                                          bool *selected, struct errtext *err);
MUST_CHECK enum status peft_rules_rank(struct peft_rules *r, const char *path, uint32_t *rank,
                                       double *scale, struct errtext *err);
/* base_model_name_or_path or NULL; r's memory. */
const char *peft_rules_base(const struct peft_rules *r);

#endif
