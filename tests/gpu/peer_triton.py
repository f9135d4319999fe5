"""Peers written for this comparison in the structure that vLLM and SGLang have published for their Triton LoRA kernels; the code is ours.

vLLM's structure: rows are sorted by adapter (an index list, counts and starts for each adapter); every adapter gets the row blocks of the
whole batch, and those past its own rows leave at once; the shrink splits K over programs that add into a zeroed f32 buffer with atomics;
adapters are stacked and padded to the largest rank, which is what both kernels loop over.

SGLang's chunked structure: the rows of an adapter are cut into chunks, one program walks all of K for a chunk; true ranks, no split-K.

Outputs are 64 wide at most in the expands: on Hopper with this Triton, 128 gives NaN.
"""
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_rows", "n_slice"])
def sorted_shrink(x, a, s, rows, counts, starts, n_rows, k, rank, stride_slot, stride_slice, SPLIT: tl.constexpr, BM: tl.constexpr,
                  BN: tl.constexpr, BK: tl.constexpr):
    """s[slice, row, r] += x[row, :] . a[slice, slot, r, :]; grid (split * row blocks * rank blocks, slices, slots)."""
    pid, slice_id, slot = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    split = pid % SPLIT
    row_blocks = tl.cdiv(n_rows, BM)
    row_block = (pid // SPLIT) % row_blocks
    rank_block = pid // (SPLIT * row_blocks)
    count = tl.load(counts + slot)
    if row_block * BM >= count:
        return
    lane = row_block * BM + tl.arange(0, BM)
    row = tl.load(rows + tl.load(starts + slot) + lane, mask=lane < count, other=0)
    n = rank_block * BN + tl.arange(0, BN)
    offset_k = split * BK + tl.arange(0, BK)
    weights = a + slice_id.to(tl.int64) * stride_slice + slot.to(tl.int64) * stride_slot
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(0, tl.cdiv(k, BK * SPLIT)):
        at = step * BK * SPLIT + offset_k
        left = tl.load(x + row[:, None] * k + at[None, :], mask=(lane < count)[:, None] & (at < k)[None, :], other=0.0)
        right = tl.load(weights + n[None, :] * k + at[:, None], mask=(n < rank)[None, :] & (at < k)[:, None], other=0.0)
        acc = tl.dot(left, right, acc)
    out = s + (slice_id * n_rows + row)[:, None] * rank + n[None, :]
    mask = (lane < count)[:, None] & (n < rank)[None, :]
    if SPLIT == 1:
        tl.store(out, acc, mask=mask)
    else:
        tl.atomic_add(out, acc, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["n_rows", "n_slice"])
def sorted_expand(s, b, y, rows, counts, starts, widths, columns, n_rows, rank, y_stride, stride_slot, stride_slice, BM: tl.constexpr,
                  BN: tl.constexpr, BK: tl.constexpr):
    """y[row, columns[slice] + n] += s[slice, row, :] . b[slice, slot, n, :]; grid (row blocks * column blocks, slices, slots)."""
    pid, slice_id, slot = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_blocks = tl.cdiv(n_rows, BM)
    row_block, column_block = pid % row_blocks, pid // row_blocks
    count, width = tl.load(counts + slot), tl.load(widths + slice_id)
    if row_block * BM >= count:
        return
    if column_block * BN >= width:
        return
    lane = row_block * BM + tl.arange(0, BM)
    row = tl.load(rows + tl.load(starts + slot) + lane, mask=lane < count, other=0)
    n = column_block * BN + tl.arange(0, BN)
    weights = b + slice_id.to(tl.int64) * stride_slice + slot.to(tl.int64) * stride_slot
    acc = tl.zeros((BM, BN), tl.float32)
    for base in range(0, rank, BK):
        r = base + tl.arange(0, BK)
        left = tl.load(s + (slice_id * n_rows + row)[:, None] * rank + r[None, :], mask=(lane < count)[:, None] & (r < rank)[None, :], other=0.0)
        right = tl.load(weights + n[None, :] * rank + r[:, None], mask=(n < width)[None, :] & (r < rank)[:, None], other=0.0)
        acc = tl.dot(left.to(right.dtype), right, acc)
    out = y + row[:, None] * y_stride + tl.load(columns + slice_id) + n[None, :]
    mask = (lane < count)[:, None] & (n < width)[None, :]
    tl.store(out, tl.load(out, mask=mask, other=0.0) + acc, mask=mask)


@triton.jit(do_not_specialize=["n_rows", "n_slice"])
def chunk_shrink(x, a, s, rows, chunk_begin, chunk_count, chunk_slot, ranks, k, n_slice, rank_max, stride_slot, BM: tl.constexpr,
                 BN: tl.constexpr, BK: tl.constexpr):
    """s[row, slice * rank + r] = x[row, :] . a[slot, slice * rank + r, :]; grid (rank blocks of all slices, chunks)."""
    rank_block, chunk = tl.program_id(0), tl.program_id(1)
    slot = tl.load(chunk_slot + chunk)
    rank = tl.load(ranks + slot)
    n = rank_block * BN + tl.arange(0, BN)
    if rank_block * BN >= rank * n_slice:
        return
    count = tl.load(chunk_count + chunk)
    lane = tl.arange(0, BM)
    row = tl.load(rows + tl.load(chunk_begin + chunk) + lane, mask=lane < count, other=0)
    weights = a + slot.to(tl.int64) * stride_slot
    acc = tl.zeros((BM, BN), tl.float32)
    for base in range(0, k, BK):
        at = base + tl.arange(0, BK)
        left = tl.load(x + row[:, None] * k + at[None, :], mask=(lane < count)[:, None] & (at < k)[None, :], other=0.0)
        right = tl.load(weights + n[None, :] * k + at[:, None], mask=(n < rank * n_slice)[None, :] & (at < k)[:, None], other=0.0)
        acc = tl.dot(left, right, acc)
    out = s + row[:, None] * (n_slice * rank_max) + n[None, :]
    tl.store(out, acc.to(s.dtype.element_ty), mask=(lane < count)[:, None] & (n < rank * n_slice)[None, :])


@triton.jit(do_not_specialize=["n_rows", "n_slice"])
def chunk_expand(s, b, y, rows, chunk_begin, chunk_count, chunk_slot, ranks, columns, n_slice, rank_max, y_stride, stride_slot,
                 BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """y[row, column of slice + n] += s[row, slice * rank : ] . b[slot, column of slice + n, :rank]; grid (column blocks, slices, chunks)."""
    column_block, slice_id, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin, end = tl.load(columns + slice_id), tl.load(columns + slice_id + 1)
    if column_block * BN >= end - begin:
        return
    slot, count = tl.load(chunk_slot + chunk), tl.load(chunk_count + chunk)
    rank = tl.load(ranks + slot)
    lane = tl.arange(0, BM)
    row = tl.load(rows + tl.load(chunk_begin + chunk) + lane, mask=lane < count, other=0)
    n = begin + column_block * BN + tl.arange(0, BN)
    weights = b + slot.to(tl.int64) * stride_slot
    acc = tl.zeros((BM, BN), tl.float32)
    for base in range(0, rank, BK):
        r = base + tl.arange(0, BK)
        left = tl.load(s + row[:, None] * (n_slice * rank_max) + slice_id * rank + r[None, :],
                       mask=(lane < count)[:, None] & (r < rank)[None, :], other=0.0)
        right = tl.load(weights + n[None, :] * rank_max + r[:, None], mask=(n < end)[None, :] & (r < rank)[:, None], other=0.0)
        acc = tl.dot(left, right, acc)
    out = y + row[:, None] * y_stride + n[None, :]
    mask = (lane < count)[:, None] & (n < end)[None, :]
    tl.store(out, tl.load(out, mask=mask, other=0.0) + acc, mask=mask)


# (BM, BN, BK, split, warps, stages) of the shrink and (BM, BN, BK, warps, stages) of the expand
SORTED_DEFAULT = {"few": ((32, 16, 256, 64, 4, 2), (64, 64, 16, 4, 2)), "many": ((32, 16, 32, 8, 4, 2), (64, 64, 16, 4, 2))}
SORTED_SHRINKS = [(16, 16, 256, 8, 4, 3), (16, 16, 256, 16, 4, 3), (16, 16, 128, 32, 4, 3), (16, 32, 256, 8, 8, 3), (16, 16, 512, 8, 8, 2)]
SORTED_EXPANDS = [(16, 64, 16, 4, 2), (16, 32, 16, 4, 2), (16, 64, 32, 4, 3), (16, 64, 64, 8, 2)]
CHUNK_DEFAULT = ((16, 16, 256, 4, 2), (16, 64, 16, 4, 2))
CHUNK_SHRINKS = [(16, 16, 256, 4, 4), (16, 16, 512, 4, 3), (16, 32, 256, 8, 3), (16, 16, 128, 8, 4)]
CHUNK_EXPANDS = [(16, 64, 32, 4, 2), (16, 32, 16, 2, 2), (16, 64, 16, 8, 3)]


def sorted_defaults(n_rows):
    return SORTED_DEFAULT["few" if n_rows < 128 else "many"]
