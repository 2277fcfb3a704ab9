// Rearrangements as plain loops over output elements.
#pragma once

#include <cstdint>

#include "kernels/rearrange/rearrange.hpp"

namespace vesal::kernels::reference {

// Where an output voxel of pad_crop comes from: the flat voxel of x, or -1 outside.
inline int64_t pad_crop_source(const PadCropParams& p, int64_t n, int64_t z, int64_t y, int64_t x) {
  const int64_t from_z = z - p.low[0];
  const int64_t from_y = y - p.low[1];
  const int64_t from_x = x - p.low[2];
  if (from_z < 0 || from_z >= p.d || from_y < 0 || from_y >= p.h || from_x < 0 || from_x >= p.w) {
    return -1;
  }
  return ((n * p.d + from_z) * p.h + from_y) * p.w + from_x;
}

// Calls use(source voxel or -1, output voxel).
template <class Use>
void for_pad_crop(const PadCropParams& p, Use use) {
  int64_t target = 0;
  for (int64_t n = 0; n < p.n; ++n) {
    for (int64_t z = 0; z < p.out_d; ++z) {
      for (int64_t y = 0; y < p.out_h; ++y) {
        for (int64_t x = 0; x < p.out_w; ++x) {
          use(pad_crop_source(p, n, z, y, x), target++);
        }
      }
    }
  }
}

template <class T>
void pad_crop_forward(const PadCropParams& p, const T* x, T* y) {
  for_pad_crop(p, [&](int64_t source, int64_t target) {
    for (int64_t c = 0; c < p.c; ++c) {
      y[target * p.c + c] = source < 0 ? T(p.value) : x[source * p.c + c];
    }
  });
}

template <class T>
void pad_crop_backward(const PadCropParams& p, const T* dy, T* dx) {
  for (int64_t i = 0; i < p.n * p.d * p.h * p.w * p.c; ++i) {
    dx[i] = T(0);
  }
  for_pad_crop(p, [&](int64_t source, int64_t target) {
    for (int64_t c = 0; c < p.c && source >= 0; ++c) {
      dx[source * p.c + c] += dy[target * p.c + c];
    }
  });
}

template <class T>
void copy_channels(const CopyChannelsParams& p, const T* source, T* target, GradMode mode) {
  for (int64_t row = 0; row < p.rows; ++row) {
    for (int64_t i = 0; i < p.count; ++i) {
      T& to = target[row * p.target_channels + p.target_offset + i];
      const T from = source[row * p.source_channels + p.source_offset + i];
      to = mode == GradMode::accumulate ? to + from : from;
    }
  }
}

template <class T>
void route_channels(int64_t n, int64_t voxels, int64_t channels, int64_t out, const T* x,
                    const int32_t* source, T* y) {
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t v = 0; v < voxels; ++v) {
      for (int64_t k = 0; k < out; ++k) {
        const int32_t from = source[s * out + k];
        y[(s * voxels + v) * out + k] = from < 0 ? T(0) : x[(s * voxels + v) * channels + from];
      }
    }
  }
}

}  // namespace vesal::kernels::reference
