// Layer normalisation on every device against its reference: output, statistics and all gradients.
#include "kernels/layer_norm/layer_norm.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "kernels/layer_norm/layer_norm_cases.hpp"
#include "kernels/layer_norm/layer_norm_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"

namespace vesal::kernels::testing {
namespace {

template <class T>
struct Result {
  std::vector<T> y, mean, rstd, dx, dgamma, dbeta;
};

struct Inputs {
  LayerNormParams params;
  bool affine;
  std::vector<float> x, gamma, beta, dy;
  explicit Inputs(const LayerNormCase& c, uint64_t seed = 1)
      : params{.rows = c.rows, .channels = c.channels, .activation = c.activation},
        affine(c.affine),
        x(random_normal(c.rows * c.channels, seed)),
        gamma(random_normal(c.channels, seed + 1)),
        beta(random_normal(c.channels, seed + 2)),
        dy(random_normal(c.rows * c.channels, seed + 3)) {
    for (float& value : x) {
      value += c.offset;
    }
  }
};

template <class T>
Result<T> reference_result(const Inputs& in) {
  const std::vector<T> x(in.x.begin(), in.x.end()), gamma(in.gamma.begin(), in.gamma.end()),
      beta(in.beta.begin(), in.beta.end()), dy(in.dy.begin(), in.dy.end());
  const auto rows = static_cast<size_t>(in.params.rows);
  Result<T> r{std::vector<T>(x.size()), std::vector<T>(rows),         std::vector<T>(rows),
              std::vector<T>(x.size()), std::vector<T>(gamma.size()), std::vector<T>(gamma.size())};
  const T* g = in.affine ? gamma.data() : nullptr;
  const T* b = in.affine ? beta.data() : nullptr;
  reference::layer_norm_forward<T>(in.params, x.data(), g, b, r.y.data(), r.mean.data(), r.rstd.data());
  reference::layer_norm_backward<T>(in.params, x.data(), g, b, r.mean.data(), r.rstd.data(), dy.data(),
                                    r.dx.data(), in.affine ? r.dgamma.data() : nullptr,
                                    in.affine ? r.dbeta.data() : nullptr);
  return r;
}

// `start` is what dgamma and dbeta hold before they are accumulated into; none overwrites.
Result<float> device_result(Device device, const Inputs& in, const float* start = nullptr) {
  Context context(device);
  const LayerNormParams& p = in.params;
  const DeviceArray<float> x(device, in.x), gamma(device, in.gamma), beta(device, in.beta), dy(device, in.dy);
  const DeviceArray<float> y(device, p.rows * p.channels), mean(device, p.rows), rstd(device, p.rows);
  const DeviceArray<float> dx(device, p.rows * p.channels);
  const std::vector<float> initial(in.gamma.size(), start ? *start : NAN);
  const DeviceArray<float> dgamma(device, initial), dbeta(device, initial);
  const auto given = [&](const DeviceArray<float>& array) { return in.affine ? Data(array.get()) : Data(); };
  layer_norm_forward(context, p, x.get(), given(gamma), given(beta), y.get(), mean, rstd);
  const DeviceWorkspace workspace(device, layer_norm_backward_workspace_bytes(context, p));
  layer_norm_backward(context, p, x.get(), given(gamma), given(beta), mean, rstd, dy.get(), dx.get(),
                      given(dgamma), given(dbeta), start ? GradMode::accumulate : GradMode::overwrite,
                      workspace);
  return {y.host(), mean.host(), rstd.host(), dx.host(), dgamma.host(), dbeta.host()};
}

void expect_result(const std::string& what, const Inputs& in, const Result<float>& found,
                   const Result<double>& exact, const Result<float>& naive) {
  expect_close(what + " y", found.y, exact.y, naive.y);
  expect_close(what + " mean", found.mean, exact.mean, naive.mean);
  expect_close(what + " rstd", found.rstd, exact.rstd, naive.rstd);
  expect_close(what + " dx", found.dx, exact.dx, naive.dx);
  if (in.affine) {
    expect_close(what + " dgamma", found.dgamma, exact.dgamma, naive.dgamma);
    expect_close(what + " dbeta", found.dbeta, exact.dbeta, naive.dbeta);
  }
}

TEST(LayerNorm, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const LayerNormCase& c : kLayerNormCases) {
      const std::string what = to_string(device) + " " + c.name;
      const Inputs in(c);
      expect_result(what, in, device_result(device, in), reference_result<double>(in),
                    reference_result<float>(in));
      expect_same_bits(what, device, [&] {
        const Result<float> r = device_result(device, in);
        std::vector<float> all = r.y;
        for (const auto* part : {&r.mean, &r.rstd, &r.dx}) {
          all.insert(all.end(), part->begin(), part->end());
        }
        if (c.affine) {
          all.insert(all.end(), r.dgamma.begin(), r.dgamma.end());
          all.insert(all.end(), r.dbeta.begin(), r.dbeta.end());
        }
        return all;
      });
    }
  }
}

TEST(LayerNorm, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const LayerNormCase c = random_layer_norm_case(random);
    SCOPED_TRACE(c.name);
    Inputs in(c, 10 + static_cast<uint64_t>(random.below(1 << 20)));
    // An output of order 1 in every case: the error rule counts in places of the largest.
    in.beta[0] = 1.5f + std::abs(in.beta[0]);
    const Result<double> exact = reference_result<double>(in);
    Result<float> naive = reference_result<float>(in);
    // Two or three elements leave little of dx: a single float32 evaluation may be exact by luck.
    for (int trial = 0; trial < 6; ++trial) {
      Inputs moved = in;
      moved.x = moved_by_one_ulp(in.x, random);
      moved.dy = moved_by_one_ulp(in.dy, random);
      const Result<float> other = reference_result<float>(moved);
      keep_worse(naive.y, other.y, exact.y);
      keep_worse(naive.mean, other.mean, exact.mean);
      keep_worse(naive.rstd, other.rstd, exact.rstd);
      keep_worse(naive.dx, other.dx, exact.dx);
      keep_worse(naive.dgamma, other.dgamma, exact.dgamma);
      keep_worse(naive.dbeta, other.dbeta, exact.dbeta);
    }
    for (const Device device : test_devices()) {
      expect_result(to_string(device), in, device_result(device, in), exact, naive);
    }
  });
}

