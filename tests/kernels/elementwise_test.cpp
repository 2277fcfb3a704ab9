// Elementwise functions on every device against their reference, and the vectorisable functions of
// vector_math.hpp over dense sweeps of their domains.
#include "kernels/elementwise/elementwise.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "kernels/elementwise/elementwise_cases.hpp"
#include "kernels/elementwise/elementwise_ref.hpp"
#include "kernels/vector_math.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/oracle_vectors.hpp"

namespace vesal::kernels::testing {
namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();

// The largest error of f against `exact` in units in the last place of the exact value, over every
// `stride`-th float of [low, high], negative numbers included.
double worst_ulp(float low, float high, float (*f)(float), double (*exact)(double), uint32_t stride = 461) {
  double worst = 0;
  const auto sweep = [&](float from, float to, float sign) {
    uint32_t first = 0;
    uint32_t last = 0;
    std::memcpy(&first, &from, 4);
    std::memcpy(&last, &to, 4);
    for (uint32_t bits = first; bits <= last; bits += stride) {
      float x = 0;
      std::memcpy(&x, &bits, 4);
      x *= sign;
      const double expected = exact(x);
      const double ulp = std::ldexp(1.0, std::max(std::ilogb(expected == 0 ? 1e-300 : expected), -126) - 23);
      const double error = std::abs(f(x) - expected) / ulp;
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
  };
  if (high > 0) {
    sweep(std::max(low, 0.0f), high, 1.0f);
  }
  if (low < 0) {
    sweep(std::max(-high, 0.0f), -low, -1.0f);
  }
  return worst;
}

TEST(VectorMath, ErrorsOverDenseSweeps) {
  const double exp_error = worst_ulp(-103.0f, 88.7228f, vector_exp, [](double x) { return std::exp(x); });
  const double erf_error = worst_ulp(-10.0f, 10.0f, vector_erf, [](double x) { return std::erf(x); });
  const double tanh_error = worst_ulp(-20.0f, 20.0f, vector_tanh, [](double x) { return std::tanh(x); });
  const double sigmoid_error =
      worst_ulp(-103.0f, 100.0f, vector_sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); });
  const double log1p_error = worst_ulp(0.0f, 1.0f, vector_log1p_unit, [](double x) { return std::log1p(x); });
  const double softplus_error = worst_ulp(-103.0f, 100.0f, vector_softplus, [](double x) {
    return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
  });
  const double expm1_error =
      worst_ulp(-20.0f, -1e-38f, vector_expm1_below, [](double x) { return std::expm1(x); });
  EXPECT_LE(exp_error, 1.0);
  EXPECT_LE(expm1_error, 3.0);
  EXPECT_LE(erf_error, 6.0);
  EXPECT_LE(tanh_error, 5.0);
  EXPECT_LE(sigmoid_error, 3.0);
  EXPECT_LE(log1p_error, 2.0);
  EXPECT_LE(softplus_error, 3.0);
  RecordProperty("ulp",
                 concat("exp ", exp_error, " expm1 ", expm1_error, " erf ", erf_error, " tanh ", tanh_error,
                        " sigmoid ", sigmoid_error, " log1p ", log1p_error, " softplus ", softplus_error));
}

