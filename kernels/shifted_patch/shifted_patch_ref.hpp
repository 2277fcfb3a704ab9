// Shifted patch tokenization as a reader would write it down: features of one token of one group, LayerNorm,
// projection, and the backward pass of each in turn. A template on the scalar type, so that tests evaluate it
// in double (exact) and in float (what a naive implementation reaches).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/shifted_patch/shifted_patch.hpp"

namespace vesal::kernels::reference {

// Calls body(feature, element of x) for the features of a token that are not zero by padding.
template <class Body>
void for_each_patch_feature(const ShiftedPatchParams& p, int64_t token, int64_t group, Body&& body) {
  const int64_t ow = token % p.out_w();
  const int64_t oh = token / p.out_w() % p.out_h();
  const int64_t od = token / (p.out_w() * p.out_h()) % p.out_d();
  const int64_t sample = token / (p.out_w() * p.out_h() * p.out_d());
  int64_t feature = 0;
  for (int pd = 0; pd < p.patch[0]; ++pd) {
    for (int ph = 0; ph < p.patch[1]; ++ph) {
      for (int pw = 0; pw < p.patch[2]; ++pw) {
        for (int copy = 0; copy < p.copies(); ++copy) {
          const std::array<int, 3> direction = shift_direction(p.shifts, copy);
          const std::array<int64_t, 3> voxel{od * p.patch[0] + pd, oh * p.patch[1] + ph,
                                             ow * p.patch[2] + pw};
          const std::array<int64_t, 3> extent{p.d, p.h, p.w};
          std::array<int64_t, 3> source{};
          bool inside = true;
          for (size_t axis = 0; axis < 3; ++axis) {
            source[axis] = voxel[axis] + int64_t{p.shift[axis]} * direction[axis];
            inside = inside && voxel[axis] < extent[axis] && source[axis] >= 0 && source[axis] < extent[axis];
          }
          for (int64_t c = 0; c < p.channels; ++c, ++feature) {
            if (inside) {
              body(feature,
                   ((((sample * p.d + source[0]) * p.h + source[1]) * p.w + source[2]) * p.groups + group) *
                           p.channels +
                       c);
            }
          }
        }
      }
    }
  }
}

// The normalised features of a token, before gamma and beta; writes their mean and 1 / standard deviation.
template <class T>
std::vector<T> normalised_patch(const ShiftedPatchParams& p, const T* x, int64_t token, int64_t group,
                                T& mean, T& rstd) {
  std::vector<T> f(static_cast<size_t>(p.features()), T(0));
  for_each_patch_feature(p, token, group,
                         [&](int64_t feature, int64_t at) { f[static_cast<size_t>(feature)] = x[at]; });
  const T count = static_cast<T>(p.features());
  mean = 0;
  for (const T value : f) {
    mean += value;
  }
  mean /= count;
  T variance = 0;
  for (const T value : f) {
    variance += (value - mean) * (value - mean);
  }
  rstd = T(1) / std::sqrt(variance / count + static_cast<T>(p.eps));
  for (T& value : f) {
    value = (value - mean) * rstd;
  }
  return f;
}

inline bool patch_group_present(const ShiftedPatchParams& p, const uint8_t* mask, int64_t sample,
                                int64_t group) {
  return mask == nullptr || mask[sample * p.groups + group] != 0;
}

// groups / number of present groups.
template <class T>
T patch_scale(const ShiftedPatchParams& p, const uint8_t* mask, int64_t sample) {
  int64_t present = 0;
  for (int64_t group = 0; group < p.groups; ++group) {
    present += patch_group_present(p, mask, sample, group) ? 1 : 0;
  }
  return static_cast<T>(p.groups) / static_cast<T>(present);
}

// mean and rstd [groups, tokens]; entries of absent groups are left alone.
template <class T>
void shifted_patch_forward(const ShiftedPatchParams& p, const T* x, const uint8_t* mask, const T* gamma,
                           const T* beta, const T* weight, const T* bias, const T* missing, T* y, T* mean,
                           T* rstd) {
  const int64_t features = p.features();
  for (int64_t token = 0; token < p.tokens(); ++token) {
    const int64_t sample = token / (p.tokens() / p.n);
    const T scale = patch_scale<T>(p, mask, sample);
    for (int64_t o = 0; o < p.out; ++o) {
      y[token * p.out + o] = 0;
    }
    for (int64_t k = 0; k < p.groups; ++k) {
      if (!patch_group_present(p, mask, sample, k)) {
        for (int64_t o = 0; o < p.out; ++o) {
          y[token * p.out + o] += missing[k * p.out + o];
        }
        continue;
      }
      const std::vector<T> f =
          normalised_patch(p, x, token, k, mean[k * p.tokens() + token], rstd[k * p.tokens() + token]);
      for (int64_t o = 0; o < p.out; ++o) {
        T sum = bias[k * p.out + o];
        for (int64_t i = 0; i < features; ++i) {
          sum += weight[(k * p.out + o) * features + i] *
                 (f[static_cast<size_t>(i)] * gamma[k * features + i] + beta[k * features + i]);
        }
        y[token * p.out + o] += scale * sum;
      }
    }
  }
}

// Overwrites every gradient; dmissing may be null.
template <class T>
void shifted_patch_backward(const ShiftedPatchParams& p, const T* x, const uint8_t* mask, const T* gamma,
                            const T* beta, const T* weight, const T* dy, T* dx, T* dgamma, T* dbeta,
                            T* dweight, T* dbias, T* dmissing) {
  const int64_t features = p.features();
  std::fill_n(dx, p.n * p.d * p.h * p.w * p.groups * p.channels, T(0));
  std::fill_n(dgamma, p.groups * features, T(0));
  std::fill_n(dbeta, p.groups * features, T(0));
  std::fill_n(dweight, p.groups * p.out * features, T(0));
  std::fill_n(dbias, p.groups * p.out, T(0));
  if (dmissing != nullptr) {
    std::fill_n(dmissing, p.groups * p.out, T(0));
  }
  for (int64_t token = 0; token < p.tokens(); ++token) {
    const int64_t sample = token / (p.tokens() / p.n);
    const T scale = patch_scale<T>(p, mask, sample);
    for (int64_t k = 0; k < p.groups; ++k) {
      if (!patch_group_present(p, mask, sample, k)) {
        for (int64_t o = 0; o < p.out; ++o) {
          dmissing[k * p.out + o] += dy[token * p.out + o];
        }
        continue;
      }
      T mean = 0;
      T rstd = 0;
      const std::vector<T> f = normalised_patch(p, x, token, k, mean, rstd);
      std::vector<T> df(f.size(), T(0));
      for (int64_t o = 0; o < p.out; ++o) {
        const T d = scale * dy[token * p.out + o];
        dbias[k * p.out + o] += d;
        for (int64_t i = 0; i < features; ++i) {
          const T affine = f[static_cast<size_t>(i)] * gamma[k * features + i] + beta[k * features + i];
          dweight[(k * p.out + o) * features + i] += d * affine;
          df[static_cast<size_t>(i)] += d * weight[(k * p.out + o) * features + i];
        }
      }
      T mean_df = 0;
      T mean_df_f = 0;
      for (int64_t i = 0; i < features; ++i) {
        T& d = df[static_cast<size_t>(i)];
        dgamma[k * features + i] += d * f[static_cast<size_t>(i)];
        dbeta[k * features + i] += d;
        d *= gamma[k * features + i];
        mean_df += d / static_cast<T>(features);
        mean_df_f += d * f[static_cast<size_t>(i)] / static_cast<T>(features);
      }
      for_each_patch_feature(p, token, k, [&](int64_t feature, int64_t at) {
        const size_t i = static_cast<size_t>(feature);
        dx[at] += rstd * (df[i] - mean_df - f[i] * mean_df_f);
      });
    }
  }
}

}  // namespace vesal::kernels::reference
