"""What others would do for one layer's LoRA, timed as a step would run it: a CUDA graph over many layers' own weights (so that none is in
the cache when its turn comes), medians of replays, per layer. Reads cells as JSON lines, prints one JSON line a cell.

    python3 tests/gpu/peers.py [--tune N] < cells                        {"cell", "group", "batch", "adapters", "rank", "copies", "shape"};
                                                                         the first N configurations of the tuned peers
    python3 tests/gpu/peers.py --cublas < cells                          cublasGemmGroupedBatchedEx alone
    python3 tests/gpu/peers.py --check                                   every peer against f64 on small cells, on a GPU or in Triton's
                                                                         interpreter (TRITON_INTERPRET=1); exit status 1 on a miss
    python3 tests/gpu/peers.py --compile                                 every Triton configuration to sm_90 machine code, without a GPU

A peer adds to a bf16 y (they would read it so); ours reads f32 and does the op that follows too. A peer that is wrong is not timed.
"""
import json
import sys
import time

import torch

import bounds
import peer_triton as pt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # Triton's interpreter does not know bfloat16 products
TOLERANCE = 2e-2  # of the norm of what was added: bf16 intermediates and a bf16 y


class Cell:
    """One group of modules of one layer: rows sorted by adapter, an equal number each; weights in `copies` layers."""

    def __init__(self, spec, shape=None):
        self.spec = spec
        self.k, self.widths = bounds.group_dims(shape or bounds.SHAPES[spec["shape"]], spec["group"])
        self.n_slice, self.width = len(self.widths), sum(self.widths)
        self.batch, self.slots, self.copies = spec["batch"], spec["adapters"], spec["copies"]
        self.ranks = bounds.ranks_of(spec["rank"], self.slots)
        self.rank = max(self.ranks)
        self.per = self.batch // self.slots
        g = torch.Generator(device=DEVICE).manual_seed(spec.get("seed", 1))

        def random(*shape):
            return torch.randn(*shape, generator=g, device=DEVICE, dtype=DTYPE)

        self.x, self.y0 = random(self.batch, self.k), random(self.batch, self.width)
        self.y = self.y0.clone()
        self.columns = [sum(self.widths[:i]) for i in range(self.n_slice + 1)]
        self.begins = [i * self.per for i in range(self.slots)]
        # layer 0's adapters; true rank, zero beyond it
        self.a, self.b = random(self.slots, self.n_slice, self.rank, self.k) / self.k**0.5, random(self.slots, self.width, self.rank) / 4
        for i, r in enumerate(self.ranks):
            self.a[i, :, r:] = 0
            self.b[i, :, r:] = 0

    def reference(self):
        """y in f64."""
        y = self.y0.double()
        for i in range(self.slots):
            rows = slice(self.begins[i], self.begins[i] + self.per)
            for j in range(self.n_slice):
                columns = slice(self.columns[j], self.columns[j + 1])
                y[rows, columns] += self.x[rows].double() @ self.a[i, j].double().T @ self.b[i, columns].double().T
        return y

    def layers(self, first):
        """[copies, *first.shape]: layer 0 is first, the others are random numbers of the same size."""
        out = torch.empty(self.copies, *first.shape, dtype=first.dtype, device=DEVICE)
        out.normal_(0, 0.02)
        out[0] = first
        return out

    def ints(self, values):
        return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def ceil_div(a, b):
    return -(-a // b)


class TorchGather:
    """A stack of adapters; each row gathers its own and is multiplied by it."""
    name = "torch gather + bmm"

    def __init__(self, c):
        self.c = c
        self.a, self.b = c.layers(c.a), c.layers(c.b)
        self.index = torch.arange(c.slots, device=DEVICE).repeat_interleave(c.per)

    def run(self, layer):
        c = self.c
        a = self.a[layer][self.index].view(c.batch, c.n_slice * c.rank, c.k)
        s = torch.bmm(a, c.x.unsqueeze(2)).view(c.batch, c.n_slice, c.rank, 1)
        b = self.b[layer][self.index]
        for j in range(c.n_slice):
            lo, hi = c.columns[j], c.columns[j + 1]
            c.y[:, lo:hi] += torch.bmm(b[:, lo:hi], s[:, j]).squeeze(2)


class TorchStacked:
    """As many adapters as rows, already in row order: no gather. The best that plain bmm can do."""
    name = "torch bmm, stacked"

    def __init__(self, c):
        if c.slots != c.batch:
            raise NotImplementedError("needs one adapter a row")
        self.c, self.a, self.b = c, c.layers(c.a), c.layers(c.b)

    def run(self, layer):
        c = self.c
        s = torch.bmm(self.a[layer].view(c.batch, c.n_slice * c.rank, c.k), c.x.unsqueeze(2)).view(c.batch, c.n_slice, c.rank, 1)
        for j in range(c.n_slice):
            lo, hi = c.columns[j], c.columns[j + 1]
            c.y[:, lo:hi] += torch.bmm(self.b[layer][:, lo:hi], s[:, j]).squeeze(2)


class TorchLoop:
    """Two matrix products for each adapter (for one adapter: the two cuBLAS products that a merged batch would take)."""
    name = "torch mm loop"

    def __init__(self, c):
        self.c, self.a, self.b = c, c.layers(c.a), c.layers(c.b)

    def run(self, layer):
        c = self.c
        for i, r in enumerate(c.ranks):
            rows = slice(c.begins[i], c.begins[i] + c.per)
            for j in range(c.n_slice):
                lo, hi = c.columns[j], c.columns[j + 1]
                s = c.x[rows] @ self.a[layer, i, j, :r].T
                c.y[rows, lo:hi].addmm_(s, self.b[layer, i, lo:hi, :r].T)


class TorchGrouped:
    """torch._grouped_mm: one kernel for all adapters' products."""
    name = "torch grouped_mm"

    def __init__(self, c):
        if not hasattr(torch, "_grouped_mm"):
            raise NotImplementedError("this torch has no _grouped_mm")
        self.c, self.a = c, c.layers(c.a.reshape(c.slots, c.n_slice * c.rank, c.k))
        self.b = [c.layers(c.b[:, c.columns[j]:c.columns[j + 1]].contiguous()) for j in range(c.n_slice)]
        self.ends = c.ints([b + c.per for b in c.begins])

    def run(self, layer):
        c = self.c
        s = torch._grouped_mm(c.x, self.a[layer].transpose(1, 2), offs=self.ends)
        for j in range(c.n_slice):
            part = s[:, j * c.rank:(j + 1) * c.rank].contiguous()
            c.y[:, c.columns[j]:c.columns[j + 1]] += torch._grouped_mm(part, self.b[j][layer].transpose(1, 2), offs=self.ends)


class SortedTriton:
    """vLLM's structure; configs: (shrink, expand)."""

    def __init__(self, c, configs, name):
        self.c, self.name, (self.shrink, self.expand) = c, name, configs
        wide = max(c.widths)
        b = torch.zeros(c.n_slice, c.slots, wide, c.rank, dtype=DTYPE, device=DEVICE)
        for j in range(c.n_slice):
            b[j, :, :c.widths[j]] = c.b[:, c.columns[j]:c.columns[j + 1]]
        self.a, self.b = c.layers(c.a.transpose(0, 1).contiguous()), c.layers(b)
        self.rows, self.counts, self.starts = c.ints(list(range(c.batch))), c.ints([c.per] * c.slots), c.ints(c.begins)
        self.widths, self.columns = c.ints(c.widths), c.ints(c.columns)
        self.s = torch.zeros(c.n_slice, c.batch, c.rank, device=DEVICE)

    def run_shrink(self, layer):
        c, (bm, bn, bk, split, warps, stages) = self.c, self.shrink
        if split > 1:
            self.s.zero_()
        grid = (split * ceil_div(c.batch, bm) * ceil_div(c.rank, bn), c.n_slice, c.slots)
        pt.sorted_shrink[grid](c.x, self.a[layer], self.s, self.rows, self.counts, self.starts, c.batch, c.k, c.rank, c.rank * c.k,
                               c.slots * c.rank * c.k, SPLIT=split, BM=bm, BN=bn, BK=bk, num_warps=warps, num_stages=stages)

    def run_expand(self, layer):
        c, (bm, bn, bk, warps, stages) = self.c, self.expand
        wide = max(c.widths)
        grid = (ceil_div(c.batch, bm) * ceil_div(wide, bn), c.n_slice, c.slots)
        pt.sorted_expand[grid](self.s, self.b[layer], c.y, self.rows, self.counts, self.starts, self.widths, self.columns, c.batch, c.rank,
                               c.width, wide * c.rank, c.slots * wide * c.rank, BM=bm, BN=bn, BK=bk, num_warps=warps, num_stages=stages)

    def run(self, layer):
        self.run_shrink(layer)
        self.run_expand(layer)


class ChunkTriton:
    """SGLang's chunked structure; configs: (shrink, expand)."""

    def __init__(self, c, configs, name):
        self.c, self.name, (self.shrink, self.expand) = c, name, configs
        a = torch.zeros(c.slots, c.n_slice * c.rank, c.k, dtype=DTYPE, device=DEVICE)
        for i, r in enumerate(c.ranks):
            for j in range(c.n_slice):
                a[i, j * r:(j + 1) * r] = c.a[i, j, :r]
        self.a, self.b = c.layers(a), c.layers(c.b)
        chunks = [(begin + at, min(16, c.per - at), i) for i, begin in enumerate(c.begins) for at in range(0, c.per, 16)]
        self.n_chunk = len(chunks)
        self.begin, self.count, self.slot = (c.ints(list(v)) for v in zip(*chunks))
        self.rows, self.ranks, self.columns = c.ints(list(range(c.batch))), c.ints(c.ranks), c.ints(c.columns)
        self.s = torch.zeros(c.batch, c.n_slice * c.rank, dtype=DTYPE, device=DEVICE)

    def run_shrink(self, layer):
        c, (bm, bn, bk, warps, stages) = self.c, self.shrink
        pt.chunk_shrink[(ceil_div(c.n_slice * c.rank, bn), self.n_chunk)](
            c.x, self.a[layer], self.s, self.rows, self.begin, self.count, self.slot, self.ranks, c.k, c.n_slice, c.rank,
            c.n_slice * c.rank * c.k, BM=bm, BN=bn, BK=bk, num_warps=warps, num_stages=stages)

    def run_expand(self, layer):
        c, (bm, bn, bk, warps, stages) = self.c, self.expand
        pt.chunk_expand[(ceil_div(max(c.widths), bn), c.n_slice, self.n_chunk)](
            self.s, self.b[layer], c.y, self.rows, self.begin, self.count, self.slot, self.ranks, self.columns, c.n_slice, c.rank, c.width,
            c.width * c.rank, BM=bm, BN=bn, BK=bk, num_warps=warps, num_stages=stages)

    def run(self, layer):
        self.run_shrink(layer)
        self.run_expand(layer)


def capture(fn, layers):
    """A graph that calls fn(layer) for every layer; warmed up first, so that compiling and allocation stay out of it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for layer in list(layers)[:2]:
            fn(layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for layer in layers:
            fn(layer)
    return graph


def replay_us(graph, n_layer, repeats):
    """Median microseconds a layer."""
    for _ in range(3):
        graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return sorted(b.elapsed_time(e) for b, e in events)[repeats // 2] * 1000 / n_layer


def time_us(fn, copies, repeats=25):
    return replay_us(capture(fn, range(copies)), copies, repeats)


def miss(peer, c, want):
    """‖got − want‖ over the norm of what was to be added; NaN is a miss by any measure."""
    c.y.copy_(c.y0)
    peer.run(0)
    got = c.y.double()
    return float((got - want).norm() / (want - c.y0.double()).norm())


def tuned(peer, shrinks, expands, copies):
    """The fastest shrink and the fastest expand of small grids, each timed alone."""
    best = []
    for attribute, fn, grid in (("shrink", peer.run_shrink, shrinks), ("expand", peer.run_expand, expands)):
        times = {}
        for config in grid:
            setattr(peer, attribute, config)
            try:
                times[config] = time_us(fn, min(copies, 12), 7)
            except Exception:  # noqa: BLE001 - a configuration that this GPU refuses is not a candidate
                continue
        best.append(min(times, key=times.get) if times else grid[0])
        setattr(peer, attribute, best[-1])
    return tuple(best)


def makers(c, tune, cublas):
    """name -> a function that makes the peer, in the order in which they run. cublas: that one alone, since a call through ctypes that goes
    wrong takes the process with it."""
    if cublas:
        import peer_cublas
        return {peer_cublas.CublasGrouped.name: lambda: peer_cublas.CublasGrouped(c)}

    def tuned_sorted():
        peer = SortedTriton(c, pt.sorted_defaults(c.batch), "triton sorted, tuned")
        tuned(peer, pt.SORTED_SHRINKS[:tune], pt.SORTED_EXPANDS[:tune], c.copies)
        return peer

    def tuned_chunk():
        peer = ChunkTriton(c, pt.CHUNK_DEFAULT, "triton chunked, tuned")
        tuned(peer, pt.CHUNK_SHRINKS[:tune], pt.CHUNK_EXPANDS[:tune], c.copies)
        return peer

    made = {TorchGather.name: lambda: TorchGather(c), TorchStacked.name: lambda: TorchStacked(c), TorchLoop.name: lambda: TorchLoop(c),
            TorchGrouped.name: lambda: TorchGrouped(c),
            "triton sorted": lambda: SortedTriton(c, pt.sorted_defaults(c.batch), "triton sorted"),
            "triton chunked": lambda: ChunkTriton(c, pt.CHUNK_DEFAULT, "triton chunked")}
    if tune and DEVICE == "cuda":
        made.update({"triton sorted, tuned": tuned_sorted, "triton chunked, tuned": tuned_chunk})
    return made


def run_cell(spec, tune, cublas=False, shape=None, timed=True):
    c = Cell(spec, shape)
    want, times, notes, misses = c.reference(), {}, {}, {}
    for name, make in makers(c, tune, cublas).items():
        try:
            peer = make()
            misses[name] = miss(peer, c, want)
            if not misses[name] < TOLERANCE:
                notes[name] = "wrong"
            elif timed:
                times[name] = round(time_us(peer.run, c.copies), 3)
                notes.update({name: f"{peer.shrink} {peer.expand}"} if hasattr(peer, "shrink") else {})
        except NotImplementedError as e:
            notes[name] = f"n/a: {e}"
        except Exception as e:  # noqa: BLE001 - one peer's failure is a note, not the end of the others
            notes[name] = f"{type(e).__name__}: {str(e)[:80]}"
        peer = None
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return {"cell": spec["cell"], "peers": times, "notes": notes, "miss": {n: round(m, 5) for n, m in misses.items()}}


def check():
    """Small cells with every irregularity: ranks 8 to 64 mixed, one row, several rows an adapter, slices of unequal width."""
    shape = {"n_layer": 1, "d_model": 128, "d_ff": 160, "n_head": 2, "n_kv_head": 1, "d_head": 64, "n_vocab": 256}
    wrong = 0
    for group, batch, adapters, rank in (("qkv", 1, 1, "16"), ("gate_up", 4, 4, "mix"), ("o", 6, 2, "8"), ("down", 40, 2, "32")):
        r = run_cell({"cell": f"{group} {batch} {adapters} {rank}", "group": group, "batch": batch, "adapters": adapters, "rank": rank, "copies": 2},
                     0, shape=shape, timed=False)
        wrong += sum(1 for m in r["miss"].values() if not m < TOLERANCE)
        print(json.dumps(r))
    return 1 if wrong else 0


def compile_all():
    """Machine code for sm_90 of every configuration; needs Triton and its assembler only."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile as triton_compile

    pointers = {"x": "*bf16", "a": "*bf16", "b": "*bf16", "y": "*bf16"}
    sorted_s, chunk_s = {"s": "*fp32"}, {"s": "*bf16"}
    ints = ("rows", "counts", "starts", "widths", "columns", "chunk_begin", "chunk_count", "chunk_slot", "ranks")
    shrinks = [pt.SORTED_DEFAULT[k][0] for k in pt.SORTED_DEFAULT] + pt.SORTED_SHRINKS
    expands = [pt.SORTED_DEFAULT["few"][1]] + pt.SORTED_EXPANDS
    work = [(pt.sorted_shrink, sorted_s, dict(BM=c[0], BN=c[1], BK=c[2], SPLIT=c[3]), c[4:]) for c in shrinks]
    work += [(pt.sorted_expand, sorted_s, dict(BM=c[0], BN=c[1], BK=c[2]), c[3:]) for c in expands]
    work += [(pt.chunk_shrink, chunk_s, dict(BM=c[0], BN=c[1], BK=c[2]), c[3:]) for c in [pt.CHUNK_DEFAULT[0], *pt.CHUNK_SHRINKS]]
    work += [(pt.chunk_expand, chunk_s, dict(BM=c[0], BN=c[1], BK=c[2]), c[3:]) for c in [pt.CHUNK_DEFAULT[1], *pt.CHUNK_EXPANDS]]
    begin = time.monotonic()
    for kernel, s, constants, (warps, stages) in work:
        signature = {n: {**pointers, **s, **dict.fromkeys(ints, "*i32")}.get(n, "constexpr" if n in constants else "i32") for n in kernel.arg_names}
        built = triton_compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32),
                               options={"num_warps": warps, "num_stages": stages})
        assert built.metadata.shared <= 227 << 10, f"{kernel.__name__} {constants}: {built.metadata.shared} bytes of shared memory"
    print(json.dumps({"compiled": len(work), "seconds": round(time.monotonic() - begin, 1)}))
    return 0


def main():
    if "--check" in sys.argv:
        return check()
    if "--compile" in sys.argv:
        return compile_all()
    tune = int(sys.argv[sys.argv.index("--tune") + 1]) if "--tune" in sys.argv else 3
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(run_cell(json.loads(line), tune, "--cublas" in sys.argv)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
