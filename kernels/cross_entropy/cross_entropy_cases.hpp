// The sizes that the losses on softmax are tested and measured with.
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/cross_entropy/cross_entropy.hpp"

namespace vesal::kernels {

struct CrossEntropyCase {
  std::string name;
  CrossEntropyParams params;
  float scale = 2.0f;  // of the logits
  bool class_weights = false;
  float ignored = 0.0f;  // share of the labels
};

// A slab holds about 256 rows, the CPU works on 64 rows at a time; on a GPU a lane has four of up to 32
// classes, beyond sixteen, and in distillation a warp's lanes share a row of up to 32 classes.
inline const std::vector<CrossEntropyCase> kCrossEntropyCases = {
    {"one_row", {}},
    {"one_element", {.rows = 1, .classes = 1}},
    {"one_class", {.rows = 5, .classes = 1}},
    {"no_row_weights_smoothing_focal",
     {.rows = 0, .classes = 3, .ignore_label = 1, .label_smoothing = 0.1f, .focal_gamma = 2.0f},
     2.0f,
     true},
    {"no_row", {.rows = 0, .classes = 3}},
    {"block_minus_one", {.rows = 63, .classes = 4}},
    {"block", {.rows = 64, .classes = 4}, 2.0f, true},
    {"block_plus_one", {.rows = 65, .classes = 4, .ignore_label = 255}, 2.0f, true, 0.4f},
    {"slab_minus_one", {.rows = 255, .classes = 3}},
    {"slab", {.rows = 256, .classes = 2, .ignore_label = 0}, 2.0f, false, 0.3f},
    {"slab_plus_one", {.rows = 257, .classes = 5, .label_smoothing = 0.1f}},
    {"two_slabs", {.rows = 513, .classes = 3, .label_smoothing = 0.2f}, 2.0f, true},
    {"warp_minus_one", {.rows = 40, .classes = 31}, 2.0f, true},
    {"warp", {.rows = 33, .classes = 32, .ignore_label = 7, .label_smoothing = 0.1f}, 2.0f, false, 0.2f},
    {"warp_plus_one", {.rows = 34, .classes = 33, .label_smoothing = 0.05f}, 2.0f, true},
    {"most_classes", {.rows = 9, .classes = 256}},
    {"rows_of_four",
     {.rows = 257, .classes = 4, .ignore_label = 2, .label_smoothing = 0.1f},
     2.0f,
     true,
     0.3f},
    {"eight", {.rows = 130, .classes = 8, .label_smoothing = 0.1f}, 2.0f, true},
    {"fours", {.rows = 40, .classes = 36, .ignore_label = 7}, 2.0f, true, 0.2f},
    {"lanes_minus_one", {.rows = 33, .classes = 63}, 2.0f, true},
    {"lanes", {.rows = 33, .classes = 64, .label_smoothing = 0.1f}},
    {"lanes_plus_one", {.rows = 33, .classes = 65, .focal_gamma = 2.0f}},
    {"voila", {.rows = 65, .classes = 118, .ignore_label = 255}, 2.0f, false, 0.2f},
    {"most_classes_minus_one", {.rows = 9, .classes = 255, .label_smoothing = 0.1f}, 2.0f, true},
    {"all_smooth", {.rows = 50, .classes = 4, .label_smoothing = 1.0f}, 2.0f, true},
    {"all_ignored", {.rows = 70, .classes = 4, .ignore_label = 9}, 2.0f, true, 1.0f},
    {"far_logits", {.rows = 129, .classes = 4}, 100.0f},
    {"far_logits_smooth", {.rows = 30, .classes = 3, .label_smoothing = 0.1f}, 100.0f, true},
    {"focal", {.rows = 200, .classes = 4, .focal_gamma = 2.0f}},
    {"focal_all",
     {.rows = 90, .classes = 5, .ignore_label = 200, .label_smoothing = 0.1f, .focal_gamma = 1.5f},
     2.0f,
     true,
     0.2f},
    {"focal_below_one", {.rows = 66, .classes = 3, .focal_gamma = 0.5f}},
    {"focal_far_logits", {.rows = 65, .classes = 3, .focal_gamma = 2.0f}, 100.0f},
};

inline CrossEntropyCase draw_cross_entropy_case(RandomStream& random) {
  CrossEntropyCase c;
  c.name = "random";
  CrossEntropyParams& p = c.params;
  p.classes = 1 + random.below(random.below(4) == 0 ? 70 : 6);
  p.rows = random.below(900 / p.classes);
  if (random.below(2) == 0) {
    // Beyond the classes, or one of them.
    p.ignore_label = static_cast<int>(random.below(2) == 0 ? 255 : random.below(p.classes));
    c.ignored = 0.3f;
  }
  p.label_smoothing = random.below(2) == 0 ? 0.0f : 0.1f;
  const float gammas[] = {0.0f, 0.0f, 1.0f, 2.0f, 2.5f};
  p.focal_gamma = gammas[random.below(5)];
  c.class_weights = random.below(2) == 0;
  return c;
}

struct DistillationCase {
  std::string name;
  DistillationParams params;
  float scale = 2.0f;
};

inline const std::vector<DistillationCase> kDistillationCases = {
    {"one_row", {}},
    {"one_element", {.rows = 1, .classes = 1}},
    {"one_class", {.rows = 3, .classes = 1}},
    {"no_row", {.rows = 0, .classes = 3}},
    {"block_minus_one", {.rows = 63, .classes = 3}},
    {"block", {.rows = 64, .classes = 4, .temperature = 3.0f}},
    {"block_plus_one", {.rows = 65, .classes = 4, .temperature = 0.5f}},
    {"slab", {.rows = 256, .classes = 2, .temperature = 2.0f}},
    {"slab_plus_one", {.rows = 257, .classes = 5}},
    {"warp", {.rows = 20, .classes = 32, .temperature = 4.0f}},
    {"warp_plus_one", {.rows = 21, .classes = 33}},
    {"far_logits", {.rows = 70, .classes = 4}, 100.0f},
};

inline DistillationCase draw_distillation_case(RandomStream& random) {
  DistillationCase c;
  c.name = "random";
  c.params.classes = 1 + random.below(random.below(4) == 0 ? 70 : 6);
  c.params.rows = random.below(900 / c.params.classes);
  const float temperatures[] = {0.7f, 1.0f, 2.0f, 4.0f};
  c.params.temperature = temperatures[random.below(4)];
  return c;
}

// For benchmarks: four classes at 64^3 and 128^3, plain and with everything switched on.
inline const std::vector<CrossEntropyCase> kCrossEntropyBenchmarkCases = {
    {"4_64", {.rows = 524288, .classes = 4}},
    {"4_128", {.rows = 4194304, .classes = 4}},
    {"4_64_weights_smoothing",
     {.rows = 524288, .classes = 4, .ignore_label = 255, .label_smoothing = 0.1f},
     2.0f,
     true,
     0.1f},
    {"118_32_voila", {.rows = 32768, .classes = 118}},
};
inline const std::vector<DistillationCase> kDistillationBenchmarkCases = {
    {"4_64", {.rows = 524288, .classes = 4, .temperature = 2.0f}},
};

inline Work cross_entropy_work(const CrossEntropyParams& p, bool backward) {
  return {.bytes = static_cast<double>(p.rows) * static_cast<double>(4 * p.classes * (backward ? 2 : 1) + 1)};
}
inline Work distillation_work(const DistillationParams& p, bool backward) {
  return {.bytes = 4.0 * static_cast<double>(p.rows * p.classes) * (backward ? 3 : 2)};
}

}  // namespace vesal::kernels
