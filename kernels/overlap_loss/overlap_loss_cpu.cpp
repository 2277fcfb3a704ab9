// The overlap losses on the CPU. Regions run over wide rows; for softmax, voxels are turned, 64 at a time, so
// that vectors run over voxels whatever the number of classes. Slabs add up in double and in order.
#include <algorithm>
#include <cmath>

#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/turned_rows_cpu.hpp"
#include "kernels/context/wide_rows.hpp"
#include "kernels/overlap_loss/overlap_loss.hpp"
#include "kernels/overlap_loss/overlap_slopes.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kBlock = TurnedRows::kRows;

// Softmax of up to kBlock voxels, by class.
template <class Values>
void load_softmax(int64_t count, int64_t channels, Values x, TurnedRows& turned) {
  turned.load_below_largest(count, x, 1.0f);
  alignas(64) float total[kBlock] = {};
  for (int64_t c = 0; c < channels; ++c) {
    float* row = turned.at(c);
#pragma omp simd
    for (int64_t r = 0; r < count; ++r) {
      row[r] = vector_exp(row[r]);
      total[r] += row[r];
    }
  }
#pragma omp simd
  for (int64_t r = 0; r < count; ++r) {
    total[r] = 1.0f / total[r];
  }
  for (int64_t c = 0; c < channels; ++c) {
    float* row = turned.at(c);
#pragma omp simd
    for (int64_t r = 0; r < count; ++r) {
      row[r] *= total[r];
    }
  }
}

// body(first voxel of all samples, count, sample, slab) for blocks of voxels; the slabs' order within a
// thread is that of memory.
template <class Prepare>
void for_slab_blocks(const OverlapLossParams& p, Prepare&& prepare) {
  const int64_t slabs = slab_count(p.voxels);
  parallel_for(p.n * slabs, ceil_div(4096, std::max<int64_t>(p.voxels / slabs * p.channels, 1)),
               [&](int64_t first, int64_t last) {
                 auto body = prepare();
                 for (int64_t item = first; item < last; ++item) {
                   const int64_t sample = item / slabs;
                   const int64_t slab = item % slabs;
                   const int64_t end = sample * p.voxels + slab_begin(p.voxels, slabs, slab + 1);
                   for (int64_t v = sample * p.voxels + slab_begin(p.voxels, slabs, slab); v < end;
                        v += kBlock) {
                     body(v, std::min(kBlock, end - v), sample, item);
                   }
                 }
               });
}

// partials [n, slabs, 3, channels] = sums of p t, p and t, as column_partials leaves them.
template <class Values>
void softmax_partials(const OverlapLossParams& p, Values logits, const uint8_t* targets, double* partials) {
  std::fill_n(partials, p.n * slab_count(p.voxels) * 3 * p.channels, 0.0);
  for_slab_blocks(p, [&] {
    return [&, turned = TurnedRows(p.channels)](int64_t v, int64_t count, int64_t, int64_t item) mutable {
      load_softmax(count, p.channels, logits + v * p.channels, turned);
      alignas(64) float label[kBlock];
      float bad = 0.0f;  // NaN where a label is no class
      for (int64_t r = 0; r < count; ++r) {
        const uint8_t target = targets[v + r];
        const bool ignored = target == p.ignore_label;
        label[r] = ignored ? -1.0f : static_cast<float>(target);
        bad = !ignored && target >= p.channels ? NAN : bad;
      }
      double* sums = partials + item * 3 * p.channels;
      for (int64_t c = 0; c < p.channels; ++c) {
        const float* row = turned.at(c);
        const auto channel = static_cast<float>(c);
        float product = bad, probability = 0.0f, target = 0.0f;
#pragma omp simd reduction(+ : product, probability, target)
        for (int64_t r = 0; r < count; ++r) {
          const bool hit = label[r] == channel;
          product += hit ? row[r] : 0.0f;
          probability += label[r] < 0.0f ? 0.0f : row[r];
          target += hit ? 1.0f : 0.0f;
        }
        sums[c] += product;
        sums[p.channels + c] += probability;
        sums[2 * p.channels + c] += target;
      }
    };
  });
}

template <class Values>
void sigmoid_partials(const OverlapLossParams& p, Values logits, const uint8_t* targets, double* partials) {
  const auto ignored = static_cast<float>(p.ignore_label);
  column_partials<3>(p.n, p.voxels, p.channels, partials, [=](int64_t) {
    return [=](int64_t i, int64_t, auto add) {
      const auto target = static_cast<float>(targets[i]);
      const float probability = vector_sigmoid(logits[i]);
      const bool counts = target != ignored;
      const float t = target > 1.0f ? NAN : target;
      add(0, counts ? probability * t : 0.0f);
      add(1, counts ? probability : 0.0f);
      add(2, counts ? t : 0.0f);
    };
  });
}

}  // namespace

