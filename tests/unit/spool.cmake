rs_unit_test(spool rs_spool)
rs_fuzz_target(spool rs_spool)