// Sums over no rows are 0, and leave what is accumulated into as it was.
TEST(LayerNorm, NoRows) {
  for (const Device device : test_devices()) {
    const Inputs in({"no_rows", 0, 5});
    const float start = 3.0f;
    EXPECT_EQ(device_result(device, in).dgamma, std::vector<float>(5, 0.0f));
    EXPECT_EQ(device_result(device, in).dbeta, std::vector<float>(5, 0.0f));
    EXPECT_EQ(device_result(device, in, &start).dgamma, std::vector<float>(5, 3.0f));
  }
}

TEST(LayerNorm, AccumulatesGradients) {
  for (const Device device : test_devices()) {
    const Inputs in(kLayerNormCases[5]);
    const float start = 3.0f;
    const Result<float> plain = device_result(device, in);
    const Result<float> added = device_result(device, in, &start);
    for (size_t c = 0; c < plain.dgamma.size(); ++c) {
      EXPECT_NEAR(added.dgamma[c], plain.dgamma[c] + start,
                  4 * 0x1p-23 * (std::abs(plain.dgamma[c]) + start));
      EXPECT_NEAR(added.dbeta[c], plain.dbeta[c] + start, 4 * 0x1p-23 * (std::abs(plain.dbeta[c]) + start));
    }
  }
}

TEST(LayerNorm, ForwardWithoutStatistics) {
  for (const Device device : test_devices()) {
    const Inputs in(kLayerNormCases[2]);
    Context context(device);
    const DeviceArray<float> x(device, in.x), gamma(device, in.gamma), beta(device, in.beta);
    const DeviceArray<float> y(device, static_cast<int64_t>(in.x.size()));
    layer_norm_forward(context, in.params, x.get(), gamma.get(), beta.get(), y.get(), nullptr, nullptr);
    expect_equal(to_string(device), y.host(), device_result(device, in).y);
  }
}

TEST(LayerNorm, ReferenceGradients) {
  for (const Activation activation : {Activation::none, Activation::leaky_relu, Activation::silu}) {
    for (const bool affine : {true, false}) {
      const Inputs in({"tiny", 3, 5, 0.0f, activation, affine});
      const Result<double> r = reference_result<double>(in);
      const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gamma,
                            const std::vector<double>& beta) {
        std::vector<double> y(x.size()), mean(3), rstd(3);
        reference::layer_norm_forward<double>(in.params, x.data(), affine ? gamma.data() : nullptr,
                                              affine ? beta.data() : nullptr, y.data(), mean.data(),
                                              rstd.data());
        double total = 0;
        for (size_t i = 0; i < y.size(); ++i) {
          total += y[i] * in.dy[i];
        }
        return total;
      };
      const std::vector<double> x = widen(in.x), gamma = widen(in.gamma), beta = widen(in.beta);
      expect_gradient("dx", x, r.dx, [&](const std::vector<double>& v) { return loss(v, gamma, beta); });
      if (affine) {
        expect_gradient("dgamma", gamma, r.dgamma,
                        [&](const std::vector<double>& v) { return loss(x, v, beta); });
        expect_gradient("dbeta", beta, r.dbeta,
                        [&](const std::vector<double>& v) { return loss(x, gamma, v); });
      }
    }
  }
}

TEST(LayerNorm, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(4);
  float* p = x.data();
  EXPECT_THROW(layer_norm_forward(context, {.rows = 1, .channels = 0}, p, p, p, p, nullptr, nullptr),
               ShapeError);
  EXPECT_THROW(layer_norm_forward(context, {.rows = 1, .channels = 4}, p, p, p, p, p, nullptr), ShapeError);
  EXPECT_THROW(layer_norm_forward(context, {.rows = 1, .channels = 4}, p, p, nullptr, p, p, p), ShapeError);
  EXPECT_THROW(layer_norm_forward(context, {.rows = 1, .channels = 4, .activation = Activation::hardswish}, p,
                                  p, p, p, p, p),
               ShapeError);
  EXPECT_THROW(layer_norm_backward(context, {.rows = 1, .channels = 4}, p, p, p, p, p, p, p, p, p,
                                   GradMode::overwrite, {}),
               ShapeError);
  EXPECT_THROW(layer_norm_backward(context, {.rows = 1, .channels = 4}, p, p, p, p, p, p, p, nullptr, p,
                                   GradMode::overwrite, {p, 64}),
               ShapeError);
}

// For tests/oracle/norms.py.
TEST(LayerNorm, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/layer.txt");
  int number = 0;
  for (const LayerNormCase& c : kLayerNormCases) {
    if (c.offset != 0.0f || c.rows == 0) {
      continue;  // a mean far from 0 leaves float32 fewer digits than the oracle asks for
    }
    const Inputs in(c);
    const Result<float> r = device_result({DeviceType::cpu, 0}, in);
    index << c.rows << ' ' << c.channels << ' ' << static_cast<int>(c.activation) << ' ' << c.affine << ' '
          << c.name << '\n';
    write_arrays(concat(folder, "/layer", number++, ".f32"),
                 {&in.x, &in.gamma, &in.beta, &in.dy, &r.y, &r.dx, &r.dgamma, &r.dbeta});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
