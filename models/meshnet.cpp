#include "models/meshnet.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/profiler.hpp"
#include "models/metadata_reader.hpp"
#include "models/presets.hpp"

namespace vesal::models {
namespace {

using kernels::Activation;

constexpr std::array kActivations{Activation::relu, Activation::elu, Activation::gelu};
// The names that files use; their order is that of the enumerators and of kActivations.
constexpr std::array<std::string_view, 3> kActivationNames{"relu", "elu", "gelu"};
constexpr std::array<std::string_view, 2> kNormNames{"none", "channel"};
constexpr std::array<std::string_view, 2> kNamingNames{"flat", "blocks"};

// Beyond these no file is believed. Labels have 8 bits.
constexpr int64_t kMostChannels = 4096;
constexpr int64_t kMostClasses = 256;
constexpr size_t kMostLayers = 1024;
constexpr int kLargestDilation = 4096;

const std::vector<MeshNetConfig>& presets() {
  static const std::vector<MeshNetConfig> table = [] {
    const MeshNetConfig grey_white{.preset = "meshnet-gw"};
    MeshNetConfig eighteen{.preset = "meshnet-18", .channels = 21, .classes = 18};
    eighteen.activation = Activation::elu;
    MeshNetConfig mindgrab{.preset = "mindgrab", .channels = 15, .classes = 2};
    mindgrab.dilations.clear();
    for (int time = 0; time < 5; ++time) {
      mindgrab.dilations.insert(mindgrab.dilations.end(), {16, 8, 4, 2, 1});
    }
    mindgrab.activation = Activation::gelu;
    mindgrab.bias = false;
    mindgrab.norm = MeshNetConfig::Norm::channel;
    mindgrab.naming = MeshNetConfig::Naming::blocks;
    return std::vector<MeshNetConfig>{grey_white, eighteen, mindgrab};
  }();
  return table;
}

size_t index_of(Activation activation) {
  const auto* found = std::find(kActivations.begin(), kActivations.end(), activation);
  check<UsageError>(found != kActivations.end(), "meshnet: activation: expected relu, elu or gelu");
  return static_cast<size_t>(found - kActivations.begin());
}

}  // namespace

MeshNet::Convolution MeshNet::make_convolution(const layers::ParameterBuilder& builder, int64_t in,
                                               int64_t out, int kernel, int dilation, bool with_bias) {
  // PyTorch's default: uniform within 1 / sqrt(fan_in).
  const float bound = 1.0f / std::sqrt(static_cast<float>(in * kernel * kernel * kernel));
  const int padding = kernel / 2 * dilation;
  Convolution convolution;
  convolution.weight = builder.uniform("weight", {out, kernel, kernel, kernel, in}, bound, true,
                                       layers::ParameterLayout::convolution);
  convolution.bias = with_bias ? builder.uniform("bias", {out}, bound, false) : nullptr;
  convolution.geometry = {.kernel = {kernel, kernel, kernel},
                          .stride = {1, 1, 1},
                          .padding = {padding, padding, padding},
                          .dilation = {dilation, dilation, dilation}};
  return convolution;
}

MeshNet::MeshNet(DeviceContext& context, const MeshNetConfig& config, std::optional<uint64_t> seed)
    : config_(config) {
  check<UsageError>(config.in_channels >= 1 && config.channels >= 1 && config.classes >= 1,
                    "meshnet: ", config.in_channels, " input channels, ", config.channels, " channels, ",
                    config.classes, " classes: expected at least 1 of each");
  check<UsageError>(!config.dilations.empty() && std::all_of(config.dilations.begin(), config.dilations.end(),
                                                             [](int dilation) { return dilation >= 1; }),
                    "meshnet: dilations: expected one or more, each at least 1");
  index_of(config.activation);
  const layers::ParameterBuilder root = layers::ParameterBuilder(context, store_, seed).scope("model");
  const bool flat = config.naming == MeshNetConfig::Naming::flat;
  // In a flat sequence a norm and an activation follow each convolution.
  const size_t step = !flat ? 1 : config.norm == MeshNetConfig::Norm::none ? 2 : 3;
  int64_t in = config.in_channels;
  for (size_t layer = 0; layer < config.dilations.size(); ++layer) {
    const layers::ParameterBuilder place = root.scope(std::to_string(layer * step));
    convolutions_.push_back(make_convolution(flat ? place : place.scope("0"), in, config.channels, 3,
                                             config.dilations[layer], config.bias));
    in = config.channels;
  }
  convolutions_.push_back(make_convolution(root.scope(std::to_string(config.dilations.size() * step)), in,
                                           config.classes, 1, 1, true));
}

Variable MeshNet::forward(DeviceContext& context, const Tensor& volume, const Options& options) const {
  VESAL_RANGE("MeshNet::forward");
  const AllocationTag tag("activations");
  check<ShapeError>(volume.rank() == 5 && volume.size(4) == config_.in_channels,
                    "meshnet: expected a volume [N, D, H, W, ", config_.in_channels, "], found ",
                    to_string(volume.shape()));
  const auto total = static_cast<int64_t>(convolutions_.size());
  Variable x = layers::convert(context, volume, options.precision);
  for (int64_t i = 0; i < total; ++i) {
    const Convolution& convolution = convolutions_[static_cast<size_t>(i)];
    // Assigned at once, so that an activation goes as soon as the next one is there.
    x = layers::conv3d(context, x, convolution.weight, convolution.bias, convolution.geometry);
    if (i + 1 < total) {
      x = config_.norm == MeshNetConfig::Norm::channel
              ? layers::group_norm(context, x, nullptr, nullptr, config_.channels, config_.activation)
              : layers::activate(context, x, config_.activation);
    }
    if (options.progress) {
      options.progress(i + 1, total);
    }
  }
  return layers::convert(context, x, DType::f32);
}

std::vector<std::string> meshnet_preset_names() { return preset_names(presets()); }

MeshNetConfig meshnet_preset(std::string_view name) { return find_preset(presets(), name); }

ModelMetadata to_metadata(const MeshNetConfig& config) {
  std::string dilations;
  for (const int dilation : config.dilations) {
    dilations += concat(dilations.empty() ? "" : ",", dilation);
  }
  return {{"model", "meshnet"},
          {"preset", config.preset},
          {"in_channels", std::to_string(config.in_channels)},
          {"channels", std::to_string(config.channels)},
          {"classes", std::to_string(config.classes)},
          {"dilations", dilations},
          {"activation", std::string(kActivationNames[index_of(config.activation)])},
          {"bias", config.bias ? "1" : "0"},
          {"norm", std::string(kNormNames[static_cast<size_t>(config.norm)])},
          {"naming", std::string(kNamingNames[static_cast<size_t>(config.naming)])}};
}

MeshNetConfig meshnet_config_from_metadata(const ModelMetadata& metadata) {
  const MetadataReader read(metadata);
  check<FormatError>(read.text("model") == "meshnet", "weights: they are of model \"", read.text("model"),
                     "\", expected meshnet");
  MeshNetConfig config;
  config.preset = read.text("preset");
  config.in_channels = read.number<int64_t>("in_channels", 1, kMostChannels);
  config.channels = read.number<int64_t>("channels", 1, kMostChannels);
  config.classes = read.number<int64_t>("classes", 1, kMostClasses);
  config.dilations = read.list("dilations", kMostLayers, 1, kLargestDilation);
  config.activation = kActivations[read.choice<size_t>("activation", kActivationNames)];
  config.bias = read.number<int>("bias", 0, 1) != 0;
  config.norm = read.choice<MeshNetConfig::Norm>("norm", kNormNames);
  config.naming = read.choice<MeshNetConfig::Naming>("naming", kNamingNames);
  return config;
}

}  // namespace vesal::models
