// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {AttributionLedger} from "./AttributionLedger.sol";
import {Canon} from "./Canon.sol";

/// Pays contributors what the epochs say, and no more. An epoch is a Merkle-sum tree of cumulative amounts whose total
/// must equal the fees the ledger committed up to batch `batchPaid`; a claim pays cumulative minus already paid, so a
/// repeat pays nothing. A root cannot promise money that is not here, growth per epoch is capped, and a guardian may
/// disable an epoch until its window ends. No role can lower a claim, move allocated money or activate early.
contract RewardVault is AccessControl, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    bytes32 public constant POSTER = keccak256("POSTER");
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
    uint256 private constant PUSH_GAS = 100_000; // for one recipient in claimMany

    struct Config {
        address admin;
        AttributionLedger ledger;
        address token; // 0 = native coin
        uint64 window; // from propose to active
        uint64 wait; // W: from closedAt(M) to propose
        uint128 maxIncrease;
        uint32 attestorsMin;
        bool unattested; // attestorsMin may be 0
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

    AttributionLedger public immutable ledger;
    address public immutable token;
    uint64 public immutable window;
    uint64 public immutable wait;
    uint32 public immutable attestorsMin;
    uint64 public immutable startSeq; // the ledger's head when the vault began
    uint128 public immutable startCumFee;
    bytes32 public immutable domain; // EIP-712
    bytes32 public immutable rewardDomain;

    uint128 public maxIncrease;
    uint64 public lastEpoch;
    uint64 public lastLive; // last epoch not disabled
    uint128 public totalClaimed;
    uint128 public activeTotal; // highest total of an epoch that was claimed from: the cap of totalClaimed
    uint128 public funded; // as an absolute sum since the vault began
    bool public proposePaused;
    uint64 public claimPausedUntil;
    uint64 public claimPauseAllowedAt;
    mapping(uint64 epoch => Epoch) public epochs;
    mapping(address account => uint128) public claimed;
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
    event Vetoed(uint64 indexed epoch);
    event Funded(address indexed from, uint128 amount, uint128 cumulative);
    event SurplusWithdrawn(address indexed to, uint256 amount);
    event MaxIncreaseSet(uint128 amount);
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
    error IncreaseTooLarge(uint128 increase, uint128 max);
    error Underfunded(uint256 needed, uint256 held);
    error AttestorsMissing(uint256 needed);
    error BadAttestation(uint256 signature);
    error NotActive(uint64 epoch);
    error BadProof();
    error NothingToClaim(uint128 alreadyPaid);
    error PaymentRefused(address to);
    error OverTotal(uint128 total);
    error NotPending(uint64 epoch);
    error WrongValue();
    error NotSurplus(uint256 surplus);

    constructor(Config memory c) {
        if (c.admin == address(0) || (c.attestorsMin == 0 && !c.unattested)) revert BadConfig();
        ledger = c.ledger;
        token = c.token;
        window = c.window;
        wait = c.wait;
        attestorsMin = c.attestorsMin;
        maxIncrease = c.maxIncrease;
        (startSeq,, startCumFee) = c.ledger.head();
        domain = Canon.domainSeparator(block.chainid, address(this));
        rewardDomain = Canon.rewardDomain(block.chainid, address(this), c.token);
        _grantRole(DEFAULT_ADMIN_ROLE, c.admin);
    }

    // ------------------------------------------------------------ epochs

    /// `paid` is the header of batch M and `paidLanes` its lanesHash. Signatures: attestors over hashEpoch(h), signers
    /// strictly ascending, at least attestorsMin.
    function propose(
        EpochHeader calldata h,
        Canon.Header calldata paid,
        bytes32 paidLanes,
        bytes[] calldata signatures
    ) external onlyRole(POSTER) {
        if (proposePaused) revert Paused();
        if (h.epoch != lastEpoch + 1) revert NotNext(lastEpoch + 1);
        uint64 live = lastLive;
        Epoch storage before = epochs[live];
        if (h.prevRoot != before.root) revert WrongPrevious(before.root);
        if (h.root == 0 || h.leaves == 0 || h.total == 0) revert EmptyEpoch();
        _checkBatches(h, paid, paidLanes, live == 0 ? startSeq : before.batchPaid);
        uint128 total = paid.cumFee - startCumFee;
        if (h.total != total) revert WrongTotal(total);
        uint128 increase = total - before.total;
        if (increase > maxIncrease) revert IncreaseTooLarge(increase, maxIncrease);
        if (total - totalClaimed > held()) revert Underfunded(total - totalClaimed, held());
        _checkAttestors(h, signatures);

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
        Epoch storage first = epochs[epoch];
        if (first.root == 0 || first.disabled || block.timestamp >= first.activeAt) revert NotPending(epoch);
        lastLive = first.previous;
        for (uint64 e = epoch; e <= lastEpoch; ++e) {
            if (!epochs[e].disabled) {
                epochs[e].disabled = true;
                emit Vetoed(e);
            }
        }
    }

    /// Newest epoch that can be claimed from, 0 for none.
    function activeEpoch() external view returns (uint64 e) {
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
        uint128 paid = claimed[account];
        if (cumulative <= paid) revert NothingToClaim(paid);
        (uint8 reason, address to) = _pay(epoch, account, cumulative, paid, gasleft());
        if (reason == SKIP_OVER_TOTAL) revert OverTotal(activeTotal);
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
        uint128 paid = claimed[c.account];
        if (c.cumulative <= paid) return SKIP_NOTHING;
        (uint8 reason,) = _pay(c.epoch, c.account, c.cumulative, paid, PUSH_GAS);
        return reason;
    }

    function setPayout(address to) external {
        payoutOf[msg.sender] = to;
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
        uint256 has = held() + totalClaimed;
        return has > owed ? has - owed : 0;
    }

    function withdrawSurplus(address to, uint128 amount) external onlyRole(DEFAULT_ADMIN_ROLE) nonReentrant {
        uint256 most = surplus();
        if (amount > most) revert NotSurplus(most);
        uint256 left = held() + totalClaimed - amount;
        if (funded > left) funded = uint128(left);
        emit SurplusWithdrawn(to, amount);
        if (!_transfer(to, amount, gasleft())) revert PaymentRefused(to);
    }

    function setMaxIncrease(uint128 amount) external onlyRole(DEFAULT_ADMIN_ROLE) {
        maxIncrease = amount;
        emit MaxIncreaseSet(amount);
    }

    function held() public view returns (uint256) {
        return token == address(0) ? address(this).balance : IERC20(token).balanceOf(address(this));
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

    // ------------------------------------------------------------ inside

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
        if (index >= leaves || hashes.length != Canon.depthOf(leaves) || sums.length != hashes.length) return false;
        uint256 sum = cumulative; // no u128 overflow below, so that one bad claim cannot revert claimMany
        for (uint256 d = 0; d < sums.length; ++d) sum += sums[d];
        uint128 total = e.total;
        if (sum != total) return false;
        bytes32 leaf = Canon.rewardLeaf(rewardDomain, index, account, cumulative);
        (bytes32 root,) = Canon.fold(0x01, leaf, cumulative, index, hashes, sums);
        return root == e.root;
    }

    /// Books the payment, then sends it, and undoes the booking if the recipient refuses. Over the total: only a root
    /// that forgot what another account was paid can lead there.
    function _pay(uint64 epoch, address account, uint128 cumulative, uint128 paid, uint256 gasMax)
        private
        returns (uint8 reason, address to)
    {
        uint128 amount = cumulative - paid;
        to = payoutOf[account];
        if (to == address(0)) to = account;
        uint128 total = epochs[epoch].total;
        if (total > activeTotal) activeTotal = total;
        if (uint256(totalClaimed) + amount > activeTotal) return (SKIP_OVER_TOTAL, to);
        claimed[account] = cumulative;
        totalClaimed += amount;
        if (_transfer(to, amount, gasMax)) {
            emit Claimed(account, to, epoch, amount, cumulative);
        } else {
            claimed[account] = paid;
            totalClaimed -= amount;
            reason = SKIP_REFUSED;
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
