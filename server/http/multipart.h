/* multipart/form-data (RFC 7578) as SDKs and browsers send it: a whole body in memory, cut into its
 * parts, which point into it. Bounded; pure. Thread: any. */
#ifndef RS_HTTP_MULTIPART_H
#define RS_HTTP_MULTIPART_H

#include "server/base/errtext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MULTIPART_BOUNDARY_MAX 70u /* RFC 2046 5.1.1 */
#define MULTIPART_PARTS_MAX    16u
#define MULTIPART_HEAD_MAX     4096u /* of a part */

struct multipart_part {
    char name[64], filename[256]; /* filename "": no file */
    const char *data;
    size_t len;
};

/* Of a Content-Type header, or NULL. INVALID: it is not multipart/form-data with a boundary. */
MUST_CHECK enum status multipart_boundary(char out[MULTIPART_BOUNDARY_MAX + 1],
                                          const char *content_type, struct errtext *err);
/* All parts of a body. INVALID says which part is wrong and how; TOO_LARGE: more than
 * MULTIPART_PARTS_MAX, or a name that is too long. */
MUST_CHECK enum status multipart_parse(const char *body, size_t len, const char *boundary,
                                       struct multipart_part part[MULTIPART_PARTS_MAX],
                                       uint32_t *count, struct errtext *err);
/* The one part of that name; NULL: there is none, or several. */
const struct multipart_part *multipart_find(const struct multipart_part *part, uint32_t count,
                                            const char *name);

#endif
