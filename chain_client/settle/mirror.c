/* Where a batch's records come from, in this order: the copy, the published archive, the lanes'
 * servers. Header and lanes are the event's, so only the records are asked for: their manifest is
 * rendered again, and its digest is in the header. */
#include "chain_client/settle/mirror.h"
#include "chain_client/eth/keccak.h"
#include "chain_client/settle/lane_keys.h"
#include "server/base/check.h"
#include "server/base/file.h"
#include "server/base/mem.h"
#include "server/spool/spool.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TAG_BYTES        32 /* behind a record in transport */
#define LANE_KEY_MAX     512
#define FETCH_MS         20000
#define RANGE_ASKS_MAX   4096
#define EPOCH_FILE_BYTES ARCHIVE_TEXT_BYTES_MAX

enum status mirror_open(struct mirror *m, const struct mirror_config *config, struct errtext *err)
{
    *m = (struct mirror){.config = *config};
    struct fetch_config http = {.base = config->source,
                                .what = "archive",
                                .timeout_ms = 60 * FETCH_MS,
                                .connect_ms = FETCH_MS,
                                .stall_s = 20,
                                .answer_bytes_max = ARCHIVE_RECORDS_BYTES_MAX};
    char bearer[FETCH_BEARER_BYTES];
    enum status st = file_mkdirs(config->dir, 0755, err);
    if (!st && strncmp(config->source, "http", 4) == 0)
        st = fetch_open(&m->fetch, &http, err);
    if (!st && config->lane_key_file) {
        st = fetch_bearer(bearer, config->lane_key_file, LANE_KEY_MAX, err);
        if (!st)
            m->lane_authorization = mem_strdup(bearer);
        mem_wipe(bearer, sizeof(bearer));
    }
    return st ? st : secp_create(&m->secp, err);
}

void mirror_close(struct mirror *m)
{
    fetch_close(m->fetch);
    secp_destroy(m->secp);
    if (m->lane_authorization)
        mem_wipe(m->lane_authorization, strlen(m->lane_authorization));
    mem_free(m->lane_authorization);
    *m = (struct mirror){.fetch = NULL};
}

/* <folder>/<file> of the source into a fresh block. NOT_FOUND when the source says it has none. */
static enum status from_source(struct mirror *m, const char *folder, const char *file,
                               size_t bytes_max, struct canon_bytes *out, struct errtext *err)
{
    char path[128];
    size_t len;
    if (!m->fetch)
        return archive_read(m->config.source, folder, file, bytes_max, out, err);
    *out = (struct canon_bytes){NULL, 0};
    snprintf(path, sizeof(path), "/v1/archive/%s/%s", folder, file);
    enum status st =
        fetch_perform(m->fetch, &(struct fetch_request){.method = "GET", .path = path}, err);
    struct fetch_answer *a = (struct fetch_answer *)(uintptr_t)fetch_answer(m->fetch);
    if (st)
        return st;
    if (a->code != 200)
        return err_set(err, a->code == 404 ? STATUS_NOT_FOUND : STATUS_IO,
                       "archive: %s/%s: HTTP status %ld", folder, file, a->code);
    char *data = mem_try_alloc(a->body.len + 1);
    if (!data)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %s/%s", folder, file);
    len = a->body.len;
    if (len)
        memcpy(data, a->body.data, len);
    data[len] = '\0';
    *out = (struct canon_bytes){(uint8_t *)data, len};
    return STATUS_OK;
}

/* ---- a batch ---- */

struct rebuilt {
    struct archive_batch batch; /* from the event */
    struct buf records, manifest, header;
    uint32_t count; /* of records */
};

static void rebuilt_fini(struct rebuilt *r)
{
    mem_free(r->batch.lane);
    buf_fini(&r->records);
    buf_fini(&r->manifest);
    buf_fini(&r->header);
}

static enum status begin(struct rebuilt *r, const struct event_commit *e,
                         const struct deployment *d, struct errtext *err)
{
    struct archive_batch *b = &r->batch;
    *r = (struct rebuilt){.batch = {.place = {.chain_id = d->chain_id},
                                    .header = e->header,
                                    .lane_count = e->lane_count}};
    memcpy(b->place.ledger, d->ledger, 20);
    buf_init(&r->records, ARCHIVE_RECORDS_BYTES_MAX);
    buf_init(&r->manifest, ARCHIVE_TEXT_BYTES_MAX);
    buf_init(&r->header, ARCHIVE_TEXT_BYTES_MAX);
    b->lane = mem_array(e->lane_count + 1, sizeof(*b->lane));
    memcpy(b->lane, e->lane, e->lane_count * sizeof(*b->lane));
    enum status st = archive_batch_seal(b, err);
    if (!st && memcmp(b->hash, e->hash, 32) != 0)
        st = err_set(err, STATUS_CORRUPT,
                     "batch %" PRIu64 ": the event's hash is not that of its header: the node lies",
                     e->header.seq);
    archive_put_header(&r->header, b);
    return st;
}

