/* The modes of bench_cuda that are files of their own. First, once, sees all lines and prepares the
 * backend for them: false and *bad if one is not understood. Then each line is one cell. The end
 * gives back what the lines left. */
#ifndef RS_TESTS_GPU_BENCH_MODES_H
#define RS_TESTS_GPU_BENCH_MODES_H

#include "tests/gpu/bench_rig.h"

#define LINES_MAX  1024
#define LINE_BYTES 128

typedef bool mode_first(struct rig *r, char line[][LINE_BYTES], uint32_t n, uint32_t *bad);
typedef void mode_line(struct rig *r, const char *line);
typedef void mode_end(struct rig *r);

mode_first step_first, swap_first;
mode_line step_line, swap_line;
mode_end step_end, swap_end;

#endif
