// Soft Dice and IoU losses. Forward reads 4 bytes a float32 logit and 1 or fewer of its target, backward also
// writes 4; about 30 operations, an exponential among them: memory bandwidth limits both. For softmax a power
// of two of lanes, at most a warp, shares a voxel; beyond 32 classes the row is read from L1 again for every
// further tile of 32. Sums run per slab of voxels, then over slabs, in a fixed order.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/overlap_loss/overlap_loss.hpp"
#include "kernels/overlap_loss/overlap_slopes.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

struct Softmax {
  float largest;  // logit
  float inverse;  // 1 / sum of the exponentials
};

// All lanes of a warp call it together.
template <class Values>
VESAL_DEVICE Softmax evaluate_softmax(const Values& x, int length, int lane, int lanes) {
  float largest = -INFINITY;
  for (int c = lane; c < length; c += lanes) {
    largest = fmaxf(largest, x[c]);
  }
  largest = group_max(largest, lanes);
  float total = 0.0f;
  for (int c = lane; c < length; c += lanes) {
    total += expf(x[c] - largest);
  }
  return {largest, 1.0f / group_sum(total, lanes)};
}

// partials [n, slabs, 3, channels] = sums of p t, p and t over a slab's voxels: block (slab, tile of
// channels, sample).
template <class T>
VESAL_KERNEL void softmax_partials_kernel(OverlapLossParams p, int lanes, Input<T> logits,
                                          const uint8_t* VESAL_RESTRICT labels,
                                          float* VESAL_RESTRICT partials) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int channels = static_cast<int>(p.channels);
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int column = static_cast<int>(blockIdx.y) * lanes + lane;
  const int step = kLoopThreads / lanes;
  const int64_t sample = blockIdx.z;
  const int64_t end =
      sample * p.voxels + slab_begin(p.voxels, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1);
  float sums[3] = {};
  for (int64_t base = sample * p.voxels + slab_begin(p.voxels, gridDim.x, blockIdx.x); base < end;
       base += step) {
    const int64_t v = base + group;
    const int label = v < end ? labels[v] : 0;
    const bool counts = v < end && label != p.ignore_label;
    const auto x = logits + v * channels;
    const Softmax softmax = evaluate_softmax(x, counts ? channels : 0, lane, lanes);
    if (counts && column < channels) {
      const float probability = label < channels ? expf(x[column] - softmax.largest) * softmax.inverse : NAN;
      const float t = label == column ? 1.0f : 0.0f;
      sums[0] += probability * t;
      sums[1] += probability;
      sums[2] += t;
    }
  }
  float* target = partials + (sample * gridDim.x + blockIdx.x) * 3 * channels + column;
  VESAL_UNROLL
  for (int k = 0; k < 3; ++k) {
    const float total = column_sum(sums[k], lanes, scratch);
    if (static_cast<int>(threadIdx.x) < lanes && column < channels) {
      target[k * channels] = total;
    }
  }
}

// The same sums for the sigmoid of regions, and totals [n, channels, 3] for both.
template <class T>
struct RegionSums {
  Input<T> logits;
  const uint8_t* targets;
  int ignore_label;
  int64_t channels;
  float* totals;
  VESAL_DEVICE int prepare(int64_t, int64_t) const { return 0; }
  VESAL_DEVICE void add(int, int64_t, int64_t i, float (&sums)[3]) const {
    const int target = targets[i];
    if (target == ignore_label) {
      return;
    }
    const float x = logits[i];
    const float e = expf(-fabsf(x));
    const float probability = (x < 0.0f ? e : 1.0f) / (1.0f + e);
    const float t = target > 1 ? NAN : static_cast<float>(target);
    sums[0] += probability * t;
    sums[1] += probability;
    sums[2] += t;
  }
  VESAL_DEVICE void finish(int64_t sample, int64_t channel, const float (&sums)[3]) const {
    for (int k = 0; k < 3; ++k) {
      totals[(sample * channels + channel) * 3 + k] = sums[k];
    }
  }
};

// One block.
VESAL_KERNEL void overlap_finish_kernel(OverlapLossParams p, const float* VESAL_RESTRICT totals,
                                        float* VESAL_RESTRICT loss, float* VESAL_RESTRICT slopes) {
  VESAL_SHARED(double, scratch, [kLoopThreads]);
  const int64_t groups = p.batch ? 1 : p.n;
  const int64_t samples_per_group = p.batch ? p.n : 1;
  const auto terms = static_cast<double>((groups > 0 ? groups : 1) * (p.channels - p.first_channel));
  double sum = 0.0;
  for (int64_t k = threadIdx.x; k < groups * p.channels; k += kLoopThreads) {
    OverlapTerm term{0.0, 0.0, 0.0};
    if (k % p.channels >= p.first_channel) {
      OverlapSums sums{0.0, 0.0, 0.0};
      for (int64_t s = 0; s < samples_per_group; ++s) {
        const float* total = totals + (s * p.channels + k) * 3;
        sums.product += static_cast<double>(total[0]);
        sums.probability += static_cast<double>(total[1]);
        sums.target += static_cast<double>(total[2]);
      }
      term = overlap_term(p.kind, static_cast<double>(p.smooth), sums);
    }
    sum += term.loss;
    slopes[2 * k] = static_cast<float>(term.constant / terms);
    slopes[2 * k + 1] = static_cast<float>(term.linear / terms);
  }
  sum = column_sum(sum, 1, scratch);
  if (threadIdx.x == 0) {
    loss[0] = static_cast<float>(sum / terms);
  }
}

