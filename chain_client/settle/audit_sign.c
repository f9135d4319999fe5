/* Signatures are most of an audit's work and know nothing of each other: a batch's are checked
 * first, each once, by every thread; the walk over its records then reads the answers. */
#include "chain_client/settle/audit_impl.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <string.h>
#include <unistd.h>

enum status audit_crew(struct audit *a, struct errtext *err)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t threads = a->opt->threads ? a->opt->threads : (uint32_t)MAX(processors, 1);
    return crew_create(&a->crew, MIN(threads, (uint32_t)CREW_MAX), err);
}

struct signing {
    const struct audit *a;
    struct audit_signed *item;
};

/* A record that does not parse, or of another lane or number, is not signed: the walk says why. */
static void check_slice(void *arg, size_t first, size_t end)
{
    static const uint8_t nobody[20];
    const struct signing *s = arg;
    size_t hint = 0;
    for (size_t i = first; i < end; i++) {
        struct audit_signed *item = &s->item[i];
        union record r;
        if (canon_decode_layout(&r, item->body.data, item->body.len, NULL))
            continue;
        const struct lane_key *key =
            lane_keys_find(&s->a->keys, &hint, r.prefix.lane, r.prefix.seq);
        item->is_signed = canon_verify(&r, item->digest, s->a->domain, s->a->secp,
                                       key ? key->address : nobody, NULL) == STATUS_OK;
    }
}

enum status audit_signatures(struct audit *a, const struct canon_bytes *records, size_t count_max,
                             struct audit_signed **out, size_t *count, struct errtext *err)
{
    struct canon_bytes body;
    size_t offset = 0, n = 0;
    while (n < count_max && archive_next_record(records, &offset, &body, NULL) == STATUS_OK)
        n++;
    struct audit_signed *item = mem_try_array(n + 1, sizeof(*item));
    if (!item)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the records of a batch");
    offset = 0;
    for (size_t i = 0; i < n; i++)
        CHECK(archive_next_record(records, &offset, &item[i].body, NULL) == STATUS_OK);
    struct signing s = {a, item};
    crew_run(a->crew, check_slice, &s, n);
    *out = item;
    *count = n;
    return STATUS_OK;
}
