// Softmax over the last axis, computed from x - max(x).
// All tensors are stored as float32, bf16 or f16 (kernels/context/storage.hpp).
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// x, y [rows, channels], channels >= 1. y may be x. A row of -inf only gives NaN, as in PyTorch.
void softmax_forward(Context& context, int64_t rows, int64_t channels, ConstData x, Data y);
// dx = y * (dy - sum(dy * y)) is overwritten.
void softmax_backward(Context& context, int64_t rows, int64_t channels, ConstData y, ConstData dy, Data dx);

}  // namespace vesal::kernels
