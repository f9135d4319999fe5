rs_unit_test(spool rs_spool)
rs_fuzz_target(spool rs_spool)
pkg_check_modules(HIREDIS REQUIRED IMPORTED_TARGET hiredis)
rs_unit_test(ship rs_ship rs_spool rs_base PkgConfig::HIREDIS)
