/* From a computed epoch to one in the vault: the signatures of the attestors, the money, the
 * proposal. The worker signs nothing for the attestors and counts nobody who does not hold the role
 * now; a proposal carries exactly as many signatures as the vault asks for, ascending by signer. */
#include "chain_client/settle/candidate.h"
#include "chain_client/settle/epochs_impl.h"
#include "chain_client/settle/trouble.h"
#include "server/base/clock.h"
#include "server/base/log.h"

#include <inttypes.h>
#include <string.h>

#define ASK_NS 60000000000ull /* who holds the role is read again after so long */

/* ---- signatures ---- */

/* Who could sign, for people and for `status`. */
enum status epochs_quorum(struct worker *w, struct errtext *err)
{
    struct candidate_quorum q = {.needed = w->vault.attestors_min};
    if (clock_mono_ns() < w->quorum_ns)
        return STATUS_OK;
    enum status st = role_list(&w->view, w->dep.vault, "ATTESTOR", &q.attestors, err);
    if (!st)
        st = candidate_quorum_set(&w->db, &q, err);
    if (!st)
        w->quorum_ns = clock_mono_ns() + ASK_NS;
    return st;
}

static void header_of(struct epoch_header *h, const struct epoch_plan *p)
{
    *h = (struct epoch_header){.epoch = p->epoch,
                               .total = p->total,
                               .leaves = p->leaves,
                               .batch_paid = p->paid,
                               .batch_evidence = p->evidence};
    memcpy(h->prev_root, p->prev_root, 32);
    memcpy(h->root, p->root, 32);
    memcpy(h->manifest, p->manifest, 32);
}

/* The stored signatures whose signers hold the role now, at most as many as are needed. */
static enum status gather(struct worker *w, const struct epoch_plan *p,
                          struct candidate_signatures *good, struct errtext *err)
{
    struct candidate_signatures all;
    struct epoch_header h;
    uint8_t digest[32];
    header_of(&h, p);
    epoch_digest(digest, &h, w->dep.chain_id, w->dep.vault);
    good->count = 0;
    enum status st = candidate_signatures(&all, &w->db, p->epoch, digest, err);
    for (size_t i = 0; i < all.count && !st && good->count < w->vault.attestors_min; i++) {
        bool has;
        st = role_has(&w->view, w->dep.vault, "ATTESTOR", all.item[i].signer, &has, err);
        if (!st && has)
            good->item[good->count++] = all.item[i];
    }
    return st;
}

static enum status say_absent(struct worker *w, const struct epoch_plan *p,
                              const struct candidate_signatures *have, struct errtext *err)
{
    struct candidate_quorum q;
    struct buf text;
    if (w->unsigned_epoch != p->epoch) {
        w->unsigned_epoch = p->epoch;
        w->unsigned_ns = clock_mono_ns();
    }
    if (clock_mono_ns() < w->unsigned_ns + w->set->attest_wait_s * 1000000000ull)
        return STATUS_OK;
    enum status st = candidate_quorum_get(&q, &w->db, err);
    if (st)
        return st;
    buf_init(&text, 8192);
    buf_printf(&text, "epoch %" PRIu64 " has %zu of %" PRIu32 " signatures and waits; not signed: ",
               p->epoch, have->count, w->vault.attestors_min);
    candidate_put_absent(&text, &q, have, "");
    buf_puts(&text, " (residual-settle attest says why it refuses, or is it down?)");
    st = trouble_set(&w->db, TROUBLE_SIGNATURES, p->epoch, text.data, err);
    buf_fini(&text);
    return st;
}

static enum status attest(struct worker *w, const struct epoch_plan *p, struct errtext *err)
{
    struct candidate_signatures have;
    enum status st = gather(w, p, &have, err);
    if (st)
        return st;
    if (have.count < w->vault.attestors_min)
        return say_absent(w, p, &have, err);
    st = trouble_clear_all(&w->db, TROUBLE_SIGNATURES, err); /* also of one that was dropped */
    return st ? st : epochs_set_state(w, p->epoch, EPOCH_ATTESTED, err);
}

