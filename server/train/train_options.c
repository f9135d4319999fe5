/* See train_options.h. */
#include "server/train/train_options.h"

#include <inttypes.h>

void train_options_put(struct buf *out, const struct train_options *o)
{
    buf_printf(out,
               "\"batch\":%u,\"beta1\":%.17g,\"beta2\":%.17g,\"clip\":%.17g,"
               "\"dropout\":%.17g,"
               "\"epochs\":%u,\"eps\":%.17g,\"learningRate\":%.17g,\"mask\":\"%s\",\"schedule\":\"%"
               "s\",\"seed\":%" PRIu64 ",\"shuffle\":%s,\"warmup\":%u,\"weightDecay\":%.17g",
               o->batch, o->optim.beta1, o->optim.beta2, o->optim.clip, o->dropout, o->epochs,
               o->optim.eps, o->optim.lr, row_mask_name(o->mask),
               optim_schedule_name(o->optim.schedule), o->seed, o->shuffle ? "true" : "false",
               o->optim.warmup, o->optim.weight_decay);
}

void train_options_read(struct json_reader *in, struct train_options *o)
{
    const struct json_range count = {1, UINT32_MAX}, any = {0, INT64_MAX};
    o->batch = (uint32_t)json_need_int(in, "batch", count);
    o->epochs = (uint32_t)json_need_int(in, "epochs", count);
    o->seed = (uint64_t)json_need_int(in, "seed", any);
    o->shuffle = json_read_bool(in, "shuffle", true);
    if (!row_mask_parse(&o->mask, json_need_string(in, "mask")))
        json_fail(in, STATUS_INVALID, "mask", "expected all, completion or assistant");
    o->dropout = json_need_num(in, "dropout", 0, 1);
    o->optim.warmup = (uint32_t)json_need_int(in, "warmup", (struct json_range){0, UINT32_MAX});
    o->optim.lr = json_need_num(in, "learningRate", 0, 1e300);
    o->optim.beta1 = json_need_num(in, "beta1", 0, 1);
    o->optim.beta2 = json_need_num(in, "beta2", 0, 1);
    o->optim.eps = json_need_num(in, "eps", 0, 1);
    o->optim.clip = json_need_num(in, "clip", 0, 1e300);
    o->optim.weight_decay = json_need_num(in, "weightDecay", 0, 1e300);
    if (!optim_schedule_parse(&o->optim.schedule, json_need_string(in, "schedule")))
        json_fail(in, STATUS_INVALID, "schedule", "expected constant, linear or cosine");
}
