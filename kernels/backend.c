/* Which backend a name means. "auto" is a CUDA device if the build and the machine have one, else
 * the CPU backend on its best instruction path, and says which and why in backend.choice;
 * "cpu:PATH" forces a path (tests, benches, and replaying a log that another machine wrote). "cuda"
 * is never anything else. Everything else goes through the backend's own table. */
#include "kernels/backend.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/cuda.h"
#include "kernels/ref/ref.h"

#include <stdio.h>
#include <string.h>

static enum status create_auto(struct backend **out, const struct backend_options *opt,
                               struct errtext *err)
{
    struct errtext why = ERRTEXT_INIT;
    enum status st = cuda_backend_create(out, opt, &why);
    if (!st) {
        snprintf((*out)->choice, sizeof((*out)->choice), "auto: cuda, a device answers");
        return st;
    }
    st = cpu_backend_create(out, opt, "", err);
    if (!st)
        snprintf((*out)->choice, sizeof((*out)->choice), "auto: cpu, because %s", why.text);
    return st;
}

enum status backend_create(struct backend **out, const struct backend_options *opt,
                           struct errtext *err)
{
    *out = NULL;
    const char *name = opt->name && opt->name[0] ? opt->name : "auto";
    if (strcmp(name, "ref") == 0)
        return ref_backend_create(out, opt, err);
    if (strcmp(name, "auto") == 0)
        return create_auto(out, opt, err);
    if (strcmp(name, "cpu") == 0)
        return cpu_backend_create(out, opt, "", err);
    if (strncmp(name, "cpu:", 4) == 0)
        return cpu_backend_create(out, opt, name + 4, err);
    if (strcmp(name, "cuda") == 0 || strcmp(name, "cuda:eager") == 0 ||
        strcmp(name, "cuda:plan") == 0)
        return cuda_backend_create(out, opt, err);
    return err_param(err, STATUS_INVALID, "backend",
                     "unknown backend \"%s\"; expected auto, cpu, ref or cuda", name);
}

void backend_destroy(struct backend *b)
{
    if (b)
        b->ops->destroy(b);
}

size_t backend_sample_scratch_bytes(const struct backend *b, uint32_t n_vocab)
{
    return b->ops->sample_scratch_bytes(b, n_vocab);
}
