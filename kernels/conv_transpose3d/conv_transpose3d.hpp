// Transposed 3D convolution: the adjoint of conv3d, used to double the resolution in decoders (kernel 4,
// stride 2, padding 1, or kernel 2, stride 2).
//
//   y[n, o, p, q, k] = bias[k] + sum over (a, b, c, i) with o = z*stride_d - padding_d + a, ... of
//       x[n, z, y, x, i] * weight[i, a, b, c, k]
#pragma once

#include <array>
#include <cstdint>

#include "kernels/context/context.hpp"
#include "kernels/conv3d/conv3d.hpp"

namespace vesal::kernels {

// Triples are in the order D, H, W.
struct ConvTranspose3dParams {
  int64_t n = 1;
  int64_t d = 1, h = 1, w = 1;  // input extent
  int64_t c_in = 1, c_out = 1;
  std::array<int, 3> kernel{4, 4, 4};   // 1 to 5 per axis
  std::array<int, 3> stride{2, 2, 2};   // >= 1
  std::array<int, 3> padding{1, 1, 1};  // >= 0, < kernel

  int64_t out_d() const { return (d - 1) * stride[0] - 2 * padding[0] + kernel[0]; }
  int64_t out_h() const { return (h - 1) * stride[1] - 2 * padding[1] + kernel[1]; }
  int64_t out_w() const { return (w - 1) * stride[2] - 2 * padding[2] + kernel[2]; }
  int64_t taps() const { return int64_t{kernel[0]} * kernel[1] * kernel[2]; }
  int64_t input_count() const { return n * d * h * w * c_in; }
  int64_t output_count() const { return n * out_d() * out_h() * out_w() * c_out; }
  int64_t weight_count() const { return c_in * taps() * c_out; }
};

void check_params(const ConvTranspose3dParams& params, const char* op);

size_t conv_transpose3d_workspace_bytes(Context& context, const ConvTranspose3dParams& params, ConvPass pass);

// x [n, d, h, w, c_in], weight [c_in, kd, kh, kw, c_out], bias [c_out] or null, y [n, out_d, out_h, out_w,
// c_out].
void conv_transpose3d_forward(Context& context, const ConvTranspose3dParams& params, ConstData x,
                              ConstData weight, ConstData bias, Data y, Workspace workspace);

// dx (as x) is overwritten.
void conv_transpose3d_backward_data(Context& context, const ConvTranspose3dParams& params, ConstData dy,
                                    ConstData weight, Data dx, Workspace workspace);

// dweight as weight; dbias as bias, or null.
void conv_transpose3d_backward_weight(Context& context, const ConvTranspose3dParams& params, ConstData x,
                                      ConstData dy, Data dweight, Data dbias, GradMode mode,
                                      Workspace workspace);

}  // namespace vesal::kernels