/* Do r's records make the committed batch? The manifest's digest says it. */
static bool is_committed(struct rebuilt *r)
{
    uint8_t digest[32];
    r->batch.records = (struct canon_bytes){(uint8_t *)r->records.data, r->records.len};
    buf_clear(&r->manifest);
    archive_put_batch_manifest(&r->manifest, &r->batch, r->batch.header.leaf_count,
                               &r->batch.records);
    keccak_256(digest, r->manifest.data, r->manifest.len);
    return !r->records.failed && !r->manifest.failed &&
           memcmp(digest, r->batch.header.manifest, 32) == 0;
}

static enum status keep(struct mirror *m, struct rebuilt *r, struct errtext *err)
{
    char name[ARCHIVE_NAME_BYTES];
    struct archive_file file[] = {{"header.json", r->header.data, r->header.len},
                                  {"manifest.json", r->manifest.data, r->manifest.len},
                                  {"records.bin", r->records.data, r->records.len}};
    archive_batch_name(name, r->batch.header.seq);
    struct archive_folder folder = {m->config.dir, name, file, ARRAY_COUNT(file), true};
    return archive_publish(&folder, err);
}

static bool is_kept(struct mirror *m, const struct event_commit *e)
{
    struct archive_batch b;
    if (archive_batch_read(&b, m->config.dir, e->header.seq, NULL))
        return false;
    bool good = memcmp(b.hash, e->hash, 32) == 0 &&
                archive_batch_records(&b, m->config.dir, NULL) == STATUS_OK;
    archive_batch_fini(&b);
    return good;
}

/* ---- the lanes' servers ---- */

static const char *url_of(const struct mirror *m, uint32_t lane)
{
    for (uint32_t i = 0; i < m->config.lane_url->count; i++)
        if (m->config.lane_url->item[i].lane == lane)
            return m->config.lane_url->item[i].text;
    return NULL;
}

/* The frames of an answer that continue at *next. */
static void take_frames(struct rebuilt *r, const struct buf *body, uint64_t *next, uint64_t last)
{
    const char *data = body->data;
    size_t len = body->len, used, n;
    uint64_t seq;
    const uint8_t *record;
    while (len && *next <= last && (used = spool_frame_parse(data, len, &seq, &record, &n)) != 0) {
        if (seq == *next && n > TAG_BYTES) {
            archive_put_record(&r->records, record, n - TAG_BYTES);
            r->count++;
            ++*next;
        }
        data += used;
        len -= used;
    }
}

/* Everything of one range; an answer holds as much as its server likes to give at once. */
static enum status from_lane(struct mirror *m, struct rebuilt *r, const struct batch_lane *range,
                             struct errtext *err)
{
    struct fetch *f;
    const char *url = url_of(m, range->lane);
    uint64_t next = range->first;
    const struct fetch_config config = {.base = url,
                                        .authorization = m->lane_authorization,
                                        .what = "the lane's server",
                                        .timeout_ms = FETCH_MS};
    if (!url)
        return err_set(err, STATUS_NOT_FOUND, "no lane_url for lane %" PRIu32, range->lane);
    enum status st = fetch_open(&f, &config, err);
    for (uint32_t asks = 0; !st && next <= range->last && asks < RANGE_ASKS_MAX; asks++) {
        char path[128];
        uint64_t before = next;
        snprintf(path, sizeof(path), "/v1/lane/range?first=%" PRIu64 "&last=%" PRIu64, next,
                 range->last);
        st = fetch_perform(f, &(struct fetch_request){.method = "GET", .path = path}, err);
        if (st == STATUS_TOO_LARGE) /* what came before the cut holds whole frames */
            st = STATUS_OK;
        if (!st && fetch_answer(f)->code == 200)
            take_frames(r, &fetch_answer(f)->body, &next, range->last);
        if (!st && next == before)
            st = err_set(err, STATUS_NOT_FOUND,
                         "lane %" PRIu32 ": its server does not show record %" PRIu64
                         " (HTTP status %ld)",
                         range->lane, next, fetch_answer(f)->code);
    }
    fetch_close(f);
    return st;
}

static enum status from_lanes(struct mirror *m, struct rebuilt *r, struct errtext *err)
{
    enum status st = STATUS_OK;
    buf_clear(&r->records);
    r->count = 0;
    for (size_t i = 0; i < r->batch.lane_count && !st; i++)
        st = from_lane(m, r, &r->batch.lane[i], err);
    return st;
}

/* ---- which of the two is wrong ---- */

/* Are r's records exactly the committed numbers, each signed by the key the ledger names? Then the
 * commit is not of them. Anything less is no proof: whoever shows records may be wrong. */
