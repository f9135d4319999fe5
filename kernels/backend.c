/* Which backend a name means. "auto" is the CPU backend on its best instruction path; "cpu:PATH"
 * forces a path (tests, benches, and replaying a log that another machine wrote). Everything else
 * goes through the backend's own table. */
#include "kernels/backend.h"

#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/ref/ref.h"

enum status backend_create(struct backend **out, const struct backend_options *opt,
                           struct errtext *err)
{
    *out = NULL;
    const char *name = opt->name && opt->name[0] ? opt->name : "auto";
    if (strcmp(name, "ref") == 0)
        return ref_backend_create(out, opt, err);
    if (strcmp(name, "auto") == 0 || strcmp(name, "cpu") == 0)
        return cpu_backend_create(out, opt, "", err);
    if (strncmp(name, "cpu:", 4) == 0)
        return cpu_backend_create(out, opt, name + 4, err);
    if (strcmp(name, "cuda") == 0)
        return err_param(err, STATUS_UNSUPPORTED, "backend",
                         "backend \"cuda\" is not part of this build; use \"cpu\"");
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
