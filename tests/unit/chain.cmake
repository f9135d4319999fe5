# nettle is an oracle only: its permutation is another author's Keccak-f[1600].
pkg_check_modules(NETTLE REQUIRED IMPORTED_TARGET nettle)

rs_unit_test(keccak rs_chain PkgConfig::NETTLE)
rs_unit_test(secp rs_chain)
rs_unit_test(canon rs_chain)
rs_unit_test(tree rs_chain)
rs_unit_test(golden rs_chain)
rs_unit_test(calls rs_chain)
rs_unit_test(rlp rs_chain)
rs_unit_test(abi rs_chain)
rs_unit_test(tx rs_chain)
rs_unit_test(reward rs_chain)
rs_unit_test(rpc rs_chain)
rs_unit_test(registry rs_registry)
rs_unit_test(keystore rs_chain)

rs_fuzz_target(rlp rs_chain)
rs_fuzz_target(record rs_chain)