TEST(VectorMath, EndsOfTheDomains) {
  EXPECT_EQ(vector_exp(-kInfinity), 0.0f);
  EXPECT_EQ(vector_exp(-104.5f), 0.0f);
  EXPECT_GT(vector_exp(-100.0f), 0.0f);
  EXPECT_EQ(vector_exp(0.0f), 1.0f);
  EXPECT_EQ(vector_exp(88.75f), kInfinity);
  EXPECT_EQ(vector_exp(kInfinity), kInfinity);
  EXPECT_EQ(vector_expm1_below(-kInfinity), -1.0f);
  EXPECT_EQ(vector_expm1_below(0.0f), 0.0f);
  EXPECT_EQ(vector_expm1_below(-1e-30f), -1e-30f);
  EXPECT_EQ(vector_erf(kInfinity), 1.0f);
  EXPECT_EQ(vector_erf(-5.0f), -1.0f);
  EXPECT_EQ(vector_erf(0.0f), 0.0f);
  EXPECT_EQ(vector_tanh(kInfinity), 1.0f);
  EXPECT_EQ(vector_tanh(-kInfinity), -1.0f);
  EXPECT_EQ(vector_sigmoid(-kInfinity), 0.0f);
  EXPECT_EQ(vector_sigmoid(kInfinity), 1.0f);
  EXPECT_EQ(vector_sigmoid(0.0f), 0.5f);
  EXPECT_EQ(vector_log1p_unit(0.0f), 0.0f);
  EXPECT_EQ(vector_softplus(-kInfinity), 0.0f);
  EXPECT_EQ(vector_softplus(kInfinity), kInfinity);
  for (const auto f : {vector_exp, vector_expm1_below, vector_erf, vector_tanh, vector_sigmoid,
                       vector_log1p_unit, vector_softplus}) {
    EXPECT_TRUE(std::isnan(f(kNan)));
  }
}

constexpr Unary kKinds[] = {Unary::relu, Unary::leaky_relu, Unary::gelu, Unary::gelu_tanh,
                            Unary::silu, Unary::hardswish,  Unary::elu,  Unary::sigmoid};
constexpr float kSlope = 0.1f;

TEST(Unary, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const ElementwiseCase& c : kElementwiseCases) {
      for (const Unary kind : kKinds) {
        const std::string what = concat(to_string(device), " ", c.name, " kind ", static_cast<int>(kind));
        const std::vector<float> x = random_normal(c.count(), 1, 2.0f);
        const std::vector<float> dy = random_normal(c.count(), 2);
        const std::vector<double> wide_x = widen(x);
        const std::vector<double> wide_dy = widen(dy);
        std::vector<double> exact(x.size());
        std::vector<float> naive(x.size());
        reference::unary_forward<double>(kind, c.count(), wide_x.data(), exact.data(), kSlope);
        reference::unary_forward<float>(kind, c.count(), x.data(), naive.data(), kSlope);
        Context context(device);
        const DeviceArray<float> in(device, x);
        const DeviceArray<float> d(device, dy);
        const auto forward = [&] {
          const DeviceArray<float> y(device, c.count());
          unary_forward(context, kind, c.count(), in.get(), y.get(), kSlope);
          return y.host();
        };
        expect_close(what + " forward", forward(), exact, naive);
        expect_same_bits(what + " forward", device, forward);
        reference::unary_backward<double>(kind, c.count(), wide_x.data(), wide_dy.data(), exact.data(),
                                          kSlope);
        reference::unary_backward<float>(kind, c.count(), x.data(), dy.data(), naive.data(), kSlope);
        const auto backward = [&] {
          const DeviceArray<float> dx(device, c.count());
          unary_backward(context, kind, c.count(), in.get(), d.get(), dx.get(), kSlope);
          return dx.host();
        };
        expect_close(what + " backward", backward(), exact, naive);
        // In place: y over x, dx over dy.
        const DeviceArray<float> y(device, x);
        unary_forward(context, kind, c.count(), y.get(), y.get(), kSlope);
        expect_equal(what + " in place", y.host(), forward());
        const DeviceArray<float> dx(device, dy);
        unary_backward(context, kind, c.count(), in.get(), dx.get(), dx.get(), kSlope);
        expect_equal(what + " backward in place", dx.host(), backward());
      }
    }
  }
}

TEST(Unary, ReferenceGradient) {
  const std::vector<double> x = widen(random_normal(40, 3, 2.0f));
  const std::vector<double> dy = widen(random_normal(40, 4));
  for (const Unary kind : kKinds) {
    std::vector<double> dx(x.size());
    reference::unary_backward<double>(kind, 40, x.data(), dy.data(), dx.data(), kSlope);
    expect_gradient(concat("kind ", static_cast<int>(kind)), x, dx, [&](const std::vector<double>& values) {
      std::vector<double> y(values.size());
      reference::unary_forward<double>(kind, 40, values.data(), y.data(), kSlope);
      double loss = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        loss += y[i] * dy[i];
      }
      return loss;
    });
  }
}

