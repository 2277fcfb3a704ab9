# What a person building Vesal can choose.
set(VESAL_CPU_ARCH "native" CACHE STRING "-march for host code: native, or x86-64-v3 for a binary that travels; empty for the compiler's default")
set(VESAL_SANITIZE "" CACHE STRING "-fsanitize list for host code and emulated kernels, e.g. address,undefined")
option(VESAL_RACE "Check every memory access of the emulated kernels (docs/simt.md); GCC only" OFF)
option(VESAL_COVERAGE "Count executed lines with gcov (tests/coverage); GCC only" OFF)
option(VESAL_FUZZ "Build the libFuzzer programs of tests/fuzz and nothing else (scripts/fuzz); Clang only" OFF)
option(VESAL_BUILD_TESTS "Build the tests" ON)
option(VESAL_BUILD_BENCH "Build the benchmarks" OFF)
option(VESAL_WERROR "Treat warnings as errors" ON)
set(VESAL_CUDA "AUTO" CACHE STRING "Build the CUDA backend: AUTO (when a toolkit is found), ON, OFF")

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)

find_program(VESAL_CCACHE ccache)
if(VESAL_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${VESAL_CCACHE})
endif()
set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CURRENT_LIST_DIR}/ptxas_log.sh ${VESAL_CCACHE})
if(NOT VESAL_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CURRENT_LIST_DIR}/ptxas_log.sh)
endif()

# Flags that every host translation unit gets. Contraction is off so that the emulator and the references round as
# written; vectorised CPU code asks for fused multiply-add where it wants one.
add_library(vesal_flags INTERFACE)
target_include_directories(vesal_flags INTERFACE $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
target_compile_options(vesal_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -fno-math-errno -ffp-contract=off>)
if(VESAL_CPU_ARCH)
  target_compile_options(vesal_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=${VESAL_CPU_ARCH}>)
endif()
if(VESAL_WERROR)
  target_compile_options(vesal_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(VESAL_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "VESAL_FUZZ=ON needs Clang, which has libFuzzer: -DCMAKE_CXX_COMPILER=clang++-14.")
  endif()
  set(VESAL_SANITIZE address,undefined)
endif()
if(VESAL_SANITIZE)
  target_compile_options(vesal_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${VESAL_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1>)
  target_link_options(vesal_flags INTERFACE -fsanitize=${VESAL_SANITIZE})
  target_compile_definitions(vesal_flags INTERFACE VESAL_SANITIZED=1)
endif()

# At -O1 a line that was executed counts as that: more optimisation merges and moves lines. Counters of several threads
# are atomic.
if(VESAL_COVERAGE)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    message(FATAL_ERROR "VESAL_COVERAGE=ON needs GCC.")
  endif()
  target_compile_options(vesal_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:--coverage -fprofile-abs-path -fprofile-update=prefer-atomic -O1>)
  target_link_options(vesal_flags INTERFACE --coverage)
endif()

# The race lane: what instruments emulated kernels. The hooks behind it are ours, so libtsan is not linked. At -O1 the
# accesses are those of the source: -O2 moves loads to where the source has none and merges stores, and takes twice as
# long to compile. Line tables are for the reports.
if(VESAL_RACE)
  if(VESAL_SANITIZE OR NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    message(FATAL_ERROR "VESAL_RACE=ON needs GCC, and no VESAL_SANITIZE: both instrument the same accesses.")
  endif()
  set(VESAL_SIMT_OPTIONS -O1 -g -fsanitize=thread --param=tsan-instrument-func-entry-exit=0)
endif()

# Emulated kernels with the fused multiply-adds that nvcc makes: docs/simt.md.
option(VESAL_SIMT_CONTRACT "Contract a * b + c in emulated kernels" OFF)
if(VESAL_SIMT_CONTRACT)
  list(APPEND VESAL_SIMT_OPTIONS -ffp-contract=fast)
endif()
