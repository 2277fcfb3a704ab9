// Layer normalisation on the CPU: a row at a time, vectorised over its channels; rows are independent.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "base/parallel.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"
#include "kernels/layer_norm/layer_norm.hpp"

namespace vesal::kernels::cpu {
namespace {

// kChannels is the number of channels where it is known while compiling, so that the loops over a row unroll;
// else 0.
template <int64_t kChannels>
void forward_rows(int64_t begin, int64_t end, int64_t runtime_channels, float eps, const float* __restrict x,
                  const float* __restrict gamma, const float* __restrict beta, float* __restrict y,
                  float* mean, float* rstd) {
  const int64_t channels = kChannels > 0 ? kChannels : runtime_channels;
  const float inverse = 1.0f / static_cast<float>(channels);
  // A few rows at a time: step by step for all of them, so that no row waits for another's sums, root or
  // quotient.
  constexpr int64_t kRows = 16;
  for (int64_t first = begin; first < end; first += kRows) {
    const int64_t rows = std::min(kRows, end - first);
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
      scale[r] = 1.0f / std::sqrt(scale[r] * inverse + eps);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float* __restrict in = x + (first + r) * channels;
      float* __restrict out = y + (first + r) * channels;
      const float m = centre[r];
      const float s = scale[r];
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = __builtin_fmaf((in[c] - m) * s, gamma[c], beta[c]);
      }
    }
    if (mean != nullptr) {
      std::copy_n(centre, rows, mean + first);
      std::copy_n(scale, rows, rstd + first);
    }
  }
}

// sums [2, channels] = the rows' dgamma and dbeta, float32.
template <int64_t kChannels>
void backward_rows(int64_t begin, int64_t end, int64_t runtime_channels, const float* __restrict x,
                   const float* __restrict gamma, const float* mean, const float* rstd,
                   const float* __restrict dy, float* __restrict dx, float* __restrict sums) {
  const int64_t channels = kChannels > 0 ? kChannels : runtime_channels;
  const float inverse = 1.0f / static_cast<float>(channels);
  float* __restrict dgamma = sums;
  float* __restrict dbeta = sums + channels;
  std::fill_n(sums, 2 * channels, 0.0f);
  for (int64_t row = begin; row < end; ++row) {
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
      const float g = d[c] * gamma[c];
      sum_g += g;
      sum_gx += g * xhat;
      dgamma[c] += d[c] * xhat;
      dbeta[c] += d[c];
    }
    sum_g *= inverse;
    sum_gx *= inverse;
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      const float xhat = (in[c] - centre) * scale;
      out[c] = scale * (d[c] * gamma[c] - sum_g - xhat * sum_gx);
    }
  }
}

// use(std::integral_constant<int64_t, channels>) for the widths of the networks' token stages, else 0.
template <class Use>
void with_channels(int64_t channels, Use use) {
  switch (channels) {
    case 16:
      return use(std::integral_constant<int64_t, 16>{});
    case 24:
      return use(std::integral_constant<int64_t, 24>{});
    case 32:
      return use(std::integral_constant<int64_t, 32>{});
    case 48:
      return use(std::integral_constant<int64_t, 48>{});
    default:
      return use(std::integral_constant<int64_t, 0>{});
  }
}

}  // namespace

void layer_norm_forward(Context&, const LayerNormParams& params, ConstData x_, ConstData gamma_,
                        ConstData beta_, Data y_, float* mean, float* rstd) {
  const float* x = x_.as<float>("layer_norm_forward: x");
  const float* gamma = gamma_.as<float>("layer_norm_forward: gamma");
  const float* beta = beta_.as<float>("layer_norm_forward: beta");
  float* y = y_.as<float>("layer_norm_forward: y");
  with_channels(params.channels, [&](auto known) {
    parallel_for(params.rows, ceil_div(8192, params.channels), [&](int64_t begin, int64_t end) {
      forward_rows<decltype(known)::value>(begin, end, params.channels, params.eps, x, gamma, beta, y, mean,
                                           rstd);
    });
  });
}

void layer_norm_backward(Context&, const LayerNormParams& params, ConstData x_, ConstData gamma_,
                         const float* mean, const float* rstd, ConstData dy_, Data dx_, Data dgamma_,
                         Data dbeta_, GradMode mode, Workspace workspace) {
  const float* x = x_.as<float>("layer_norm_backward: x");
  const float* gamma = gamma_.as<float>("layer_norm_backward: gamma");
  const float* dy = dy_.as<float>("layer_norm_backward: dy");
  float* dx = dx_.as<float>("layer_norm_backward: dx");
  float* dgamma = dgamma_.as<float>("layer_norm_backward: dgamma");
  float* dbeta = dbeta_.as<float>("layer_norm_backward: dbeta");
  const int64_t channels = params.channels;
  const int64_t slabs = slab_count(params.rows);
  auto* partials = static_cast<float*>(workspace.data);  // [slabs, 2, channels]
  with_channels(channels, [&](auto known) {
    const int64_t slab_elements = std::max<int64_t>(params.rows / slabs * channels, 1);
    parallel_for(slabs, ceil_div(8192, slab_elements), [&](int64_t first, int64_t last) {
      for (int64_t slab = first; slab < last; ++slab) {
        backward_rows<decltype(known)::value>(slab_begin(params.rows, slabs, slab),
                                              slab_begin(params.rows, slabs, slab + 1), channels, x, gamma,
                                              mean, rstd, dy, dx, partials + slab * 2 * channels);
      }
    });
  });
  for (int64_t c = 0; c < channels; ++c) {
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