static enum status are_signed(struct mirror *m, const struct rebuilt *r, struct view *v, bool *all,
                              struct errtext *err)
{
    struct lane_keys keys = {0};
    struct canon_bytes records = {(uint8_t *)r->records.data, r->records.len}, body;
    uint8_t domain[32], digest[32];
    size_t offset = 0, hint = 0;
    enum status st = STATUS_OK;
    canon_domain(domain, r->batch.place.chain_id, r->batch.place.ledger);
    *all = r->batch.lane_count != 0;
    for (size_t i = 0; i < r->batch.lane_count && !st && *all; i++) {
        const struct batch_lane *l = &r->batch.lane[i];
        st = lane_keys_read(&keys, v, "finalized", l->lane, l->first, l->last, err);
        for (uint64_t seq = l->first; seq <= l->last && !st && *all; seq++) {
            union record rec;
            const struct lane_key *key = lane_keys_find(&keys, &hint, l->lane, seq);
            *all = key && archive_next_record(&records, &offset, &body, NULL) == STATUS_OK &&
                   canon_decode(&rec, body.data, body.len, NULL) == STATUS_OK &&
                   rec.prefix.lane == l->lane && rec.prefix.seq == seq &&
                   canon_verify(&rec, digest, domain, m->secp, key->address, NULL) == STATUS_OK;
        }
    }
    lane_keys_fini(&keys);
    *all = *all && offset == records.len;
    return st;
}

static enum status judge(struct mirror *m, struct rebuilt *r, struct view *v,
                         enum mirror_found *found, struct errtext *err)
{
    bool all = false;
    if (is_committed(r)) {
        *found = MIRROR_WHOLE;
        return keep(m, r, err);
    }
    enum status st = are_signed(m, r, v, &all, err);
    if (!st && all) {
        *found = MIRROR_OTHER;
        err_set(err, STATUS_OK, "the lanes' own records of these numbers make another batch");
    }
    return st;
}

enum status mirror_batch(struct mirror *m, const struct event_commit *e, struct view *keys,
                         enum mirror_found *found, struct errtext *err)
{
    struct rebuilt r;
    struct canon_bytes records = {NULL, 0};
    char name[ARCHIVE_NAME_BYTES];
    *found = MIRROR_WHOLE;
    if (is_kept(m, e))
        return STATUS_OK;
    *found = MIRROR_ABSENT;
    archive_batch_name(name, e->header.seq);
    enum status st = begin(&r, e, keys->d, err);
    struct errtext archive = ERRTEXT_INIT, lanes = ERRTEXT_INIT;
    if (!st &&
        !from_source(m, name, "records.bin", ARCHIVE_RECORDS_BYTES_MAX, &records, &archive)) {
        buf_put(&r.records, records.data, records.len);
        st = judge(m, &r, keys, found, err);
    }
    mem_free((void *)(uintptr_t)records.data);
    if (!st && *found == MIRROR_ABSENT && !from_lanes(m, &r, &lanes))
        st = judge(m, &r, keys, found, err);
    if (!st && *found == MIRROR_ABSENT)
        err_set(err, STATUS_OK, "batch %" PRIu64 ": nobody shows its records (%s; %s)",
                e->header.seq, archive.text[0] ? archive.text : "the archive shows others",
                lanes.text[0] ? lanes.text : "the lanes' servers show others");
    rebuilt_fini(&r);
    return st;
}

/* ---- an epoch ---- */

enum status mirror_epoch(struct mirror *m, uint64_t epoch, struct errtext *err)
{
    struct canon_bytes data[ARCHIVE_EPOCH_FILES] = {{NULL, 0}};
    struct archive_file file[ARCHIVE_EPOCH_FILES];
    char folder[ARCHIVE_NAME_BYTES];
    size_t count = 0;
    enum status st = STATUS_OK;
    archive_epoch_name(folder, epoch);
    for (size_t i = 0; i < ARCHIVE_EPOCH_FILES && !st; i++) {
        struct errtext why = ERRTEXT_INIT;
        st = from_source(m, folder, archive_epoch_files[i], EPOCH_FILE_BYTES, &data[i], &why);
        if (!st)
            file[count++] =
                (struct archive_file){archive_epoch_files[i], data[i].data, data[i].len};
        else if (st != STATUS_NOT_FOUND)
            err_set(err, st, "%s", why.text);
        else
            st = STATUS_OK; /* not every epoch has every file */
    }
    if (!st && !count)
        st = err_set(err, STATUS_NOT_FOUND, "%s: the archive shows nothing of it", folder);
    struct archive_folder f = {m->config.dir, folder, file, count, true};
    if (!st)
        st = archive_publish(&f, err);
    for (size_t i = 0; i < ARCHIVE_EPOCH_FILES; i++)
        mem_free((void *)(uintptr_t)data[i].data);
    return st;
}
