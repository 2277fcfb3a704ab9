// The losses on the CPU. Sums run over wide rows within slabs, slabs add up in double and in order;
// exponentials and logarithms are vectorised.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/wide_rows.hpp"
#include "kernels/losses/losses.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kGradientBlock = 1024;

// What both losses need of a logit x: e = e^-|x| gives all of it without overflow.
struct Logit {
  float probability;  // sigmoid(x)
  float softplus;     // log(1 + e^x)
};

inline Logit evaluate(float x) {
  const float e = vector_exp(x < 0.0f ? x : -x);
  const float inverse = 1.0f / (1.0f + e);
  return {(x < 0.0f ? e : 1.0f) * inverse, (x < 0.0f ? 0.0f : x) + vector_log1p_unit(e)};
}

// Labels that are no tumour class count as background.
inline uint8_t tumour_label(uint8_t label) { return label > 3 ? 0 : label; }

}  // namespace

void region_targets(Context&, int64_t voxels, const uint8_t* labels, uint8_t* targets) {
  // Three bytes for each label, written four at a time: the fourth is overwritten by the next voxel.
  static constexpr uint8_t kBytes[4][4] = {{0, 0, 0, 0}, {1, 1, 0, 0}, {1, 0, 0, 0}, {1, 1, 1, 0}};
  parallel_for(voxels, 32768, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end - 1; ++v) {
      std::memcpy(targets + v * 3, kBytes[tumour_label(labels[v])], 4);
    }
    std::memcpy(targets + (end - 1) * 3, kBytes[tumour_label(labels[end - 1])], 3);
  });
}

void edge_targets(Context&, int64_t n, int64_t d, int64_t h, int64_t w, const uint8_t* labels,
                  uint8_t* edges) {
  // The three masks change somewhere in a neighbourhood just where the tumour label does, that is where its
  // largest and smallest value differ; both are found axis by axis.
  const int64_t plane = h * w;
  parallel_for(n * d, ceil_div(16384, std::max<int64_t>(plane, 1)), [&](int64_t first, int64_t last) {
    std::vector<uint8_t> high_plane(static_cast<size_t>(plane));
    std::vector<uint8_t> low_plane(static_cast<size_t>(plane));
    std::vector<uint8_t> high_row(static_cast<size_t>(w + 2), 0);  // one neutral element on either side
    std::vector<uint8_t> low_row(static_cast<size_t>(w + 2), 255);
    for (int64_t item = first; item < last; ++item) {
      const int64_t z = item % d;
      const uint8_t* centre = labels + item * plane;
      const uint8_t* before = z > 0 ? centre - plane : centre;
      const uint8_t* after = z + 1 < d ? centre + plane : centre;
      uint8_t* high = high_plane.data();
      uint8_t* low = low_plane.data();
#pragma omp simd
      for (int64_t i = 0; i < plane; ++i) {
        const uint8_t a = tumour_label(before[i]);
        const uint8_t b = tumour_label(centre[i]);
        const uint8_t c = tumour_label(after[i]);
        const uint8_t ab_high = a > b ? a : b;
        const uint8_t ab_low = a < b ? a : b;
        high[i] = ab_high > c ? ab_high : c;
        low[i] = ab_low < c ? ab_low : c;
      }
      for (int64_t y = 0; y < h; ++y) {
        const int64_t above = std::max<int64_t>(y - 1, 0) * w;
        const int64_t here = y * w;
        const int64_t below = std::min<int64_t>(y + 1, h - 1) * w;
        uint8_t* row_high = high_row.data() + 1;
        uint8_t* row_low = low_row.data() + 1;
#pragma omp simd
        for (int64_t x = 0; x < w; ++x) {
          const uint8_t ab_high = high[above + x] > high[here + x] ? high[above + x] : high[here + x];
          const uint8_t ab_low = low[above + x] < low[here + x] ? low[above + x] : low[here + x];
          row_high[x] = ab_high > high[below + x] ? ab_high : high[below + x];
          row_low[x] = ab_low < low[below + x] ? ab_low : low[below + x];
        }
        uint8_t* target = edges + item * plane + here;
#pragma omp simd
        for (int64_t x = 0; x < w; ++x) {
          const uint8_t ab_high = row_high[x - 1] > row_high[x] ? row_high[x - 1] : row_high[x];
          const uint8_t ab_low = row_low[x - 1] < row_low[x] ? row_low[x - 1] : row_low[x];
          const uint8_t top = ab_high > row_high[x + 1] ? ab_high : row_high[x + 1];
          const uint8_t bottom = ab_low < row_low[x + 1] ? ab_low : row_low[x + 1];
          target[x] = top != bottom ? 1 : 0;
        }
      }
    }
  });
}

