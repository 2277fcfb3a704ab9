// Losses on the softmax of rows. Cross entropy reads 4 bytes a float32 logit and 1 a row, and writes 4 a
// logit in backward; distillation reads twice that. A row is read two or three times, from L1 after the
// first; about 30 operations a logit, an exponential among them: memory bandwidth limits them. A power of two
// of lanes, at most a warp, shares a row; sums run per slab of rows, then over slabs, in a fixed order. No
// GPU timing exists yet: bench/results/README.md.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/cross_entropy/cross_entropy.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// What the kernels need to know of the classes' weights and of the labels.
template <class T>
struct Rows {
  CrossEntropyParams p;
  Input<T> logits;
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
  float nll;          // -log p[y]
  float log_z;        // log of the sum of the exponentials

  // 1 - p[y] from the other exponentials: the difference would lose a small one's digits.
  VESAL_DEVICE float rest() const { return others * inverse; }
  VESAL_DEVICE float focal_power(float gamma) const { return gamma == 0.0f ? 1.0f : powf(rest(), gamma); }
};

// All lanes of a warp call it together; a row at `end` or beyond is inactive.
template <class T>
VESAL_DEVICE Row evaluate_row(const Rows<T>& rows, int64_t row, int64_t end, int lane, int lanes) {
  Row v{};
  const int classes = static_cast<int>(rows.p.classes);
  v.label = row < end ? rows.labels[row] : 0;
  v.active = row < end && v.label != rows.p.ignore_label;
  const bool valid = v.label < classes;
  const auto x = rows.logits + row * classes;
  const int length = v.active ? classes : 0;
  v.largest = -INFINITY;
  for (int c = lane; c < length; c += lanes) {
    v.largest = fmaxf(v.largest, x[c]);
  }
  v.largest = group_max(v.largest, lanes);
  for (int c = lane; c < length; c += lanes) {
    const float shift = x[c] - v.largest;
    v.others += c == v.label ? 0.0f : expf(shift);
    if (rows.p.label_smoothing > 0.0f) {
      v.shifted += rows.weight_of(c) * shift;
      v.all_weights += rows.weight_of(c);
    }
  }
  v.others = group_sum(v.others, lanes);
  if (rows.p.label_smoothing > 0.0f) {
    v.shifted = group_sum(v.shifted, lanes);
    v.all_weights = group_sum(v.all_weights, lanes);
  }
  if (v.active) {
    v.weight = valid ? rows.weight_of(v.label) : NAN;
    v.own = valid ? x[v.label] - v.largest : 0.0f;
    const float own = expf(v.own);
    v.inverse = 1.0f / (v.others + own);
    v.log_z = log1pf(v.others + (own - 1.0f));
    v.nll = v.log_z - v.own;
  }
  return v;
}

// partials [slabs, 2] = sums of the costs and the weights of a slab's rows.
template <class T>
VESAL_KERNEL void cross_entropy_partials_kernel(Rows<T> rows, int lanes, float* VESAL_RESTRICT partials) {
  VESAL_SHARED(float, scratch, [kLoopThreads]);
  const int group = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int step = kLoopThreads / lanes;
  const int64_t end = slab_begin(rows.p.rows, gridDim.x, static_cast<int64_t>(blockIdx.x) + 1);
  float cost = 0.0f;
  float weight = 0.0f;
  for (int64_t base = slab_begin(rows.p.rows, gridDim.x, blockIdx.x); base < end; base += step) {
    const Row v = evaluate_row(rows, base + group, end, lane, lanes);
    if (v.active && lane == 0) {
      weight += v.weight;
      cost += (1.0f - rows.p.label_smoothing) * v.weight * v.focal_power(rows.p.focal_gamma) * v.nll;
      if (rows.p.label_smoothing > 0.0f) {
        cost += rows.p.label_smoothing / static_cast<float>(rows.p.classes) *
                (v.all_weights * v.log_z - v.shifted);
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

template <class T>
VESAL_KERNEL void cross_entropy_backward_kernel(Rows<T> rows, int lanes,
                                                const float* VESAL_RESTRICT total_weight, float weight,
                                                Output<T> dlogits) {
  const int64_t row =
      static_cast<int64_t>(blockIdx.x) * (kLoopThreads / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const Row v = evaluate_row(rows, row, rows.p.rows, lane, lanes);
  if (row >= rows.p.rows) {
    return;
  }
  const float total = total_weight[0];
  const float scale = total == 0.0f ? 0.0f : weight / total;
  const float q = v.rest();
  const float ratio = q > 0.0f ? v.nll / q : 1.0f;
  const float gamma = rows.p.focal_gamma;
  const float focal = v.focal_power(gamma) * (1.0f + gamma * expf(v.own) * v.inverse * ratio);
  const float hard = scale * (1.0f - rows.p.label_smoothing) * v.weight * focal;
  const float soft = scale * rows.p.label_smoothing / static_cast<float>(rows.p.classes);
  const int classes = static_cast<int>(rows.p.classes);
  const auto x = rows.logits + row * classes;
  const auto d = dlogits + row * classes;
  for (int c = lane; c < classes; c += lanes) {
    float value = 0.0f;
    if (v.active) {
      const float probability = expf(x[c] - v.largest) * v.inverse;
      value = hard * (c == v.label ? -q : probability);
      if (rows.p.label_smoothing > 0.0f) {
        value += soft * (v.all_weights * probability - rows.weight_of(c));
      }
    }
    d[c] = value;
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

void cross_entropy_forward(Context& context, const CrossEntropyParams& p, ConstData logits,
                           const uint8_t* labels, const float* class_weights, Data loss, float* total_weight,
                           Workspace workspace) {
  const int64_t slabs = slab_count(p.rows);
  auto* partials = static_cast<float*>(workspace.data);
  with_storage("cross_entropy_forward", {logits}, [&]<class T>(T) {
    launch(context.stream(), {.grid = {slabs, 1, 1}, .block = {kLoopThreads, 1, 1}},
           cross_entropy_partials_kernel<T>,
           Rows<T>{p, input<T>(logits, "cross_entropy_forward: logits"), labels, class_weights},
           column_width(p.classes), partials);
  });
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {kLoopThreads, 1, 1}},
         column_finish_kernel<2, WeightedMean>, slabs, int64_t{1}, 1, static_cast<const float*>(partials),
         WeightedMean{loss.as<float>("cross_entropy_forward: loss"), total_weight});
}

void cross_entropy_backward(Context& context, const CrossEntropyParams& p, ConstData logits,
                            const uint8_t* labels, const float* class_weights, const float* total_weight,
                            float weight, Data dlogits) {
  const int lanes = column_width(p.classes);
  with_storage("cross_entropy_backward", {logits, dlogits}, [&]<class T>(T) {
    launch(context.stream(),
           {.grid = {ceil_div(p.rows, kLoopThreads / lanes), 1, 1}, .block = {kLoopThreads, 1, 1}},
           cross_entropy_backward_kernel<T>,
           Rows<T>{p, input<T>(logits, "cross_entropy_backward: logits"), labels, class_weights}, lanes,
           total_weight, weight, output<T>(dlogits, "cross_entropy_backward: dlogits"));
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
