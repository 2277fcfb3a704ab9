// Depthwise convolution on the CPU: an input channel is a group of its own, and c_out / c_in outputs read it.
// oneDNN's convolution pads each of these groups to a whole vector: at 48 channels, 3x3x3, 32^3, one thread,
// this way takes 4.5 ms forward, 4.8 ms for the data gradient and 4.8 ms for the weight gradient, oneDNN 17,
// 16 and 40 ms.
#pragma once

#include "kernels/conv3d/conv3d.hpp"

namespace vesal::kernels::cpu {

bool is_depthwise(const Conv3dParams& params);

size_t depthwise_workspace_bytes(const Conv3dParams& params, ConvPass pass);
// T: float, bf16 or f16.
template <class T>
void depthwise_forward(const Conv3dParams& params, const T* x, const T* weight, const float* bias, T* y,
                       float* workspace);
// The data gradient plus bias [c_in], which may be null.
template <class T>
void depthwise_adjoint(const Conv3dParams& params, const T* dy, const T* weight, const float* bias, T* dx,
                       float* workspace);
// Without the bias gradient.
template <class T>
void depthwise_backward_weight(const Conv3dParams& params, const T* x, const T* dy, float* dweight,
                               GradMode mode, float* workspace);

}  // namespace vesal::kernels::cpu
