// linear as plain loops, forward and backward written out independently; evaluated in double (exact) and in
// float.
#pragma once

#include <cmath>

#include "kernels/linear/linear.hpp"

namespace vesal::kernels::reference {

template <class T>
T linear_activation(Activation activation, T value) {
  switch (activation) {
    case Activation::relu:
      return value > T(0) ? value : T(0);
    case Activation::gelu:
      return value * (T(1) + std::erf(value / std::sqrt(T(2)))) / T(2);
    default:
      return value;
  }
}

// bias and pre_activation may be null.
template <class T>
void linear_forward(const LinearParams& p, const T* x, const T* weight, const T* bias, T* y,
                    T* pre_activation) {
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t o = 0; o < p.out; ++o) {
      T sum = bias != nullptr ? bias[o] : T(0);
      for (int64_t i = 0; i < p.in; ++i) {
        sum += x[r * p.in + i] * weight[o * p.in + i];
      }
      if (pre_activation != nullptr) {
        pre_activation[r * p.out + o] = sum;
      }
      y[r * p.out + o] = linear_activation(p.activation, sum);
    }
  }
}

template <class T>
void linear_backward_data(const LinearParams& p, const T* dy, const T* weight, T* dx) {
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t i = 0; i < p.in; ++i) {
      T sum = 0;
      for (int64_t o = 0; o < p.out; ++o) {
        sum += dy[r * p.out + o] * weight[o * p.in + i];
      }
      dx[r * p.in + i] = sum;
    }
  }
}

// Overwrites dweight [out, in] and dbias [out].
template <class T>
void linear_backward_weight(const LinearParams& p, const T* x, const T* dy, T* dweight, T* dbias) {
  for (int64_t o = 0; o < p.out; ++o) {
    dbias[o] = 0;
    for (int64_t r = 0; r < p.rows; ++r) {
      dbias[o] += dy[r * p.out + o];
    }
    for (int64_t i = 0; i < p.in; ++i) {
      T sum = 0;
      for (int64_t r = 0; r < p.rows; ++r) {
        sum += dy[r * p.out + o] * x[r * p.in + i];
      }
      dweight[o * p.in + i] = sum;
    }
  }
}

}  // namespace vesal::kernels::reference