TEST(Unary, SpecialValues) {
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> x(device, std::vector<float>{0.0f, -0.0f, kNan, 1e30f, -1e30f});
    const DeviceArray<float> ones(device, std::vector<float>(5, 1.0f));
    const auto run = [&](Unary kind, bool backward) {
      const DeviceArray<float> out(device, 5);
      if (backward) {
        unary_backward(context, kind, 5, x.get(), ones.get(), out.get(), kSlope);
      } else {
        unary_forward(context, kind, 5, x.get(), out.get(), kSlope);
      }
      return out.host();
    };
    EXPECT_EQ(run(Unary::relu, true)[0], 0.0f);
    EXPECT_EQ(run(Unary::relu, true)[3], 1.0f);
    EXPECT_EQ(run(Unary::leaky_relu, true)[0], kSlope);
    EXPECT_EQ(run(Unary::leaky_relu, true)[1], kSlope);
    EXPECT_EQ(run(Unary::gelu, true)[3], 1.0f);
    EXPECT_EQ(run(Unary::gelu, true)[4], 0.0f);
    EXPECT_EQ(run(Unary::gelu, false)[3], 1e30f);
    for (const Unary kind : {Unary::gelu_tanh, Unary::silu, Unary::hardswish}) {
      EXPECT_EQ(run(kind, false)[3], 1e30f);
      EXPECT_EQ(run(kind, false)[4], 0.0f);
      EXPECT_EQ(run(kind, true)[3], 1.0f);
      EXPECT_EQ(run(kind, true)[4], 0.0f);
      EXPECT_EQ(run(kind, true)[0], 0.5f);
    }
    EXPECT_EQ(run(Unary::elu, false)[3], 1e30f);
    EXPECT_EQ(run(Unary::elu, false)[4], -1.0f);
    EXPECT_EQ(run(Unary::elu, true)[0], 1.0f);
    EXPECT_EQ(run(Unary::elu, true)[4], 0.0f);
    EXPECT_EQ(run(Unary::sigmoid, false)[3], 1.0f);
    EXPECT_EQ(run(Unary::sigmoid, false)[4], 0.0f);
    EXPECT_EQ(run(Unary::sigmoid, true)[4], 0.0f);
    for (const Unary kind : kKinds) {
      EXPECT_TRUE(std::isnan(run(kind, false)[2])) << to_string(device) << " kind " << static_cast<int>(kind);
    }
  }
}

// PyTorch's choice where hardswish has no derivative.
TEST(Unary, HardswishAtItsKinks) {
  for (const Device device : test_devices()) {
    Context context(device);
    const std::vector<float> values{-3.0f, 3.0f, std::nextafter(-3.0f, -4.0f), std::nextafter(3.0f, 4.0f)};
    const DeviceArray<float> x(device, values), ones(device, std::vector<float>(4, 1.0f)), y(device, 4),
        dx(device, 4);
    unary_forward(context, Unary::hardswish, 4, x.get(), y.get());
    unary_backward(context, Unary::hardswish, 4, x.get(), ones.get(), dx.get());
    EXPECT_EQ(y.host()[0], 0.0f);
    EXPECT_EQ(y.host()[1], 3.0f);
    EXPECT_NEAR(dx.host()[0], -0.5f, 1e-6f);
    EXPECT_NEAR(dx.host()[1], 1.5f, 1e-6f);
    EXPECT_EQ(dx.host()[2], 0.0f);
    EXPECT_EQ(dx.host()[3], 1.0f);
  }
}

