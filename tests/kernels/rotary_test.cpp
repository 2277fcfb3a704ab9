// The rotary embedding on every device against double-precision loops; its backward against numeric
// differences, and as the rotation that undoes the forward one.
#include "kernels/rotary/rotary.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <numeric>

#include "base/parallel.hpp"
#include "kernels/rotary/rotary_angle.hpp"
#include "kernels/rotary/rotary_cases.hpp"
#include "kernels/rotary/rotary_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

// What lies between strided tokens keeps this value.
constexpr float kUntouched = -77.0f;

int64_t or_packed(const RotaryParams& p, int64_t stride) { return stride == 0 ? p.channels() : stride; }

RotaryParams exchanged(RotaryParams p) {
  std::swap(p.x_stride, p.y_stride);
  return p;
}

enum class Pass { forward, backward };

template <class T>
std::vector<T> run_reference(const RotaryParams& p, Pass pass, const std::vector<float>& given) {
  const std::vector<T> in(given.begin(), given.end());
  const bool forward = pass == Pass::forward;
  std::vector<T> out(static_cast<size_t>(p.n * p.tokens * or_packed(p, forward ? p.y_stride : p.x_stride)),
                     T(kUntouched));
  reference::rotary<T>(forward ? p : exchanged(p), in.data(), out.data(), forward ? 1 : -1);
  return out;
}

std::vector<float> run_device(Device device, const RotaryParams& p, Pass pass,
                              const std::vector<float>& given) {
  Context context(device);
  const DeviceArray<float> in(device, given);
  const int64_t stride = or_packed(p, pass == Pass::forward ? p.y_stride : p.x_stride);
  const auto count = static_cast<size_t>(p.n * p.tokens * stride);
  const bool gaps = stride != p.channels();
  const auto out = gaps ? std::make_unique<DeviceArray<float>>(device, std::vector<float>(count, kUntouched))
                        : std::make_unique<DeviceArray<float>>(device, static_cast<int64_t>(count));
  if (pass == Pass::forward) {
    rotary_forward(context, p, in.get(), out->get());
  } else {
    rotary_backward(context, p, in.get(), out->get());
  }
  return out->host();
}

std::vector<float> make_input(const RotaryParams& p, Pass pass, uint64_t seed) {
  return random_normal(p.n * p.tokens * or_packed(p, pass == Pass::forward ? p.x_stride : p.y_stride), seed);
}

void check_case(const RotaryParams& p, uint64_t seed, const std::string& name) {
  for (const Pass pass : {Pass::forward, Pass::backward}) {
    const std::vector<float> in = make_input(p, pass, seed);
    const std::vector<double> exact = run_reference<double>(p, pass, in);
    std::vector<float> naive = run_reference<float>(p, pass, in);
    RandomStream random(seed, 1, 0);
    for (int evaluation = 1; evaluation < 4; ++evaluation) {
      keep_worse(naive, run_reference<float>(p, pass, moved_by_one_ulp(in, random)), exact);
    }
    for (const Device device : test_devices()) {
      expect_close(concat(name, pass == Pass::forward ? ": y" : ": dx", " on ", to_string(device)),
                   run_device(device, p, pass, in), exact, naive);
    }
  }
}

TEST(Rotary, MatchesReference) {
  uint64_t seed = 100;
  for (const RotaryCase& c : kRotaryCases) {
    check_case(c.params, seed += 10, c.name);
  }
}

TEST(Rotary, MatchesReferenceOnRandomShapes) {
  for_each_random_case([](RandomStream& random) {
    RotaryParams p;
    p.n = 1 + random.below(3);
    p.heads = static_cast<int>(1 + random.below(3));
    p.axes = static_cast<int>(2 + random.below(2));
    p.head_dim = 2 * p.axes + static_cast<int>(random.below(40));
    p.grid = {p.axes == 2 ? 1 : static_cast<int>(1 + random.below(4)), static_cast<int>(1 + random.below(6)),
              static_cast<int>(1 + random.below(6))};
    p.excluded = random.below(4);
    p.tokens = p.grid_size() * (1 + random.below(3)) + p.excluded;
    p.x_stride = random.below(2) == 0 ? 0 : p.channels() + random.below(9);
    p.y_stride = random.below(2) == 0 ? 0 : p.channels() + random.below(9);
    p.theta = random.below(2) == 0 ? 10000.0f : 50.0f;
    check_case(p, static_cast<uint64_t>(random.below(1 << 30)), "random");
  });
}

