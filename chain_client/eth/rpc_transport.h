/* Private to rpc.c and rpc_transport.c: the HTTP half. */
#ifndef RS_CHAIN_ETH_RPC_TRANSPORT_H
#define RS_CHAIN_ETH_RPC_TRANSPORT_H

#include "chain_client/eth/rpc.h"

#include <curl/curl.h>

struct rpc {
    CURL *curl;
    struct curl_slist *headers;
    char curl_error[CURL_ERROR_SIZE];
    char *url;
    struct buf request, response;
    struct buf params;
    uint64_t next_id;
    struct rpc_fault fault;
};

/* POST r->request; on OK r->response holds the body and *http_code the status. */
MUST_CHECK enum status rpc_transport_post(struct rpc *r, long *http_code, struct errtext *err);

#endif