TEST(Unary, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const ElementwiseCase c = random_elementwise_case(random);
    const Unary kind = kKinds[random.below(std::size(kKinds))];
    const auto slope = random.uniform(0.0f, 0.5f);
    SCOPED_TRACE(concat(c.name, " kind ", static_cast<int>(kind), " slope ", slope));
    const auto seed = static_cast<uint64_t>(random.below(1 << 20));
    std::vector<float> x = random_normal(c.count(), seed, 2.0f);
    std::vector<float> dy = random_normal(c.count(), seed + 1);
    // One value of order 1: the error rule counts in places of the largest.
    x[0] = 2.0f;
    dy[0] = 1.0f;
    std::vector<double> y_exact(x.size()), dx_exact(x.size());
    std::vector<float> y_naive(x.size()), dx_naive(x.size());
    const double wide_slope = static_cast<double>(slope);
    reference::unary_forward<double>(kind, c.count(), widen(x).data(), y_exact.data(), wide_slope);
    reference::unary_forward<float>(kind, c.count(), x.data(), y_naive.data(), slope);
    reference::unary_backward<double>(kind, c.count(), widen(x).data(), widen(dy).data(), dx_exact.data(),
                                      wide_slope);
    reference::unary_backward<float>(kind, c.count(), x.data(), dy.data(), dx_naive.data(), slope);
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceArray<float> in(device, x), d(device, dy), y(device, c.count()), dx(device, c.count());
      unary_forward(context, kind, c.count(), in.get(), y.get(), slope);
      unary_backward(context, kind, c.count(), in.get(), d.get(), dx.get(), slope);
      expect_close(to_string(device) + " forward", y.host(), y_exact, y_naive);
      expect_close(to_string(device) + " backward", dx.host(), dx_exact, dx_naive);
    }
  });
}

// For tests/oracle/norms.py: every activation at its kinks, around them, and far out.
TEST(Unary, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::vector<float> x = random_normal(500, 1, 3.0f);
  const std::vector<float> special{0.0f, -0.0f, -3.0f, 3.0f, 1e-6f, -1e-6f, 20.0f, -20.0f, 90.0f, -90.0f};
  x.insert(x.end(), special.begin(), special.end());
  const auto count = static_cast<int64_t>(x.size());
  const std::vector<float> dy = random_normal(count, 2);
  const Device device{DeviceType::cpu, 0};
  Context context(device);
  const DeviceArray<float> in(device, x), d(device, dy);
  for (const Unary kind : kKinds) {
    const DeviceArray<float> y(device, count), dx(device, count);
    unary_forward(context, kind, count, in.get(), y.get(), kSlope);
    unary_backward(context, kind, count, in.get(), d.get(), dx.get(), kSlope);
    const std::vector<float> y_values = y.host(), dx_values = dx.host();
    write_arrays(concat(folder, "/activation", static_cast<int>(kind), ".f32"),
                 {&x, &dy, &y_values, &dx_values});
  }
}

// Both dropouts of one case against the reference. Where the reference drops, x holds NaN.
void check_dropout(const ElementwiseCase& c, float probability, const DropoutKey& key, bool all_schedules) {
  const std::vector<float> clean = random_normal(c.count(), 1 + key.op);
  const auto check = [&](const std::string& op, auto reference, auto call) {
    std::vector<double> exact(clean.size());
    std::vector<float> naive(clean.size());
    reference(widen(clean).data(), exact.data());
    reference(clean.data(), naive.data());
    std::vector<float> x = clean;
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = exact[i] == 0.0 ? kNan : x[i];
    }
    for (const Device device : test_devices()) {
      Context context(device);
      const std::string what = concat(to_string(device), " ", op, " ", c.name, " p ", probability);
      const DeviceArray<float> in(device, x);
      const auto run = [&] {
        const DeviceArray<float> y(device, c.count());
        call(context, in.get(), y.get());
        return y.host();
      };
      const std::vector<float> found = run();
      expect_close(what, found, exact, naive);
      if (all_schedules) {
        expect_same_bits(what, device, run);
      }
      const DeviceArray<float> both(device, x);
      call(context, both.get(), both.get());
      expect_equal(what + " in place", both.host(), found);
      // Not aligned to four floats.
      std::vector<float> later(1, 0.0f);
      later.insert(later.end(), x.begin(), x.end());
      const DeviceArray<float> shifted(device, later), out(device, c.count() + 1);
      call(context, shifted.get() + 1, out.get() + 1);
      const std::vector<float> unaligned = out.host();
      expect_equal(what + " unaligned", std::vector<float>(unaligned.begin() + 1, unaligned.end()), found);
    }
  };
  check(
      "dropout", [&](const auto* x, auto* y) { reference::dropout(c.count(), probability, key, x, y); },
      [&](Context& context, const float* x, float* y) {
        dropout(context, c.count(), probability, key, x, y);
      });
  check(
      "dropout_channels",
      [&](const auto* x, auto* y) {
        reference::dropout_channels(c.n, c.spatial, c.channels, probability, key, x, y);
      },
      [&](Context& context, const float* x, float* y) {
        dropout_channels(context, c.n, c.spatial, c.channels, probability, key, x, y);
      });
}

