// The parts of linear's device code that its cuBLAS variant uses too.
#pragma once

#include "kernels/linear/linear.hpp"

namespace vesal::kernels {

// y = activation(y + bias) in place, keeping y + bias in pre_activation unless that is null.
using LinearFinish = void(Context& context, const LinearParams& params, const float* bias, Data y,
                          Data pre_activation);
// dbias (+)= the sum over rows of dy; the workspace is that of linear_backward_weight.
using LinearBiasGradient = void(Context& context, const LinearParams& params, ConstData dy, float* dbias,
                                GradMode mode, Workspace workspace);

namespace simt {
LinearFinish linear_finish;
LinearBiasGradient linear_bias_gradient;
}  // namespace simt
namespace cuda {
LinearFinish linear_finish;
LinearBiasGradient linear_bias_gradient;
}  // namespace cuda

}  // namespace vesal::kernels
