# Settings of residuald, and the guard that the allocation test relies on.
rs_unit_test(server_config rs_http rs_base)
rs_unit_test(keys rs_http rs_base PkgConfig::SODIUM)
if(NOT RS_FUZZ)
  target_sources(test_server_config PRIVATE ${CMAKE_SOURCE_DIR}/server/config.c)
  target_sources(test_keys PRIVATE ${CMAKE_SOURCE_DIR}/server/config.c ${CMAKE_SOURCE_DIR}/server/keys.c)
endif()

# Preloaded into an unsanitised residuald by tests/api/test_no_alloc.py; alloc_probe proves that it bites.
if(NOT RS_SANITIZE)
  add_library(alloc_guard SHARED lib/alloc_guard.c)
  set_target_properties(alloc_guard PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_executable(alloc_probe unit/alloc_probe.c)
  target_compile_options(alloc_probe PRIVATE -fno-builtin)
  target_link_libraries(alloc_probe PRIVATE rs_base)
  target_link_options(alloc_probe PRIVATE -rdynamic)
  set_target_properties(alloc_probe PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endif()

# What the Registry says about content.
rs_unit_test(book rs_terms rs_base)
