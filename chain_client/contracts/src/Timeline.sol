// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

/// When the entries of a history become active, in the order they were written, and which of them is at second t.
/// Six times share a word, and the search is binary, so nobody makes a history dear to read by writing to it. At most
/// one entry is pending, so the times never fall.
library Timeline {
    struct Line {
        uint40[] times;
    }

    error ChangePending(uint64 activeAt);

    /// Appends; the new entry's number is the result. A pending change is first waited for.
    function push(Line storage line, uint64 activeAt) internal returns (uint256 number) {
        number = line.times.length;
        if (number != 0 && line.times[number - 1] > block.timestamp) revert ChangePending(line.times[number - 1]);
        line.times.push(uint40(activeAt));
    }

    /// How many entries are active at t; the last of them is in force. The newest is tried first. In assembly: each probe
    /// is one word of storage and little else.
    function countAt(Line storage line, uint64 t) internal view returns (uint256 low) {
        uint256 high = line.times.length;
        if (high == 0 || line.times[high - 1] <= t) return high;
        --high;
        assembly ("memory-safe") {
            mstore(0x00, line.slot)
            let first := keccak256(0x00, 0x20)
            for {} lt(low, high) {} {
                let middle := shr(1, add(low, high))
                let word := sload(add(first, div(middle, 6)))
                let time := and(shr(mul(mod(middle, 6), 40), word), 0xffffffffff)
                switch gt(time, t)
                case 0 { low := add(middle, 1) }
                default { high := middle }
            }
        }
    }
}
