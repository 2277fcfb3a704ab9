// The losses on softmax on every device against their reference.
#include "kernels/cross_entropy/cross_entropy.hpp"

#include <cmath>

#include "kernels/cross_entropy/cross_entropy_cases.hpp"
#include "kernels/cross_entropy/cross_entropy_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

constexpr float kWeight = 0.6f;

struct Inputs {
  std::vector<float> logits, weights;
  std::vector<uint8_t> labels;

  Inputs(const CrossEntropyCase& c, uint64_t seed) {
    const CrossEntropyParams& p = c.params;
    RandomStream random(seed, 0, 5);
    logits = random_normal(p.rows * p.classes, seed, c.scale);
    for (size_t i = 0; i < logits.size() && c.scale > 10; i += 5) {
      logits[i] = i % 2 == 0 ? c.scale : -c.scale;
    }
    for (int64_t r = 0; r < p.rows; ++r) {
      const bool ignored = static_cast<float>(random.below(1000)) < 1000 * c.ignored;
      labels.push_back(static_cast<uint8_t>(ignored ? p.ignore_label : random.below(p.classes)));
      if (labels.back() == p.ignore_label && r % 3 == 0) {
        std::fill_n(logits.begin() + r * p.classes, p.classes, NAN);
      }
    }
    for (int64_t k = 0; k < p.classes && c.class_weights; ++k) {
      // A first class of weight 0 unless it is the only one that the labels could name.
      weights.push_back(k == 0 && p.classes > 2 ? 0.0f
                                                : 0.25f + static_cast<float>(random.below(1000)) * 2e-3f);
    }
  }
  const float* class_weights() const { return weights.empty() ? nullptr : weights.data(); }
};

// Loss and total weight, then the gradient.
template <class T>
std::vector<T> reference_of(const CrossEntropyParams& p, const Inputs& in, const std::vector<float>& x) {
  const std::vector<T> logits(x.begin(), x.end());
  std::vector<T> all(logits.size() + 2);
  all[1] = reference::cross_entropy_total_weight<T>(p, in.labels.data(), in.class_weights());
  all[0] =
      reference::cross_entropy_forward<T>(p, logits.data(), in.labels.data(), in.class_weights(), all[1]);
  reference::cross_entropy_backward<T>(p, logits.data(), in.labels.data(), in.class_weights(), all[1],
                                       T(kWeight), all.data() + 2);
  return all;
}

template <class T>
std::vector<T> part(const std::vector<T>& all, size_t begin, size_t end) {
  return {all.begin() + static_cast<int64_t>(begin), all.begin() + static_cast<int64_t>(end)};
}

void check_case(Device device, const CrossEntropyCase& c, uint64_t seed, bool schedules) {
  const CrossEntropyParams& p = c.params;
  const std::string what = to_string(device) + " " + c.name;
  const Inputs in(c, seed);
  const std::vector<double> exact = reference_of<double>(p, in, in.logits);
  std::vector<float> naive = reference_of<float>(p, in, in.logits);
  RandomStream random(seed, 0, 6);
  for (int repeat = 0; repeat < 4; ++repeat) {
    keep_worse(naive, reference_of<float>(p, in, moved_by_one_ulp(in.logits, random)), exact);
  }
  Context context(device);
  const DeviceArray<float> logits(device, in.logits), weights(device, in.weights);
  const DeviceArray<uint8_t> labels(device, in.labels);
  const float* class_weights = in.weights.empty() ? nullptr : weights.get();
  const auto run = [&] {
    const DeviceArray<float> loss(device, 1), total(device, 1),
        d(device, static_cast<int64_t>(in.logits.size()));
    const DeviceWorkspace workspace(device, cross_entropy_workspace_bytes(context, p));
    cross_entropy_forward(context, p, logits.get(), labels, class_weights, loss.get(), total, workspace);
    cross_entropy_backward(context, p, logits.get(), labels, class_weights, total, kWeight, d.get());
    std::vector<float> all{loss.host()[0], total.host()[0]};
    const std::vector<float> gradient = d.host();
    all.insert(all.end(), gradient.begin(), gradient.end());
    return all;
  };
  const std::vector<float> found = run();
  expect_close(what + " loss", part(found, 0, 1), part(exact, 0, 1), part(naive, 0, 1));
  expect_close(what + " total weight", part(found, 1, 2), part(exact, 1, 2), part(naive, 1, 2));
  expect_close(what + " dlogits", part(found, 2, found.size()), part(exact, 2, exact.size()),
               part(naive, 2, naive.size()));
  if (schedules) {
    expect_same_bits(what, device, run);
  }
}

