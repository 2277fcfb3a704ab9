// Sums in a fixed order: the same bits for the same input, device and thread count. Inputs are stored as float32, bf16
// or f16 (kernels/context/storage.hpp); results are float32 unless it is said otherwise.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

size_t reduce_workspace_bytes(Context& context, int64_t count);
// out [1] = sum of x; 0 for an empty x.
void sum(Context& context, int64_t count, ConstData x, Data out, Workspace workspace);
// out [1] = sum of x * x.
void sum_squares(Context& context, int64_t count, ConstData x, Data out, Workspace workspace);
// out [1] = largest |x|; NaN if any x is; 0 for an empty x.
void max_abs(Context& context, int64_t count, ConstData x, Data out, Workspace workspace);

// out[row] = sum over channels of x[row, c]; stored like x.
void channel_sum_forward(Context& context, int64_t rows, int64_t channels, ConstData x, Data out);
// dx[row, c] = dout[row]; both stored.
void channel_sum_backward(Context& context, int64_t rows, int64_t channels, ConstData dout, Data dx);

size_t sum_spatial_workspace_bytes(Context& context, int64_t n, int64_t spatial, int64_t channels);
// out[n, c] = factor * sum over l of x[n, l, c], 0 for no l; follows `mode`. factor = 1 / spatial gives the
// mean. out's storage type is its own.
void sum_spatial(Context& context, int64_t n, int64_t spatial, int64_t channels, float factor, ConstData x,
                 Data out, GradMode mode, Workspace workspace);

}  // namespace vesal::kernels
