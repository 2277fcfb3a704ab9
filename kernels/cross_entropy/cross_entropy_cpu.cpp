// The losses on softmax on the CPU. Rows are turned, 64 at a time, so that vectors run over rows whatever the
// number of classes; slabs add up in double and in order.
#include <algorithm>
#include <bit>
#include <cmath>

#include "base/parallel.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/turned_rows_cpu.hpp"
#include "kernels/cross_entropy/cross_entropy.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kBlock = TurnedRows::kRows;

// log(1 + u) for u >= 0: 1 + u = 2^k (1 + r), where r is u itself while k is 0, so that a small u keeps its
// digits.
inline float log1p_positive(float u) {
  const float z = 1.0f + u;
  const int32_t k = (std::bit_cast<int32_t>(z) >> 23) - 127;
  const float scale = std::bit_cast<float>(static_cast<uint32_t>(127 - k) << 23);
  const float r = k == 0 ? u : z * scale - 1.0f;
  return __builtin_fmaf(static_cast<float>(k), 0.693147181f, vector_log1p_unit(r));
}

struct CrossEntropyBlock {
  const CrossEntropyParams& p;
  const float* class_weights;
  float all_weights = 0;  // of the classes
  TurnedRows turned;
  alignas(64) int label[kBlock];      // -1: ignored; p.classes: no class
  alignas(64) float weight[kBlock];   // of the label; 0 where ignored, NaN where it is no class
  alignas(64) float own[kBlock];      // logit of the label minus the largest
  alignas(64) float others[kBlock];   // sum of the exponentials but the label's
  alignas(64) float shifted[kBlock];  // class-weighted sum of the logits minus the largest
  alignas(64) float log_z[kBlock];

  CrossEntropyBlock(const CrossEntropyParams& params, const float* weights)
      : p(params), class_weights(weights), turned(params.classes) {
    for (int64_t c = 0; c < p.classes; ++c) {
      all_weights += weight_of(c);
    }
  }
  float weight_of(int64_t c) const { return class_weights != nullptr ? class_weights[c] : 1.0f; }

  // Leaves exponentials in `turned`.
  template <class Values>
  void evaluate(int64_t count, Values logits, const uint8_t* labels) {
    turned.load_below_largest(count, logits, 1.0f);
    for (int64_t r = 0; r < count; ++r) {
      // Without branches: which label comes next is hard to foresee.
      const bool ignored = labels[r] == p.ignore_label;
      const bool valid = labels[r] < p.classes;
      const int64_t column = valid ? labels[r] : 0;
      const float column_weight = weight_of(column);
      const float logit = turned.at(column)[r];
      label[r] = ignored ? -1 : valid ? labels[r] : static_cast<int>(p.classes);
      weight[r] = ignored ? 0.0f : valid ? column_weight : NAN;
      own[r] = !ignored && valid ? logit : 0.0f;
      others[r] = 0.0f;
      shifted[r] = 0.0f;
    }
    for (int64_t c = 0; c < p.classes; ++c) {
      float* row = turned.at(c);
      const float w = weight_of(c);
      const int column = static_cast<int>(c);
#pragma omp simd
      for (int64_t r = 0; r < count; ++r) {
        shifted[r] += w * row[r];
        const float e = vector_exp(row[r]);
        row[r] = e;
        others[r] += label[r] == column ? 0.0f : e;
      }
    }
#pragma omp simd
    for (int64_t r = 0; r < count; ++r) {
      log_z[r] = log1p_positive(others[r] + (vector_exp(own[r]) - 1.0f));
    }
  }
};

// power[r] = q[r]^gamma; q is 1 - p[y].
void focal_powers(int64_t count, const float* q, float gamma, float* power) {
  if (gamma == 0.0f || gamma == 1.0f || gamma == 2.0f) {
#pragma omp simd
    for (int64_t r = 0; r < count; ++r) {
      power[r] = gamma == 0.0f ? 1.0f : gamma == 1.0f ? q[r] : q[r] * q[r];
    }
  } else {
    for (int64_t r = 0; r < count; ++r) {
      power[r] = std::pow(q[r], gamma);
    }
  }
}

// body(begin, count, slab) for the blocks of every slab, in order within a slab.
template <class Prepare>
void for_slab_blocks(int64_t rows, int64_t classes, Prepare&& prepare) {
  const int64_t slabs = slab_count(rows);
  parallel_for(slabs, ceil_div(4096, std::max<int64_t>(rows / slabs * classes, 1)),
               [&](int64_t first, int64_t last) {
                 auto body = prepare();
                 for (int64_t slab = first; slab < last; ++slab) {
                   const int64_t end = slab_begin(rows, slabs, slab + 1);
                   for (int64_t row = slab_begin(rows, slabs, slab); row < end; row += kBlock) {
                     body(row, std::min(kBlock, end - row), slab);
                   }
                 }
               });
}

}  // namespace

