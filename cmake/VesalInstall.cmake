# Installation: the program, the headers as the source includes them (include/vesal/kernels/..., used with
# -I include/vesal), the static libraries, and a package config, so that
#   find_package(vesal REQUIRED)
#   target_link_libraries(mine PRIVATE vesal::models)
# works elsewhere.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(libraries base kernels runtime layers models weights_tools imaging training)
set(targets vesal)
foreach(library IN LISTS libraries)
  list(APPEND targets vesal_${library})
endforeach()

# Libraries that ours link and that come from plain find_library calls: they travel in the export set as interfaces of
# system libraries, which vesal-config.cmake finds again.
install(TARGETS ${targets} EXPORT vesal-targets
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/vesal)
# Part of every library's interface on paper (flags are private, but a static library records whom it was linked with).
install(TARGETS vesal_flags vesal_nifti EXPORT vesal-targets)

foreach(folder IN LISTS libraries)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/vesal
    FILES_MATCHING PATTERN "*.hpp" PATTERN "*_cases.hpp" EXCLUDE)
endforeach()

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/vesal)
install(EXPORT vesal-targets NAMESPACE vesal:: DESTINATION ${package_folder})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/vesal-config.cmake.in
  ${CMAKE_BINARY_DIR}/vesal-config.cmake INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/vesal-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/vesal-config.cmake ${CMAKE_BINARY_DIR}/vesal-config-version.cmake
  DESTINATION ${package_folder})
foreach(document LICENSE README.md)
  if(EXISTS ${PROJECT_SOURCE_DIR}/${document})
    install(FILES ${PROJECT_SOURCE_DIR}/${document} DESTINATION ${CMAKE_INSTALL_DOCDIR})
  endif()
endforeach()
