add_library(rs_adapter STATIC composition.c catalog.c blob_pool.c device_form.c device_tier.c
  loader.c store.c)
target_link_libraries(rs_adapter PUBLIC rs_peft rs_chain rs_base Threads::Threads)
if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/publish.cmake)
  include(publish.cmake)
endif()
