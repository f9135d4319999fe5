/* See train_config.h. */
#include "server/train/train_config.h"
#include "server/base/check.h"

#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

static const char *const all_linear[] = {"down_proj", "gate_proj", "k_proj", "o_proj",
                                         "q_proj",    "up_proj",   "v_proj"};

void train_config_put(struct buf *out, const struct train_config *c)
{
    char base[PATH_MAX];
    const char *const *module = c->module ? c->module : all_linear;
    uint32_t n = c->module ? c->modules : (uint32_t)ARRAY_COUNT(all_linear);
    snprintf(base, sizeof(base), "%s", c->base);
    const char *name = basename(base);
    buf_puts(out, "{\n  \"base_model_name_or_path\": ");
    buf_put_json_string(out, name, strlen(name));
    buf_printf(out,
               ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": "
               "true,\n  \"lora_alpha\": %.17g,\n  \"lora_dropout\": %.17g,\n  \"peft_type\": "
               "\"LORA\",\n  \"r\": %u,\n  \"target_modules\": [",
               c->alpha, c->dropout, c->rank);
    for (uint32_t i = 0; i < n; i++) {
        buf_puts(out, i ? ", " : "");
        buf_put_json_string(out, module[i], strlen(module[i]));
    }
    buf_puts(out, "],\n  \"task_type\": \"CAUSAL_LM\",\n  \"use_rslora\": false\n}\n");
}
