// Waiting for a transaction by asking for its receipt. ethers' own wait() listens for a new block, and where blocks come only
// with transactions it can start to listen after the last one and wait for ever.
export async function receiptOf(provider, hash, { every_ms = 50, most_ms = 120_000 } = {}) {
  for (let waited = 0; waited < most_ms; waited += every_ms) {
    const receipt = await provider.getTransactionReceipt(hash);
    if (receipt) {
      if (receipt.status !== 1) throw new Error(`transaction ${hash} reverted`);
      return receipt;
    }
    await new Promise((r) => setTimeout(r, every_ms));
  }
  throw new Error(`transaction ${hash} was not mined within ${most_ms / 1000} s`);
}
