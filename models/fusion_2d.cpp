#include "models/fusion_2d.hpp"

#include <array>
#include <tuple>

#include "base/profiler.hpp"
#include "layers/swin.hpp"
#include "models/metadata_reader.hpp"
#include "models/presets.hpp"

namespace vesal::models {
namespace {

using layers::ParameterBuilder;

constexpr std::array<int, 4> kDepths{2, 2, 6, 2};
constexpr std::array<int, 4> kHeads{4, 8, 16, 32};
constexpr int kBlocks = 12;
constexpr int64_t kEmbed = 128;
constexpr int64_t kConstructorSide = 112;  // of the token grid at the constructor's 224 x 224

// Four stages between patch tokenizations, a LayerNorm on each one's result.
struct Swin2d {
  Swin2d(const ParameterBuilder& builder, float drop_path)
      : embed(shifted_patch_2d(builder.scope("patch_embed"), 3, kEmbed)) {
    int block = 0;
    for (size_t i = 0; i < 4; ++i) {
      const ParameterBuilder layer = builder.scope("layers").scope(std::to_string(i));
      const int64_t channels = kEmbed << i;
      std::vector<float> rates;
      for (int j = 0; j < kDepths[i]; ++j) {
        rates.push_back(drop_path * static_cast<float>(block++) / static_cast<float>(kBlocks - 1));
      }
      stages.emplace_back(layer,
                          layers::SwinSettings{.channels = channels,
                                               .heads = kHeads[i],
                                               .window = {1, 7, 7},
                                               .padding = kernels::PaddingMode::attend,
                                               .shift_always = true,
                                               .mask_side = kConstructorSide >> i},
                          rates);
      if (i < 3) {
        merges.push_back(shifted_patch_2d(layer.scope("downsample"), channels, 2 * channels));
      }
    }
    layers::LayerNorm(builder.scope("norm").frozen(), kEmbed << 3);  // in checkpoints; nothing reads it
    for (size_t i = 0; i < 4; ++i) {
      norms.emplace_back(builder.scope("norm" + std::to_string(i)), kEmbed << i);
    }
  }

  std::array<Variable, 4> operator()(DeviceContext& context, const Variable& image, bool training) const {
    std::array<Variable, 4> maps;
    Variable x = embed(context, image);
    for (size_t i = 0; i < 4; ++i) {
      if (i > 0) {
        x = merges[i - 1](context, x);
      }
      x = stages[i](context, x, training);
      maps[i] = norms[i](context, x);
    }
    return maps;
  }

  layers::ShiftedPatch embed;
  std::vector<layers::SwinStage> stages;
  std::vector<layers::ShiftedPatch> merges;
  std::vector<layers::LayerNorm> norms;
};

void check_input(const Variable& x, int64_t channels, const char* what) {
  const Shape& shape = x.shape();
  check<ShapeError>(x.value().rank() == 5 && shape[1] == 1 && shape[4] == channels && shape[2] > 0 &&
                        shape[2] % Fusion2d::kStride == 0 && shape[3] > 0 &&
                        shape[3] % Fusion2d::kStride == 0,
                    "fusion-2d: ", what, ": found ", to_string(shape), ", expected [N, 1, H, W, ", channels,
                    "] with H and W multiples of ", Fusion2d::kStride);
}

}  // namespace

struct Fusion2d::Modules {
  Modules(const ParameterBuilder& root, const Fusion2dConfig& config)
      : edge_encoder(root.scope("cnn")), swin(root.scope("transformer"), config.drop_path) {
    for (size_t i = 0; i < 4; ++i) {
      const int64_t channels = kEmbed << i;
      fusions.emplace_back(root.scope("fusion" + std::to_string(i + 1)), channels,
                           i < 3 ? 2 * channels : channels, config.mfib_layout);
    }
    for (size_t i = 0; i < 4; ++i) {
      const int64_t in = kEmbed << (3 - i);
      ups.emplace_back(root.scope("ups" + std::to_string(i + 1)), in, i < 3 ? in / 2 : 3,
                       i < 3 ? HeadEnd::relu : config.head);
    }
    for (size_t i = 0; i < 4; ++i) {
      edge_heads.emplace_back(root.scope("upe" + std::to_string(i + 1)), kEmbed << (3 - i), config.head,
                              config.gate_eps);
    }
  }

