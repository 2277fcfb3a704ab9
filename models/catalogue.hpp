// All networks by name.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/model.hpp"

namespace vesal::models {

// The presets of all kinds: "fusion-micro", "fusion-tiny", ...
std::vector<std::string> model_names();

// A network by its preset's name. Its parameters are on the context's device and start from `seed`; without
// one they hold nothing yet, for weights that a file fills. UsageError lists the names for an unknown one.
std::unique_ptr<Model> make_model(DeviceContext& context, std::string_view name,
                                  std::optional<uint64_t> seed);

// The network that metadata() described. FormatError names a field that is missing or bad.
std::unique_ptr<Model> make_model(DeviceContext& context, const ModelMetadata& metadata,
                                  std::optional<uint64_t> seed);

}  // namespace vesal::models
