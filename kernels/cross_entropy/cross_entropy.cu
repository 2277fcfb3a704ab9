// Losses on the softmax of rows. Cross entropy reads 4 bytes a float32 logit and 1 a row, and writes 4 a
// logit in backward; distillation reads twice that; about 30 operations a logit, an exponential among them:
// memory bandwidth limits them. A power of two of lanes, at most a warp, shares a row. In cross entropy a
// lane holds four logits of up to 32 classes and sixteen of more, so that a row is read once, its
// exponentials are taken once, a warp has several rows at a time, and one thread has a row of four classes;
// distillation reads its rows two or three times, from L1 after the first. Sums run per slab of rows, then
// over slabs, in a fixed order.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/row_share.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/cross_entropy/cross_entropy.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kFewClasses = 32;   // a lane has four of them
constexpr int kMostClasses = 16;  // of a lane where there are more; in the contract 256 at most

// Lanes that share a row of cross entropy.
int row_lanes(int64_t classes) {
  return column_width(ceil_div(classes, classes <= kFewClasses ? 4 : kMostClasses));
}

// What the kernels need to know of the classes' weights and of the labels.
template <class T>
struct Rows {
  CrossEntropyParams p;
  Input<T> logits;
  bool aligned;  // four neighbouring logits can be accessed at once
  const uint8_t* labels;
  const float* class_weights;

  VESAL_DEVICE float weight_of(int64_t c) const { return class_weights != nullptr ? class_weights[c] : 1.0f; }
};

// A row as every lane of its group knows it.
struct Row {
  bool active;        // within the range and not ignored
  int label;          // p.classes and more: no class
  float weight;       // of the label, NaN for no class
  float largest;      // logit
  float own;          // logit of the label minus the largest
  float others;       // sum of the exponentials but the label's
  float shifted;      // class-weighted sum of the logits minus the largest; with smoothing only
  float all_weights;  // sum of the class weights; with smoothing only
  float inverse;      // 1 / sum of the exponentials
  float own_exponential;

  // Log of the sum of the exponentials.
  VESAL_DEVICE float log_z() const { return log1pf(others + (own_exponential - 1.0f)); }
  // -log p[y].
  VESAL_DEVICE float nll() const { return log_z() - own; }
  // 1 - p[y] from the other exponentials: the difference would lose a small one's digits.
  VESAL_DEVICE float rest() const { return others * inverse; }
  VESAL_DEVICE float focal_power(float gamma) const { return gamma == 0.0f ? 1.0f : powf(rest(), gamma); }
};

// All lanes of a warp call it together; a row at `end` or beyond is inactive. e: the exponentials of the
// lane's logits minus the largest.
template <int kValues, class T>
VESAL_DEVICE Row evaluate_row(const Rows<T>& rows, int64_t row, int64_t end, const RowShare& share,
                              float (&e)[kValues]) {
  Row v{};
  const int classes = static_cast<int>(rows.p.classes);
  v.label = row < end ? rows.labels[row] : 0;
  v.active = row < end && v.label != rows.p.ignore_label;
  const bool valid = v.label < classes;
  const auto x = rows.logits + row * classes;
  const int length = v.active ? classes : 0;
  v.largest = load_row(x, share, length, rows.aligned, e);
  VESAL_UNROLL
  for (int j = 0; j < kValues; ++j) {
    const int c = share.of(j);
    if (c < length) {
      const float shift = e[j] - v.largest;
      e[j] = expf(shift);
      if (c == v.label) {
        v.own = shift;
      } else {
        v.others += e[j];
      }
      if (rows.p.label_smoothing > 0.0f) {
        v.shifted += rows.weight_of(c) * shift;
        v.all_weights += rows.weight_of(c);
      }
    }
  }
  v.others = group_sum(v.others, share.lanes);
  v.own = group_sum(v.own, share.lanes);  // of one number and zeros
  if (rows.p.label_smoothing > 0.0f) {
    v.shifted = group_sum(v.shifted, share.lanes);
    v.all_weights = group_sum(v.all_weights, share.lanes);
  }
  if (v.active) {
    v.weight = valid ? rows.weight_of(v.label) : NAN;
    v.own_exponential = expf(v.own);
    v.inverse = 1.0f / (v.others + v.own_exponential);
  }
  return v;
}

