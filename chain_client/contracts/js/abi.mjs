// The compiled contracts and every call the worker and the command line make, by name.
import { existsSync, readFileSync } from 'node:fs';
import { Interface } from 'ethers';

export function artifact(name) {
  const url = new URL(`../build/${name}.json`, import.meta.url);
  if (!existsSync(url)) throw new Error(`build/${name}.json is missing: run npm run build`);
  return JSON.parse(readFileSync(url, 'utf8'));
}

export const abi = (name) => new Interface(artifact(name).abi);

export const headerTuple = (h) => [h.seq, h.spec, h.prevHash, h.logRoot, h.manifest, h.leafCount, h.inferences, h.feeSum, h.cumFee, h.closedAt];
export const laneTuple = (l) => [l.lane, l.first, l.last];
export const epochTuple = (h) => [h.epoch, h.prevRoot, h.root, h.total, h.leaves, h.batchPaid, h.batchEvidence, h.manifest];
export const publishTuple = (m) => [m.adapterId, m.modelId, m.datanetId, m.datanetVersion, m.owner, m.priceIn, m.priceOut, m.version];
export const entryTuple = (e) => [e.payee, e.role, e.bps];
export const parentTuple = (p) => [p.adapterId, p.bps];
