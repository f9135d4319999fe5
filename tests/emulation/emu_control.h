/* What a test can say to the emulation: which device to pretend, when it breaks, in which order
 * blocks and warps take turns. C and C++. */
#ifndef RS_TESTS_EMULATION_EMU_CONTROL_H
#define RS_TESTS_EMULATION_EMU_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emu_device {
    int count, major, minor, sm_count, driver_version; /* 13000: CUDA 13.0 */
    size_t bytes, smem_bytes_max;
    bool refuse_pinned;
    int refuse_capture; /* 1: its begin, 2: its end, 3: the graph made of it */
};
#define EMU_DEVICE_INIT                                                                            \
    {                                                                                              \
        1, 9, 0, 4, 13000, (size_t)512 << 20, 227 * 1024, false, 0                                 \
    }
extern struct emu_device emu_device;

void emu_reset(void);        /* a working device again */
void emu_break_device(void); /* a sticky error: every call fails from now on */
void emu_set_seed(uint64_t seed);
bool emu_is_tsan(void);       /* the program looks for races: slow */
void emu_spend_us(double us); /* the device's clock goes on: work that takes longer than it looks */
uint64_t emu_switches(void);  /* of threads, so far: the cost of a test */
/* Launches so far of which some block never called pdl_trigger: what follows starts when they end,
 * and fetches nothing meanwhile. */
uint64_t emu_late_launches(void);
int emu_stream_priority(const void *stream); /* the lower the earlier */
/* Device memory as it is, while work given to the streams still waits. */
void emu_peek(void *to, const void *device, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