TEST(Rotary, AnalyticGradientMatchesNumericOne) {
  const RotaryParams p{
      .n = 2, .tokens = 13, .heads = 2, .head_dim = 7, .axes = 3, .grid = {2, 1, 3}, .excluded = 1};
  const std::vector<float> dy = make_input(p, Pass::backward, 7);
  const std::vector<double> x = widen(make_input(p, Pass::forward, 8));
  expect_gradient("x", x, run_reference<double>(p, Pass::backward, dy),
                  [&](const std::vector<double>& moved) {
                    std::vector<double> y(moved.size());
                    reference::rotary<double>(p, moved.data(), y.data(), 1);
                    return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
                  });
}

// Every angle that a grid of 1024 places meets, and the furthest places that the contract allows.
TEST(Rotary, AnglesAreExactFarOut) {
  const RotaryParams p{.head_dim = 512};
  const RotaryFrequencies frequencies = rotary_frequencies(p);
  double worst = 0;
  for (int place = 0; place < (1 << 20); place += place < 1024 ? 1 : 99991) {
    for (int i = 0; i < p.pairs(); ++i) {
      const double angle = place * std::pow(10000.0, -static_cast<double>(i) / p.pairs());
      const RotaryAngle found = rotary_angle(place, frequencies.turns[i], frequencies.rest[i]);
      worst = std::max(worst, std::abs(std::cos(angle) - static_cast<double>(found.cosine)));
      worst = std::max(worst, std::abs(std::sin(angle) - static_cast<double>(found.sine)));
    }
  }
  EXPECT_LE(worst, 0x1p-22);
}

TEST(Rotary, WorksInPlace) {
  const RotaryParams& p = kRotaryCases[2].params;
  const std::vector<float> x = make_input(p, Pass::forward, 9);
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> both(device, x);
    rotary_forward(context, p, both.get(), both.get());
    expect_equal("in place on " + to_string(device), both.host(), run_device(device, p, Pass::forward, x));
  }
}

TEST(Rotary, ExcludedTokensKeepTheirBits) {
  const RotaryParams& p = kRotaryCases[2].params;
  const std::vector<float> x = make_input(p, Pass::forward, 10);
  for (const Device device : test_devices()) {
    const std::vector<float> y = run_device(device, p, Pass::forward, x);
    for (int64_t i = 0; i < p.n * p.tokens * p.channels(); ++i) {
      const int64_t l = i / p.channels() % p.tokens;
      const bool kept =
          l >= p.tokens - p.excluded || l % p.grid_size() == 0;  // nobody turns at place 0 either
      if (kept) {
        ASSERT_EQ(y[static_cast<size_t>(i)], x[static_cast<size_t>(i)])
            << "number " << i << " on " << to_string(device);
      }
    }
  }
}

TEST(Rotary, GivesTheSameBitsEachTime) {
  for (const RotaryCase& c : kRotaryCases) {
    for (const Device device : test_devices()) {
      expect_same_bits(c.name + " on " + to_string(device), device, [&] {
        std::vector<float> all =
            run_device(device, c.params, Pass::forward, make_input(c.params, Pass::forward, 21));
        const std::vector<float> dx =
            run_device(device, c.params, Pass::backward, make_input(c.params, Pass::backward, 22));
        all.insert(all.end(), dx.begin(), dx.end());
        return all;
      });
    }
  }
}

TEST(Rotary, DoesNotDependOnTheNumberOfThreads) {
  const RotaryParams p{.n = 2, .tokens = 1024, .head_dim = 64, .grid = {1, 32, 32}};
  const std::vector<float> x = make_input(p, Pass::forward, 23);
  const Device cpu{DeviceType::cpu, 0};
  const int threads = thread_count();
  set_thread_count(1);
  const std::vector<float> one = run_device(cpu, p, Pass::forward, x);
  set_thread_count(3);
  const std::vector<float> three = run_device(cpu, p, Pass::forward, x);
  set_thread_count(threads);
  expect_equal("one thread and three", three, one);
}

