// Group normalisation with affine map and activation. The passes over the data are those of instance
// normalisation (12 bytes an element forward, 20 backward; memory bandwidth limits both); between them a
// small kernel brings the channels of each group together: a power of two of lanes, at most a warp, shares a
// group.
#include "kernels/context/activations.hpp"
#include "kernels/context/channel_norm_device.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/group_norm/group_norm.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// columns [3, n * channels] = origin, offset, squares as merge_statistics_kernel gives them.
struct ColumnStatistics {
  float* columns;
  int64_t channels, count;  // count = n * channels
  VESAL_DEVICE void operator()(int64_t sample, int64_t column, float origin, float offset,
                               float squares) const {
    const int64_t k = sample * channels + column;
    columns[k] = origin;
    columns[count + k] = offset;
    columns[2 * count + k] = squares;
  }
};

// mean, rstd [groups] of groups of `size` neighbouring columns, each of `rows` rows.
VESAL_KERNEL void group_statistics_kernel(int64_t groups, int64_t size, int lanes, float rows, float eps,
                                          const float* VESAL_RESTRICT columns, float* VESAL_RESTRICT mean,
                                          float* VESAL_RESTRICT rstd) {
  const int64_t group =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t count = groups * size;
  const int64_t begin = group * size;
  const int64_t length = group < groups ? size : 0;
  // Means are counted from the middle of the origins: only small numbers are rounded.
  float total = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    total += columns[begin + c];
  }
  const float origin = group_sum(total, lanes) / static_cast<float>(size);
  float distance = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    distance += columns[begin + c] - origin + columns[count + begin + c];
  }
  const float offset = group_sum(distance, lanes) / static_cast<float>(size);
  float squares = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    const float d = columns[begin + c] - origin + columns[count + begin + c] - offset;
    squares += columns[2 * count + begin + c] + rows * d * d;
  }
  squares = group_sum(squares, lanes);
  if (lane == 0 && length > 0) {
    mean[group] = origin + offset;
    rstd[group] = 1.0f / sqrtf(squares / (rows * static_cast<float>(size)) + eps);
  }
}

// sums [groups, 2] = sums of gamma g and of gamma g xhat over each group, from totals [groups * size, 2];
// a sample has `channels` columns.
VESAL_KERNEL void group_gradient_sums_kernel(int64_t groups, int64_t size, int64_t channels, int lanes,
                                             const float* VESAL_RESTRICT totals,
                                             const float* VESAL_RESTRICT gamma, float* VESAL_RESTRICT sums) {
  const int64_t group =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t begin = group * size;
  const int64_t length = group < groups ? size : 0;
  const int64_t first_channel = begin % channels;
  float sum_g = 0.0f;
  float sum_gx = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    const float scale = gamma != nullptr ? gamma[first_channel + c] : 1.0f;
    sum_g += scale * totals[2 * (begin + c)];
    sum_gx += scale * totals[2 * (begin + c) + 1];
  }
  sum_g = group_sum(sum_g, lanes);
  sum_gx = group_sum(sum_gx, lanes);
  if (lane == 0 && length > 0) {
    sums[2 * group] = sum_g;
    sums[2 * group + 1] = sum_gx;
  }
}

}  // namespace

void group_norm_forward(Context& context, const GroupNormParams& p, ConstData x_, ConstData gamma,
                        ConstData beta, Data y_, float* mean, float* rstd, Workspace workspace) {
  with_storage("group_norm_forward", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "group_norm_forward: x");
    const auto y = output<T>(y_, "group_norm_forward: y");
    auto* partials = static_cast<float*>(workspace.data);
    float* columns = partials + p.n * slab_count(p.spatial) * 3 * p.channels;
    const int64_t size = p.channels / p.groups;
    const int lanes = column_width(size);
    launch_column_statistics<T>(context.stream(), p.n, p.spatial, p.channels, x, partials,
                                ColumnStatistics{columns, p.channels, p.n * p.channels});
    launch(context.stream(),
           {.grid = {ceil_div(p.n * p.groups, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
           group_statistics_kernel, p.n * p.groups, size, lanes, static_cast<float>(p.spatial), p.eps,
           static_cast<const float*>(columns), mean, rstd);
    const Normalisation normalisation{mean,
                                      rstd,
                                      gamma.as<float>("group_norm_forward: gamma"),
                                      beta.as<float>("group_norm_forward: beta"),
                                      p.channels,
                                      size};
    NormActivations::choose(p.activation, [&](auto activation) {
      launch_column_map(context.stream(), p.n, p.spatial, p.channels,
                        Normalise<T, decltype(activation)::value>{normalisation, x, y, p.negative_slope});
    });
  });
}

void group_norm_backward(Context& context, const GroupNormParams& p, ConstData x_, ConstData gamma_,
                         ConstData beta, const float* mean, const float* rstd, ConstData dy_, Data dx_,
                         Data dgamma, Data dbeta, GradMode mode, Workspace workspace) {
  if (p.n * p.spatial == 0) {
    if (dgamma) {
      launch_affine_gradient(context.stream(), 0, p.channels, mode, nullptr,
                             dgamma.as<float>("group_norm_backward: dgamma"),
                             dbeta.as<float>("group_norm_backward: dbeta"));
    }
    return;
  }
  with_storage("group_norm_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "group_norm_backward: x");
    const float* gamma = gamma_.as<float>("group_norm_backward: gamma");
    const auto dy = input<T>(dy_, "group_norm_backward: dy");
    const auto dx = output<T>(dx_, "group_norm_backward: dx");
    auto* partials = static_cast<float*>(workspace.data);
    float* totals = partials + p.n * slab_count(p.spatial) * 2 * p.channels;
    float* sums = totals + p.n * p.channels * 2;
    const int64_t size = p.channels / p.groups;
    const int lanes = column_width(size);
    const Normalisation normalisation{mean,       rstd, gamma, beta.as<float>("group_norm_backward: beta"),
                                      p.channels, size};
    NormActivations::choose(p.activation, [&](auto activation) {
      constexpr Activation kActivation = decltype(activation)::value;
      launch_column_sums<2>(context.stream(), p.n, p.spatial, p.channels, partials,
                            NormGradientSums<T, kActivation>{normalisation, x, dy, p.negative_slope, totals});
      if (size > 1) {
        launch(
            context.stream(),
            {.grid = {ceil_div(p.n * p.groups, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
            group_gradient_sums_kernel, p.n * p.groups, size, p.channels, lanes,
            static_cast<const float*>(totals), gamma, sums);
      }
      launch_column_map(
          context.stream(), p.n, p.spatial, p.channels,
          NormInputGradient<T, kActivation>{normalisation, x, dy, p.negative_slope, size > 1 ? sums : totals,
                                            1.0f / static_cast<float>(p.spatial * size), dx});
    });
    if (dgamma) {
      launch_affine_gradient(context.stream(), p.n, p.channels, mode, totals,
                             dgamma.as<float>("group_norm_backward: dgamma"),
                             dbeta.as<float>("group_norm_backward: dbeta"));
    }
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
