// Sobel gradients and the edge gate on the host. The stencils are separable: for a stretch of a row, the nine
// rows around it are combined over d and h first (three sums a voxel), then along w, in buffers that stay in
// the cache.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/float_rows_cpu.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/sobel/sobel.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kStretch = 256;    // voxels of a row at a time
constexpr int64_t kGateVoxels = 64;  // gates computed at a time
constexpr int64_t kGrainVoxels = 4096;

int64_t row_grain(const SobelParams& p) {
  return std::max<int64_t>(1, kGrainVoxels / std::max<int64_t>(p.w, 1));
}

// What stands for a row outside the volume.
template <class T>
alignas(64) constexpr T kZeros[3 * (kStretch + 2)] = {};

// The nine rows around row (d, h) from voxel `first` on, d slowest; `components` numbers a voxel.
template <class T>
struct Rows {
  Input<T> at[9];

  Rows(const SobelParams& p, const T* sample, int64_t d, int64_t h, int64_t first, int64_t components) {
    for (int i = 0; i < 9; ++i) {
      const int64_t z = d + i / 3 - 1, y = h + i % 3 - 1;
      const bool inside = z >= 0 && z < p.d && y >= 0 && y < p.h;
      at[i] = Input<T>{inside ? sample + ((z * p.h + y) * p.w + first) * components : kZeros<T>};
    }
  }
};

// A stretch of `count` voxels from w0 on with the voxel before and the voxel after it: those inside the
// volume are `length` from `first` on, and the others are zero.
struct Stretch {
  int64_t first, length, offset;

  Stretch(const SobelParams& p, int64_t w0, int64_t count)
      : first(std::max<int64_t>(w0 - 1, 0)),
        length(std::min(w0 + count + 1, p.w) - first),
        offset(first - (w0 - 1)) {}

  void clear_border(float* buffer, int64_t count) const {
    buffer[0] = 0.0f;
    buffer[count + 1] = 0.0f;
  }
};

// The gradient at `count` voxels of a row from w0 on: gd, gh, gw [count].
template <class T>
void stretch_gradient(const SobelParams& p, const T* sample, int64_t d, int64_t h, int64_t w0, int64_t count,
                      float* __restrict__ gd, float* __restrict__ gh, float* __restrict__ gw) {
  // Sums over the nine rows at w0 - 1 .. w0 + count: derivative over d, over h, and over neither.
  alignas(64) float along_d[kStretch + 2], along_h[kStretch + 2], smooth[kStretch + 2];
  const Stretch stretch(p, w0, count);
  for (float* buffer : {along_d, along_h, smooth}) {
    stretch.clear_border(buffer, count);
  }
  const Rows<T> rows(p, sample, d, h, stretch.first, 1);
  const Input<T> r0 = rows.at[0], r1 = rows.at[1], r2 = rows.at[2], r3 = rows.at[3], r4 = rows.at[4],
                 r5 = rows.at[5], r6 = rows.at[6], r7 = rows.at[7], r8 = rows.at[8];
  float* to_d = along_d + stretch.offset;
  float* to_h = along_h + stretch.offset;
  float* to_smooth = smooth + stretch.offset;
#pragma omp simd
  for (int64_t i = 0; i < stretch.length; ++i) {
    const float before = r0[i] + 2.0f * r1[i] + r2[i];
    const float here = r3[i] + 2.0f * r4[i] + r5[i];
    const float after = r6[i] + 2.0f * r7[i] + r8[i];
    to_d[i] = before - after;
    to_h[i] = (r0[i] - r2[i]) + 2.0f * (r3[i] - r5[i]) + (r6[i] - r8[i]);
    to_smooth[i] = before + 2.0f * here + after;
  }
  const float scale_d = 1.0f / p.spacing[0], scale_h = 1.0f / p.spacing[1], scale_w = 1.0f / p.spacing[2];
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    gd[i] = (along_d[i] + 2.0f * along_d[i + 1] + along_d[i + 2]) * scale_d;
    gh[i] = (along_h[i] + 2.0f * along_h[i + 1] + along_h[i + 2]) * scale_h;
    gw[i] = (smooth[i] - smooth[i + 2]) * scale_w;
  }
}

