# The worker's pure parts, and the tools of tests/settle: one makes lanes, one audits.
add_executable(lane_tool settle/lane_tool.c)
target_link_libraries(lane_tool PRIVATE rs_spool rs_chain)
add_executable(audit_tool settle/audit_tool.c)
target_link_libraries(audit_tool PRIVATE rs_audit)
add_library(clock_shift MODULE settle/clock_shift.c)
set_target_properties(clock_shift PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set_target_properties(lane_tool audit_tool PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

rs_unit_test(settle_settings rs_settle)
rs_unit_test(settle_archive rs_audit)
rs_unit_test(settle_lanes rs_settle rs_spool PkgConfig::SODIUM)
# On a simulated chain: the test's own JSON-RPC functions and clock take the libraries' place.
foreach(name sender sender_fuzz)
  rs_unit_test(${name} rs_settle)
  if(NOT RS_FUZZ)
    target_sources(test_${name} PRIVATE unit/chain_sim.c unit/sender_rig.c)
  endif()
endforeach()
