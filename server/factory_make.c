/* See factory_make.h. */
#include "server/factory_make.h"
#include "server/base/check.h"
#include "server/base/log.h"
#include "server/base/mem.h"

#include <stdio.h>
#include <string.h>

#define WORKS_MAX 1024

static enum status publish_report(void *arg, struct publish_upload *u, struct errtext *err)
{
    struct buf report;
    buf_init(&report, 1u << 20);
    enum status st = publish_indexed(arg, u, &report, err);
    buf_fini(&report);
    return st;
}

static enum status check_price(const struct config *c, struct errtext *err)
{
    size_t digits = strspn(c->train_price, "0123456789");
    if (digits > 0 && digits < 40 && !c->train_price[digits])
        return STATUS_OK;
    return err_param(err, STATUS_INVALID, "train_price",
                     "train_price: found '%.48s', expected a whole number of base units",
                     c->train_price);
}

/* Of the device's memory, beside what serves; 0: none, it has to be asked for. */
static uint64_t device_bytes(const struct config *c, const struct backend *serving)
{
    uint64_t total, left;
    if (!serving->is_device)
        return 0;
    serving->ops->mem_room(serving, &total, &left);
    return budget_bytes(c->train_bytes_max, total);
}

/* As the one that serves, so that the packed base can be read; deterministic, so that a job that
 * goes on elsewhere comes to the same bits. */
static enum status make_backend(struct factory_parts *p, const struct config *c,
                                const struct backend *serving, struct errtext *err)
{
    bool named = strcmp(c->backend, "auto") != 0;
    const struct backend_options opt = {.name = named ? c->backend : serving->name,
                                        .thread_count = (uint32_t)c->train_threads,
                                        .deterministic = true,
                                        .device_bytes = device_bytes(c, serving),
                                        .device = (uint32_t)c->device,
                                        .background = c->train_yields};
    return backend_create(&p->backend, &opt, err);
}

static struct factory_options options_of(const struct factory_parts *p, const struct config *c,
                                         const struct backend *serving, const struct model *m)
{
    uint64_t machine = mem_machine_bytes(), device = device_bytes(c, serving);
    uint64_t bytes = device ? 0 : budget_bytes(c->train_bytes_max, machine);
    return (struct factory_options){.dir = p->dir,
                                    .jobs_max = (uint32_t)c->train_jobs_max,
                                    .account_max = (uint32_t)c->train_account_max,
                                    .running_max = (uint32_t)c->train_running_max,
                                    .account_tokens_max = c->train_account_tokens_max,
                                    .yields = c->train_yields,
                                    .ended_max = (uint32_t)c->train_ended_max,
                                    .learners_max = (uint32_t)c->train_learners_max,
                                    .works_max = WORKS_MAX,
                                    .tokens =
                                        (uint32_t)MIN(c->train_tokens, (uint64_t)m->config.pos_max),
                                    .rank_max = (uint32_t)c->adapter_rank_max,
                                    .bytes_max = bytes ? bytes : machine / 4,
                                    .device_bytes = device,
                                    .checkpoint_s = (uint32_t)c->train_checkpoint_s,
                                    .version = RS_VERSION};
}

enum status factory_parts_make(struct factory_parts *p, const struct config *c,
                               const struct backend *serving, const struct engine *e,
                               const struct model *m, const struct publish_indexed *publish,
                               struct errtext *err)
{
    bool room = !serving->is_device || device_bytes(c, serving) > 0;
    if (!c->train || !room || !serving->ops->back) {
        log_info("train", "adapters are not trained here: %s",
                 c->train ? "train_bytes_max gives training nothing of the device"
                          : "train is off");
        return STATUS_OK;
    }
    p->publish = *publish;
    snprintf(p->dir, sizeof(p->dir), "%s/train", c->data_dir);
    enum status st = check_price(c, err);
    if (!st)
        st = make_backend(p, c, serving, err);
    const struct factory_options opt = options_of(p, c, serving, m);
    const struct factory_deps deps = {.base = {m, p->backend, engine_resident(e)},
                                      .datanets = publish->datanets,
                                      .catalog = publish->catalog,
                                      .publish = publish_report,
                                      .publish_arg = &p->publish};
    if (st)
        return st;
    st = factory_create(&p->factory, &opt, &deps, err);
    if (st == STATUS_TOO_LARGE && !c->train_bytes_max && err) { /* nobody asked for it */
        log_warn("train", "adapters are not trained here: %s", err->text);
        err_clear(err);
        return STATUS_OK;
    }
    return st ? st : factory_start(p->factory, err);
}

void factory_parts_stop(struct factory_parts *p)
{
    if (p->factory)
        factory_stop(p->factory);
}

void factory_parts_destroy(struct factory_parts *p)
{
    factory_destroy(p->factory);
    if (p->backend)
        backend_destroy(p->backend);
}
