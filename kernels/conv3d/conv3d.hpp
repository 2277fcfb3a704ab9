// 3D convolution (cross-correlation, as in PyTorch) on channels-last volumes.
//
//   y[n, o, p, q, k] = bias[k] + sum over (a, b, c, i) of
//       x[n, o*stride_d - padding_d + a, p*stride_h - padding_h + b, q*stride_w - padding_w + c, i] *
//       weight[k, a, b, c, i]
//
// with zeros outside the volume. A 2D convolution is the case d = 1, kernel (1, kh, kw).
#pragma once

#include <array>
#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Triples are in the order D, H, W.
struct Conv3dParams {
  int64_t n = 1;                        // batch
  int64_t d = 1, h = 1, w = 1;          // input extent, >= 1
  int64_t c_in = 1, c_out = 1;          // channels, >= 1
  std::array<int, 3> kernel{3, 3, 3};   // 1 to 5 per axis
  std::array<int, 3> stride{1, 1, 1};   // >= 1
  std::array<int, 3> padding{1, 1, 1};  // >= 0, the same on both sides

  int64_t out_d() const { return (d + 2 * padding[0] - kernel[0]) / stride[0] + 1; }
  int64_t out_h() const { return (h + 2 * padding[1] - kernel[1]) / stride[1] + 1; }
  int64_t out_w() const { return (w + 2 * padding[2] - kernel[2]) / stride[2] + 1; }
  int64_t taps() const { return int64_t{kernel[0]} * kernel[1] * kernel[2]; }
  int64_t input_count() const { return n * d * h * w * c_in; }
  int64_t output_count() const { return n * out_d() * out_h() * out_w() * c_out; }
  int64_t weight_count() const { return c_out * taps() * c_in; }
};

// Throws ShapeError, naming `op` and the field, for sizes outside the ranges above or an empty output.
void check_params(const Conv3dParams& params, const char* op);

enum class ConvPass { forward, backward_data, backward_weight };

// Bytes of scratch memory that the given pass needs on this context's device.
size_t conv3d_workspace_bytes(Context& context, const Conv3dParams& params, ConvPass pass);

// x [n, d, h, w, c_in], weight [c_out, kd, kh, kw, c_in], bias [c_out] or null, y [n, out_d, out_h, out_w,
// c_out].
void conv3d_forward(Context& context, const Conv3dParams& params, ConstData x, ConstData weight,
                    ConstData bias, Data y, Workspace workspace);

// dx (as x) is overwritten.
void conv3d_backward_data(Context& context, const Conv3dParams& params, ConstData dy, ConstData weight,
                          Data dx, Workspace workspace);

// dweight as weight; dbias as bias, or null.
void conv3d_backward_weight(Context& context, const Conv3dParams& params, ConstData x, ConstData dy,
                            Data dweight, Data dbias, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
