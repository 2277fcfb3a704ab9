// Pooling on the host. Limited by memory: each output row (fixed n, d, h) reads its few input rows once.
// Backward passes walk the rows of the input, so that every voxel of dx is written once, in order; the rows
// of dy that it needs stay in the cache from one input row to the next.
#include <algorithm>
#include <cstring>
#include <vector>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/float_rows_cpu.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/pooling/pool_axis.hpp"
#include "kernels/pooling/pooling.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kChannels = 64;         // channels held in registers and on the stack at a time
constexpr int64_t kGrainBytes = 1 << 15;  // the least a thread is started for

using Axes = PoolAxes<int64_t>;

int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, elements_per_item * 4));
}

// The voxels under the window of one output.
template <class T>
struct Window {
  const T* sample;      // x of this sample
  int64_t height, row;  // h of the volume, elements of a row of voxels
  int64_t channels;
  int64_t d0, d1, h0, h1, w0, w1;
  int64_t begin_d, begin_h, begin_w, extent_h, extent_w;  // with the padding
  int64_t divisor;                                        // of an average

  int64_t count() const { return (d1 - d0) * (h1 - h0) * (w1 - w0); }
  // line(x of the first voxel, its number) for every row of voxels.
  template <class Line>
  void for_each_line(Line&& line) const {
    for (int64_t d = d0; d < d1; ++d) {
      for (int64_t h = h0; h < h1; ++h) {
        line(sample + (d * height + h) * row + w0 * channels,
             ((d - begin_d) * extent_h + h - begin_h) * extent_w + w0 - begin_w);
      }
    }
  }
};

// Calls body(output voxel, window) for all output voxels, in parallel over output rows.
template <class T, class Body>
void for_each_window(const PoolParams& p, const T* x, Body&& body) {
  const Axes axes = pool_axes<int64_t>(p);
  const int64_t out_d = axes.d.out, out_h = axes.h.out, out_w = axes.w.out;
  const int64_t rows = p.n * out_d * out_h;
  const int64_t row_elements =
      rows > 0 ? axes.d.extent(0) * axes.h.extent(0) * p.w * p.c : 0;  // about what an output row reads
  parallel_for(rows, grain(row_elements), [&](int64_t begin, int64_t end) {
    Window<T> window;
    window.height = p.h;
    window.row = p.w * p.c;
    window.channels = p.c;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t oh = row % out_h;
      const int64_t od = row / out_h % out_d;
      window.sample = x + row / out_h / out_d * p.d * p.h * window.row;
      window.d0 = axes.d.first(od), window.d1 = axes.d.last(od), window.begin_d = axes.d.begin(od);
      window.h0 = axes.h.first(oh), window.h1 = axes.h.last(oh), window.begin_h = axes.h.begin(oh);
      window.extent_h = axes.h.extent(oh);
      const int64_t divisor =
          axes.d.divisor(od, p.count_include_pad) * axes.h.divisor(oh, p.count_include_pad);
      for (int64_t ow = 0; ow < out_w; ++ow) {
        window.w0 = axes.w.first(ow), window.w1 = axes.w.last(ow), window.begin_w = axes.w.begin(ow);
        window.extent_w = axes.w.extent(ow);
        window.divisor = divisor * axes.w.divisor(ow, p.count_include_pad);
        body(row * out_w + ow, window);
      }
    }
  });
}

// A later voxel wins if it is larger, or if it is the first NaN.
inline bool beats(float value, float best) { return value > best || (value != value && best == best); }

// Vectors of kLanes channels; explicit, because one byte of index beside four of value makes a compiler count
// in 64s.
template <int kLanes>
struct Vectors {
  using Values [[gnu::vector_size(kLanes * 4)]] = float;
  using Numbers [[gnu::vector_size(kLanes * 4)]] = int32_t;
  using Bytes [[gnu::vector_size(kLanes)]] = uint8_t;
};

