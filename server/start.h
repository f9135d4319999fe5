/* Puts the parts together: model, backend, store, engine, catalog, publisher, recorder, http. Main
 * thread only. */
#ifndef RS_SERVER_START_H
#define RS_SERVER_START_H

#include "server/config.h"

struct server;
/* Start everything; prints progress and the ready line. On error nothing runs. */
MUST_CHECK enum status server_start(struct server **out, const struct config *c,
                                    struct errtext *err);
/* SIGHUP: read api_keys_file again and reopen the log files. What fails is logged and stays as it
 * was. */
void server_reload(struct server *s);
/* One line for a service manager: where, which model, how many adapters. */
void server_describe(const struct server *s, char *out, size_t out_bytes);
/* It ends because it cannot go on (the device is lost); main gets SIGTERM then. */
bool server_failed(const struct server *s);
/* Drain and stop in order; frees. */
void server_stop(struct server *s);
/* Load the model and print the memory plan to stdout. */
MUST_CHECK enum status server_print_plan(const struct config *c);

#endif
