// Layer normalisation on the CPU: a few rows at a time, vectorised over their channels, as floats; rows are
// independent.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "base/parallel.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/activations_cpu.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/float_rows_cpu.hpp"
#include "kernels/context/slabs.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/layer_norm/layer_norm.hpp"

namespace vesal::kernels::cpu {
namespace {

// Rows at a time: step by step for all of them, so that no row waits for another's sums, root or quotient.
constexpr int64_t kRows = 16;

// kChannels is the number of channels where it is known while compiling, so that the loops over a row unroll;
// else 0.
template <int64_t kChannels, Activation kActivation>
void forward_rows(int64_t count, const LayerNormParams& p, const float* __restrict x,
                  const float* __restrict gamma, const float* __restrict beta, float* __restrict y,
                  float* mean, float* rstd) {
  const int64_t channels = kChannels > 0 ? kChannels : p.channels;
  const float slope = p.negative_slope;
  const float inverse = 1.0f / static_cast<float>(channels);
  for (int64_t first = 0; first < count; first += kRows) {
    const int64_t rows = std::min(kRows, count - first);
    float centre[kRows] = {};
    float scale[kRows] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const float* __restrict in = x + (first + r) * channels;
      float total = 0;
#pragma omp simd reduction(+ : total)
      for (int64_t c = 0; c < channels; ++c) {
        total += in[c];
      }
      centre[r] = total * inverse;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float* __restrict in = x + (first + r) * channels;
      const float m = centre[r];
      float squares = 0;
#pragma omp simd reduction(+ : squares)
      for (int64_t c = 0; c < channels; ++c) {
        const float d = in[c] - m;
        squares += d * d;
      }
      scale[r] = squares;
    }
#pragma omp simd
    for (int64_t r = 0; r < kRows; ++r) {
      scale[r] = 1.0f / std::sqrt(scale[r] * inverse + p.eps);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float* __restrict in = x + (first + r) * channels;
      float* __restrict out = y + (first + r) * channels;
      const float m = centre[r];
      const float s = scale[r];
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = activated<kActivation>(__builtin_fmaf((in[c] - m) * s, gamma[c], beta[c]), slope);
      }
    }
    if (mean != nullptr) {
      std::copy_n(centre, rows, mean + first);
      std::copy_n(scale, rows, rstd + first);
    }
  }
}

// sums [2, channels] += the rows' dgamma and dbeta, float32.
template <int64_t kChannels, Activation kActivation>
void backward_rows(int64_t rows, const LayerNormParams& p, const float* __restrict x,
                   const float* __restrict gamma, const float* __restrict beta, const float* mean,
                   const float* rstd, const float* __restrict dy, float* __restrict dx,
                   float* __restrict sums) {
  const int64_t channels = kChannels > 0 ? kChannels : p.channels;
  const float slope = p.negative_slope;
  const float inverse = 1.0f / static_cast<float>(channels);
  float* __restrict dgamma = sums;
  float* __restrict dbeta = sums + channels;
  for (int64_t row = 0; row < rows; ++row) {
    const float* __restrict in = x + row * channels;
    const float* __restrict d = dy + row * channels;
    float* __restrict out = dx + row * channels;
    const float centre = mean[row];
    const float scale = rstd[row];
    float sum_g = 0;
    float sum_gx = 0;
#pragma omp simd reduction(+ : sum_g, sum_gx)
    for (int64_t c = 0; c < channels; ++c) {
      const float xhat = (in[c] - centre) * scale;
      const float z = __builtin_fmaf(xhat, gamma[c], beta[c]);
      const float dz = activation_gradient<kActivation>(z, d[c], slope);
      const float g = dz * gamma[c];
      sum_g += g;
      sum_gx += g * xhat;
      dgamma[c] += dz * xhat;
      dbeta[c] += dz;
    }
    sum_g *= inverse;
    sum_gx *= inverse;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float xhat = (in[c] - centre) * scale;
      const float z = __builtin_fmaf(xhat, gamma[c], beta[c]);
      const float dz = activation_gradient<kActivation>(z, d[c], slope);
      out[c] = scale * (dz * gamma[c] - sum_g - xhat * sum_gx);
    }
  }
}

// use(channels, activation), both as constants: the number of channels for the widths of the networks' token
// stages, else 0, and 0 with an activation.
template <class Use>
void with_constants(const LayerNormParams& p, Use use) {
  constexpr std::integral_constant<int64_t, 0> any;
  if (p.activation != Activation::none) {
    return NormActivations::choose(p.activation, [&](auto activation) { use(any, activation); });
  }
  constexpr std::integral_constant<Activation, Activation::none> none;
  switch (p.channels) {
    case 16:
      return use(std::integral_constant<int64_t, 16>{}, none);
    case 24:
      return use(std::integral_constant<int64_t, 24>{}, none);
    case 32:
      return use(std::integral_constant<int64_t, 32>{}, none);
    case 48:
      return use(std::integral_constant<int64_t, 48>{}, none);
    default:
      return use(any, none);
  }
}