void cross_entropy_forward(Context&, const CrossEntropyParams& p, ConstData logits_, const uint8_t* labels,
                           const float* class_weights, Data loss_, float* total_weight, Workspace workspace) {
  with_storage("cross_entropy_forward", {logits_}, [&]<class T>(T) {
    const auto logits = input<T>(logits_, "cross_entropy_forward: logits");
    float* loss = loss_.as<float>("cross_entropy_forward: loss");
    const int64_t slabs = slab_count(p.rows);
    auto* partials = static_cast<double*>(workspace.data);  // [slabs, 2]: cost, weight
    std::fill_n(partials, slabs * 2, 0.0);
    for_slab_blocks(p.rows, p.classes, [&] {
      return
          [&, block = CrossEntropyBlock(p, class_weights)](int64_t row, int64_t count, int64_t slab) mutable {
            block.evaluate(count, logits + row * p.classes, labels + row);
            const float hard = 1.0f - p.label_smoothing;
            const float soft = p.label_smoothing / static_cast<float>(p.classes);
            alignas(64) float q[kBlock], power[kBlock], cost[kBlock];
#pragma omp simd
            for (int64_t r = 0; r < count; ++r) {
              q[r] = block.others[r] / (block.others[r] + vector_exp(block.own[r]));
            }
            focal_powers(count, q, p.focal_gamma, power);
#pragma omp simd
            for (int64_t r = 0; r < count; ++r) {
              const float nll = hard * block.weight[r] * power[r] * (block.log_z[r] - block.own[r]);
              const float smooth =
                  soft > 0.0f ? soft * (block.all_weights * block.log_z[r] - block.shifted[r]) : 0.0f;
              cost[r] = block.label[r] < 0 ? 0.0f : nll + smooth;
            }
            double costs = 0;
            double weights = 0;
            for (int64_t r = 0; r < count; ++r) {
              costs += cost[r];
              weights += block.weight[r];
            }
            partials[slab * 2] += costs;
            partials[slab * 2 + 1] += weights;
          };
    });
    double cost = 0;
    double total = 0;
    for (int64_t slab = 0; slab < slabs; ++slab) {
      cost += partials[slab * 2];
      total += partials[slab * 2 + 1];
    }
    *total_weight = static_cast<float>(total);
    *loss = total == 0 ? 0.0f : static_cast<float>(cost / total);
  });
}

void cross_entropy_backward(Context&, const CrossEntropyParams& p, ConstData logits_, const uint8_t* labels,
                            const float* class_weights, const float* total_weight, float weight,
                            Data dlogits_) {
  with_storage("cross_entropy_backward", {logits_, dlogits_}, [&]<class T>(T) {
    const auto logits = input<T>(logits_, "cross_entropy_backward: logits");
    const auto dlogits = output<T>(dlogits_, "cross_entropy_backward: dlogits");
    const float scale = p.rows == 0 || *total_weight == 0.0f ? 0.0f : weight / *total_weight;
    for_slab_blocks(p.rows, p.classes, [&] {
      return [&, block = CrossEntropyBlock(p, class_weights)](int64_t row, int64_t count, int64_t) mutable {
        block.evaluate(count, logits + row * p.classes, labels + row);
        const float soft = scale * p.label_smoothing / static_cast<float>(p.classes);
        alignas(64) float inverse[kBlock], hard[kBlock], q[kBlock], power[kBlock];
#pragma omp simd
        for (int64_t r = 0; r < count; ++r) {
          inverse[r] = 1.0f / (block.others[r] + vector_exp(block.own[r]));
          q[r] = block.others[r] * inverse[r];
        }
        focal_powers(count, q, p.focal_gamma, power);
#pragma omp simd
        for (int64_t r = 0; r < count; ++r) {
          const float nll = block.log_z[r] - block.own[r];
          const float ratio = q[r] > 0.0f ? nll / q[r] : 1.0f;
          const float own = vector_exp(block.own[r]) * inverse[r];
          const float focal = power[r] * (1.0f + p.focal_gamma * own * ratio);
          hard[r] = scale * (1.0f - p.label_smoothing) * block.weight[r] * focal;
        }
        for (int64_t c = 0; c < p.classes; ++c) {
          float* e = block.turned.at(c);
          const float w = block.weight_of(c);
          const int column = static_cast<int>(c);
#pragma omp simd
          for (int64_t r = 0; r < count; ++r) {
            const float probability = e[r] * inverse[r];
            // 1 - p[y] from the other exponentials: the difference would lose a small one's digits.
            const float distance = block.label[r] == column ? -q[r] : probability;
            const float value = hard[r] * distance + soft * (block.all_weights * probability - w);
            e[r] = block.label[r] < 0 ? 0.0f : value;
          }
        }
        block.turned.store(count, dlogits + row * p.classes);
      };
    });
  });
}

