// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {Canon} from "./Canon.sol";
import {DelayedRoles} from "./DelayedRoles.sol";
import {Timeline} from "./Timeline.sol";

/// What the ledger asks a vault that pays its fees.
interface IVault {
    function lockedSeq() external view returns (uint64); // newest batch that a payment rests on
    function holdsKey(address account) external view returns (bool); // one that a committer must not hold
}

/// The chain of batches. A batch covers, for each lane it names, the next records of that lane without a gap, so that
/// leaving one out is visible and counting one twice reverts. Batch n + 1 names the hash of batch n and carries the sum
/// of every fee so far; showing one header quotes all of them. A replay of `commit` reverts: it never adds.
/// A forged batch is taken back by the guardian, newest first, while no vault pays it; an honest one that was taken back
/// is committed again with the same hash.
contract AttributionLedger is DelayedRoles {
    using Timeline for Timeline.Line;

    bytes32 public constant COMMITTER = keccak256("COMMITTER"); // may commit, nothing else
    bytes32 public constant LANE_ADMIN = keccak256("LANE_ADMIN");
    bytes32 public constant GUARDIAN = keccak256("GUARDIAN"); // may stop commits and drop what is not paid, nothing else

    uint32 public constant E9 = 1_000_000_000;
    uint64 private constant WATCHED = 1 << 63; // in a lane's cursor: a rotation or a seal is to be checked
    uint64 private constant SEQ_END = 1 << 62;

    uint256 public constant VAULTS_MAX = 8;

    struct Config {
        address admin;
        address committer;
        address laneAdmin;
        address guardian;
        uint64 notice;
        uint64 beaconDelay; // D: from the commit's block to the block whose mixHash draws the sample
        uint64 wait; // W: from closedAt(M) to an epoch that pays M
        uint32 ratePpb;
    }

    struct Head {
        uint64 seq;
        uint64 closedAt;
        uint128 cumFee;
    }

    struct LaneKey {
        address key;
        uint64 fromSeq; // first record it signs
        uint64 activeAt; // no record from fromSeq on is committed before
    }

    struct LaneSeal {
        uint64 lastSeq;
        uint64 activeAt; // 0 = not sealed
    }

    uint64 public immutable beaconDelay;
    uint64 public immutable wait;
    bytes32 public immutable domain; // EIP-712
    bytes32 public immutable logDomain;

    Head public head;
    bool public commitPaused;
    mapping(uint64 seq => bytes32) public batchHash;
    mapping(uint256 word => uint256) private _cursors; // four lanes a word; next sequence, 0 = not registered
    mapping(uint32 lane => LaneKey[]) private _keys;
    mapping(uint32 lane => Timeline.Line) private _operatorLine;
    mapping(uint32 lane => address[]) private _operators;
    mapping(uint32 lane => LaneSeal) public laneSeal;
    mapping(address key => bool) public keyUsed;
    Timeline.Line private _rateLine;
    uint32[] private _rates;
    IVault[] public vaults;

    event BatchCommitted(uint64 indexed seq, bytes32 indexed hash, Canon.Header header, Canon.Lane[] lanes);
    event LaneRegistered(uint32 indexed lane, address indexed key, address indexed operator);
    event LaneKeySet(uint32 indexed lane, address indexed key, uint64 fromSeq, uint64 activeAt);
    event LaneOperatorSet(uint32 indexed lane, address indexed operator, uint64 activeAt);
    event LaneSealed(uint32 indexed lane, uint64 lastSeq, uint64 activeAt);
    event RateSet(uint32 ppb, uint64 activeAt);
    event CommitPaused(bool paused);
    event BatchDropped(uint64 indexed seq, bytes32 indexed hash);
    event VaultSet(address indexed vault);

    error Already(uint64 seq);
    error Conflict(uint64 seq);
    error NotNext(uint64 expected);
    error WrongSpec(uint8 spec);
    error WrongPrevious(bytes32 expected);
    error WrongCount();
    error WrongCumFee(uint128 expected);
    error FeeTooLarge();
    error WrongTime();
    error ZeroRoot();
    error LaneUnknown(uint32 lane);
    error LaneOrder(uint32 lane);
    error LaneGap(uint32 lane, uint64 expected);
    error LaneKeyPending(uint32 lane, uint64 fromSeq);
    error LaneIsSealed(uint32 lane, uint64 lastSeq);
    error LaneTaken(uint32 lane);
    error KeyTaken(address key);
    error Paused();
    error BadValue();
    error NotOperator(uint32 lane);
    error NothingActive(uint64 t);
    error NotHead(uint64 seq);
    error BatchPaid(uint64 seq);

    constructor(Config memory c) DelayedRoles(c.notice) {
        if (c.admin == address(0) || c.committer == address(0) || c.laneAdmin == address(0)) revert BadValue();
        if (c.guardian == address(0) || c.ratePpb > E9) revert BadValue();
        beaconDelay = c.beaconDelay;
        wait = c.wait;
        domain = Canon.domainSeparator(block.chainid, address(this));
        logDomain = Canon.logDomain(block.chainid, address(this));
        _grantRole(DEFAULT_ADMIN_ROLE, c.admin);
        _grantRole(COMMITTER, c.committer);
        _grantRole(LANE_ADMIN, c.laneAdmin);
        _grantRole(GUARDIAN, c.guardian);
        _pushRate(c.ratePpb, uint64(block.timestamp));
    }

    // ------------------------------------------------------------ batches

    function commit(Canon.Header calldata h, Canon.Lane[] calldata lanes) external onlyRole(COMMITTER) {
        bytes32 hash = Canon.batchHash(h, Canon.lanesHash(lanes), block.chainid, address(this));
        Head memory tip = head;
        if (h.seq != tip.seq + 1) {
            if (h.seq == 0 || h.seq > tip.seq) revert NotNext(tip.seq + 1);
            if (batchHash[h.seq] == hash) revert Already(h.seq);
            revert Conflict(h.seq);
        }
        if (commitPaused) revert Paused();
        if (h.spec != Canon.SPEC) revert WrongSpec(h.spec);
        bytes32 previous = batchHash[tip.seq];
        if (h.prevHash != previous) revert WrongPrevious(previous);
        if (h.logRoot == 0) revert ZeroRoot();
        if (h.cumFee != uint256(tip.cumFee) + h.feeSum) revert WrongCumFee(tip.cumFee);
        if (h.cumFee >= Canon.CUM_FEE_END) revert FeeTooLarge();
        if (h.closedAt < tip.closedAt || h.closedAt > block.timestamp) revert WrongTime();
        if (h.leafCount > Canon.LEAVES_MAX || h.inferences > h.leafCount) revert WrongCount();
        if (_advance(lanes) != h.leafCount) revert WrongCount();
        batchHash[h.seq] = hash;
        head = Head(h.seq, h.closedAt, h.cumFee);
        _emitCommitted(h, lanes, hash);
    }

    /// BatchCommitted(h.seq, hash, h, lanes). Every value of both was checked above, so their words are the event's own.
    function _emitCommitted(Canon.Header calldata h, Canon.Lane[] calldata lanes, bytes32 hash) private {
        bytes32 topic = BatchCommitted.selector;
        uint64 seq = h.seq;
        assembly ("memory-safe") {
            let m := mload(0x40)
            let size := mul(lanes.length, 0x60)
            calldatacopy(m, h, 0x140)
            mstore(add(m, 0x140), 0x160)
            mstore(add(m, 0x160), lanes.length)
            calldatacopy(add(m, 0x180), lanes.offset, size)
            log3(m, add(size, 0x180), topic, seq, hash)
        }
    }

    /// Moves every named lane's cursor past its range; returns the records covered.
    function _advance(Canon.Lane[] calldata lanes) private returns (uint256 count) {
        if (lanes.length == 0) revert WrongCount();
        uint256 word = 0;
        uint256 wordAt = type(uint256).max;
        uint256 previous = 0;
        for (uint256 i = 0; i < lanes.length; ++i) {
            Canon.Lane calldata l = lanes[i];
            if (i != 0 && l.lane <= previous) revert LaneOrder(l.lane);
            previous = l.lane;
            if (l.lane >> 2 != wordAt) {
                if (i != 0) _cursors[wordAt] = word;
                wordAt = l.lane >> 2;
                word = _cursors[wordAt];
            }
            uint256 shift = (uint256(l.lane) & 3) << 6;
            uint64 cursor = uint64(word >> shift);
            if (cursor == 0) revert LaneUnknown(l.lane);
            uint64 next = cursor & ~WATCHED;
            if (l.first != next) revert LaneGap(l.lane, next);
            if (l.last < l.first || l.last >= SEQ_END) revert LaneOrder(l.lane);
            if (cursor & WATCHED != 0) _checkWatched(l.lane, l.last);
            count += l.last - l.first + 1;
            word = (word & ~(uint256(type(uint64).max) << shift))
                | (uint256((l.last + 1) | (cursor & WATCHED)) << shift);
        }
        _cursors[wordAt] = word;
    }

    function _checkWatched(uint32 lane, uint64 last) private view {
        LaneKey[] storage keys = _keys[lane];
        LaneKey storage k = keys[keys.length - 1];
        if (last >= k.fromSeq && block.timestamp < k.activeAt) revert LaneKeyPending(lane, k.fromSeq);
        LaneSeal memory s = laneSeal[lane];
        if (s.activeAt != 0 && block.timestamp >= s.activeAt && last > s.lastSeq) revert LaneIsSealed(lane, s.lastSeq);
    }

    /// Takes the newest batch back: head, cursors and hash are as before its commit. `previous` is the header of the
    /// batch before it, which says what the head was; it is not read for batch 1.
    function dropBatch(
        Canon.Header calldata h,
        Canon.Lane[] calldata lanes,
        Canon.Header calldata previous,
        bytes32 previousLanes
    ) external onlyRole(GUARDIAN) {
        bytes32 hash = Canon.batchHash(h, Canon.lanesHash(lanes), block.chainid, address(this));
        if (h.seq == 0 || h.seq != head.seq || batchHash[h.seq] != hash) revert NotHead(head.seq);
        for (uint256 i = 0; i < vaults.length; ++i) {
            if (vaults[i].lockedSeq() >= h.seq) revert BatchPaid(h.seq);
        }
        if (h.seq == 1) {
            head = Head(0, 0, 0);
        } else {
            bytes32 before = Canon.batchHash(previous, previousLanes, block.chainid, address(this));
            if (batchHash[h.seq - 1] != before) revert WrongPrevious(batchHash[h.seq - 1]);
            head = Head(h.seq - 1, previous.closedAt, previous.cumFee);
        }
        for (uint256 i = 0; i < lanes.length; ++i) _setCursor(lanes[i].lane, lanes[i].first);
        batchHash[h.seq] = 0;
        emit BatchDropped(h.seq, hash);
    }

    /// A vault whose paid batches stay. It is never taken off the list.
    function setVault(address vault) external onlyRole(DEFAULT_ADMIN_ROLE) {
        if (vaults.length == VAULTS_MAX || vault.code.length == 0) revert BadValue();
        for (uint256 i = 0; i < vaults.length; ++i) {
            if (address(vaults[i]) == vault) revert BadValue();
        }
        vaults.push(IVault(vault));
        emit VaultSet(vault);
    }

    // ------------------------------------------------------------ lanes

    function registerLane(uint32 lane, address key, address operator) external onlyRole(LANE_ADMIN) {
        if (key == address(0) || operator == address(0)) revert BadValue();
        if (_keys[lane].length != 0) revert LaneTaken(lane);
        _takeKey(key);
        _keys[lane].push(LaneKey(key, 1, uint64(block.timestamp)));
        _pushOperator(lane, operator, uint64(block.timestamp));
        _cursors[lane >> 2] |= uint256(1) << ((uint256(lane) & 3) << 6);
        emit LaneRegistered(lane, key, operator);
        emit LaneKeySet(lane, key, 1, uint64(block.timestamp));
    }

    /// Records from fromSeq on are signed by `key`; none of them is committed before the notice ends, and until then
    /// the old key still convicts. One rotation at a time.
    function rotateLaneKey(uint32 lane, address key, uint64 fromSeq) external onlyRole(LANE_ADMIN) {
        LaneKey[] storage keys = _keys[lane];
        if (keys.length == 0) revert LaneUnknown(lane);
        LaneKey storage last = keys[keys.length - 1];
        if (last.activeAt > block.timestamp) revert LaneKeyPending(lane, last.fromSeq);
        if (laneSeal[lane].activeAt != 0) revert LaneIsSealed(lane, laneSeal[lane].lastSeq);
        if (key == address(0) || fromSeq <= last.fromSeq || fromSeq < laneNext(lane) || fromSeq >= SEQ_END) {
            revert BadValue();
        }
        _takeKey(key);
        uint64 activeAt = uint64(block.timestamp) + notice;
        keys.push(LaneKey(key, fromSeq, activeAt));
        _watch(lane);
        emit LaneKeySet(lane, key, fromSeq, activeAt);
    }

    /// After the notice no record past lastSeq is accepted. Cannot be undone.
    function sealLane(uint32 lane, uint64 lastSeq) external onlyRole(LANE_ADMIN) {
        if (_keys[lane].length == 0) revert LaneUnknown(lane);
        if (laneSeal[lane].activeAt != 0) revert LaneIsSealed(lane, laneSeal[lane].lastSeq);
        if (lastSeq + 1 < laneNext(lane)) revert BadValue();
        uint64 activeAt = uint64(block.timestamp) + notice;
        laneSeal[lane] = LaneSeal(lastSeq, activeAt);
        _watch(lane);
        emit LaneSealed(lane, lastSeq, activeAt);
    }

    /// Called by the lane's operator account; effective after the notice. One change at a time.
    function setLaneOperator(uint32 lane, address account) external {
        if (laneOperatorAt(lane, uint64(block.timestamp)) != msg.sender) revert NotOperator(lane);
        if (account == address(0)) revert BadValue();
        _pushOperator(lane, account, uint64(block.timestamp) + notice);
    }

    /// Next sequence the ledger accepts; 0 for a lane that is not registered.
    function laneNext(uint32 lane) public view returns (uint64) {
        return uint64(_cursors[lane >> 2] >> ((uint256(lane) & 3) << 6)) & ~WATCHED;
    }

    /// The key that signs record `seq` of a committed batch; 0 for an unknown lane.
    function laneKey(uint32 lane, uint64 seq) external view returns (address) {
        return laneKeyAt(lane, seq, type(uint64).max);
    }

    /// The key whose signature on `seq` counted at second t. Both fromSeq and activeAt rise from key to key.
    function laneKeyAt(uint32 lane, uint64 seq, uint64 t) public view returns (address) {
        LaneKey[] storage keys = _keys[lane];
        uint256 low = 0;
        for (uint256 high = keys.length; low < high;) {
            uint256 middle = (low + high) >> 1;
            if (keys[middle].fromSeq <= seq && keys[middle].activeAt <= t) low = middle + 1;
            else high = middle;
        }
        return low == 0 ? address(0) : keys[low - 1].key;
    }

    /// 0 for a lane that has none at t: Reward pays TREASURY.
    function laneOperatorAt(uint32 lane, uint64 t) public view returns (address) {
        uint256 count = _operatorLine[lane].countAt(t);
        return count == 0 ? address(0) : _operators[lane][count - 1];
    }

    // ------------------------------------------------------------ scoring rate

    function setRate(uint32 ppb) external onlyRole(DEFAULT_ADMIN_ROLE) {
        if (ppb > E9) revert BadValue();
        _pushRate(ppb, uint64(block.timestamp) + notice);
    }

    function rateAt(uint64 t) external view returns (uint32) {
        uint256 count = _rateLine.countAt(t);
        if (count == 0) revert NothingActive(t);
        return _rates[count - 1];
    }

    // ------------------------------------------------------------ pause

    function pauseCommit() external onlyRole(GUARDIAN) {
        commitPaused = true;
        emit CommitPaused(true);
    }

    function unpauseCommit() external onlyRole(DEFAULT_ADMIN_ROLE) {
        commitPaused = false;
        emit CommitPaused(false);
    }

    // ------------------------------------------------------------ canonical hashes, as this ledger sees them

    function hashBatch(Canon.Header calldata h, bytes32 lanesDigest) external view returns (bytes32) {
        return Canon.batchHash(h, lanesDigest, block.chainid, address(this));
    }

    function hashLanes(Canon.Lane[] calldata lanes) external pure returns (bytes32) {
        return Canon.lanesHash(lanes);
    }

    function hashInference(Canon.Inference calldata r) external view returns (bytes32) {
        return Canon.hashInference(domain, r);
    }

    function hashAttribution(Canon.Attribution calldata r) external view returns (bytes32) {
        return Canon.hashAttribution(domain, r);
    }

    function hashVoid(Canon.Void calldata r) external view returns (bytes32) {
        return Canon.hashVoid(domain, r);
    }

    // ------------------------------------------------------------ inside

    function _takeKey(address key) private {
        if (keyUsed[key]) revert KeyTaken(key);
        keyUsed[key] = true;
    }

    /// A cursor moved by hand; whether the lane is watched stays.
    function _setCursor(uint32 lane, uint64 next) private {
        uint256 shift = (uint256(lane) & 3) << 6;
        uint256 word = _cursors[lane >> 2];
        uint256 kept = (word >> shift) & WATCHED;
        _cursors[lane >> 2] = (word & ~(uint256(type(uint64).max) << shift)) | ((kept | next) << shift);
    }

    function _pushOperator(uint32 lane, address account, uint64 activeAt) private {
        _operatorLine[lane].push(activeAt);
        _operators[lane].push(account);
        emit LaneOperatorSet(lane, account, activeAt);
    }

    function _pushRate(uint32 ppb, uint64 activeAt) private {
        _rateLine.push(activeAt);
        _rates.push(ppb);
        emit RateSet(ppb, activeAt);
    }

    /// One account never both commits and guards, proposes or attests.
    function _grantRole(bytes32 role, address account) internal override returns (bool) {
        if (role == COMMITTER) {
            if (hasRole(GUARDIAN, account)) revert RoleConflict(account);
            for (uint256 i = 0; i < vaults.length; ++i) {
                if (vaults[i].holdsKey(account)) revert RoleConflict(account);
            }
        }
        if (role == GUARDIAN && hasRole(COMMITTER, account)) revert RoleConflict(account);
        return super._grantRole(role, account);
    }

    function _watch(uint32 lane) private {
        _cursors[lane >> 2] |= uint256(WATCHED) << ((uint256(lane) & 3) << 6);
    }
}
