// See inflation.hpp.
#include "weights_tools/inflation.hpp"

#include "base/error.hpp"

namespace vesal::weights {
namespace {

void check_kernel(std::span<const float> weight, const Shape& shape, int64_t depth) {
  check<ShapeError>(shape.size() == 4 && static_cast<int64_t>(weight.size()) == element_count(shape),
                    "inflation: ", weight.size(), " values of shape ", to_string(shape),
                    ", expected those of [a, b, kh, kw]");
  check<ShapeError>(depth >= 1, "inflation: depth ", depth, ", expected at least 1");
}

// Each run of `size` values `times` times, times `factor`.
std::vector<float> repeated(std::span<const float> values, size_t size, int64_t times, float factor) {
  std::vector<float> result;
  result.reserve(values.size() * static_cast<size_t>(times));
  for (size_t begin = 0; begin < values.size(); begin += size) {
    for (int64_t copy = 0; copy < times; ++copy) {
      for (const float value : values.subspan(begin, size)) {
        result.push_back(factor * value);
      }
    }
  }
  return result;
}

}  // namespace

std::vector<float> inflate_convolution(std::span<const float> weight, const Shape& shape, int64_t depth,
                                       KernelInflation inflation) {
  check_kernel(weight, shape, depth);
  const auto slice = static_cast<size_t>(shape[2] * shape[3]);
  if (inflation == KernelInflation::repeat) {
    return repeated(weight, slice, depth, 1.0f / static_cast<float>(depth));
  }
  check<ShapeError>(depth % 2 == 1, "inflation: depth ", depth, " has no centre, expected an odd one");
  std::vector<float> result(weight.size() * static_cast<size_t>(depth), 0.0f);
  for (size_t i = 0; i < weight.size(); ++i) {
    const size_t kernel = i / slice;
    result[(kernel * static_cast<size_t>(depth) + static_cast<size_t>(depth / 2)) * slice + i % slice] =
        weight[i];
  }
  return result;
}

std::vector<float> inflate_transposed_convolution(std::span<const float> weight, const Shape& shape,
                                                  int64_t depth, int64_t stride) {
  check_kernel(weight, shape, depth);
  check<ShapeError>(stride >= 1 && depth % stride == 0, "inflation: stride ", stride,
                    ", expected a divisor of the depth ", depth);
  return repeated(weight, static_cast<size_t>(shape[2] * shape[3]), depth,
                  static_cast<float>(stride) / static_cast<float>(depth));
}

std::vector<float> inflate_bias_table(std::span<const float> table, const std::array<int, 3>& window,
                                      int64_t heads) {
  const int64_t rows = int64_t{2 * window[1] - 1} * (2 * window[2] - 1);
  check<ShapeError>(window[0] >= 1 && window[1] >= 1 && window[2] >= 1 && heads >= 1 &&
                        static_cast<int64_t>(table.size()) == rows * heads,
                    "inflation: a bias table of ", table.size(), " values, expected ", rows, " x ", heads);
  return repeated(table, table.size(), 2 * window[0] - 1, 1.0f);
}

std::vector<float> inflate_patch_norm(std::span<const float> values, int64_t depth) {
  check<ShapeError>(depth >= 1, "inflation: depth ", depth, ", expected at least 1");
  return repeated(values, values.size(), depth, 1.0f);
}

std::vector<float> inflate_patch_projection(std::span<const float> weight, int64_t out, int64_t depth) {
  check<ShapeError>(depth >= 1, "inflation: depth ", depth, ", expected at least 1");
  check<ShapeError>(out >= 1 && !weight.empty() && static_cast<int64_t>(weight.size()) % out == 0,
                    "inflation: ", weight.size(), " values do not fill ", out, " rows of a projection");
  return repeated(weight, weight.size() / static_cast<size_t>(out), depth, 1.0f / static_cast<float>(depth));
}

}  // namespace vesal::weights
