# The engine's tests share a world: a tiny random model, scripted adapters (engine_world*.c).
if(NOT RS_FUZZ)
  pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
  add_library(rs_engine_world STATIC unit/engine_world.c unit/engine_world_store.c unit/late_backend.c)
  target_link_libraries(rs_engine_world PUBLIC rs_engine rs_kernels rs_base PkgConfig::CMOCKA
    PkgConfig::SODIUM m)
  foreach(name kv sched batch stop request engine engine_keys engine_life engine_share engine_sim)
    rs_unit_test(${name} rs_engine_world)
  endforeach()
  add_executable(bench_engine bench/bench_engine.c)
  target_link_libraries(bench_engine PRIVATE rs_engine_world)
  set_target_properties(bench_engine PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endif()
