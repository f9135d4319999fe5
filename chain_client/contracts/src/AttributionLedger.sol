// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {Canon} from "./Canon.sol";

/// The chain of batches. A batch covers, for each lane it names, the next records of that lane without a gap, so that
/// leaving one out is visible and counting one twice reverts. Batch n + 1 names the hash of batch n and carries the sum
/// of every fee so far; showing one header quotes all of them. A replay of `commit` reverts: it never adds.
contract AttributionLedger is AccessControl {
    bytes32 public constant POSTER = keccak256("POSTER"); // may commit, nothing else
    bytes32 public constant LANE_ADMIN = keccak256("LANE_ADMIN");
    bytes32 public constant GUARDIAN = keccak256("GUARDIAN"); // may stop commits, nothing else

    uint32 public constant E9 = 1_000_000_000;
    uint64 private constant WATCHED = 1 << 63; // in a lane's cursor: a rotation or a seal is to be checked
    uint64 private constant SEQ_END = 1 << 62;

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

    struct LaneOperator {
        address account;
        uint64 activeAt;
    }

    struct LaneSeal {
        uint64 lastSeq;
        uint64 activeAt; // 0 = not sealed
    }

    struct Rate {
        uint32 ppb;
        uint64 activeAt;
    }

    uint64 public immutable notice;
    bytes32 public immutable domain; // EIP-712
    bytes32 public immutable logDomain;

    Head public head;
    bool public commitPaused;
    mapping(uint64 seq => bytes32) public batchHash;
    mapping(uint256 word => uint256) private _cursors; // four lanes a word; next sequence, 0 = not registered
    mapping(uint32 lane => LaneKey[]) private _keys;
    mapping(uint32 lane => LaneOperator[]) private _operators;
    mapping(uint32 lane => LaneSeal) public laneSeal;
    mapping(address key => bool) public keyUsed;
    Rate[] private _rates;

    event BatchCommitted(uint64 indexed seq, bytes32 indexed hash, Canon.Header header, Canon.Lane[] lanes);
    event LaneRegistered(uint32 indexed lane, address indexed key, address indexed operator);
    event LaneKeySet(uint32 indexed lane, address indexed key, uint64 fromSeq, uint64 activeAt);
    event LaneOperatorSet(uint32 indexed lane, address indexed operator, uint64 activeAt);
    event LaneSealed(uint32 indexed lane, uint64 lastSeq, uint64 activeAt);
    event RateSet(uint32 ppb, uint64 activeAt);
    event CommitPaused(bool paused);

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

    constructor(address admin, uint64 notice_, uint32 ratePpb) {
        if (admin == address(0) || ratePpb > E9) revert BadValue();
        notice = notice_;
        domain = Canon.domainSeparator(block.chainid, address(this));
        logDomain = Canon.logDomain(block.chainid, address(this));
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
        _rates.push(Rate(ratePpb, uint64(block.timestamp)));
        emit RateSet(ratePpb, uint64(block.timestamp));
    }

    // ------------------------------------------------------------ batches

    function commit(Canon.Header calldata h, Canon.Lane[] calldata lanes) external onlyRole(POSTER) {
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
        emit BatchCommitted(h.seq, hash, h, lanes);
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

    // ------------------------------------------------------------ lanes

    function registerLane(uint32 lane, address key, address operator) external onlyRole(LANE_ADMIN) {
        if (key == address(0) || operator == address(0)) revert BadValue();
        if (_keys[lane].length != 0) revert LaneTaken(lane);
        _takeKey(key);
        _keys[lane].push(LaneKey(key, 1, uint64(block.timestamp)));
        _operators[lane].push(LaneOperator(operator, uint64(block.timestamp)));
        _cursors[lane >> 2] |= uint256(1) << ((uint256(lane) & 3) << 6);
        emit LaneRegistered(lane, key, operator);
        emit LaneKeySet(lane, key, 1, uint64(block.timestamp));
        emit LaneOperatorSet(lane, operator, uint64(block.timestamp));
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

    /// Called by the lane's operator account; effective after the notice.
    function setLaneOperator(uint32 lane, address account) external {
        if (laneOperatorAt(lane, uint64(block.timestamp)) != msg.sender) revert NotOperator(lane);
        if (account == address(0)) revert BadValue();
        uint64 activeAt = uint64(block.timestamp) + notice;
        _operators[lane].push(LaneOperator(account, activeAt));
        emit LaneOperatorSet(lane, account, activeAt);
    }

    /// Next sequence the ledger accepts; 0 for a lane that is not registered.
    function laneNext(uint32 lane) public view returns (uint64) {
        return uint64(_cursors[lane >> 2] >> ((uint256(lane) & 3) << 6)) & ~WATCHED;
    }

    /// The key that signs record `seq` of a committed batch; 0 for an unknown lane.
    function laneKey(uint32 lane, uint64 seq) external view returns (address) {
        return laneKeyAt(lane, seq, type(uint64).max);
    }

    /// The key whose signature on `seq` counted at second t.
    function laneKeyAt(uint32 lane, uint64 seq, uint64 t) public view returns (address) {
        LaneKey[] storage keys = _keys[lane];
        for (uint256 i = keys.length; i > 0; --i) {
            if (keys[i - 1].fromSeq <= seq && keys[i - 1].activeAt <= t) return keys[i - 1].key;
        }
        return address(0);
    }

    /// 0 for a lane that has none at t: Reward pays TREASURY.
    function laneOperatorAt(uint32 lane, uint64 t) public view returns (address) {
        LaneOperator[] storage all = _operators[lane];
        for (uint256 i = all.length; i > 0; --i) {
            if (all[i - 1].activeAt <= t) return all[i - 1].account;
        }
        return address(0);
    }

    // ------------------------------------------------------------ scoring rate

    function setRate(uint32 ppb) external onlyRole(DEFAULT_ADMIN_ROLE) {
        if (ppb > E9) revert BadValue();
        uint64 activeAt = uint64(block.timestamp) + notice;
        _rates.push(Rate(ppb, activeAt));
        emit RateSet(ppb, activeAt);
    }

    function rateAt(uint64 t) external view returns (uint32) {
        for (uint256 i = _rates.length; i > 0; --i) {
            if (_rates[i - 1].activeAt <= t) return _rates[i - 1].ppb;
        }
        revert NothingActive(t);
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

    function _watch(uint32 lane) private {
        _cursors[lane >> 2] |= uint256(WATCHED) << ((uint256(lane) & 3) << 6);
    }
}
