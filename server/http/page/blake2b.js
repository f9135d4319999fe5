// BLAKE2b-256 without key (RFC 7693). A 64-bit word is two of 32 bits, low first: BigInt would take minutes for what a document may be.
const IV = new Uint32Array([0xf3bcc908, 0x6a09e667, 0x84caa73b, 0xbb67ae85, 0xfe94f82b, 0x3c6ef372, 0x5f1d36f1, 0xa54ff53a,
  0xade682d1, 0x510e527f, 0x2b3e6c1f, 0x9b05688c, 0xfb41bd6b, 0x1f83d9ab, 0x137e2179, 0x5be0cd19]);
const SIGMA = ['0123456789abcdef', 'ea489fd61c02b753', 'b8c052fdae367194', '7931dcbe265a40f8', '905724afe1bc683d',
  '2c6a0b834d75fe19', 'c51fed4a0763928b', 'db7ec13950f4862a', '6fe9b308c2d714a5', 'a2847615fb9e3cd0'].map((row) => [...row].map((c) => parseInt(c, 16)));
const ROUNDS = 12, BLOCK = 128;
const v = new Uint32Array(32), m = new Uint32Array(32);

// v[a] += x
function add(a, low, high) {
  const sum = v[a] + low;
  v[a] = sum;
  v[a + 1] = v[a + 1] + high + (sum > 0xffffffff ? 1 : 0);
}

// v[a] = (v[a] ^ v[b]) rotated right by n
function turn(a, b, n) {
  let low = v[a] ^ v[b], high = v[a + 1] ^ v[b + 1];
  if (n >= 32) [low, high] = [high, low];
  const k = n & 31;
  v[a] = k ? (low >>> k) | (high << (32 - k)) : low;
  v[a + 1] = k ? (high >>> k) | (low << (32 - k)) : high;
}

function mix(a, b, c, d, x, y) {
  for (const [word, first, second] of [[x, 32, 24], [y, 16, 63]]) {
    add(a, v[b], v[b + 1]);
    add(a, m[word], m[word + 1]);
    turn(d, a, first);
    add(c, v[d], v[d + 1]);
    turn(b, c, second);
  }
}

function compress(h, count, last) {
  v.set(h);
  v.set(IV, 16);
  v[24] ^= count;
  v[25] ^= Math.floor(count / 2 ** 32);
  if (last) {
    v[28] = ~v[28];
    v[29] = ~v[29];
  }
  for (let round = 0; round < ROUNDS; round++) {
    const s = SIGMA[round % 10];
    for (let i = 0; i < 4; i++) mix(2 * i, 8 + 2 * i, 16 + 2 * i, 24 + 2 * i, 2 * s[2 * i], 2 * s[2 * i + 1]);
    for (let i = 0; i < 4; i++)
      mix(2 * i, 8 + 2 * ((i + 1) % 4), 16 + 2 * ((i + 2) % 4), 24 + 2 * ((i + 3) % 4), 2 * s[8 + 2 * i], 2 * s[9 + 2 * i]);
  }
  for (let i = 0; i < 16; i++) h[i] ^= v[i] ^ v[i + 16];
}

export function blake2b256(bytes) {
  const h = new Uint32Array(IV), block = new Uint8Array(BLOCK), words = new DataView(block.buffer);
  h[0] ^= 0x01010020; // 32 bytes out, no key
  let at = 0;
  do {
    const part = bytes.subarray(at, at + BLOCK);
    block.fill(0);
    block.set(part);
    for (let i = 0; i < 32; i++) m[i] = words.getUint32(4 * i, true);
    at += part.length;
    compress(h, at, at >= bytes.length);
  } while (at < bytes.length);
  const out = new Uint8Array(32), view = new DataView(out.buffer);
  for (let i = 0; i < 8; i++) view.setUint32(4 * i, h[i], true);
  return out;
}
