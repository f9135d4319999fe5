/* gpu_tests FAMILY: the tests of tests/emulation/test_cuda_<FAMILY>.c on the device; gpu_tests
 * --list names the families. Here is what the emulation would bring, where the device is real:
 * seeds order nothing, sizes cannot be pretended, nothing can be broken. Tests that are about the
 * emulation itself (planted faults, the stand-in for cuBLASLt) are left out by name, and the
 * program says so. Linked with --wrap=_cmocka_run_group_tests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "server/base/check.h"
#include "server/base/mem.h"
#include "tests/emulation/emu_control.h"
#include "tests/emulation/lt_double.h"

static const char *const emulation_only[] = {
    "test_planted_faults_are_caught",
    "bits_do_not_depend_on_the_grid",
    "what_cannot_be_recorded_is_launched",
    "a_missing_library_is_named",
    "the_faster_one_is_chosen_at_start",
    "what_the_library_refuses_is_done_by_own_kernels",
    "a_start_that_cannot_time_goes_on_or_says_why",
};

int __real__cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t count,
                                   CMFixtureFunction setup, CMFixtureFunction teardown);
int __wrap__cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t count,
                                   CMFixtureFunction setup, CMFixtureFunction teardown);

int __wrap__cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t count,
                                   CMFixtureFunction setup, CMFixtureFunction teardown)
{
    struct CMUnitTest *chosen = mem_array(count, sizeof(*chosen));
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        bool left_out = false;
        for (size_t k = 0; k < ARRAY_COUNT(emulation_only); k++)
            left_out = left_out || strcmp(tests[i].name, emulation_only[k]) == 0;
        if (left_out)
            fprintf(stderr, "[  LEFT OUT] %s: about the emulation\n", tests[i].name);
        else
            chosen[n++] = tests[i];
    }
    int failed = __real__cmocka_run_group_tests(group, chosen, n, setup, teardown);
    mem_free(chosen);
    return failed;
}

/* ---- the emulation's controls ---- */

struct emu_device emu_device = EMU_DEVICE_INIT;
struct lt_double lt_double;

struct cublaslt_api lt_double_api(void)
{
    PANIC("the stand-in for cuBLASLt belongs to the emulation");
}

void emu_reset(void)
{
}

void emu_set_seed(uint64_t seed)
{
    (void)seed;
}

bool emu_is_tsan(void)
{
    return false;
}

uint64_t emu_switches(void)
{
    return 0;
}

uint64_t emu_late_launches(void)
{
    return 0;
}

void emu_break_device(void)
{
    PANIC("this test belongs to the emulation");
}

/* ---- the families: their main()s under other names; some take no arguments ---- */

#define FAMILY(name) int gpu_test_##name(int argc, char **argv);
RS_FAMILIES
#undef FAMILY

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} families[] = {
#define FAMILY(name) {#name, gpu_test_##name},
    RS_FAMILIES
#undef FAMILY
};

int main(int argc, char **argv)
{
    bool list = argc == 2 && strcmp(argv[1], "--list") == 0;
    for (size_t i = 0; i < ARRAY_COUNT(families); i++) {
        if (list)
            printf("%s\n", families[i].name);
        else if (argc == 2 && strcmp(argv[1], families[i].name) == 0)
            return families[i].run(argc, argv);
    }
    if (!list)
        fprintf(stderr, "gpu_tests FAMILY, or gpu_tests --list\n");
    return list ? 0 : 2;
}
