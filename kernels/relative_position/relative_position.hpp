// Decomposed relative position (Li et al. 2022, "Exploring plain vision transformer backbones", section 3,
// and SAM's image encoder), on grids of up to three axes: from the queries and one table an axis, the axial
// bias that kernels/attention adds to its scores.
//
// For a query at place (z, y, x) of a grid Qd x Qh x Qw with vector q (not scaled), and keys on a grid Kd x
// Kh x Kw:
//   axial_bias = [ q . T_d[rel(z, 0)] ... q . T_d[rel(z, Kd - 1)],  the same for y with T_h,  for x with T_w
//   ] rel(p, k)  = p * max(K / Q, 1) - k * max(Q / K, 1) + (K - 1) * max(Q / K, 1)
// Where the grids are equal, rel(p, k) = p - k + K - 1. Otherwise the larger of Q and K must be a multiple of
// the smaller. A table has 2 max(Q, K) - 1 rows of head_dim numbers that all heads share; one of another
// length is resized first (kernels/resize), as SAM does. An axis without a table contributes zeros.
//
// q and dq are stored as float32, bf16 or f16 (kernels/context/storage.hpp). Tables, the axial bias and the
// gradients of both are float32: few parameters, and what attention adds to its float32 scores.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "base/host_device.hpp"
#include "base/size.hpp"
#include "kernels/context/context.hpp"

namespace vesal::kernels {

// Triples are in the order D, H, W.
struct RelativePositionParams {
  int64_t n = 1;
  int heads = 1;
  int head_dim = 16;     // at least 1
  int64_t q_stride = 0;  // numbers from one token to the next of q and dq; 0 for heads * head_dim
  std::array<int, 3> query_grid{1, 1, 1};
  std::array<int, 3> key_grid{1, 1, 1};

  int64_t channels() const { return int64_t{heads} * head_dim; }
  int64_t queries() const { return int64_t{query_grid[0]} * query_grid[1] * query_grid[2]; }
  int64_t axial_size() const { return int64_t{key_grid[0]} + key_grid[1] + key_grid[2]; }
  int64_t table_rows(int axis) const {
    const auto a = static_cast<size_t>(axis);
    return 2 * int64_t{std::max(query_grid[a], key_grid[a])} - 1;
  }
};

// Axis by axis D, H, W: [table_rows(axis), head_dim], or null.
using RelativePositionTables = std::array<ConstData, 3>;
using RelativePositionTableGradients = std::array<Data, 3>;

// q [n, queries, heads, head_dim] with the stride of the params; axial_bias [n, queries, heads,
// axial_size()]. Throws ShapeError for grids that do not fit each other.
void relative_position_forward(Context& context, const RelativePositionParams& params, ConstData q,
                               const RelativePositionTables& tables, Data axial_bias);

size_t relative_position_backward_workspace_bytes(Context& context, const RelativePositionParams& params);

// dq as q: what flows through the bias, added to what the attention itself has written there when dq_mode
// says so. A table's gradient is null exactly where the table is; they follow table_mode.
void relative_position_backward(Context& context, const RelativePositionParams& params, ConstData q,
                                const RelativePositionTables& tables, ConstData daxial_bias, Data dq,
                                GradMode dq_mode, const RelativePositionTableGradients& dtables,
                                GradMode table_mode, Workspace workspace);

// One axis of the definition above, shared by all implementations: row(place, key) of the table.
struct RelativePositionAxis {
  int queries, keys;
  int query_step, key_step;  // max(K / Q, 1) and max(Q / K, 1)
  int inner;                 // tokens from one place to the next on the query grid
  int offset;                // of the axis in the axial bias

  VESAL_HOST_DEVICE int row(int place, int key) const {
    return place * query_step + (keys - 1 - key) * key_step;
  }
  // The key for which row(place, key) is `row`; -1 where there is none.
  VESAL_HOST_DEVICE int key(int place, int row) const {
    const int steps = place * query_step - row;
    const int key = keys - 1 + steps / key_step;
    return steps % key_step == 0 && key >= 0 && key < keys ? key : -1;
  }
  VESAL_HOST_DEVICE int place(int64_t token) const { return static_cast<int>(token / inner % queries); }
  // The token at `place` of this axis that is number `other` among those.
  VESAL_HOST_DEVICE int64_t token(int place, int64_t other) const {
    return (other / inner * queries + place) * inner + other % inner;
  }
};

inline std::array<RelativePositionAxis, 3> relative_position_axes(const RelativePositionParams& params) {
  std::array<RelativePositionAxis, 3> axes{};
  int inner = 1;
  for (size_t a = 3; a-- > 0;) {
    const int q = params.query_grid[a];
    const int k = params.key_grid[a];
    axes[a] = {q, k, std::max(k / q, 1), std::max(q / k, 1), inner, 0};
    inner *= q;
  }
  axes[1].offset = params.key_grid[0];
  axes[2].offset = params.key_grid[0] + params.key_grid[1];
  return axes;
}

}  // namespace vesal::kernels
