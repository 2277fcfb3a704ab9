// Sobel gradients in 3D, their magnitude, and the edge gate.
//
// Stencils: x is read once and three numbers a voxel (or one) are written; some 50 operations a voxel on 16
// bytes: limited by memory. A block computes a tile of 4 x 8 x 32 voxels from a copy with a border of one in
// shared memory. Magnitude backward first writes the gradient's gradient to the workspace, then applies the
// transposed stencil. Edge gate: x and y (backward: x, dy, dx) and the three gradients once, a few operations
// a byte: limited by memory. Backward sums over the channels with up to 32 lanes a voxel in a fixed order.
#include "base/size.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/simt/device.hpp"
#include "kernels/sobel/sobel.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kTileD = 4, kTileH = 8, kTileW = 32;
constexpr int kThreads = kTileH * kTileW;
constexpr int kBlock = 256;
constexpr unsigned kFullWarp = 0xffffffffu;

struct Volume {
  int64_t n, d, h, w;
  int64_t tiles_d, tiles_h, tiles_w;
  float scale_d, scale_h, scale_w;
  float eps;
};

struct Tile {
  int64_t n, d, h, w;  // its first voxel
};

VESAL_DEVICE Tile tile_of(const Volume& v, int64_t index) {
  Tile tile;
  tile.w = index % v.tiles_w * kTileW;
  tile.h = index / v.tiles_w % v.tiles_h * kTileH;
  tile.d = index / v.tiles_w / v.tiles_h % v.tiles_d * kTileD;
  tile.n = index / v.tiles_w / v.tiles_h / v.tiles_d;
  return tile;
}

using Plane = float[kTileH + 2][kTileW + 2];

// One component of a tile with its border, zeros outside the volume. `stride` is the number of components.
template <class In>
VESAL_DEVICE void load_tile(const Volume& v, const Tile& tile, In source, int stride, Plane* target) {
  constexpr int kCount = (kTileD + 2) * (kTileH + 2) * (kTileW + 2);
  for (int i = static_cast<int>(threadIdx.x); i < kCount; i += kThreads) {
    const int c = i % (kTileW + 2);
    const int b = i / (kTileW + 2) % (kTileH + 2);
    const int a = i / (kTileW + 2) / (kTileH + 2);
    const int64_t d = tile.d + a - 1, h = tile.h + b - 1, w = tile.w + c - 1;
    const bool inside = d >= 0 && d < v.d && h >= 0 && h < v.h && w >= 0 && w < v.w;
    target[a][b][c] =
        inside ? static_cast<float>(source[(((tile.n * v.d + d) * v.h + h) * v.w + w) * stride]) : 0.0f;
  }
}

// The 3 x 3 x 3 neighbourhood of a voxel whose corner is at (a, b, c): differentiated along one axis with [1,
// 0, -1] and smoothed along the others with [1, 2, 1].
VESAL_DEVICE float smooth_w(const Plane* t, int a, int b, int c) {
  return t[a][b][c] + 2.0f * t[a][b][c + 1] + t[a][b][c + 2];
}
VESAL_DEVICE float smooth_hw(const Plane* t, int a, int b, int c) {
  return smooth_w(t, a, b, c) + 2.0f * smooth_w(t, a, b + 1, c) + smooth_w(t, a, b + 2, c);
}
VESAL_DEVICE float along_d(const Plane* t, int a, int b, int c) {
  return smooth_hw(t, a, b, c) - smooth_hw(t, a + 2, b, c);
}
VESAL_DEVICE float along_h(const Plane* t, int a, int b, int c) {
  float sum = 0.0f;
  VESAL_UNROLL
  for (int i = 0; i < 3; ++i) {
    sum += (i == 1 ? 2.0f : 1.0f) * (smooth_w(t, a + i, b, c) - smooth_w(t, a + i, b + 2, c));
  }
  return sum;
}
VESAL_DEVICE float along_w(const Plane* t, int a, int b, int c) {
  float sum = 0.0f;
  VESAL_UNROLL
  for (int i = 0; i < 3; ++i) {
    VESAL_UNROLL
    for (int j = 0; j < 3; ++j) {
      sum += (i == 1 ? 2.0f : 1.0f) * (j == 1 ? 2.0f : 1.0f) * (t[a + i][b + j][c] - t[a + i][b + j][c + 2]);
    }
  }
  return sum;
}

