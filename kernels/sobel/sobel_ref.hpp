// Plain references of the Sobel gradient and the edge gate, in T.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/sobel/sobel.hpp"

namespace vesal::kernels::reference {

// Calls body(voxel, neighbour, weight of the neighbour in component 0, 1, 2 of the voxel's gradient) for all
// pairs.
template <class T, class Body>
void for_each_sobel_tap(const SobelParams& p, Body&& body) {
  const T derivative[3] = {1, 0, -1};
  const T smoothing[3] = {1, 2, 1};
  for (int64_t n = 0; n < p.n; ++n)
    for (int64_t d = 0; d < p.d; ++d)
      for (int64_t h = 0; h < p.h; ++h)
        for (int64_t w = 0; w < p.w; ++w)
          for (int a = 0; a < 3; ++a)
            for (int b = 0; b < 3; ++b)
              for (int c = 0; c < 3; ++c) {
                const int64_t z = d + a - 1, y = h + b - 1, x = w + c - 1;
                if (z < 0 || z >= p.d || y < 0 || y >= p.h || x < 0 || x >= p.w) {
                  continue;
                }
                body(((n * p.d + d) * p.h + h) * p.w + w, ((n * p.d + z) * p.h + y) * p.w + x,
                     derivative[a] * smoothing[b] * smoothing[c] / T(p.spacing[0]),
                     smoothing[a] * derivative[b] * smoothing[c] / T(p.spacing[1]),
                     smoothing[a] * smoothing[b] * derivative[c] / T(p.spacing[2]));
              }
}

template <class T>
void sobel_gradient_forward(const SobelParams& p, const T* x, T* gradient) {
  std::fill(gradient, gradient + p.n * p.d * p.h * p.w * 3, T(0));
  for_each_sobel_tap<T>(p, [&](int64_t voxel, int64_t neighbour, T wd, T wh, T ww) {
    gradient[voxel * 3] += wd * x[neighbour];
    gradient[voxel * 3 + 1] += wh * x[neighbour];
    gradient[voxel * 3 + 2] += ww * x[neighbour];
  });
}

template <class T>
void sobel_gradient_backward(const SobelParams& p, const T* dgradient, T* dx) {
  std::fill(dx, dx + p.n * p.d * p.h * p.w, T(0));
  for_each_sobel_tap<T>(p, [&](int64_t voxel, int64_t neighbour, T wd, T wh, T ww) {
    dx[neighbour] +=
        wd * dgradient[voxel * 3] + wh * dgradient[voxel * 3 + 1] + ww * dgradient[voxel * 3 + 2];
  });
}

template <class T>
T magnitude_of(const T* g, float eps) {
  return std::sqrt(g[0] * g[0] + g[1] * g[1] + g[2] * g[2] + T(eps));
}

template <class T>
void sobel_magnitude_forward(const SobelParams& p, const T* x, T* magnitude) {
  std::vector<T> gradient(static_cast<size_t>(p.n * p.d * p.h * p.w * 3));
  sobel_gradient_forward(p, x, gradient.data());
  for (int64_t v = 0; v < p.n * p.d * p.h * p.w; ++v) {
    magnitude[v] = magnitude_of(&gradient[v * 3], p.eps);
  }
}

template <class T>
void sobel_magnitude_backward(const SobelParams& p, const T* x, const T* dmagnitude, T* dx) {
  std::vector<T> gradient(static_cast<size_t>(p.n * p.d * p.h * p.w * 3));
  sobel_gradient_forward(p, x, gradient.data());
  for (int64_t v = 0; v < p.n * p.d * p.h * p.w; ++v) {
    const T magnitude = magnitude_of(&gradient[v * 3], p.eps);
    for (int axis = 0; axis < 3; ++axis) {
      gradient[v * 3 + axis] = dmagnitude[v] * gradient[v * 3 + axis] / magnitude;
    }
  }
  sobel_gradient_backward(p, gradient.data(), dx);
}

template <class T>
void edge_gate_forward(const EdgeGateParams& p, const T* gradient, const T* x, T* y) {
  for (int64_t v = 0; v < p.voxels; ++v) {
    const T gate = 1 / (1 + std::exp(-magnitude_of(gradient + v * 3, p.eps)));
    for (int64_t c = 0; c < p.channels; ++c) {
      y[v * p.channels + c] = gate * x[v * p.channels + c];
    }
  }
}

template <class T>
void edge_gate_backward(const EdgeGateParams& p, const T* gradient, const T* x, const T* dy, T* dgradient,
                        T* dx) {
  for (int64_t v = 0; v < p.voxels; ++v) {
    const T magnitude = magnitude_of(gradient + v * 3, p.eps);
    const T gate = 1 / (1 + std::exp(-magnitude));
    T dgate = 0;
    for (int64_t c = 0; c < p.channels; ++c) {
      dgate += dy[v * p.channels + c] * x[v * p.channels + c];
      dx[v * p.channels + c] = dy[v * p.channels + c] * gate;
    }
    for (int axis = 0; axis < 3; ++axis) {
      dgradient[v * 3 + axis] = dgate * gate * (1 - gate) * gradient[v * 3 + axis] / magnitude;
    }
  }
}

}  // namespace vesal::kernels::reference
