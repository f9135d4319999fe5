"""What the hardware must do at least: bytes and floating-point operations of a decode step and of its LoRA kernels, by model shape.
Every byte counts once: weights, the distinct adapters of the batch, each sequence's keys and values."""

SHAPES = {
    "llama-3.1-8b": {"n_layer": 32, "d_model": 4096, "d_ff": 14336, "n_head": 32, "n_kv_head": 8, "d_head": 128, "n_vocab": 128256},
    "qwen2.5-7b": {"n_layer": 28, "d_model": 3584, "d_ff": 18944, "n_head": 28, "n_kv_head": 4, "d_head": 128, "n_vocab": 152064},
    "tiny": {"n_layer": 2, "d_model": 256, "d_ff": 512, "n_head": 4, "n_kv_head": 2, "d_head": 64, "n_vocab": 512},
}
BF16 = 2
GROUPS = ("qkv", "o", "gate_up", "down")
MIX = ((8, 40), (16, 30), (32, 15), (64, 10), (128, 5))  # (rank, percent): the mixed population, mean 25.6


def group_dims(shape, group):
    """(d_in, [d_out of each module]) of the modules that share an input."""
    d, q, kv = shape["d_model"], shape["n_head"] * shape["d_head"], shape["n_kv_head"] * shape["d_head"]
    return {"qkv": (d, [q, kv, kv]), "o": (q, [d]), "gate_up": (d, [shape["d_ff"]] * 2), "down": (shape["d_ff"], [d])}[group]


def mix_ranks(n):
    """n ranks in the proportions of MIX, spread so that any prefix is mixed too."""
    ranks, owed = [], {r: 0.0 for r, _ in MIX}
    for _ in range(n):
        for r, percent in MIX:
            owed[r] += percent
        pick = max(owed, key=lambda r: (owed[r], -r))
        owed[pick] -= 100
        ranks.append(pick)
    return ranks


def ranks_of(kind, n):
    """kind: a rank as text, or "mix"."""
    return mix_ranks(n) if kind == "mix" else [int(kind)] * n


def weight_bytes(shape):
    """What a decode step reads of the base: the layers and the output matrix (embedding rows are nothing)."""
    layer = sum(d_in * sum(d_out) for d_in, d_out in (group_dims(shape, g) for g in GROUPS))
    return BF16 * (layer * shape["n_layer"] + shape["n_vocab"] * shape["d_model"])


def rank_bytes(shape):
    """Bytes of one unit of rank of an all-linear adapter."""
    layer = sum(len(d_out) * d_in + sum(d_out) for d_in, d_out in (group_dims(shape, g) for g in GROUPS))
    return BF16 * layer * shape["n_layer"]


def kv_bytes(shape, tokens):
    return BF16 * 2 * shape["n_kv_head"] * shape["d_head"] * shape["n_layer"] * tokens


def step_bytes(shape, batch, context, ranks):
    """ranks: of the distinct adapters that the batch uses."""
    return weight_bytes(shape) + rank_bytes(shape) * sum(ranks) + kv_bytes(shape, batch * context)


def pair_bytes(shape, group, ranks):
    """A and B of one layer's group, each distinct adapter once: what shrink and expand must read."""
    d_in, d_out = group_dims(shape, group)
    return BF16 * sum(ranks) * (len(d_out) * d_in + sum(d_out))


def pair_copies(shape, group, ranks, l2_bytes=60 << 20, most=512):
    """Layers to rotate over, so that no weight of a replay is still in the cache when its turn comes again: three times the cache."""
    return max(8, min(most, -(-3 * l2_bytes // max(1, pair_bytes(shape, group, ranks)))))