enum class Result { gradient, magnitude, magnitude_backward };

// What goes to the workspace is float32.
template <class T, Result kResult>
using StencilOut = std::conditional_t<kResult == Result::magnitude_backward, float, T>;

// gradient: out [.., 3]. magnitude: out [..]. magnitude_backward: out [.., 3] is the gradient of the loss
// with respect to the Sobel gradient, given dmagnitude.
template <class T, Result kResult>
VESAL_KERNEL void sobel_stencil(Volume v, const T* VESAL_RESTRICT x, const T* VESAL_RESTRICT dmagnitude_,
                                StencilOut<T, kResult>* VESAL_RESTRICT out_) {
  const Input<T> dmagnitude{dmagnitude_};
  const Output<StencilOut<T, kResult>> out{out_};
  VESAL_SHARED(float, tile_x, [kTileD + 2][kTileH + 2][kTileW + 2]);
  const Tile tile = tile_of(v, blockIdx.x);
  load_tile(v, tile, Input<T>{x}, 1, tile_x);
  __syncthreads();
  const int c = static_cast<int>(threadIdx.x) % kTileW;
  const int b = static_cast<int>(threadIdx.x) / kTileW;
  if (tile.h + b >= v.h || tile.w + c >= v.w) {
    return;
  }
  for (int a = 0; a < kTileD && tile.d + a < v.d; ++a) {
    const int64_t voxel = ((tile.n * v.d + tile.d + a) * v.h + tile.h + b) * v.w + tile.w + c;
    const float gd = along_d(tile_x, a, b, c) * v.scale_d;
    const float gh = along_h(tile_x, a, b, c) * v.scale_h;
    const float gw = along_w(tile_x, a, b, c) * v.scale_w;
    if constexpr (kResult == Result::gradient) {
      out[voxel * 3] = gd;
      out[voxel * 3 + 1] = gh;
      out[voxel * 3 + 2] = gw;
    } else {
      const float square = gd * gd + gh * gh + gw * gw + v.eps;
      if constexpr (kResult == Result::magnitude) {
        out[voxel] = sqrtf(square);
      } else {
        const float scale = square > 0.0f ? dmagnitude[voxel] / sqrtf(square) : 0.0f;
        out[voxel * 3] = scale * gd;
        out[voxel * 3 + 1] = scale * gh;
        out[voxel * 3 + 2] = scale * gw;
      }
    }
  }
}

// The transposed stencil: smoothing is its own transpose, the derivative changes its sign.
template <class In, class T>
VESAL_KERNEL void sobel_transposed(Volume v, const In* VESAL_RESTRICT dgradient_, T* VESAL_RESTRICT dx_) {
  const Input<In> dgradient{dgradient_};
  const Output<T> dx{dx_};
  VESAL_SHARED(float, tile_d, [kTileD + 2][kTileH + 2][kTileW + 2]);
  VESAL_SHARED(float, tile_h, [kTileD + 2][kTileH + 2][kTileW + 2]);
  VESAL_SHARED(float, tile_w, [kTileD + 2][kTileH + 2][kTileW + 2]);
  const Tile tile = tile_of(v, blockIdx.x);
  load_tile(v, tile, dgradient, 3, tile_d);
  load_tile(v, tile, dgradient + 1, 3, tile_h);
  load_tile(v, tile, dgradient + 2, 3, tile_w);
  __syncthreads();
  const int c = static_cast<int>(threadIdx.x) % kTileW;
  const int b = static_cast<int>(threadIdx.x) / kTileW;
  if (tile.h + b >= v.h || tile.w + c >= v.w) {
    return;
  }
  for (int a = 0; a < kTileD && tile.d + a < v.d; ++a) {
    const int64_t voxel = ((tile.n * v.d + tile.d + a) * v.h + tile.h + b) * v.w + tile.w + c;
    dx[voxel] = -(along_d(tile_d, a, b, c) * v.scale_d + along_h(tile_h, a, b, c) * v.scale_h +
                  along_w(tile_w, a, b, c) * v.scale_w);
  }
}

