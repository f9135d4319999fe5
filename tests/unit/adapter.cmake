# Unit tests of server/adapter.
rs_unit_test(peft rs_peft)
rs_fuzz_target(peft rs_peft)
if(EXISTS ${CMAKE_CURRENT_LIST_DIR}/adapter_store.cmake)
  include(${CMAKE_CURRENT_LIST_DIR}/adapter_store.cmake)
endif()