/* ---- the proposal ---- */

static enum status raise_propose(struct worker *w, const struct epoch_plan *p,
                                 const struct candidate_signatures *have, struct errtext *err)
{
    struct archive_batch paid;
    struct buf data;
    struct epoch_header h;
    uint8_t signature[EPOCH_SIGNATURES_MAX][SECP_SIGNATURE_BYTES];
    header_of(&h, p);
    for (size_t i = 0; i < have->count; i++)
        memcpy(signature[i], have->item[i].signature, SECP_SIGNATURE_BYTES);
    enum status st = archive_batch_read(&paid, w->set->archive_dir, p->paid, err);
    if (st)
        return st;
    struct epoch_proposal proposal = {.header = &h,
                                      .paid = &paid.header,
                                      .lanes_hash = paid.lanes_hash,
                                      .signature =
                                          (const uint8_t(*)[SECP_SIGNATURE_BYTES])signature,
                                      .signature_count = have->count};
    buf_init(&data, 1u << 16);
    epoch_put_propose(&data, &proposal);
    struct sender_call call = {.role = SENDER_PROPOSER,
                               .kind = "propose",
                               .key = p->epoch,
                               .to = w->dep.vault,
                               .data = &data};
    st = sender_raise(&w->sender, &call, err);
    buf_fini(&data);
    archive_batch_fini(&paid);
    if (!st && p->state == EPOCH_FUNDED)
        st = epochs_set_state(w, p->epoch, EPOCH_PROPOSED, err);
    return st;
}

/* A signer may have lost the role since: back to waiting. */
static enum status send_proposal(struct worker *w, const struct epoch_plan *p, struct errtext *err)
{
    struct candidate_signatures have;
    enum status st = gather(w, p, &have, err);
    if (!st && have.count < w->vault.attestors_min)
        return epochs_set_state(w, p->epoch, EPOCH_COMPUTED, err);
    return st ? st : raise_propose(w, p, &have, err);
}

static enum status finish(struct worker *w, const struct epoch_plan *p,
                          const struct view_epoch *found, struct errtext *err)
{
    uint8_t tx[32];
    if (memcmp(found->root, p->root, 32) != 0 || found->batch_paid != p->paid)
        return foreign_replaces(w, p->epoch, err);
    enum status st = sender_hash(&w->sender, "propose", p->epoch, tx, err);
    if (!st)
        st = db_run(&w->db, err, "UPDATE epochs SET tx = ?, active_at = ? WHERE epoch = ?", "buu",
                    tx, sizeof(tx), found->active_at, p->epoch);
    if (!st)
        st = funding_reset(w, p->paid, err);
    return st ? st : epochs_set_state(w, p->epoch, EPOCH_FINAL, err);
}

enum status epochs_propose(struct worker *w, const struct epoch_plan *p,
                           const struct view_money *final, struct errtext *err)
{
    struct view_money latest;
    struct view_epoch found;
    bool ready = false;
    enum status st = view_epoch(&w->view, "finalized", p->epoch, &found, err);
    if (!st && !w->is_held && final->last_epoch >= p->epoch)
        return finish(w, p, &found, err);
    if (!st)
        st = view_money(&w->view, "latest", &latest, err);
    if (st || latest.last_epoch >= p->epoch) /* there, not final yet */
        return st;
    if (final->last_live != p->previous)
        return epochs_drop(w, p->epoch, err);
    if (p->state == EPOCH_COMPUTED)
        return attest(w, p, err);
    struct funding need = {.paid = p->paid, .total = p->total, .funded = latest.funded};
    st = funding_step(w, &need, &ready, err);
    if (st || !ready)
        return st;
    if (p->state == EPOCH_ATTESTED)
        return epochs_set_state(w, p->epoch, EPOCH_FUNDED, err);
    return send_proposal(w, p, err);
}
