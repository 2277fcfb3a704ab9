// The decomposed relative position as a reader would write it down: for every query and key plane, row or
// column the product of the query with a row of a table. A template on the scalar type, so that tests
// evaluate it in double (exact) and in float (what a naive implementation reaches).
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/relative_position/relative_position.hpp"

namespace vesal::kernels::reference {

// Calls body(start of the query's vector in q, axis, start of the table's row, place in axial_bias).
template <class Body>
void for_each_relative_position(const RelativePositionParams& p, Body&& body) {
  const int64_t stride = p.q_stride == 0 ? p.channels() : p.q_stride;
  int64_t out = 0;
  for (int64_t s = 0; s < p.n; ++s) {
    for (int64_t i = 0; i < p.queries(); ++i) {
      const std::array<int64_t, 3> place{i / p.query_grid[2] / p.query_grid[1],
                                         i / p.query_grid[2] % p.query_grid[1], i % p.query_grid[2]};
      for (int m = 0; m < p.heads; ++m) {
        for (size_t axis = 0; axis < 3; ++axis) {
          const int64_t queries = p.query_grid[axis];
          const int64_t keys = p.key_grid[axis];
          for (int64_t k = 0; k < keys; ++k) {
            const int64_t row = place[axis] * std::max<int64_t>(keys / queries, 1) -
                                k * std::max<int64_t>(queries / keys, 1) +
                                (keys - 1) * std::max<int64_t>(queries / keys, 1);
            body((s * p.queries() + i) * stride + int64_t{m} * p.head_dim, axis, row * p.head_dim, out++);
          }
        }
      }
    }
  }
}

template <class T>
void relative_position_forward(const RelativePositionParams& p, const T* q,
                               const std::array<const T*, 3>& tables, T* axial_bias) {
  for_each_relative_position(p, [&](int64_t query, size_t axis, int64_t row, int64_t out) {
    T sum = 0;
    for (int c = 0; c < p.head_dim && tables[axis] != nullptr; ++c) {
      sum += q[query + c] * tables[axis][row + c];
    }
    axial_bias[out] = sum;
  });
}

// Adds to dq and dtables.
template <class T>
void relative_position_backward(const RelativePositionParams& p, const T* q,
                                const std::array<const T*, 3>& tables, const T* daxial_bias, T* dq,
                                const std::array<T*, 3>& dtables) {
  for_each_relative_position(p, [&](int64_t query, size_t axis, int64_t row, int64_t out) {
    for (int c = 0; c < p.head_dim && tables[axis] != nullptr; ++c) {
      dq[query + c] += daxial_bias[out] * tables[axis][row + c];
      dtables[axis][row + c] += daxial_bias[out] * q[query + c];
    }
  });
}

}  // namespace vesal::kernels::reference
