// One number in, one number out: activations, sums, scalings and their gradients.
// Stored as float32, bf16 or f16 (kernels/context/storage.hpp), except scale, gate and dscale.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Every Activation (defined in kernels/context/context.hpp) except none.
using Unary = Activation;

// y = f(x). y may be x. `slope` is leaky_relu's. ShapeError for Activation::none.
void unary_forward(Context& context, Unary kind, int64_t count, ConstData x, Data y, float slope = 0.01f);
// dx = dy * f'(x), x the input of the forward pass. dx may be dy.
void unary_backward(Context& context, Unary kind, int64_t count, ConstData x, ConstData dy, Data dx,
                    float slope = 0.01f);

// y = x, rounded to y's storage type. The two types are free.
void convert(Context& context, int64_t count, ConstData x, Data y);
// y = value.
void fill(Context& context, int64_t count, float value, Data y);
// y = a + b. y may be a or b.
void add(Context& context, int64_t count, ConstData a, ConstData b, Data y);
// y = alpha * x + beta * y; with beta = 0, y is not read (it may be NaN).
void scale_add(Context& context, int64_t count, float alpha, ConstData x, float beta, Data y);
// y = a * b.
void multiply(Context& context, int64_t count, ConstData a, ConstData b, Data y);

// y[n, i] = a[n, i] + scale[0] * gate[n] * b[n, i]; a, b, y [n, inner]; scale [1] (learned), gate [n] or null
// for ones. Where gate[n] is 0, b is not read.
void scaled_add_forward(Context& context, int64_t n, int64_t inner, ConstData a, ConstData b, ConstData scale,
                        ConstData gate, Data y);
size_t scaled_add_backward_workspace_bytes(Context& context, int64_t n, int64_t inner);
// db = scale * gate * dy is overwritten (da is dy itself); dscale = sum of gate * dy . b follows `mode`.
void scaled_add_backward(Context& context, int64_t n, int64_t inner, ConstData b, ConstData scale,
                         ConstData gate, ConstData dy, Data db, Data dscale, GradMode mode,
                         Workspace workspace);

// y[n, i] = gate[n] * x[n, i]; where gate[n] is 0, x is not read and y is 0. Its own backward pass (dx = gate
// * dy).
void gate_samples(Context& context, int64_t n, int64_t inner, ConstData gate, ConstData x, Data y);

// The stream of random numbers that a dropout draws: its element i is dropped where the i-th uniform() of
// RandomStream(seed, step, op) (base/philox.hpp) is at most the probability. Nothing is stored: the backward
// pass draws the same numbers again. op below 2^32.
struct DropoutKey {
  uint64_t seed = 0;
  uint64_t step = 0;
  uint64_t op = 0;
};
// Dropout (Srivastava et al. 2014): each element of x is dropped with `probability` (0 to 1) and scaled by
// 1 / (1 - probability) otherwise. A dropped element of y is 0 whatever x holds there. y may be x. At most
// 2^34 elements. Its own backward pass (dx from dy).
void dropout(Context& context, int64_t count, float probability, const DropoutKey& key, ConstData x, Data y);
// Drops whole channels of a sample (Tompson et al. 2015), PyTorch's Dropout3d: the element that is drawn for
// is n * channels + c. x, y [n, spatial, channels].
void dropout_channels(Context& context, int64_t n, int64_t spatial, int64_t channels, float probability,
                      const DropoutKey& key, ConstData x, Data y);

// y[n, l, c] = x[n, l, c] + v[n, c]. The gradient of v is reduce.hpp's sum_spatial.
void add_sample_vector(Context& context, int64_t n, int64_t spatial, int64_t channels, ConstData x,
                       ConstData v, Data y);

}  // namespace vesal::kernels
