/* The files of an adapter, read back. Thread: the exchange's; blocks on disk. */
#ifndef RS_HTTP_ADAPTER_FILES_H
#define RS_HTTP_ADAPTER_FILES_H

#include "server/http/exchange.h"

/* Of "NAME/files/FILE": FILE, and NAME in name; NULL: it is no such path. */
const char *adapter_files_find(const char *tail, char name[CATALOG_NAME_MAX + 1]);
/* Leaves the file, or the refusal, in x. */
void adapter_files_send(struct exchange *x, const struct adapter_entry *e, const char *part);

#endif