TEST(CrossEntropy, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const CrossEntropyCase& c : kCrossEntropyCases) {
      check_case(device, c, 1, true);
    }
  }
}

TEST(CrossEntropy, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const CrossEntropyCase c = draw_cross_entropy_case(random);
    const auto seed = static_cast<uint64_t>(random.below(1 << 30));
    for (const Device device : test_devices()) {
      check_case(device, c, seed, false);
    }
  });
}

// More rows than one thread of the CPU takes.
TEST(CrossEntropy, ManyRows) {
  check_case({DeviceType::cpu, 0},
             {"many_rows", {.rows = 30000, .classes = 4, .label_smoothing = 0.1f}, 2.0f, true}, 1, true);
}

TEST(CrossEntropy, ReferenceGradient) {
  for (const CrossEntropyCase& c : kCrossEntropyCases) {
    if (c.params.rows * c.params.classes > 400 || c.scale > 10) {
      continue;
    }
    Inputs in(c, 1);
    for (float& value : in.logits) {
      value = std::isnan(value) ? 0.0f : value;
    }
    const std::vector<double> x = widen(in.logits);
    const double total =
        reference::cross_entropy_total_weight<double>(c.params, in.labels.data(), in.class_weights());
    std::vector<double> d(x.size());
    reference::cross_entropy_backward<double>(c.params, x.data(), in.labels.data(), in.class_weights(), total,
                                              1.0, d.data());
    expect_gradient(c.name, x, d, [&](const std::vector<double>& values) {
      return reference::cross_entropy_forward<double>(c.params, values.data(), in.labels.data(),
                                                      in.class_weights(), total);
    });
  }
}

TEST(CrossEntropy, LabelThatIsNoClassShows) {
  for (const Device device : test_devices()) {
    Context context(device);
    const CrossEntropyParams p{.rows = 3, .classes = 2, .ignore_label = 9};
    const DeviceArray<float> logits(device, std::vector<float>{1, 2, 3, 4, 5, 6}), loss(device, 1),
        total(device, 1), d(device, 6);
    const DeviceArray<uint8_t> labels(device, std::vector<uint8_t>{0, 2, 9});
    const DeviceWorkspace workspace(device, cross_entropy_workspace_bytes(context, p));
    cross_entropy_forward(context, p, logits.get(), labels, nullptr, loss.get(), total, workspace);
    cross_entropy_backward(context, p, logits.get(), labels, nullptr, total, 1.0f, d.get());
    EXPECT_TRUE(std::isnan(loss.host()[0])) << to_string(device);
    EXPECT_TRUE(std::isnan(d.host()[2])) << to_string(device);
    EXPECT_EQ(d.host()[4], 0.0f) << to_string(device);
  }
}

struct Pair {
  std::vector<float> student, teacher;
  Pair(const DistillationCase& c, uint64_t seed)
      : student(random_normal(c.params.rows * c.params.classes, seed, c.scale)),
        teacher(random_normal(c.params.rows * c.params.classes, seed + 1, c.scale)) {}
};

// Loss first, then the gradient.
template <class T>
std::vector<T> reference_of(const DistillationParams& p, const std::vector<float>& student_,
                            const std::vector<float>& teacher_) {
  const std::vector<T> student(student_.begin(), student_.end()), teacher(teacher_.begin(), teacher_.end());
  std::vector<T> all(student.size() + 1);
  all[0] = reference::distillation_forward<T>(p, student.data(), teacher.data());
  reference::distillation_backward<T>(p, student.data(), teacher.data(), T(kWeight), all.data() + 1);
  return all;
}

