// Weights of 2D networks for 3D ones: one more kernel axis, depth, such that the 3D layer does to a volume
// what the 2D layer does to its slices. Values are row-major in the layouts of files (PyTorch's); biases,
// norms and linear layers stay as they are. After Carreira and Zisserman 2017, "Quo Vadis, Action
// Recognition?", section 2.4 (repeat), and the spec's section 5.1.
//
// What is exact, up to rounding:
//   convolution, centre       on every volume, slice by slice
//   convolution, repeat       on volumes whose slices are all equal, away from padding at the ends of depth
//   transposed convolution    likewise
//   shifted patches           likewise, with the shifts tetra4 in place of diagonal4
//   window attention          likewise, everywhere, where the window's depth divides the grid's
// Whole networks are not: depth padding differs at the ends.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/tensor.hpp"

namespace vesal::weights {

// centre: the 2D kernel in the middle slice, zeros elsewhere; repeat: the kernel in every slice, divided by
// their number.
enum class KernelInflation { centre, repeat };

// weight [a, b, kh, kw] to [a, b, depth, kh, kw]. Throws ShapeError for another rank, for values that do not
// fill it, and for a depth below 1; centre needs an odd one.
std::vector<float> inflate_convolution(std::span<const float> weight, const Shape& shape, int64_t depth,
                                       KernelInflation inflation);

// weight [in, out, kh, kw] to [in, out, depth, kh, kw], repeated and divided by depth / stride, the number of
// slices that reach one output. Throws ShapeError as above, and unless stride divides depth.
std::vector<float> inflate_transposed_convolution(std::span<const float> weight, const Shape& shape,
                                                  int64_t depth, int64_t stride);

// Relative position bias [(2 kh - 1) (2 kw - 1), heads] of windows 1 x kh x kw, repeated for every distance
// in depth of windows D x H x W = `window`. Throws ShapeError where the table has another size.
std::vector<float> inflate_bias_table(std::span<const float> table, const std::array<int, 3>& window,
                                      int64_t heads);

// Shifted patch tokenization with patches 1 x p x p, for patches depth x p x p, whose features are those of
// the slices, one slice after the other. The LayerNorm's gamma or beta [features], repeated: every feature
// occurs `depth` times, which changes neither mean nor variance.
std::vector<float> inflate_patch_norm(std::span<const float> values, int64_t depth);
// The projection's weight [out, features] to [out, depth * features], repeated and divided by depth. Throws
// ShapeError unless `out` rows fill it.
std::vector<float> inflate_patch_projection(std::span<const float> weight, int64_t out, int64_t depth);

}  // namespace vesal::weights
