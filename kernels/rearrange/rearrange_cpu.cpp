// Rearrangements on the CPU: contiguous runs are copied, rows in parallel.
#include <algorithm>
#include <cstring>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/rearrange/rearrange.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kGrainElements = 32768;  // floats below which a second thread does not pay

struct Box {
  int64_t d, h, w;
};

// to[n, z, y, x, c] = from[n, z - low, ...], `value` outside.
template <class T>
void place(int64_t n, const Box& from_box, const Box& to_box, int64_t c, const std::array<int64_t, 3>& low,
           T value, const T* from, T* to) {
  const int64_t row_length = to_box.w * c;
  const int64_t first = std::clamp<int64_t>(low[2], 0, to_box.w);
  const int64_t last = std::clamp<int64_t>(low[2] + from_box.w, first, to_box.w);
  parallel_for(n * to_box.d * to_box.h, ceil_div(kGrainElements, std::max<int64_t>(row_length, 1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t item = begin; item < end; ++item) {
                   T* row = to + item * row_length;
                   const int64_t y = item % to_box.h - low[1];
                   const int64_t z = item / to_box.h % to_box.d - low[0];
                   const int64_t sample = item / (to_box.h * to_box.d);
                   if (z < 0 || z >= from_box.d || y < 0 || y >= from_box.h || first == last) {
                     std::fill_n(row, row_length, value);
                     continue;
                   }
                   const T* source =
                       from +
                       (((sample * from_box.d + z) * from_box.h + y) * from_box.w + first - low[2]) * c;
                   std::fill_n(row, first * c, value);
                   std::memcpy(row + first * c, source, static_cast<size_t>((last - first) * c) * sizeof(T));
                   std::fill_n(row + last * c, (to_box.w - last) * c, value);
                 }
               });
}

// Rows of kCount floats where that is known while compiling (the copy is a few moves then), else of `count`.
template <int64_t kCount, bool kAccumulate, class T>
void copy_rows(int64_t begin, int64_t end, const CopyChannelsParams& p, Input<T> source, Output<T> target) {
  const int64_t count = kCount > 0 ? kCount : p.count;
  for (int64_t row = begin; row < end; ++row) {
    const auto from = source + row * p.source_channels + p.source_offset;
    const auto to = target + row * p.target_channels + p.target_offset;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      to[i] = kAccumulate ? to[i] + from[i] : from[i];
    }
  }
}

template <bool kAccumulate, class T>
void copy_rows(int64_t begin, int64_t end, const CopyChannelsParams& p, Input<T> source, Output<T> target) {
  switch (p.count) {
    case 1:
      return copy_rows<1, kAccumulate, T>(begin, end, p, source, target);
    case 16:
      return copy_rows<16, kAccumulate, T>(begin, end, p, source, target);
    case 24:
      return copy_rows<24, kAccumulate, T>(begin, end, p, source, target);
    case 32:
      return copy_rows<32, kAccumulate, T>(begin, end, p, source, target);
    case 48:
      return copy_rows<48, kAccumulate, T>(begin, end, p, source, target);
    default:
      return copy_rows<0, kAccumulate, T>(begin, end, p, source, target);
  }
}

}  // namespace

void pad_crop_forward(Context&, const PadCropParams& p, ConstData x, Data y) {
  with_storage("pad_crop_forward", {x, y}, [&]<class T>(T) {
    place(p.n, {p.d, p.h, p.w}, {p.out_d, p.out_h, p.out_w}, p.c, p.low, narrow<T>(p.value),
          x.as<T>("pad_crop_forward: x"), y.as<T>("pad_crop_forward: y"));
  });
}

void pad_crop_backward(Context&, const PadCropParams& p, ConstData dy, Data dx) {
  with_storage("pad_crop_backward", {dy, dx}, [&]<class T>(T) {
    place(p.n, {p.out_d, p.out_h, p.out_w}, {p.d, p.h, p.w}, p.c, {-p.low[0], -p.low[1], -p.low[2]},
          narrow<T>(0.0f), dy.as<T>("pad_crop_backward: dy"), dx.as<T>("pad_crop_backward: dx"));
  });
}

void copy_channels(Context&, const CopyChannelsParams& p, ConstData source_, Data target_, GradMode mode) {
  CopyChannelsParams rows = p;
  if (p.count == p.source_channels && p.count == p.target_channels) {
    rows = {.rows = p.rows * p.count};  // one run
  }
  with_storage("copy_channels", {source_, target_}, [&]<class T>(T) {
    const auto source = input<T>(source_, "copy_channels: source");
    const auto target = output<T>(target_, "copy_channels: target");
    parallel_for(rows.rows, ceil_div(kGrainElements, std::max<int64_t>(rows.count, 1)),
                 [&](int64_t begin, int64_t end) {
                   if (mode == GradMode::accumulate) {
                     copy_rows<true, T>(begin, end, rows, source, target);
                   } else {
                     copy_rows<false, T>(begin, end, rows, source, target);
                   }
                 });
  });
}

void route_channels(Context&, int64_t n, int64_t voxels, int64_t channels, int64_t out, ConstData x_,
                    const int32_t* source, Data y_) {
  with_storage("route_channels", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("route_channels: x");
    T* y = y_.as<T>("route_channels: y");
    for (int64_t s = 0; s < n; ++s) {
      parallel_for(voxels, kGrainElements, [&](int64_t begin, int64_t end) {
        for (int64_t k = 0; k < out; ++k) {
          const int32_t from = source[s * out + k];
          T* to = y + s * voxels * out + k;
          if (from < 0) {
            for (int64_t v = begin; v < end; ++v) {
              to[v * out] = narrow<T>(0.0f);
            }
          } else {
            const T* values = x + s * voxels * channels + from;
            for (int64_t v = begin; v < end; ++v) {
              to[v * out] = values[v * channels];
            }
          }
        }
      });
    }
  });
}

}  // namespace vesal::kernels::cpu
