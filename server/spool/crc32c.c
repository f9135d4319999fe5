/* CRC-32C: the processor's instruction where there is one, else bit by bit. */
#include "server/spool/crc32c.h"

#include <stdbool.h>
#include <string.h>

static uint32_t bitwise(uint32_t crc, const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++)
            crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1)));
    }
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t hardware(uint32_t crc, const uint8_t *p,
                                                           size_t len)
{
    uint64_t c = crc;
    for (; len >= 8; len -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        c = __builtin_ia32_crc32di(c, word);
    }
    uint32_t low = (uint32_t)c;
    for (; len > 0; len--, p++)
        low = __builtin_ia32_crc32qi(low, *p);
    return low;
}

static bool has_hardware(void)
{
    return __builtin_cpu_supports("sse4.2");
}
#else
static uint32_t hardware(uint32_t crc, const uint8_t *p, size_t len)
{
    return bitwise(crc, p, len);
}

static bool has_hardware(void)
{
    return false;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
    uint32_t state = ~crc;
    state = has_hardware() ? hardware(state, data, len) : bitwise(state, data, len);
    return ~state;
}
