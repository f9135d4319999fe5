# server/base.
rs_unit_test(base rs_base)
rs_unit_test(json rs_base)
rs_fuzz_target(json rs_base)