struct Gate {
  float gd, gh, gw;
  float magnitude;
  float gate;
};

template <class In>
VESAL_DEVICE Gate gate_of(In gradient, int64_t voxel, float eps) {
  Gate g;
  g.gd = gradient[voxel * 3];
  g.gh = gradient[voxel * 3 + 1];
  g.gw = gradient[voxel * 3 + 2];
  g.magnitude = sqrtf(g.gd * g.gd + g.gh * g.gh + g.gw * g.gw + eps);
  g.gate = 1.0f / (1.0f + expf(-g.magnitude));
  return g;
}

// `lanes` (a power of two) threads a voxel, over its channels.
template <class T>
VESAL_KERNEL void gate_forward(int64_t voxels, int64_t channels, int lanes, float eps,
                               const T* VESAL_RESTRICT gradient, const T* VESAL_RESTRICT x_,
                               T* VESAL_RESTRICT y_) {
  const Input<T> x{x_};
  const Output<T> y{y_};
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t voxel = thread / lanes;
  if (voxel >= voxels) {
    return;
  }
  const Gate g = gate_of(Input<T>{gradient}, voxel, eps);
  for (int64_t c = thread % lanes; c < channels; c += lanes) {
    y[voxel * channels + c] = g.gate * x[voxel * channels + c];
  }
}

template <class T>
VESAL_KERNEL void gate_backward(int64_t voxels, int64_t channels, int lanes, float eps,
                                const T* VESAL_RESTRICT gradient, const T* VESAL_RESTRICT x_,
                                const T* VESAL_RESTRICT dy_, T* VESAL_RESTRICT dgradient_,
                                T* VESAL_RESTRICT dx_) {
  const Input<T> x{x_};
  const Input<T> dy{dy_};
  const Output<T> dgradient{dgradient_};
  const Output<T> dx{dx_};
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t voxel = thread / lanes;
  const bool valid = voxel < voxels;
  const Gate g = gate_of(Input<T>{gradient}, valid ? voxel : 0, eps);
  float dgate = 0.0f;
  if (valid) {
    for (int64_t c = thread % lanes; c < channels; c += lanes) {
      const float upstream = dy[voxel * channels + c];
      dx[voxel * channels + c] = g.gate * upstream;
      dgate += upstream * x[voxel * channels + c];
    }
  }
  for (int step = lanes / 2; step > 0; step /= 2) {
    dgate += __shfl_xor_sync(kFullWarp, dgate, step);
  }
  if (valid && thread % lanes == 0) {
    const float slope = g.gate * (1.0f - g.gate);
    const float scale = g.magnitude > 0.0f ? dgate * slope / g.magnitude : 0.0f;
    dgradient[voxel * 3] = scale * g.gd;
    dgradient[voxel * 3 + 1] = scale * g.gh;
    dgradient[voxel * 3 + 2] = scale * g.gw;
  }
}

Volume volume_of(const SobelParams& p) {
  return {p.n,
          p.d,
          p.h,
          p.w,
          ceil_div(p.d, kTileD),
          ceil_div(p.h, kTileH),
          ceil_div(p.w, kTileW),
          1.0f / p.spacing[0],
          1.0f / p.spacing[1],
          1.0f / p.spacing[2],
          p.eps};
}

int64_t tiles(const Volume& v) { return v.n * v.tiles_d * v.tiles_h * v.tiles_w; }

int gate_lanes(const EdgeGateParams& p) {
  int lanes = 1;
  while (lanes < 32 && lanes < p.channels) {
    lanes *= 2;
  }
  return lanes;
}

}  // namespace

