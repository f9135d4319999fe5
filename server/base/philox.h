/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11): a
 * counter-based generator, so a draw depends on (seed, counter) alone and replays bit for bit on
 * every backend. Pure. */
#ifndef RS_BASE_PHILOX_H
#define RS_BASE_PHILOX_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out = Philox4x32-10(counter ctr, key = seed low and high words). */
void philox4x32(uint32_t out[4], const uint32_t ctr[4], uint64_t seed);

/* Uniform in (0, 1): (word + 0.5) / 2^32 as f32-safe f64. */
static inline double philox_unit(uint32_t word)
{
    return ((double)word + 0.5) * (1.0 / 4294967296.0);
}

#ifdef __cplusplus
}
#endif

#endif
