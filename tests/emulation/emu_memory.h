/* The part of emu.h that touches memory or matrices. Included by emu.h only. */
#ifndef RS_TESTS_EMULATION_EMU_MEMORY_H
#define RS_TESTS_EMULATION_EMU_MEMORY_H

DEVICE void mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2], EMU_LINE)
{
    struct emu_op op = {EMU_MMA, line, 0, {a[0], a[1], a[2], a[3], b[0], b[1]}, {}};
    memcpy(op.d, d, sizeof(op.d));
    emu_warp_op(&op);
    memcpy(d, op.d, sizeof(op.d));
}
/* 16 bytes as two words: a memcpy may become instructions that no sanitizer has seen. */
typedef uint64_t __attribute__((may_alias)) emu_word;
DEVICE void emu_copy_16(void *to, const void *from)
{
    emu_word *t = (emu_word *)to;
    const emu_word *f = (const emu_word *)from;
    emu_word a = f[0], b = f[1];
    t[0] = a;
    t[1] = b;
}
DEVICE void emu_fill_16(void *to, uint64_t word)
{
    emu_word *t = (emu_word *)to;
    t[0] = word;
    t[1] = word;
}

DEVICE void emu_ldmatrix(uint32_t *r, const void *smem, uint32_t count, enum emu_kind kind,
                         int line)
{
    struct emu_op op = {kind, line, count, {}, {}};
    if (emu_self->lane < 8 * count) { /* the other lanes' addresses are not looked at */
        emu_check_smem(smem, 16, line);
        emu_copy_16(op.in, smem);
    }
    emu_warp_op(&op);
    memcpy(r, op.out, 4 * count);
}
DEVICE void ldmatrix_x4(uint32_t r[4], const void *smem, EMU_LINE)
{
    emu_ldmatrix(r, smem, 4, EMU_MATRIX, line);
}
DEVICE void ldmatrix_x2(uint32_t r[2], const void *smem, EMU_LINE)
{
    emu_ldmatrix(r, smem, 2, EMU_MATRIX, line);
}
DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void *smem, EMU_LINE)
{
    emu_ldmatrix(r, smem, 4, EMU_MATRIX_TRANS, line);
}
DEVICE void ldmatrix_x2_trans(uint32_t r[2], const void *smem, EMU_LINE)
{
    emu_ldmatrix(r, smem, 2, EMU_MATRIX_TRANS, line);
}
DEVICE uint32_t movmatrix_trans(uint32_t v, EMU_LINE)
{
    return emu_exchange(EMU_MOVMATRIX, v, 0, line);
}

DEVICE void emu_check_16(const void *p, int line)
{
    if ((uintptr_t)p % 16)
        emu_fault(line, "16-byte access at %p, which is not aligned", p);
}
DEVICE uint4 ldg_16(const void *p, EMU_LINE)
{
    uint4 v;
    emu_check_16(p, line);
    emu_copy_16(&v, p);
    return v;
}
DEVICE uint4 ldg_stream_16(const void *p, EMU_LINE)
{
    return ldg_16(p, line);
}

/* A copy is done at the wait, as late as the device may do it. From the start until then the
 * destination is NaN: who reads it early, or still reads what was there, computes nonsense. */
DEVICE void cp_async_16(void *smem, const void *gmem, bool valid, EMU_LINE)
{
    emu_check_smem(smem, 16, line);
    emu_check_16(gmem, line);
    emu_fill_16(smem, UINT64_MAX);
    emu_copy_begin(smem, valid ? gmem : NULL, line);
}
DEVICE void cp_async_commit(void)
{
    emu_copy_commit();
}
template <int n> DEVICE void cp_async_wait(void)
{
    const void *from;
    while (void *smem = emu_copy_next(n, &from)) {
        if (from)
            emu_copy_16(smem, from);
        else
            emu_fill_16(smem, 0);
    }
}

/* Relaxed, as on the device: what it publishes needs fence_device() on both sides. */
DEVICE uint32_t atomic_add_u32(uint32_t *p, uint32_t v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
DEVICE void fence_device(void)
{
    emu_fence();
}
DEVICE void pdl_wait(void)
{
    emu_self->waited = true;
}
DEVICE void pdl_trigger(void)
{
    emu_self->triggered = true;
}

DEVICE float fast_exp2(float x)
{
    return exp2f(x);
}
DEVICE float fast_rsqrt(float x)
{
    return 1.0f / sqrtf(x);
}
DEVICE float fast_rcp(float x)
{
    return 1.0f / x;
}

#endif
