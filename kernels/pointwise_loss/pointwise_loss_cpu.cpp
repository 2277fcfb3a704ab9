// The element-wise losses on the CPU: vectorised over wide rows, slabs add up in double and in order.
#include <cmath>
#include <type_traits>

#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/wide_rows.hpp"
#include "kernels/pointwise_loss/pointwise_loss.hpp"
#include "kernels/vector_math.hpp"

namespace vesal::kernels::cpu {
namespace {

struct Constants {
  float beta, half_beta, inverse_beta;
  float gamma;
  float a1, a0;  // of targets 1 and 0
};

Constants constants(const PointwiseLossParams& p) {
  return {.beta = p.beta,
          .half_beta = 0.5f * p.beta,
          .inverse_beta = 1.0f / p.beta,
          .gamma = p.gamma,
          .a1 = p.alpha < 0 ? 1.0f : p.alpha,
          .a0 = p.alpha < 0 ? 1.0f : static_cast<float>(1.0 - static_cast<double>(p.alpha))};
}

// A logit seen from both sides.
struct Logit {
  float p, q;                            // sigmoid(x), sigmoid(-x)
  float softplus, softplus_of_negative;  // -log(q), -log(p)
  float p_gamma, q_gamma;                // p^gamma, q^gamma
};

// e^-(gamma * distance) * e^-(gamma * rest): the large product's rounding error goes back in, for it would be
// that many ulps of the power.
inline float power(float gamma, float distance, float rest) {
  const float product = gamma * distance;
  const float lost = __builtin_fmaf(gamma, distance, -product);
  return vector_exp(-product) * (1.0f - lost) * vector_exp(-gamma * rest);
}

// Always inlined, as are cost and slope: GCC finds them too large for that, and a loop with a call in it
// stays scalar.
template <bool kFocal>
[[gnu::always_inline]] inline Logit evaluate(float x, float gamma) {
  const float size = __builtin_fabsf(x);
  const float e = vector_exp(-size);
  const float inverse = 1.0f / (1.0f + e);
  const float rest = vector_log1p_unit(e);
  // max(x, 0) and max(-x, 0) without a choice, which GCC would follow through all that comes behind it.
  const float above = 0.5f * size + 0.5f * x;
  const float below = 0.5f * size - 0.5f * x;
  Logit logit{(x < 0.0f ? e : 1.0f) * inverse,
              (x < 0.0f ? 1.0f : e) * inverse,
              above + rest,
              below + rest,
              1.0f,
              1.0f};
  if constexpr (kFocal) {
    logit.p_gamma = power(gamma, below, rest);
    logit.q_gamma = power(gamma, above, rest);
  }
  return logit;
}

template <PointwiseLoss kKind, bool kFocal>
[[gnu::always_inline]] inline float cost(const Constants& k, float x, float t, float positive) {
  if constexpr (kKind == PointwiseLoss::bce) {
    const Logit v = evaluate<kFocal>(x, k.gamma);
    return positive * k.a1 * t * (v.q_gamma * v.softplus_of_negative) +
           k.a0 * (1.0f - t) * (v.p_gamma * v.softplus);
  } else {
    const float d = x - t;
    const float size = d < 0.0f ? -d : d;
    if constexpr (kKind == PointwiseLoss::l1) {
      return size;
    } else if constexpr (kKind == PointwiseLoss::l2) {
      return d * d;
    } else {
      return size < k.beta ? 0.5f * d * d * k.inverse_beta : size - k.half_beta;
    }
  }
}

template <PointwiseLoss kKind, bool kFocal>
[[gnu::always_inline]] inline float slope(const Constants& k, float x, float t, float positive) {
  if constexpr (kKind == PointwiseLoss::bce) {
    const Logit v = evaluate<kFocal>(x, k.gamma);
    return k.a0 * (1.0f - t) * (v.p_gamma * (k.gamma * v.q * v.softplus + v.p)) -
           positive * k.a1 * t * (v.q_gamma * (k.gamma * v.p * v.softplus_of_negative + v.q));
  } else {
    const float d = x - t;
    if constexpr (kKind == PointwiseLoss::l2) {
      return 2.0f * d;
    } else {
      const float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;  // d: 0, or NaN
      if constexpr (kKind == PointwiseLoss::l1) {
        return sign;
      } else {
        const float size = d < 0.0f ? -d : d;
        return size < k.beta ? d * k.inverse_beta : sign;
      }
    }
  }
}

// Calls body(kind, focal, target) with what is fixed for a whole call as types, so that loops have no
// branches.
template <class T, class Body>
void with_kind(const PointwiseLossParams& p, ConstData target, const char* what, Body&& body) {
  using Kind = PointwiseLoss;
  constexpr std::integral_constant<Kind, Kind::bce> kBce;
  if (target.dtype == DType::u8) {
    const auto* bytes = target.as<uint8_t>(what);
    return p.gamma == 0.0f ? body(kBce, std::false_type(), bytes) : body(kBce, std::true_type(), bytes);
  }
  const auto stored = input<T>(target, what);
  switch (p.kind) {
    case Kind::l1:
      return body(std::integral_constant<Kind, Kind::l1>(), std::false_type(), stored);
    case Kind::smooth_l1:
      return body(std::integral_constant<Kind, Kind::smooth_l1>(), std::false_type(), stored);
    case Kind::l2:
      return body(std::integral_constant<Kind, Kind::l2>(), std::false_type(), stored);
    case Kind::bce:
      return p.gamma == 0.0f ? body(kBce, std::false_type(), stored) : body(kBce, std::true_type(), stored);
  }
}

std::vector<float> repeated(int64_t channels, const float* values) {
  return repeat_channels(channels, [values](int64_t c) { return values != nullptr ? values[c] : 1.0f; });
}

}  // namespace

void pointwise_loss_forward(Context&, const PointwiseLossParams& p, ConstData x_, ConstData target_,
                            const PointwiseWeights& weights, Data loss_, Workspace workspace) {
  float* loss = loss_.as<float>("pointwise_loss_forward: loss");
  auto* partials = static_cast<double*>(workspace.data);
  const Constants k = constants(p);
  const std::vector<float> channel = repeated(p.channels, weights.channels);
  const std::vector<float> positive = repeated(p.channels, weights.positive);
  with_storage("pointwise_loss_forward", {x_, target_.dtype == DType::u8 ? x_ : target_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "pointwise_loss_forward: x");
    with_kind<T>(p, target_, "pointwise_loss_forward: target",
                 [&]<PointwiseLoss kKind, bool kFocal>(std::integral_constant<PointwiseLoss, kKind>,
                                                       std::bool_constant<kFocal>, auto target) {
                   const auto sum = [&](auto weight_of) {
                     column_partials<1>(1, p.rows, p.channels, partials, [&](int64_t) {
                       return [=, w = channel.data(), pw = positive.data()](int64_t i, int64_t j, auto add) {
                         const auto t = static_cast<float>(target[i]);
                         add(0, weight_of(i) * w[j] * cost<kKind, kFocal>(k, x[i], t, pw[j]));
                       };
                     });
                   };
                   if (weights.elements != nullptr) {
                     sum([elements = weights.elements](int64_t i) { return elements[i]; });
                   } else {
                     sum([](int64_t) { return 1.0f; });
                   }
                 });
  });
  double total = 0;
  column_totals<1>(1, p.rows, p.channels, partials,
                   [&](int64_t, int64_t, const std::array<double, 1>& sums) { total += sums[0]; });
  *loss = p.rows == 0 ? 0.0f : static_cast<float>(total / static_cast<double>(p.rows * p.channels));
}

