pkg_check_modules(HIREDIS REQUIRED IMPORTED_TARGET hiredis)
add_library(rs_ship STATIC ship.c stream.c)
target_link_libraries(rs_ship PUBLIC rs_spool PRIVATE PkgConfig::HIREDIS)