void check_case(Device device, const DistillationCase& c, uint64_t seed, bool schedules) {
  const DistillationParams& p = c.params;
  const std::string what = to_string(device) + " " + c.name;
  const Pair in(c, seed);
  const std::vector<double> exact = reference_of<double>(p, in.student, in.teacher);
  std::vector<float> naive = reference_of<float>(p, in.student, in.teacher);
  RandomStream random(seed, 0, 6);
  for (int repeat = 0; repeat < 4; ++repeat) {
    keep_worse(
        naive,
        reference_of<float>(p, moved_by_one_ulp(in.student, random), moved_by_one_ulp(in.teacher, random)),
        exact);
  }
  Context context(device);
  const DeviceArray<float> student(device, in.student), teacher(device, in.teacher);
  const auto run = [&] {
    const DeviceArray<float> loss(device, 1), d(device, static_cast<int64_t>(in.student.size()));
    const DeviceWorkspace workspace(device, distillation_workspace_bytes(context, p));
    distillation_forward(context, p, student.get(), teacher.get(), loss.get(), workspace);
    distillation_backward(context, p, student.get(), teacher.get(), kWeight, d.get());
    std::vector<float> all = loss.host();
    const std::vector<float> gradient = d.host();
    all.insert(all.end(), gradient.begin(), gradient.end());
    return all;
  };
  const std::vector<float> found = run();
  expect_close(what + " loss", part(found, 0, 1), part(exact, 0, 1), part(naive, 0, 1));
  expect_close(what + " dstudent", part(found, 1, found.size()), part(exact, 1, exact.size()),
               part(naive, 1, naive.size()));
  if (schedules) {
    expect_same_bits(what, device, run);
  }
}

TEST(Distillation, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const DistillationCase& c : kDistillationCases) {
      check_case(device, c, 1, true);
    }
  }
}

TEST(Distillation, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const DistillationCase c = draw_distillation_case(random);
    const auto seed = static_cast<uint64_t>(random.below(1 << 30));
    for (const Device device : test_devices()) {
      check_case(device, c, seed, false);
    }
  });
}

TEST(Distillation, NothingToLearnFromOneself) {
  for (const Device device : test_devices()) {
    Context context(device);
    const DistillationParams p{.rows = 10, .classes = 5, .temperature = 2.0f};
    const DeviceArray<float> x(device, random_normal(50, 1, 3.0f)), loss(device, 1), d(device, 50);
    const DeviceWorkspace workspace(device, distillation_workspace_bytes(context, p));
    distillation_forward(context, p, x.get(), x.get(), loss.get(), workspace);
    distillation_backward(context, p, x.get(), x.get(), 1.0f, d.get());
    EXPECT_EQ(loss.host()[0], 0.0f) << to_string(device);
    expect_equal(to_string(device), d.host(), std::vector<float>(50, 0.0f));
  }
}

TEST(Distillation, ReferenceGradient) {
  for (const DistillationCase& c : kDistillationCases) {
    if (c.params.rows * c.params.classes > 400 || c.scale > 10) {
      continue;
    }
    const Pair in(c, 1);
    const std::vector<double> student = widen(in.student), teacher = widen(in.teacher);
    std::vector<double> d(student.size());
    reference::distillation_backward<double>(c.params, student.data(), teacher.data(), 1.0, d.data());
    expect_gradient(c.name, student, d, [&](const std::vector<double>& values) {
      return reference::distillation_forward<double>(c.params, values.data(), teacher.data());
    });
  }
}

TEST(CrossEntropy, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> values(64);
  std::vector<uint8_t> labels(64);
  float* f = values.data();
  const auto forward = [&](const CrossEntropyParams& p) {
    cross_entropy_forward(context, p, f, labels.data(), nullptr, f, f, {f, 256});
  };
  EXPECT_NO_THROW(forward({}));
  EXPECT_THROW(forward({.rows = -1}), ShapeError);
  EXPECT_THROW(forward({.classes = 0}), ShapeError);
  EXPECT_THROW(forward({.classes = 257}), ShapeError);
  EXPECT_THROW(forward({.ignore_label = 256}), ShapeError);
  EXPECT_THROW(forward({.ignore_label = -2}), ShapeError);
  EXPECT_THROW(forward({.label_smoothing = 1.5f}), ShapeError);
  EXPECT_THROW(forward({.label_smoothing = NAN}), ShapeError);
  EXPECT_THROW(forward({.focal_gamma = -1.0f}), ShapeError);
  EXPECT_THROW(cross_entropy_forward(context, {}, f, nullptr, nullptr, f, f, {f, 256}), ShapeError);
  EXPECT_THROW(cross_entropy_forward(context, {}, f, labels.data(), nullptr, f, nullptr, {f, 256}),
               ShapeError);
  EXPECT_THROW(cross_entropy_forward(context, {}, f, labels.data(), nullptr, f, f, {}), ShapeError);
  EXPECT_THROW(cross_entropy_backward(context, {}, f, labels.data(), nullptr, nullptr, 1.0f, f), ShapeError);
  EXPECT_THROW(distillation_forward(context, {.temperature = 0.0f}, f, f, f, {f, 256}), ShapeError);
  EXPECT_THROW(distillation_forward(context, {.rows = -1}, f, f, f, {f, 256}), ShapeError);
  EXPECT_THROW(distillation_forward(context, {}, f, nullptr, f, {f, 256}), ShapeError);
  EXPECT_THROW(distillation_forward(context, {}, f, f, f, {}), ShapeError);
  EXPECT_THROW(distillation_backward(context, {}, f, f, 1.0f, nullptr), ShapeError);
}

