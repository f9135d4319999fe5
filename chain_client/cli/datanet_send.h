/* A datanet to a server: the list, then each text that the server says it lacks. Repeating it sends
 * only what is missing. One thread. */
#ifndef RS_CLI_DATANET_SEND_H
#define RS_CLI_DATANET_SEND_H

#include "chain_client/cli/http.h"
#include "server/datanet/datanet.h"

struct datanet_parcel {
    const struct datanet *datanet; /* with its texts */
    const json_t *list;            /* its datanet.json */
    const json_t *documents;       /* what takes the place of the list's: signed; or NULL */
    const uint8_t *id;             /* [32] on the chain, or NULL: as the list says */
};
/* texts: how many were sent. Errors: http_call's; documents_text's, naming the file. What somebody
 * else brought whole is fine. */
MUST_CHECK enum status datanet_send(struct http *h, const struct datanet_parcel *p, uint32_t *texts,
                                    struct errtext *err);

#endif
