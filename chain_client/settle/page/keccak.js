// Keccak-256 as Ethereum uses it: rate 136, padding 0x01. 25 lanes of 64 bits as BigInt: slow and plain; the page hashes a few
// hundred bytes.
const MASK = (1n << 64n) - 1n;
const ROUNDS = 24, RATE = 136;

const rotate = (v, n) => (n ? ((v << n) | (v >> (64n - n))) & MASK : v);

// iota's constants from the LFSR, rho's offsets and pi's places from their walk: fewer numbers to mistype than the tables.
const constants = [], offsets = Array(25).fill(0n);
{
  let lfsr = 1;
  for (let round = 0; round < ROUNDS; round++) {
    let c = 0n;
    for (let j = 0; j < 7; j++) {
      if (lfsr & 1) c ^= 1n << BigInt((1 << j) - 1);
      lfsr = lfsr & 0x80 ? (lfsr << 1) ^ 0x171 : lfsr << 1;
    }
    constants.push(c);
  }
  for (let t = 0, x = 1, y = 0; t < 24; t++) {
    offsets[x + 5 * y] = BigInt((((t + 1) * (t + 2)) / 2) % 64);
    [x, y] = [y, (2 * x + 3 * y) % 5];
  }
}

function permute(a) {
  for (let round = 0; round < ROUNDS; round++) {
    const column = [0, 1, 2, 3, 4].map((x) => a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20]);
    for (let i = 0; i < 25; i++) a[i] ^= column[(i + 4) % 5] ^ rotate(column[((i % 5) + 1) % 5], 1n);
    const b = Array(25);
    for (let x = 0; x < 5; x++)
      for (let y = 0; y < 5; y++) b[y + 5 * ((2 * x + 3 * y) % 5)] = rotate(a[x + 5 * y], offsets[x + 5 * y]);
    for (let y = 0; y < 25; y += 5)
      for (let x = 0; x < 5; x++) a[x + y] = b[x + y] ^ (~b[((x + 1) % 5) + y] & MASK & b[((x + 2) % 5) + y]);
    a[0] ^= constants[round];
  }
}

export function keccak256(bytes) {
  const padded = new Uint8Array((Math.floor(bytes.length / RATE) + 1) * RATE), a = Array(25).fill(0n);
  padded.set(bytes);
  padded[bytes.length] ^= 0x01;
  padded[padded.length - 1] ^= 0x80;
  const view = new DataView(padded.buffer);
  for (let at = 0; at < padded.length; at += RATE) {
    for (let i = 0; i < RATE / 8; i++) a[i] ^= view.getBigUint64(at + 8 * i, true);
    permute(a);
  }
  const out = new Uint8Array(32), words = new DataView(out.buffer);
  for (let i = 0; i < 4; i++) words.setBigUint64(8 * i, a[i], true);
  return out;
}
