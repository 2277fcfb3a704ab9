// Fully connected layer over the last axis: y = activation(x W^T + bias). Also the 1x1x1 convolution.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct LinearParams {
  int64_t rows = 1;  // tokens or voxels of the whole batch, >= 0
  int64_t in = 1, out = 1;
  Activation activation = Activation::none;  // none, relu or gelu (erf)
};

// Which matrix product runs on cuda: the hand-written kernel, or cuBLAS. cpu always uses oneDNN; simt the
// kernel.
enum class GemmAlgorithm { own, cublas };
void set_gemm_algorithm(Context& context, GemmAlgorithm algorithm);

enum class LinearPass { forward, backward_data, backward_weight };
size_t linear_workspace_bytes(Context& context, const LinearParams& params, LinearPass pass);

// x, weight, y, pre_activation, dy and dx are stored as float32, bf16 or f16, all of a call alike; bias and
// the gradients of weight and bias are float32.
//
// x [rows, in], weight [out, in], bias [out] or null, y [rows, out].
// pre_activation [rows, out] receives x W^T + bias for the backward pass; null when it is not needed.
void linear_forward(Context& context, const LinearParams& params, ConstData x, ConstData weight,
                    ConstData bias, Data y, Data pre_activation, Workspace workspace);

// dy is the gradient before the activation (see activation_backward in elementwise.hpp). dx is overwritten.
void linear_backward_data(Context& context, const LinearParams& params, ConstData dy, ConstData weight,
                          Data dx, Workspace workspace);

// dweight as weight; dbias as bias, or null.
void linear_backward_weight(Context& context, const LinearParams& params, ConstData x, ConstData dy,
                            Data dweight, Data dbias, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
