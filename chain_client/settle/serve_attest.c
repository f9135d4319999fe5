/* One attestation: who signed is recovered from the signature over our own digest of the candidate,
 * asked from the vault, and stored. The worker's thread looks for it at its next step. */
#include "chain_client/eth/addr.h"
#include "chain_client/settle/candidate.h"
#include "chain_client/settle/serve_impl.h"
#include "server/base/json.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <string.h>

struct posted {
    uint64_t epoch;
    uint8_t digest[32];
    struct candidate_signature s;
};

static enum status parse(struct posted *p, const struct buf *body, struct errtext *err)
{
    json_t *root;
    enum status st =
        json_doc_parse(&root, "attestation", body->data ? body->data : "", body->len, 0, err);
    if (st)
        return st;
    struct json_reader r = {.obj = root, .where = "attestation", .err = err};
    p->epoch = (uint64_t)json_need_int(&r, "epoch", (struct json_range){1, INT64_MAX});
    json_need_hex(&r, "digest", p->digest, 32);
    json_need_hex(&r, "signature", p->s.signature, SECP_SIGNATURE_BYTES);
    json_decref(root);
    return r.st;
}

static enum status check(struct serve *s, struct db *db, struct posted *p,
                         struct epoch_candidate *c, struct errtext *err)
{
    struct view v;
    struct secp *secp = NULL;
    bool has = false;
    char text[ADDR_TEXT_BYTES], ours[65];
    enum status st = candidate_load(c, db, s->d, err);
    if (st)
        return st;
    hex_encode(ours, c->digest, 32);
    if (p->epoch != c->header.epoch || memcmp(p->digest, c->digest, 32) != 0)
        return err_set(err, STATUS_EXISTS,
                       "the epoch that waits is %" PRIu64 " with digest 0x%s: recompute that one, "
                       "and find out where yours differs",
                       c->header.epoch, ours);
    st = secp_create(&secp, err);
    if (!st)
        st = secp_recover(secp, p->s.signer, p->s.signature, p->digest, err);
    secp_destroy(secp);
    if (st)
        return st;
    view_init(&v, s->rpc, s->d);
    st = role_has(&v, s->d->vault, "ATTESTOR", p->s.signer, &has, err);
    view_fini(&v);
    addr_format(text, p->s.signer);
    if (!st && !has)
        st = err_set(err, STATUS_DENIED,
                     "%s signed this, and does not hold ATTESTOR of the vault: an admin grants it "
                     "after the notice",
                     text);
    return st;
}

enum status serve_attest(struct serve *s, const struct buf *body, struct buf *out,
                         struct errtext *err)
{
    struct db db;
    struct posted p = {0};
    struct epoch_candidate c = {0};
    char text[ADDR_TEXT_BYTES];
    enum status st = parse(&p, body, err);
    if (!st)
        st = db_open_beside(&db, s->set->state_dir, err);
    if (st)
        return st;
    st = check(s, &db, &p, &c, err);
    if (!st)
        st = candidate_sign(&db, &c, &p.s, err);
    db_close(&db);
    if (st)
        return st;
    addr_format(text, p.s.signer);
    log_info("epoch", "epoch %" PRIu64 ": attested by %s", p.epoch, text);
    buf_printf(out, "{\"epoch\":%" PRIu64 ",\"signer\":\"%s\"}", p.epoch, text);
    return STATUS_OK;
}
