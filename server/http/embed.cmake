# Turn a text file into the C array ARRAY and its ARRAY_bytes, which HEADER declares:
#   cmake -DIN=file -DOUT=file.c -DARRAY=name -DHEADER=path.h -P embed.cmake
file(READ ${IN} hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE ${OUT} "#include \"${HEADER}\"\n\nconst char ${ARRAY}[] = {\n${bytes}0};\nconst size_t ${ARRAY}_bytes = sizeof(${ARRAY}) - 1;\n")
