/* The one result type. 0 is success; every fallible call returns it. The text for people travels in
 * struct errtext. A status maps to one HTTP code in http/reply.c and to one exit code in the
 * command line. */
#ifndef RS_BASE_STATUS_H
#define RS_BASE_STATUS_H

enum status {
    STATUS_OK = 0,
    STATUS_INVALID,     /* malformed or out of range: the caller's fault (400) */
    STATUS_NOT_FOUND,   /* no such name, id or file (404) */
    STATUS_EXISTS,      /* already there, and different (400 / 409) */
    STATUS_UNSUPPORTED, /* understood, and refused by name (400 / 501) */
    STATUS_DENIED,      /* credentials or policy (401 / 403) */
    STATUS_TOO_LARGE,   /* past a stated maximum (413) */
    STATUS_FULL,        /* queue, pool or budget at its maximum: later (429 / 503) */
    STATUS_BUSY,        /* not yet: loading, draining (503) */
    STATUS_TIMEOUT,     /* a deadline passed (504) */
    STATUS_CANCELLED,   /* the other side gave up */
    STATUS_CORRUPT,     /* bytes that fail their own check */
    STATUS_IO,          /* disk, socket, Redis, chain: outage, retried by its owner */
    STATUS_NO_MEMORY,   /* a refused client-sized allocation (503) */
    STATUS_CONFLICT,    /* an absolute state differs from ours: stop, a person decides */
    STATUS_COUNT
};

/* Lower-case name such as "not found". Never NULL. Thread: any. */
const char *status_name(enum status st);

#define MUST_CHECK __attribute__((warn_unused_result))

#endif
