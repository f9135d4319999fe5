/* Between emu.cc (threads of a block) and emu_runtime.cc (grids, streams, memory). */
#ifndef RS_TESTS_EMULATION_EMU_RUNTIME_H
#define RS_TESTS_EMULATION_EMU_RUNTIME_H

#include "tests/emulation/emu.h"

/* The runtime is compiled without -fsanitize; its builder says what the program has. */
#ifndef EMU_TSAN
#define EMU_TSAN 0
#endif
#ifndef EMU_ASAN
#define EMU_ASAN 0
#endif

/* emu_now is set; returns when all threads of the block have returned. */
void emu_run_block(const std::function<void()> *body);
/* An order of count blocks: the first, and the step to the next (modulo count). */
uint32_t emu_permute_begin(uint32_t count, uint32_t *stride);
/* What the blocks wrote is now ordered before the caller. */
void emu_launch_end(void);

#endif
