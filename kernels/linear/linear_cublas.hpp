// linear through cuBLAS, the alternative (and the peer to beat) of the hand-written kernel on cuda. Without a
// CUDA build the functions exist and throw, and nothing calls them.
#pragma once

#include "kernels/linear/linear.hpp"

namespace vesal::kernels::cublas {

void linear_forward(Context& context, const LinearParams& params, ConstData x, ConstData weight,
                    ConstData bias, Data y, Data pre_activation);
void linear_backward_data(Context& context, const LinearParams& params, ConstData dy, ConstData weight,
                          Data dx);
// The workspace is that of the hand-written kernel: the bias gradient is its column sum.
void linear_backward_weight(Context& context, const LinearParams& params, ConstData x, ConstData dy,
                            Data dweight, Data dbias, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels::cublas
