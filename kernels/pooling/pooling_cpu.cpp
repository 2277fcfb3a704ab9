// Pooling on the host. Limited by memory: each output row (fixed n, d, h) reads its few input rows once.
// Backward passes walk the rows of the input, so that every voxel of dx is written once, in order; the rows
// of dy that it needs stay in the cache from one input row to the next.
#include <algorithm>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/pooling/pooling.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kChannels = 64;         // channels held in registers and on the stack at a time
constexpr int64_t kGrainBytes = 1 << 15;  // the least a thread is started for
constexpr int kMostVoxels = 255;

int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, elements_per_item * 4));
}

// The window of one output voxel: pointers to its voxels (without the channels that follow) and their
// numbers.
struct Window {
  const float* voxel[kMostVoxels];
  int32_t number[kMostVoxels];
  int count = 0;
};

// Calls body(output voxel, window) for all output voxels, in parallel over output rows.
template <class Body>
void for_each_window(const PoolParams& p, const float* x, Body&& body) {
  const int64_t rows = p.n * p.out_d() * p.out_h();
  const int64_t row_elements = p.kernel[0] * p.kernel[1] * p.w * p.c;
  parallel_for(rows, grain(row_elements), [&](int64_t begin, int64_t end) {
    Window window;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t oh = row % p.out_h();
      const int64_t od = row / p.out_h() % p.out_d();
      const int64_t n = row / p.out_h() / p.out_d();
      const int64_t d0 = od * p.stride[0], d1 = std::min(d0 + p.kernel[0], p.d);
      const int64_t h0 = oh * p.stride[1], h1 = std::min(h0 + p.kernel[1], p.h);
      for (int64_t ow = 0; ow < p.out_w(); ++ow) {
        const int64_t w0 = ow * p.stride[2], w1 = std::min(w0 + p.kernel[2], p.w);
        window.count = 0;
        for (int64_t d = d0; d < d1; ++d) {
          for (int64_t h = h0; h < h1; ++h) {
            for (int64_t w = w0; w < w1; ++w) {
              window.voxel[window.count] = x + (((n * p.d + d) * p.h + h) * p.w + w) * p.c;
              window.number[window.count] =
                  static_cast<int32_t>(((d - d0) * p.kernel[1] + h - h0) * p.kernel[2] + w - w0);
              ++window.count;
            }
          }
        }
        body(row * p.out_w() + ow, window);
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

template <int kLanes, int kCount>
void max_lanes(const float* const* voxel, int64_t c, float* y, uint8_t* index) {
  using Values = typename Vectors<kLanes>::Values;
  using Numbers = typename Vectors<kLanes>::Numbers;
  using Bytes = typename Vectors<kLanes>::Bytes;
  Values best;
  std::memcpy(&best, voxel[0] + c, sizeof(best));
  Numbers winner{};
#pragma GCC unroll 8
  for (int k = 1; k < kCount; ++k) {
    Values value;
    std::memcpy(&value, voxel[k] + c, sizeof(value));
    const Numbers wins = ~(value <= best) & (best == best);  // larger, or the first NaN
    best = wins ? value : best;
    winner = wins ? Numbers{} + k : winner;
  }
  std::memcpy(y + c, &best, sizeof(best));
  if (index != nullptr) {
    const Bytes bytes = __builtin_convertvector(winner, Bytes);
    std::memcpy(index + c, &bytes, sizeof(bytes));
  }
}

// kCount voxels whose numbers are 0 .. kCount - 1, unrolled.
template <int kCount>
void max_full_window(const Window& window, int64_t channels, float* y, uint8_t* index) {
  const float* voxel[kCount];
  std::copy_n(window.voxel, kCount, voxel);
  int64_t c = 0;
  for (; c + 16 <= channels; c += 16) {
    max_lanes<16, kCount>(voxel, c, y, index);
  }
  for (; c + 8 <= channels; c += 8) {
    max_lanes<8, kCount>(voxel, c, y, index);
  }
  for (; c < channels; ++c) {
    float best = voxel[0][c];
    int winner = 0;
    for (int k = 1; k < kCount; ++k) {
      const bool wins = beats(voxel[k][c], best);
      best = wins ? voxel[k][c] : best;
      winner = wins ? k : winner;
    }
    y[c] = best;
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
template <int kLanes>
void add_won_lanes(const float* dy, const uint8_t* winner, int32_t number, float* dx) {
  using Values = typename Vectors<kLanes>::Values;
  using Numbers = typename Vectors<kLanes>::Numbers;
  Values source, target;
  std::memcpy(&source, dy, sizeof(source));
  std::memcpy(&target, dx, sizeof(target));
  Numbers numbers;
  load_bytes<kLanes>(winner, numbers);
  const Numbers won = numbers == number;
  target += won ? source : Values{};
  std::memcpy(dx, &target, sizeof(target));
}

void max_any_window(const Window& window, int64_t channels, float* y, uint8_t* index) {
  for (int64_t first = 0; first < channels; first += kChannels) {
    const int64_t count = std::min(kChannels, channels - first);
    float best[kChannels];
    int32_t winner[kChannels];
    for (int64_t c = 0; c < count; ++c) {
      best[c] = window.voxel[0][first + c];
      winner[c] = window.number[0];
    }
    for (int k = 1; k < window.count; ++k) {
      const float* voxel = window.voxel[k] + first;
      const int32_t number = window.number[k];
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const bool wins = beats(voxel[c], best[c]);
        best[c] = wins ? voxel[c] : best[c];
        winner[c] = wins ? number : winner[c];
      }
    }
    std::copy_n(best, count, y + first);
    if (index != nullptr) {
      for (int64_t c = 0; c < count; ++c) {
        index[first + c] = static_cast<uint8_t>(winner[c]);
      }
    }
  }
}

void average_window(const Window& window, int64_t channels, float* y) {
  const float scale = 1.0f / static_cast<float>(window.count);
  for (int64_t first = 0; first < channels; first += kChannels) {
    const int64_t count = std::min(kChannels, channels - first);
    float sum[kChannels];
    std::copy_n(window.voxel[0] + first, count, sum);
    for (int k = 1; k < window.count; ++k) {
      const float* voxel = window.voxel[k] + first;
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        sum[c] += voxel[c];
      }
    }
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      y[first + c] = sum[c] * scale;
    }
  }
}

// The windows that cover a position of an axis: [begin, end).
struct Cover {
  int64_t begin, end;
};

Cover windows_over(int64_t position, int64_t kernel, int64_t stride, int64_t out) {
  const int64_t begin = position < kernel ? 0 : (position - kernel) / stride + 1;
  return {begin, std::min(position / stride + 1, out)};
}

// Calls body(dx of the voxel, output voxel, number of the voxel in that window, voxels of that window) for
// the windows over each input voxel, after zeroing it; in parallel over input rows.
template <class Body>
void for_each_cover(const PoolParams& p, float* dx, Body&& body) {
  const int64_t out_h = p.out_h(), out_w = p.out_w(), out_d = p.out_d();
  parallel_for(p.n * p.d * p.h, grain(p.w * p.c), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t h = row % p.h, d = row / p.h % p.d, n = row / p.h / p.d;
      const Cover over_d = windows_over(d, p.kernel[0], p.stride[0], out_d);
      const Cover over_h = windows_over(h, p.kernel[1], p.stride[1], out_h);
      float* target = dx + row * p.w * p.c;
      std::memset(target, 0, static_cast<size_t>(p.w * p.c) * sizeof(float));
      for (int64_t od = over_d.begin; od < over_d.end; ++od) {
        const int64_t covered_d = std::min<int64_t>(p.kernel[0], p.d - od * p.stride[0]);
        for (int64_t oh = over_h.begin; oh < over_h.end; ++oh) {
          const int64_t covered_h = std::min<int64_t>(p.kernel[1], p.h - oh * p.stride[1]);
          const int64_t line = ((d - od * p.stride[0]) * p.kernel[1] + h - oh * p.stride[1]) * p.kernel[2];
          const int64_t out_row = ((n * out_d + od) * out_h + oh) * out_w;
          for (int64_t ow = 0; ow < out_w; ++ow) {
            const int64_t w0 = ow * p.stride[2];
            const int64_t covered_w = std::min<int64_t>(p.kernel[2], p.w - w0);
            for (int64_t b = 0; b < covered_w; ++b) {
              body(target + (w0 + b) * p.c, out_row + ow, static_cast<int32_t>(line + b),
                   covered_d * covered_h * covered_w);
            }
          }
        }
      }
    }
  });
}

}  // namespace