// Calls body(first voxel, count, gd, gh, gw) for stretches that cover the volumes, in parallel over rows.
template <class T, class Body>
void for_each_gradient(const SobelParams& p, const T* x, Body&& body) {
  parallel_for(p.n * p.d * p.h, row_grain(p), [&](int64_t begin, int64_t end) {
    alignas(64) float gd[kStretch], gh[kStretch], gw[kStretch];
    for (int64_t row = begin; row < end; ++row) {
      const T* sample = x + row / p.h / p.d * p.d * p.h * p.w;
      for (int64_t w0 = 0; w0 < p.w; w0 += kStretch) {
        const int64_t count = std::min(kStretch, p.w - w0);
        stretch_gradient(p, sample, row / p.h % p.d, row % p.h, w0, count, gd, gh, gw);
        body(row * p.w + w0, count, gd, gh, gw);
      }
    }
  });
}

// The transposed stencil: smoothing is its own transpose, the derivative changes its sign.
template <class In, class T>
void gradient_backward(const SobelParams& p, const In* dgradient, T* dx) {
  const float scale_d = 1.0f / p.spacing[0], scale_h = 1.0f / p.spacing[1], scale_w = 1.0f / p.spacing[2];
  parallel_for(p.n * p.d * p.h, row_grain(p), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t h = row % p.h, d = row / p.h % p.d;
      const In* sample = dgradient + row / p.h / p.d * p.d * p.h * p.w * 3;
      for (int64_t w0 = 0; w0 < p.w; w0 += kStretch) {
        const int64_t count = std::min(kStretch, p.w - w0);
        // Sums over the nine rows: what is smoothed along w, and what is differentiated along w.
        alignas(64) float smoothed[kStretch + 2], differentiated[kStretch + 2];
        const Stretch stretch(p, w0, count);
        stretch.clear_border(smoothed, count);
        stretch.clear_border(differentiated, count);
        const Rows<In> rows(p, sample, d, h, stretch.first, 3);
        const Input<In> r0 = rows.at[0], r1 = rows.at[1], r2 = rows.at[2], r3 = rows.at[3], r4 = rows.at[4],
                        r5 = rows.at[5], r6 = rows.at[6], r7 = rows.at[7], r8 = rows.at[8];
        float* to_smoothed = smoothed + stretch.offset;
        float* to_differentiated = differentiated + stretch.offset;
#pragma omp simd
        for (int64_t i = 0; i < stretch.length; ++i) {
          const int64_t e = 3 * i;
          const float by_d = (r6[e] + 2.0f * r7[e] + r8[e]) - (r0[e] + 2.0f * r1[e] + r2[e]);
          const float by_h =
              (r2[e + 1] - r0[e + 1]) + 2.0f * (r5[e + 1] - r3[e + 1]) + (r8[e + 1] - r6[e + 1]);
          const float by_w = (r0[e + 2] + 2.0f * r1[e + 2] + r2[e + 2]) +
                             2.0f * (r3[e + 2] + 2.0f * r4[e + 2] + r5[e + 2]) +
                             (r6[e + 2] + 2.0f * r7[e + 2] + r8[e + 2]);
          to_smoothed[i] = by_d * scale_d + by_h * scale_h;
          to_differentiated[i] = by_w * scale_w;
        }
        const Output<T> target{dx + row * p.w + w0};
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          target[i] = (smoothed[i] + 2.0f * smoothed[i + 1] + smoothed[i + 2]) +
                      (differentiated[i + 2] - differentiated[i]);
        }
      }
    }
  });
}