void region_loss_forward(Context&, const RegionLossParams& p, ConstData logits_, const uint8_t* targets,
                         Data loss, float* dice, Workspace workspace) {
  auto* partials = static_cast<double*>(workspace.data);
  with_storage("region_loss_forward", {logits_}, [&]<class T>(T) {
    const auto logits = input<T>(logits_, "region_loss_forward: logits");
    // Sums of p t, p, t and the cross-entropy.
    column_partials<4>(p.n, p.voxels, p.regions, partials, [=](int64_t) {
      return [=](int64_t i, int64_t, auto add) {
        const float x = logits[i];
        const auto t = static_cast<float>(targets[i]);
        const Logit value = evaluate(x);
        add(0, value.probability * t);
        add(1, value.probability);
        add(2, t);
        add(3, value.softplus - x * t);
      };
    });
  });
  const int64_t groups = p.batch_dice ? 1 : p.n;
  auto* ratios = partials + p.n * slab_count(p.voxels) * 4 * p.regions;  // [groups, regions, 2]
  std::fill_n(ratios, groups * p.regions * 2, static_cast<double>(p.smooth));
  double cross_entropy = 0;
  column_totals<4>(p.n, p.voxels, p.regions, partials,
                   [&](int64_t sample, int64_t region, const std::array<double, 4>& sums) {
                     double* ratio = ratios + ((p.batch_dice ? 0 : sample) * p.regions + region) * 2;
                     ratio[0] += 2 * sums[0];
                     ratio[1] += sums[1] + sums[2];
                     cross_entropy += sums[3];
                   });
  double dice_loss = 0;
  for (int64_t k = 0; k < groups * p.regions; ++k) {
    dice_loss += 1 - ratios[2 * k] / ratios[2 * k + 1];
    dice[2 * k] = static_cast<float>(ratios[2 * k]);
    dice[2 * k + 1] = static_cast<float>(ratios[2 * k + 1]);
  }
  const auto mean = [](double sum, int64_t count) {
    return sum / static_cast<double>(std::max<int64_t>(count, 1));
  };
  *loss.as<float>("region_loss_forward: loss") =
      static_cast<float>(p.bce_weight * mean(cross_entropy, p.n * p.voxels * p.regions) +
                         p.dice_weight * mean(dice_loss, groups * p.regions));
}

