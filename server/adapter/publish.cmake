add_library(rs_publish STATIC manifest.c publish.c)
target_link_libraries(rs_publish PUBLIC rs_adapter rs_peft rs_chain rs_base)
