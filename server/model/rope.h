/* The rope settings of config.json, in the old spelling (rope_theta + rope_scaling) and in that of
 * transformers v5 (rope_parameters). model_rope_fill is declared in config.h. */
#ifndef RS_MODEL_ROPE_H
#define RS_MODEL_ROPE_H

#include "server/base/json.h"
#include "server/model/config.h"

/* r reads the whole config.json; c's dimensions and pos_max are already set. Errors are left in
 * r. */
void rope_config_parse(struct json_reader *r, struct model_config *c);

#endif