void distillation_forward(Context&, const DistillationParams& p, ConstData student_, ConstData teacher_,
                          Data loss_, Workspace workspace) {
  with_storage("distillation_forward", {student_, teacher_}, [&]<class T>(T) {
    const auto student = input<T>(student_, "distillation_forward: student");
    const auto teacher = input<T>(teacher_, "distillation_forward: teacher");
    float* loss = loss_.as<float>("distillation_forward: loss");
    const int64_t slabs = slab_count(p.rows);
    auto* partials = static_cast<double*>(workspace.data);
    std::fill_n(partials, slabs, 0.0);
    const float scale = 1.0f / p.temperature;
    for_slab_blocks(p.rows, p.classes, [&] {
      return [&, s = TurnedRows(p.classes), t = TurnedRows(p.classes)](int64_t row, int64_t count,
                                                                       int64_t slab) mutable {
        s.load_below_largest(count, student + row * p.classes, scale);
        t.load_below_largest(count, teacher + row * p.classes, scale);
        alignas(64) float s_total[kBlock] = {}, t_total[kBlock] = {}, product[kBlock] = {};
        for (int64_t c = 0; c < p.classes; ++c) {
          const float* sc = s.at(c);
          const float* tc = t.at(c);
#pragma omp simd
          for (int64_t r = 0; r < count; ++r) {
            const float e = vector_exp(tc[r]);
            s_total[r] += vector_exp(sc[r]);
            t_total[r] += e;
            product[r] += e * (tc[r] - sc[r]);
          }
        }
        for (int64_t r = 0; r < count; ++r) {
          // Both terms are larger than their sum: in double, so that it keeps its digits.
          const double t = t_total[r];
          partials[slab] += product[r] / t + std::log(s_total[r] / t);
        }
      };
    });
    double total = 0;
    for (int64_t slab = 0; slab < slabs; ++slab) {
      total += partials[slab];
    }
    const double factor = static_cast<double>(p.temperature) * p.temperature /
                          static_cast<double>(std::max<int64_t>(p.rows, 1));
    *loss = static_cast<float>(factor * total);
  });
}

void distillation_backward(Context&, const DistillationParams& p, ConstData student_, ConstData teacher_,
                           float weight, Data dstudent_) {
  with_storage("distillation_backward", {student_, teacher_, dstudent_}, [&]<class T>(T) {
    const auto student = input<T>(student_, "distillation_backward: student");
    const auto teacher = input<T>(teacher_, "distillation_backward: teacher");
    const auto dstudent = output<T>(dstudent_, "distillation_backward: dstudent");
    const float scale = 1.0f / p.temperature;
    const auto factor = static_cast<float>(static_cast<double>(weight) * p.temperature /
                                           static_cast<double>(std::max<int64_t>(p.rows, 1)));
    for_slab_blocks(p.rows, p.classes, [&] {
      return [&, s = TurnedRows(p.classes), t = TurnedRows(p.classes)](int64_t row, int64_t count,
                                                                       int64_t) mutable {
        s.load_below_largest(count, student + row * p.classes, scale);
        t.load_below_largest(count, teacher + row * p.classes, scale);
        alignas(64) float s_total[kBlock] = {}, t_total[kBlock] = {};
        for (int64_t c = 0; c < p.classes; ++c) {
          float* sc = s.at(c);
          float* tc = t.at(c);
#pragma omp simd
          for (int64_t r = 0; r < count; ++r) {
            sc[r] = vector_exp(sc[r]);
            tc[r] = vector_exp(tc[r]);
            s_total[r] += sc[r];
            t_total[r] += tc[r];
          }
        }
        for (int64_t c = 0; c < p.classes; ++c) {
          float* sc = s.at(c);
          const float* tc = t.at(c);
#pragma omp simd
          for (int64_t r = 0; r < count; ++r) {
            sc[r] = factor * (sc[r] / s_total[r] - tc[r] / t_total[r]);
          }
        }
        s.store(count, dstudent + row * p.classes);
      };
    });
  });
}

}  // namespace vesal::kernels::cpu
