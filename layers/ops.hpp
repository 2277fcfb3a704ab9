// Differentiable ops: a forward kernel, a hand-written backward, and what must be saved between them. Each
// takes the device's context first; with a tape on the context it records itself when an input or parameter
// needs a gradient, without one it only computes. Activations are [N, D, H, W, C]; ops over the last axis
// accept any rank.
//
// What an op makes, saves and hands back as gradients of activations is stored like its input (float32, bf16
// or f16); inputs of one op share their type. Weights are read through Parameter::stored, other parameters as
// float32.
#pragma once

#include <array>
#include <span>

#include "kernels/conv3d/conv3d.hpp"
#include "kernels/elementwise/elementwise.hpp"
#include "kernels/graph/graph.hpp"
#include "kernels/pooling/pooling.hpp"
#include "kernels/region_pool/region_pool.hpp"
#include "kernels/resize/resize.hpp"
#include "kernels/shifted_patch/shifted_patch.hpp"
#include "kernels/window_attention/window_attention.hpp"
#include "layers/parameters.hpp"
#include "runtime/tape.hpp"

namespace vesal::layers {

// Triples are in the order D, H, W throughout.
struct ConvGeometry {
  std::array<int, 3> kernel{3, 3, 3};
  std::array<int, 3> stride{1, 1, 1};
  std::array<int, 3> padding{1, 1, 1};
  std::array<int, 3> dilation{1, 1, 1};
  int64_t groups = 1;
};

// weight [O, kd, kh, kw, I / groups], bias [O] or null; see kernels/conv3d/conv3d.hpp. A frozen weight
// without a bias gets no gradient.
Variable conv3d(DeviceContext& context, const Variable& x, Parameter* weight, Parameter* bias,
                const ConvGeometry& geometry);
// weight [I, kd, kh, kw, O / groups], bias [O] or null.
Variable conv_transpose3d(DeviceContext& context, const Variable& x, Parameter* weight, Parameter* bias,
                          const ConvGeometry& geometry);
// weight [out, in], also with axes of 1 behind them (that of a 1x1 convolution), bias [out] or null;
// activation none, relu or gelu.
Variable linear(DeviceContext& context, const Variable& x, Parameter* weight, Parameter* bias,
                kernels::Activation activation = kernels::Activation::none);

Variable layer_norm(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                    float eps = 1e-5f, kernels::Activation activation = kernels::Activation::none);
// gamma, beta [C]; both null for no affine map. activation none, relu or leaky_relu (slope 0.01).
Variable instance_norm(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                       kernels::Activation activation = kernels::Activation::none, float eps = 1e-5f);

// What batch normalisation keeps between steps; all null for none.
struct BatchNormBuffers {
  Buffer* running_mean = nullptr;  // [C]
  Buffer* running_var = nullptr;   // [C]
  Counter* batches = nullptr;
};
// Over the voxels of all samples. In training x is normalised with its own statistics, and every call moves
// the running ones (a module that is applied twice in a step moves them twice, in order); otherwise with the
// running ones, which must be there. gamma, beta [C]; both null for no affine map. activation none, relu,
// leaky_relu (slope 0.01), gelu, silu or elu.
Variable batch_norm(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                    const BatchNormBuffers& buffers, bool training,
                    kernels::Activation activation = kernels::Activation::none, float eps = 1e-5f,
                    float momentum = 0.1f);
// Over the voxels and neighbouring channels of each group; groups divides C. gamma, beta and activation as
// above.
Variable group_norm(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                    int64_t groups, kernels::Activation activation = kernels::Activation::none,
                    float eps = 1e-5f);

struct WindowAttentionSettings {
  int heads = 1;
  std::array<int, 3> window{4, 4, 4};
  std::array<int, 3> shift{0, 0, 0};
  kernels::PaddingMode padding = kernels::PaddingMode::masked;
  std::array<int, 3> bias_window{0, 0, 0};  // the window of the bias table; zeros: `window`
};
// qkv [N, D, H, W, 3 * C]; qkv_bias [3 * C] the bias of the projection that made it; bias_table [rows,
// heads]. The result is [N, D, H, W, C].
Variable window_attention(DeviceContext& context, const Variable& qkv, Parameter* qkv_bias,
                          Parameter* bias_table, const WindowAttentionSettings& settings);

// Beside heads everything may stay as it is. Triples are D, H, W. See kernels/attention/attention.hpp.
struct AttentionSettings {
  int heads = 1;
  float scale = 0.0f;    // 0: 1 / sqrt(C / heads)
  Tensor key_mask = {};  // [N, keys] u8 on the device, 0 hides a key
  Tensor bias = {};      // [1 or N, 1 or heads, queries, keys], added to the scores; a constant
  // Decomposed relative position of queries and keys on their grids: tables [2 max(queries, keys) - 1, C /
  // heads] of the axes that have one; see kernels/relative_position/relative_position.hpp.
  std::array<Parameter*, 3> relative_position{};
  std::array<int, 3> query_grid{}, key_grid{};
};
// Queries q [N, ..., C] over keys and values k, v [N, ..., C]; the result is like q.
Variable attention(DeviceContext& context, const Variable& q, const Variable& k, const Variable& v,
                   const AttentionSettings& settings);
// The same with qkv [N, ..., 3 * C], in which q, k and v of a token follow one another; the result is [N,
// ..., C].
Variable self_attention(DeviceContext& context, const Variable& qkv, const AttentionSettings& settings);

struct RotarySettings {
  int heads = 1;
  int axes = 2;  // 2: x and y; 3: x, y and z
  std::array<int, 3> grid{1, 1, 1};
  int64_t excluded = 0;  // tokens at the end that are not turned
  float theta = 10000.0f;
};
// Axial rotary embedding of x [N, tokens, C]; see kernels/rotary/rotary.hpp.
Variable rotary(DeviceContext& context, const Variable& x, const RotarySettings& settings);

// Parameters of shifted patch tokenization; shapes in kernels/shifted_patch/shifted_patch.hpp. Those of the
// plain form may lack the axis of groups.
struct ShiftedPatchParameters {
  Parameter* gamma = nullptr;
  Parameter* beta = nullptr;
  Parameter* weight = nullptr;
  Parameter* bias = nullptr;
  Parameter* missing = nullptr;  // null in the plain form
};
// x [N, D, H, W, groups * channels]; mask [N, groups] u8 on the device, undefined for the plain form.
Variable shifted_patch(DeviceContext& context, const Variable& x, const Tensor& mask,
                       const ShiftedPatchParameters& parameters, int64_t groups, kernels::ShiftSet shifts,
                       std::array<int, 3> patch = {2, 2, 2}, std::array<int, 3> shift = {1, 1, 1});

// x[n, ..., source[n, k]] as channel k, 0 where the source is -1; channels that are not named are never read.
// source [N, out] i32 on the device. A constant: no gradient flows to x.
Variable route_channels(DeviceContext& context, const Tensor& x, const Tensor& source);

// As in PyTorch; see kernels/pooling/pooling.hpp.
struct PoolGeometry {
  std::array<int, 3> kernel{2, 2, 2};
  std::array<int, 3> stride{2, 2, 2};
  std::array<int, 3> padding{0, 0, 0};
  bool ceil_mode = false;
  bool count_include_pad = false;  // of averages
};
Variable max_pool3d(DeviceContext& context, const Variable& x, const PoolGeometry& geometry);
Variable avg_pool3d(DeviceContext& context, const Variable& x, const PoolGeometry& geometry);
// To `size` voxels along D, H, W, at least 1.
Variable adaptive_max_pool3d(DeviceContext& context, const Variable& x, std::array<int64_t, 3> size);
Variable adaptive_avg_pool3d(DeviceContext& context, const Variable& x, std::array<int64_t, 3> size);
Variable max_pool3d(DeviceContext& context, const Variable& x, std::array<int, 3> kernel,
                    std::array<int, 3> stride);
// Partial windows at the far ends count, divided by the voxels that they really cover.
Variable avg_pool3d(DeviceContext& context, const Variable& x, std::array<int, 3> kernel,
                    std::array<int, 3> stride);
// As PyTorch's interpolate; see kernels/resize/resize.hpp.
struct ResizeSettings {
  kernels::Interpolation interpolation = kernels::Interpolation::trilinear;
  bool align_corners = false;
};
// To `size`; x itself when it has that size already.
Variable resize(DeviceContext& context, const Variable& x, std::array<int64_t, 3> size,
                const ResizeSettings& settings = {});
// By factors of D, H and W, which also place the voxels (PyTorch's scale_factor and
// recompute_scale_factor=False); the result has floor(extent * factor) voxels.
Variable resize_by(DeviceContext& context, const Variable& x, std::array<double, 3> scale,
                   const ResizeSettings& settings = {});

// x stored as another type; x itself when it is that already. The gradient is converted back.
Variable convert(DeviceContext& context, const Variable& x, DType dtype);

Variable add(DeviceContext& context, const Variable& a, const Variable& b);
// a + scale * b with one learned number.
Variable add_scaled(DeviceContext& context, const Variable& a, const Variable& b, Parameter* scale);
// alpha * a + beta * b.
Variable combine(DeviceContext& context, float alpha, const Variable& a, float beta, const Variable& b);
Variable relu(DeviceContext& context, const Variable& x);
// Any activation but none; `slope` is leaky_relu's.
Variable activate(DeviceContext& context, const Variable& x, kernels::Activation activation,
                  float slope = 0.01f);
// x[n, ..., c] + v[n, c].
Variable add_sample_vector(DeviceContext& context, const Variable& x, const Variable& v);
// Stochastic depth (Huang et al. 2016): each sample's branch is dropped with `probability` in training and
// scaled by 1 / (1 - probability) otherwise; x itself when the probability is 0.
Variable drop_path(DeviceContext& context, const Variable& x, float probability);
// Each element, or each channel of a sample, is dropped with `probability` and scaled by 1 / (1 -
// probability) otherwise; x itself when the probability is 0. The mask is drawn again in the backward pass,
// not stored.
Variable dropout(DeviceContext& context, const Variable& x, float probability);
Variable dropout_channels(DeviceContext& context, const Variable& x, float probability);

// Along channels.
Variable concat_channels(DeviceContext& context, const Variable& a, const Variable& b);
// Along the batch.
Variable concat_samples(DeviceContext& context, const Variable& a, const Variable& b);
// Samples [begin, end).
Variable take_samples(DeviceContext& context, const Variable& x, int64_t begin, int64_t end);

// sigmoid(sqrt(|gradient|^2 + eps)) * x, one gate per voxel: gradient [N, D, H, W, 3], x [N, D, H, W, C].
// Where the root is 0, its gradient is taken for 0.
Variable gate_by_gradient(DeviceContext& context, const Variable& gradient, const Variable& x,
                          float eps = 1e-12f);
// The edge gate of ESAB: sum over channels, Sobel gradients, their instance norm (gamma, beta [3]), and
// sigmoid(|gradient|) * x. `spacing` is relative, in D, H, W.
Variable edge_gate(DeviceContext& context, const Variable& x, Parameter* gamma, Parameter* beta,
                   std::array<float, 3> spacing);

// Voxels and the regions (supervoxels) that they belong to.
struct Regions {
  kernels::RegionParams params;
  Tensor labels;           // [N, D, H, W] i32; outside 0 .. regions - 1: in no region
  Tensor offsets, voxels;  // the voxels of each region
};
Regions build_regions(DeviceContext& context, const Tensor& labels, int64_t regions);
// Means over the regions, x [N, D, H, W, C] to [N, regions, C]; 0 for a region without voxels.
Variable region_mean(DeviceContext& context, const Variable& x, const Regions& regions);
// Back to the voxels, x [N, regions, C] to [N, D, H, W, C]; 0 for voxels of no region.
Variable region_gather(DeviceContext& context, const Variable& x, const Regions& regions);

// The node sets of a graph, one for each pair of a branch and a modality over the same spatial nodes; which
// of them are there, see kernels/graph/graph.hpp.
struct NodeSets {
  int64_t branches = 1, modalities = 1;
  Tensor available;  // [N, branches * modalities] u8 on the device, 0: absent; undefined: all are there
};
// A built graph with the tensors that hold it.
struct SparseGraph {
  kernels::Graph graph;
  Tensor row_offsets, columns, types, transpose, available;
  int64_t capacity = 0;
};
// Self, grid neighbours, the k nearest in feature space, and the same node of other sets; features [N, d, h,
// w, F], of several sets [N, sets, d, h, w, F]. No gradient flows through it.
SparseGraph build_graph(DeviceContext& context, const Tensor& features, int neighbours,
                        const NodeSets& sets = {});
// Regions that touch in place of grid neighbours; features [N, regions, F], of several sets [N, sets,
// regions, F].
SparseGraph build_graph(DeviceContext& context, const Tensor& features, int neighbours,
                        const Regions& regions, const NodeSets& sets = {});
// The same arrays under another mask.
SparseGraph with_available(const SparseGraph& graph, const Tensor& available);
// Rows of absent nodes 0, their content never read; z [nodes, F].
Variable mask_nodes(DeviceContext& context, const SparseGraph& graph, const Variable& z);
// One weight per edge, stored as the nodes that they are for: D^-1/2 A D^-1/2 with A = exp(theta[type]);
// theta [types], 3 for a graph of one set, otherwise 5.
Variable symmetric_edge_weights(DeviceContext& context, const SparseGraph& graph, Parameter* theta,
                                DType dtype = DType::f32);
// One weight per edge: row-softmax of LeakyReLU(u . z_i + v . z_j + theta[type]); z [nodes, F], u and v [1,
// F]. With absent sets z comes from mask_nodes: the products with u and v read every row.
Variable attention_edge_weights(DeviceContext& context, const SparseGraph& graph, const Variable& z,
                                Parameter* u, Parameter* v, Parameter* theta);
// y_i = sum_j w_ij z_j; z, y [nodes, F].
Variable propagate(DeviceContext& context, const SparseGraph& graph, const Variable& weights,
                   const Variable& z);

}  // namespace vesal::layers