// Kernels that read four logits at once must see where they cannot.
TEST(CrossEntropy, RowsAlignedToFourBytesOnlyGiveTheSameBits) {
  for (const Device device : test_devices()) {
    for (const int64_t classes : {4, 36}) {
      const CrossEntropyParams p{.rows = 70, .classes = classes, .label_smoothing = 0.1f};
      const Inputs in({"", p}, 4);
      Context context(device);
      const auto run = [&](size_t offset) {
        std::vector<float> values = in.logits;
        values.insert(values.begin(), offset, 0.0f);
        const DeviceArray<float> logits(device, values), d(device, static_cast<int64_t>(values.size())),
            loss(device, 1), total(device, 1);
        const DeviceArray<uint8_t> labels(device, in.labels);
        const DeviceWorkspace workspace(device, cross_entropy_workspace_bytes(context, p));
        cross_entropy_forward(context, p, logits.get() + offset, labels, nullptr, loss.get(), total,
                              workspace);
        cross_entropy_backward(context, p, logits.get() + offset, labels, nullptr, total, kWeight,
                               d.get() + offset);
        std::vector<float> all = d.host();
        all.erase(all.begin(), all.begin() + static_cast<int64_t>(offset));
        all.push_back(loss.host()[0]);
        return all;
      };
      expect_equal(to_string(device), run(1), run(0));
    }
  }
}

TEST(CrossEntropy, Storage) {
  for (const CrossEntropyCase& c : kCrossEntropyCases) {
    const CrossEntropyParams& p = c.params;
    const Inputs in(c, 1);
    expect_rounded_float32(c.name, [&](Call& call) {
      const DeviceArray<uint8_t> labels(call.context().device(), in.labels);
      const float* weights =
          in.weights.empty() ? nullptr : call.in_float(in.weights).as<float>("class weights");
      float* total = call.out_float(1).as<float>("total weight");
      cross_entropy_forward(call.context(), p, call.in(in.logits), labels, weights, call.out_float(1), total,
                            call.workspace(cross_entropy_workspace_bytes(call.context(), p)));
      cross_entropy_backward(call.context(), p, call.in(in.logits), labels, weights, total, kWeight,
                             call.out(p.rows * p.classes));
    });
  }
}

TEST(Distillation, Storage) {
  for (const DistillationCase& c : kDistillationCases) {
    const DistillationParams& p = c.params;
    const Pair in(c, 1);
    expect_rounded_float32(c.name, [&](Call& call) {
      distillation_forward(call.context(), p, call.in(in.student), call.in(in.teacher), call.out_float(1),
                           call.workspace(distillation_workspace_bytes(call.context(), p)));
      distillation_backward(call.context(), p, call.in(in.student), call.in(in.teacher), kWeight,
                            call.out(p.rows * p.classes));
    });
  }
}

TEST(CrossEntropy, StorageTypesThatDifferAreOneLine) {
  std::vector<float> wide(64);
  std::vector<uint8_t> labels(1);
  float* f = wide.data();
  const Data half(f, DType::bf16);
  for (const DeviceType type : {DeviceType::cpu, DeviceType::simt}) {
    Context context({type, 0});
    EXPECT_EQ(
        shape_error([&] { cross_entropy_backward(context, {}, half, labels.data(), nullptr, f, 1.0f, f); }),
        "cross_entropy_backward: tensors are stored as bf16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] {
                distillation_forward(context, {}, f, half, f, {f, 256});
              }),
              "distillation_forward: tensors are stored as f32 and bf16, expected one type");
    EXPECT_EQ(shape_error([&] { distillation_backward(context, {}, half, half, 1.0f, f); }),
              "distillation_backward: tensors are stored as bf16 and f32, expected one type");
  }
}

}  // namespace
}  // namespace vesal::kernels::testing
