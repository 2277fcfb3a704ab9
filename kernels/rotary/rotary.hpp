// Axial rotary position embedding (Su et al. 2021, section 3.2, one frequency series an axis), as SAM 2's
// memory attention applies it to queries and keys: neighbouring channels are pairs, and each pair is turned
// by an angle that grows with the token's place along one axis of a grid.
//
// With A axes, P = head_dim / (2 A) pairs an axis (rounded down), pair i of axis a (0 x, 1 y, 2 z), token at
// place t_a:
//   angle = t_a * theta^(-i / P),   c = 2 (a P + i)
//   y[c] = x[c] cos(angle) - x[c + 1] sin(angle),   y[c + 1] = x[c] sin(angle) + x[c + 1] cos(angle)
// Channels from 2 A P on pass unchanged (none where 2 A divides head_dim, as in SAM 2). Token l of `tokens`
// has place (z, y, x) of l modulo the grid's size, x fastest: a memory of several frames repeats the grid
// once a frame. The last `excluded` tokens (SAM 2's object pointers) pass unchanged.
//
// x, y, dy and dx are stored as float32, bf16 or f16 (kernels/context/storage.hpp).
#pragma once

#include <array>
#include <cstdint>

#include "base/size.hpp"
#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct RotaryParams {
  int64_t n = 1;
  int64_t tokens = 1;
  int heads = 1;
  int head_dim = 4;                    // 2 * axes to 512
  int64_t x_stride = 0, y_stride = 0;  // numbers from one token to the next; 0 for heads * head_dim
  int axes = 2;                        // 2: x and y; 3: x, y and z
  std::array<int, 3> grid{1, 1, 1};    // D, H, W; D is 1 with two axes
  int64_t excluded = 0;                // tokens - excluded is a multiple of the grid's size
  float theta = 10000.0f;

  int64_t channels() const { return int64_t{heads} * head_dim; }
  int64_t grid_size() const { return int64_t{grid[0]} * grid[1] * grid[2]; }
  int pairs() const { return head_dim / (2 * axes); }
};

// x [n, tokens, heads, head_dim] with x_stride, y likewise with y_stride; y may be x. Throws ShapeError for a
// grid that does not fit the tokens.
void rotary_forward(Context& context, const RotaryParams& params, ConstData x, Data y);

// dx (with x_stride) from dy (with y_stride): turned back. It is overwritten and may be dy.
void rotary_backward(Context& context, const RotaryParams& params, ConstData dy, Data dx);

}  // namespace vesal::kernels
