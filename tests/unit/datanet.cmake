# Unit tests of server/datanet.
foreach(name rows training)
  rs_unit_test(${name} rs_datanet)
endforeach()
rs_fuzz_target(datanet rs_datanet)
