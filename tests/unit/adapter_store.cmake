# Names, residency, compositions, manifests and publishing.
pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
foreach(name blob_pool catalog store loader composition)
  rs_unit_test(${name} rs_adapter rs_peft rs_chain rs_base PkgConfig::SODIUM)
endforeach()
foreach(name manifest publish near)
  rs_unit_test(${name} rs_publish rs_adapter rs_peft rs_chain rs_base PkgConfig::SODIUM)
endforeach()
rs_fuzz_target(manifest rs_publish rs_adapter rs_peft rs_chain rs_base)
