/* Largest remainder in exact integers. The sum of the remainders is (leftover units) * sum(w) and
 * each is below sum(w), so more parts have a remainder than there are units left, or exactly none
 * are left: a part with weight 0 never gets a unit. */
#include "chain_client/lr.h"
#include "server/base/check.h"
#include "server/base/mem.h"

#include <stdlib.h>

#define SMALL_COUNT 16

struct remainder {
    struct u256 rest;
    size_t idx;
};

static int remainder_order(const void *a, const void *b)
{
    const struct remainder *x = a, *y = b;
    int order = u256_cmp(&y->rest, &x->rest); /* largest first */
    if (order)
        return order;
    return x->idx < y->idx ? -1 : x->idx > y->idx;
}

enum status lr_split(u128 *part, u128 x, const struct u256 *weight, size_t count)
{
    struct remainder small[SMALL_COUNT], *rest = small;
    struct u256 sum = {{0}};
    for (size_t i = 0; i < count; i++) {
        if (!u256_add(&sum, &weight[i]))
            return STATUS_INVALID;
    }
    if (u256_is_zero(&sum))
        return STATUS_INVALID;
    if (count > SMALL_COUNT) {
        rest = mem_try_array(count, sizeof(*rest));
        if (!rest)
            return STATUS_NO_MEMORY;
    }
    u128 left = x;
    for (size_t i = 0; i < count; i++) {
        u256_muldiv(&part[i], &rest[i].rest, x, &weight[i], &sum);
        rest[i].idx = i;
        left -= part[i];
    }
    if (left) {
        CHECK(left < count);
        qsort(rest, count, sizeof(*rest), remainder_order);
        for (size_t i = 0; i < (size_t)left; i++)
            part[rest[i].idx]++;
    }
    if (rest != small)
        mem_free(rest);
    return STATUS_OK;
}

enum status lr_split_small(u128 *part, u128 x, const uint32_t *weight, size_t count)
{
    struct u256 wide[64];
    CHECK(count >= 1 && count <= ARRAY_COUNT(wide));
    for (size_t i = 0; i < count; i++)
        wide[i] = u256_from(weight[i]);
    return lr_split(part, x, wide, count);
}