template <int kLanes, class T>
typename Vectors<kLanes>::Values load_values(const T* source) {
  float scratch[kLanes];
  typename Vectors<kLanes>::Values values;
  std::memcpy(&values, as_floats(source, kLanes, scratch), sizeof(values));
  return values;
}

template <int kLanes, class T>
void store_values(const typename Vectors<kLanes>::Values& values, T* target) {
  float scratch[kLanes];
  write_floats(target, kLanes, scratch, [&](float* floats) { std::memcpy(floats, &values, sizeof(values)); });
}

template <int kLanes, int kCount, class T>
void max_lanes(const T* const* voxel, int64_t c, T* y, uint8_t* index) {
  using Values = typename Vectors<kLanes>::Values;
  using Numbers = typename Vectors<kLanes>::Numbers;
  using Bytes = typename Vectors<kLanes>::Bytes;
  Values best = load_values<kLanes>(voxel[0] + c);
  Numbers winner{};
#pragma GCC unroll 8
  for (int k = 1; k < kCount; ++k) {
    const Values value = load_values<kLanes>(voxel[k] + c);
    const Numbers wins = ~(value <= best) & (best == best);  // larger, or the first NaN
    best = wins ? value : best;
    winner = wins ? Numbers{} + k : winner;
  }
  store_values<kLanes>(best, y + c);
  if (index != nullptr) {
    const Bytes bytes = __builtin_convertvector(winner, Bytes);
    std::memcpy(index + c, &bytes, sizeof(bytes));
  }
}

// The eight voxels of a whole window of 2 x 2 x 2, unrolled.
template <class T>
void max_of_eight(const Window<T>& window, int64_t channels, T* y, uint8_t* index) {
  constexpr int kCount = 8;
  const T* voxel[kCount];
  window.for_each_line([&](const T* line, int64_t number) {
    voxel[number] = line;
    voxel[number + 1] = line + channels;
  });
  int64_t c = 0;
  for (; c + 16 <= channels; c += 16) {
    max_lanes<16, kCount>(voxel, c, y, index);
  }
  for (; c + 8 <= channels; c += 8) {
    max_lanes<8, kCount>(voxel, c, y, index);
  }
  for (; c < channels; ++c) {
    float best = widen(voxel[0][c]);
    int winner = 0;
    for (int k = 1; k < kCount; ++k) {
      const float value = widen(voxel[k][c]);
      const bool wins = beats(value, best);
      best = wins ? value : best;
      winner = wins ? k : winner;
    }
    y[c] = narrow<T>(best);
    if (index != nullptr) {
      index[c] = static_cast<uint8_t>(winner);
    }
  }
}

// Bytes as numbers; by intrinsics where there are any, because GCC 12 takes __builtin_convertvector apart
// into scalars.
template <int kLanes>
void load_bytes(const uint8_t* source, typename Vectors<kLanes>::Numbers& numbers) {
#ifdef __AVX512F__
  if constexpr (kLanes == 16) {
    // The masked form, as GCC 12 warns about its own header's plain one.
    numbers = reinterpret_cast<typename Vectors<kLanes>::Numbers>(
        _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
    return;
  }
#endif
#ifdef __AVX2__
  if constexpr (kLanes == 8) {
    numbers = reinterpret_cast<typename Vectors<kLanes>::Numbers>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source))));
    return;
  }
#endif
  typename Vectors<kLanes>::Bytes bytes;
  std::memcpy(&bytes, source, sizeof(bytes));
  numbers = __builtin_convertvector(bytes, typename Vectors<kLanes>::Numbers);
}

// dx += dy where the voxel `number` won.
template <int kLanes, class T>
void add_won_lanes(const T* dy, const uint8_t* winner, int32_t number, float* dx) {
  using Values = typename Vectors<kLanes>::Values;
  using Numbers = typename Vectors<kLanes>::Numbers;
  const Values source = load_values<kLanes>(dy);
  Values target = load_values<kLanes>(dx);
  Numbers numbers;
  load_bytes<kLanes>(winner, numbers);
  const Numbers won = numbers == number;
  target += won ? source : Values{};
  store_values<kLanes>(target, dx);
}

