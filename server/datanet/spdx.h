/* Licences and their terms as a list of documents names them. Pure. Thread: any. */
#ifndef RS_DATANET_SPDX_H
#define RS_DATANET_SPDX_H

#include "server/base/errtext.h"

#define SPDX_BYTES_MAX  256
#define TERMS_BYTES_MAX 2048

/* The syntax of an SPDX licence expression: "CC-BY-4.0", "MIT OR (Apache-2.0 AND CC0-1.0)",
 * "LicenseRef-mine". NONE and NOASSERTION say that nothing is granted, so they are refused.
 * INVALID, with the way out. */
MUST_CHECK enum status spdx_check(const char *text, struct errtext *err);
/* A URI: a scheme, ":", printable ASCII without blanks. "" is none. INVALID. */
MUST_CHECK enum status terms_check(const char *text, struct errtext *err);

#endif
