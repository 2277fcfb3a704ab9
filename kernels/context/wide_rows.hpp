// CPU loops over [n, rows, channels] that stay vectorised for any number of channels, 1 and 3 included:
// consecutive rows are joined into one wide row of at least 64 floats, and what belongs to a channel (a mean,
// a sum) is repeated to match.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

#include "base/parallel.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels::cpu {

// Rows joined into one: at least 64 floats, and whole vectors of 16 where the channels are few.
inline int64_t wide_repeat(int64_t channels) {
  if (channels >= 64) {
    return 1;
  }
  const int64_t repeat = ceil_div(64, channels);
  const int64_t step = channels < 16 ? 16 / std::gcd<int64_t>(16, channels) : 1;
  return ceil_div(repeat, step) * step;
}
inline int64_t wide_width(int64_t channels) { return wide_repeat(channels) * channels; }

// value(c) of each channel, repeated over a wide row.
template <class Value>
std::vector<float> repeat_channels(int64_t channels, Value&& value) {
  const int64_t wide = wide_width(channels);
  std::vector<float> repeated(static_cast<size_t>(wide));
  for (int64_t c = 0; c < channels; ++c) {
    repeated[static_cast<size_t>(c)] = static_cast<float>(value(c));
  }
  for (int64_t j = channels; j < wide; ++j) {
    repeated[static_cast<size_t>(j)] = repeated[static_cast<size_t>(j - channels)];
  }
  return repeated;
}

// Calls body(i, j) for the flat elements i of rows [begin, end), j the place in the wide row. Iterations are
// independent.
template <class Body>
void for_wide_rows(int64_t begin, int64_t end, int64_t channels, Body&& body) {
  const int64_t wide = wide_width(channels);
  const int64_t last = end * channels;
  for (int64_t base = begin * channels; base < last; base += wide) {
    const int64_t width = std::min(wide, last - base);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      body(base + j, j);
    }
  }
}

// sums[k * channels + c] = sum over rows [begin, end) of what term(i, j, add) adds by add(k, value), k <
// kSums: float32 in columns of the wide row, then double. acc holds kSums * wide_width(channels) floats.
template <int kSums, class Term>
void sum_columns(int64_t begin, int64_t end, int64_t channels, float* acc, double* sums, Term&& term) {
  const int64_t wide = wide_width(channels);
  std::fill_n(acc, kSums * wide, 0.0f);
  const int64_t last = end * channels;
  for (int64_t base = begin * channels; base < last; base += wide) {
    const int64_t width = std::min(wide, last - base);
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      term(base + j, j, [acc, wide, j](int k, float value) { acc[k * wide + j] += value; });
    }
  }
  for (int k = 0; k < kSums; ++k) {
    for (int64_t c = 0; c < channels; ++c) {
      double total = 0;
      for (int64_t j = c; j < wide; j += channels) {
        total += acc[k * wide + j];
      }
      sums[k * channels + c] = total;
    }
  }
}

// partials [n, slabs, kSums, channels] = the sums of each slab. prepare(sample) returns a term for rows of
// that sample: term(i, j, add) as above, i the flat element within [n, rows, channels].
template <int kSums, class Prepare>
void column_partials(int64_t n, int64_t rows, int64_t channels, double* partials, Prepare&& prepare) {
  const int64_t slabs = slab_count(rows);
  parallel_for(n * slabs, ceil_div(16384, std::max<int64_t>(rows / slabs * channels, 1)),
               [&](int64_t first, int64_t last) {
                 std::vector<float> acc(static_cast<size_t>(kSums * wide_width(channels)));
                 for (int64_t item = first; item < last;) {
                   const int64_t sample = item / slabs;
                   const auto term = prepare(sample);
                   for (; item < std::min(last, (sample + 1) * slabs); ++item) {
                     const int64_t slab = item - sample * slabs;
                     sum_columns<kSums>(sample * rows + slab_begin(rows, slabs, slab),
                                        sample * rows + slab_begin(rows, slabs, slab + 1), channels,
                                        acc.data(), partials + item * kSums * channels, term);
                   }
                 }
               });
}

// finish(sample, c, sums) with the slabs' sums added in slab order.
template <int kSums, class Finish>
void column_totals(int64_t n, int64_t rows, int64_t channels, const double* partials, Finish&& finish) {
  const int64_t slabs = slab_count(rows);
  for (int64_t sample = 0; sample < n; ++sample) {
    for (int64_t c = 0; c < channels; ++c) {
      std::array<double, kSums> sums{};
      for (int64_t slab = 0; slab < slabs; ++slab) {
        for (int k = 0; k < kSums; ++k) {
          sums[static_cast<size_t>(k)] += partials[((sample * slabs + slab) * kSums + k) * channels + c];
        }
      }
      finish(sample, c, sums);
    }
  }
}

// For every element: prepare(sample) returns body(i, j) as in for_wide_rows. Slabs run backwards in each
// thread's share, because a reduction that came before has left its last slabs in the cache.
template <class Prepare>
void column_map(int64_t n, int64_t rows, int64_t channels, Prepare&& prepare) {
  const int64_t slabs = slab_count(rows);
  parallel_for(n * slabs, ceil_div(16384, std::max<int64_t>(rows / slabs * channels, 1)),
               [&](int64_t first, int64_t last) {
                 for (int64_t item = last - 1; item >= first;) {
                   const int64_t sample = item / slabs;
                   const auto body = prepare(sample);
                   for (; item >= std::max(first, sample * slabs); --item) {
                     const int64_t slab = item - sample * slabs;
                     for_wide_rows(sample * rows + slab_begin(rows, slabs, slab),
                                   sample * rows + slab_begin(rows, slabs, slab + 1), channels, body);
                   }
                 }
               });
}

}  // namespace vesal::kernels::cpu
