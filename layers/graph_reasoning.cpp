#include "layers/graph_reasoning.hpp"

#include <algorithm>
#include <cmath>

namespace vesal::layers {

GraphReasoning::GraphReasoning(const ParameterBuilder& builder, const GraphReasoningSettings& settings)
    : settings_(settings),
      project_(builder.scope("project"), settings.channels, settings.channels / 2),
      message_(builder.scope("message"), settings.channels / 2, settings.channels / 2, false),
      edge_scale_(builder.constant("edge_scale", {1}, 1.0f)),
      edge_type_(builder.constant("edge_type", {kernels::kOneSetEdgeTypes}, 0.0f)),
      back_(builder.scope("back"), settings.channels / 2, settings.channels),
      norm_(builder.scope("norm"), settings.channels, kernels::Activation::relu) {
  if (settings.weights == EdgeWeights::attention) {
    const int64_t features = settings.channels / 2;
    const float bound = 1.0f / std::sqrt(static_cast<float>(features));
    attention_source_ = builder.uniform("attention_source", {1, features}, bound, true);
    attention_target_ = builder.uniform("attention_target", {1, features}, bound, true);
  }
}

std::pair<Variable, Variable> GraphReasoning::operator()(DeviceContext& context, const Variable& semantic,
                                                         const Variable& edges) const {
  const std::array<int64_t, 3> extent{semantic.size(1), semantic.size(2), semantic.size(3)};
  const int64_t longest = *std::max_element(extent.begin(), extent.end());
  const int stride = static_cast<int>(ceil_div(longest, settings_.nodes_per_axis));

  // Both branches share every weight, so they travel as one batch of 2n: semantic samples first.
  const Variable both = concat_samples(context, semantic, edges);
  const Variable pooled =
      stride > 1 ? avg_pool3d(context, both, {stride, stride, stride}, {stride, stride, stride}) : both;
  const Variable updated = exchange(context, project_(context, pooled), [&](const Tensor& z) {
    return build_graph(context, z, settings_.neighbours);
  });
  return add_to(context, both, resize(context, back_(context, updated), extent));
}

std::pair<Variable, Variable> GraphReasoning::operator()(DeviceContext& context, const Variable& semantic,
                                                         const Variable& edges,
                                                         const Regions& regions) const {
  const int64_t n = semantic.size(0);
  const Variable pooled =
      concat_samples(context, region_mean(context, semantic, regions), region_mean(context, edges, regions));
  const Variable updated = exchange(context, project_(context, pooled), [&](const Tensor& z) {
    return build_graph(context, z, settings_.neighbours, regions);
  });
  const Variable nodes = back_(context, updated);
  const Variable volume =
      concat_samples(context, region_gather(context, take_samples(context, nodes, 0, n), regions),
                     region_gather(context, take_samples(context, nodes, n, 2 * n), regions));
  return add_to(context, concat_samples(context, semantic, edges), volume);
}

Variable GraphReasoning::exchange(DeviceContext& context, const Variable& x,
                                  const std::function<SparseGraph(const Tensor&)>& build) const {
  const int64_t n = x.size(0) / 2;
  const Variable z =
      add_scaled(context, take_samples(context, x, 0, n), take_samples(context, x, n, 2 * n), edge_scale_);
  const SparseGraph graph = build(z.value());
  const Variable weights =
      settings_.weights == EdgeWeights::symmetric
          ? symmetric_edge_weights(context, graph, edge_type_, z.value().dtype())
          : attention_edge_weights(context, graph, z, attention_source_, attention_target_, edge_type_);
  const Variable difference = combine(context, 1.0f, propagate(context, graph, weights, z), -1.0f, z);
  const Variable message = message_(context, difference, kernels::Activation::relu);
  return add(context, x, concat_samples(context, message, message));
}

std::pair<Variable, Variable> GraphReasoning::add_to(DeviceContext& context, const Variable& both,
                                                     const Variable& volume) const {
  const int64_t n = both.size(0) / 2;
  const Variable result = add(context, both, norm_(context, volume));
  return {take_samples(context, result, 0, n), take_samples(context, result, n, 2 * n)};
}

}  // namespace vesal::layers
