// A block of rows of a [rows, classes] array, turned so that vectors run over rows whatever the number of
// classes; for the CPU kernels of losses on a softmax.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace vesal::kernels::cpu {

struct TurnedRows {
  static constexpr int64_t kRows = 64;

  // Whole cache lines, known to be such: otherwise loops begin and end with single elements.
  struct alignas(64) Class {
    float values[kRows];
  };
  std::vector<Class> classes;

  explicit TurnedRows(int64_t count) : classes(static_cast<size_t>(count)) {}

  // kRows numbers, one of each row.
  float* at(int64_t c) { return std::assume_aligned<64>(classes[static_cast<size_t>(c)].values); }

  // scale * x less the row's largest of that, of `count` rows.
  template <class Values>
  void load_below_largest(int64_t count, Values x, float scale) {
    const auto width = static_cast<int64_t>(classes.size());
    for (int64_t c = 0; c < width; ++c) {
      float* row = at(c);
      for (int64_t r = 0; r < count; ++r) {
        row[r] = scale * x[r * width + c];
      }
    }
    alignas(64) float largest[kRows];
    std::copy_n(at(0), count, largest);
    for (int64_t c = 1; c < width; ++c) {
      const float* row = at(c);
#pragma omp simd
      for (int64_t r = 0; r < count; ++r) {
        largest[r] = row[r] > largest[r] ? row[r] : largest[r];
      }
    }
    for (int64_t c = 0; c < width; ++c) {
      float* row = at(c);
#pragma omp simd
      for (int64_t r = 0; r < count; ++r) {
        row[r] -= largest[r];
      }
    }
  }

  // Back to `count` rows of y.
  template <class Values>
  void store(int64_t count, Values y) {
    const auto width = static_cast<int64_t>(classes.size());
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        y[r * width + c] = at(c)[r];
      }
    }
  }
};

}  // namespace vesal::kernels::cpu
