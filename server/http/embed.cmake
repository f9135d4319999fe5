# Turn a text file into a C array: cmake -DIN=file -DOUT=file.c -P embed.cmake
file(READ ${IN} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE ${OUT} "#include \"server/http/openapi.h\"\n\nconst char openapi_json[] = {\n${bytes}0};\nconst size_t openapi_json_bytes = sizeof(openapi_json) - 1;\n")
