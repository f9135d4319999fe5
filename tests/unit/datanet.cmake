# Unit tests of server/datanet.
foreach(name rows training)
  rs_unit_test(${name} rs_datanet)
endforeach()
rs_unit_test(datanet_store rs_datanet_store rs_datanet)
rs_fuzz_target(datanet rs_datanet)
