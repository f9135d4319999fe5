// SPDX-License-Identifier: MIT
pragma solidity ^0.8.28;

import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Canon} from "./Canon.sol";
import {DelayedRoles} from "./DelayedRoles.sol";
import {Timeline} from "./Timeline.sol";

/// What the Registry asks the ledger: who may name a lane's tariffs.
interface ILaneOperators {
    function laneOperatorAt(uint32 lane, uint64 t) external view returns (address);
}

/// Who is paid for what and what it costs, readable as of any past second: policy, bases, tariffs, adapters with their
/// parents, datanets, methods. Every entry that money depends on is appended with its activeAt and never changed, and
/// activeAt is never before the block that wrote it, so an answer for a past second is final. A first entry takes effect
/// `lead` seconds after the call, so that every server has read it by then; a change takes `notice`, one at a time.
contract Registry is DelayedRoles {
    using Timeline for Timeline.Line;

    bytes32 public constant REGISTRAR = keccak256("REGISTRAR"); // names bases: their ids are public, so no first come

    uint16 public constant BPS = 10_000;
    uint8 public constant ROLE_AUTHOR = 1;
    uint8 public constant ROLE_DATA = 2;
    uint8 public constant ROLE_OTHER = 3;
    uint256 public constant ENTRIES_MAX = 32;
    uint256 public constant PARENTS_MAX = 4;
    uint256 public constant PARENTS_BPS_MAX = 5_000;
    uint8 public constant DEPTH_MAX = 4;
    uint32 public constant DOCUMENTS_MAX = 1 << 20;

    bytes32 public constant PUBLISH_TYPE = keccak256(
        "Publish(bytes32 adapterId,bytes32 modelId,bytes32 datanetId,uint64 datanetVersion,address owner,uint128 priceIn,uint128 priceOut,bytes32 splitHash,bytes32 parentsHash,uint64 version)"
    );
    bytes32 public constant CONSENT_TYPE =
        keccak256("DatanetConsent(bytes32 datanetId,uint64 datanetVersion,bytes32 adapterId)");

    struct Config {
        address admin;
        address registrar;
        ILaneOperators ledger;
        uint64 notice;
        uint64 lead;
        uint64 commitAgeMin;
        uint16 protocolBpsMin;
    }

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

    struct Parent {
        bytes32 adapterId;
        uint16 bps; // of the adapter's pool, before its own split
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
        bytes32 manifestHash; // of the newest manifest, which setSplit and setPrice may have outrun
        uint8 depth; // highest ever: 0 without parents, else 1 + that of the deepest parent
        bool isParent; // some adapter names it
    }

    /// What an adapter's history keeps of an entry. Lists are kept once and named by number.
    struct Stored {
        uint80 priceIn;
        uint80 priceOut;
        uint64 datanetVersion;
        uint16 split;
        uint16 parents; // 0 = none
    }

    struct Terms {
        bool registered;
        uint64 activeAt;
        bytes32 modelId;
        bytes32 datanetId;
        uint64 datanetVersion;
        uint128 priceIn; // per 1 000 tokens
        uint128 priceOut;
        SplitEntry[] split;
        Parent[] parents;
    }

    struct Publish {
        bytes32 adapterId;
        bytes32 modelId;
        bytes32 datanetId;
        uint64 datanetVersion; // 0 iff datanetId is
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
        uint32 documents;
        uint32 owners;
        bytes32 tokenizerDigest;
    }

    struct Tariff {
        uint128 priceIn;
        uint128 priceOut;
    }

    ILaneOperators public immutable ledger;
    uint64 public immutable lead;
    uint64 public immutable commitAgeMin;
    uint16 public immutable protocolBpsMin;

    bytes32 public immutable domain; // EIP-712

    Timeline.Line private _policyLine;
    Policy[] private _policies;
    mapping(bytes32 modelId => Base) public bases;
    mapping(bytes32 modelId => Timeline.Line) private _baseLine;
    mapping(bytes32 modelId => mapping(uint256 number => SplitEntry[])) private _baseSplits;
    mapping(uint32 lane => mapping(bytes32 modelId => Timeline.Line)) private _tariffLine;
    mapping(uint32 lane => mapping(bytes32 modelId => Tariff[])) private _tariffs;
    mapping(bytes32 adapterId => Adapter) public adapters;
    mapping(bytes32 adapterId => Timeline.Line) private _adapterLine;
    mapping(bytes32 adapterId => mapping(uint256 number => Stored)) private _terms;
    mapping(bytes32 adapterId => mapping(uint256 number => SplitEntry[])) private _splits;
    mapping(bytes32 adapterId => mapping(uint256 number => Parent[])) private _parents;
    mapping(bytes32 adapterId => uint16) private _parentLists; // how many
    mapping(bytes32 commitment => uint64) public committedAt;
    mapping(bytes32 datanetId => Datanet) public datanets;
    mapping(bytes32 datanetId => Timeline.Line) private _datanetLine;
    mapping(bytes32 datanetId => DatanetVersion[]) private _datanetVersions;
    mapping(bytes32 datanetId => mapping(uint64 version => uint256)) private _versionPlace; // number + 1
    mapping(bytes32 documentRoot => uint64) public rootRegisteredAt; // among copies the earliest wins
    mapping(bytes32 methodHash => uint64) public methodRegisteredAt;

    event PolicySet(
        uint16 base, uint16 adapters, uint16 operator, uint16 protocol, address treasury, uint64 activeAt
    );
    event BaseRegistered(bytes32 indexed modelId, address indexed owner);
    event BaseSplitSet(bytes32 indexed modelId, uint64 activeAt, SplitEntry[] entries);
    event TariffSet(
        uint32 indexed lane, bytes32 indexed modelId, uint64 activeAt, uint128 priceIn, uint128 priceOut
    );
    event AdapterCommitted(bytes32 indexed commitment);
    event AdapterRegistered(
        bytes32 indexed adapterId,
        address indexed owner,
        bytes32 indexed modelId,
        bytes32 datanetId,
        bytes32 manifestHash,
        uint64 version
    );
    event ManifestSet(bytes32 indexed adapterId, bytes32 manifestHash, uint64 version);
    event TermsSet(
        bytes32 indexed adapterId,
        uint64 activeAt,
        uint64 datanetVersion,
        uint128 priceIn,
        uint128 priceOut,
        SplitEntry[] split,
        Parent[] parents
    );
    event DatanetRegistered(bytes32 indexed datanetId, address indexed owner);
    event DatanetSet(
        bytes32 indexed datanetId,
        uint64 version,
        uint64 activeAt,
        bytes32 documentRoot,
        bytes32 ownerRoot,
        uint32 documents,
        uint32 owners,
        bytes32 tokenizerDigest
    );
    event MethodRegistered(bytes32 indexed methodHash);
    event OwnerOffered(bytes32 indexed id, address indexed to);
    event OwnerChanged(bytes32 indexed id, address indexed owner);

    error BadPolicy();
    error BadSplit(uint256 entry);
    error BadParent(uint256 parent); // their number, where they are wrong together
    error ParentsFixed();
    error BadDatanetConsent();
    error BadValue();
    error AlreadyRegistered(bytes32 id);
    error Unknown(bytes32 id);
    error NotOwner(bytes32 id);
    error NotOffered(bytes32 id);
    error NotOperator(uint32 lane);
    error CommitmentUnknown(bytes32 commitment);
    error CommitmentTooYoung(uint64 usableAt);
    error BadOwnerSignature();
    error VersionNotRising(uint64 current);
    error NothingActive(uint64 t);

    constructor(Config memory c, Policy memory first) DelayedRoles(c.notice) {
        if (c.admin == address(0) || c.registrar == address(0) || address(c.ledger) == address(0)) revert BadValue();
        if (c.protocolBpsMin > BPS) revert BadValue();
        ledger = c.ledger;
        lead = c.lead;
        commitAgeMin = c.commitAgeMin;
        protocolBpsMin = c.protocolBpsMin;
        domain = Canon.domainSeparator(block.chainid, address(this));
        _grantRole(DEFAULT_ADMIN_ROLE, c.admin);
        _grantRole(REGISTRAR, c.registrar);
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

    // ------------------------------------------------------------ bases and their tariffs

    function registerBase(bytes32 modelId, address owner, SplitEntry[] calldata entries) external onlyRole(REGISTRAR) {
        if (modelId == 0 || owner == address(0)) revert BadValue();
        if (bases[modelId].owner != address(0)) revert AlreadyRegistered(modelId);
        bases[modelId] = Base(owner, address(0), uint64(block.timestamp));
        emit BaseRegistered(modelId, owner);
        _pushBase(modelId, entries, uint64(block.timestamp) + lead);
    }

    function setBaseSplit(bytes32 modelId, SplitEntry[] calldata entries) external {
        if (bases[modelId].owner != msg.sender) revert NotOwner(modelId);
        _pushBase(modelId, entries, uint64(block.timestamp) + notice);
    }

    /// What a lane takes for a base, per 1 000 tokens; named by the lane's operator.
    function setTariff(uint32 lane, bytes32 modelId, uint128 priceIn, uint128 priceOut) external {
        if (ledger.laneOperatorAt(lane, uint64(block.timestamp)) != msg.sender) revert NotOperator(lane);
        if (modelId == 0) revert BadValue();
        _checkPrices(priceIn, priceOut);
        Tariff[] storage all = _tariffs[lane][modelId];
        uint64 activeAt = uint64(block.timestamp) + (all.length == 0 ? lead : notice);
        _tariffLine[lane][modelId].push(activeAt);
        all.push(Tariff(priceIn, priceOut));
        emit TariffSet(lane, modelId, activeAt, priceIn, priceOut);
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

    /// Second half. Sent by the owner, or by anyone with the owner's EIP-712 signature over the manifest. A datanet
    /// needs its owner's consent, unless its owner sends it.
    function register(
        Publish calldata m,
        SplitEntry[] calldata entries,
        Parent[] calldata parents,
        bytes32 salt,
        bytes calldata ownerSignature,
        bytes calldata datanetConsent
    ) external {
        if (m.adapterId == 0 || m.owner == address(0)) revert BadValue();
        if (adapters[m.adapterId].owner != address(0)) revert AlreadyRegistered(m.adapterId);
        bytes32 commitment = keccak256(abi.encode(m.adapterId, m.owner, salt));
        uint64 since = committedAt[commitment];
        if (since == 0) revert CommitmentUnknown(commitment);
        if (block.timestamp < since + commitAgeMin) revert CommitmentTooYoung(since + commitAgeMin);
        if (m.version == 0) revert VersionNotRising(0);
        bytes32 digest = _checkManifest(m, entries, parents, m.owner, ownerSignature);
        _checkConsent(m, datanetConsent);
        Adapter storage a = adapters[m.adapterId];
        a.owner = m.owner;
        a.registeredAt = uint64(block.timestamp);
        a.version = m.version;
        a.modelId = m.modelId;
        a.datanetId = m.datanetId;
        a.manifestHash = digest;
        emit AdapterRegistered(m.adapterId, m.owner, m.modelId, m.datanetId, digest, m.version);
        emit ManifestSet(m.adapterId, digest, m.version);
        Stored memory s;
        s.parents = _putParents(m.adapterId, parents);
        _putManifest(s, m, entries, uint64(block.timestamp) + lead);
    }

    /// A new manifest of a registered adapter: version must rise; model and datanet cannot change, and parents only
    /// while no adapter names this one; the terms take notice.
    function update(
        Publish calldata m,
        SplitEntry[] calldata entries,
        Parent[] calldata parents,
        bytes calldata ownerSignature,
        bytes calldata datanetConsent
    ) external {
        Adapter storage a = adapters[m.adapterId];
        if (a.owner == address(0)) revert Unknown(m.adapterId);
        if (m.owner != a.owner) revert NotOwner(m.adapterId);
        if (m.version <= a.version) revert VersionNotRising(a.version);
        if (m.modelId != a.modelId || m.datanetId != a.datanetId) revert BadValue();
        bytes32 digest = _checkManifest(m, entries, parents, a.owner, ownerSignature);
        Stored memory s = _newest(m.adapterId);
        if (m.datanetVersion != s.datanetVersion) _checkConsent(m, datanetConsent);
        a.version = m.version;
        a.manifestHash = digest;
        emit ManifestSet(m.adapterId, digest, m.version);
        Parent[] memory had = _parents[m.adapterId][s.parents];
        if (keccak256(abi.encode(had)) != keccak256(abi.encode(parents))) {
            if (a.isParent) revert ParentsFixed();
            s.parents = _putParents(m.adapterId, parents);
        }
        _putManifest(s, m, entries, uint64(block.timestamp) + notice);
    }

    function setSplit(bytes32 adapterId, SplitEntry[] calldata entries) external {
        if (adapters[adapterId].owner != msg.sender) revert NotOwner(adapterId);
        Stored memory s = _newest(adapterId);
        s.split += 1;
        _putSplit(_splits[adapterId][s.split], entries);
        _pushTerms(adapterId, s, uint64(block.timestamp) + notice);
    }

    function setPrice(bytes32 adapterId, uint128 priceIn, uint128 priceOut) external {
        if (adapters[adapterId].owner != msg.sender) revert NotOwner(adapterId);
        _checkPrices(priceIn, priceOut);
        Stored memory s = _newest(adapterId);
        (s.priceIn, s.priceOut) = (uint80(priceIn), uint80(priceOut));
        _pushTerms(adapterId, s, uint64(block.timestamp) + notice);
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

    function registerDatanet(
        bytes32 salt,
        bytes32 documentRoot,
        bytes32 ownerRoot,
        uint32 documents,
        uint32 owners,
        bytes32 tokenizerDigest
    ) external returns (bytes32 id) {
        id = datanetIdOf(msg.sender, salt);
        if (datanets[id].owner != address(0)) revert AlreadyRegistered(id);
        datanets[id] = Datanet(msg.sender, address(0), uint64(block.timestamp));
        emit DatanetRegistered(id, msg.sender);
        uint64 activeAt = uint64(block.timestamp) + lead;
        _pushDatanet(id, DatanetVersion(activeAt, 1, documentRoot, ownerRoot, documents, owners, tokenizerDigest));
    }

    function setDatanet(
        bytes32 id,
        uint64 version,
        bytes32 documentRoot,
        bytes32 ownerRoot,
        uint32 documents,
        uint32 owners,
        bytes32 tokenizerDigest
    ) external {
        if (datanets[id].owner != msg.sender) revert NotOwner(id);
        DatanetVersion[] storage all = _datanetVersions[id];
        uint64 current = all[all.length - 1].version;
        if (version <= current) revert VersionNotRising(current);
        uint64 activeAt = uint64(block.timestamp) + notice;
        _pushDatanet(id, DatanetVersion(activeAt, version, documentRoot, ownerRoot, documents, owners, tokenizerDigest));
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
        uint256 count = _policyLine.countAt(t);
        if (count == 0) revert NothingActive(t);
        return _policies[count - 1];
    }

    /// registered = false: Reward pays TREASURY.
    function baseAt(bytes32 modelId, uint64 t) external view returns (bool registered, SplitEntry[] memory list) {
        uint256 count = _baseLine[modelId].countAt(t);
        if (count != 0) return (true, _baseSplits[modelId][count - 1]);
    }

    /// activeAt 0: none, and the price is 0.
    function tariffAt(uint32 lane, bytes32 modelId, uint64 t)
        external
        view
        returns (uint64 activeAt, uint128 priceIn, uint128 priceOut)
    {
        Timeline.Line storage line = _tariffLine[lane][modelId];
        uint256 count = line.countAt(t);
        if (count == 0) return (0, 0, 0);
        Tariff memory p = _tariffs[lane][modelId][count - 1];
        return (line.times[count - 1], p.priceIn, p.priceOut);
    }

    /// The terms in force at t; the ones before them are those at `activeAt - 1`.
    function adapterAt(bytes32 adapterId, uint64 t) external view returns (Terms memory out) {
        Timeline.Line storage line = _adapterLine[adapterId];
        uint256 count = line.countAt(t);
        if (count == 0) return out;
        Adapter storage a = adapters[adapterId];
        Stored memory s = _terms[adapterId][count - 1];
        out.registered = true;
        out.activeAt = line.times[count - 1];
        out.modelId = a.modelId;
        out.datanetId = a.datanetId;
        out.datanetVersion = s.datanetVersion;
        out.priceIn = s.priceIn;
        out.priceOut = s.priceOut;
        out.split = _splits[adapterId][s.split];
        if (s.parents != 0) out.parents = _parents[adapterId][s.parents];
    }

    function datanetAt(bytes32 id, uint64 t) external view returns (bool registered, DatanetVersion memory d) {
        uint256 count = _datanetLine[id].countAt(t);
        if (count != 0) return (true, _datanetVersions[id][count - 1]);
    }

    /// A version by its number, whether it is active yet or not.
    function datanetVersion(bytes32 id, uint64 version)
        external
        view
        returns (bool registered, DatanetVersion memory d)
    {
        uint256 place = _versionPlace[id][version];
        if (place != 0) return (true, _datanetVersions[id][place - 1]);
    }

    /// EIP-712 digest an owner signs over a manifest.
    function hashPublish(Publish calldata m, SplitEntry[] calldata entries, Parent[] calldata parents)
        public
        view
        returns (bytes32)
    {
        bytes32 split = keccak256(abi.encode(entries));
        bytes32 above = keccak256(abi.encode(parents));
        bytes memory head =
            abi.encode(PUBLISH_TYPE, m.adapterId, m.modelId, m.datanetId, m.datanetVersion, m.owner, m.priceIn);
        return Canon.typedDigest(
            domain, keccak256(bytes.concat(head, abi.encode(m.priceOut, split, above, m.version)))
        );
    }

    /// EIP-712 digest a datanet's owner signs for an adapter that names it.
    function hashConsent(bytes32 datanetId, uint64 version, bytes32 adapterId) public view returns (bytes32) {
        return Canon.typedDigest(domain, keccak256(abi.encode(CONSENT_TYPE, datanetId, version, adapterId)));
    }

    // ------------------------------------------------------------ inside

    function _pushPolicy(Policy memory p, uint64 activeAt) private {
        if (uint256(p.base) + p.adapters + p.operator + p.protocol != BPS) revert BadPolicy();
        if (p.protocol < protocolBpsMin || p.treasury == address(0)) revert BadPolicy();
        p.activeAt = activeAt;
        _policyLine.push(activeAt);
        _policies.push(p);
        emit PolicySet(p.base, p.adapters, p.operator, p.protocol, p.treasury, activeAt);
    }

    function _pushBase(bytes32 modelId, SplitEntry[] calldata entries, uint64 activeAt) private {
        _putSplit(_baseSplits[modelId][_baseLine[modelId].push(activeAt)], entries);
        emit BaseSplitSet(modelId, activeAt, entries);
    }

    /// Entries strictly ascending by (role, payee), bps not 0 and 10 000 in all.
    function _putSplit(SplitEntry[] storage list, SplitEntry[] calldata entries) private {
        if (entries.length == 0 || entries.length > ENTRIES_MAX) revert BadSplit(entries.length);
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
            list.push(e);
        }
        if (sum != BPS) revert BadSplit(entries.length);
    }

    /// Parents strictly ascending by id, registered before, and not the adapter itself; returns their list's number.
    /// A depth never falls, so a chain is never longer than DEPTH_MAX at any second.
    function _putParents(bytes32 adapterId, Parent[] calldata parents) private returns (uint16) {
        if (parents.length == 0) return 0;
        if (parents.length > PARENTS_MAX) revert BadParent(parents.length);
        Parent[] storage list = _parents[adapterId][++_parentLists[adapterId]];
        uint256 sum = 0;
        uint256 depth = 0;
        bytes32 last = 0;
        for (uint256 i = 0; i < parents.length; ++i) {
            Parent calldata p = parents[i];
            Adapter storage above = adapters[p.adapterId];
            if (p.adapterId == adapterId || p.adapterId <= last || p.bps == 0 || above.owner == address(0)) {
                revert BadParent(i);
            }
            last = p.adapterId;
            sum += p.bps;
            if (above.depth >= depth) depth = above.depth + 1;
            above.isParent = true;
            list.push(p);
        }
        if (sum > PARENTS_BPS_MAX || depth > DEPTH_MAX) revert BadParent(parents.length);
        Adapter storage a = adapters[adapterId];
        if (depth > a.depth) a.depth = uint8(depth);
        return _parentLists[adapterId];
    }

    function _putManifest(Stored memory s, Publish calldata m, SplitEntry[] calldata entries, uint64 activeAt)
        private
    {
        (s.priceIn, s.priceOut, s.datanetVersion) = (uint80(m.priceIn), uint80(m.priceOut), m.datanetVersion);
        s.split += 1;
        _putSplit(_splits[m.adapterId][s.split], entries);
        _pushTerms(m.adapterId, s, activeAt);
    }

    function _pushTerms(bytes32 adapterId, Stored memory s, uint64 activeAt) private {
        _terms[adapterId][_adapterLine[adapterId].push(activeAt)] = s;
        emit TermsSet(
            adapterId,
            activeAt,
            s.datanetVersion,
            s.priceIn,
            s.priceOut,
            _splits[adapterId][s.split],
            _parents[adapterId][s.parents]
        );
    }

    function _newest(bytes32 adapterId) private view returns (Stored memory) {
        return _terms[adapterId][_adapterLine[adapterId].times.length - 1];
    }

    function _pushDatanet(bytes32 id, DatanetVersion memory d) private {
        if (d.documentRoot == 0 || d.ownerRoot == 0) revert BadValue();
        if (d.owners == 0 || d.owners > d.documents || d.documents > DOCUMENTS_MAX) revert BadValue();
        if (rootRegisteredAt[d.documentRoot] == 0) rootRegisteredAt[d.documentRoot] = uint64(block.timestamp);
        _versionPlace[id][d.version] = _datanetLine[id].push(d.activeAt) + 1;
        _datanetVersions[id].push(d);
        emit DatanetSet(
            id, d.version, d.activeAt, d.documentRoot, d.ownerRoot, d.documents, d.owners, d.tokenizerDigest
        );
    }

    function _checkPrices(uint128 priceIn, uint128 priceOut) private pure {
        if (priceIn >> 80 != 0 || priceOut >> 80 != 0) revert BadValue();
    }

    function _checkManifest(
        Publish calldata m,
        SplitEntry[] calldata entries,
        Parent[] calldata parents,
        address owner,
        bytes calldata ownerSignature
    ) private view returns (bytes32 digest) {
        _checkPrices(m.priceIn, m.priceOut);
        digest = hashPublish(m, entries, parents);
        if (msg.sender != owner && !SignatureChecker.isValidSignatureNow(owner, digest, ownerSignature)) {
            revert BadOwnerSignature();
        }
    }

    function _checkConsent(Publish calldata m, bytes calldata datanetConsent) private view {
        if (m.datanetId == 0) {
            if (m.datanetVersion != 0) revert BadValue();
            return;
        }
        if (_versionPlace[m.datanetId][m.datanetVersion] == 0) revert Unknown(m.datanetId);
        address owner = datanets[m.datanetId].owner;
        if (msg.sender == owner) return;
        bytes32 digest = hashConsent(m.datanetId, m.datanetVersion, m.adapterId);
        if (!SignatureChecker.isValidSignatureNow(owner, digest, datanetConsent)) revert BadDatanetConsent();
    }
}
