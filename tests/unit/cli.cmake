# The command line's parts that need no process, server or chain.
rs_unit_test(cli rs_cli)
rs_fuzz_target(inputs rs_cli rs_gain rs_base)
