#include "models/catalogue.hpp"

#include <algorithm>
#include <array>

#include "base/error.hpp"
#include "models/fusion.hpp"
#include "models/fusion_2d.hpp"
#include "models/meshnet.hpp"

namespace vesal::models {
namespace {

// One kind of network.
struct Kind {
  std::string_view model;  // metadata's "model"
  std::vector<std::string> (*presets)();
  std::unique_ptr<Model> (*by_name)(DeviceContext&, std::string_view, std::optional<uint64_t>);
  std::unique_ptr<Model> (*by_metadata)(DeviceContext&, const ModelMetadata&, std::optional<uint64_t>);
};

template <class Network, auto preset, auto from_metadata>
constexpr Kind kind(std::string_view model, std::vector<std::string> (*presets)()) {
  return {model, presets,
          [](DeviceContext& context, std::string_view name, std::optional<uint64_t> seed)
              -> std::unique_ptr<Model> { return std::make_unique<Network>(context, preset(name), seed); },
          [](DeviceContext& context, const ModelMetadata& metadata,
             std::optional<uint64_t> seed) -> std::unique_ptr<Model> {
            return std::make_unique<Network>(context, from_metadata(metadata), seed);
          }};
}

constexpr std::array kKinds{
    kind<Fusion, fusion_preset, fusion_config_from_metadata>("fusion", fusion_preset_names),
    kind<Fusion2d, fusion_2d_preset, fusion_2d_config_from_metadata>("fusion-2d", fusion_2d_preset_names),
    kind<MeshNet, meshnet_preset, meshnet_config_from_metadata>("meshnet", meshnet_preset_names)};

template <class Names>
std::string joined(const Names& names) {
  std::string text;
  for (const auto& name : names) {
    text += (text.empty() ? "" : ", ") + std::string(name);
  }
  return text;
}

}  // namespace

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const Kind& kind : kKinds) {
    for (std::string& name : kind.presets()) {
      names.push_back(std::move(name));
    }
  }
  return names;
}

std::unique_ptr<Model> make_model(DeviceContext& context, std::string_view name,
                                  std::optional<uint64_t> seed) {
  for (const Kind& kind : kKinds) {
    const std::vector<std::string> presets = kind.presets();
    if (std::find(presets.begin(), presets.end(), name) != presets.end()) {
      return kind.by_name(context, name, seed);
    }
  }
  throw UsageError(concat("model: found ", name, ", expected one of ", joined(model_names())));
}

std::unique_ptr<Model> make_model(DeviceContext& context, const ModelMetadata& metadata,
                                  std::optional<uint64_t> seed) {
  const auto model = metadata.find("model");
  check<FormatError>(model != metadata.end(), "weights: metadata field model is missing");
  std::vector<std::string_view> known;
  for (const Kind& kind : kKinds) {
    if (kind.model == model->second) {
      return kind.by_metadata(context, metadata, seed);
    }
    known.push_back(kind.model);
  }
  throw FormatError(
      concat("weights: metadata field model: found ", model->second, ", expected one of ", joined(known)));
}

}  // namespace vesal::models
