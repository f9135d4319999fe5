# Unit tests of server/text; text_tool is what the judges tests/oracle/text_*.py drive.
rs_unit_test(tokenizer rs_text)
rs_unit_test(detok rs_text)
rs_unit_test(chat rs_text)
rs_fuzz_target(tokenizer rs_text)
rs_fuzz_target(chat rs_text)
add_executable(text_tool oracle/text_tool.c)
target_link_libraries(text_tool PRIVATE rs_text)
set_target_properties(text_tool PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
