/* The datanet versions a server holds, by document root:
 *
 *     DIR/<document root hex>/datanet.json      the list; "file" of each document is its text here
 *                             <digest hex>.txt  texts, of normal form C
 *                             held.json         who brought it and when; is it complete
 *                             value.json        what its publisher says its rows are worth
 *         training/<adapter id hex>.json        training manifests
 *
 * A folder of one is a datanet folder like any other, and datanet_open reads it. held.json is
 * written last: a folder without it is unfinished and swept at the next start. Texts of a list that
 * is not complete are verified again at a start, so none of them needs a sync of its own. A text is
 * verified when it comes in and whenever it is used. Operators' folders stay where they are.
 *
 * Bounded: bytes (as the lists declare them), lists, documents. Thread: any; blocks on disk. */
#ifndef RS_DATANET_STORE_H
#define RS_DATANET_STORE_H

#include "server/base/buf.h"
#include "server/datanet/datanet.h"
#include "server/datanet/value_file.h"

#define DATANET_STORE_LISTS_MAX     4096u
#define DATANET_STORE_DOCUMENTS_MAX (2u << 20) /* of all lists together */

struct datanet_store;
MUST_CHECK enum status datanet_store_open(struct datanet_store **out, const char *dir,
                                          uint64_t bytes_max, struct errtext *err);
void datanet_store_close(struct datanet_store *s); /* NULL is fine */

/* A reference to the version of this root, all of whose texts are here; or NULL. */
struct datanet *datanet_store_find(struct datanet_store *s, const uint8_t root[32]);
/* The same where texts may be missing. */
struct datanet *datanet_store_peek(struct datanet_store *s, const uint8_t root[32]);

/* The folder of an adapter or datanet that the operator named, its datanet.json and texts; with an
 * adapter's id also its training.json. No datanet.json: nothing to do. Errors name the file. */
MUST_CHECK enum status datanet_store_add_dir(struct datanet_store *s, const char *dir,
                                             const struct file_roots *roots,
                                             const uint8_t *adapter_id, struct errtext *err);

/* ---- lists ---- */

struct datanet_copy { /* the earlier document, of another owner, that a text stands in */
    uint8_t root[32], digest[32], owner[20];
    uint32_t ppm; /* of the text */
};
/* Of the document at that place of the list; false: of none, or it was not compared yet. */
bool datanet_store_copy(struct datanet_store *s, const uint8_t root[32], uint32_t place,
                        struct datanet_copy *out);

struct datanet_held {         /* what is known of one, a copy */
    uint8_t root[32], id[32]; /* id: zeros where the list names none */
    uint64_t version, bytes;
    uint32_t documents, missing; /* texts */
    uint32_t waiting, copies;    /* texts to be compared with earlier ones; near copies found */
    bool own;                    /* in the store's folder, not in an operator's */
    int64_t created_ms;
    char name[DATANET_NAME_BYTES + 1], publisher[64];
};
/* value: what its rows are worth, or NULL. Returns false: enough. */
typedef bool datanet_store_visit(void *arg, const struct datanet_held *h,
                                 const struct value_report *value);
/* In the order in which they came. The store is locked: visit must not call it. */
void datanet_store_each(struct datanet_store *s, datanet_store_visit *visit, void *arg);
bool datanet_store_get(struct datanet_store *s, const uint8_t root[32], struct datanet_held *out);
/* The version of a datanet; of several lists that say so the one that came first. */
bool datanet_store_by_id(struct datanet_store *s, const uint8_t id[32], uint64_t version,
                         struct datanet_held *out);

/* Does it bear what its sender says, signatures say? What it returns refuses the list. */
typedef enum status datanet_list_check(void *arg, const struct datanet *d, struct errtext *err);
struct datanet_list {      /* one that comes in */
    const json_t *datanet; /* an object as datanet.json; "file" in it is not heeded */
    const char *publisher;
    bool admin; /* may replace another's list */
    datanet_list_check *check;
    void *arg;
};
/* Keep a list; again is fine, and a list of the same root takes its place (other ids of documents,
 * say). Texts that other lists have here are taken from there. root: its document root.
 * Errors  INVALID, naming the field; those of check; CONFLICT: another publisher brought this root;
 *         DENIED: a document is an exact copy of somebody else's in a datanet that was here before,
 *         named; TOO_LARGE, FULL past a bound; IO. */
MUST_CHECK enum status datanet_store_put_list(struct datanet_store *s, const struct datanet_list *l,
                                              uint8_t root[32], struct errtext *err);
/* A text of a list: any UTF-8 whose normal form has this digest; again is fine.
 * Errors  NOT_FOUND no such list or document; INVALID not UTF-8, or another digest (named); IO. */
MUST_CHECK enum status datanet_store_put_text(struct datanet_store *s, const uint8_t root[32],
                                              const uint8_t digest[32], const char *text,
                                              size_t len, struct errtext *err);
typedef void datanet_store_digest(void *arg, const uint8_t digest[32]);
/* The documents whose texts are missing, ascending. The store is locked. */
void datanet_store_missing(struct datanet_store *s, const uint8_t root[32],
                           datanet_store_digest *visit, void *arg);
/* Forget a list and its texts; who still uses it finds them gone. NOT_FOUND; DENIED: a folder of
 * the operator, or another publisher's. */
MUST_CHECK enum status datanet_store_remove(struct datanet_store *s, const uint8_t root[32],
                                            const char *publisher, bool admin, struct errtext *err);

/* ---- what rows are worth ---- */

/* A copy (value_report_free), or NULL: nobody has measured it. */
struct value_report *datanet_store_value(struct datanet_store *s, const uint8_t root[32]);
/* value.json as it came, at the end of out. NOT_FOUND. */
MUST_CHECK enum status datanet_store_value_file(struct datanet_store *s, const uint8_t root[32],
                                                struct buf *out, struct errtext *err);
struct datanet_value_sent {
    const char *text; /* value.json */
    size_t len;
    const char *publisher;
    bool admin;
    const uint8_t *base; /* [32] of the server */
};
/* Takes the place of an earlier one. Errors: NOT_FOUND; DENIED: another publisher's list, or a
 * folder of the operator; INVALID as value_report_parse, and of another base; FULL, IO. */
MUST_CHECK enum status datanet_store_put_value(struct datanet_store *s, const uint8_t root[32],
                                               const struct datanet_value_sent *v,
                                               struct errtext *err);

/* ---- training manifests ---- */

/* Keep an adapter's, as text. The datanet that it names is here with all texts, and every row lies
 * inside its document. replace: another one of this adapter gives way.
 * Errors  INVALID; NOT_FOUND: no such datanet here; CONFLICT: the adapter has another. */
MUST_CHECK enum status datanet_store_put_training(struct datanet_store *s,
                                                  const uint8_t adapter_id[32], const char *text,
                                                  size_t len, bool replace, struct errtext *err);
/* The same without keeping it. root: the document root that it names. */
MUST_CHECK enum status datanet_store_check_training(struct datanet_store *s, const char *text,
                                                    size_t len, uint8_t root[32],
                                                    struct errtext *err);
/* The adapter is gone. One of an operator's folder stays there. */
void datanet_store_drop_training(struct datanet_store *s, const uint8_t adapter_id[32]);
bool datanet_store_has_training(struct datanet_store *s, const uint8_t adapter_id[32]);
/* Its text at the end of out. NOT_FOUND: none. */
MUST_CHECK enum status datanet_store_training(struct datanet_store *s, const uint8_t adapter_id[32],
                                              struct buf *out, struct errtext *err);

#endif