// partials [slabs, 2] = sums of the costs and the weights of a slab's rows.
template <int kValues, class T>
VESAL_KERNEL void cross_entropy_partials_kernel(Rows<T> rows, int lanes, float* VESAL_RESTRICT partials) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const RowShare share(static_cast<int>(rows.p.classes), lane, lanes);
  const int step = kLoopThreads / lanes;
  const int64_t end = slab_begin(rows.p.rows, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1);
  float cost = 0.0f;
  float weight = 0.0f;
  for (int64_t base = slab_begin(rows.p.rows, gridDim.x, blockIdx.x); base < end; base += step) {
    float e[kValues];
    const Row v = evaluate_row(rows, base + group, end, share, e);
    if (v.active && lane == 0) {
      weight += v.weight;
      cost += (1.0f - rows.p.label_smoothing) * v.weight * v.focal_power(rows.p.focal_gamma) * v.nll();
      if (rows.p.label_smoothing > 0.0f) {
        cost += rows.p.label_smoothing / static_cast<float>(rows.p.classes) *
                (v.all_weights * v.log_z() - v.shifted);
      }
    }
  }
  cost = column_sum(cost, 1, scratch);
  weight = column_sum(weight, 1, scratch);
  if (threadIdx.x == 0) {
    partials[static_cast<int64_t>(blockIdx.x) * 2] = cost;
    partials[static_cast<int64_t>(blockIdx.x) * 2 + 1] = weight;
  }
}

struct WeightedMean {
  float* loss;
  float* total_weight;
  VESAL_DEVICE void finish(int64_t, int64_t, const float (&sums)[2]) const {
    loss[0] = sums[1] == 0.0f ? 0.0f : sums[0] / sums[1];
    total_weight[0] = sums[1];
  }
};

template <int kValues, class T>
VESAL_KERNEL void cross_entropy_backward_kernel(Rows<T> rows, int lanes,
                                                const float* VESAL_RESTRICT total_weight, float weight,
                                                bool aligned, Output<T> dlogits) {
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int classes = static_cast<int>(rows.p.classes);
  const RowShare share(classes, static_cast<int>(threadIdx.x) & (lanes - 1), lanes);
  float e[kValues];
  const Row v = evaluate_row(rows, row, rows.p.rows, share, e);
  if (row >= rows.p.rows) {
    return;
  }
  const float total = total_weight[0];
  const float scale = total == 0.0f ? 0.0f : weight / total;
  const float q = v.rest();
  const float gamma = rows.p.focal_gamma;
  float focal = 1.0f;
  if (gamma != 0.0f) {
    const float ratio = q > 0.0f ? v.nll() / q : 1.0f;
    focal = v.focal_power(gamma) * (1.0f + gamma * v.own_exponential * v.inverse * ratio);
  }
  const float hard = scale * (1.0f - rows.p.label_smoothing) * v.weight * focal;
  const float soft = scale * rows.p.label_smoothing / static_cast<float>(rows.p.classes);
  const auto d = dlogits + row * classes;
  VESAL_UNROLL
  for (int first = 0; first < kValues; first += 4) {
    float value[4];
    VESAL_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int c = share.of(first + i);
      value[i] = 0.0f;
      if (v.active && c < classes) {
        const float probability = e[first + i] * v.inverse;
        value[i] = hard * (c == v.label ? -q : probability);
        if (rows.p.label_smoothing > 0.0f) {
          value[i] += soft * (v.all_weights * probability - rows.weight_of(c));
        }
      }
    }
    store_four(d, share, first, classes, aligned, value);
  }
}

struct Softmax {
  float largest;  // scaled logit
  float total;    // of the exponentials
};

// Scaled logits are rounded wherever they stand, as `largest` is: fused into the difference with it, the
// largest would not give 0.
template <class Values>
VESAL_DEVICE Softmax evaluate_softmax(const Values& x, int64_t length, float scale, int lane, int lanes) {
  float largest = -INFINITY;
  for (int64_t c = lane; c < length; c += lanes) {
    largest = fmaxf(largest, __fmul_rn(scale, x[c]));
  }
  largest = group_max(largest, lanes);
  float total = 0.0f;
  for (int64_t c = lane; c < length; c += lanes) {
    total += expf(__fmul_rn(scale, x[c]) - largest);
  }
  return {largest, group_sum(total, lanes)};
}

template <class T>
VESAL_KERNEL void distillation_partials_kernel(int64_t rows, int64_t classes, float scale, int lanes,
                                               Input<T> student, Input<T> teacher,
                                               float* VESAL_RESTRICT partials) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int step = kLoopThreads / lanes;
  const int64_t end = slab_begin(rows, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1);
  float sum = 0.0f;
  for (int64_t base = slab_begin(rows, gridDim.x, blockIdx.x); base < end; base += step) {
    const int64_t row = base + group;
    const int64_t length = row < end ? classes : 0;
    const auto xs = student + row * classes;
    const auto xt = teacher + row * classes;
    const Softmax s = evaluate_softmax(xs, length, scale, lane, lanes);
    const Softmax t = evaluate_softmax(xt, length, scale, lane, lanes);
    float product = 0.0f;
    for (int64_t c = lane; c < length; c += lanes) {
      const float shifted = __fmul_rn(scale, xt[c]) - t.largest;
      product += expf(shifted) * (shifted - (__fmul_rn(scale, xs[c]) - s.largest));
    }
    product = group_sum(product, lanes);
    if (length > 0 && lane == 0) {
      sum += product / t.total + (logf(s.total) - logf(t.total));
    }
  }
  sum = column_sum(sum, 1, scratch);
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = sum;
  }
}

