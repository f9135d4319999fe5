/* 256-bit unsigned integers as four 64-bit limbs, lowest first.
 *
 * The one hard call is u256_muldiv: the product of a 128-bit and a 256-bit number is 384 bits, and
 * it is divided by up to 256 bits by schoolbook long division on 32-bit digits (Knuth, The Art of
 * Computer Programming, volume 2, 4.3.1, algorithm D). The divisor is shifted so that its top bit
 * is set; then a digit guessed from the top two digits of the remainder is at most two too high,
 * and the two corrections are the loop over rhat and the add-back. */
#include "chain_client/eth/u256.h"
#include "server/base/check.h"

#include <string.h>

#define PRODUCT_DIGITS 12 /* 384 bits */
#define DIVISOR_DIGITS 8  /* 256 bits */

struct u256 u256_from(u128 v)
{
    return (struct u256){.w = {(uint64_t)v, (uint64_t)(v >> 64), 0, 0}};
}

bool u256_is_zero(const struct u256 *a)
{
    return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

int u256_cmp(const struct u256 *a, const struct u256 *b)
{
    for (size_t i = 4; i-- > 0;) {
        if (a->w[i] != b->w[i])
            return a->w[i] < b->w[i] ? -1 : 1;
    }
    return 0;
}

bool u256_add(struct u256 *a, const struct u256 *b)
{
    struct u256 sum;
    u128 carry = 0;
    for (size_t i = 0; i < 4; i++) {
        carry += (u128)a->w[i] + b->w[i];
        sum.w[i] = (uint64_t)carry;
        carry >>= 64;
    }
    if (carry)
        return false;
    *a = sum;
    return true;
}

bool u256_add_product(struct u256 *a, u128 x, uint64_t y)
{
    u128 low = (u128)(uint64_t)x * y;
    u128 high = (u128)(uint64_t)(x >> 64) * y + (low >> 64);
    struct u256 product = {.w = {(uint64_t)low, (uint64_t)high, (uint64_t)(high >> 64), 0}};
    return u256_add(a, &product);
}

static void split_digits(uint32_t *out, const struct u256 *a)
{
    for (size_t i = 0; i < 4; i++) {
        out[2 * i] = (uint32_t)a->w[i];
        out[2 * i + 1] = (uint32_t)(a->w[i] >> 32);
    }
}

static struct u256 join_digits(const uint32_t *in)
{
    struct u256 out;
    for (size_t i = 0; i < 4; i++)
        out.w[i] = in[2 * i] | (uint64_t)in[2 * i + 1] << 32;
    return out;
}

static void multiply_digits(uint32_t *out, u128 x, const uint32_t *w)
{
    memset(out, 0, PRODUCT_DIGITS * sizeof(*out));
    for (size_t i = 0; i < 4; i++) {
        uint64_t digit = (uint32_t)(x >> (32 * i));
        uint64_t carry = 0;
        for (size_t j = 0; j < DIVISOR_DIGITS; j++) {
            carry += digit * w[j] + out[i + j];
            out[i + j] = (uint32_t)carry;
            carry >>= 32;
        }
        out[i + DIVISOR_DIGITS] = (uint32_t)carry;
    }
}

/* One quotient digit: u[0..n] -= q * v[0..n-1] for the largest q that leaves u >= 0. v is
 * normalised (top bit of v[n-1] set), n >= 2. */
static uint32_t divide_step(uint32_t *u, const uint32_t *v, size_t n)
{
    uint64_t top = (uint64_t)u[n] << 32 | u[n - 1];
    uint64_t guess = top / v[n - 1];
    uint64_t rhat = top % v[n - 1];
    while (guess >> 32 || guess * v[n - 2] > (rhat << 32 | u[n - 2])) {
        guess--;
        rhat += v[n - 1];
        if (rhat >> 32)
            break;
    }
    uint64_t carry = 0;
    int64_t borrow = 0;
    for (size_t i = 0; i < n; i++) {
        carry += guess * v[i];
        borrow += (int64_t)u[i] - (int64_t)(uint32_t)carry;
        u[i] = (uint32_t)borrow;
        borrow >>= 32;
        carry >>= 32;
    }
    borrow += (int64_t)u[n] - (int64_t)carry;
    u[n] = (uint32_t)borrow;
    if (borrow >= 0)
        return (uint32_t)guess;
    carry = 0;
    for (size_t i = 0; i < n; i++) {
        carry += (uint64_t)u[i] + v[i];
        u[i] = (uint32_t)carry;
        carry >>= 32;
    }
    u[n] += (uint32_t)carry;
    return (uint32_t)(guess - 1);
}

/* u[0..count) <<= bits (0..31), u[count] takes what falls out. */
static void shift_left(uint32_t *u, size_t count, unsigned bits)
{
    u[count] = 0;
    for (size_t i = count; bits && i-- > 0;) {
        u[i + 1] |= u[i] >> (32 - bits);
        u[i] <<= bits;
    }
}

static void shift_right(uint32_t *u, size_t count, unsigned bits)
{
    for (size_t i = 0; bits && i < count; i++)
        u[i] = u[i] >> bits | (i + 1 < count ? u[i + 1] << (32 - bits) : 0);
}

/* A divisor below 2^32: plain short division. */
static uint32_t divide_short(uint32_t *u, uint32_t d)
{
    uint64_t rest = 0;
    for (size_t i = PRODUCT_DIGITS; i-- > 0;) {
        rest = rest << 32 | u[i];
        u[i] = (uint32_t)(rest / d);
        rest %= d;
    }
    return (uint32_t)rest;
}

void u256_muldiv(u128 *quotient, struct u256 *remainder, u128 x, const struct u256 *w,
                 const struct u256 *d)
{
    CHECK(!u256_is_zero(d));
    CHECK(u256_cmp(w, d) <= 0);
    uint32_t u[PRODUCT_DIGITS + 1], v[DIVISOR_DIGITS + 1], wd[DIVISOR_DIGITS];
    uint32_t q[PRODUCT_DIGITS] = {0};
    split_digits(wd, w);
    split_digits(v, d);
    multiply_digits(u, x, wd);
    size_t n = DIVISOR_DIGITS;
    while (!v[n - 1])
        n--;
    if (n == 1) {
        uint32_t rest = divide_short(u, v[0]);
        memcpy(q, u, sizeof(q));
        memset(u, 0, sizeof(u));
        u[0] = rest;
    } else {
        unsigned bits = (unsigned)__builtin_clz(v[n - 1]);
        shift_left(u, PRODUCT_DIGITS, bits);
        shift_left(v, n, bits);
        for (size_t i = PRODUCT_DIGITS - n + 1; i-- > 0;)
            q[i] = divide_step(u + i, v, n);
        shift_right(u, n, bits);
        memset(u + n, 0, (PRODUCT_DIGITS + 1 - n) * sizeof(*u));
    }
    *remainder = join_digits(u);
    *quotient = 0;
    for (size_t i = 4; i-- > 0;)
        *quotient = *quotient << 32 | q[i];
    for (size_t i = 4; i < PRODUCT_DIGITS; i++)
        CHECK(q[i] == 0);
}