template <class T, class Number>
void max_any_window(const Window<T>& window, int64_t channels, T* y, Number* index) {
  for (int64_t first = 0; first < channels; first += kChannels) {
    const int64_t count = std::min(kChannels, channels - first);
    float best[kChannels] = {};
    int32_t winner[kChannels];
    std::fill_n(winner, kChannels, -1);
    window.for_each_line([&](const T* line, int64_t line_number) {
      for (int64_t w = 0; w < window.w1 - window.w0; ++w) {
        const Input<T> voxel{line + w * channels + first};
        const auto number = static_cast<int32_t>(line_number + w);
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) {
          const float value = voxel[c];
          const bool wins = winner[c] < 0 || beats(value, best[c]);
          best[c] = wins ? value : best[c];
          winner[c] = wins ? number : winner[c];
        }
      }
    });
    const Output<T> target{y + first};
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      target[c] = best[c];
    }
    if (index != nullptr) {
      for (int64_t c = 0; c < count; ++c) {
        index[first + c] = static_cast<Number>(winner[c]);
      }
    }
  }
}

// Rows of voxels are summed by themselves: large windows round less.
template <class T>
void average_window(const Window<T>& window, int64_t channels, T* y) {
  const float scale = 1.0f / static_cast<float>(window.divisor);
  for (int64_t first = 0; first < channels; first += kChannels) {
    const int64_t count = std::min(kChannels, channels - first);
    float sum[kChannels] = {};
    window.for_each_line([&](const T* line, int64_t) {
      float line_sum[kChannels];
      const Input<T> start{line + first};
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        line_sum[c] = start[c];
      }
      for (int64_t w = 1; w < window.w1 - window.w0; ++w) {
        const Input<T> voxel = start + w * channels;
#pragma omp simd
        for (int64_t c = 0; c < count; ++c) {
          line_sum[c] += voxel[c];
        }
      }
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        sum[c] += line_sum[c];
      }
    });
    const Output<T> target{y + first};
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      target[c] = sum[c] * scale;
    }
  }
}

// Calls body(float32 dx of the voxel, output voxel, number of the voxel in that window, what that window's
// average divides by) for the windows over each input voxel, after zeroing it; in parallel over input rows.
template <class T, class Body>
void for_each_cover(const PoolParams& p, T* dx, Body&& body) {
  const Axes axes = pool_axes<int64_t>(p);
  const bool include = p.count_include_pad;
  const int64_t row_elements = p.w * p.c;
  parallel_for(p.n * p.d * p.h, grain(row_elements), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch = float_scratch<T>(row_elements);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t h = row % p.h, d = row / p.h % p.d, n = row / p.h / p.d;
      const auto over_d = axes.d.windows_over(d);
      const auto over_h = axes.h.windows_over(h);
      write_floats(dx + row * row_elements, row_elements, scratch.data(), [&](float* target) {
        std::memset(target, 0, static_cast<size_t>(row_elements) * sizeof(float));
        for (int64_t od = over_d.begin; od < over_d.end; ++od) {
          for (int64_t oh = over_h.begin; oh < over_h.end; ++oh) {
            const int64_t divisor = axes.d.divisor(od, include) * axes.h.divisor(oh, include);
            const int64_t line = (d - axes.d.begin(od)) * axes.h.extent(oh) + h - axes.h.begin(oh);
            const int64_t out_row = ((n * axes.d.out + od) * axes.h.out + oh) * axes.w.out;
            for (int64_t ow = 0; ow < axes.w.out; ++ow) {
              const int64_t line_divisor = divisor * axes.w.divisor(ow, include);
              const int64_t number = line * axes.w.extent(ow) - axes.w.begin(ow);
              const int64_t last = axes.w.last(ow);
              for (int64_t w = axes.w.first(ow); w < last; ++w) {
                body(target + w * p.c, out_row + ow, static_cast<int32_t>(number + w), line_divisor);
              }
            }
          }
        }
      });
    }
  });
}

}  // namespace

