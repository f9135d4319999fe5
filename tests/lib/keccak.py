"""Keccak-256, for function selectors and roots: small and slow."""


def _round_constants():
    out, lfsr = [], 1
    for _ in range(24):
        value = 0
        for j in range(7):
            if lfsr & 1:
                value |= 1 << ((1 << j) - 1)
            lfsr = lfsr << 1 ^ (0x171 if lfsr & 0x80 else 0)
        out.append(value)
    return out


CONSTANTS, MASK = _round_constants(), (1 << 64) - 1


def _permute(a):
    rol = lambda v, n: (v << n | v >> (64 - n)) & MASK if n else v
    for constant in CONSTANTS:
        c = [a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5)]
        a = [a[i] ^ c[(i + 4) % 5] ^ rol(c[(i + 1) % 5], 1) for i in range(25)]
        b, x, y, cur = [0] * 25, 1, 0, a[1]
        b[0] = a[0]
        for t in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            b[x + 5 * y], cur = rol(cur, (t + 1) * (t + 2) // 2 % 64), a[x + 5 * y]
        a = [b[i] ^ (~b[i - i % 5 + (i + 1) % 5] & b[i - i % 5 + (i + 2) % 5]) for i in range(25)]
        a[0] ^= constant
    return a


def keccak(data):
    padded = bytearray(data) + b"\x01" + bytes(-(len(data) + 1) % 136)
    padded[-1] |= 0x80
    a = [0] * 25
    for at in range(0, len(padded), 136):
        for i in range(17):
            a[i] ^= int.from_bytes(padded[at + 8 * i:at + 8 * i + 8], "little")
        a = _permute(a)
    return b"".join(v.to_bytes(8, "little") for v in a[:4])