void overlap_loss_forward(Context&, const OverlapLossParams& p, ConstData logits_, const uint8_t* targets,
                          Data loss_, float* slopes, Workspace workspace) {
  float* loss = loss_.as<float>("overlap_loss_forward: loss");
  auto* partials = static_cast<double*>(workspace.data);
  with_storage("overlap_loss_forward", {logits_}, [&]<class T>(T) {
    const auto logits = input<T>(logits_, "overlap_loss_forward: logits");
    if (p.softmax) {
      softmax_partials(p, logits, targets, partials);
    } else {
      sigmoid_partials(p, logits, targets, partials);
    }
  });
  double* totals = partials + p.n * slab_count(p.voxels) * 3 * p.channels;  // [groups, channels, 3]
  std::fill_n(totals, p.groups() * p.channels * 3, 0.0);
  column_totals<3>(p.n, p.voxels, p.channels, partials,
                   [&](int64_t sample, int64_t c, const std::array<double, 3>& sums) {
                     double* total = totals + ((p.batch ? 0 : sample) * p.channels + c) * 3;
                     for (size_t k = 0; k < 3; ++k) {
                       total[k] += sums[k];
                     }
                   });
  const auto terms = static_cast<double>(std::max<int64_t>(p.groups(), 1) * (p.channels - p.first_channel));
  double sum = 0;
  for (int64_t k = 0; k < p.groups() * p.channels; ++k) {
    const double* total = totals + k * 3;
    const bool counts = k % p.channels >= p.first_channel;
    const OverlapTerm term =
        counts ? overlap_term(p.kind, p.smooth, {total[0], total[1], total[2]}) : OverlapTerm{};
    sum += term.loss;
    slopes[2 * k] = static_cast<float>(term.constant / terms);
    slopes[2 * k + 1] = static_cast<float>(term.linear / terms);
  }
  *loss = static_cast<float>(sum / terms);
}

void overlap_loss_backward(Context&, const OverlapLossParams& p, ConstData logits_, const uint8_t* targets,
                           const float* slopes, float weight, Data dlogits_) {
  with_storage("overlap_loss_backward", {logits_, dlogits_}, [&]<class T>(T) {
    const auto logits = input<T>(logits_, "overlap_loss_backward: logits");
    const auto dlogits = output<T>(dlogits_, "overlap_loss_backward: dlogits");
    if (!p.softmax) {
      const auto ignored = static_cast<float>(p.ignore_label);
      column_map(p.n, p.voxels, p.channels, [&](int64_t sample) {
        const float* s = slopes + (p.batch ? 0 : sample * p.channels * 2);
        return [=, constant = repeat_channels(p.channels, [&](int64_t c) { return weight * s[2 * c]; }),
                linear = repeat_channels(p.channels, [&](int64_t c) { return weight * s[2 * c + 1]; })](
                   int64_t i, int64_t j) {
          const float x = logits[i];
          const auto target = static_cast<float>(targets[i]);
          const float e = vector_exp(x < 0.0f ? x : -x);
          const float inverse = 1.0f / (1.0f + e);
          const auto column = static_cast<size_t>(j);
          const float value = (constant[column] - linear[column] * target) * (e * inverse * inverse);
          dlogits[i] = target == ignored ? 0.0f : value;
        };
      });
      return;
    }
    for_slab_blocks(p, [&] {
      return [&, turned = TurnedRows(p.channels)](int64_t v, int64_t count, int64_t sample, int64_t) mutable {
        load_softmax(count, p.channels, logits + v * p.channels, turned);
        const float* s = slopes + (p.batch ? 0 : sample * p.channels * 2);
        alignas(64) int label[kBlock];
        alignas(64) float projected[kBlock] = {};
        std::copy_n(targets + v, count, label);
        for (int64_t c = 0; c < p.channels; ++c) {
          const float* row = turned.at(c);
          const float constant = s[2 * c], linear = s[2 * c + 1];
          const int channel = static_cast<int>(c);
#pragma omp simd
          for (int64_t r = 0; r < count; ++r) {
            projected[r] += (constant - (label[r] == channel ? linear : 0.0f)) * row[r];
          }
        }
        for (int64_t c = 0; c < p.channels; ++c) {
          float* row = turned.at(c);
          const float constant = s[2 * c], linear = s[2 * c + 1];
          const int channel = static_cast<int>(c);
          const int ignored = p.ignore_label;
#pragma omp simd
          for (int64_t r = 0; r < count; ++r) {
            const float slope = constant - (label[r] == channel ? linear : 0.0f);
            const float value = weight * row[r] * (slope - projected[r]);
            row[r] = label[r] == ignored ? 0.0f : value;
          }
        }
        turned.store(count, dlogits + v * p.channels);
      };
    });
  });
}

}  // namespace vesal::kernels::cpu
