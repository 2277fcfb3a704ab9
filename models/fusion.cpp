#include "models/fusion.hpp"

#include <algorithm>
#include <numeric>

#include "base/profiler.hpp"
#include "layers/losses.hpp"
#include "models/metadata_reader.hpp"
#include "models/presets.hpp"
#include "runtime/checkpoint.hpp"

namespace vesal::models {
namespace {

using layers::ConvNormRelu;
using layers::ParameterBuilder;

enum Modality { kT1n = 0, kT1c = 1, kT2w = 2, kT2f = 3 };

// Two convolutions at one resolution.
struct ConvPair {
  ConvPair(const ParameterBuilder& builder, int64_t in, int64_t out)
      : first(builder, "conv1", "norm1", in, out), second(builder, "conv2", "norm2", out, out) {}
  Variable operator()(DeviceContext& context, const Variable& x) const {
    return second(context, first(context, x));
  }

  ConvNormRelu first, second;
};

// Doubles the resolution, joins the skip, and mixes them.
struct Up {
  Up(const ParameterBuilder& builder, int64_t in, int64_t out, int64_t skip)
      : up(builder.scope("transconv"), in, out), conv(builder, "conv", "norm", out + skip, out) {}
  Variable operator()(DeviceContext& context, const Variable& x, const Variable& skip) const {
    return conv(context, layers::concat_channels(context, up(context, x), skip));
  }

  layers::UpConv3d up;
  ConvNormRelu conv;
};

// Graph reasoning between the branches, then the shared down-convolution.
struct FusionLevel {
  FusionLevel(const ParameterBuilder& builder, const layers::GraphReasoningSettings& settings, int64_t out,
              int stride)
      : reason(builder.scope("reason"), settings),
        down(builder.scope("down"), "conv", "norm", settings.channels, out, 3, stride) {}

  std::pair<Variable, Variable> operator()(DeviceContext& context, const Variable& semantic,
                                           const Variable& edges) const {
    const auto [s, e] = reason(context, semantic, edges);
    const int64_t n = s.size(0);
    const Variable both = down(context, layers::concat_samples(context, s, e));
    return {layers::take_samples(context, both, 0, n), layers::take_samples(context, both, n, 2 * n)};
  }

  layers::GraphReasoning reason;
  ConvNormRelu down;
};

layers::SwinSettings swin_settings(const FusionConfig& config, size_t level) {
  return {.channels = config.embed << level,
          .heads = config.heads[level],
          .window = {config.window, config.window, config.window},
          .padding = config.padding};
}

// Rises linearly from 0 at the first block of the network to config.drop_path at the last one.
std::vector<float> drop_path_rates(const FusionConfig& config, size_t level) {
  const int blocks = std::accumulate(config.depths.begin(), config.depths.end(), 0);
  const int first =
      std::accumulate(config.depths.begin(), config.depths.begin() + static_cast<long>(level), 0);
  std::vector<float> rates;
  for (int i = 0; i < config.depths[level]; ++i) {
    rates.push_back(blocks > 1
                        ? config.drop_path * static_cast<float>(first + i) / static_cast<float>(blocks - 1)
                        : 0.0f);
  }
  return rates;
}

// Which modality feeds each of the two edge inputs: FLAIR, else T2; T1c, else T1. Since a mask is never
// empty, at least one of the two inputs has a source, and so the edge branch never has to be cut off as a
// whole.
std::array<int32_t, 2> edge_sources(const ModalityMask& mask) {
  const auto pick = [&](Modality first, Modality second) {
    return mask[first] ? first : mask[second] ? second : -1;
  };
  return {pick(kT2f, kT2w), pick(kT1c, kT1n)};
}

}  // namespace

struct Fusion::Modules {
  Modules(const ParameterBuilder& root, const FusionConfig& config)
      : stem(root.scope("transformer.patch_embed"), kModalities, 1, config.embed, config.embed_shifts, true),
        source_bias(root.scope("edge.source"), kModalities, config.embed / 2, false),
        edge_first_conv(root.scope("edge.down0.conv1"), 2, config.embed / 2),
        edge_first_norm(root.scope("edge.down0.norm1"), config.embed / 2, kernels::Activation::relu),
        edge_second(root.scope("edge.down0"), "conv2", "norm2", config.embed / 2, config.embed / 2),
        edge_last(root.scope("edge"), "conv", "norm", 4 * config.embed, 8 * config.embed),
        head(root.scope("head"), config.embed / 2, 3) {
    const int64_t e = config.embed;
    for (size_t level = 0; level < 4; ++level) {
      const int64_t channels = e << level;
      const std::string index = std::to_string(level);
      const ParameterBuilder layer = root.scope("transformer.layers").scope(index);
      stages.emplace_back(layer, swin_settings(config, level), drop_path_rates(config, level));
      if (level < 3) {
        merges.emplace_back(layer.scope("downsample"), 1, channels, 2 * channels, config.merge_shifts, false);
        edge_levels.emplace_back(root.scope("edge.down" + std::to_string(level + 1)), channels / 2, channels);
      }
      norms.emplace_back(root.scope("transformer.norm" + index), channels);
      const layers::GraphReasoningSettings graph{
          .channels = channels, .neighbours = config.neighbours, .weights = config.edge_weights};
      fusions.emplace_back(root.scope("fusion" + std::to_string(level + 1)), graph,
                           level < 3 ? 2 * channels : channels, level < 3 ? 2 : 1);
    }
    ups.emplace_back(root.scope("decoder.up1"), 8 * e, 4 * e, 4 * e);
    ups.emplace_back(root.scope("decoder.up2"), 4 * e, 2 * e, 2 * e);
    ups.emplace_back(root.scope("decoder.up3"), 2 * e, e, e);
    ups.emplace_back(root.scope("decoder.up4"), e, e / 2, e / 2);
    const std::array<int64_t, 4> edge_channels{8 * e, 4 * e, 2 * e, e};
    for (size_t i = 0; i < 4; ++i) {
      edge_heads.emplace_back(root.scope("edge_head" + std::to_string(i + 1)), edge_channels[i]);
    }
    if (config.deep_supervision) {
      for (int level = 0; level < 3; ++level) {
        deep_heads.emplace_back(root.scope("deep_head" + std::to_string(level + 1)), e << level, 3);
      }
    }
  }

