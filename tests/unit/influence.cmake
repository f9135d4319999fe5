# Unit tests of server/influence.
pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
foreach(name job jobstore gain shares evidence build lookup recorder)
  rs_unit_test(${name} rs_recorder rs_engine rs_adapter rs_chain rs_spool rs_base PkgConfig::SODIUM)
endforeach()
rs_unit_test(spans rs_influence rs_base PkgConfig::SODIUM)
rs_fuzz_target(spans rs_influence rs_base PkgConfig::SODIUM)
rs_fuzz_target(job rs_influence rs_engine rs_adapter rs_chain rs_base)
