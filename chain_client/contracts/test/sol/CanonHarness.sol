// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {Canon} from "../../src/Canon.sol";

/// Opens the library to the golden vectors, with chain id and addresses as parameters.
contract CanonHarness {
    function inference(uint256 chainId, address ledger, Canon.Inference calldata r) external pure returns (bytes32) {
        return Canon.hashInference(Canon.domainSeparator(chainId, ledger), r);
    }

    function attribution(uint256 chainId, address ledger, Canon.Attribution calldata r) external pure returns (bytes32) {
        return Canon.hashAttribution(Canon.domainSeparator(chainId, ledger), r);
    }

    function void_(uint256 chainId, address ledger, Canon.Void calldata r) external pure returns (bytes32) {
        return Canon.hashVoid(Canon.domainSeparator(chainId, ledger), r);
    }

    function logDomain(uint256 chainId, address ledger) external pure returns (bytes32) {
        return Canon.logDomain(chainId, ledger);
    }

    function rewardDomain(uint256 chainId, address vault, address token) external pure returns (bytes32) {
        return Canon.rewardDomain(chainId, vault, token);
    }

    function logLeafInference(bytes32 dom, uint32 lane, uint64 seq, bytes32 digest, uint128 fee)
        external
        pure
        returns (bytes32)
    {
        return Canon.logLeafInference(dom, lane, seq, digest, fee);
    }

    function logLeafOther(bytes32 dom, uint32 lane, uint64 seq, bytes32 digest) external pure returns (bytes32) {
        return Canon.logLeafOther(dom, lane, seq, digest);
    }

    function rewardLeaf(bytes32 dom, uint32 index, address account, uint128 cumulative)
        external
        pure
        returns (bytes32)
    {
        return Canon.rewardLeaf(dom, index, account, cumulative);
    }

    /// Root of a tree from its leaves; kind 0 = log, 1 = reward.
    function root(uint8 kind, bytes32 dom, bytes32[] memory h, uint128[] memory s)
        external
        pure
        returns (bytes32, uint128)
    {
        uint256 width = 1 << Canon.depthOf(h.length);
        bytes32[] memory hash = new bytes32[](width);
        uint128[] memory sum = new uint128[](width);
        for (uint256 i = 0; i < width; ++i) {
            hash[i] = i < h.length ? h[i] : kind == 0 ? Canon.logPad(dom) : Canon.rewardPad(dom);
            sum[i] = i < h.length ? s[i] : 0;
        }
        for (; width > 1; width >>= 1) {
            for (uint256 i = 0; i < width / 2; ++i) {
                hash[i] = kind == 0
                    ? Canon.logNode(hash[2 * i], sum[2 * i], hash[2 * i + 1], sum[2 * i + 1])
                    : Canon.rewardNode(hash[2 * i], sum[2 * i], hash[2 * i + 1], sum[2 * i + 1]);
                sum[i] = sum[2 * i] + sum[2 * i + 1];
            }
        }
        return (hash[0], sum[0]);
    }

    function fold(
        uint8 tag,
        bytes32 hash,
        uint128 sum,
        uint256 index,
        bytes32[] calldata hashes,
        uint128[] calldata sums
    ) external pure returns (bytes32, uint256) {
        return Canon.fold(tag, hash, sum, index, hashes, sums);
    }

    function lanesHash(Canon.Lane[] calldata lanes) external pure returns (bytes32) {
        return Canon.lanesHash(lanes);
    }

    function batchHash(Canon.Header calldata h, bytes32 lanesDigest, uint256 chainId, address ledger)
        external
        pure
        returns (bytes32)
    {
        return Canon.batchHash(h, lanesDigest, chainId, ledger);
    }

    function depthOf(uint256 count) external pure returns (uint256) {
        return Canon.depthOf(count);
    }
}