// Gates sigmoid(magnitude) and magnitudes of `count` voxels, at most kGateVoxels.
template <class In>
void gates(In gradient, int64_t count, float eps, float* __restrict__ magnitude, float* __restrict__ gate) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float gd = gradient[3 * i], gh = gradient[3 * i + 1], gw = gradient[3 * i + 2];
    magnitude[i] = std::sqrt(gd * gd + gh * gh + gw * gw + eps);
    gate[i] = 1.0f / (1.0f + vector_exp(-magnitude[i]));
  }
}

// dx = gate dy, for the channels of one voxel; returns the gradient of the gate.
float gate_row_backward(int64_t channels, float gate, const float* x, const float* dy, float* dx) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < channels; ++c) {
    dx[c] = gate * dy[c];
    sum += dy[c] * x[c];
  }
  return sum;
}

int64_t gate_grain(const EdgeGateParams& p) {
  return std::max<int64_t>(1, kGrainVoxels / kGateVoxels / p.channels);
}

}  // namespace

void sobel_gradient_forward(Context&, const SobelParams& p, ConstData x_, Data gradient_) {
  with_storage("sobel_gradient_forward", {x_, gradient_}, [&]<class T>(T) {
    const T* x = x_.as<T>("sobel_gradient_forward: x");
    const auto gradient = output<T>(gradient_, "sobel_gradient_forward: gradient");
    for_each_gradient(p, x,
                      [&](int64_t voxel, int64_t count, const float* gd, const float* gh, const float* gw) {
                        const auto target = gradient + voxel * 3;
#pragma omp simd
                        for (int64_t i = 0; i < count; ++i) {
                          target[3 * i] = gd[i];
                          target[3 * i + 1] = gh[i];
                          target[3 * i + 2] = gw[i];
                        }
                      });
  });
}

void sobel_gradient_backward(Context&, const SobelParams& p, ConstData dgradient, Data dx) {
  with_storage("sobel_gradient_backward", {dgradient, dx}, [&]<class T>(T) {
    gradient_backward(p, dgradient.as<T>("sobel_gradient_backward: dgradient"),
                      dx.as<T>("sobel_gradient_backward: dx"));
  });
}

void sobel_magnitude_forward(Context&, const SobelParams& p, ConstData x_, Data magnitude_) {
  with_storage("sobel_magnitude_forward", {x_, magnitude_}, [&]<class T>(T) {
    const T* x = x_.as<T>("sobel_magnitude_forward: x");
    const auto magnitude = output<T>(magnitude_, "sobel_magnitude_forward: magnitude");
    for_each_gradient(
        p, x, [&](int64_t voxel, int64_t count, const float* gd, const float* gh, const float* gw) {
#pragma omp simd
          for (int64_t i = 0; i < count; ++i) {
            magnitude[voxel + i] = std::sqrt(gd[i] * gd[i] + gh[i] * gh[i] + gw[i] * gw[i] + p.eps);
          }
        });
  });
}

size_t sobel_magnitude_workspace_bytes(Context&, const SobelParams& p) {
  return static_cast<size_t>(p.n * p.d * p.h * p.w) * 3 * sizeof(float);
}

void sobel_magnitude_backward(Context&, const SobelParams& p, ConstData x_, ConstData dmagnitude_, Data dx,
                              Workspace workspace) {
  auto* dgradient = static_cast<float*>(workspace.data);
  with_storage("sobel_magnitude_backward", {x_, dmagnitude_, dx}, [&]<class T>(T) {
    const T* x = x_.as<T>("sobel_magnitude_backward: x");
    const auto dmagnitude = input<T>(dmagnitude_, "sobel_magnitude_backward: dmagnitude");
    for_each_gradient(
        p, x, [&](int64_t voxel, int64_t count, const float* gd, const float* gh, const float* gw) {
          float* target = dgradient + voxel * 3;
#pragma omp simd
          for (int64_t i = 0; i < count; ++i) {
            const float square = gd[i] * gd[i] + gh[i] * gh[i] + gw[i] * gw[i] + p.eps;
            const float scale = square > 0.0f ? dmagnitude[voxel + i] / std::sqrt(square) : 0.0f;
            target[3 * i] = scale * gd[i];
            target[3 * i + 1] = scale * gh[i];
            target[3 * i + 2] = scale * gw[i];
          }
        });
    gradient_backward(p, static_cast<const float*>(dgradient), dx.as<T>("sobel_magnitude_backward: dx"));
  });
}

