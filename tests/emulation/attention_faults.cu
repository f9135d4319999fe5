/* attention.cu and attention_prefill.cu once more, with barriers that can be taken out: a barrier's
 * number is its place in the order of first use. */
#include "kernels/cuda/device.cuh"

#define cuda_attention                attention_fault /* the struct too, which does no harm */
#define cuda_attention_prepare        attention_fault_prepare
#define cuda_attention_release        attention_fault_release
#define cuda_attention_plan           attention_fault_plan
#define cuda_attention_list_bytes_max attention_fault_bytes
#define attn_full_launch              attention_fault_full_launch
#define cuda_attn_split_allow         attention_fault_split_allow
#define cuda_attn_full_allow          attention_fault_full_allow

#include "server/base/check.h"
#include "tests/emulation/attention_faults.h"

uint32_t attention_fault_barrier;

static int barrier_at[ATTENTION_BARRIERS];

/* Relaxed: the bookkeeping must not order what the kernels do not. */
static void barrier(int at)
{
    for (uint32_t i = 0; i < ATTENTION_BARRIERS; i++) {
        int known = __atomic_load_n(&barrier_at[i], __ATOMIC_RELAXED);
        if (known && known != at)
            continue;
        __atomic_store_n(&barrier_at[i], at, __ATOMIC_RELAXED);
        if (i + 1 != attention_fault_barrier)
            block_sync(at);
        return;
    }
    PANIC("more than %d barriers", ATTENTION_BARRIERS);
}
/* unique over both files */
#define block_sync() barrier(__LINE__ * 100 + (int)sizeof(__FILE__))

#include "kernels/cuda/attention.cu"
#include "kernels/cuda/attention_prefill.cu"

enum status attention_fault_allow(void)
{
    enum status st = attention_fault_split_allow();
    return st ? st : attention_fault_full_allow();
}

/* Those of split_end. */
bool attention_barrier_is_between_blocks(uint32_t i)
{
    return i == 4 || i == 5;
}
