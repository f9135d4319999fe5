// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";

/// Roles that change only after a notice: the first call announces, the same call again once the notice has passed
/// does it. A stolen admin key is so seen before it can hand out anything. Giving a role up is immediate; the first
/// holders are named by the constructors.
abstract contract DelayedRoles is AccessControl {
    uint64 public immutable notice; // of every change that money depends on

    mapping(bytes32 change => uint64) private _readyAt; // 0 = not announced

    event RoleAnnounced(bytes32 indexed role, address indexed account, bool grant, uint64 readyAt);
    event RoleCancelled(bytes32 indexed role, address indexed account);

    error RoleTooEarly(uint64 readyAt);
    error RoleConflict(address account);

    constructor(uint64 notice_) {
        notice = notice_;
    }

    function grantRole(bytes32 role, address account) public override onlyRole(getRoleAdmin(role)) {
        if (_ripe(role, account, true)) _grantRole(role, account);
    }

    function revokeRole(bytes32 role, address account) public override onlyRole(getRoleAdmin(role)) {
        if (_ripe(role, account, false)) _revokeRole(role, account);
    }

    /// Forgets what was announced for this role and account.
    function cancelRole(bytes32 role, address account) external onlyRole(getRoleAdmin(role)) {
        delete _readyAt[_change(role, account, true)];
        delete _readyAt[_change(role, account, false)];
        emit RoleCancelled(role, account);
    }

    /// From when the second call does it; 0 for a change that was not announced.
    function roleReadyAt(bytes32 role, address account, bool grant) external view returns (uint64) {
        return _readyAt[_change(role, account, grant)];
    }

    /// Announces at first; true once the announced change may be done, which uses the announcement up.
    function _ripe(bytes32 role, address account, bool grant) private returns (bool) {
        bytes32 change = _change(role, account, grant);
        uint64 readyAt = _readyAt[change];
        if (readyAt == 0) {
            readyAt = uint64(block.timestamp) + notice;
            _readyAt[change] = readyAt;
            emit RoleAnnounced(role, account, grant, readyAt);
            return false;
        }
        if (block.timestamp < readyAt) revert RoleTooEarly(readyAt);
        delete _readyAt[change];
        return true;
    }

    function _change(bytes32 role, address account, bool grant) private pure returns (bytes32) {
        return keccak256(abi.encode(role, account, grant));
    }
}