TEST(Rotary, RejectsWrongArguments) {
  Context context(Device{DeviceType::cpu, 0});
  std::vector<float> memory(1024);
  float* x = memory.data();
  const auto forward = [&](const RotaryParams& p) { rotary_forward(context, p, x, x + 512); };
  EXPECT_NO_THROW(forward({}));
  EXPECT_THROW(forward({.head_dim = 3}), ShapeError);
  EXPECT_THROW(forward({.head_dim = 5, .axes = 3}), ShapeError);
  EXPECT_THROW(forward({.head_dim = 513}), ShapeError);
  EXPECT_THROW(forward({.axes = 1}), ShapeError);
  EXPECT_THROW(forward({.tokens = 2, .grid = {2, 1, 1}}), ShapeError) << "depth with two axes";
  EXPECT_THROW(forward({.tokens = 5, .grid = {1, 2, 2}}), ShapeError);
  EXPECT_THROW(forward({.tokens = 5, .grid = {1, 2, 2}, .excluded = 2}), ShapeError);
  EXPECT_THROW(forward({.tokens = 5, .grid = {1, 0, 2}}), ShapeError);
  EXPECT_THROW(forward({.excluded = 2}), ShapeError);
  EXPECT_THROW(forward({.y_stride = 3}), ShapeError);
  EXPECT_THROW(forward({.theta = 0.0f}), ShapeError);
  EXPECT_THROW(rotary_forward(context, {}, x, nullptr), ShapeError);
  EXPECT_THROW(rotary_forward(context, {}, ConstData{x, DType::bf16}, x), ShapeError);
  EXPECT_THROW(rotary_backward(context, {}, nullptr, x), ShapeError);
}

TEST(Rotary, Storage) {
  for (const RotaryCase& c : kRotaryCases) {
    const RotaryParams& p = c.params;
    const std::vector<float> x = make_input(p, Pass::forward, 51), dy = make_input(p, Pass::backward, 52);
    expect_rounded_float32(c.name, [&](Call& call) {
      rotary_forward(call.context(), p, call.in(x), call.in_out(std::vector<float>(dy.size(), kUntouched)));
      rotary_backward(call.context(), p, call.in(dy), call.in_out(std::vector<float>(x.size(), kUntouched)));
      if (x.size() == dy.size()) {
        const Data both = call.in_out(x);
        rotary_forward(call.context(), p, both, both);
      }
    });
  }
}

TEST(Rotary, StorageTypesThatDifferAreOneLine) {
  Context context(Device{DeviceType::cpu, 0});
  std::vector<float> x(4);
  std::vector<uint16_t> half(4);
  const auto message = [&](const auto& pass) {
    return shape_error(
        [&] { pass(context, RotaryParams{}, Data(half.data(), DType::bf16), Data(x.data())); });
  };
  EXPECT_EQ(message(rotary_forward), "rotary_forward: tensors are stored as bf16 and f32, expected one type");
  EXPECT_EQ(message(rotary_backward),
            "rotary_backward: tensors are stored as bf16 and f32, expected one type");
}

// Writes the cases without gaps between tokens and the CPU's results where tests/oracle/attention.py asks for
// them.
TEST(Rotary, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/rotary.txt");
  int number = 0;
  for (const RotaryCase& c : kRotaryCases) {
    const RotaryParams& p = c.params;
    if (p.x_stride != 0 || p.y_stride != 0) {
      continue;
    }
    const std::vector<float> x = make_input(p, Pass::forward, 4000 + static_cast<uint64_t>(number));
    const std::vector<float> dy = make_input(p, Pass::backward, 5000 + static_cast<uint64_t>(number));
    const Device cpu{DeviceType::cpu, 0};
    const std::vector<float> y = run_device(cpu, p, Pass::forward, x);
    const std::vector<float> dx = run_device(cpu, p, Pass::backward, dy);
    index << p.n << ' ' << p.tokens << ' ' << p.heads << ' ' << p.head_dim << ' ' << p.axes << ' '
          << p.grid[0] << ' ' << p.grid[1] << ' ' << p.grid[2] << ' ' << p.excluded << ' ' << p.theta << ' '
          << c.name << '\n';
    write_arrays(concat(folder, "/rotary", number++, ".f32"), {&x, &dy, &y, &dx});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
