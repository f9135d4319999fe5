# PEFT adapter directories: reading, checking, content id, device form.
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(SODIUM REQUIRED IMPORTED_TARGET libsodium)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
add_library(rs_peft STATIC peft.c peft_config.c peft_match.c peft_id.c peft_pack.c peft_reader.c
  seal.c transpose.c)
target_link_libraries(rs_peft PUBLIC rs_model rs_base PkgConfig::JANSSON PkgConfig::SODIUM m
  PRIVATE PkgConfig::PCRE2)
