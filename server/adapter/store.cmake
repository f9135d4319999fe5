pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
add_library(rs_adapter STATIC composition.c catalog.c loader.c store.c)
target_link_libraries(rs_adapter PUBLIC rs_peft rs_base PkgConfig::SODIUM Threads::Threads)