void edge_gate_forward(Context&, const EdgeGateParams& p, ConstData gradient_, ConstData x_, Data y_) {
  with_storage("edge_gate_forward", {gradient_, x_, y_}, [&]<class T>(T) {
    const auto gradient = input<T>(gradient_, "edge_gate_forward: gradient");
    const auto x = input<T>(x_, "edge_gate_forward: x");
    const auto y = output<T>(y_, "edge_gate_forward: y");
    parallel_for(ceil_div(p.voxels, kGateVoxels), gate_grain(p), [&](int64_t begin, int64_t end) {
      alignas(64) float magnitude[kGateVoxels], gate[kGateVoxels];
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * kGateVoxels, count = std::min(kGateVoxels, p.voxels - first);
        gates(gradient + first * 3, count, p.eps, magnitude, gate);
        for (int64_t i = 0; i < count; ++i) {
          const auto source = x + (first + i) * p.channels;
          const auto target = y + (first + i) * p.channels;
          const float factor = gate[i];
#pragma omp simd
          for (int64_t c = 0; c < p.channels; ++c) {
            target[c] = factor * source[c];
          }
        }
      }
    });
  });
}

void edge_gate_backward(Context&, const EdgeGateParams& p, ConstData gradient_, ConstData x_, ConstData dy_,
                        Data dgradient_, Data dx_) {
  with_storage("edge_gate_backward", {gradient_, x_, dy_, dgradient_, dx_}, [&]<class T>(T) {
    const auto gradient = input<T>(gradient_, "edge_gate_backward: gradient");
    const T* x = x_.as<T>("edge_gate_backward: x");
    const T* dy = dy_.as<T>("edge_gate_backward: dy");
    const auto dgradient = output<T>(dgradient_, "edge_gate_backward: dgradient");
    T* dx = dx_.as<T>("edge_gate_backward: dx");
    parallel_for(ceil_div(p.voxels, kGateVoxels), gate_grain(p), [&](int64_t begin, int64_t end) {
      alignas(64) float magnitude[kGateVoxels], gate[kGateVoxels], dgate[kGateVoxels];
      std::vector<float> wide_x = float_scratch<T>(p.channels), wide_dy = float_scratch<T>(p.channels),
                         wide_dx = float_scratch<T>(p.channels);
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * kGateVoxels, count = std::min(kGateVoxels, p.voxels - first);
        gates(gradient + first * 3, count, p.eps, magnitude, gate);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t at = (first + i) * p.channels;
          const float* values = as_floats(x + at, p.channels, wide_x.data());
          const float* source = as_floats(dy + at, p.channels, wide_dy.data());
          write_floats(dx + at, p.channels, wide_dx.data(), [&](float* target) {
            dgate[i] = gate_row_backward(p.channels, gate[i], values, source, target);
          });
        }
        const auto old = gradient + first * 3;
        const auto result = dgradient + first * 3;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          const float slope = gate[i] * (1.0f - gate[i]);
          const float scale = magnitude[i] > 0.0f ? dgate[i] * slope / magnitude[i] : 0.0f;
          result[3 * i] = scale * old[3 * i];
          result[3 * i + 1] = scale * old[3 * i + 1];
          result[3 * i + 2] = scale * old[3 * i + 2];
        }
      }
    });
  });
}

}  // namespace vesal::kernels::cpu
