// A document's owner signs its licence with a wallet: DocumentLicence of SPEC 6 (EIP-712). The text is read and hashed here and goes
// nowhere; what comes out is the entry that `residual datanet sign FILE` would make.
import { blake2b256 } from './blake2b.js';
import { $, make, say } from './dom.js';
import { connect, discover, onChain } from './wallet.js';

const BYTES_MAX = 64 * 2 ** 20;
const CONTROL = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/; // as a server refuses them
const TYPES = {
  EIP712Domain: [{ name: 'name', type: 'string' }, { name: 'version', type: 'string' }, { name: 'chainId', type: 'uint256' },
    { name: 'verifyingContract', type: 'address' }],
  DocumentLicence: [{ name: 'datanetId', type: 'bytes32' }, { name: 'digest', type: 'bytes32' }, { name: 'licence', type: 'string' },
    { name: 'terms', type: 'string' }, { name: 'display', type: 'bool' }, { name: 'registry', type: 'address' }],
};
const hex = (bytes) => '0x' + [...bytes].map((b) => b.toString(16).padStart(2, '0')).join('');
let wallets = []; // {name, provider}
let file = null; // {name, text} of the chosen one

// ---- the text ----

function normal(text) {
  const kept = text.normalize('NFC'), bad = CONTROL.exec(kept);
  if (!kept.isWellFormed()) throw new Error('The text has half a character. Copy it again.');
  if (bad) throw new Error(`Line ${kept.slice(0, bad.index).split('\n').length} has a control character (U+${bad[0].codePointAt(0).toString(16).padStart(4, '0').toUpperCase()}). Remove it.`);
  if (!/[^ \t\r\n]/.test(kept)) throw new Error('The text is empty.');
  const bytes = new TextEncoder().encode(kept);
  if (bytes.length > BYTES_MAX) throw new Error(`The text has ${bytes.length} bytes, at most ${BYTES_MAX}. Split it.`);
  return bytes;
}

const chosen = () => (file ? file.text : $('text').value);

function describe() {
  try {
    const bytes = normal(chosen());
    $('text-is').textContent = `${bytes.length} bytes, digest ${hex(blake2b256(bytes))}`;
  } catch (e) {
    $('text-is').textContent = chosen() ? e.message : 'No text yet.';
  }
}

async function take(picked) {
  file = null;
  $('text').disabled = Boolean(picked);
  if (picked && picked.size > BYTES_MAX) throw new Error(`${picked.name} has ${picked.size} bytes, at most ${BYTES_MAX}. Split it.`);
  if (picked) {
    try {
      file = { name: picked.name, text: new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(await picked.arrayBuffer()) };
    } catch {
      throw new Error(`${picked.name} is not UTF-8. Save it as UTF-8 and choose it again.`);
    }
    const kind = /\.(md|markdown)$/i.test(picked.name) ? 'markdown' : !/\.jsonl$/i.test(picked.name) ? 'text'
      : /^\s*\{[^\n]*"messages"/.test(file.text) ? 'chats' : 'rows';
    $('kind').value = kind;
  }
  describe();
}

// ---- the wallet ----

function listWallets(all) {
  const was = wallets[$('wallet').value]?.provider;
  wallets = all;
  $('wallet').replaceChildren(...all.map((w, i) => make('option', w.name, { value: i, ...(w.provider === was ? { selected: '' } : {}) })));
  $('wallets').hidden = all.length < 2;
}

function chosenWallet() {
  const w = wallets[$('wallet').value];
  if (!w) throw new Error('There is no wallet in this browser. Without one: residual datanet sign FILE.');
  return w;
}

// 27 and 28 are the only forms that a record knows; some wallets say 0 and 1.
function canonical(signature) {
  if (typeof signature !== 'string' || !/^0x([0-9a-fA-F]{2})+$/.test(signature)) throw new Error('The wallet gave no signature.');
  const v = signature.length === 132 ? parseInt(signature.slice(130), 16) : 27;
  return v < 27 ? signature.slice(0, 130) + (v + 27).toString(16) : signature;
}

// ---- all of it ----

function claim(bytes) {
  const raw = $('datanet').value.trim().toLowerCase();
  return {
    datanetId: raw.startsWith('0x') ? raw : '0x' + raw, chainId: Number($('chain').value), registry: $('registry').value.trim(),
    licence: $('licence').value.trim(), terms: $('terms').value.trim(), display: $('display').checked, kind: $('kind').value,
    bytes: bytes.length, digest: hex(blake2b256(bytes)),
  };
}

async function sign() {
  const bytes = normal(chosen()), c = claim(bytes), wallet = chosenWallet(), owner = await connect(wallet);
  await onChain(wallet, { chain_id: c.chainId });
  const typed = { types: TYPES, primaryType: 'DocumentLicence',
    domain: { name: 'residual', version: '1', chainId: c.chainId, verifyingContract: c.registry },
    message: { datanetId: c.datanetId, digest: c.digest, licence: c.licence, terms: c.terms, display: c.display, registry: c.registry } };
  const signature = await wallet.provider.request({ method: 'eth_signTypedData_v4', params: [owner, JSON.stringify(typed)] });
  const { terms, display, ...rest } = c;
  return { bytes, entry: { ...rest, owner, ...(terms ? { terms } : {}), ...(display ? { display } : {}), ownerSignature: canonical(signature) } };
}

function offer(link, name, data, type) {
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([data], { type }));
  link.download = name;
}

async function submit(event) {
  event.preventDefault();
  $('done').hidden = true;
  say('Waiting for the wallet …');
  $('send').disabled = true;
  try {
    const { bytes, entry } = await sign(), text = JSON.stringify(entry, null, 2) + '\n';
    const ending = { text: 'txt', markdown: 'md' }[entry.kind] ?? 'jsonl', name = file?.name ?? `document-${entry.digest.slice(2, 10)}.${ending}`;
    $('entry').textContent = text;
    offer($('get-entry'), `${name}.entry.json`, text, 'application/json');
    offer($('get-text'), name, bytes, 'text/plain');
    $('done').hidden = false;
    say(`Signed by ${entry.owner}.`);
  } catch (e) {
    say(e?.code === 4001 ? 'You declined in the wallet. Nothing is signed.' : String(e?.message ?? e), 'bad');
  }
  $('send').disabled = false;
}

async function begin() {
  const settings = await (await fetch('/page/settings', { cache: 'no-store' })).json();
  if (settings.chain_id) $('chain').value = settings.chain_id;
  if (settings.registry) $('registry').value = settings.registry;
}

$('file').addEventListener('change', () => take($('file').files[0]).catch((e) => say(e.message, 'bad')));
$('text').addEventListener('change', describe);
$('sign').addEventListener('submit', submit);
discover(listWallets);
begin().catch(() => say('The server does not answer: enter chain and Registry yourself.', 'bad'));