struct Scaled {
  float factor;
  float* loss;
  VESAL_DEVICE void finish(int64_t, int64_t, const float (&sums)[1]) const { loss[0] = factor * sums[0]; }
};

template <class T>
VESAL_KERNEL void distillation_backward_kernel(int64_t rows, int64_t classes, float scale, int lanes,
                                               float factor, Input<T> student, Input<T> teacher,
                                               Output<T> dstudent) {
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t length = row < rows ? classes : 0;
  const auto xs = student + row * classes;
  const auto xt = teacher + row * classes;
  const Softmax s = evaluate_softmax(xs, length, scale, lane, lanes);
  const Softmax t = evaluate_softmax(xt, length, scale, lane, lanes);
  for (int64_t c = lane; c < length; c += lanes) {
    dstudent[row * classes + c] = factor * (expf(__fmul_rn(scale, xs[c]) - s.largest) / s.total -
                                            expf(__fmul_rn(scale, xt[c]) - t.largest) / t.total);
  }
}

}  // namespace

void cross_entropy_forward(Context& context, const CrossEntropyParams& p, ConstData logits_,
                           const uint8_t* labels, const float* class_weights, Data loss, float* total_weight,
                           Workspace workspace) {
  const int64_t slabs = slab_count(p.rows);
  auto* partials = static_cast<float*>(workspace.data);
  with_storage("cross_entropy_forward", {logits_}, [&]<class T>(T) {
    const auto* logits = logits_.as<T>("cross_entropy_forward: logits");
    launch(context.stream(), {.grid = {slabs, 1, 1}, .block = {kLoopThreads, 1, 1}},
           p.classes <= kFewClasses ? cross_entropy_partials_kernel<4, T>
                                    : cross_entropy_partials_kernel<kMostClasses, T>,
           Rows<T>{p, Input<T>{logits}, aligned_quads(logits, p.classes), labels, class_weights},
           row_lanes(p.classes), partials);
  });
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {kLoopThreads, 1, 1}},
         column_finish_kernel<2, WeightedMean>, slabs, int64_t{1}, 1, static_cast<const float*>(partials),
         WeightedMean{loss.as<float>("cross_entropy_forward: loss"), total_weight});
}

void cross_entropy_backward(Context& context, const CrossEntropyParams& p, ConstData logits_,
                            const uint8_t* labels, const float* class_weights, const float* total_weight,
                            float weight, Data dlogits_) {
  const int lanes = row_lanes(p.classes);
  with_storage("cross_entropy_backward", {logits_, dlogits_}, [&]<class T>(T) {
    const auto* logits = logits_.as<T>("cross_entropy_backward: logits");
    auto* dlogits = dlogits_.as<T>("cross_entropy_backward: dlogits");
    launch(context.stream(),
           {.grid = {ceil_div(p.rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
           p.classes <= kFewClasses ? cross_entropy_backward_kernel<4, T>
                                    : cross_entropy_backward_kernel<kMostClasses, T>,
           Rows<T>{p, Input<T>{logits}, aligned_quads(logits, p.classes), labels, class_weights}, lanes,
           total_weight, weight, aligned_quads(dlogits, p.classes), Output<T>{dlogits});
  });
}

void distillation_forward(Context& context, const DistillationParams& p, ConstData student, ConstData teacher,
                          Data loss, Workspace workspace) {
  const int64_t slabs = slab_count(p.rows);
  auto* partials = static_cast<float*>(workspace.data);
  const double factor =
      static_cast<double>(p.temperature) * p.temperature / static_cast<double>(std::max<int64_t>(p.rows, 1));
  with_storage("distillation_forward", {student, teacher}, [&]<class T>(T) {
    launch(context.stream(), {.grid = {slabs, 1, 1}, .block = {kLoopThreads, 1, 1}},
           distillation_partials_kernel<T>, p.rows, p.classes, 1.0f / p.temperature, column_width(p.classes),
           input<T>(student, "distillation_forward: student"),
           input<T>(teacher, "distillation_forward: teacher"), partials);
  });
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {kLoopThreads, 1, 1}},
         column_finish_kernel<1, Scaled>, slabs, int64_t{1}, 1, static_cast<const float*>(partials),
         Scaled{static_cast<float>(factor), loss.as<float>("distillation_forward: loss")});
}

void distillation_backward(Context& context, const DistillationParams& p, ConstData student,
                           ConstData teacher, float weight, Data dstudent) {
  const int lanes = column_width(p.classes);
  const double factor =
      static_cast<double>(weight) * p.temperature / static_cast<double>(std::max<int64_t>(p.rows, 1));
  with_storage("distillation_backward", {student, teacher, dstudent}, [&]<class T>(T) {
    launch(context.stream(),
           {.grid = {ceil_div(p.rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
           distillation_backward_kernel<T>, p.rows, p.classes, 1.0f / p.temperature, lanes,
           static_cast<float>(factor), input<T>(student, "distillation_backward: student"),
           input<T>(teacher, "distillation_backward: teacher"),
           output<T>(dstudent, "distillation_backward: dstudent"));
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