TEST(Dropout, MatchesTheReference) {
  for (const ElementwiseCase& c : kElementwiseCases) {
    for (const float probability : {0.0f, 0.3f, 1.0f}) {
      check_dropout(c, probability, {7, 3, 5}, true);
    }
  }
}

TEST(Dropout, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const ElementwiseCase c = random_elementwise_case(random);
    const DropoutKey key{random.next_bits(), random.next_bits(), random.next_bits()};
    check_dropout(c, random.uniform(0.0f, 1.0f), key, false);
  });
}

// The share that stays is 1 - p within four standard errors, and seed, step and op each give another mask.
TEST(Dropout, KeepsTheRightShareAndFollowsItsKey) {
  constexpr int64_t kCount = 20000;
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> ones(device, std::vector<float>(kCount, 1.0f));
    const auto run = [&](const DropoutKey& key) {
      const DeviceArray<float> y(device, kCount);
      dropout(context, kCount, 0.25f, key, ones.get(), y.get());
      return y.host();
    };
    const std::vector<float> y = run({1, 2, 3});
    double kept = 0;
    for (const float value : y) {
      kept += value != 0.0f;
    }
    EXPECT_NEAR(kept / kCount, 0.75, 4 * std::sqrt(0.25 * 0.75 / kCount)) << to_string(device);
    for (const DropoutKey& other : {DropoutKey{2, 2, 3}, DropoutKey{1, 3, 3}, DropoutKey{1, 2, 4}}) {
      EXPECT_NE(run(other), y) << to_string(device);
    }
  }
}

// Dropout of dy is the gradient of the dropout of x under the same key.
TEST(Dropout, ReferenceGradient) {
  const std::vector<double> x = widen(random_normal(30, 1)), dy = widen(random_normal(30, 2));
  const DropoutKey key{4, 5, 6};
  for (const bool channels : {false, true}) {
    const auto apply = [&](const std::vector<double>& in) {
      std::vector<double> out(in.size());
      if (channels) {
        reference::dropout_channels<double>(2, 5, 3, 0.4f, key, in.data(), out.data());
      } else {
        reference::dropout<double>(30, 0.4f, key, in.data(), out.data());
      }
      return out;
    };
    expect_gradient("dropout", x, apply(dy), [&](const std::vector<double>& values) {
      const std::vector<double> y = apply(values);
      double loss = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        loss += y[i] * dy[i];
      }
      return loss;
    });
  }
}