void region_loss_backward(Context&, const RegionLossParams& p, ConstData logits_, const uint8_t* targets,
                          const float* dice, float weight, Data dlogits_) {
  with_storage("region_loss_backward", {logits_, dlogits_}, [&]<class T>(T) {
    const auto logits = input<T>(logits_, "region_loss_backward: logits");
    const auto dlogits = output<T>(dlogits_, "region_loss_backward: dlogits");
    const int64_t groups = p.batch_dice ? 1 : p.n;
    const double dice_factor =
        static_cast<double>(weight) * p.dice_weight / static_cast<double>(groups * p.regions);
    const auto bce_factor = static_cast<float>(static_cast<double>(weight) * p.bce_weight /
                                               static_cast<double>(p.n * p.voxels * p.regions));
    column_map(p.n, p.voxels, p.regions, [&](int64_t sample) {
      const float* ratios = dice + (p.batch_dice ? 0 : sample * p.regions * 2);
      // -(2 t B - A) / B^2 = constant - linear t.
      return [=,
              constant = repeat_channels(p.regions,
                                         [&](int64_t r) {
                                           const double b = ratios[2 * r + 1];
                                           return dice_factor * ratios[2 * r] / (b * b);
                                         }),
              linear = repeat_channels(p.regions, [&](int64_t r) {
                return 2 * dice_factor / ratios[2 * r + 1];
              })](int64_t i, int64_t j) {
        const float x = logits[i];
        const auto t = static_cast<float>(targets[i]);
        const float e = vector_exp(x < 0.0f ? x : -x);
        const float inverse = 1.0f / (1.0f + e);
        const float probability = (x < 0.0f ? e : 1.0f) * inverse;
        const auto column = static_cast<size_t>(j);
        dlogits[i] = (constant[column] - linear[column] * t) * (e * inverse * inverse) +
                     bce_factor * (probability - t);
      };
    });
  });
}

void edge_loss_forward(Context&, const EdgeLossParams& p, ConstData logits_, const uint8_t* targets,
                       Data loss, float* counts, Workspace workspace) {
  auto* partials = static_cast<double*>(workspace.data);
  with_storage("edge_loss_forward", {logits_}, [&]<class T>(T) {
    const auto logits = input<T>(logits_, "edge_loss_forward: logits");
    column_partials<4>(1, p.voxels, 1, partials, [=](int64_t) {
      return [=](int64_t i, int64_t, auto add) {
        const float x = logits[i];
        const auto t = static_cast<float>(targets[i]);
        const float softplus = evaluate(x).softplus;
        const bool positive = t == 1.0f;
        const bool negative = t == 0.0f;
        add(0, positive ? 1.0f : 0.0f);
        add(1, negative ? 1.0f : 0.0f);
        add(2, positive ? softplus - x : 0.0f);
        add(3, negative ? softplus : 0.0f);
      };
    });
  });
  column_totals<4>(1, p.voxels, 1, partials, [&](int64_t, int64_t, const std::array<double, 4>& sums) {
    const double all = sums[0] + sums[1];
    counts[0] = static_cast<float>(sums[0]);
    counts[1] = static_cast<float>(sums[1]);
    *loss.as<float>("edge_loss_forward: loss") =
        all == 0
            ? 0.0f
            : static_cast<float>((sums[1] * sums[2] + p.negative_factor * sums[0] * sums[3]) / (all * all));
  });
}

void edge_loss_backward(Context&, const EdgeLossParams& p, ConstData logits_, const uint8_t* targets,
                        const float* counts, float weight, Data dlogits_) {
  with_storage("edge_loss_backward", {logits_, dlogits_}, [&]<class T>(T) {
    const auto logits = input<T>(logits_, "edge_loss_backward: logits");
    const auto dlogits = output<T>(dlogits_, "edge_loss_backward: dlogits");
    const double all = static_cast<double>(counts[0]) + counts[1];
    const auto positive = static_cast<float>(all == 0 ? 0.0 : weight * (counts[1] / (all * all)));
    const auto negative =
        static_cast<float>(all == 0 ? 0.0 : weight * (p.negative_factor * (counts[0] / (all * all))));
    parallel_for(p.voxels, 16384, [=](int64_t begin, int64_t end) {
      // Sigmoids first: in one loop GCC takes what depends on the target apart into branches.
      alignas(64) float probability[kGradientBlock];
      for (int64_t first = begin; first < end; first += kGradientBlock) {
        const int64_t count = std::min(kGradientBlock, end - first);
        const uint8_t* target = targets + first;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          probability[i] = vector_sigmoid(logits[first + i]);
        }
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          const float edge = positive * (probability[i] - 1.0f);
          const float other = negative * probability[i];
          const int t = target[i];
          dlogits[first + i] = t == 1 ? edge : t == 0 ? other : 0.0f;
        }
      }
    });
  });
}

}  // namespace vesal::kernels::cpu
