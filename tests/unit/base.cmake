# server/base.
rs_unit_test(base rs_base)