void max_pool3d_forward(Context&, const PoolParams& p, ConstData x_, Data y_, Data index_) {
  with_storage("max_pool3d_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("max_pool3d_forward: x");
    T* y = y_.as<T>("max_pool3d_forward: y");
    if (p.index_type() == DType::i32) {
      auto* index = index_.as<int32_t>("max_pool3d_forward: index");
      for_each_window(p, x, [&](int64_t out, const Window<T>& window) {
        max_any_window(window, p.c, y + out * p.c, index == nullptr ? nullptr : index + out * p.c);
      });
      return;
    }
    auto* index = index_.as<uint8_t>("max_pool3d_forward: index");
    const bool eight = p.kernel[0] == 2 && p.kernel[1] == 2 && p.kernel[2] == 2;
    for_each_window(p, x, [&](int64_t out, const Window<T>& window) {
      T* target = y + out * p.c;
      uint8_t* winner = index == nullptr ? nullptr : index + out * p.c;
      if (eight && window.count() == 8) {
        max_of_eight(window, p.c, target, winner);
      } else {
        max_any_window(window, p.c, target, winner);
      }
    });
  });
}

void max_pool3d_backward(Context&, const PoolParams& p, ConstData dy_, ConstData index_, Data dx_) {
  with_storage("max_pool3d_backward", {dy_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("max_pool3d_backward: dy");
    T* dx = dx_.as<T>("max_pool3d_backward: dx");
    if (p.index_type() == DType::i32) {
      const auto* index = index_.as<int32_t>("max_pool3d_backward: index");
      for_each_cover(p, dx, [&](float* target, int64_t out, int32_t number, int64_t) {
        const Input<T> source{dy + out * p.c};
        const int32_t* winner = index + out * p.c;
#pragma omp simd
        for (int64_t c = 0; c < p.c; ++c) {
          const float value = source[c];
          target[c] += winner[c] == number ? value : 0.0f;
        }
      });
      return;
    }
    const auto* index = index_.as<uint8_t>("max_pool3d_backward: index");
    for_each_cover(p, dx, [&](float* target, int64_t out, int32_t number, int64_t) {
      const T* source = dy + out * p.c;
      const uint8_t* winner = index + out * p.c;
      int64_t c = 0;
      for (; c + 16 <= p.c; c += 16) {
        add_won_lanes<16>(source + c, winner + c, number, target + c);
      }
      for (; c + 8 <= p.c; c += 8) {
        add_won_lanes<8>(source + c, winner + c, number, target + c);
      }
      for (; c < p.c; ++c) {
        target[c] += winner[c] == number ? widen(source[c]) : 0.0f;
      }
    });
  });
}

void avg_pool3d_forward(Context&, const PoolParams& p, ConstData x_, Data y_) {
  with_storage("avg_pool3d_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("avg_pool3d_forward: x");
    T* y = y_.as<T>("avg_pool3d_forward: y");
    for_each_window(
        p, x, [&](int64_t out, const Window<T>& window) { average_window(window, p.c, y + out * p.c); });
  });
}

void avg_pool3d_backward(Context&, const PoolParams& p, ConstData dy_, Data dx_) {
  with_storage("avg_pool3d_backward", {dy_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("avg_pool3d_backward: dy");
    T* dx = dx_.as<T>("avg_pool3d_backward: dx");
    for_each_cover(p, dx, [&](float* target, int64_t out, int32_t, int64_t divisor) {
      const Input<T> source{dy + out * p.c};
      const float scale = 1.0f / static_cast<float>(divisor);
#pragma omp simd
      for (int64_t c = 0; c < p.c; ++c) {
        target[c] += source[c] * scale;
      }
    });
  });
}

}  // namespace vesal::kernels::cpu
