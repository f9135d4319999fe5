/* Names and what they point to. A name is a pointer to an adapter id; an id is content. The catalog
 * knows every registered adapter (thousands) and where its bytes lie; it holds no weights, and what
 * an adapter costs is not its business (server/terms). Entries are immutable but for their atomics,
 * and refcounted: replacing a name never changes what a running request uses. Thread: any; one lock
 * inside, nothing is called while it is held. */
#ifndef RS_ADAPTER_CATALOG_H
#define RS_ADAPTER_CATALOG_H

#include "kernels/args.h"
#include "server/adapter/chat_own.h"
#include "server/adapter/peft/seal.h"
#include "server/base/errtext.h"
#include "server/base/hex.h"

#include <stdatomic.h>

#define CATALOG_NAME_MAX 128

/* Visible in listings. */
enum adapter_state {
    ADAPTER_DISK,      /* known, not resident */
    ADAPTER_REQUESTED, /* waiting for the loader */
    ADAPTER_FETCHING,
    ADAPTER_VERIFYING,
    ADAPTER_HOST, /* resident in host memory: the CPU's device */
    ADAPTER_DEVICE,
    ADAPTER_DRAINING, /* unloading; running requests finish first */
    ADAPTER_FAILED,
    ADAPTER_STATE_COUNT
};
const char *adapter_state_name(enum adapter_state s);

struct adapter_entry {
    /* immutable */
    char name[CATALOG_NAME_MAX + 1];
    uint8_t id[32];
    char *dir; /* where adapter_config.json and adapter_model.safetensors are */
    uint32_t rank_max;
    uint64_t blob_bytes; /* resident bytes */
    char warning[256];   /* e.g. "no base fingerprint: checked by shapes only" */
    bool has_manifest;   /* published with one that both keys signed */
    uint64_t manifest_version;
    uint8_t manifest_digest[32];
    struct chat_own *chat; /* a reference, or NULL: the base's template serves */
    char publisher[64];    /* API key name that may replace it, or "" for start-up adapters */
    int64_t created_unix;
    struct seal seal; /* set before it is registered; then the loader thread's alone */
    /* written by the owner named, read by any (relaxed: they are telemetry) */
    _Atomic uint32_t state;                      /* store */
    _Atomic uint64_t last_used_ms;               /* store */
    _Atomic uint64_t request_count, token_count; /* recorder */
    _Atomic uint32_t load_count, fail_count;     /* store */
    _Atomic uint32_t dead;                       /* recorder: answers without any measured change */
    _Atomic uint32_t refs;                       /* catalog */
};

struct catalog;
struct catalog *catalog_create(uint32_t adapters_max);
void catalog_destroy(struct catalog *c);

/* A fresh entry owned by the caller (refs = 1): fill it, then catalog_put. */
struct adapter_entry *catalog_entry_new(void);
/* Register under entry->name; on success the catalog holds one reference and the caller keeps its
 * own. replace: an existing name moves to the new id (the old entry is returned through old, a
 * reference the caller releases). Errors: EXISTS (name taken by other content and !replace; the
 * same content again is OK), FULL (adapters_max), INVALID name (allowed: A-Z a-z 0-9 . _ / -
 * , 1..128, and not the base's name). */
MUST_CHECK enum status catalog_put(struct catalog *c, struct adapter_entry *e, bool replace,
                                   struct adapter_entry **old, struct errtext *err);
/* What catalog_put would say to the name alone. */
MUST_CHECK enum status catalog_check_name(const struct catalog *c, const char *name,
                                          struct errtext *err);
/* Forget the name. Returns the entry (a reference) or NULL. */
struct adapter_entry *catalog_remove(struct catalog *c, const char *name);
/* A reference, or NULL. by id: any entry that holds this content. */
struct adapter_entry *catalog_find(struct catalog *c, const char *name);
struct adapter_entry *catalog_find_id(struct catalog *c, const uint8_t id[32]);
void catalog_release(struct adapter_entry *e);
uint32_t catalog_count(struct catalog *c);
/* visit(arg, e) on a snapshot in name order; return false to stop. */
void catalog_each(struct catalog *c, bool (*visit)(void *arg, struct adapter_entry *e), void *arg);

/* What should have been registered and could not be: listed beside the entries with its reason, so
 * that who asks for the name is told. As many are kept as entries. */
struct catalog_refusal {
    char name[CATALOG_NAME_MAX + 1]; /* cut if longer */
    struct errtext why;
    int64_t unix_s;
};
/* Replaces an earlier refusal of the name; a catalog_put of the name forgets it. */
void catalog_refuse(struct catalog *c, const char *name, const struct errtext *why);
/* false: the name was not refused. */
bool catalog_find_refusal(struct catalog *c, const char *name, struct catalog_refusal *out);
uint32_t catalog_refused_count(struct catalog *c);
/* visit(arg, r) on a snapshot, in the order of the refusals. */
void catalog_each_refusal(struct catalog *c,
                          void (*visit)(void *arg, const struct catalog_refusal *r), void *arg);

/* Names that must not be registered (the base's). Call before threads start. */
void catalog_reserve_name(struct catalog *c, const char *name);

#endif
