"""Answers whose attribution did not come in time: the epoch that pays them lists them missing, and what comes later pays nothing."""
from server import wait_for
from world import Load, World, pairs, stream_records

ATTEMPTS = 10


def unscored(w):
    """Numbers of the answers in the lane's stream that must be scored and that no attribution record in it belongs to."""
    required, found = pairs(stream_records(w.redis))
    return set(required) - set(found)


def settle_stream(w):
    """Wait until an epoch that is claimable pays all that the stream holds while the server is away."""
    last = max(stream_records(w.redis))

    def done():
        assert w.settle.process.poll() is None, w.settle.log_text()[-4000:]
        epoch, batch = w.paid_epoch()
        return epoch if w.lane_next() == last + 1 and batch and batch == w.head() else None
    return wait_for(done, 120, 0.3, what="an epoch that pays what the stream holds")


def test_attribution_after_the_cut_off(template):
    """The server dies between answers and their scores, and comes back when they are paid."""
    with World(template) as w:
        receipts, owed = [], set()
        for attempt in range(ATTEMPTS):
            with Load(w.server, threads=16, pause_s=0, seed=attempt) as load:
                wait_for(lambda: len(load.receipts) >= 20, 60, 0.01, what="answers")
                w.server.kill()
            receipts += load.receipts
            owed = unscored(w)
            if len(owed) > 1:
                break
            w.server.start()
        assert len(owed) > 1, f"no answer in {ATTEMPTS} kills was shipped before its score"
        epoch, before = settle_stream(w), w.last_batch_with_fees()
        w.server.start()
        wait_for(w.scored, 60, 0.2, what="the jobs that the kill left")
        last = w.settled()[1]
        if w.last_batch_with_fees() == before:  # else the kill came between the disk and Redis, and what was not shipped is paid now
            assert last == epoch, "late evidence alone makes no epoch"
        found = w.check(receipts, last)
        assert found["missing"] == found["late"] == len(owed), (found, sorted(owed))
        assert found["attributions"] == found["required"], "every answer was scored in the end"
        assert w.audit(last)[0] == 0


def test_scoring_off_on_a_bound_lane(template):
    """A server that scores nothing says so in every attribution record, and its answers are missing."""
    with World(template, server_flags=("--score-rows-max", 0)) as w:
        with Load(w.server, threads=4, seed=1) as load:
            wait_for(lambda: len(load.receipts) >= 20, 60, 0.01, what="answers")
        _, epoch = w.settled()
        found = w.check(load.receipts, epoch)
        assert found["required"] == found["missing"] > 0 and found["scored"] == found["late"] == 0, found
        assert w.audit(epoch)[0] == 0
