// Sobel gradients in 3D and the edge gate made of them (ESAB, "deep semantics + edge fusion", Zhu et al.
// 2023). Each component differentiates one axis with [1, 0, -1] and smooths the two others with [1, 2, 1]
// (cross-correlation, zeros outside), divided by the spacing of its axis.
// All tensors are stored as float32, bf16 or f16 (kernels/context/storage.hpp). f16 ends at 65504, and a
// component reaches 16 / spacing times the largest difference between voxels.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct SobelParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;
  std::array<float, 3> spacing{1, 1, 1};  // D, H, W; relative units are enough, > 0
  // Under the square root of the magnitude, so that its gradient at 0 is finite. With eps = 0 the gradient at
  // 0 is 0.
  float eps = 1e-12f;
};

// x [n, d, h, w], gradient [n, d, h, w, 3] in the order (d, h, w).
void sobel_gradient_forward(Context& context, const SobelParams& params, ConstData x, Data gradient);
// dx is overwritten.
void sobel_gradient_backward(Context& context, const SobelParams& params, ConstData dgradient, Data dx);

// magnitude [n, d, h, w] = sqrt(|gradient|^2 + eps), the gradient computed on the fly.
void sobel_magnitude_forward(Context& context, const SobelParams& params, ConstData x, Data magnitude);
size_t sobel_magnitude_workspace_bytes(Context& context, const SobelParams& params);
void sobel_magnitude_backward(Context& context, const SobelParams& params, ConstData x, ConstData dmagnitude,
                              Data dx, Workspace workspace);

struct EdgeGateParams {
  int64_t voxels = 1;  // of the whole batch
  int64_t channels = 1;
  float eps = 1e-12f;
};

// y = sigmoid(sqrt(|gradient|^2 + eps)) * x, one gate per voxel; gradient [voxels, 3], x, y [voxels,
// channels].
void edge_gate_forward(Context& context, const EdgeGateParams& params, ConstData gradient, ConstData x,
                       Data y);
// dgradient and dx are overwritten.
void edge_gate_backward(Context& context, const EdgeGateParams& params, ConstData gradient, ConstData x,
                        ConstData dy, Data dgradient, Data dx);

}  // namespace vesal::kernels
