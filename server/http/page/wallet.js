// Wallets in the browser: found as EIP-6963 announces them, or the one at window.ethereum (EIP-1193). A wallet is not trusted to
// name things: what it says is shown as text, its icon only as a data: image.

const found = new Map(); // uuid -> {name, icon, provider}

// Calls `changed` with the list of wallets, now and whenever one more comes.
export function discover(changed) {
  const list = () => {
    const all = [...found.values()];
    if (!all.length && window.ethereum?.request) all.push({ name: 'Browser wallet', icon: null, provider: window.ethereum });
    changed(all);
  };
  window.addEventListener('eip6963:announceProvider', (event) => {
    const { info, provider } = event.detail ?? {};
    if (typeof provider?.request !== 'function' || typeof info?.uuid !== 'string' || found.size >= 16) return;
    const icon = typeof info.icon === 'string' && /^data:image\/(png|webp|gif|jpeg|svg\+xml)[;,]/.test(info.icon) ? info.icon : null;
    found.set(info.uuid, { name: String(info.name).slice(0, 60) || 'Wallet', icon, provider });
    list();
  });
  window.dispatchEvent(new Event('eip6963:requestProvider'));
  list();
}

export async function connect(wallet) {
  const accounts = await wallet.provider.request({ method: 'eth_requestAccounts' });
  if (!Array.isArray(accounts) || !accounts.length) throw new Error('The wallet named no account.');
  return accounts[0];
}

const chainHex = (d) => '0x' + d.chain_id.toString(16);

async function addChain(provider, d) {
  if (!d.public_rpc_url) throw new Error(`The wallet does not know chain ${d.chain_id}. Add it there by hand; no public node is named for it here.`);
  const symbol = /^0x0+$/.test(d.token) ? d.coin_symbol : 'ETH'; // of the chain, not of a token
  await provider.request({ method: 'wallet_addEthereumChain', params: [{
    chainId: chainHex(d), chainName: d.chain_name ?? `Chain ${d.chain_id}`, rpcUrls: [d.public_rpc_url],
    nativeCurrency: { name: symbol, symbol, decimals: 18 },
    ...(d.explorer_url ? { blockExplorerUrls: [d.explorer_url] } : {}) }] });
}

// The wallet is on the deployment's chain, or the reason why not is thrown.
export async function onChain(wallet, d) {
  const is = async () => BigInt(await wallet.provider.request({ method: 'eth_chainId' })) === BigInt(d.chain_id);
  if (await is()) return;
  try {
    await wallet.provider.request({ method: 'wallet_switchEthereumChain', params: [{ chainId: chainHex(d) }] });
  } catch (e) {
    if (e?.code !== 4902 && e?.data?.originalError?.code !== 4902) throw e;
    await addChain(wallet.provider, d);
  }
  if (!(await is())) throw new Error(`The wallet stayed on another network. Choose chain ${d.chain_id} there and try again.`);
}

export const call = (wallet, to, data) => wallet.provider.request({ method: 'eth_call', params: [{ to, data }, 'latest'] });

// What the sender needs for gas and has, in base units; throws the vault's refusal.
export async function gasOf(wallet, tx) {
  const [gas, price, balance] = await Promise.all([
    wallet.provider.request({ method: 'eth_estimateGas', params: [tx] }),
    wallet.provider.request({ method: 'eth_gasPrice' }),
    wallet.provider.request({ method: 'eth_getBalance', params: [tx.from, 'latest'] })]);
  return { needed: (BigInt(gas) * BigInt(price) * 5n) / 4n, balance: BigInt(balance) };
}

export const send = (wallet, tx) => wallet.provider.request({ method: 'eth_sendTransaction', params: [tx] });

// The receipt once it is in a block; null after the deadline.
export async function mined(wallet, hash, seconds) {
  for (const end = Date.now() + seconds * 1000; Date.now() < end; ) {
    const receipt = await wallet.provider.request({ method: 'eth_getTransactionReceipt', params: [hash] });
    if (receipt?.blockNumber) return receipt;
    await new Promise((wake) => setTimeout(wake, 500));
  }
  return null;
}

// The bytes of a revert wherever this wallet put them.
export function revertOf(e) {
  const places = [e?.data, e?.data?.data, e?.data?.originalError?.data, e?.error?.data, e?.info?.error?.data];
  return places.find((v) => typeof v === 'string' && v.startsWith('0x')) ?? null;
}
