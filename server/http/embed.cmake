# Files as C arrays, in two roles. Included, it defines
#   rs_embed(OUT PREFIX HEADER FILE...)  append to the list OUT a source for each file of this folder; page.js under the prefix
#                                        page_ is page_page_js and page_page_js_bytes, which HEADER declares
# and as a script it is what the build runs for each:
#   cmake -DIN=file -DTO=file.c -DARRAY=name -DHEADER=path.h -P embed.cmake
if(NOT CMAKE_SCRIPT_MODE_FILE)
  set(RS_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_FILE})
  function(rs_embed out prefix header)
    foreach(file ${ARGN})
      get_filename_component(name ${file} NAME)
      string(MAKE_C_IDENTIFIER ${name} array)
      set(to ${CMAKE_CURRENT_BINARY_DIR}/embed_${prefix}${array}.c)
      get_filename_component(in ${file} ABSOLUTE)
      add_custom_command(OUTPUT ${to}
        COMMAND ${CMAKE_COMMAND} -DIN=${in} -DTO=${to} -DARRAY=${prefix}${array} -DHEADER=${header} -P ${RS_EMBED_SCRIPT}
        DEPENDS ${in} ${RS_EMBED_SCRIPT})
      list(APPEND ${out} ${to})
    endforeach()
    set(${out} ${${out}} PARENT_SCOPE)
  endfunction()
  return()
endif()
file(READ ${IN} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE ${TO} "#include \"${HEADER}\"\n\nconst char ${ARRAY}[] = {\n${bytes}0};\nconst size_t ${ARRAY}_bytes = sizeof(${ARRAY}) - 1;\n")
