// Elementwise functions as loops that a reader can check against the maths by eye.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/elementwise/elementwise.hpp"

namespace vesal::kernels::reference {

template <class T>
T unary(Unary kind, T x, T slope) {
  switch (kind) {
    case Unary::relu:
      return x > 0 ? x : T(0);
    case Unary::leaky_relu:
      return x > 0 ? x : slope * x;
    case Unary::gelu:
      return x * T(0.5) * (T(1) + std::erf(x / std::sqrt(T(2))));
    case Unary::sigmoid:
      return T(1) / (T(1) + std::exp(-x));
  }
  return T(0);
}

// f'(x).
template <class T>
T unary_derivative(Unary kind, T x, T slope) {
  switch (kind) {
    case Unary::relu:
      return x > 0 ? T(1) : T(0);
    case Unary::leaky_relu:
      return x > 0 ? T(1) : slope;
    case Unary::gelu: {
      const T pi = T(3.14159265358979323846);
      const T cumulative = T(0.5) * (T(1) + std::erf(x / std::sqrt(T(2))));
      const T density = std::exp(-x * x / T(2)) / std::sqrt(T(2) * pi);
      return cumulative + x * density;
    }
    case Unary::sigmoid: {
      const T s = T(1) / (T(1) + std::exp(-x));
      return s * (T(1) - s);
    }
  }
  return T(0);
}

template <class T>
void unary_forward(Unary kind, int64_t count, const T* x, T* y, T slope) {
  for (int64_t i = 0; i < count; ++i) {
    y[i] = unary(kind, x[i], slope);
  }
}

template <class T>
void unary_backward(Unary kind, int64_t count, const T* x, const T* dy, T* dx, T slope) {
  for (int64_t i = 0; i < count; ++i) {
    dx[i] = dy[i] * unary_derivative(kind, x[i], slope);
  }
}

template <class T>
void scaled_add_forward(int64_t n, int64_t inner, const T* a, const T* b, T scale, const T* gate, T* y) {
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t i = 0; i < inner; ++i) {
      const T g = gate ? gate[s] : T(1);
      y[s * inner + i] = a[s * inner + i] + (g == 0 ? T(0) : scale * g * b[s * inner + i]);
    }
  }
}

template <class T>
void scaled_add_backward(int64_t n, int64_t inner, const T* b, T scale, const T* gate, const T* dy, T* db,
                         T* dscale) {
  *dscale = T(0);
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t i = 0; i < inner; ++i) {
      const T g = gate ? gate[s] : T(1);
      db[s * inner + i] = scale * g * dy[s * inner + i];
      *dscale += g == 0 ? T(0) : g * dy[s * inner + i] * b[s * inner + i];
    }
  }
}

template <class T>
void gate_samples(int64_t n, int64_t inner, const T* gate, const T* x, T* y) {
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t i = 0; i < inner; ++i) {
      y[s * inner + i] = gate[s] == 0 ? T(0) : gate[s] * x[s * inner + i];
    }
  }
}

template <class T>
void add_sample_vector(int64_t n, int64_t spatial, int64_t channels, const T* x, const T* v, T* y) {
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t l = 0; l < spatial; ++l) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t i = (s * spatial + l) * channels + c;
        y[i] = x[i] + v[s * channels + c];
      }
    }
  }
}

}  // namespace vesal::kernels::reference
