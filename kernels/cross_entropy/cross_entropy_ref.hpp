// The losses on softmax as plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cross_entropy/cross_entropy.hpp"

namespace vesal::kernels::reference {

// log softmax(scale * x).
template <class T>
std::vector<T> log_softmax_row(int64_t classes, const T* x, T scale = T(1)) {
  std::vector<T> y(x, x + classes);
  for (T& value : y) {
    value *= scale;
  }
  const T largest = *std::max_element(y.begin(), y.end());
  T total = 0;
  for (const T value : y) {
    total += std::exp(value - largest);
  }
  for (T& value : y) {
    value = value - largest - std::log(total);
  }
  return y;
}

template <class T>
T class_weight(const float* class_weights, int64_t c) {
  return class_weights != nullptr ? T(class_weights[c]) : T(1);
}

template <class T>
T cross_entropy_total_weight(const CrossEntropyParams& p, const uint8_t* labels, const float* class_weights) {
  T total = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    if (labels[r] != p.ignore_label) {
      total += class_weight<T>(class_weights, labels[r]);
    }
  }
  return total;
}

template <class T>
T cross_entropy_forward(const CrossEntropyParams& p, const T* logits, const uint8_t* labels,
                        const float* class_weights, T total_weight) {
  T loss = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    if (labels[r] == p.ignore_label) {
      continue;
    }
    const std::vector<T> log_p = log_softmax_row(p.classes, logits + r * p.classes);
    const T log_py = log_p[labels[r]];
    loss -= (T(1) - T(p.label_smoothing)) * class_weight<T>(class_weights, labels[r]) *
            std::pow(T(1) - std::exp(log_py), T(p.focal_gamma)) * log_py;
    for (int64_t c = 0; c < p.classes; ++c) {
      loss -= T(p.label_smoothing) / T(p.classes) * class_weight<T>(class_weights, c) *
              log_p[static_cast<size_t>(c)];
    }
  }
  return total_weight == 0 ? T(0) : loss / total_weight;
}

// With q = 1 - p[y]: d/dx_c of -q^g log p[y] is (p[c] - [c = y]) q^g (1 - g p[y] log(p[y]) / q), where
// log(p[y]) / q is -1 at q = 0.
template <class T>
void cross_entropy_backward(const CrossEntropyParams& p, const T* logits, const uint8_t* labels,
                            const float* class_weights, T total_weight, T weight, T* dlogits) {
  T all = 0;
  for (int64_t c = 0; c < p.classes; ++c) {
    all += class_weight<T>(class_weights, c);
  }
  for (int64_t r = 0; r < p.rows; ++r) {
    T* d = dlogits + r * p.classes;
    std::fill_n(d, p.classes, T(0));
    if (labels[r] == p.ignore_label || total_weight == 0) {
      continue;
    }
    const std::vector<T> log_p = log_softmax_row(p.classes, logits + r * p.classes);
    const T log_py = log_p[labels[r]];
    const T q = T(1) - std::exp(log_py);
    const T ratio = q > 0 ? log_py / q : T(-1);
    const T focal = std::pow(q, T(p.focal_gamma)) * (T(1) - T(p.focal_gamma) * std::exp(log_py) * ratio);
    const T hard = (T(1) - T(p.label_smoothing)) * class_weight<T>(class_weights, labels[r]) * focal;
    const T soft = T(p.label_smoothing) / T(p.classes);
    for (int64_t c = 0; c < p.classes; ++c) {
      const T pc = std::exp(log_p[static_cast<size_t>(c)]);
      d[c] = weight / total_weight *
             (hard * (pc - (c == labels[r] ? T(1) : T(0))) +
              soft * (all * pc - class_weight<T>(class_weights, c)));
    }
  }
}

template <class T>
T distillation_forward(const DistillationParams& p, const T* student, const T* teacher) {
  T total = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<T> s = log_softmax_row(p.classes, student + r * p.classes, T(1) / T(p.temperature));
    const std::vector<T> t = log_softmax_row(p.classes, teacher + r * p.classes, T(1) / T(p.temperature));
    for (size_t c = 0; c < s.size(); ++c) {
      total += std::exp(t[c]) * (t[c] - s[c]);
    }
  }
  return p.rows == 0 ? T(0) : T(p.temperature) * T(p.temperature) * total / T(p.rows);
}

template <class T>
void distillation_backward(const DistillationParams& p, const T* student, const T* teacher, T weight,
                           T* dstudent) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const std::vector<T> s = log_softmax_row(p.classes, student + r * p.classes, T(1) / T(p.temperature));
    const std::vector<T> t = log_softmax_row(p.classes, teacher + r * p.classes, T(1) / T(p.temperature));
    for (size_t c = 0; c < s.size(); ++c) {
      dstudent[static_cast<size_t>(r * p.classes) + c] =
          weight * T(p.temperature) / T(p.rows) * (std::exp(s[c]) - std::exp(t[c]));
    }
  }
}

}  // namespace vesal::kernels::reference
