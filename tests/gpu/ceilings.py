"""The ceilings that shares are taken of, measured by PyTorch and Triton on this GPU: one JSON line. Copies count bytes read and written,
reads bytes read; the matrix product runs on random data (on zeros it is faster than on anything real). Medians of event times.

    python3 tests/gpu/ceilings.py [--quick | --compile]      --compile: the kernel to sm_90 machine code, without a GPU
"""
import json
import sys

import torch
import triton
import triton.language as tl

READ_SHAPES = ((4096, 8, 8), (8192, 4, 16), (2048, 16, 4))  # words a block, blocks a program, warps


@triton.jit
def read_kernel(src, out, n, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """Each program reads STEPS blocks of 4-byte words and writes one number, so that nothing is optimised away."""
    base = tl.program_id(0).to(tl.int64) * BLOCK * STEPS
    lanes = tl.arange(0, BLOCK)
    seen = tl.zeros((BLOCK,), tl.int32)
    for i in range(STEPS):
        at = base + i * BLOCK + lanes
        seen ^= tl.load(src + at, mask=at < n, other=0)
    tl.store(out + tl.program_id(0), tl.xor_sum(seen, 0))


def median_ms(fn, repeats=15):
    for _ in range(3):
        fn()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        fn()
        end.record()
    torch.cuda.synchronize()
    return sorted(b.elapsed_time(e) for b, e in events)[repeats // 2]


def copy_gbs(n_bytes):
    src = torch.randint(0, 127, (n_bytes,), dtype=torch.int8, device="cuda")
    dst = torch.empty_like(src)
    return 2 * n_bytes / median_ms(lambda: dst.copy_(src)) / 1e6


def read_gbs(n_bytes):
    n, best = n_bytes // 4, 0.0
    src = torch.randint(-1 << 30, 1 << 30, (n,), dtype=torch.int32, device="cuda")
    for block, steps, warps in READ_SHAPES:
        grid = -(-n // (block * steps))
        out = torch.empty(grid, dtype=torch.int32, device="cuda")
        ms = median_ms(lambda: read_kernel[(grid,)](src, out, n, BLOCK=block, STEPS=steps, num_warps=warps))  # noqa: B023
        best = max(best, n_bytes / ms / 1e6)
    return best


def gemm_tflops(n):
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty(n, n, device="cuda", dtype=torch.bfloat16)
    return 2 * n**3 / median_ms(lambda: torch.mm(a, b, out=out), 10) / 1e9


def gap_us(nodes=2000):
    """Time of one node in a graph of dependent kernels that do next to nothing: launch gap and the shortest kernel together."""
    x = torch.zeros(1, device="cuda")
    x.add_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(nodes):
            x.add_(1)
    return 1000 * median_ms(graph.replay) / nodes


def h2d_gbs(n_bytes):
    src = torch.empty(n_bytes, dtype=torch.int8, pin_memory=True).fill_(3)
    dst = torch.empty(n_bytes, dtype=torch.int8, device="cuda")
    return n_bytes / median_ms(lambda: dst.copy_(src, non_blocking=True), 9) / 1e6


def compile_only():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile as triton_compile

    signature = {"src": "*i32", "out": "*i32", "n": "i32", "BLOCK": "constexpr", "STEPS": "constexpr"}
    for block, steps, warps in READ_SHAPES:
        triton_compile(ASTSource(read_kernel, signature, {"BLOCK": block, "STEPS": steps}), target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    return 0


def main():
    if "--compile" in sys.argv[1:]:
        return compile_only()
    quick = "--quick" in sys.argv[1:]
    size = (4 << 30) if quick else (12 << 30)
    values = {"copy_gbs": copy_gbs(size), "read_gbs": read_gbs(size), "gemm_tflops": gemm_tflops(8192), "gap_us": gap_us(),
              "h2d_gbs": h2d_gbs(1 << 30)}
    print(json.dumps({k: round(v, 2) for k, v in values.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
