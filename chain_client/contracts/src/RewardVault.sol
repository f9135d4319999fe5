// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Canon} from "./Canon.sol";
import {DelayedRoles} from "./DelayedRoles.sol";
import {Timeline} from "./Timeline.sol";

/// What a vault asks the ledger whose fees it pays.
interface ILedger {
    function notice() external view returns (uint64);
    function wait() external view returns (uint64);
    function head() external view returns (uint64 seq, uint64 closedAt, uint128 cumFee);
    function batchHash(uint64 seq) external view returns (bytes32);
    function hasRole(bytes32 role, address account) external view returns (bool);
    function COMMITTER() external view returns (bytes32);
}

/// Pays contributors what the epochs say, and no more. An epoch is a Merkle-sum tree of cumulative amounts whose total
/// must equal the fees the ledger committed up to batch `batchPaid`, and which attestors signed; a claim pays cumulative
/// minus already paid, so a repeat pays nothing. A root cannot promise money that is not here, a day pays out at most
/// about a week's growth, and until its window ends an epoch falls to the guardian, or to anyone who proves that it
/// lowers, forgets or misplaces an account. No role can lower a claim, move allocated money or activate early.
contract RewardVault is DelayedRoles, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;
    using Timeline for Timeline.Line;

    bytes32 public constant PROPOSER = keccak256("PROPOSER");
    bytes32 public constant GUARDIAN = keccak256("GUARDIAN");
    bytes32 public constant ATTESTOR = keccak256("ATTESTOR");

    bytes32 public constant EPOCH_TYPE = keccak256(
        "Epoch(uint64 epoch,bytes32 prevRoot,bytes32 root,uint128 total,uint32 leaves,uint64 batchPaid,uint64 batchEvidence,bytes32 manifest)"
    );

    uint8 public constant PAUSE_PROPOSE = 1;
    uint8 public constant PAUSE_CLAIM = 2;
    uint64 public constant CLAIM_PAUSE_S = 72 hours; // expires by itself
    uint64 public constant CLAIM_PAUSE_REST_S = 7 days; // between two claim pauses
    uint8 public constant SKIP_NOT_ACTIVE = 1;
    uint8 public constant SKIP_BAD_PROOF = 2;
    uint8 public constant SKIP_NOTHING = 3;
    uint8 public constant SKIP_REFUSED = 4;
    uint8 public constant SKIP_OVER_TOTAL = 5;
    uint8 public constant SKIP_OVER_DAILY_CAP = 6;
    uint8 public constant BY_VETO = 0;
    uint8 public constant BY_ADMIN = 4;
    uint8 public constant PROOF_LOWERED = 1; // [before, now]
    uint8 public constant PROOF_MISSING = 2; // [before, left, right], or one neighbour at the end
    uint8 public constant PROOF_UNSORTED = 3; // [left, right]
    uint32 private constant CAP_DAYS = 7;
    uint256 private constant LIMIT_END = type(uint112).max;
    uint256 private constant PUSH_GAS = 100_000; // for one recipient in claimMany

    struct Config {
        address admin;
        address proposer;
        address guardian;
        address[] attestors;
        ILedger ledger;
        address token; // 0 = native coin
        uint64 window; // from propose to active
        uint128 capFloor; // what a day may pay out however little was earned
        uint32 attestorsMin;
    }

    /// One word, so that a claim books its payment and its day with one write. Amounts are below 2^112 as every cumFee.
    struct Paid {
        uint112 total; // ever
        uint112 limit; // of `total` on this day
        uint32 day; // of the last payment
    }

    struct Account {
        uint128 claimed;
        bool redirected; // payoutOf is to be read: most accounts spare a claim that word
    }

    struct EpochHeader {
        uint64 epoch;
        bytes32 prevRoot; // of the last epoch not disabled, 0 for the first
        bytes32 root;
        uint128 total;
        uint32 leaves;
        uint64 batchPaid; // M
        uint64 batchEvidence; // E
        bytes32 manifest;
    }

    struct Epoch {
        bytes32 root;
        uint128 total;
        uint64 activeAt;
        uint32 leaves;
        bool disabled;
        uint64 batchPaid;
        uint64 batchEvidence;
        uint64 previous; // the epoch before it that was not disabled, 0 for none
    }

    struct Claim {
        uint64 epoch;
        uint32 index;
        address account;
        uint128 cumulative;
        bytes32[] hashes;
        uint128[] sums;
    }

    ILedger public immutable ledger;
    address public immutable token;
    uint64 public immutable window;
    uint64 public immutable wait;
    uint32 public immutable attestorsMin;
    uint64 public immutable startSeq; // the ledger's head when the vault began
    uint128 public immutable startCumFee;
    bytes32 public immutable domain; // EIP-712
    bytes32 public immutable rewardDomain;

    Paid private _paid;
    uint64 public lastEpoch;
    uint64 public lastLive; // last epoch not disabled
    uint128 public funded; // as an absolute sum since the vault began
    uint128 public writtenOff; // paid by retired epochs to the wrong accounts
    uint32 public attestorCount;
    bool public proposePaused;
    uint64 public claimPausedUntil;
    uint64 public claimPauseAllowedAt;
    Timeline.Line private _floorLine;
    uint128[] private _floors;
    mapping(uint32 day => uint128) private _increases; // of the totals of the live epochs proposed on it
    mapping(uint64 epoch => Epoch) public epochs;
    mapping(address account => Account) private _accounts;
    mapping(address account => address) public payoutOf; // 0 = the account itself

    event Proposed(
        uint64 indexed epoch,
        bytes32 indexed root,
        uint128 total,
        uint32 leaves,
        uint64 batchPaid,
        uint64 batchEvidence,
        bytes32 manifest,
        uint64 activeAt
    );
    event Claimed(address indexed account, address indexed to, uint64 indexed epoch, uint128 amount, uint128 cumulative);
    event ClaimSkipped(address indexed account, uint64 indexed epoch, uint8 reason);
    event PayoutSet(address indexed account, address indexed to);
    event Disabled(uint64 indexed epoch, uint8 kind); // BY_VETO, BY_ADMIN or what was proven
    event WrittenOff(uint128 amount, uint128 total);
    event Funded(address indexed from, uint128 amount, uint128 cumulative);
    event SurplusWithdrawn(address indexed to, uint256 amount);
    event CapFloorSet(uint128 amount, uint64 activeAt);
    event PauseSet(uint8 bits, bool paused);

    error BadConfig();
    error Paused();
    error NotNext(uint64 expected);
    error WrongPrevious(bytes32 expected);
    error EmptyEpoch();
    error WrongBatch(uint64 seq);
    error EvidenceUnknown(uint64 seq);
    error TooEarly(uint64 notBefore);
    error WrongTotal(uint128 expected);
    error Underfunded(uint256 needed, uint256 held);
    error AttestorsMissing(uint256 needed);
    error BadAttestation(uint256 signature);
    error NotActive(uint64 epoch);
    error BadProof();
    error NothingToClaim(uint128 alreadyPaid);
    error PaymentRefused(address to);
    error OverTotal(uint128 total);
    error OverDailyCap(uint128 left);
    error NotLive(uint64 epoch);
    error NotPending(uint64 epoch);
    error WrongValue();
    error NotSurplus(uint256 surplus);

    constructor(Config memory c) DelayedRoles(c.ledger.notice()) {
        if (c.admin == address(0) || c.proposer == address(0) || c.guardian == address(0)) revert BadConfig();
        if (c.attestorsMin == 0 || c.capFloor == 0) revert BadConfig();
        ledger = c.ledger;
        token = c.token;
        window = c.window;
        wait = c.ledger.wait();
        attestorsMin = c.attestorsMin;
        (startSeq,, startCumFee) = c.ledger.head();
        domain = Canon.domainSeparator(block.chainid, address(this));
        rewardDomain = Canon.rewardDomain(block.chainid, address(this), c.token);
        _grantRole(DEFAULT_ADMIN_ROLE, c.admin);
        _grantRole(PROPOSER, c.proposer);
        _grantRole(GUARDIAN, c.guardian);
        for (uint256 i = 0; i < c.attestors.length; ++i) _grantRole(ATTESTOR, c.attestors[i]);
        if (attestorCount < c.attestorsMin) revert AttestorsMissing(c.attestorsMin);
        _pushFloor(c.capFloor, uint64(block.timestamp));
    }

    // ------------------------------------------------------------ epochs

    /// `paid` is the header of batch M and `paidLanes` its lanesHash. Signatures: attestors over hashEpoch(h), signers
    /// strictly ascending, at least attestorsMin.
    function propose(
        EpochHeader calldata h,
        Canon.Header calldata paid,
        bytes32 paidLanes,
        bytes[] calldata signatures
    ) external onlyRole(PROPOSER) {
        if (proposePaused) revert Paused();
        if (h.epoch != lastEpoch + 1) revert NotNext(lastEpoch + 1);
        uint64 live = lastLive;
        Epoch storage before = epochs[live];
        if (h.prevRoot != before.root) revert WrongPrevious(before.root);
        if (h.root == 0 || h.leaves == 0 || h.total == 0) revert EmptyEpoch();
        _checkBatches(h, paid, paidLanes, live == 0 ? startSeq : before.batchPaid);
        uint128 total = paid.cumFee - startCumFee;
        if (h.total != total) revert WrongTotal(total);
        uint256 settled = _paid.total - writtenOff;
        if (total > settled && total - settled > held()) revert Underfunded(total - settled, held());
        _checkAttestors(h, signatures);
        _grow(_today(), int256(uint256(total - before.total)));

        uint64 activeAt = uint64(block.timestamp) + window;
        epochs[h.epoch] = Epoch({
            root: h.root,
            total: h.total,
            activeAt: activeAt,
            leaves: h.leaves,
            disabled: false,
            batchPaid: h.batchPaid,
            batchEvidence: h.batchEvidence,
            previous: live
        });
        lastEpoch = h.epoch;
        lastLive = h.epoch;
        emit Proposed(h.epoch, h.root, h.total, h.leaves, h.batchPaid, h.batchEvidence, h.manifest, activeAt);
    }

    function _checkBatches(
        EpochHeader calldata h,
        Canon.Header calldata paid,
        bytes32 paidLanes,
        uint64 paidBefore
    ) private view {
        if (paid.seq != h.batchPaid || h.batchPaid <= paidBefore) revert WrongBatch(h.batchPaid);
        bytes32 hash = Canon.batchHash(paid, paidLanes, block.chainid, address(ledger));
        if (ledger.batchHash(h.batchPaid) != hash) revert WrongBatch(h.batchPaid);
        if (h.batchEvidence < h.batchPaid || ledger.batchHash(h.batchEvidence) == 0) {
            revert EvidenceUnknown(h.batchEvidence);
        }
        if (block.timestamp < uint256(paid.closedAt) + wait) revert TooEarly(paid.closedAt + wait);
    }

    function _checkAttestors(EpochHeader calldata h, bytes[] calldata signatures) private view {
        if (signatures.length < attestorsMin) revert AttestorsMissing(attestorsMin);
        bytes32 digest = hashEpoch(h);
        address previous = address(0);
        for (uint256 i = 0; i < signatures.length; ++i) {
            address signer = ECDSA.recover(digest, signatures[i]);
            if (signer <= previous || !hasRole(ATTESTOR, signer)) revert BadAttestation(i);
            previous = signer;
        }
    }

    function hashEpoch(EpochHeader calldata h) public view returns (bytes32) {
        return Canon.typedDigest(domain, keccak256(abi.encode(EPOCH_TYPE, h)));
    }

    /// Disables `epoch` and every later one. Only while it is pending.
    function veto(uint64 epoch) external onlyRole(GUARDIAN) {
        _checkPending(epoch);
        _disableFrom(epoch, BY_VETO);
    }

    /// As veto, by anyone who shows what is wrong with a pending epoch: an account that its previous epoch granted more
    /// (LOWERED), or at all (MISSING: two neighbours stand where it should), or two neighbours out of order (UNSORTED).
    function disableByProof(uint64 epoch, uint8 kind, Claim[] calldata proofs) external {
        _checkPending(epoch);
        uint256 count = proofs.length;
        bool good = kind == PROOF_MISSING ? count == 2 || count == 3 : count == 2;
        if (!good || !_proves(epoch, kind, proofs)) revert BadProof();
        _disableFrom(epoch, kind);
    }

    function _proves(uint64 epoch, uint8 kind, Claim[] calldata proofs) private view returns (bool) {
        uint64 previous = epochs[epoch].previous;
        for (uint256 i = 0; i < proofs.length; ++i) {
            uint64 where = i == 0 && kind != PROOF_UNSORTED ? previous : epoch;
            if (where == 0 || proofs[i].epoch != where || !_provenClaim(proofs[i])) return false;
        }
        Claim calldata a = proofs[0];
        Claim calldata b = proofs[1];
        if (kind == PROOF_LOWERED) return a.account == b.account && b.cumulative < a.cumulative;
        if (kind == PROOF_UNSORTED) return b.index == a.index + 1 && b.account <= a.account;
        if (kind != PROOF_MISSING) return false;
        if (proofs.length == 3) {
            Claim calldata c = proofs[2];
            return c.index == b.index + 1 && b.account < a.account && a.account < c.account;
        }
        bool before = b.index == 0 && a.account < b.account;
        return before || (b.index == epochs[epoch].leaves - 1 && b.account < a.account);
    }

    /// Disables `epoch` and every later one although active: claims fall back to the one before.
    function retireEpoch(uint64 epoch) external onlyRole(DEFAULT_ADMIN_ROLE) {
        if (epochs[epoch].root == 0 || epochs[epoch].disabled) revert NotLive(epoch);
        _disableFrom(epoch, BY_ADMIN);
    }

    /// What retired epochs paid to the wrong accounts counts as not paid: it is to be funded again, and the claims that
    /// it would have kept out go through.
    function writeOff(uint128 amount) external onlyRole(DEFAULT_ADMIN_ROLE) {
        if (amount > _paid.total - writtenOff) revert WrongValue();
        writtenOff += amount;
        funded = funded > amount ? funded - amount : 0;
        emit WrittenOff(amount, writtenOff);
    }

    function _checkPending(uint64 epoch) private view {
        Epoch storage e = epochs[epoch];
        if (e.root == 0 || e.disabled || block.timestamp >= e.activeAt) revert NotPending(epoch);
    }

    /// The newest batch that a payment rests on: the ledger keeps it.
    function lockedSeq() external view returns (uint64) {
        return lastLive == 0 ? startSeq : epochs[lastLive].batchEvidence;
    }

    /// Newest epoch that can be claimed from, 0 for none.
    function activeEpoch() public view returns (uint64 e) {
        e = lastLive;
        while (e != 0 && block.timestamp < epochs[e].activeAt) e = epochs[e].previous;
    }

    // ------------------------------------------------------------ claims

    /// Pays the account (or its payout address) what the epoch grants beyond what was paid. Anyone may send it.
    function claim(
        uint64 epoch,
        uint32 index,
        address account,
        uint128 cumulative,
        bytes32[] calldata hashes,
        uint128[] calldata sums
    ) external nonReentrant {
        if (block.timestamp < claimPausedUntil) revert Paused();
        Epoch storage e = epochs[epoch];
        if (!_active(e)) revert NotActive(epoch);
        if (!_proven(e, index, account, cumulative, hashes, sums)) revert BadProof();
        (uint8 reason, address to) = _pay(e, epoch, account, cumulative, gasleft());
        if (reason == SKIP_NOTHING) revert NothingToClaim(claimed(account));
        if (reason == SKIP_OVER_TOTAL) revert OverTotal(epochs[activeEpoch()].total);
        if (reason == SKIP_OVER_DAILY_CAP) revert OverDailyCap(_leftToday());
        if (reason != 0) revert PaymentRefused(to);
    }

    /// As claim for each, but a claim that fails is skipped and reported with its reason.
    function claimMany(Claim[] calldata claims) external nonReentrant {
        if (block.timestamp < claimPausedUntil) revert Paused();
        for (uint256 i = 0; i < claims.length; ++i) {
            Claim calldata c = claims[i];
            uint8 reason = _claimOne(c);
            if (reason != 0) emit ClaimSkipped(c.account, c.epoch, reason);
        }
    }

    function _claimOne(Claim calldata c) private returns (uint8) {
        Epoch storage e = epochs[c.epoch];
        if (!_active(e)) return SKIP_NOT_ACTIVE;
        if (!_proven(e, c.index, c.account, c.cumulative, c.hashes, c.sums)) return SKIP_BAD_PROOF;
        (uint8 reason,) = _pay(e, c.epoch, c.account, c.cumulative, PUSH_GAS);
        return reason;
    }

    function setPayout(address to) external {
        payoutOf[msg.sender] = to;
        _accounts[msg.sender].redirected = to != address(0);
        emit PayoutSet(msg.sender, to);
    }

    // ------------------------------------------------------------ money in and out

    /// Brings what was paid in up to the ledger's cumFee value `cumFee`. Sent twice, the second gives its coins back.
    function fundTo(uint128 cumFee) external payable nonReentrant {
        if (token != address(0) && msg.value != 0) revert WrongValue();
        uint128 target = cumFee < startCumFee ? 0 : cumFee - startCumFee;
        uint128 need = target > funded ? target - funded : 0;
        if (need != 0) {
            funded = target;
            emit Funded(msg.sender, need, target);
            if (token == address(0)) {
                if (msg.value < need) revert WrongValue();
            } else {
                uint256 was = held();
                IERC20(token).safeTransferFrom(msg.sender, address(this), need);
                if (held() != was + need) revert WrongValue(); // no fee-on-transfer tokens
            }
        }
        if (token == address(0) && msg.value > need && !_send(msg.sender, msg.value - need, gasleft())) {
            revert PaymentRefused(msg.sender);
        }
    }

    /// What is neither promised by an epoch nor owed for a committed fee.
    function surplus() public view returns (uint256) {
        (,, uint128 committed) = ledger.head();
        uint256 owed = epochs[lastLive].total;
        if (committed - startCumFee > owed) owed = committed - startCumFee;
        uint256 has = held() + _paid.total - writtenOff;
        return has > owed ? has - owed : 0;
    }

    function withdrawSurplus(address to, uint128 amount) external onlyRole(DEFAULT_ADMIN_ROLE) nonReentrant {
        uint256 most = surplus();
        if (amount > most) revert NotSurplus(most);
        uint256 left = held() + _paid.total - writtenOff - amount;
        if (funded > left) funded = uint128(left);
        emit SurplusWithdrawn(to, amount);
        if (!_transfer(to, amount, gasleft())) revert PaymentRefused(to);
    }

    function claimed(address account) public view returns (uint128) {
        return _accounts[account].claimed;
    }

    function totalClaimed() external view returns (uint128) {
        return _paid.total;
    }

    function held() public view returns (uint256) {
        return token == address(0) ? address(this).balance : IERC20(token).balanceOf(address(this));
    }

    // ------------------------------------------------------------ the cap of a day

    /// Takes effect with the first day that begins after the notice; one change at a time.
    function setCapFloor(uint128 amount) external onlyRole(DEFAULT_ADMIN_ROLE) {
        if (amount == 0) revert WrongValue();
        _pushFloor(amount, uint64(block.timestamp) + notice);
    }

    /// What today may pay out in all: the growth of the totals proposed in the last 7 days, the floor at least.
    function dailyCap() public view returns (uint128 cap) {
        uint32 today = _today();
        for (uint32 day = today - CAP_DAYS + 1; day <= today; ++day) cap += _increases[day];
        uint256 count = _floorLine.countAt(uint64(today) * 1 days); // a floor begins with a day
        uint128 floor = _floors[count == 0 ? 0 : count - 1];
        if (cap < floor) cap = floor;
    }

    function paidToday() public view returns (uint128) {
        Paid memory p = _paid;
        if (p.day != _today()) return 0;
        uint128 cap = dailyCap();
        return p.limit == LIMIT_END || p.limit > p.total + cap ? 0 : p.total + cap - p.limit;
    }

    function _leftToday() private view returns (uint128) {
        (uint128 cap, uint128 paid) = (dailyCap(), paidToday());
        return cap > paid ? cap - paid : 0;
    }

    /// A live epoch's growth comes to a day or, disabled, leaves it; today's limit moves with the cap.
    function _grow(uint32 day, int256 by) private {
        Paid memory p = _paid;
        uint256 paid = paidToday();
        _increases[day] = uint128(uint256(int256(uint256(_increases[day])) + by));
        if (p.day == _today()) _paid.limit = _limitOf(uint256(p.total) + dailyCap(), paid);
    }

    /// `paid` may be above a cap that fell: then nothing is left today.
    function _limitOf(uint256 most, uint256 paid) private pure returns (uint112) {
        uint256 limit = most > paid ? most - paid : 0;
        return uint112(limit < LIMIT_END ? limit : LIMIT_END);
    }

    function _pushFloor(uint128 amount, uint64 activeAt) private {
        _floorLine.push(activeAt);
        _floors.push(amount);
        emit CapFloorSet(amount, activeAt);
    }

    function _today() private view returns (uint32) {
        return uint32(block.timestamp / 1 days);
    }

    // ------------------------------------------------------------ pause

    function pause(uint8 bits) external onlyRole(GUARDIAN) {
        if (bits & PAUSE_PROPOSE != 0) proposePaused = true;
        if (bits & PAUSE_CLAIM != 0) {
            if (block.timestamp < claimPauseAllowedAt) revert TooEarly(claimPauseAllowedAt);
            claimPausedUntil = uint64(block.timestamp) + CLAIM_PAUSE_S;
            claimPauseAllowedAt = claimPausedUntil + CLAIM_PAUSE_REST_S;
        }
        emit PauseSet(bits, true);
    }

    function unpause(uint8 bits) external onlyRole(DEFAULT_ADMIN_ROLE) {
        if (bits & PAUSE_PROPOSE != 0) proposePaused = false;
        if (bits & PAUSE_CLAIM != 0) claimPausedUntil = uint64(block.timestamp);
        emit PauseSet(bits, false);
    }

    // ------------------------------------------------------------ roles

    /// Does this account hold a key that must be apart from the ledger's committer?
    function holdsKey(address account) public view returns (bool) {
        return hasRole(PROPOSER, account) || hasRole(GUARDIAN, account) || hasRole(ATTESTOR, account);
    }

    function _grantRole(bytes32 role, address account) internal override returns (bool granted) {
        bool key = role == PROPOSER || role == GUARDIAN || role == ATTESTOR;
        if (key && !hasRole(role, account)) {
            if (holdsKey(account) || ledger.hasRole(ledger.COMMITTER(), account)) revert RoleConflict(account);
        }
        granted = super._grantRole(role, account);
        if (granted && role == ATTESTOR) ++attestorCount;
    }

    /// Never fewer attestors than an epoch needs.
    function _revokeRole(bytes32 role, address account) internal override returns (bool revoked) {
        revoked = super._revokeRole(role, account);
        if (!revoked || role != ATTESTOR) return revoked;
        if (--attestorCount < attestorsMin) revert AttestorsMissing(attestorsMin);
    }

    // ------------------------------------------------------------ inside

    /// Disables `epoch`, which is live, and every later one; gives what they grew back.
    function _disableFrom(uint64 epoch, uint8 kind) private {
        lastLive = epochs[epoch].previous;
        for (; epoch <= lastEpoch; ++epoch) {
            Epoch storage e = epochs[epoch];
            if (e.disabled) continue;
            e.disabled = true;
            emit Disabled(epoch, kind);
            _grow(uint32((e.activeAt - window) / 1 days), -int256(uint256(e.total - epochs[e.previous].total)));
        }
    }

    function _provenClaim(Claim calldata c) private view returns (bool) {
        return _proven(epochs[c.epoch], c.index, c.account, c.cumulative, c.hashes, c.sums);
    }

    function _active(Epoch storage e) private view returns (bool) {
        return e.root != 0 && !e.disabled && block.timestamp >= e.activeAt;
    }

    function _proven(
        Epoch storage e,
        uint32 index,
        address account,
        uint128 cumulative,
        bytes32[] calldata hashes,
        uint128[] calldata sums
    ) private view returns (bool) {
        uint32 leaves = e.leaves;
        if (index >= leaves || !Canon.isDepth(hashes.length, leaves) || sums.length != hashes.length) return false;
        bytes32 leaf = Canon.rewardLeaf(rewardDomain, index, account, cumulative);
        (bytes32 root, uint256 sum) = Canon.fold(0x01, leaf, cumulative, index, hashes, sums);
        return root == e.root && sum == e.total;
    }

    /// Books the payment, then sends it, and undoes the booking if the recipient refuses. Over the total: only a root
    /// that forgot what another account was paid can lead there.
    function _pay(Epoch storage e, uint64 epoch, address account, uint128 cumulative, uint256 gasMax)
        private
        returns (uint8 reason, address to)
    {
        Account memory a = _accounts[account];
        if (cumulative <= a.claimed) return (SKIP_NOTHING, account);
        uint128 amount = cumulative - a.claimed;
        to = a.redirected ? payoutOf[account] : account;
        Paid memory p = _paid;
        uint256 total = uint256(p.total) + amount;
        if (total > e.total && total > uint256(epochs[activeEpoch()].total) + writtenOff) {
            return (SKIP_OVER_TOTAL, to);
        }
        uint32 today = _today();
        if (p.day != today) (p.day, p.limit) = (today, _limitOf(uint256(p.total) + dailyCap(), 0));
        if (total > p.limit) {
            if (p.total >= p.limit) return (SKIP_OVER_DAILY_CAP, to);
            total = p.limit; // what today lets; the rest is claimed again
            amount = uint128(total - p.total);
            cumulative = a.claimed + amount;
        }
        _accounts[account] = Account(cumulative, a.redirected);
        _book(total, p.limit, today);
        if (_transfer(to, amount, gasMax)) {
            emit Claimed(account, to, epoch, amount, cumulative);
        } else {
            _accounts[account].claimed = a.claimed;
            _paid.total = p.total; // its limit may have moved since
            reason = SKIP_REFUSED;
        }
    }

    /// The word of Paid with one write.
    function _book(uint256 total, uint256 limit, uint256 day) private {
        assembly ("memory-safe") {
            sstore(_paid.slot, or(total, or(shl(112, limit), shl(224, day))))
        }
    }

    function _transfer(address to, uint256 amount, uint256 gasMax) private returns (bool) {
        if (token == address(0)) return _send(to, amount, gasMax);
        return IERC20(token).trySafeTransfer(to, amount);
    }

    /// A call that copies nothing back, so the recipient cannot make us pay for memory.
    function _send(address to, uint256 amount, uint256 gasMax) private returns (bool ok) {
        assembly ("memory-safe") {
            ok := call(gasMax, to, amount, 0, 0, 0, 0)
        }
    }
}
