"""What is measured: the cells of each part, small for --quick, all of kernels' acceptance for --full."""
import bounds

SHAPE = "llama-3.1-8b"
CONTEXT = 1024


def pair_name(group, batch, adapters, rank):
    return f"{group} b{batch} a{adapters} r{rank}"


def pair_cells(full, shape=SHAPE):
    """One layer's shrink and expand: the single stream, one shared adapter, as many adapters as rows, larger and mixed ranks."""
    combos = [(1, 1, "16"), (16, 1, "16"), (16, 16, "16"), (64, 1, "16"), (64, 64, "16"), (64, 64, "64"), (64, 64, "mix")]
    if full:
        combos += [(b, a, r) for r in ("8", "16", "64", "mix") for b, a in ((1, 1), (8, 8), (64, 16), (128, 128), (256, 1), (256, 128))
                   if not (r == "mix" and a == 1)]
    cells = []
    for group in bounds.GROUPS:
        for batch, adapters, rank in dict.fromkeys(combos):
            ranks = bounds.ranks_of(rank, adapters)
            copies = bounds.pair_copies(bounds.SHAPES[shape], group, ranks)
            cells.append({"cell": pair_name(group, batch, adapters, rank), "group": group, "batch": batch, "adapters": adapters, "rank": rank,
                          "copies": copies, "shape": shape})
    return cells


def step_cells(full):
    """lora: none (no adapter configured), idle (configured, unused), one (shared), distinct (a row each), zipf (drawn from `adapters`)."""
    cells = []

    def add(batch, lora, rank="16", adapters=0, context=CONTEXT, seed=0):
        cells.append({"batch": batch, "context": context, "lora": lora, "rank": rank, "adapters": adapters, "seed": seed})

    for batch in (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256) if full else (1, 8, 64, 256):
        add(batch, "none")
        add(batch, "idle", adapters=1)
        add(batch, "one", adapters=1)
    for batch in (8, 16, 64, 128, 256) if full else (64,):
        add(batch, "distinct", adapters=batch)
    if full:
        add(64, "distinct", "64", 64)
        add(64, "distinct", "mix", 64)
        add(128, "distinct", "mix", 128)
        add(64, "one", adapters=1, context=4096)
    for seed in range(5 if full else 3):
        add(64, "zipf", adapters=1000, seed=seed)
    return cells


def fixed_cells(full):
    """The same in the mode whose bits do not depend on the batch."""
    wanted = ((1, "one"), (64, "none"), (64, "one"), (64, "distinct")) if full else ((1, "one"), (64, "distinct"))
    return [c for c in step_cells(full) if (c["batch"], c["lora"]) in wanted and c["rank"] == "16" and c["context"] == CONTEXT]


def step_line(c):
    """As bench_cuda reads it."""
    return f"{c['batch']} {c['context']} {c['lora']} {c['rank']} {c['adapters']} {c['seed']}"


def pair_line(c):
    return f"{c['group']} {c['batch']} {c['adapters']} {c['rank']} {c['copies']}"


def kernel_lines(full):
    """Single kernels: gemm GROUP ROWS | attention BATCH CONTEXT | prefill ROWS CONTEXT | norm ROWS | embed ROWS | logits ROWS | sample ROWS MODE
    | score ROWS."""
    rows = (1, 2, 4, 8, 16, 32, 64, 128, 256) if full else (1, 8, 64, 256)
    lines = [f"gemm {g} {n}" for g in bounds.GROUPS for n in rows]
    lines += [f"gemm {g} {n}" for g in bounds.GROUPS for n in ((512, 2048) if full else (2048,))]
    lines += [f"attention {b} {c}" for b, c in (((1, 1024), (16, 1024), (64, 1024), (256, 1024), (1, 32768), (16, 8192)) if full
                                                else ((1, 1024), (64, 1024), (1, 32768)))]
    lines += [f"prefill {n} {n}" for n in ((512, 2048, 8192) if full else (2048,))]
    lines += [f"{k} {n}" for k in ("norm", "embed", "logits") for n in ((1, 16, 64, 256) if full else (1, 64))]
    lines += [f"sample {n} {mode}" for n in ((1, 64, 256) if full else (64,)) for mode in ("greedy", "temperature", "top_p")]
    return lines + [f"score {n}" for n in ((16, 128) if full else (128,))]
