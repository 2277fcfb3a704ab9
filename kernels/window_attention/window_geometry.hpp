// Which token of the volume sits where in a shifted, padded window: shared by the CPU and the CUDA kernels. A
// token of a window is named by its local index l = (z * window_h + y) * window_w + x.
#pragma once

#include <cstdint>

#include "base/host_device.hpp"
#include "kernels/window_attention/window_attention.hpp"

namespace vesal::kernels {

// Code of a key that no query may see. Region codes are never negative.
inline constexpr int kHiddenToken = -1;

// Plain data, passed to kernels by value. Triples are in the order D, H, W.
struct WindowGeometry {
  int64_t windows;
  int extent[3];
  int window[3];
  int shift[3];
  int bias_window[3];  // whose places the bias table tells apart
  int counts[3];       // windows along each axis
  int tokens;          // of one window
  int bias_rows;
  int mask_padding;
};

// A window's sample, its first voxel on the rolled grid, and whether it is the last along each axis.
struct WindowPlace {
  int64_t sample;
  int origin[3];
  int last[3];
};

// index: row of the token in [n * d * h * w], -1 for padding. code: tokens attend to each other where codes
// are equal. offset: of token i and j, rel(i, j) = offset_i - offset_j + (bias_rows - 1) / 2.
struct WindowToken {
  int64_t index;
  int code;
  int offset;
};

inline WindowGeometry window_geometry(const WindowAttentionParams& params) {
  WindowGeometry g{};
  g.windows = params.windows();
  const int64_t extents[3] = {params.d, params.h, params.w};
  const std::array<int, 3> bias_window = params.table_window();
  for (int axis = 0; axis < 3; ++axis) {
    g.extent[axis] = static_cast<int>(extents[axis]);
    g.window[axis] = params.window[axis];
    g.shift[axis] = params.shift[axis];
    g.bias_window[axis] = bias_window[static_cast<size_t>(axis)];
    g.counts[axis] = static_cast<int>(ceil_div(extents[axis], params.window[axis]));
  }
  g.tokens = static_cast<int>(params.window_tokens());
  g.bias_rows = static_cast<int>(params.bias_rows());
  g.mask_padding = params.padding == PaddingMode::masked ? 1 : 0;
  return g;
}

VESAL_HOST_DEVICE inline WindowPlace window_place(const WindowGeometry& g, int64_t window) {
  const int64_t per_sample = int64_t{g.counts[0]} * g.counts[1] * g.counts[2];
  WindowPlace place;
  place.sample = window / per_sample;
  int64_t rest = window - place.sample * per_sample;
  for (int axis = 2; axis >= 0; --axis) {
    const int position = static_cast<int>(rest % g.counts[axis]);
    rest /= g.counts[axis];
    place.origin[axis] = position * g.window[axis];
    place.last[axis] = position == g.counts[axis] - 1 ? 1 : 0;
  }
  return place;
}

// One axis: the voxel that sits at coordinate `local` of the window, -1 where that is padding.
VESAL_HOST_DEVICE inline int window_voxel(const WindowGeometry& g, const WindowPlace& place, int axis,
                                          int local) {
  const int padded = g.counts[axis] * g.window[axis];
  int voxel = place.origin[axis] + local + g.shift[axis];
  voxel -= voxel >= padded ? padded : 0;
  return voxel < g.extent[axis] ? voxel : -1;
}

// One axis: 1 where the roll brought the volume's near end into its last window. Every other window lies in a
// single region, so one bit per axis tells apart what can meet in one window of the 27 regions.
VESAL_HOST_DEVICE inline int window_region(const WindowGeometry& g, const WindowPlace& place, int axis,
                                           int local) {
  return place.last[axis] != 0 && local >= g.window[axis] - g.shift[axis] ? 1 : 0;
}

// The token's place in the bias table's window as one number: rel(i, j) is the difference of two of them.
VESAL_HOST_DEVICE inline int bias_offset(const WindowGeometry& g, int z, int y, int x) {
  return (z * (2 * g.bias_window[1] - 1) + y) * (2 * g.bias_window[2] - 1) + x;
}

VESAL_HOST_DEVICE inline WindowToken window_token(const WindowGeometry& g, const WindowPlace& place,
                                                  int local) {
  const int x = local % g.window[2];
  const int y = local / g.window[2] % g.window[1];
  const int z = local / (g.window[2] * g.window[1]);
  const int vz = window_voxel(g, place, 0, z);
  const int vy = window_voxel(g, place, 1, y);
  const int vx = window_voxel(g, place, 2, x);
  const bool padding = vz < 0 || vy < 0 || vx < 0;
  WindowToken token;
  token.index = padding ? -1 : ((place.sample * g.extent[0] + vz) * g.extent[1] + vy) * g.extent[2] + vx;
  token.code = padding && g.mask_padding != 0
                   ? kHiddenToken
                   : window_region(g, place, 0, z) * 4 + window_region(g, place, 1, y) * 2 +
                         window_region(g, place, 2, x);
  token.offset = bias_offset(g, local / (g.bias_window[2] * g.bias_window[1]),
                             local / g.bias_window[2] % g.bias_window[1], local % g.bias_window[2]);
  return token;
}

}  // namespace vesal::kernels
