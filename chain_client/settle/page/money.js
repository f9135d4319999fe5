// The money of the page, without the page: amounts as text, the reward tree of SPEC 3, the vault's calls. Amounts are BigInt base
// units everywhere; what comes from outside is checked here before it is used.
import { keccak256 } from './keccak.js';

const UNIT = 10n ** 18n;

export function amountOf(text) {
  if (typeof text !== 'string' || !/^[0-9]{1,39}$/.test(text)) throw new Error('The worker answered an amount that is none.');
  return BigInt(text);
}

// Exact: as many decimals as there are.
export function amountText(v, symbol) {
  const fraction = String(v % UNIT).padStart(18, '0').replace(/0+$/, '');
  return `${v / UNIT}${fraction ? '.' + fraction : ''} ${symbol}`;
}

export const isAddress = (text) => typeof text === 'string' && /^0x[0-9a-fA-F]{40}$/.test(text);

export function bytesOf(hex, n) {
  if (typeof hex !== 'string' || !new RegExp(`^0x[0-9a-fA-F]{${2 * n}}$`).test(hex)) throw new Error(`Not ${n} bytes: ${String(hex).slice(0, 80)}`);
  return Uint8Array.from(hex.slice(2).match(/../g), (pair) => parseInt(pair, 16));
}

export const hexOf = (bytes) => '0x' + Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('');

const number = (v, n) => bytesOf('0x' + BigInt(v).toString(16).padStart(2 * n, '0'), n);
const word = (v) => number(v, 32);
const address = (text) => join([new Uint8Array(12), bytesOf(text, 20)]);

function join(parts) {
  const out = new Uint8Array(parts.reduce((sum, p) => sum + p.length, 0));
  parts.reduce((at, p) => (out.set(p, at), at + p.length), 0);
  return out;
}

const topic = (signature) => keccak256(new TextEncoder().encode(signature));
const selector = (signature) => topic(signature).slice(0, 4);

// ---- the tree ----

// keccak(abi.encode("residual.reward.1", chainId, vault, token))
export function rewardDomain(d) {
  const label = new TextEncoder().encode('residual.reward.1'), padded = new Uint8Array(32);
  padded.set(label);
  return keccak256(join([word(128), word(d.chain_id), address(d.vault), address(d.token), word(label.length), padded]));
}

export function rewardLeaf(domain, index, account, cumulative) {
  return keccak256(join([new Uint8Array([0x00]), domain, number(index, 4), bytesOf(account, 20), number(cumulative, 16)]));
}

// {hash, sum} of the root that the account's leaf leads to. r is an answer of /v1/rewards.
export function rewardRoot(d, r) {
  const { hashes, sums } = r.proof, count = r.leaves;
  if (!Number.isInteger(r.index) || !Number.isInteger(count) || r.index < 0 || r.index >= count) throw new Error('The proof names no leaf of the tree.');
  if (!Array.isArray(hashes) || !Array.isArray(sums) || hashes.length !== sums.length || hashes.length !== Math.ceil(Math.log2(count)))
    throw new Error('The proof does not have the depth of its tree.');
  let hash = rewardLeaf(rewardDomain(d), r.index, r.account, amountOf(r.cumulative)), sum = amountOf(r.cumulative);
  hashes.forEach((text, level) => {
    const own = [hash, number(sum, 16)], other = [bytesOf(text, 32), number(amountOf(sums[level]), 16)];
    const pair = Math.floor(r.index / 2 ** level) % 2 ? [...other, ...own] : [...own, ...other];
    hash = keccak256(join([new Uint8Array([0x01]), ...pair]));
    sum += amountOf(sums[level]);
  });
  return { hash: hexOf(hash), sum };
}

// ---- the vault ----

export const epochCall = (epoch) => hexOf(join([selector('epochs(uint64)'), word(epoch)]));

// Of what epochs(uint64) answers: root, total, activeAt, leaves, disabled, ...
export function readEpoch(data) {
  if (typeof data !== 'string' || !/^0x([0-9a-f]{64}){5,}$/i.test(data)) throw new Error('The chain does not know this vault: is the wallet on the right network?');
  const at = (i) => data.slice(2 + 64 * i, 66 + 64 * i);
  return { root: '0x' + at(0).toLowerCase(), total: BigInt('0x' + at(1)), leaves: Number(BigInt('0x' + at(3))), disabled: BigInt('0x' + at(4)) !== 0n };
}

// claim(uint64,uint32,address,uint128,bytes32[],uint128[])
export function claimCall(r) {
  const n = r.proof.hashes.length;
  return hexOf(join([
    selector('claim(uint64,uint32,address,uint128,bytes32[],uint128[])'),
    word(r.epoch), word(r.index), address(r.account), word(amountOf(r.cumulative)), word(6 * 32), word((7 + n) * 32),
    word(n), ...r.proof.hashes.map((h) => bytesOf(h, 32)), word(n), ...r.proof.sums.map((s) => word(amountOf(s)))]));
}

// What a claim's receipt says was paid: a day near its cap pays a part.
export function paidIn(receipt, vault) {
  const claimed = hexOf(topic('Claimed(address,address,uint64,uint128,uint128)'));
  const log = receipt.logs.find((l) => l.address.toLowerCase() === vault.toLowerCase() && l.topics[0].toLowerCase() === claimed);
  return log ? BigInt(log.data.slice(0, 66)) : 0n;
}

// The vault's own reasons, in words; the first argument is a number.
const reasons = [
  ['NothingToClaim(uint128)', () => 'It was paid already: nothing is left to claim.'],
  ['NotActive(uint64)', (v) => `Epoch ${v} cannot be claimed from now. Refresh and try again.`],
  ['BadProof()', () => 'The vault does not accept this proof. Refresh and try again.'],
  ['PaymentRefused(address)', () => 'The receiving address refused the payment. Its owner can name another with setPayout.'],
  ['OverTotal(uint128)', () => 'The vault would pay more than the epoch holds; it refuses.'],
  ['OverDailyCap(uint128)', () => 'The vault has paid out today what a day lets. Try again tomorrow.'],
  ['Paused()', () => 'The guardian has paused claims for now. Amounts are not lost; try again later.'],
].map(([signature, say]) => [hexOf(selector(signature)), say]);

// null: none of the vault's.
export function reasonOf(data) {
  const found = typeof data === 'string' && reasons.find(([id]) => data.toLowerCase().startsWith(id));
  const argument = found && /^0x[0-9a-f]{72,}$/i.test(data) ? BigInt('0x' + data.slice(10, 74)) : 0n;
  return found ? found[1](argument) : null;
}