TEST(Elementwise, SumsAndProductsAreExactOnIntegers) {
  for (const Device device : test_devices()) {
    for (const ElementwiseCase& c : kElementwiseCases) {
      const std::string what = to_string(device) + " " + c.name;
      const int64_t count = c.count();
      const std::vector<float> a = random_integers(count, 1);
      const std::vector<float> b = random_integers(count, 2);
      const std::vector<float> v = random_integers(c.n * c.channels, 3);
      Context context(device);
      const DeviceArray<float> da(device, a);
      const DeviceArray<float> db(device, b);
      const DeviceArray<float> dv(device, v);
      std::vector<double> expected(a.size());
      const auto run = [&](const std::function<void(float*)>& call) {
        const DeviceArray<float> y(device, count);
        call(y);
        return y.host();
      };
      const auto expect = [&](const std::string& op, const std::function<double(size_t)>& value,
                              const std::function<void(float*)>& call) {
        for (size_t i = 0; i < expected.size(); ++i) {
          expected[i] = value(i);
        }
        expect_equal(what + " " + op, run(call), expected);
      };
      expect(
          "fill", [](size_t) { return 2.5; }, [&](float* y) { fill(context, count, 2.5f, y); });
      expect(
          "add", [&](size_t i) { return a[i] + b[i]; },
          [&](float* y) { add(context, count, da.get(), db.get(), y); });
      expect(
          "multiply", [&](size_t i) { return a[i] * b[i]; },
          [&](float* y) { multiply(context, count, da.get(), db.get(), y); });
      expect(
          "scale", [&](size_t i) { return 3 * a[i]; },  // y holds NaN and must not be read
          [&](float* y) { scale_add(context, count, 3.0f, da.get(), 0.0f, y); });
      expect(
          "scale_add", [&](size_t i) { return 3 * a[i] - 2 * b[i]; },
          [&](float* y) {
            scale_add(context, count, 1.0f, db.get(), 0.0f, y);
            scale_add(context, count, 3.0f, da.get(), -2.0f, y);
          });
      expect(
          "add in place", [&](size_t i) { return 2 * (a[i] + b[i]); },
          [&](float* y) {
            add(context, count, da.get(), db.get(), y);
            add(context, count, y, y, y);
          });
      std::vector<float> with_vector(a.size());
      reference::add_sample_vector<float>(c.n, c.spatial, c.channels, a.data(), v.data(), with_vector.data());
      expect(
          "add_sample_vector", [&](size_t i) { return with_vector[i]; },
          [&](float* y) { add_sample_vector(context, c.n, c.spatial, c.channels, da.get(), dv.get(), y); });
    }
  }
}

// Places aligned to one element only. Kernels go one by one there instead of by packs of four.
TEST(Elementwise, UnalignedIsTheSame) {
  for (const Device device : test_devices()) {
    if (device.type == DeviceType::cpu) {
      continue;  // its vectors begin anywhere
    }
    for (const ElementwiseCase& c : kElementwiseCases) {
      const int64_t count = c.count();
      Context context(device);
      const auto after = [](int64_t offset, std::vector<float> values) {
        values.insert(values.begin(), static_cast<size_t>(offset), kNan);
        return values;
      };
      const DeviceArray<float> v(device, random_normal(c.n * c.channels, 3)),
          gate(device, random_normal(c.n, 4)), scale(device, std::vector<float>{0.75f});
      // Offsets of a and y.
      const auto run = [&](int64_t first, int64_t last) {
        const DeviceArray<float> shifted(device, after(first, random_normal(count, 1))),
            b(device, random_normal(count, 2)), y(device, count + last);
        const float* a = shifted.get() + first;
        float* out = y.get() + last;
        std::vector<float> all;
        const auto keep = [&] {
          const std::vector<float> values = y.host();
          all.insert(all.end(), values.begin() + last, values.end());
        };
        unary_forward(context, Unary::silu, count, a, out);
        keep();
        unary_backward(context, Unary::gelu, count, a, b.get(), out);
        keep();
        add(context, count, b.get(), a, out);
        keep();
        scaled_add_forward(context, c.n, c.inner(), a, b.get(), scale.get(), gate.get(), out);
        keep();
        gate_samples(context, c.n, c.inner(), gate.get(), a, out);
        keep();
        add_sample_vector(context, c.n, c.spatial, c.channels, a, v.get(), out);
        keep();
        return all;
      };
      const std::vector<float> aligned = run(0, 0);
      const std::string what = concat(to_string(device), " ", c.name);
      expect_equal(what + " input", run(1, 0), aligned);
      expect_equal(what + " output", run(0, 3), aligned);
      expect_equal(what + " both", run(2, 2), aligned);
    }
  }
}