void max_pool3d_forward(Context&, const PoolParams& p, ConstData x_, Data y_, uint8_t* index) {
  const float* x = x_.as<float>("max_pool3d_forward: x");
  float* y = y_.as<float>("max_pool3d_forward: y");
  const bool eight = p.kernel[0] == 2 && p.kernel[1] == 2 && p.kernel[2] == 2;
  for_each_window(p, x, [&](int64_t out, const Window& window) {
    float* target = y + out * p.c;
    uint8_t* winner = index == nullptr ? nullptr : index + out * p.c;
    if (eight && window.count == 8) {
      max_full_window<8>(window, p.c, target, winner);
    } else {
      max_any_window(window, p.c, target, winner);
    }
  });
}

void max_pool3d_backward(Context&, const PoolParams& p, ConstData dy_, const uint8_t* index, Data dx_) {
  const float* dy = dy_.as<float>("max_pool3d_backward: dy");
  float* dx = dx_.as<float>("max_pool3d_backward: dx");
  for_each_cover(p, dx, [&](float* target, int64_t out, int32_t number, int64_t) {
    const float* source = dy + out * p.c;
    const uint8_t* winner = index + out * p.c;
    int64_t c = 0;
    for (; c + 16 <= p.c; c += 16) {
      add_won_lanes<16>(source + c, winner + c, number, target + c);
    }
    for (; c + 8 <= p.c; c += 8) {
      add_won_lanes<8>(source + c, winner + c, number, target + c);
    }
    for (; c < p.c; ++c) {
      target[c] += winner[c] == number ? source[c] : 0.0f;
    }
  });
}

void avg_pool3d_forward(Context&, const PoolParams& p, ConstData x_, Data y_) {
  const float* x = x_.as<float>("avg_pool3d_forward: x");
  float* y = y_.as<float>("avg_pool3d_forward: y");
  for_each_window(p, x,
                  [&](int64_t out, const Window& window) { average_window(window, p.c, y + out * p.c); });
}

void avg_pool3d_backward(Context&, const PoolParams& p, ConstData dy_, Data dx_) {
  const float* dy = dy_.as<float>("avg_pool3d_backward: dy");
  float* dx = dx_.as<float>("avg_pool3d_backward: dx");
  for_each_cover(p, dx, [&](float* target, int64_t out, int32_t, int64_t covered) {
    const float* source = dy + out * p.c;
    const float scale = 1.0f / static_cast<float>(covered);
#pragma omp simd
    for (int64_t c = 0; c < p.c; ++c) {
      target[c] += source[c] * scale;
    }
  });
}

}  // namespace vesal::kernels::cpu
