// Shapes on which the decomposed relative position is verified on every device: all axes and some, equal
// grids and multiples either way; sizes beside those of the GPU's tiles: 64 queries at a place, 32 keys or
// rows of a table, 64 dimensions, 4 heads, 64 keys that dq takes at a time.
#pragma once

#include <string>
#include <vector>

#include "kernels/context/work.hpp"
#include "kernels/relative_position/relative_position.hpp"

namespace vesal::kernels {

struct RelativePositionCase {
  std::string name;
  RelativePositionParams params;
  std::array<bool, 3> tables{true, true, true};
};

inline const std::vector<RelativePositionCase> kRelativePositionCases{
    {"one of everything", {.head_dim = 1}},
    {"SAM's window of 14x14",
     {.n = 2, .heads = 2, .head_dim = 64, .query_grid = {1, 14, 14}, .key_grid = {1, 14, 14}},
     {false, true, true}},
    {"3D, batch", {.n = 3, .heads = 2, .head_dim = 12, .query_grid = {3, 4, 5}, .key_grid = {3, 4, 5}}},
    {"3D, fused",
     {.n = 2, .heads = 3, .head_dim = 31, .q_stride = 279, .query_grid = {2, 3, 4}, .key_grid = {2, 3, 4}}},
    {"head dim 32, 7 tokens", {.head_dim = 32, .query_grid = {1, 1, 7}, .key_grid = {1, 1, 7}}},
    {"head dim 33, 9 tokens",
     {.head_dim = 33, .query_grid = {1, 9, 1}, .key_grid = {1, 9, 1}},
     {false, true, false}},
    {"8 tokens in depth, only its table",
     {.heads = 2, .head_dim = 5, .query_grid = {8, 2, 3}, .key_grid = {8, 2, 3}},
     {true, false, false}},
    {"no tables",
     {.heads = 2, .head_dim = 5, .query_grid = {2, 2, 3}, .key_grid = {2, 2, 3}},
     {false, false, false}},
    {"fewer queries than keys",
     {.n = 2, .heads = 2, .head_dim = 9, .query_grid = {1, 3, 4}, .key_grid = {3, 6, 4}}},
    {"more queries than keys",
     {.n = 2, .heads = 2, .head_dim = 9, .query_grid = {4, 6, 9}, .key_grid = {2, 6, 3}}},
    {"head dim 63, 4 heads, 17 keys",
     {.heads = 4, .head_dim = 63, .query_grid = {1, 1, 17}, .key_grid = {1, 1, 17}},
     {false, false, true}},
    {"head dim 65, 63 queries at a place, 16 keys",
     {.heads = 3, .head_dim = 65, .query_grid = {1, 21, 16}, .key_grid = {1, 21, 16}},
     {false, false, true}},
    {"64 queries at a place, 33 keys",
     {.heads = 4, .head_dim = 16, .query_grid = {1, 16, 33}, .key_grid = {1, 16, 33}},
     {false, true, true}},
    {"65 queries at a place, 65 keys",
     {.heads = 5, .head_dim = 7, .query_grid = {1, 13, 65}, .key_grid = {1, 13, 65}},
     {false, true, true}},
    {"32 places, 64 keys",
     {.heads = 2, .head_dim = 6, .query_grid = {1, 1, 32}, .key_grid = {1, 1, 64}},
     {true, false, true}},
    {"head dim 256", {.heads = 1, .head_dim = 256, .query_grid = {1, 5, 3}, .key_grid = {1, 5, 3}}},
};

// For benchmarks: SAM's image encoder, a window and the whole grid, and SAM-Med3D's; q in a fused qkv.
inline const std::vector<RelativePositionCase> kRelativePositionBenchmarkCases{
    {"sam_windows_14",
     {.n = 25,
      .heads = 12,
      .head_dim = 64,
      .q_stride = 2304,
      .query_grid = {1, 14, 14},
      .key_grid = {1, 14, 14}},
     {false, true, true}},
    {"sam_global_64",
     {.heads = 12, .head_dim = 64, .q_stride = 2304, .query_grid = {1, 64, 64}, .key_grid = {1, 64, 64}},
     {false, true, true}},
    {"sam_med3d_8",
     {.heads = 12, .head_dim = 64, .q_stride = 2304, .query_grid = {8, 8, 8}, .key_grid = {8, 8, 8}}},
};

// A product of every query with a row for each number of the axial bias; backward one with the tables and one
// with the queries.
inline Work relative_position_work(const RelativePositionParams& p, bool backward) {
  const auto queries = static_cast<double>(p.n * p.queries() * p.heads);
  const auto axial = static_cast<double>(p.axial_size());
  return {.flops = 2.0 * queries * axial * p.head_dim * (backward ? 2 : 1),
          .bytes = 4.0 * queries * (axial + p.head_dim * (backward ? 2 : 1))};
}

}  // namespace vesal::kernels