TEST(ScaledAdd, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const ElementwiseCase& c : kElementwiseCases) {
      for (const bool gated : {false, true}) {
        const std::string what = concat(to_string(device), " ", c.name, gated ? " gated" : "");
        const int64_t inner = c.inner();
        const std::vector<float> a = random_normal(c.count(), 1);
        std::vector<float> b = random_normal(c.count(), 2);
        const std::vector<float> dy = random_normal(c.count(), 3);
        const std::vector<float> scale{0.75f};
        std::vector<float> gate = random_normal(c.n, 4);
        if (c.n > 1) {
          gate[1] = 0.0f;  // what it gates must not be read
          if (gated) {
            std::fill(b.begin() + inner, b.begin() + 2 * inner, kNan);
          }
        }
        const auto gate_double = widen(gate);
        const auto evaluate = [&](auto zero, auto& y, auto& db, auto& dscale) {
          using T = decltype(zero);
          const std::vector<T> wa(a.begin(), a.end());
          const std::vector<T> wb(b.begin(), b.end());
          const std::vector<T> wdy(dy.begin(), dy.end());
          const std::vector<T> wg(gate.begin(), gate.end());
          y.resize(a.size());
          db.resize(a.size());
          dscale.resize(1);
          reference::scaled_add_forward<T>(c.n, inner, wa.data(), wb.data(), scale[0],
                                           gated ? wg.data() : nullptr, y.data());
          reference::scaled_add_backward<T>(c.n, inner, wb.data(), scale[0], gated ? wg.data() : nullptr,
                                            wdy.data(), db.data(), dscale.data());
        };
        std::vector<double> y_exact, db_exact, dscale_exact;
        std::vector<float> y_naive, db_naive, dscale_naive;
        evaluate(0.0, y_exact, db_exact, dscale_exact);
        evaluate(0.0f, y_naive, db_naive, dscale_naive);
        // A sum's rounding is that of its terms' magnitudes; the naive sum may happen to be luckier than
        // that.
        double magnitude = 0;
        for (size_t i = 0; i < b.size(); ++i) {
          magnitude += std::isnan(b[i]) ? 0 : std::abs(static_cast<double>(b[i]) * dy[i]);
        }
        Context context(device);
        const DeviceArray<float> da(device, a), db_in(device, b), ddy(device, dy), ds(device, scale),
            dg(device, gate);
        const ConstData gate_data = gated ? ConstData(dg.get()) : ConstData();
        const DeviceArray<float> y(device, c.count());
        scaled_add_forward(context, c.n, inner, da.get(), db_in.get(), ds.get(), gate_data, y.get());
        expect_close(what + " y", y.host(), y_exact, y_naive);
        const auto backward = [&](const std::vector<float>* start) {
          const DeviceWorkspace workspace(device, scaled_add_backward_workspace_bytes(context, c.n, inner));
          const DeviceArray<float> db(device, c.count());
          const DeviceArray<float> dscale(device, start ? *start : std::vector<float>{kNan});
          scaled_add_backward(context, c.n, inner, db_in.get(), ds.get(), gate_data, ddy.get(), db.get(),
                              dscale.get(), start ? GradMode::accumulate : GradMode::overwrite, workspace);
          std::vector<float> all = db.host();
          all.push_back(dscale.host()[0]);
          return all;
        };
        std::vector<float> gradients = backward(nullptr);
        const float dscale = gradients.back();
        gradients.pop_back();
        expect_close(what + " db", gradients, db_exact, db_naive);
        EXPECT_LE(std::abs(dscale - dscale_exact[0]), std::max(8 * 0x1p-24 * magnitude, 1e-30)) << what;
        const std::vector<float> start{2.0f};
        EXPECT_NEAR(backward(&start).back(), 2.0f + dscale, 4 * 0x1p-23 * (2 + std::abs(dscale))) << what;
        expect_same_bits(what, device, [&] { return backward(nullptr); });
      }
    }
  }
}

TEST(ScaledAdd, ReferenceGradient) {
  const std::vector<double> b = widen(random_normal(12, 1));
  const std::vector<double> dy = widen(random_normal(12, 2));
  const std::vector<double> gate{0.5, 0.0};
  std::vector<double> db(12);
  std::vector<double> dscale(1);
  reference::scaled_add_backward<double>(2, 6, b.data(), 0.75, gate.data(), dy.data(), db.data(),
                                         dscale.data());
  const auto loss = [&](const std::vector<double>& values, double scale) {
    const std::vector<double> a(12, 0.0);
    std::vector<double> y(12);
    reference::scaled_add_forward<double>(2, 6, a.data(), values.data(), scale, gate.data(), y.data());
    double total = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      total += y[i] * dy[i];
    }
    return total;
  };
  expect_gradient("db", b, db, [&](const std::vector<double>& values) { return loss(values, 0.75); });
  expect_gradient("dscale", {0.75}, dscale,
                  [&](const std::vector<double>& scale) { return loss(b, scale[0]); });
}