void sobel_gradient_forward(Context& context, const SobelParams& params, ConstData x, Data gradient) {
  const Volume volume = volume_of(params);
  with_storage("sobel_gradient_forward", {x, gradient}, [&]<class T>(T) {
    launch(context.stream(), {.grid = tiles(volume), .block = kThreads}, sobel_stencil<T, Result::gradient>,
           volume, x.as<T>("sobel_gradient_forward: x"), nullptr,
           gradient.as<T>("sobel_gradient_forward: gradient"));
  });
}

void sobel_gradient_backward(Context& context, const SobelParams& params, ConstData dgradient, Data dx) {
  const Volume volume = volume_of(params);
  with_storage("sobel_gradient_backward", {dgradient, dx}, [&]<class T>(T) {
    launch(context.stream(), {.grid = tiles(volume), .block = kThreads}, sobel_transposed<T, T>, volume,
           dgradient.as<T>("sobel_gradient_backward: dgradient"), dx.as<T>("sobel_gradient_backward: dx"));
  });
}

void sobel_magnitude_forward(Context& context, const SobelParams& params, ConstData x, Data magnitude) {
  const Volume volume = volume_of(params);
  with_storage("sobel_magnitude_forward", {x, magnitude}, [&]<class T>(T) {
    launch(context.stream(), {.grid = tiles(volume), .block = kThreads}, sobel_stencil<T, Result::magnitude>,
           volume, x.as<T>("sobel_magnitude_forward: x"), nullptr,
           magnitude.as<T>("sobel_magnitude_forward: magnitude"));
  });
}

size_t sobel_magnitude_workspace_bytes(Context&, const SobelParams& p) {
  return static_cast<size_t>(p.n * p.d * p.h * p.w) * 3 * sizeof(float);
}

void sobel_magnitude_backward(Context& context, const SobelParams& params, ConstData x, ConstData dmagnitude,
                              Data dx, Workspace workspace) {
  auto* dgradient = static_cast<float*>(workspace.data);
  const Volume volume = volume_of(params);
  with_storage("sobel_magnitude_backward", {x, dmagnitude, dx}, [&]<class T>(T) {
    launch(context.stream(), {.grid = tiles(volume), .block = kThreads},
           sobel_stencil<T, Result::magnitude_backward>, volume, x.as<T>("sobel_magnitude_backward: x"),
           dmagnitude.as<T>("sobel_magnitude_backward: dmagnitude"), dgradient);
    launch(context.stream(), {.grid = tiles(volume), .block = kThreads}, sobel_transposed<float, T>, volume,
           dgradient, dx.as<T>("sobel_magnitude_backward: dx"));
  });
}

void edge_gate_forward(Context& context, const EdgeGateParams& params, ConstData gradient, ConstData x,
                       Data y) {
  const int lanes = gate_lanes(params);
  with_storage("edge_gate_forward", {gradient, x, y}, [&]<class T>(T) {
    launch(context.stream(), {.grid = ceil_div(params.voxels * lanes, kBlock), .block = kBlock},
           gate_forward<T>, params.voxels, params.channels, lanes, params.eps,
           gradient.as<T>("edge_gate_forward: gradient"), x.as<T>("edge_gate_forward: x"),
           y.as<T>("edge_gate_forward: y"));
  });
}

void edge_gate_backward(Context& context, const EdgeGateParams& params, ConstData gradient, ConstData x,
                        ConstData dy, Data dgradient, Data dx) {
  const int lanes = gate_lanes(params);
  with_storage("edge_gate_backward", {gradient, x, dy, dgradient, dx}, [&]<class T>(T) {
    launch(context.stream(), {.grid = ceil_div(params.voxels * lanes, kBlock), .block = kBlock},
           gate_backward<T>, params.voxels, params.channels, lanes, params.eps,
           gradient.as<T>("edge_gate_backward: gradient"), x.as<T>("edge_gate_backward: x"),
           dy.as<T>("edge_gate_backward: dy"), dgradient.as<T>("edge_gate_backward: dgradient"),
           dx.as<T>("edge_gate_backward: dx"));
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
