/* Time. Monotonic for durations and deadlines, wall for records. Thread: any. */
#ifndef RS_BASE_CLOCK_H
#define RS_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_mono_ns(void);
uint64_t clock_wall_ms(void); /* Unix time */
void clock_sleep_ms(uint32_t ms);

#endif