// Calls body(first, last) for pieces of [begin, end): all of it for float32, else as many rows as are widened
// at a time.
template <class T, class Body>
void for_each_piece(int64_t begin, int64_t end, Body&& body) {
  const int64_t step = std::is_same_v<T, float> ? end - begin : kRows;
  for (int64_t first = begin; first < end; first += step) {
    body(first, std::min(first + step, end));
  }
}

// gamma and beta, or ones and zeros where there is no affine map.
struct Affine {
  std::vector<float> ones, zeros;
  const float* gamma;
  const float* beta;
  Affine(int64_t channels, const float* given_gamma, const float* given_beta)
      : ones(given_gamma == nullptr ? static_cast<size_t>(channels) : 0, 1.0f),
        zeros(ones.size(), 0.0f),
        gamma(given_gamma == nullptr ? ones.data() : given_gamma),
        beta(given_gamma == nullptr ? zeros.data() : given_beta) {}
};

}  // namespace

void layer_norm_forward(Context&, const LayerNormParams& params, ConstData x_, ConstData gamma,
                        ConstData beta, Data y_, float* mean, float* rstd) {
  const int64_t channels = params.channels;
  const Affine affine(channels, gamma.as<float>("layer_norm_forward: gamma"),
                      beta.as<float>("layer_norm_forward: beta"));
  with_storage("layer_norm_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("layer_norm_forward: x");
    T* y = y_.as<T>("layer_norm_forward: y");
    parallel_for(params.rows, ceil_div(8192, channels), [&](int64_t begin, int64_t end) {
      std::vector<float> in = float_scratch<T>(kRows * channels), out = float_scratch<T>(kRows * channels);
      for_each_piece<T>(begin, end, [&](int64_t first, int64_t last) {
        const int64_t count = (last - first) * channels;
        const float* values = as_floats(x + first * channels, count, in.data());
        write_floats(y + first * channels, count, out.data(), [&](float* results) {
          with_constants(params, [&](auto known, auto activation) {
            forward_rows<decltype(known)::value, decltype(activation)::value>(
                last - first, params, values, affine.gamma, affine.beta, results,
                mean == nullptr ? nullptr : mean + first, rstd == nullptr ? nullptr : rstd + first);
          });
        });
      });
    });
  });
}

void layer_norm_backward(Context&, const LayerNormParams& params, ConstData x_, ConstData gamma,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy_, Data dx_,
                         Data dgamma_, Data dbeta_, GradMode mode, Workspace workspace) {
  const int64_t channels = params.channels;
  const Affine affine(channels, gamma.as<float>("layer_norm_backward: gamma"),
                      beta.as<float>("layer_norm_backward: beta"));
  const int64_t slabs = slab_count(params.rows);
  auto* partials = static_cast<float*>(workspace.data);  // [slabs, 2, channels]
  with_storage("layer_norm_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const T* x = x_.as<T>("layer_norm_backward: x");
    const T* dy = dy_.as<T>("layer_norm_backward: dy");
    T* dx = dx_.as<T>("layer_norm_backward: dx");
    const int64_t slab_elements = std::max<int64_t>(params.rows / slabs * channels, 1);
    parallel_for(slabs, ceil_div(8192, slab_elements), [&](int64_t begin, int64_t end) {
      std::vector<float> in = float_scratch<T>(kRows * channels),
                         gradient = float_scratch<T>(kRows * channels),
                         out = float_scratch<T>(kRows * channels);
      for (int64_t slab = begin; slab < end; ++slab) {
        float* sums = partials + slab * 2 * channels;
        std::fill_n(sums, 2 * channels, 0.0f);
        for_each_piece<T>(slab_begin(params.rows, slabs, slab), slab_begin(params.rows, slabs, slab + 1),
                          [&](int64_t first, int64_t last) {
                            const int64_t count = (last - first) * channels;
                            const float* values = as_floats(x + first * channels, count, in.data());
                            const float* upstream = as_floats(dy + first * channels, count, gradient.data());
                            write_floats(dx + first * channels, count, out.data(), [&](float* results) {
                              with_constants(params, [&](auto known, auto activation) {
                                backward_rows<decltype(known)::value, decltype(activation)::value>(
                                    last - first, params, values, affine.gamma, affine.beta, mean + first,
                                    rstd + first, upstream, results, sums);
                              });
                            });
                          });
      }
    });
  });
  float* dgamma = dgamma_.as<float>("layer_norm_backward: dgamma");
  float* dbeta = dbeta_.as<float>("layer_norm_backward: dbeta");
  for (int64_t c = 0; dgamma != nullptr && c < channels; ++c) {
    double sum_gamma = mode == GradMode::accumulate ? dgamma[c] : 0.0;
    double sum_beta = mode == GradMode::accumulate ? dbeta[c] : 0.0;
    for (int64_t slab = 0; slab < slabs; ++slab) {
      sum_gamma += partials[slab * 2 * channels + c];
      sum_beta += partials[(slab * 2 + 1) * channels + c];
    }
    dgamma[c] = static_cast<float>(sum_gamma);
    dbeta[c] = static_cast<float>(sum_beta);
  }
}

}  // namespace vesal::kernels::cpu
