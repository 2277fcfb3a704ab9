// Segmentation losses and their targets. A float32 logit and its target are 5 bytes read (and 4 written in
// backward) for about 40 operations, an exponential and a logarithm among them: memory bandwidth limits them,
// closely followed by the special function units. Sums run per slab, then over slabs, in a fixed order.
// edge_targets reads 27 bytes a voxel, nearly all of them from L1.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/losses/losses.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// Labels that are no tumour class count as background.
VESAL_DEVICE int tumour_label(uint8_t label) { return label > 3 ? 0 : label; }

struct RegionTargets {
  const uint8_t* labels;
  uint8_t* targets;
  VESAL_DEVICE void operator()(int64_t i) const {
    const int label = tumour_label(labels[i / 3]);
    const auto region = static_cast<int>(i % 3);
    targets[i] = region == 0 ? label != 0 : region == 1 ? label == 1 || label == 3 : label == 3;
  }
};

// The three masks change somewhere in a neighbourhood just where the tumour label does.
struct EdgeTargets {
  int64_t d, h, w;
  const uint8_t* labels;
  uint8_t* edges;
  VESAL_DEVICE void operator()(int64_t i) const {
    const int64_t x = i % w;
    const int64_t y = i / w % h;
    const int64_t z = i / (w * h) % d;
    const int64_t z0 = z > 0 ? -1 : 0;
    const int64_t z1 = z + 1 < d ? 1 : 0;
    const int64_t y0 = y > 0 ? -1 : 0;
    const int64_t y1 = y + 1 < h ? 1 : 0;
    const int64_t x0 = x > 0 ? -1 : 0;
    const int64_t x1 = x + 1 < w ? 1 : 0;
    const int centre = tumour_label(labels[i]);
    int differs = 0;
    for (int64_t dz = z0; dz <= z1; ++dz) {
      for (int64_t dy = y0; dy <= y1; ++dy) {
        const uint8_t* row = labels + i + (dz * h + dy) * w;
        for (int64_t dx = x0; dx <= x1; ++dx) {
          differs |= tumour_label(row[dx]) ^ centre;
        }
      }
    }
    edges[i] = differs != 0 ? 1 : 0;
  }
};

struct Logit {
  float probability;  // sigmoid(x)
  float softplus;     // log(1 + e^x)
  float slope;        // of sigmoid at x
};

VESAL_DEVICE Logit evaluate(float x) {
  const float e = expf(-fabsf(x));
  const float inverse = 1.0f / (1.0f + e);
  return {(x < 0.0f ? e : 1.0f) * inverse, (x < 0.0f ? 0.0f : x) + log1pf(e), e * inverse * inverse};
}

// totals [n, regions, 4] = sums of p t, p, t and the cross-entropy.
template <class T>
struct RegionSums {
  Input<T> logits;
  const uint8_t* targets;
  int64_t regions;
  float* totals;
  VESAL_DEVICE int prepare(int64_t, int64_t) const { return 0; }
  VESAL_DEVICE void add(int, int64_t, int64_t i, float (&sums)[4]) const {
    const float x = logits[i];
    const auto t = static_cast<float>(targets[i]);
    const Logit value = evaluate(x);
    sums[0] += value.probability * t;
    sums[1] += value.probability;
    sums[2] += t;
    sums[3] += value.softplus - x * t;
  }
  VESAL_DEVICE void finish(int64_t sample, int64_t region, const float (&sums)[4]) const {
    for (int k = 0; k < 4; ++k) {
      totals[(sample * regions + region) * 4 + k] = sums[k];
    }
  }
};

// One thread: there are a few regions and samples.
VESAL_KERNEL void region_loss_kernel(RegionLossParams p, const float* VESAL_RESTRICT totals,
                                     float* VESAL_RESTRICT loss, float* VESAL_RESTRICT dice) {
  const int64_t groups = p.batch_dice ? 1 : p.n;
  const int64_t samples_per_group = p.batch_dice ? p.n : 1;
  double cross_entropy = 0.0;
  double dice_loss = 0.0;
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t region = 0; region < p.regions; ++region) {
      double numerator = p.smooth;
      double denominator = p.smooth;
      for (int64_t k = 0; k < samples_per_group; ++k) {
        const float* sums = totals + ((group + k) * p.regions + region) * 4;
        numerator += 2.0 * sums[0];
        denominator += static_cast<double>(sums[1]) + sums[2];
        cross_entropy += sums[3];
      }
      dice_loss += 1.0 - numerator / denominator;
      dice[(group * p.regions + region) * 2] = static_cast<float>(numerator);
      dice[(group * p.regions + region) * 2 + 1] = static_cast<float>(denominator);
    }
  }
  const int64_t elements = p.n * p.voxels * p.regions;
  const int64_t ratios = groups * p.regions;
  loss[0] =
      static_cast<float>(p.bce_weight * cross_entropy / static_cast<double>(elements > 0 ? elements : 1) +
                         p.dice_weight * dice_loss / static_cast<double>(ratios > 0 ? ratios : 1));
}

struct RegionColumn {
  float constant, linear;
};

