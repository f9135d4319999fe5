// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Canon} from "./Canon.sol";

/// Who is paid for what, readable as of any past second: policy, bases, adapters, datanets, methods.
/// Every entry that money depends on is appended with its activeAt and never changed, and activeAt is never before the
/// block that wrote it, so an answer for a past second is final. A change takes effect `notice` seconds after the call.
contract Registry is AccessControl {
    bytes32 public constant REGISTRAR = keccak256("REGISTRAR"); // names bases: their ids are public, so no first come

    uint16 public constant BPS = 10_000;
    uint8 public constant ROLE_AUTHOR = 1;
    uint8 public constant ROLE_DATA = 2;
    uint8 public constant ROLE_OTHER = 3;
    uint256 public constant ENTRIES_MAX = 32;

    bytes32 public constant PUBLISH_TYPE = keccak256(
        "Publish(bytes32 adapterId,bytes32 modelId,bytes32 datanetId,address owner,uint128 priceIn,uint128 priceOut,bytes32 splitHash,uint64 version)"
    );

    struct Policy {
        uint16 base;
        uint16 adapters;
        uint16 operator;
        uint16 protocol;
        address treasury;
        uint64 activeAt;
    }

    struct SplitEntry {
        address payee;
        uint8 role;
        uint16 bps;
    }

    struct Split {
        uint64 activeAt;
        SplitEntry[] entries;
    }

    struct Base {
        address owner;
        address offeredTo;
        uint64 registeredAt;
    }

    struct Adapter {
        address owner;
        uint64 registeredAt;
        address offeredTo;
        uint64 version;
        bytes32 modelId;
        bytes32 datanetId;
        bytes32 manifestHash;
    }

    struct Publish {
        bytes32 adapterId;
        bytes32 modelId;
        bytes32 datanetId;
        address owner;
        uint128 priceIn;
        uint128 priceOut;
        uint64 version;
    }

    struct Datanet {
        address owner;
        address offeredTo;
        uint64 registeredAt;
    }

    struct DatanetVersion {
        uint64 activeAt;
        uint64 version;
        bytes32 documentRoot;
        bytes32 ownerRoot;
        bytes32 tokenizerDigest;
    }

    uint64 public immutable notice;
    uint64 public immutable commitAgeMin;
    uint16 public immutable protocolBpsMin;

    Policy[] private _policies;
    mapping(bytes32 modelId => Base) public bases;
    mapping(bytes32 modelId => Split[]) private _baseSplits;
    mapping(bytes32 adapterId => Adapter) public adapters;
    mapping(bytes32 adapterId => Split[]) private _adapterSplits;
    mapping(bytes32 commitment => uint64) public committedAt;
    mapping(bytes32 datanetId => Datanet) public datanets;
    mapping(bytes32 datanetId => DatanetVersion[]) private _datanetVersions;
    mapping(bytes32 documentRoot => uint64) public rootRegisteredAt; // among copies the earliest wins
    mapping(bytes32 methodHash => uint64) public methodRegisteredAt;

    event PolicySet(
        uint16 base, uint16 adapters, uint16 operator, uint16 protocol, address treasury, uint64 activeAt
    );
    event BaseRegistered(bytes32 indexed modelId, address indexed owner);
    event BaseSplitSet(bytes32 indexed modelId, uint64 activeAt, SplitEntry[] entries);
    event AdapterCommitted(bytes32 indexed commitment);
    event AdapterRegistered(
        bytes32 indexed adapterId,
        address indexed owner,
        bytes32 indexed modelId,
        bytes32 datanetId,
        bytes32 manifestHash,
        uint64 version
    );
    event AdapterSplitSet(bytes32 indexed adapterId, uint64 activeAt, SplitEntry[] entries);
    event ManifestSet(
        bytes32 indexed adapterId, bytes32 manifestHash, uint64 version, uint128 priceIn, uint128 priceOut
    );
    event DatanetRegistered(bytes32 indexed datanetId, address indexed owner);
    event DatanetSet(
        bytes32 indexed datanetId,
        uint64 version,
        uint64 activeAt,
        bytes32 documentRoot,
        bytes32 ownerRoot,
        bytes32 tokenizerDigest
    );
    event MethodRegistered(bytes32 indexed methodHash);
    event OwnerOffered(bytes32 indexed id, address indexed to);
    event OwnerChanged(bytes32 indexed id, address indexed owner);

    error BadPolicy();
    error BadSplit(uint256 entry);
    error BadValue();
    error AlreadyRegistered(bytes32 id);
    error Unknown(bytes32 id);
    error NotOwner(bytes32 id);
    error NotOffered(bytes32 id);
    error CommitmentUnknown(bytes32 commitment);
    error CommitmentTooYoung(uint64 usableAt);
    error BadOwnerSignature();
    error VersionNotRising(uint64 current);
    error NothingActive(uint64 t);

    constructor(address admin, uint64 notice_, uint64 commitAgeMin_, uint16 protocolBpsMin_, Policy memory first) {
        if (admin == address(0) || protocolBpsMin_ > BPS) revert BadValue();
        notice = notice_;
        commitAgeMin = commitAgeMin_;
        protocolBpsMin = protocolBpsMin_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
        _pushPolicy(first, uint64(block.timestamp));
    }

    // ------------------------------------------------------------ policy and methods

    /// Effective `notice` seconds from now; `next.activeAt` is not read.
    function setPolicy(Policy calldata next) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _pushPolicy(next, uint64(block.timestamp) + notice);
    }

    function registerMethod(bytes32 methodHash) external onlyRole(DEFAULT_ADMIN_ROLE) {
        if (methodRegisteredAt[methodHash] != 0) revert AlreadyRegistered(methodHash);
        methodRegisteredAt[methodHash] = uint64(block.timestamp);
        emit MethodRegistered(methodHash);
    }

    // ------------------------------------------------------------ bases

    function registerBase(bytes32 modelId, address owner, SplitEntry[] calldata entries) external onlyRole(REGISTRAR) {
        if (modelId == 0 || owner == address(0)) revert BadValue();
        if (bases[modelId].owner != address(0)) revert AlreadyRegistered(modelId);
        bases[modelId] = Base(owner, address(0), uint64(block.timestamp));
        emit BaseRegistered(modelId, owner);
        _pushSplit(_baseSplits[modelId], entries, uint64(block.timestamp));
        emit BaseSplitSet(modelId, uint64(block.timestamp), entries);
    }

    function setBaseSplit(bytes32 modelId, SplitEntry[] calldata entries) external {
        if (bases[modelId].owner != msg.sender) revert NotOwner(modelId);
        uint64 activeAt = uint64(block.timestamp) + notice;
        _pushSplit(_baseSplits[modelId], entries, activeAt);
        emit BaseSplitSet(modelId, activeAt, entries);
    }

    function offerBase(bytes32 modelId, address to) external {
        if (bases[modelId].owner != msg.sender) revert NotOwner(modelId);
        bases[modelId].offeredTo = to;
        emit OwnerOffered(modelId, to);
    }

    function acceptBase(bytes32 modelId) external {
        Base storage b = bases[modelId];
        if (b.offeredTo != msg.sender) revert NotOffered(modelId);
        b.owner = msg.sender;
        b.offeredTo = address(0);
        emit OwnerChanged(modelId, msg.sender);
    }

    // ------------------------------------------------------------ adapters

    /// First half of a registration: keccak(abi.encode(adapterId, owner, salt)). The first one counts.
    function commitAdapter(bytes32 commitment) external {
        if (committedAt[commitment] != 0) revert AlreadyRegistered(commitment);
        committedAt[commitment] = uint64(block.timestamp);
        emit AdapterCommitted(commitment);
    }

    /// Second half. Sent by the owner, or by anyone with the owner's EIP-712 signature over the manifest.
    function register(Publish calldata m, SplitEntry[] calldata entries, bytes32 salt, bytes calldata ownerSignature)
        external
    {
        if (m.adapterId == 0 || m.owner == address(0)) revert BadValue();
        if (adapters[m.adapterId].owner != address(0)) revert AlreadyRegistered(m.adapterId);
        bytes32 commitment = keccak256(abi.encode(m.adapterId, m.owner, salt));
        uint64 since = committedAt[commitment];
        if (since == 0) revert CommitmentUnknown(commitment);
        if (block.timestamp < since + commitAgeMin) revert CommitmentTooYoung(since + commitAgeMin);
        if (m.datanetId != 0 && datanets[m.datanetId].owner == address(0)) revert Unknown(m.datanetId);
        if (m.version == 0) revert VersionNotRising(0);
        bytes32 digest = _checkManifest(m, entries, m.owner, ownerSignature);
        adapters[m.adapterId] = Adapter({
            owner: m.owner,
            registeredAt: uint64(block.timestamp),
            offeredTo: address(0),
            version: m.version,
            modelId: m.modelId,
            datanetId: m.datanetId,
            manifestHash: digest
        });
        _pushSplit(_adapterSplits[m.adapterId], entries, uint64(block.timestamp));
        emit AdapterRegistered(m.adapterId, m.owner, m.modelId, m.datanetId, digest, m.version);
        emit AdapterSplitSet(m.adapterId, uint64(block.timestamp), entries);
        emit ManifestSet(m.adapterId, digest, m.version, m.priceIn, m.priceOut);
    }

    /// A new manifest of a registered adapter: version must rise; model and datanet cannot change; the split takes notice.
    function update(Publish calldata m, SplitEntry[] calldata entries, bytes calldata ownerSignature) external {
        Adapter storage a = adapters[m.adapterId];
        if (a.owner == address(0)) revert Unknown(m.adapterId);
        if (m.owner != a.owner) revert NotOwner(m.adapterId);
        if (m.version <= a.version) revert VersionNotRising(a.version);
        if (m.modelId != a.modelId || m.datanetId != a.datanetId) revert BadValue();
        bytes32 digest = _checkManifest(m, entries, a.owner, ownerSignature);
        a.version = m.version;
        a.manifestHash = digest;
        uint64 activeAt = uint64(block.timestamp) + notice;
        _pushSplit(_adapterSplits[m.adapterId], entries, activeAt);
        emit AdapterSplitSet(m.adapterId, activeAt, entries);
        emit ManifestSet(m.adapterId, digest, m.version, m.priceIn, m.priceOut);
    }

    function setSplit(bytes32 adapterId, SplitEntry[] calldata entries) external {
        if (adapters[adapterId].owner != msg.sender) revert NotOwner(adapterId);
        uint64 activeAt = uint64(block.timestamp) + notice;
        _pushSplit(_adapterSplits[adapterId], entries, activeAt);
        emit AdapterSplitSet(adapterId, activeAt, entries);
    }

    function offerAdapter(bytes32 adapterId, address to) external {
        if (adapters[adapterId].owner != msg.sender) revert NotOwner(adapterId);
        adapters[adapterId].offeredTo = to;
        emit OwnerOffered(adapterId, to);
    }

    function acceptAdapter(bytes32 adapterId) external {
        Adapter storage a = adapters[adapterId];
        if (a.offeredTo != msg.sender) revert NotOffered(adapterId);
        a.owner = msg.sender;
        a.offeredTo = address(0);
        emit OwnerChanged(adapterId, msg.sender);
    }

    // ------------------------------------------------------------ datanets

    /// The id binds the owner, so nobody can take it first.
    function datanetIdOf(address owner, bytes32 salt) public view returns (bytes32) {
        return keccak256(abi.encode("residual.datanet.1", block.chainid, address(this), owner, salt));
    }

    function registerDatanet(bytes32 salt, bytes32 documentRoot, bytes32 ownerRoot, bytes32 tokenizerDigest)
        external
        returns (bytes32 id)
    {
        id = datanetIdOf(msg.sender, salt);
        if (datanets[id].owner != address(0)) revert AlreadyRegistered(id);
        datanets[id] = Datanet(msg.sender, address(0), uint64(block.timestamp));
        emit DatanetRegistered(id, msg.sender);
        _pushDatanet(
            id, DatanetVersion(uint64(block.timestamp), 1, documentRoot, ownerRoot, tokenizerDigest)
        );
    }

    function setDatanet(
        bytes32 id,
        uint64 version,
        bytes32 documentRoot,
        bytes32 ownerRoot,
        bytes32 tokenizerDigest
    ) external {
        if (datanets[id].owner != msg.sender) revert NotOwner(id);
        DatanetVersion[] storage all = _datanetVersions[id];
        uint64 current = all[all.length - 1].version;
        if (version <= current) revert VersionNotRising(current);
        _pushDatanet(
            id,
            DatanetVersion(uint64(block.timestamp) + notice, version, documentRoot, ownerRoot, tokenizerDigest)
        );
    }

    function offerDatanet(bytes32 id, address to) external {
        if (datanets[id].owner != msg.sender) revert NotOwner(id);
        datanets[id].offeredTo = to;
        emit OwnerOffered(id, to);
    }

    function acceptDatanet(bytes32 id) external {
        Datanet storage d = datanets[id];
        if (d.offeredTo != msg.sender) revert NotOffered(id);
        d.owner = msg.sender;
        d.offeredTo = address(0);
        emit OwnerChanged(id, msg.sender);
    }

    // ------------------------------------------------------------ the past

    function policyAt(uint64 t) external view returns (Policy memory p) {
        for (uint256 i = _policies.length; i > 0; --i) {
            p = _policies[i - 1];
            if (p.activeAt <= t) return p;
        }
        revert NothingActive(t);
    }

    /// registered = false: Reward pays TREASURY.
    function baseAt(bytes32 modelId, uint64 t) external view returns (bool registered, SplitEntry[] memory list) {
        return _splitAt(_baseSplits[modelId], t);
    }

    function adapterAt(bytes32 adapterId, uint64 t)
        external
        view
        returns (bool registered, bytes32 modelId, bytes32 datanetId, SplitEntry[] memory list)
    {
        (registered, list) = _splitAt(_adapterSplits[adapterId], t);
        if (registered) {
            modelId = adapters[adapterId].modelId;
            datanetId = adapters[adapterId].datanetId;
        }
    }

    function datanetAt(bytes32 id, uint64 t) external view returns (bool registered, DatanetVersion memory d) {
        DatanetVersion[] storage all = _datanetVersions[id];
        for (uint256 i = all.length; i > 0; --i) {
            if (all[i - 1].activeAt <= t) return (true, all[i - 1]);
        }
    }

    /// EIP-712 digest an owner signs over a manifest.
    function hashPublish(Publish calldata m, SplitEntry[] calldata entries) public view returns (bytes32) {
        return Canon.typedDigest(
            Canon.domainSeparator(block.chainid, address(this)),
            keccak256(
                abi.encode(
                    PUBLISH_TYPE,
                    m.adapterId,
                    m.modelId,
                    m.datanetId,
                    m.owner,
                    m.priceIn,
                    m.priceOut,
                    keccak256(abi.encode(entries)),
                    m.version
                )
            )
        );
    }

    // ------------------------------------------------------------ inside

    function _pushPolicy(Policy memory p, uint64 activeAt) private {
        if (uint256(p.base) + p.adapters + p.operator + p.protocol != BPS) revert BadPolicy();
        if (p.protocol < protocolBpsMin || p.treasury == address(0)) revert BadPolicy();
        p.activeAt = activeAt;
        _policies.push(p);
        emit PolicySet(p.base, p.adapters, p.operator, p.protocol, p.treasury, activeAt);
    }

    /// Entries strictly ascending by (role, payee), bps not 0 and 10 000 in all.
    function _pushSplit(Split[] storage splits, SplitEntry[] calldata entries, uint64 activeAt) private {
        if (entries.length == 0 || entries.length > ENTRIES_MAX) revert BadSplit(entries.length);
        Split storage s = splits.push();
        s.activeAt = activeAt;
        uint256 sum = 0;
        uint256 last = 0;
        for (uint256 i = 0; i < entries.length; ++i) {
            SplitEntry calldata e = entries[i];
            uint256 key = (uint256(e.role) << 160) | uint160(e.payee);
            if (e.payee == address(0) || e.bps == 0 || e.role < ROLE_AUTHOR || e.role > ROLE_OTHER || key <= last) {
                revert BadSplit(i);
            }
            last = key;
            sum += e.bps;
            s.entries.push(e);
        }
        if (sum != BPS) revert BadSplit(entries.length);
    }

    function _pushDatanet(bytes32 id, DatanetVersion memory d) private {
        if (d.documentRoot == 0 || d.ownerRoot == 0) revert BadValue();
        if (rootRegisteredAt[d.documentRoot] == 0) rootRegisteredAt[d.documentRoot] = uint64(block.timestamp);
        _datanetVersions[id].push(d);
        emit DatanetSet(id, d.version, d.activeAt, d.documentRoot, d.ownerRoot, d.tokenizerDigest);
    }

    function _splitAt(Split[] storage splits, uint64 t) private view returns (bool, SplitEntry[] memory entries) {
        for (uint256 i = splits.length; i > 0; --i) {
            if (splits[i - 1].activeAt <= t) return (true, splits[i - 1].entries);
        }
        return (false, entries);
    }

    function _checkManifest(
        Publish calldata m,
        SplitEntry[] calldata entries,
        address owner,
        bytes calldata ownerSignature
    ) private view returns (bytes32 digest) {
        if (m.priceIn >> 80 != 0 || m.priceOut >> 80 != 0) revert BadValue();
        digest = hashPublish(m, entries);
        if (msg.sender != owner && !SignatureChecker.isValidSignatureNow(owner, digest, ownerSignature)) {
            revert BadOwnerSignature();
        }
    }
}