  layers::ShiftedPatch stem;
  std::vector<layers::SwinStage> stages;
  std::vector<layers::ShiftedPatch> merges;
  std::vector<layers::LayerNorm> norms;

  layers::Linear source_bias;  // one row of weights per modality: "which source" of the edge inputs
  layers::Conv3d edge_first_conv;
  layers::InstanceNorm edge_first_norm;
  ConvNormRelu edge_second;
  std::vector<ConvPair> edge_levels;
  ConvNormRelu edge_last;

  std::vector<FusionLevel> fusions;
  std::vector<Up> ups;
  layers::Linear head;
  std::vector<layers::EdgeAttention> edge_heads;  // for strides 16 (used twice), 8, 4, 2
  std::vector<layers::Linear> deep_heads;         // for strides 2, 4, 8
};

Fusion::Fusion(DeviceContext& context, const FusionConfig& config, std::optional<uint64_t> seed)
    : config_(config) {
  check<UsageError>(config.embed >= 2 && config.embed % 2 == 0, "fusion: embed ", config.embed,
                    " must be even and at least 2");
  for (size_t level = 0; level < 4; ++level) {
    check<UsageError>(config.heads[level] >= 1 && (config.embed << level) % config.heads[level] == 0,
                      "fusion: ", config.embed << level, " channels do not divide into ", config.heads[level],
                      " heads");
  }
  modules_ = std::make_unique<Modules>(ParameterBuilder(context, store_, seed), config);
}

Fusion::~Fusion() = default;

FusionOutputs Fusion::forward(DeviceContext& context, const Tensor& volume,
                              std::span<const ModalityMask> masks, const ForwardOptions& options,
                              std::array<float, 3> spacing) const {
  VESAL_RANGE("Fusion::forward");
  const AllocationTag tag("activations");
  check<ShapeError>(volume.rank() == 5 && volume.size(4) == kModalities,
                    "fusion: expected a volume [N, D, H, W, ", kModalities, "], found ",
                    to_string(volume.shape()));
  const int64_t n = volume.size(0);
  const std::array<int64_t, 3> extent{volume.size(1), volume.size(2), volume.size(3)};
  for (const int64_t size : extent) {
    check<ShapeError>(size > 0 && size % kStride == 0, "fusion: extents must be multiples of ", kStride,
                      ", found ", to_string(volume.shape()));
  }
  check<ShapeError>(static_cast<int64_t>(masks.size()) == n, "fusion: ", masks.size(), " modality masks for ",
                    n, " samples");

  std::vector<uint8_t> present;
  std::vector<int32_t> sources;
  std::vector<float> source_flags(static_cast<size_t>(n * kModalities), 0.0f);
  for (size_t sample = 0; sample < masks.size(); ++sample) {
    const ModalityMask& mask = masks[sample];
    check<ShapeError>(std::any_of(mask.begin(), mask.end(), [](uint8_t m) { return m != 0; }),
                      "fusion: sample ", sample, " has no modality at all");
    for (const uint8_t m : mask) {
      present.push_back(m ? 1 : 0);
    }
    for (const int32_t source : edge_sources(mask)) {
      sources.push_back(source);
      if (source >= 0) {
        source_flags[sample * kModalities + static_cast<size_t>(source)] = 1.0f;
      }
    }
  }
  const Tensor mask = Tensor::from_host(context, present, {n, kModalities});
  const Tensor routing = Tensor::from_host(context, sources, {n, 2});
  const Modules& m = *modules_;
  const Tensor image = layers::convert(context, volume, options.precision).value();

  // One part of the network, run again in the backward pass where memory is to be saved.
  const auto part = [&](const std::vector<Variable>& inputs, Block block) {
    return options.recompute ? checkpoint(context, inputs, std::move(block)) : block(context, inputs);
  };

  // Edge encoder: e[0] at full resolution ... e[4] at stride 16.
  std::vector<Variable> e;
  {
    const Variable input = layers::route_channels(context, image, routing);
    const Variable flags = layers::convert(
        context, Tensor::from_host(context, source_flags, {n, kModalities}), options.precision);
    e.push_back(
        part({input, flags}, [&m](DeviceContext& ctx, std::span<const Variable> x) -> std::vector<Variable> {
          const Variable first =
              layers::add_sample_vector(ctx, m.edge_first_conv(ctx, x[0]), m.source_bias(ctx, x[1]));
          return {m.edge_second(ctx, m.edge_first_norm(ctx, first))};
        })[0]);
    const auto halve = [](DeviceContext& ctx, const Variable& x) {
      return layers::max_pool3d(ctx, x, {2, 2, 2}, {2, 2, 2});
    };
    for (const ConvPair& level : m.edge_levels) {
      e.push_back(
          part({e.back()},
               [&level, halve](DeviceContext& ctx, std::span<const Variable> x) -> std::vector<Variable> {
                 return {level(ctx, halve(ctx, x[0]))};
               })[0]);
    }
    e.push_back(m.edge_last(context, halve(context, e.back())));
  }

  // Semantic encoder: s[0] at stride 2 ... s[3] at stride 16.
  std::vector<Variable> s;
  {
    Variable x = m.stem(context, image, mask);
    for (size_t level = 0; level < 4; ++level) {
      if (level > 0) {
        x = m.merges[level - 1](context, x);
      }
      x = part({x},
               [&stage = m.stages[level], training = options.training](
                   DeviceContext& ctx, std::span<const Variable> in) -> std::vector<Variable> {
                 return {stage(ctx, in[0], training)};
               })[0];
      s.push_back(m.norms[level](context, x));
    }
  }

  // Fusion: a and b are the fused semantic and edge maps after each level.
  Variable a;
  std::vector<Variable> b;
  for (size_t level = 0; level < 4; ++level) {
    const Variable semantic = level == 0 ? s[0] : layers::add(context, a, s[level]);
    const Variable edges = level == 0 ? e[1] : layers::add(context, b.back(), e[level + 1]);
    const std::vector<Variable> next =
        part({semantic, edges},
             [&fusion = m.fusions[level]](DeviceContext& ctx,
                                          std::span<const Variable> x) -> std::vector<Variable> {
               auto [fused_a, fused_b] = fusion(ctx, x[0], x[1]);
               return {fused_a, fused_b};
             });
    a = next[0];
    b.push_back(next[1]);
  }

  FusionOutputs outputs;
  const auto up = [&](size_t index, const Variable& x, const Variable& skip) {
    return part(
        {x, skip},
        [&up = m.ups[index]](DeviceContext& ctx, std::span<const Variable> in) -> std::vector<Variable> {
          return {up(ctx, in[0], in[1])};
        })[0];
  };
  const Variable d3 = up(0, a, s[2]);
  const Variable d2 = up(1, d3, s[1]);
  const Variable d1 = up(2, d2, s[0]);
  const Variable d0 = up(3, d1, e[0]);
  const auto logits = [&](const Variable& x) { return layers::convert(context, x, DType::f32); };
  outputs.segmentation = logits(m.head(context, d0));
  if (options.training && config_.deep_supervision) {
    outputs.deep = {logits(m.deep_heads[0](context, d1)), logits(m.deep_heads[1](context, d2)),
                    logits(m.deep_heads[2](context, d3))};
  }
  if (options.edges) {
    const auto head = [&](size_t index, const Variable& x) {
      return layers::resize(context, logits(m.edge_heads[index](context, x, spacing)), extent);
    };
    Variable sum = layers::add(context, head(0, b[3]), head(0, b[2]));
    sum = layers::add(context, sum, head(1, b[1]));
    sum = layers::add(context, sum, head(2, b[0]));
    outputs.edges = layers::add(context, sum, head(3, e[1]));
  }
  return outputs;
}

FusionLoss fusion_loss(DeviceContext& context, const FusionOutputs& outputs, const Tensor& labels,
                       const FusionLossSettings& settings) {
  VESAL_RANGE("fusion_loss");
  const AllocationTag tag("activations");
  const layers::RegionLossSettings region{settings.dice_weight, settings.bce_weight, settings.batch_dice};
  const Tensor targets = layers::region_targets(context, labels);
  FusionLoss loss;
  loss.segmentation = layers::region_loss(context, outputs.segmentation, targets, region, settings.scale);
  float weight = 0.5f * settings.scale;
  for (const Variable& logits : outputs.deep) {
    const Variable full = layers::resize(context, logits, {labels.size(1), labels.size(2), labels.size(3)});
    loss.deep.push_back(layers::region_loss(context, full, targets, region, weight));
    weight *= 0.5f;
  }
  if (outputs.edges.value().defined()) {
    loss.edge = layers::edge_loss(context, outputs.edges, layers::edge_targets(context, labels),
                                  settings.edge_weight * settings.scale);
  }
  return loss;
}

// ---- configuration
// ----------------------------------------------------------------------------------------------------

namespace {

const std::vector<FusionConfig>& presets() {
  static const std::vector<FusionConfig> table = [] {
    FusionConfig micro{.preset = "fusion-micro", .embed = 16, .depths = {1, 1, 2, 1}, .heads = {1, 2, 4, 8}};
    micro.window = 2;
    FusionConfig tiny{.preset = "fusion-tiny", .embed = 24, .depths = {2, 2, 2, 2}, .heads = {2, 4, 8, 16}};
    FusionConfig base{.preset = "fusion-base", .embed = 48, .depths = {2, 2, 6, 2}, .heads = {3, 6, 12, 24}};
    base.drop_path = 0.1f;
    return std::vector<FusionConfig>{micro, tiny, base};
  }();
  return table;
}

std::string join(const std::array<int, 4>& values) {
  return concat(values[0], ",", values[1], ",", values[2], ",", values[3]);
}

// The names that files use; their order is that of the enumerators.
constexpr std::array<std::string_view, 6> kShiftNames{"corner8",   "face6",     "tetra4",
                                                      "diagonal4", "cardinal4", "cardinal8"};
constexpr std::array<std::string_view, 2> kPaddingNames{"attend", "masked"};
constexpr std::array<std::string_view, 2> kEdgeWeightNames{"symmetric", "attention"};

}  // namespace

std::vector<std::string> fusion_preset_names() { return preset_names(presets()); }

FusionConfig fusion_preset(std::string_view name) { return find_preset(presets(), name); }

ModelMetadata to_metadata(const FusionConfig& config) {
  return {{"model", "fusion"},
          {"preset", config.preset},
          {"embed", std::to_string(config.embed)},
          {"depths", join(config.depths)},
          {"heads", join(config.heads)},
          {"window", std::to_string(config.window)},
          {"embed_shifts", std::string(kShiftNames[static_cast<size_t>(config.embed_shifts)])},
          {"merge_shifts", std::string(kShiftNames[static_cast<size_t>(config.merge_shifts)])},
          {"padding", std::string(kPaddingNames[static_cast<size_t>(config.padding)])},
          {"neighbours", std::to_string(config.neighbours)},
          {"edge_weights", std::string(kEdgeWeightNames[static_cast<size_t>(config.edge_weights)])},
          {"drop_path", concat(config.drop_path)},
          {"deep_supervision", config.deep_supervision ? "1" : "0"}};
}

FusionConfig fusion_config_from_metadata(const ModelMetadata& metadata) {
  const MetadataReader read(metadata);
  check<FormatError>(read.text("model") == "fusion", "weights: they are of model \"", read.text("model"),
                     "\", expected fusion");
  FusionConfig config;
  config.preset = read.text("preset");
  config.embed = read.number<int64_t>("embed");
  config.depths = read.four("depths");
  config.heads = read.four("heads");
  config.window = read.number<int>("window");
  config.embed_shifts = read.choice<kernels::ShiftSet>("embed_shifts", kShiftNames);
  config.merge_shifts = read.choice<kernels::ShiftSet>("merge_shifts", kShiftNames);
  config.padding = read.choice<kernels::PaddingMode>("padding", kPaddingNames);
  config.neighbours = read.number<int>("neighbours");
  config.edge_weights = read.choice<layers::EdgeWeights>("edge_weights", kEdgeWeightNames);
  config.drop_path = read.number<float>("drop_path");
  config.deep_supervision = read.number<int>("deep_supervision") != 0;
  return config;
}

}  // namespace vesal::models
