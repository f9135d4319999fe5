/* The answer is kept as text and read by the reader of deployment files: one form, one reader. */
#include "chain_client/cli/place.h"
#include "chain_client/cli/http.h"
#include "chain_client/eth/addr.h"
#include "server/base/mem.h"

#include <inttypes.h>
#include <string.h>

static enum status fetch_place(struct cli *c, json_t **answer, struct errtext *err)
{
    struct http *h;
    enum status st = http_open(&h, c->value[OPT_SETTLE], NULL, "settlement worker", err);
    if (!st)
        st = http_call(h, "GET", "/v1/deployment", NULL, answer, err);
    http_close(h);
    return st;
}

static enum status take_deployment(struct cli *c, const json_t *answer, struct errtext *err)
{
    struct deployment d;
    char vault[ADDR_TEXT_BYTES];
    if (cli_has(c, OPT_DEPLOYMENT))
        return STATUS_OK;
    c->deployment = json_dumps(answer, JSON_COMPACT);
    if (!c->deployment)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the worker's deployment");
    c->value[OPT_DEPLOYMENT] = c->value[OPT_SETTLE];
    enum status st = place_deployment(&d, c, err);
    if (st)
        return st;
    addr_format(vault, d.vault);
    cli_note(c, "chain %" PRIu64 ", vault %s, as the worker at %s names them", d.chain_id, vault,
             c->value[OPT_SETTLE]);
    return STATUS_OK;
}

static enum status take_rpc(struct cli *c, const json_t *answer, struct errtext *err)
{
    const char *url = json_string_value(json_object_get(answer, "public_rpc_url"));
    if (cli_has(c, OPT_RPC))
        return STATUS_OK;
    if (!url)
        return err_set(err, STATUS_INVALID,
                       "the settlement worker at %s names no public chain node: give --rpc URL",
                       c->value[OPT_SETTLE]);
    c->rpc_url = mem_strdup(url);
    c->value[OPT_RPC] = c->rpc_url;
    return STATUS_OK;
}

enum status place_resolve(struct cli *c, struct errtext *err)
{
    json_t *answer = NULL;
    if (!cli_has(c, OPT_SETTLE) || (cli_has(c, OPT_DEPLOYMENT) && cli_has(c, OPT_RPC)))
        return STATUS_OK;
    enum status st = fetch_place(c, &answer, err);
    if (!st)
        st = take_deployment(c, answer, err);
    if (!st)
        st = take_rpc(c, answer, err);
    json_decref(answer);
    return st;
}

void place_fini(struct cli *c)
{
    mem_free(c->deployment);
    mem_free(c->rpc_url);
    c->deployment = c->rpc_url = NULL;
}

enum status place_deployment(struct deployment *d, const struct cli *c, struct errtext *err)
{
    if (!cli_has(c, OPT_DEPLOYMENT))
        return err_set(err, STATUS_INVALID,
                       "where is the chain? give --settle URL of a worker, or --rpc URL and "
                       "--deployment FILE");
    if (!c->deployment)
        return deployment_load(d, c->value[OPT_DEPLOYMENT], err);
    enum status st = deployment_parse(d, c->deployment, strlen(c->deployment), err);
    if (st)
        err_prefix(err, "%s/v1/deployment", c->value[OPT_SETTLE]);
    return st;
}
