// 3D convolution (cross-correlation, as in PyTorch) on channels-last volumes.
//
//   y[n, o, p, q, k] = bias[k] + sum over (a, b, c, i) of
//       x[n, o*stride_d - padding_d + a*dilation_d, ..., ..., g*I + i] * weight[k, a, b, c, i]
//
// with zeros outside the volume, where I = c_in / groups is the number of channels that an output reads and g
// = k / (c_out / groups) is its group. A 2D convolution is the case d = 1, kernel (1, kh, kw). groups = c_in
// is the depthwise convolution, c_out / c_in its multiplier.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Triples are in the order D, H, W.
struct Conv3dParams {
  int64_t n = 1;                         // batch, >= 0
  int64_t d = 1, h = 1, w = 1;           // input extent, >= 1
  int64_t c_in = 1, c_out = 1;           // channels, >= 1, multiples of groups
  std::array<int, 3> kernel{3, 3, 3};    // 1 to 7 per axis
  std::array<int, 3> stride{1, 1, 1};    // >= 1
  std::array<int, 3> padding{1, 1, 1};   // >= 0, in front of the volume
  std::array<int, 3> dilation{1, 1, 1};  // >= 1, the step between taps
  int64_t groups = 1;                    // >= 1
  std::optional<std::array<int, 3>> padding_end =
      std::nullopt;            // >= 0, behind the volume; as padding if absent
  DType storage = DType::f32;  // of the stored tensors: f32, bf16 or f16

  std::array<int, 3> far_padding() const { return padding_end.value_or(padding); }
  // What the kernel covers along an axis.
  int64_t reach(size_t axis) const { return int64_t{dilation[axis]} * (kernel[axis] - 1) + 1; }
  int64_t out_d() const { return out(0, d); }
  int64_t out_h() const { return out(1, h); }
  int64_t out_w() const { return out(2, w); }
  int64_t taps() const { return int64_t{kernel[0]} * kernel[1] * kernel[2]; }
  int64_t group_in() const { return c_in / groups; }
  int64_t group_out() const { return c_out / groups; }
  int64_t input_count() const { return n * d * h * w * c_in; }
  int64_t output_count() const { return n * out_d() * out_h() * out_w() * c_out; }
  int64_t weight_count() const { return c_out * taps() * group_in(); }

 private:
  int64_t out(size_t axis, int64_t extent) const {
    return (extent + padding[axis] + far_padding()[axis] - reach(axis)) / stride[axis] + 1;
  }
};

// Throws ShapeError, naming `op` and the field, for sizes or types outside the ranges above or an empty
// output.
void check_params(const Conv3dParams& params, const char* op);

enum class ConvPass { forward, backward_data, backward_weight };

// Bytes of scratch memory that the given pass needs on this context's device.
size_t conv3d_workspace_bytes(Context& context, const Conv3dParams& params, ConvPass pass);

// x, weight, y, dy and dx are stored as params.storage says, which the scratch memory depends on; bias and
// the gradients of weight and bias are float32.
//
// x [n, d, h, w, c_in], weight [c_out, kd, kh, kw, c_in / groups] (PyTorch's [c_out, c_in / groups, kd, kh,
// kw] with the channels moved to the end), bias [c_out] or null, y [n, out_d, out_h, out_w, c_out].
void conv3d_forward(Context& context, const Conv3dParams& params, ConstData x, ConstData weight,
                    ConstData bias, Data y, Workspace workspace);

// dx (as x) is overwritten.
void conv3d_backward_data(Context& context, const Conv3dParams& params, ConstData dy, ConstData weight,
                          Data dx, Workspace workspace);

// dweight as weight; dbias as bias, or null. Sums over no sample are 0.
void conv3d_backward_weight(Context& context, const Conv3dParams& params, ConstData x, ConstData dy,
                            Data dweight, Data dbias, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
