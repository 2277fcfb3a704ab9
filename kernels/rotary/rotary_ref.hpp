// The rotary embedding as a reader would write it down. A template on the scalar type, so that tests evaluate
// it in double (exact) and in float (what a naive implementation reaches).
#pragma once

#include <cmath>

#include "kernels/rotary/rotary.hpp"

namespace vesal::kernels::reference {

// Forward with direction 1; backward, with dy in x's place and the strides exchanged, with direction -1.
template <class T>
void rotary(const RotaryParams& p, const T* x, T* y, int direction) {
  const int64_t x_stride = p.x_stride == 0 ? p.channels() : p.x_stride;
  const int64_t y_stride = p.y_stride == 0 ? p.channels() : p.y_stride;
  for (int64_t token = 0; token < p.n * p.tokens; ++token) {
    const int64_t l = token % p.tokens;
    const int64_t on_grid = l % p.grid_size();
    const int64_t place[3] = {on_grid % p.grid[2], on_grid / p.grid[2] % p.grid[1],
                              on_grid / p.grid[2] / p.grid[1]};
    for (int m = 0; m < p.heads; ++m) {
      const T* from = x + token * x_stride + int64_t{m} * p.head_dim;
      T* to = y + token * y_stride + int64_t{m} * p.head_dim;
      for (int c = 0; c < p.head_dim; ++c) {
        to[c] = from[c];
      }
      for (int a = 0; a < p.axes && l < p.tokens - p.excluded; ++a) {
        for (int i = 0; i < p.pairs(); ++i) {
          const T frequency =
              std::pow(static_cast<T>(p.theta), -static_cast<T>(i) / static_cast<T>(p.pairs()));
          const T angle = static_cast<T>(direction * place[a]) * frequency;
          const int c = 2 * (a * p.pairs() + i);
          const T first = from[c];
          const T second = from[c + 1];
          to[c] = first * std::cos(angle) - second * std::sin(angle);
          to[c + 1] = first * std::sin(angle) + second * std::cos(angle);
        }
      }
    }
  }
}

}  // namespace vesal::kernels::reference
