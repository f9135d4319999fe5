// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {RewardVault} from "../../src/RewardVault.sol";

/// Takes no coins.
contract Refuser {
    function payoutTo(RewardVault vault, address to) external {
        vault.setPayout(to);
    }
}

/// Returns a megabyte and burns what gas it gets.
contract Burner {
    receive() external payable {
        assembly {
            for {} 1 {} { mstore(gas(), 1) }
        }
    }
}

/// Calls the vault again from inside the payment.
contract Reentrant {
    RewardVault public immutable vault;
    bytes public again;
    bool public tried;
    bool public entered;

    constructor(RewardVault v) {
        vault = v;
    }

    function set(bytes calldata call_) external {
        again = call_;
    }

    receive() external payable {
        tried = true;
        (entered,) = address(vault).call(again);
    }
}

contract Token is ERC20 {
    uint256 public immutable feeBps;
    mapping(address => bool) public blocked;

    constructor(uint256 feeBps_) ERC20("Test", "TST") {
        feeBps = feeBps_;
        _mint(msg.sender, 1e30);
    }

    function setBlocked(address who, bool is_) external {
        blocked[who] = is_;
    }

    function _update(address from, address to, uint256 value) internal override {
        require(!blocked[to], "blocked");
        uint256 fee = from == address(0) ? 0 : value * feeBps / 10_000;
        super._update(from, to, value - fee);
        if (fee != 0) super._update(from, address(0xdead), fee);
    }
}

/// A registered vault, as far as the ledger asks it.
contract LockedVault {
    uint64 public lockedSeq;
    mapping(address => bool) public holdsKey;

    function hold(address account) external {
        holdsKey[account] = true;
    }

    function lock(uint64 seq) external {
        lockedSeq = seq;
    }
}

/// An owner without a key: what its signer signed counts as its word (EIP-1271).
contract ContractOwner {
    address public immutable signer;

    constructor(address signer_) {
        signer = signer_;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        return ECDSA.recover(digest, signature) == signer ? bytes4(0x1626ba7e) : bytes4(0);
    }

    function run(address to, bytes calldata data) external {
        (bool done,) = to.call(data);
        require(done);
    }
}

/// Pushes coins into a contract that has no way to take them.
contract Forcer {
    constructor(address payable to) payable {
        selfdestruct(to);
    }
}
