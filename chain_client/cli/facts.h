/* What an adapter's folder is, found here: the checks a server makes at admission, and the content
 * id. */
#ifndef RS_CLI_FACTS_H
#define RS_CLI_FACTS_H

#include "chain_client/cli/cli.h"
#include "server/adapter/admit.h"

struct facts {
    uint8_t id[32];
    uint32_t rank_max, module_count;
    uint64_t file_bytes;
    char base_name[256], warning[1024];
};
/* Errors: as admit_folder_read; NOT_FOUND, INVALID for the base's config.json, with *base_is_bad
 * set. */
MUST_CHECK enum status facts_read(struct facts *f, const char *adapter_dir, const char *model_dir,
                                  const struct admit_limits *limits, bool *base_is_bad,
                                  struct errtext *err);

#endif
