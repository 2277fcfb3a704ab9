// Tables of configurations by name. A configuration's own name is its field `preset`.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"

namespace vesal::models {

template <class Config>
std::vector<std::string> preset_names(const std::vector<Config>& presets) {
  std::vector<std::string> names;
  for (const Config& preset : presets) {
    names.push_back(preset.preset);
  }
  return names;
}

// UsageError lists the names for an unknown one.
template <class Config>
Config find_preset(const std::vector<Config>& presets, std::string_view name) {
  std::string known;
  for (const Config& preset : presets) {
    if (preset.preset == name) {
      return preset;
    }
    known += (known.empty() ? "" : ", ") + preset.preset;
  }
  throw UsageError(concat("model \"", name, "\" is unknown; known: ", known));
}

}  // namespace vesal::models
