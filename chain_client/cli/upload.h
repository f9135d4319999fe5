/* The server's side of an adapter: stage its two files, then a dry run or the publishing. */
#ifndef RS_CLI_UPLOAD_H
#define RS_CLI_UPLOAD_H

#include "chain_client/cli/http.h"

/* INVALID unless name may stand in a URL and in the catalog. */
MUST_CHECK enum status upload_check_name(const char *name, struct errtext *err);
/* PUT both files of dir; links are followed as the server follows them (peft/folder.h). */
/* The folder's training.json, if it has one (*sent). */
MUST_CHECK enum status upload_training(struct http *h, const char *name, const char *dir,
                                       bool *sent, struct errtext *err);
MUST_CHECK enum status upload_files(struct http *h, const char *name, const char *dir,
                                    struct errtext *err);
struct upload_call {
    const char *name, *dir; /* dir: its chat template is sent too, if it has one */
    json_t *manifest;       /* or NULL */
    bool replace, dry_run;
};
/* *report is the server's admission report. */
MUST_CHECK enum status upload_publish(struct http *h, const struct upload_call *u, json_t **report,
                                      struct errtext *err);

#endif