  EdgeEncoder2d edge_encoder;
  Swin2d swin;
  std::vector<FusionLevel2d> fusions;
  std::vector<Up2d> ups;
  std::vector<EdgeSpatialAttention> edge_heads;  // for 1024 channels (used twice), 512, 256, 128
};

Fusion2d::Fusion2d(DeviceContext& context, const Fusion2dConfig& config, std::optional<uint64_t> seed)
    : config_(config), modules_(std::make_unique<Modules>(ParameterBuilder(context, store_, seed), config)) {}

Fusion2d::~Fusion2d() = default;

Fusion2dOutputs Fusion2d::forward(DeviceContext& context, const Variable& semantic, const Variable& edges,
                                  bool training) const {
  VESAL_RANGE("Fusion2d::forward");
  const AllocationTag tag("activations");
  check_input(semantic, 3, "semantic");
  check_input(edges, 2, "edges");
  for (const int axis : {0, 2, 3}) {
    check<ShapeError>(semantic.size(axis) == edges.size(axis), "fusion-2d: semantic ",
                      to_string(semantic.shape()), " and edges ", to_string(edges.shape()),
                      " differ in more than channels");
  }
  const Modules& m = *modules_;
  const std::array<Variable, 4> s = m.swin(context, semantic, training);
  const std::array<Variable, 4> e = m.edge_encoder(context, edges, training);

  Variable a;
  std::array<Variable, 4> b;
  for (size_t i = 0; i < 4; ++i) {
    const Variable x = i == 0 ? s[0] : layers::add(context, a, s[i]);
    const Variable y = i == 0 ? e[0] : layers::add(context, b[i - 1], e[i]);
    std::tie(a, b[i]) = m.fusions[i](context, x, y, training);
  }

  const bool drops =
      config_.dropout == DecoderDropout::always || (config_.dropout == DecoderDropout::training && training);
  Variable d = layers::dropout_channels(context, a, drops ? 0.5f : 0.0f);
  d = m.ups[0](context, d, s[2], training);
  d = m.ups[1](context, d, s[1], training);
  d = m.ups[2](context, d, s[0], training);

  Fusion2dOutputs outputs;
  outputs.segmentation = m.ups[3](context, d, semantic, training);
  const std::array<int64_t, 3> full{1, edges.size(2), edges.size(3)};
  const auto head = [&](size_t index, const Variable& x) {
    return layers::resize(context, m.edge_heads[index](context, x, training), full);
  };
  Variable sum = head(0, b[3]);
  sum = layers::add(context, sum, head(0, b[2]));
  sum = layers::add(context, sum, head(1, b[1]));
  sum = layers::add(context, sum, head(2, b[0]));
  outputs.edges = layers::add(context, sum, head(3, e[0]));
  return outputs;
}

// ---- configuration

namespace {

const std::vector<Fusion2dConfig>& presets() {
  static const std::vector<Fusion2dConfig> table{{.preset = "fusion-2d"},
                                                 {.preset = "fusion-2d-fixed",
                                                  .mfib_layout = layers::MfibLayout::fixed,
                                                  .head = HeadEnd::linear,
                                                  .gate_eps = 1e-12f}};
  return table;
}

// The names that files use; their order is that of the enumerators.
constexpr std::array<std::string_view, 2> kLayoutNames{"original", "fixed"};
constexpr std::array<std::string_view, 2> kHeadNames{"relu", "linear"};
constexpr std::array<std::string_view, 3> kDropoutNames{"training", "always", "off"};

}  // namespace

std::vector<std::string> fusion_2d_preset_names() { return preset_names(presets()); }

Fusion2dConfig fusion_2d_preset(std::string_view name) { return find_preset(presets(), name); }

ModelMetadata to_metadata(const Fusion2dConfig& config) {
  return {{"model", "fusion-2d"},
          {"preset", config.preset},
          {"mfib_layout", std::string(kLayoutNames[static_cast<size_t>(config.mfib_layout)])},
          {"head", std::string(kHeadNames[static_cast<size_t>(config.head)])},
          {"dropout", std::string(kDropoutNames[static_cast<size_t>(config.dropout)])},
          {"gate_eps", concat(config.gate_eps)},
          {"drop_path", concat(config.drop_path)}};
}

Fusion2dConfig fusion_2d_config_from_metadata(const ModelMetadata& metadata) {
  const MetadataReader read(metadata);
  check<FormatError>(read.text("model") == "fusion-2d", "weights: they are of model \"", read.text("model"),
                     "\", expected fusion-2d");
  Fusion2dConfig config;
  config.preset = read.text("preset");
  config.mfib_layout = read.choice<layers::MfibLayout>("mfib_layout", kLayoutNames);
  config.head = read.choice<HeadEnd>("head", kHeadNames);
  config.dropout = read.choice<DecoderDropout>("dropout", kDropoutNames);
  config.gate_eps = read.number("gate_eps", 0.0f, 1.0f);
  config.drop_path = read.number("drop_path", 0.0f, 0.9f);
  return config;
}

}  // namespace vesal::models
