/* See training_split.h. Each row has a number drawn from the seed, its document's id and its
 * offset; the rows of the lowest numbers are held out. */
#include "server/datanet/training_split.h"
#include "server/base/mem.h"
#include "server/base/order.h"
#include "server/base/philox.h"

#include <math.h>
#include <stdlib.h>

#define HELD_DRAW 0x68656c64 /* of drawing rows that are held out */

static uint64_t number_of(const struct training_row *row, const struct datanet *d, uint64_t seed)
{
    uint64_t id = datanet_facts(d, row->document)->doc_id;
    const uint32_t ctr[4] = {(uint32_t)id, (uint32_t)(id >> 32), row->offset, HELD_DRAW};
    uint32_t out[4];
    philox4x32(out, ctr, seed);
    return (uint64_t)out[0] << 32 | out[1];
}

static struct training *like(const struct training *all, uint32_t rows)
{
    struct training *t = mem_alloc(sizeof(*t));
    *t = *all;
    t->n = 0;
    t->row = mem_try_array((size_t)rows + 1, sizeof(*t->row));
    if (t->row)
        return t;
    training_free(t);
    return NULL;
}

static enum status no_memory(uint32_t rows, struct errtext *err)
{
    return err_set(err, STATUS_NO_MEMORY, "no memory for %u rows", rows);
}

/* Those numbered up to `last` are held out. */
static void deal(struct training_split *out, const struct training *all, const uint64_t *number,
                 uint64_t last)
{
    for (uint32_t i = 0; i < all->n; i++) {
        struct training *to = number[i] <= last ? out->held : out->learned;
        to->row[to->n++] = all->row[i];
    }
}

static enum status split(struct training_split *out, const struct training *all,
                         const struct datanet *d, uint32_t held, uint64_t seed, struct errtext *err)
{
    uint64_t *number = mem_try_array(all->n, sizeof(*number));
    uint64_t *sorted = mem_try_array(all->n, sizeof(*sorted));
    enum status st = STATUS_OK;
    out->learned = like(all, all->n);
    out->held = like(all, all->n);
    if (number && sorted && out->learned && out->held) {
        for (uint32_t i = 0; i < all->n; i++)
            sorted[i] = number[i] = number_of(&all->row[i], d, seed);
        qsort(sorted, all->n, sizeof(*sorted), order_u64);
        deal(out, all, number, sorted[held - 1]);
        st = training_seal(out->learned, d, err);
        if (!st)
            st = training_seal(out->held, d, err);
    } else {
        st = no_memory(all->n, err);
    }
    mem_free(number);
    mem_free(sorted);
    return st;
}

enum status training_split(struct training_split *out, const struct training *all,
                           const struct datanet *d, double share, uint64_t seed,
                           struct errtext *err)
{
    *out = (struct training_split){0};
    double want = floor(share * all->n + 0.5);
    if (!(share > 0 && share < 1) || all->n < 2)
        return err_set(err, STATUS_INVALID,
                       "held out: a share of %g of %u rows, expected above 0, below 1, of 2 rows "
                       "at least",
                       share, all->n);
    uint32_t held = want < 1 ? 1 : want > all->n - 1 ? all->n - 1 : (uint32_t)want;
    enum status st = split(out, all, d, held, seed, err);
    if (st) {
        training_free(out->learned);
        training_free(out->held);
        *out = (struct training_split){0};
    }
    return st;
}

struct placed {
    uint64_t id; /* of its document */
    struct training_row row;
};

static int by_place(const void *a, const void *b)
{
    const struct placed *x = a, *y = b;
    if (x->id != y->id)
        return x->id < y->id ? -1 : 1;
    return (x->row.offset > y->row.offset) - (x->row.offset < y->row.offset);
}

static void place(struct placed *out, const struct training *t, const struct datanet *d)
{
    for (uint32_t i = 0; i < t->n; i++)
        out[i] = (struct placed){datanet_facts(d, t->row[i].document)->doc_id, t->row[i]};
}

enum status training_join(struct training **out, const struct training *a, const struct training *b,
                          const struct datanet *d, struct errtext *err)
{
    uint32_t n = a->n + b->n;
    struct placed *all = mem_try_array((size_t)n + 1, sizeof(*all));
    struct training *t = *out = all ? like(a, n) : NULL;
    if (!t) {
        mem_free(all);
        return no_memory(n, err);
    }
    place(all, a, d);
    place(all + a->n, b, d);
    qsort(all, n, sizeof(*all), by_place);
    bool apart = true;
    for (uint32_t i = 1; i < n; i++)
        apart &= all[i - 1].id != all[i].id ||
                 all[i - 1].row.offset + all[i - 1].row.bytes <= all[i].row.offset;
    t->n = apart ? n : a->n;
    for (uint32_t i = 0; i < t->n; i++)
        t->row[i] = apart ? all[i].row : a->row[i];
    mem_free(all);
    enum status st = training_seal(t, d, err);
    if (st) {
        training_free(t);
        *out = NULL;
    }
    return st;
}
