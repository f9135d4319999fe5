// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {Registry} from "../../src/Registry.sol";

/// Writes long histories in few transactions, and measures what a view takes by itself.
contract HistoryWriter {
    Registry public immutable registry;

    constructor(Registry r) {
        registry = r;
    }

    function commitAdapter(bytes32 adapterId, bytes32 salt) external {
        registry.commitAdapter(keccak256(abi.encode(adapterId, address(this), salt)));
    }

    function register(Registry.Publish calldata m, Registry.SplitEntry[] calldata split, bytes32 salt) external {
        registry.register(m, split, new Registry.Parent[](0), salt, "", "");
    }

    function reprice(bytes32 adapterId, uint128 first, uint256 count) external {
        for (uint256 i = 0; i < count; ++i) registry.setPrice(adapterId, first + uint128(i), 1);
    }

    /// Gas of one adapterAt from a cold state, the call's own 2 600 included, and what it found.
    function gasOfAdapterAt(bytes32 adapterId, uint64 t) external view returns (uint256 used, uint128 priceIn) {
        bytes memory call_ = abi.encodeCall(Registry.adapterAt, (adapterId, t));
        used = gasleft();
        (bool done, bytes memory answer) = address(registry).staticcall(call_);
        used -= gasleft();
        require(done);
        priceIn = abi.decode(answer, (Registry.Terms)).priceIn;
    }
}
