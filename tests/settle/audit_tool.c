/* The audit library alone, for tests: audit_tool ARCHIVE RPC DEPLOYMENT epoch|batch N
 * prints the report; exits with 0 when all is right, 1 on findings, 2 when it could not be made. */
#include "chain_client/settle/audit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    struct errtext err = ERRTEXT_INIT;
    struct deployment d;
    struct rpc *rpc = NULL;
    struct audit_report report = {0};
    struct buf out;
    if (argc != 6)
        return 2;
    struct rpc_config config = {.url = argv[2]};
    enum status st = deployment_load(&d, argv[3], &err);
    if (!st)
        st = rpc_open(&rpc, &config, &err);
    struct audit_options opt = {.archive_dir = argv[1], .rpc = rpc, .deployment = &d};
    uint64_t n = strtoull(argv[5], NULL, 10);
    if (!st)
        st = strcmp(argv[4], "epoch") == 0 ? audit_epoch(&report, &opt, n, &err)
                                           : audit_batch(&report, &opt, n, &err);
    int code = st ? 2 : report.finding_count ? 1 : 0;
    buf_init(&out, 1u << 24);
    if (st)
        fprintf(stderr, "%s\n", err.text);
    else
        audit_report_json(&report, &out);
    if (out.data)
        puts(out.data);
    buf_fini(&out);
    audit_report_fini(&report);
    rpc_close(rpc);
    return code;
}