void pointwise_loss_backward(Context&, const PointwiseLossParams& p, ConstData x_, ConstData target_,
                             const PointwiseWeights& weights, float weight, Data dx_) {
  if (p.rows == 0) {
    return;
  }
  const Constants k = constants(p);
  const auto factor =
      static_cast<float>(static_cast<double>(weight) / static_cast<double>(p.rows * p.channels));
  const std::vector<float> channel = repeated(p.channels, weights.channels);
  const std::vector<float> positive = repeated(p.channels, weights.positive);
  with_storage(
      "pointwise_loss_backward", {x_, target_.dtype == DType::u8 ? x_ : target_, dx_}, [&]<class T>(T) {
        const auto x = input<T>(x_, "pointwise_loss_backward: x");
        const auto dx = output<T>(dx_, "pointwise_loss_backward: dx");
        with_kind<T>(p, target_, "pointwise_loss_backward: target",
                     [&]<PointwiseLoss kKind, bool kFocal>(std::integral_constant<PointwiseLoss, kKind>,
                                                           std::bool_constant<kFocal>, auto target) {
                       const auto map = [&](auto weight_of) {
                         column_map(1, p.rows, p.channels, [&](int64_t) {
                           return [=, w = channel.data(), pw = positive.data()](int64_t i, int64_t j) {
                             const auto t = static_cast<float>(target[i]);
                             dx[i] = factor * weight_of(i) * w[j] * slope<kKind, kFocal>(k, x[i], t, pw[j]);
                           };
                         });
                       };
                       if (weights.elements != nullptr) {
                         map([elements = weights.elements](int64_t i) { return elements[i]; });
                       } else {
                         map([](int64_t) { return 1.0f; });
                       }
                     });
      });
}

}  // namespace vesal::kernels::cpu
