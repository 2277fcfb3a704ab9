// The files of weights_tools/networks/, as CMake puts them into the program (weights_tools/CMakeLists.txt).
#pragma once

#include <span>
#include <string_view>

namespace vesal::weights {

struct NameMapData {
  std::string_view file;  // "meshnet.json"
  std::string_view json;
};

// In the order of their names.
std::span<const NameMapData> name_map_data();

}  // namespace vesal::weights
