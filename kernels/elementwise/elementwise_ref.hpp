// Elementwise functions as loops that a reader can check against the maths by eye.
#pragma once

#include <cstdint>

#include "base/philox.hpp"
#include "kernels/context/activations_ref.hpp"
#include "kernels/elementwise/elementwise.hpp"

namespace vesal::kernels::reference {

template <class T>
void unary_forward(Unary kind, int64_t count, const T* x, T* y, T slope) {
  for (int64_t i = 0; i < count; ++i) {
    y[i] = activation_value(kind, x[i], slope);
  }
}

template <class T>
void unary_backward(Unary kind, int64_t count, const T* x, const T* dy, T* dx, T slope) {
  for (int64_t i = 0; i < count; ++i) {
    dx[i] = dy[i] * activation_derivative(kind, x[i], slope);
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

template <class T>
void dropout(int64_t count, float probability, const DropoutKey& key, const T* x, T* y) {
  RandomStream random(key.seed, key.step, key.op);
  for (int64_t i = 0; i < count; ++i) {
    y[i] = random.uniform() <= probability ? T(0) : x[i] / (T(1) - T(probability));
  }
}

template <class T>
void dropout_channels(int64_t n, int64_t spatial, int64_t channels, float probability, const DropoutKey& key,
                      const T* x, T* y) {
  RandomStream random(key.seed, key.step, key.op);
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t c = 0; c < channels; ++c) {
      const bool dropped = random.uniform() <= probability;
      for (int64_t l = 0; l < spatial; ++l) {
        const int64_t i = (s * spatial + l) * channels + c;
        y[i] = dropped ? T(0) : x[i] / (T(1) - T(probability));
      }
    }
  }
}

}  // namespace vesal::kernels::reference
