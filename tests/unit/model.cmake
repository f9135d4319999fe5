# Unit tests of server/model, and the logits oracle's C side.
rs_unit_test(safetensors rs_model)
rs_unit_test(config rs_model)
rs_unit_test(rope rs_model)
rs_unit_test(model rs_model)
rs_fuzz_target(safetensors rs_model)
rs_fuzz_target(config rs_model)

# Forward passes without the engine: lib/logits_rig.h. logits_tool is what tests/oracle/logits_golden.py drives.
add_library(rs_logits_rig STATIC lib/logits_rig.c lib/logits_case.c
  ${CMAKE_SOURCE_DIR}/server/engine/forward.c ${CMAKE_SOURCE_DIR}/server/engine/backward.c
  ${CMAKE_SOURCE_DIR}/server/engine/backward_create.c
  ${CMAKE_SOURCE_DIR}/server/engine/resident.c)
target_link_libraries(rs_logits_rig PUBLIC rs_peft rs_kernels rs_model rs_text rs_base m)
add_executable(logits_tool oracle/logits_tool.c)
target_link_libraries(logits_tool PRIVATE rs_logits_rig)
set_target_properties(logits_tool PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
rs_unit_test(logits rs_logits_rig)
if(NOT RS_FUZZ)
  add_library(rs_gradient_rig STATIC lib/gradient_rig.c)
  target_compile_definitions(rs_gradient_rig PRIVATE RS_TEST_DATA="${CMAKE_CURRENT_SOURCE_DIR}/data")
  target_link_libraries(rs_gradient_rig PUBLIC rs_logits_rig PkgConfig::CMOCKA)
endif()
rs_unit_test(backward rs_gradient_rig)
rs_unit_test(train rs_train)
rs_unit_test(value rs_train)
rs_unit_test(tinker rs_train)
rs_fuzz_target(tinker rs_train)
rs_unit_test(factory rs_factory rs_train rs_adapter rs_datanet_store rs_engine rs_kernels rs_base)