template <class T>
struct RegionGradient {
  Input<T> logits;
  const uint8_t* targets;
  const float* dice;
  int64_t regions;
  bool batch_dice;
  float dice_factor, bce_factor;
  Output<T> dlogits;
  // -(2 t B - A) / B^2 = constant - linear t.
  VESAL_DEVICE RegionColumn prepare(int64_t sample, int64_t region) const {
    const float* ratio = dice + ((batch_dice ? 0 : sample) * regions + region) * 2;
    return {dice_factor * ratio[0] / ratio[1] / ratio[1], 2.0f * dice_factor / ratio[1]};
  }
  VESAL_DEVICE void apply(const RegionColumn& s, int64_t, int64_t i) const {
    const auto t = static_cast<float>(targets[i]);
    const Logit value = evaluate(logits[i]);
    dlogits[i] = (s.constant - s.linear * t) * value.slope + bce_factor * (value.probability - t);
  }
};

// Counts of edge and other voxels, and their cross-entropies.
template <class T>
struct EdgeSums {
  Input<T> logits;
  const uint8_t* targets;
  float negative_factor;
  float* loss;
  float* counts;
  VESAL_DEVICE int prepare(int64_t, int64_t) const { return 0; }
  VESAL_DEVICE void add(int, int64_t, int64_t i, float (&sums)[4]) const {
    const float x = logits[i];
    const uint8_t t = targets[i];
    const float softplus = evaluate(x).softplus;
    if (t == 1) {
      sums[0] += 1.0f;
      sums[2] += softplus - x;
    } else if (t == 0) {
      sums[1] += 1.0f;
      sums[3] += softplus;
    }
  }
  VESAL_DEVICE void finish(int64_t, int64_t, const float (&sums)[4]) const {
    counts[0] = sums[0];
    counts[1] = sums[1];
    const float all = sums[0] + sums[1];
    loss[0] = all == 0.0f
                  ? 0.0f
                  : (sums[1] / all) * (sums[2] / all) + negative_factor * (sums[0] / all) * (sums[3] / all);
  }
};

template <class T>
struct EdgeGradient {
  Input<T> logits;
  const uint8_t* targets;
  const float* counts;
  float weight, negative_factor;
  Output<T> dlogits;
  VESAL_DEVICE void operator()(int64_t i) const {
    const uint8_t t = targets[i];
    if (t > 1) {
      dlogits[i] = 0.0f;
      return;
    }
    const float all = counts[0] + counts[1];
    const float share = t == 1 ? counts[1] / all : negative_factor * (counts[0] / all);
    dlogits[i] = weight * (share / all) * (evaluate(logits[i]).probability - static_cast<float>(t));
  }
};

}  // namespace

void region_targets(Context& context, int64_t voxels, const uint8_t* labels, uint8_t* targets) {
  launch_map(context.stream(), voxels * 3, RegionTargets{labels, targets});
}

void edge_targets(Context& context, int64_t n, int64_t d, int64_t h, int64_t w, const uint8_t* labels,
                  uint8_t* edges) {
  launch_map(context.stream(), n * d * h * w, EdgeTargets{d, h, w, labels, edges});
}

void region_loss_forward(Context& context, const RegionLossParams& p, ConstData logits,
                         const uint8_t* targets, Data loss, float* dice, Workspace workspace) {
  auto* partials = static_cast<float*>(workspace.data);
  float* totals = partials + p.n * slab_count(p.voxels) * 4 * p.regions;
  with_storage("region_loss_forward", {logits}, [&]<class T>(T) {
    launch_column_sums<4>(
        context.stream(), p.n, p.voxels, p.regions, partials,
        RegionSums<T>{input<T>(logits, "region_loss_forward: logits"), targets, p.regions, totals});
  });
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {1, 1, 1}}, region_loss_kernel, p,
         static_cast<const float*>(totals), loss.as<float>("region_loss_forward: loss"), dice);
}

void region_loss_backward(Context& context, const RegionLossParams& p, ConstData logits,
                          const uint8_t* targets, const float* dice, float weight, Data dlogits) {
  const int64_t groups = p.batch_dice ? 1 : p.n;
  const double dice_factor =
      static_cast<double>(weight) * p.dice_weight / static_cast<double>(groups * p.regions);
  const double bce_factor =
      static_cast<double>(weight) * p.bce_weight / static_cast<double>(p.n * p.voxels * p.regions);
  with_storage("region_loss_backward", {logits, dlogits}, [&]<class T>(T) {
    launch_column_map(
        context.stream(), p.n, p.voxels, p.regions,
        RegionGradient<T>{input<T>(logits, "region_loss_backward: logits"), targets, dice, p.regions,
                          p.batch_dice, static_cast<float>(dice_factor), static_cast<float>(bce_factor),
                          output<T>(dlogits, "region_loss_backward: dlogits")});
  });
}

void edge_loss_forward(Context& context, const EdgeLossParams& p, ConstData logits, const uint8_t* targets,
                       Data loss, float* counts, Workspace workspace) {
  with_storage("edge_loss_forward", {logits}, [&]<class T>(T) {
    launch_column_sums<4>(context.stream(), 1, p.voxels, 1, static_cast<float*>(workspace.data),
                          EdgeSums<T>{input<T>(logits, "edge_loss_forward: logits"), targets,
                                      p.negative_factor, loss.as<float>("edge_loss_forward: loss"), counts});
  });
}

void edge_loss_backward(Context& context, const EdgeLossParams& p, ConstData logits, const uint8_t* targets,
                        const float* counts, float weight, Data dlogits) {
  with_storage("edge_loss_backward", {logits, dlogits}, [&]<class T>(T) {
    launch_map(context.stream(), p.voxels,
               EdgeGradient<T>{input<T>(logits, "edge_loss_backward: logits"), targets, counts, weight,
                               p.negative_factor, output<T>(dlogits, "edge_loss_backward: dlogits")});
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