TEST(GateSamples, SkipsWhatIsGatedOff) {
  for (const Device device : test_devices()) {
    for (const ElementwiseCase& c : kElementwiseCases) {
      std::vector<float> x = random_integers(c.count(), 1);
      std::vector<float> gate(static_cast<size_t>(c.n), 0.0f);
      for (int64_t s = 0; s < c.n; s += 2) {
        gate[static_cast<size_t>(s)] = 3.0f;
      }
      std::vector<double> expected(x.size());
      const std::vector<double> wide_gate = widen(gate);
      reference::gate_samples<double>(c.n, c.inner(), wide_gate.data(), widen(x).data(), expected.data());
      for (size_t i = 0; i < x.size(); ++i) {
        if (gate[i / static_cast<size_t>(c.inner())] == 0.0f) {
          x[i] = kNan;
        }
      }
      Context context(device);
      const DeviceArray<float> dx(device, x), dg(device, gate);
      const auto run = [&] {
        const DeviceArray<float> y(device, c.count());
        gate_samples(context, c.n, c.inner(), dg.get(), dx.get(), y.get());
        return y.host();
      };
      expect_equal(to_string(device) + " " + c.name, run(), expected);
      expect_same_bits(to_string(device) + " " + c.name, device, run);
    }
  }
}

TEST(Elementwise, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(4);
  EXPECT_THROW(add(context, -1, x.data(), x.data(), x.data()), ShapeError);
  EXPECT_THROW(add(context, 4, x.data(), nullptr, x.data()), ShapeError);
  EXPECT_THROW(unary_forward(context, Unary::relu, 4, ConstData(x.data(), DType::bf16), x.data()),
               ShapeError);
  EXPECT_THROW(scaled_add_backward(context, 1, 4, x.data(), x.data(), nullptr, x.data(), x.data(), x.data(),
                                   GradMode::overwrite, {}),
               ShapeError);
  EXPECT_THROW(unary_forward(context, Unary::none, 4, x.data(), x.data()), ShapeError);
  EXPECT_THROW(unary_backward(context, Unary::none, 4, x.data(), x.data(), x.data()), ShapeError);
  EXPECT_THROW(dropout(context, 4, 1.5f, {}, x.data(), x.data()), ShapeError);
  EXPECT_THROW(dropout(context, 4, -0.1f, {}, x.data(), x.data()), ShapeError);
  EXPECT_THROW(dropout(context, 4, kNan, {}, x.data(), x.data()), ShapeError);
  EXPECT_THROW(dropout(context, 4, 0.5f, {}, x.data(), nullptr), ShapeError);
  EXPECT_THROW(dropout(context, 4, 0.5f, {0, 0, uint64_t{1} << 32}, x.data(), x.data()), ShapeError);
  EXPECT_THROW(dropout(context, (int64_t{1} << 34) + 1, 0.5f, {}, x.data(), x.data()), ShapeError);
  EXPECT_THROW(dropout_channels(context, -1, 1, 4, 0.5f, {}, x.data(), x.data()), ShapeError);
  EXPECT_THROW(dropout_channels(context, 1, 1, 4, 2.0f, {}, x.data(), x.data()), ShapeError);
  EXPECT_NO_THROW(dropout(context, 0, 0.5f, {}, nullptr, nullptr));
  EXPECT_NO_THROW(dropout_channels(context, 0, 1, 4, 0.5f, {}, nullptr, nullptr));
  EXPECT_NO_THROW(add(context, 0, nullptr, nullptr, nullptr));
}

}  // namespace
}  // namespace vesal::kernels::testing
