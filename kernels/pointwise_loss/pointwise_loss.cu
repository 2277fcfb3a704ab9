// Element-wise losses. Forward reads 8 bytes a float32 element (5 with targets in bytes, 4 more with element
// weights), backward also writes 4; 2 to 60 operations: memory bandwidth limits them, for the focal loss
// closely followed by the special function units. Sums run per slab of one long row, then over slabs, in a
// fixed order.
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/pointwise_loss/pointwise_loss.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

struct Constants {
  float beta;
  float gamma;
  float a1, a0;  // of targets 1 and 0
};

struct Term {
  float cost, slope;
};

// sigmoid(x)^gamma * log(1 + e^x) and its derivative: a logit whose target is 0, or -x for a target of 1.
VESAL_DEVICE Term evaluate(float x, float gamma) {
  const float e = expf(-fabsf(x));
  const float inverse = 1.0f / (1.0f + e);
  const float p = (x < 0.0f ? e : 1.0f) * inverse;
  const float q = (x < 0.0f ? 1.0f : e) * inverse;
  const float softplus = (x < 0.0f ? 0.0f : x) + log1pf(e);
  const float power = gamma == 0.0f ? 1.0f : powf(p, gamma);
  return {power * softplus, power * (gamma * q * softplus + p)};
}

// What an element costs, and its slope.
template <PointwiseLoss kKind>
VESAL_DEVICE Term evaluate_element(const Constants& k, float x, float t, float positive) {
  if constexpr (kKind == PointwiseLoss::bce) {
    const Term negative_side = evaluate(x, k.gamma);
    const Term positive_side = evaluate(-x, k.gamma);
    const float one = positive * k.a1 * t;
    const float zero = k.a0 * (1.0f - t);
    return {one * positive_side.cost + zero * negative_side.cost,
            zero * negative_side.slope - one * positive_side.slope};
  } else {
    const float d = x - t;
    const float size = fabsf(d);
    if constexpr (kKind == PointwiseLoss::l2) {
      return {d * d, 2.0f * d};
    } else {
      const float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;  // d: 0, or NaN
      if constexpr (kKind == PointwiseLoss::l1) {
        return {size, sign};
      } else {
        return size < k.beta ? Term{0.5f * d * d / k.beta, d / k.beta} : Term{size - 0.5f * k.beta, sign};
      }
    }
  }
}

// Targets is Input<T> or const uint8_t*.
template <PointwiseLoss kKind, class T, class Targets>
struct Elements {
  Input<T> x;
  Targets target;
  PointwiseWeights weights;
  int64_t channels;
  Constants k;
  float factor;  // of the backward pass
  Output<T> dx;

  VESAL_DEVICE float weight(int64_t i) const {
    float w = weights.elements != nullptr ? weights.elements[i] : 1.0f;
    if (weights.channels != nullptr) {
      w *= weights.channels[i % channels];
    }
    return w;
  }
  VESAL_DEVICE Term evaluate_at(int64_t i) const {
    const float positive = weights.positive != nullptr ? weights.positive[i % channels] : 1.0f;
    return evaluate_element<kKind>(k, x[i], static_cast<float>(target[i]), positive);
  }
  VESAL_DEVICE int prepare(int64_t, int64_t) const { return 0; }
  VESAL_DEVICE void add(int, int64_t, int64_t i, float (&sums)[1]) const {
    sums[0] += weight(i) * evaluate_at(i).cost;
  }
  VESAL_DEVICE void operator()(int64_t i) const { dx[i] = factor * weight(i) * evaluate_at(i).slope; }
};

struct Mean {
  float inverse_count;
  float* loss;
  VESAL_DEVICE void finish(int64_t, int64_t, const float (&sums)[1]) const {
    loss[0] = sums[0] * inverse_count;
  }
};

// Calls body(Elements) for the kind and the targets' type.
template <class T, class Body>
void with_elements(const char* op, const PointwiseLossParams& p, ConstData x, ConstData target,
                   const PointwiseWeights& weights, float factor, Output<T> dx, Body&& body) {
  const Constants k{.beta = p.beta,
                    .gamma = p.gamma,
                    .a1 = p.alpha < 0 ? 1.0f : p.alpha,
                    .a0 = p.alpha < 0 ? 1.0f : static_cast<float>(1.0 - static_cast<double>(p.alpha))};
  const auto run = [&]<PointwiseLoss kKind>(auto t) {
    body(Elements<kKind, T, decltype(t)>{input<T>(x, op), t, weights, p.channels, k, factor, dx});
  };
  if (target.dtype == DType::u8) {
    run.template operator()<PointwiseLoss::bce>(target.as<uint8_t>(op));
    return;
  }
  const auto stored = input<T>(target, op);
  switch (p.kind) {
    case PointwiseLoss::l1:
      return run.template operator()<PointwiseLoss::l1>(stored);
    case PointwiseLoss::smooth_l1:
      return run.template operator()<PointwiseLoss::smooth_l1>(stored);
    case PointwiseLoss::l2:
      return run.template operator()<PointwiseLoss::l2>(stored);
    case PointwiseLoss::bce:
      return run.template operator()<PointwiseLoss::bce>(stored);
  }
}

}  // namespace

void pointwise_loss_forward(Context& context, const PointwiseLossParams& p, ConstData x, ConstData target,
                            const PointwiseWeights& weights, Data loss, Workspace workspace) {
  const int64_t count = p.rows * p.channels;
  const int64_t slabs = slab_count(count);
  auto* partials = static_cast<float*>(workspace.data);
  with_storage("pointwise_loss_forward", {x, target.dtype == DType::u8 ? x : target}, [&]<class T>(T) {
    with_elements<T>("pointwise_loss_forward: x or target", p, x, target, weights, 0.0f, Output<T>{},
                     [&]<class F>(const F& elements) {
                       launch(context.stream(), {.grid = {slabs, 1, 1}, .block = {kLoopThreads, 1, 1}},
                              column_partials_kernel<1, F>, count, int64_t{1}, 1, elements, partials);
                     });
  });
  const Mean mean{count == 0 ? 0.0f : static_cast<float>(1.0 / static_cast<double>(count)),
                  loss.as<float>("pointwise_loss_forward: loss")};
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {kLoopThreads, 1, 1}}, column_finish_kernel<1, Mean>,
         slabs, int64_t{1}, 1, static_cast<const float*>(partials), mean);
}

void pointwise_loss_backward(Context& context, const PointwiseLossParams& p, ConstData x, ConstData target,
                             const PointwiseWeights& weights, float weight, Data dx) {
  const int64_t count = p.rows * p.channels;
  const auto factor =
      count == 0 ? 0.0f : static_cast<float>(static_cast<double>(weight) / static_cast<double>(count));
  with_storage("pointwise_loss_backward", {x, target.dtype == DType::u8 ? x : target, dx}, [&]<class T>(T) {
    with_elements<T>("pointwise_loss_backward: x or target", p, x, target, weights, factor,
                     output<T>(dx, "pointwise_loss_backward: dx"),
                     [&](const auto& elements) { launch_map(context.stream(), count, elements); });
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
