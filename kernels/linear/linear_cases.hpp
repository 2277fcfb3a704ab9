// The shapes that linear is tested and measured on. The kernel's tile is 128 rows x 32 or 64 outputs x 16
// inputs.
#pragma once

#include <string>
#include <vector>

#include "kernels/linear/linear.hpp"

namespace vesal::kernels {

struct LinearCase {
  std::string name;
  LinearParams params;
};

inline const std::vector<LinearCase> kLinearCases = {
    {"one_by_one", {.rows = 1, .in = 1, .out = 1}},
    {"below_the_tiles", {.rows = 127, .in = 15, .out = 31}},
    {"equal_to_the_tiles", {.rows = 128, .in = 16, .out = 32}},
    {"above_the_tiles", {.rows = 129, .in = 17, .out = 33}},
    {"below_the_wide_tile", {.rows = 60, .in = 36, .out = 63, .activation = Activation::relu}},
    {"equal_to_the_wide_tile", {.rows = 40, .in = 32, .out = 64, .activation = Activation::gelu}},
    {"above_the_wide_tile", {.rows = 130, .in = 20, .out = 65, .activation = Activation::relu}},
    {"aligned_in_ragged_out", {.rows = 33, .in = 24, .out = 3}},
    {"ragged_in_aligned_out", {.rows = 33, .in = 6, .out = 48, .activation = Activation::gelu}},
    {"deep_sum", {.rows = 7, .in = 1031, .out = 5, .activation = Activation::gelu}},
    {"many_rows", {.rows = 4099, .in = 4, .out = 6, .activation = Activation::relu}},
    {"no_rows", {.rows = 0, .in = 5, .out = 7}},
};

}  // namespace vesal::kernels
