// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

/// The canonical hashes of spec 1: record digests, leaves, nodes, batches. README.md is the page this implements;
/// tests/data/golden.json pins it. Every preimage of a tree hash has its own tag and length, so no node is a leaf.
library Canon {
    uint8 internal constant SPEC = 1;
    uint32 internal constant LEAVES_MAX = 1 << 17;
    uint128 internal constant CUM_FEE_END = 1 << 112; // below it every product of Reward fits 256 bits

    bytes32 internal constant BATCH_TYPE = keccak256("residual.batch.1");

    bytes32 internal constant DOMAIN_TYPE =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 internal constant INFERENCE_TYPE = keccak256(
        "Inference(uint8 spec,uint32 lane,uint64 seq,bytes32 requestId,bytes32 appCommit,bytes32 modelId,bytes32 adapterSetHash,uint32 tokensIn,uint32 tokensOut,uint128 fee,bytes32 tariffHash,bytes32 paramsHash,bytes32 engineId,uint64 startMs,uint64 endMs,uint8 status,bytes32 promptCommit,bytes32 outputCommit)"
    );
    bytes32 internal constant ATTRIBUTION_TYPE = keccak256(
        "Attribution(uint8 spec,uint32 lane,uint64 seq,uint64 infSeq,bytes32 infDigest,bytes32 methodHash,bytes32 indexHash,bytes32 inputsDigest,uint8 outcome,bytes32 influenceHash)"
    );
    bytes32 internal constant VOID_TYPE = keccak256("Void(uint8 spec,uint32 lane,uint64 seq,uint8 reason)");

    struct Inference {
        uint8 spec;
        uint32 lane;
        uint64 seq;
        bytes32 requestId;
        bytes32 appCommit;
        bytes32 modelId;
        bytes32 adapterSetHash;
        uint32 tokensIn;
        uint32 tokensOut;
        uint128 fee;
        bytes32 tariffHash;
        bytes32 paramsHash;
        bytes32 engineId;
        uint64 startMs;
        uint64 endMs;
        uint8 status;
        bytes32 promptCommit;
        bytes32 outputCommit;
    }

    struct Attribution {
        uint8 spec;
        uint32 lane;
        uint64 seq;
        uint64 infSeq;
        bytes32 infDigest;
        bytes32 methodHash;
        bytes32 indexHash;
        bytes32 inputsDigest;
        uint8 outcome;
        bytes32 influenceHash;
    }

    struct Void {
        uint8 spec;
        uint32 lane;
        uint64 seq;
        uint8 reason;
    }

    struct Header {
        uint64 seq;
        uint8 spec;
        bytes32 prevHash;
        bytes32 logRoot;
        bytes32 manifest;
        uint32 leafCount;
        uint32 inferences;
        uint128 feeSum;
        uint128 cumFee;
        uint64 closedAt;
    }

    struct Lane {
        uint32 lane;
        uint64 first;
        uint64 last;
    }

    function domainSeparator(uint256 chainId, address where) internal pure returns (bytes32) {
        return keccak256(abi.encode(DOMAIN_TYPE, keccak256("residual"), keccak256("1"), chainId, where));
    }

    function typedDigest(bytes32 domain, bytes32 structHash) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function hashInference(bytes32 domain, Inference calldata r) internal pure returns (bytes32) {
        return typedDigest(domain, keccak256(abi.encode(INFERENCE_TYPE, r)));
    }

    function hashAttribution(bytes32 domain, Attribution calldata r) internal pure returns (bytes32) {
        return typedDigest(domain, keccak256(abi.encode(ATTRIBUTION_TYPE, r)));
    }

    function hashVoid(bytes32 domain, Void calldata r) internal pure returns (bytes32) {
        return typedDigest(domain, keccak256(abi.encode(VOID_TYPE, r)));
    }

    function logDomain(uint256 chainId, address ledger) internal pure returns (bytes32) {
        return keccak256(abi.encode("residual.log.1", chainId, ledger));
    }

    function logLeafInference(bytes32 dom, uint32 lane, uint64 seq, bytes32 digest, uint128 fee)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encodePacked(uint8(0x10), dom, lane, seq, digest, fee));
    }

    function logLeafOther(bytes32 dom, uint32 lane, uint64 seq, bytes32 digest) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0x13), dom, lane, seq, digest));
    }

    function logNode(bytes32 hL, uint128 feeL, bytes32 hR, uint128 feeR) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0x11), hL, feeL, hR, feeR));
    }

    function logPad(bytes32 dom) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0x12), dom));
    }

    function rewardDomain(uint256 chainId, address vault, address token) internal pure returns (bytes32) {
        return keccak256(abi.encode("residual.reward.1", chainId, vault, token));
    }

    function rewardLeaf(bytes32 dom, uint32 index, address account, uint128 cumulative)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encodePacked(uint8(0x00), dom, index, account, cumulative));
    }

    function rewardNode(bytes32 hL, uint128 sumL, bytes32 hR, uint128 sumR) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0x01), hL, sumL, hR, sumR));
    }

    function rewardPad(bytes32 dom) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0x02), dom));
    }

    /// ceil(log2(count)), count > 0
    function depthOf(uint256 count) internal pure returns (uint256 depth) {
        while ((uint256(1) << depth) < count) ++depth;
    }

    /// depth == depthOf(count), count > 0
    function isDepth(uint256 depth, uint256 count) internal pure returns (bool) {
        return depth < 33 && count <= 1 << depth && count > (1 << depth) >> 1;
    }

    /// Root hash and sum above a leaf; `tag` is 0x11 (log) or 0x01 (reward). The sum is exact and may pass 2^128, where
    /// the nodes' bytes would not say it: a root counts only with the sum that it has to have. The caller has checked
    /// index < count and hashes.length == sums.length == depthOf(count). In assembly: a proof is most of a claim's work.
    function fold(
        uint8 tag,
        bytes32 hash,
        uint256 sum,
        uint256 index,
        bytes32[] calldata hashes,
        uint128[] calldata sums
    ) internal pure returns (bytes32, uint256) {
        assembly ("memory-safe") {
            let node := mload(0x40) // 97 bytes: tag, left hash and sum, right hash and sum
            mstore8(node, tag)
            let end := add(hashes.offset, shl(5, hashes.length))
            let other := sums.offset
            for { let at := hashes.offset } lt(at, end) { at := add(at, 0x20) } {
                let s := calldataload(other)
                switch and(index, 1)
                case 0 {
                    mstore(add(node, 0x01), hash)
                    mstore(add(node, 0x21), shl(128, sum))
                    mstore(add(node, 0x31), calldataload(at))
                    mstore(add(node, 0x51), shl(128, s))
                }
                default {
                    mstore(add(node, 0x01), calldataload(at))
                    mstore(add(node, 0x21), shl(128, s))
                    mstore(add(node, 0x31), hash)
                    mstore(add(node, 0x51), shl(128, sum))
                }
                hash := keccak256(node, 0x61)
                sum := add(sum, s)
                index := shr(1, index)
                other := add(other, 0x20)
            }
        }
        return (hash, sum);
    }

    /// keccak(abi.encode(lanes)), copied whole.
    function lanesHash(Lane[] calldata lanes) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let m := mload(0x40)
            let size := mul(lanes.length, 0x60)
            mstore(m, 0x20)
            mstore(add(m, 0x20), lanes.length)
            calldatacopy(add(m, 0x40), lanes.offset, size)
            hash := keccak256(m, add(size, 0x40))
        }
    }

    /// keccak(abi.encode(BATCH_TYPE, chainId, ledger, h, lanesDigest)), the header copied whole.
    function batchHash(Header calldata h, bytes32 lanesDigest, uint256 chainId, address ledger)
        internal
        pure
        returns (bytes32 hash)
    {
        bytes32 kind = BATCH_TYPE;
        assembly ("memory-safe") {
            let m := mload(0x40)
            mstore(m, kind)
            mstore(add(m, 0x20), chainId)
            mstore(add(m, 0x40), ledger)
            calldatacopy(add(m, 0x60), h, 0x140)
            mstore(add(m, 0x1a0), lanesDigest)
            hash := keccak256(m, 0x1c0)
        }
    }
}
