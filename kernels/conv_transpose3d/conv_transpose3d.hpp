// Transposed 3D convolution: the adjoint of conv3d, used to double the resolution in decoders (kernel 4,
// stride 2, padding 1, or kernel 2, stride 2).
//
//   y[n, o, p, q, k] = bias[k] + sum over (a, b, c, i) with o = z*stride_d - padding_d + a*dilation_d, ... of
//       x[n, z, y, x, i] * weight[i, a, b, c, k - g*O]
//
// where i runs over the input channels of k's group g = k / O, O = c_out / groups. Weights are those of the
// adjoint convolution from y to x: [c_in, kd, kh, kw, c_out / groups] in memory, PyTorch's [c_in, c_out /
// groups, kd, kh, kw] with the outputs moved to the end; input channel i belongs to group i / (c_in /
// groups).
#pragma once

#include <array>
#include <cstdint>

#include "kernels/context/context.hpp"
#include "kernels/conv3d/conv3d.hpp"

namespace vesal::kernels {

// Triples are in the order D, H, W.
struct ConvTranspose3dParams {
  int64_t n = 1;                               // batch, >= 0
  int64_t d = 1, h = 1, w = 1;                 // input extent
  int64_t c_in = 1, c_out = 1;                 // multiples of groups
  std::array<int, 3> kernel{4, 4, 4};          // 1 to 7 per axis
  std::array<int, 3> stride{2, 2, 2};          // >= 1
  std::array<int, 3> padding{1, 1, 1};         // >= 0, < dilation * (kernel - 1) + 1; cut off both ends of y
  std::array<int, 3> output_padding{0, 0, 0};  // >= 0, < stride; adds to the far end of y
  std::array<int, 3> dilation{1, 1, 1};        // >= 1
  int64_t groups = 1;                          // >= 1
  DType storage = DType::f32;                  // of the stored tensors: f32, bf16 or f16

  int64_t out_d() const { return out(0, d); }
  int64_t out_h() const { return out(1, h); }
  int64_t out_w() const { return out(2, w); }
  int64_t taps() const { return int64_t{kernel[0]} * kernel[1] * kernel[2]; }
  int64_t input_count() const { return n * d * h * w * c_in; }
  int64_t output_count() const { return n * out_d() * out_h() * out_w() * c_out; }
  int64_t weight_count() const { return c_in * taps() * (c_out / groups); }

 private:
  int64_t out(size_t axis, int64_t extent) const {
    return (extent - 1) * stride[axis] - 2 * padding[axis] + int64_t{dilation[axis]} * (kernel[axis] - 1) +
           1 + output_padding[axis];
  }
};

// Throws ShapeError, naming `op` and the field, for sizes or types outside the ranges above or an empty
// output.
void check_params(const ConvTranspose3dParams& params, const char* op);

size_t conv_transpose3d_workspace_bytes(Context& context, const ConvTranspose3dParams& params, ConvPass pass);

// x, weight, y, dy and dx are stored as params.storage says, which the scratch memory depends on; bias and
// the gradients of weight and bias are float32.
//
// x [n, d, h, w, c_in], weight [c_in, kd, kh, kw, c_out / groups], bias [c_out] or null, y [n, out_d, out_h,
// out_w, c_out].
void conv_transpose3d_forward(Context& context, const ConvTranspose3dParams& params, ConstData x,
                              ConstData weight, ConstData bias, Data y, Workspace workspace);

// dx (as x) is overwritten.
void conv_transpose3d_backward_data(Context& context, const ConvTranspose3dParams& params, ConstData dy,
                                    ConstData weight, Data dx, Workspace workspace);

// dweight as weight; dbias as bias, or null. Sums over no sample are 0.
void conv_transpose3d_backward_weight(Context& context, const ConvTranspose3dParams& params, ConstData x,
                                      ConstData dy, Data dweight, Data dbias, GradMode mode,
                                      Workspace workspace);

}  // namespace vesal::kernels
