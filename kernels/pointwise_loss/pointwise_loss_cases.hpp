// The sizes that the element-wise losses are tested and measured with.
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/pointwise_loss/pointwise_loss.hpp"

namespace vesal::kernels {

struct PointwiseLossCase {
  std::string name;
  PointwiseLossParams params;
  float scale = 2.0f;  // of x
  bool element_weights = false, channel_weights = false, positive_weights = false;
  bool byte_targets = false;  // bce: 0 and 1 as u8, else anything between as float32
};

// A slab holds about 256 rows, a block of the backward pass 1024 elements.
inline const std::vector<PointwiseLossCase> kPointwiseLossCases = {
    {"l1_one", {.kind = PointwiseLoss::l1}},
    {"l1_slab_minus_one", {.kind = PointwiseLoss::l1, .rows = 255}},
    {"l1_weights", {.kind = PointwiseLoss::l1, .rows = 86, .channels = 3}, 2.0f, true, true},
    {"smooth_l1_slab", {.kind = PointwiseLoss::smooth_l1, .rows = 256}},
    {"smooth_l1_beta", {.kind = PointwiseLoss::smooth_l1, .rows = 341, .channels = 3, .beta = 0.3f}},
    {"smooth_l1_wide_beta",
     {.kind = PointwiseLoss::smooth_l1, .rows = 7, .channels = 33, .beta = 5.0f},
     2.0f,
     true},
    {"l2_one", {}},
    {"l2_slab_plus_one", {.rows = 257}},
    {"l2_block", {.rows = 512, .channels = 2}},
    {"l2_block_plus_one", {.rows = 205, .channels = 5}, 2.0f, false, true},
    {"l1_nothing", {.kind = PointwiseLoss::l1, .rows = 0, .channels = 4}},
    {"smooth_l1_nothing", {.kind = PointwiseLoss::smooth_l1, .rows = 0, .channels = 1}, 2.0f, true},
    {"l2_nothing", {.rows = 0, .channels = 4}},
    {"bce_nothing", {.kind = PointwiseLoss::bce, .rows = 0, .channels = 2}, 2.0f, true, true, true, true},
    {"bce_one", {.kind = PointwiseLoss::bce}},
    {"bce", {.kind = PointwiseLoss::bce, .rows = 343, .channels = 3}, 2.0f, false, false, false, true},
    {"bce_soft_targets", {.kind = PointwiseLoss::bce, .rows = 129, .channels = 2}},
    {"bce_positive",
     {.kind = PointwiseLoss::bce, .rows = 100, .channels = 4},
     2.0f,
     false,
     false,
     true,
     true},
    {"bce_all_weights", {.kind = PointwiseLoss::bce, .rows = 65, .channels = 17}, 2.0f, true, true, true},
    {"bce_far_logits",
     {.kind = PointwiseLoss::bce, .rows = 64, .channels = 3},
     100.0f,
     false,
     false,
     false,
     true},
    {"focal_one",
     {.kind = PointwiseLoss::bce, .gamma = 2.0f, .alpha = 0.25f},
     2.0f,
     false,
     false,
     false,
     true},
    {"focal",
     {.kind = PointwiseLoss::bce, .rows = 257, .channels = 3, .gamma = 2.0f, .alpha = 0.25f},
     2.0f,
     false,
     false,
     false,
     true},
    {"focal_weights",
     {.kind = PointwiseLoss::bce, .rows = 31, .channels = 5, .gamma = 1.5f},
     2.0f,
     true,
     true,
     true,
     true},
    {"focal_below_one", {.kind = PointwiseLoss::bce, .rows = 99, .gamma = 0.5f, .alpha = 0.75f}},
    {"focal_far_logits",
     {.kind = PointwiseLoss::bce, .rows = 128, .gamma = 2.0f, .alpha = 0.25f},
     100.0f,
     false,
     false,
     false,
     true},
};

inline PointwiseLossCase draw_pointwise_loss_case(RandomStream& random) {
  PointwiseLossCase c;
  c.name = "random";
  PointwiseLossParams& p = c.params;
  p.kind = static_cast<PointwiseLoss>(random.below(4));
  p.channels = 1 + random.below(random.below(3) == 0 ? 70 : 5);
  p.rows = random.below(600 / p.channels + 2);
  p.beta = 0.1f + static_cast<float>(random.below(20)) * 0.1f;
  c.element_weights = random.below(2) == 0;
  c.channel_weights = random.below(2) == 0;
  if (p.kind == PointwiseLoss::bce) {
    const float gammas[] = {0.0f, 1.0f, 2.0f, 2.5f};
    p.gamma = gammas[random.below(4)];
    p.alpha = random.below(2) == 0 ? -1.0f : 0.25f;
    c.positive_weights = random.below(2) == 0;
    c.byte_targets = random.below(2) == 0;
  }
  return c;
}

// For benchmarks: regressions of four channels at 64^3, and three regions with binary targets.
inline const std::vector<PointwiseLossCase> kPointwiseLossBenchmarkCases = {
    {"l1_4_64", {.kind = PointwiseLoss::l1, .rows = 262144, .channels = 4}},
    {"smooth_l1_4_64", {.kind = PointwiseLoss::smooth_l1, .rows = 262144, .channels = 4}},
    {"l2_4_64", {.rows = 262144, .channels = 4}},
    {"l2_4_64_weights", {.rows = 262144, .channels = 4}, 2.0f, true},
    {"bce_3_64",
     {.kind = PointwiseLoss::bce, .rows = 524288, .channels = 3},
     2.0f,
     false,
     false,
     false,
     true},
    {"bce_3_128_positive",
     {.kind = PointwiseLoss::bce, .rows = 2097152, .channels = 3},
     2.0f,
     false,
     false,
     true,
     true},
    {"focal_3_64",
     {.kind = PointwiseLoss::bce, .rows = 524288, .channels = 3, .gamma = 2.0f, .alpha = 0.25f},
     2.0f,
     false,
     false,
     false,
     true},
};

inline Work pointwise_loss_work(const PointwiseLossCase& c, bool backward) {
  const int64_t element = 4 + (c.byte_targets ? 1 : 4) + (c.element_weights ? 4 : 0) + (backward ? 4 : 0);
  return {.bytes = static_cast<double>(c.params.rows * c.params.channels * element)};
}

}  // namespace vesal::kernels
