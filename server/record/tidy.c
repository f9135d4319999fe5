/* What is final leaves the spool, and what the next start need not read is noted first. The word of
 * finality comes from the settlement worker, through Redis; an unbound lane settles with nobody,
 * so only its age and its size count. */
#include "server/base/clock.h"
#include "server/record/recorder_impl.h"

void recorder_tidy(struct recorder *r)
{
    uint64_t now_ns = clock_mono_ns();
    if (r->ship)
        spool_note_final(r->spool, ship_final_seq(r->ship));
    if (now_ns >= r->tidy_ns || spool_bytes(r->spool) > r->opt.spool_bytes_max / 2) {
        recorder_checkpoint(r, spool_whole_seq(r->spool));
        keylog_trim(r->keys);
        r->tidy_ns = now_ns + RECORDER_TIDY_NS;
    }
    const struct spool_keep keep = {.bytes_min = r->opt.spool_keep_bytes,
                                    .age_s_min = r->opt.spool_keep_s,
                                    .bytes_full = r->opt.spool_bytes_max / 2,
                                    .seq_max = r->checkpoint_seq,
                                    .any = !r->lane.bound};
    spool_trim(r->spool, &keep);
}