template <class T>
VESAL_KERNEL void softmax_backward_kernel(OverlapLossParams p, int lanes, Input<T> logits,
                                          const uint8_t* VESAL_RESTRICT labels,
                                          const float* VESAL_RESTRICT slopes, float weight,
                                          Output<T> dlogits) {
  const int channels = static_cast<int>(p.channels);
  const int64_t v =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const bool inside = v < p.n * p.voxels;
  const int label = inside ? labels[v] : 0;
  const bool counts = inside && label != p.ignore_label;
  const int length = counts ? channels : 0;
  const auto x = logits + v * channels;
  const float* s = slopes + (p.batch || !inside ? 0 : v / p.voxels * channels * 2);
  const Softmax softmax = evaluate_softmax(x, length, lane, lanes);
  float projected = 0.0f;
  for (int c = lane; c < length; c += lanes) {
    const float slope = s[2 * c] - (c == label ? s[2 * c + 1] : 0.0f);
    projected += slope * (expf(x[c] - softmax.largest) * softmax.inverse);
  }
  projected = group_sum(projected, lanes);
  if (!inside) {
    return;
  }
  for (int c = lane; c < channels; c += lanes) {
    float value = 0.0f;
    if (counts) {
      const float slope = s[2 * c] - (c == label ? s[2 * c + 1] : 0.0f);
      value = weight * (expf(x[c] - softmax.largest) * softmax.inverse) * (slope - projected);
    }
    dlogits[v * channels + c] = value;
  }
}

struct RegionColumn {
  float constant, linear;
};

template <class T>
struct RegionGradient {
  Input<T> logits;
  const uint8_t* targets;
  const float* slopes;
  int ignore_label;
  int64_t channels;
  bool batch;
  float weight;
  Output<T> dlogits;
  VESAL_DEVICE RegionColumn prepare(int64_t sample, int64_t channel) const {
    const float* s = slopes + ((batch ? 0 : sample) * channels + channel) * 2;
    return {weight * s[0], weight * s[1]};
  }
  VESAL_DEVICE void apply(const RegionColumn& s, int64_t, int64_t i) const {
    const int target = targets[i];
    const float e = expf(-fabsf(logits[i]));
    const float inverse = 1.0f / (1.0f + e);
    const float value = (s.constant - s.linear * static_cast<float>(target)) * (e * inverse * inverse);
    dlogits[i] = target == ignore_label ? 0.0f : value;
  }
};

}  // namespace

void overlap_loss_forward(Context& context, const OverlapLossParams& p, ConstData logits,
                          const uint8_t* targets, Data loss, float* slopes, Workspace workspace) {
  const int64_t slabs = slab_count(p.voxels);
  const int width = column_width(p.channels);
  const int64_t tiles = ceil_div(p.channels, width);
  auto* partials = static_cast<float*>(workspace.data);
  float* totals = partials + p.n * slabs * 3 * p.channels;
  with_storage("overlap_loss_forward", {logits}, [&]<class T>(T) {
    const auto x = input<T>(logits, "overlap_loss_forward: logits");
    const RegionSums<T> sums{x, targets, p.ignore_label, p.channels, totals};
    if (p.softmax) {
      launch(context.stream(), {.grid = {slabs, tiles, p.n}, .block = {kLoopThreads, 1, 1}},
             softmax_partials_kernel<T>, p, width, x, targets, partials);
      launch(context.stream(), {.grid = {tiles, p.n, 1}, .block = {kLoopThreads, 1, 1}},
             column_finish_kernel<3, RegionSums<T>>, slabs, p.channels, width,
             static_cast<const float*>(partials), sums);
    } else {
      launch_column_sums<3>(context.stream(), p.n, p.voxels, p.channels, partials, sums);
    }
  });
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {kLoopThreads, 1, 1}}, overlap_finish_kernel, p,
         static_cast<const float*>(totals), loss.as<float>("overlap_loss_forward: loss"), slopes);
}

void overlap_loss_backward(Context& context, const OverlapLossParams& p, ConstData logits,
                           const uint8_t* targets, const float* slopes, float weight, Data dlogits) {
  with_storage("overlap_loss_backward", {logits, dlogits}, [&]<class T>(T) {
    const auto x = input<T>(logits, "overlap_loss_backward: logits");
    const auto d = output<T>(dlogits, "overlap_loss_backward: dlogits");
    if (p.softmax) {
      const int lanes = column_width(p.channels);
      launch(context.stream(),
             {.grid = {ceil_div(p.n * p.voxels, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
             softmax_backward_kernel<T>, p, lanes, x, targets, slopes, weight, d);
    } else {
      launch_column_map(
          context.stream(), p.n, p.voxels, p.channels,
          RegionGradient<T>{x, targets, slopes, p.ignore_label, p.channels, p.batch, weight, d});
    }
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
