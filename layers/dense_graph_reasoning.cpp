#include "layers/dense_graph_reasoning.hpp"

#include <cmath>

#include "base/profiler.hpp"
#include "kernels/gemm/gemm.hpp"
#include "kernels/reduce/reduce.hpp"
#include "kernels/softmax/softmax.hpp"

namespace vesal::layers {
namespace {

using kernels::GemmParams;
using kernels::GemmPass;
using kernels::GradMode;
using Saved = std::span<const Tensor>;

void run_gemm(DeviceContext& context, const GemmParams& params, ConstData a, ConstData b, Data c) {
  kernels::Context& k = context.kernels();
  kernels::gemm(k, params, a, b, c,
                context.scratch(kernels::gemm_workspace_bytes(k, params, GemmPass::forward)));
}

// The gradient of A, or of B, in the shape of `like`.
Tensor gradient_a(DeviceContext& context, const GemmParams& params, const Tensor& dc, ConstData b,
                  const Tensor& like) {
  Tensor da = like.empty_like(context);
  kernels::Context& k = context.kernels();
  kernels::gemm_backward_a(k, params, dc, b, da, GradMode::overwrite,
                           context.scratch(kernels::gemm_workspace_bytes(k, params, GemmPass::backward_a)));
  return da;
}
Tensor gradient_b(DeviceContext& context, const GemmParams& params, const Tensor& a, const Tensor& dc,
                  const Tensor& like) {
  Tensor db = like.empty_like(context);
  kernels::Context& k = context.kernels();
  kernels::gemm_backward_b(k, params, a, dc, db, GradMode::overwrite,
                           context.scratch(kernels::gemm_workspace_bytes(k, params, GemmPass::backward_b)));
  return db;
}

bool recording(const DeviceContext& context) { return context.tape() != nullptr; }

// G[s] = softmax over the last axis of scale V[s]^T W[s]: v [S, ..., N], w [S, ..., F], G [S, N, F].
Variable node_features(DeviceContext& context, const Variable& v, const Variable& w, float scale) {
  VESAL_RANGE("node_features");
  const int64_t samples = v.size(0), nodes = v.size(-1), features = w.size(-1);
  GemmParams params =
      kernels::dense_gemm(samples, 1, nodes, features, v.value().count() / samples / nodes, true, false);
  params.alpha = scale;
  Tensor logits = Tensor::empty(context, {samples, nodes, features}, v.value().dtype());
  run_gemm(context, params, v.value(), w.value(), logits);
  Tensor g = logits.empty_like(context);
  kernels::softmax_forward(context.kernels(), samples * nodes, features, logits, g);
  if (!recording(context)) {
    return g;
  }
  return context.tape()->record(
      "node_features", g, {v.value(), w.value(), g},
      [params, first = v.slot(), second = w.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        Tensor dlogits = dy.empty_like(ctx);
        kernels::softmax_backward(ctx.kernels(), params.outer * params.m, params.n, saved[2], dy, dlogits);
        first->add(ctx, gradient_a(ctx, params, dlogits, saved[1], saved[0]));
        second->add(ctx, gradient_b(ctx, params, saved[0], dlogits, saved[1]));
      });
}

// R[s] = V[s] G[s]: v [S, D, H, W, N], g [S, N, F], R [S, D, H, W, F].
Variable project_back(DeviceContext& context, const Variable& v, const Variable& g) {
  VESAL_RANGE("project_back");
  const int64_t samples = v.size(0), nodes = v.size(-1), features = g.size(-1);
  const GemmParams params =
      kernels::dense_gemm(samples, 1, v.value().count() / samples / nodes, features, nodes);
  Shape shape = v.shape();
  shape.back() = features;
  Tensor r = Tensor::empty(context, shape, v.value().dtype());
  run_gemm(context, params, v.value(), g.value(), r);
  if (!recording(context)) {
    return r;
  }
  return context.tape()->record(
      "project_back", r, {v.value(), g.value()},
      [params, first = v.slot(), second = g.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        first->add(ctx, gradient_a(ctx, params, dy, saved[1], saved[0]));
        second->add(ctx, gradient_b(ctx, params, saved[0], dy, saved[1]));
      });
}

// The published layout: the numbers of a sample of r [S, D, H, W, F], in their order, are taken for a matrix
// [F, L], and y[l] = weight r[:, l] + bias; weight [C, F], y [S, D, H, W, C].
Variable scrambled_linear(DeviceContext& context, const Variable& r, Parameter* weight, Parameter* bias) {
  VESAL_RANGE("scrambled_linear");
  const int64_t samples = r.size(0), features = r.size(-1), out = weight->value.size(0);
  const int64_t voxels = r.value().count() / samples / features;
  GemmParams params = kernels::dense_gemm(samples, 1, voxels, out, features, true, true);
  params.b.outer_stride = 0;
  Shape shape = r.shape();
  shape.back() = out;
  const DType dtype = r.value().dtype();
  Tensor product = Tensor::empty(context, shape, dtype);
  run_gemm(context, params, r.value(), weight->stored(context, dtype), product);
  Tensor y = product.empty_like(context);
  kernels::add_sample_vector(context.kernels(), 1, samples * voxels, out, product,
                             bias->stored(context, dtype), y);
  if (!recording(context)) {
    return y;
  }
  return context.tape()->record(
      "scrambled_linear", y, {r.value()},
      [params, weight, bias, slot = r.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        GemmParams of_weight = kernels::dense_gemm(1, 1, params.n, params.k, params.m, true, true);
        GradMode mode = weight->next_mode();
        for (int64_t s = 0; s < params.outer; ++s) {
          of_weight.beta = mode == GradMode::overwrite ? 0.0f : 1.0f;
          run_gemm(ctx, of_weight, dy.slice(s, s + 1), saved[0].slice(s, s + 1), weight->gradient);
          mode = GradMode::accumulate;
        }
        kernels::Context& k = ctx.kernels();
        const int64_t rows = params.outer * params.m;
        kernels::sum_spatial(k, 1, rows, params.n, 1.0f, dy, bias->gradient, bias->next_mode(),
                             ctx.scratch(kernels::sum_spatial_workspace_bytes(k, 1, rows, params.n)));
        slot->add(ctx, gradient_a(ctx, params, dy, weight->stored(ctx, dy.dtype()), saved[0]));
      });
}

}  // namespace

Variable dense_propagate(DeviceContext& context, const Variable& z, Parameter* adjacency, Parameter* bias) {
  VESAL_RANGE("dense_propagate");
  const int64_t samples = z.size(0), nodes = z.size(1), features = z.size(2);
  check<ShapeError>(adjacency->value.size(0) == nodes && adjacency->value.count() == nodes * nodes,
                    "dense_propagate: adjacency ", to_string(adjacency->value.shape()), " for ", nodes,
                    " nodes");
  GemmParams params = kernels::dense_gemm(samples, 1, nodes, features, nodes);
  params.a.outer_stride = 0;
  params.beta = -1.0f;
  kernels::Context& k = context.kernels();
  Tensor difference = z.value().empty_like(context);
  kernels::scale_add(k, z.value().count(), 1.0f, z.value(), 0.0f, difference);
  const DType dtype = z.value().dtype();
  run_gemm(context, params, adjacency->stored(context, dtype), z.value(), difference);
  Tensor y = z.value().empty_like(context);
  for (int64_t s = 0; s < samples; ++s) {
    kernels::add_sample_vector(k, nodes, features, 1, difference.slice(s, s + 1),
                               bias->stored(context, dtype), y.slice(s, s + 1));
  }
  if (!recording(context)) {
    return y;
  }
  return context.tape()->record(
      "dense_propagate", y, {z.value()},
      [params, adjacency, bias, slot = z.slot()](DeviceContext& ctx, const Tensor& dy, Saved saved) {
        kernels::Context& kc = ctx.kernels();
        GemmParams of_adjacency = kernels::dense_gemm(1, 1, params.m, params.k, params.n, false, true);
        GradMode mode = adjacency->next_mode();
        GradMode bias_mode = bias->next_mode();
        for (int64_t s = 0; s < params.outer; ++s) {
          of_adjacency.beta = mode == GradMode::overwrite ? 0.0f : 1.0f;
          run_gemm(ctx, of_adjacency, dy.slice(s, s + 1), saved[0].slice(s, s + 1), adjacency->gradient);
          kernels::sum_spatial(kc, params.m, params.n, 1, 1.0f, dy.slice(s, s + 1), bias->gradient, bias_mode,
                               ctx.scratch(kernels::sum_spatial_workspace_bytes(kc, params.m, params.n, 1)));
          mode = bias_mode = GradMode::accumulate;
        }
        if (slot) {
          GemmParams of_z = params;
          of_z.transpose_a = true;
          Tensor dz = dy.empty_like(ctx);
          kernels::scale_add(kc, dy.count(), 1.0f, dy, 0.0f, dz);
          run_gemm(ctx, of_z, adjacency->stored(ctx, dy.dtype()), dy, dz);
          slot->add(ctx, std::move(dz));
        }
      });
}

DenseGraphReasoning::DenseGraphReasoning(const ParameterBuilder& builder,
                                         const DenseGraphReasoningSettings& settings)
    : settings_(settings) {
  const int64_t channels = settings.channels;
  check<ShapeError>(channels >= 4 && channels % 4 == 0, "DenseGraphReasoning: ", channels,
                    " channels, expected a multiple of 4");
  const int64_t nodes = channels / 4, features = channels / 2;
  // PyTorch's default for convolutions: uniform within 1 / sqrt(fan_in).
  const auto bound = [](int64_t fan_in) { return 1.0f / std::sqrt(static_cast<float>(fan_in)); };
  const ParameterBuilder gcn = builder.scope("BGCN").scope("gcn");
  adjacency_ = gcn.scope("conv1").uniform("weight", {nodes, nodes, 1}, bound(nodes), true);
  adjacency_bias_ = gcn.scope("conv1").uniform("bias", {nodes}, bound(nodes), false);
  message_weight_ = gcn.scope("conv2").uniform("weight", {features, features, 1}, bound(features), true);
  const auto convolution = [&](const char* name, int64_t in, int64_t out, Parameter*& weight,
                               Parameter*& bias) {
    Shape shape{out, in};
    shape.insert(shape.end(), static_cast<size_t>(settings.axes), 1);
    weight = builder.scope(name).uniform("weight", shape, bound(in), true);
    bias = builder.scope(name).uniform("bias", {out}, bound(in), false);
  };
  convolution("conv_v", channels, nodes, v_weight_, v_bias_);
  convolution("conv_w", channels, features, w_weight_, w_bias_);
  convolution("conv", features, channels, back_weight_, back_bias_);
}

std::pair<Variable, Variable> DenseGraphReasoning::operator()(DeviceContext& context,
                                                              const Variable& semantic,
                                                              const Variable& edges) const {
  const int64_t n = semantic.size(0);
  const bool fixed = settings_.layout == MfibLayout::fixed;
  // Both branches share every weight, so they travel as one batch of 2n: semantic samples first.
  const Variable both = concat_samples(context, semantic, edges);
  const Variable v = linear(context, both, v_weight_, v_bias_);
  const Variable w = linear(context, both, w_weight_, w_bias_);
  const int64_t voxels = semantic.size(1) * semantic.size(2) * semantic.size(3);
  const Variable g =
      node_features(context, v, w, fixed ? 1.0f / std::sqrt(static_cast<float>(voxels)) : 1.0f);
  const Variable z = add(context, take_samples(context, g, 0, n), take_samples(context, g, n, 2 * n));
  const Variable message = linear(context, dense_propagate(context, z, adjacency_, adjacency_bias_),
                                  message_weight_, nullptr, kernels::Activation::relu);
  const Variable updated = add(context, g, concat_samples(context, message, message));
  const Variable r = project_back(context, v, updated);
  const Variable result = fixed ? linear(context, r, back_weight_, back_bias_)
                                : scrambled_linear(context, r, back_weight_, back_bias_);
  return {take_samples(context, result, 0, n), take_samples(context, result, n, 2 * n)};
}

}  // namespace vesal::layers
