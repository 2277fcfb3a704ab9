// Batch normalisation on every device against its reference: output, statistics, running statistics and all
// gradients.
#include "kernels/batch_norm/batch_norm.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "kernels/batch_norm/batch_norm_cases.hpp"
#include "kernels/batch_norm/batch_norm_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"

namespace vesal::kernels::testing {
namespace {

template <class T>
struct Result {
  std::vector<T> y, mean, rstd, running_mean, running_var, dx, dgamma, dbeta;
};

struct Inputs {
  BatchNormParams params;
  bool affine;
  std::vector<float> x, gamma, beta, running_mean, running_var, dy;
  explicit Inputs(const BatchNormCase& c, uint64_t seed = 1)
      : params(c.params),
        affine(c.affine),
        x(random_normal(c.params.rows() * c.params.channels, seed)),
        gamma(random_normal(c.params.channels, seed + 1)),
        beta(random_normal(c.params.channels, seed + 2)),
        running_mean(random_normal(c.params.channels, seed + 3)),
        running_var(random_normal(c.params.channels, seed + 4)),
        dy(random_normal(c.params.rows() * c.params.channels, seed + 5)) {
    for (float& value : x) {
      value += c.offset;
    }
    for (float& value : running_var) {
      value = 0.5f + std::abs(value);
    }
  }
};

template <class T>
Result<T> reference_result(const Inputs& in) {
  const auto as = [](const std::vector<float>& values) {
    return std::vector<T>(values.begin(), values.end());
  };
  const std::vector<T> x = as(in.x), gamma = as(in.gamma), beta = as(in.beta), dy = as(in.dy);
  Result<T> r{std::vector<T>(x.size()),     std::vector<T>(gamma.size()), std::vector<T>(gamma.size()),
              as(in.running_mean),          as(in.running_var),           std::vector<T>(x.size()),
              std::vector<T>(gamma.size()), std::vector<T>(gamma.size())};
  const T* g = in.affine ? gamma.data() : nullptr;
  const T* b = in.affine ? beta.data() : nullptr;
  reference::batch_norm_forward<T>(in.params, x.data(), g, b, r.running_mean.data(), r.running_var.data(),
                                   r.y.data(), r.mean.data(), r.rstd.data());
  reference::batch_norm_backward<T>(in.params, x.data(), g, b, r.mean.data(), r.rstd.data(), dy.data(),
                                    r.dx.data(), in.affine ? r.dgamma.data() : nullptr,
                                    in.affine ? r.dbeta.data() : nullptr);
  return r;
}

// `start` is what dgamma and dbeta hold before they are accumulated into; none overwrites.
Result<float> device_result(Device device, const Inputs& in, const float* start = nullptr) {
  Context context(device);
  const BatchNormParams& p = in.params;
  const int64_t count = p.rows() * p.channels;
  const DeviceArray<float> x(device, in.x), gamma(device, in.gamma), beta(device, in.beta), dy(device, in.dy);
  const DeviceArray<float> running_mean(device, in.running_mean), running_var(device, in.running_var);
  const DeviceArray<float> y(device, count), mean(device, p.channels), rstd(device, p.channels);
  const DeviceArray<float> dx(device, count);
  const std::vector<float> initial(in.gamma.size(), start ? *start : NAN);
  const DeviceArray<float> dgamma(device, initial), dbeta(device, initial);
  const auto given = [&](const DeviceArray<float>& array) { return in.affine ? Data(array.get()) : Data(); };
  {
    const DeviceWorkspace workspace(device, batch_norm_workspace_bytes(context, p));
    batch_norm_forward(context, p, x.get(), given(gamma), given(beta), running_mean, running_var, y.get(),
                       mean, rstd, workspace);
  }
  const DeviceWorkspace workspace(device, batch_norm_workspace_bytes(context, p));
  batch_norm_backward(context, p, x.get(), given(gamma), given(beta), mean, rstd, dy.get(), dx.get(),
                      given(dgamma), given(dbeta), start ? GradMode::accumulate : GradMode::overwrite,
                      workspace);
  return {y.host(),           mean.host(), rstd.host(),   running_mean.host(),
          running_var.host(), dx.host(),   dgamma.host(), dbeta.host()};
}

void expect_result(const std::string& what, const Inputs& in, const Result<float>& found,
                   const Result<double>& exact, const Result<float>& naive) {
  expect_close(what + " y", found.y, exact.y, naive.y);
  expect_close(what + " mean", found.mean, exact.mean, naive.mean);
  expect_close(what + " rstd", found.rstd, exact.rstd, naive.rstd);
  expect_close(what + " running_mean", found.running_mean, exact.running_mean, naive.running_mean);
  expect_close(what + " running_var", found.running_var, exact.running_var, naive.running_var);
  expect_close(what + " dx", found.dx, exact.dx, naive.dx);
  if (in.affine) {
    expect_close(what + " dgamma", found.dgamma, exact.dgamma, naive.dgamma);
    expect_close(what + " dbeta", found.dbeta, exact.dbeta, naive.dbeta);
  }
}

std::vector<float> all_bits(const Inputs& in, const Result<float>& r) {
  std::vector<float> all = r.y;
  for (const auto* part : {&r.mean, &r.rstd, &r.running_mean, &r.running_var, &r.dx}) {
    all.insert(all.end(), part->begin(), part->end());
  }
  if (in.affine) {
    all.insert(all.end(), r.dgamma.begin(), r.dgamma.end());
    all.insert(all.end(), r.dbeta.begin(), r.dbeta.end());
  }
  return all;
}

TEST(BatchNorm, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const BatchNormCase& c : kBatchNormCases) {
      const std::string what = to_string(device) + " " + c.name;
      const Inputs in(c);
      expect_result(what, in, device_result(device, in), reference_result<double>(in),
                    reference_result<float>(in));
      expect_same_bits(what, device, [&] { return all_bits(in, device_result(device, in)); });
    }
  }
}

TEST(BatchNorm, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const BatchNormCase c = random_batch_norm_case(random);
    SCOPED_TRACE(c.name);
    Inputs in(c, 10 + static_cast<uint64_t>(random.below(1 << 20)));
    // An output of order 1 in every case: the error rule counts in places of the largest.
    in.beta[0] = 1.5f + std::abs(in.beta[0]);
    const Result<double> exact = reference_result<double>(in);
    Result<float> naive = reference_result<float>(in);
    // Two or three rows leave little of dx: a single float32 evaluation may be exact by luck.
    for (int trial = 0; trial < 6; ++trial) {
      Inputs moved = in;
      moved.x = moved_by_one_ulp(in.x, random);
      moved.dy = moved_by_one_ulp(in.dy, random);
      const Result<float> other = reference_result<float>(moved);
      keep_worse(naive.y, other.y, exact.y);
      keep_worse(naive.mean, other.mean, exact.mean);
      keep_worse(naive.rstd, other.rstd, exact.rstd);
      keep_worse(naive.running_mean, other.running_mean, exact.running_mean);
      keep_worse(naive.running_var, other.running_var, exact.running_var);
      keep_worse(naive.dx, other.dx, exact.dx);
      keep_worse(naive.dgamma, other.dgamma, exact.dgamma);
      keep_worse(naive.dbeta, other.dbeta, exact.dbeta);
    }
    for (const Device device : test_devices()) {
      expect_result(to_string(device), in, device_result(device, in), exact, naive);
    }
  });
}

// A module that two branches share sees both in one step, as in the original network's fusion block.
TEST(BatchNorm, EveryCallUpdatesTheRunningStatistics) {
  for (const Device device : test_devices()) {
    const Inputs first({"first", {.n = 2, .spatial = 40, .channels = 5}}, 1);
    const Inputs second({"second", {.n = 3, .spatial = 20, .channels = 5}}, 50);
    const auto run = [&](auto zero) {
      using T = decltype(zero);
      std::vector<T> mean(first.running_mean.begin(), first.running_mean.end());
      std::vector<T> var(first.running_var.begin(), first.running_var.end());
      for (const Inputs* in : {&first, &second}) {
        const std::vector<T> x(in->x.begin(), in->x.end());
        std::vector<T> y(x.size()), m(5), r(5);
        reference::batch_norm_forward<T>(in->params, x.data(), nullptr, nullptr, mean.data(), var.data(),
                                         y.data(), m.data(), r.data());
      }
      return std::pair(mean, var);
    };
    Context context(device);
    const DeviceArray<float> running_mean(device, first.running_mean), running_var(device, first.running_var);
    for (const Inputs* in : {&first, &second}) {
      const DeviceArray<float> x(device, in->x), y(device, static_cast<int64_t>(in->x.size()));
      const DeviceArray<float> mean(device, 5), rstd(device, 5);
      const DeviceWorkspace workspace(device, batch_norm_workspace_bytes(context, in->params));
      batch_norm_forward(context, in->params, x.get(), nullptr, nullptr, running_mean, running_var, y.get(),
                         mean, rstd, workspace);
    }
    const auto [mean_exact, var_exact] = run(0.0);
    const auto [mean_naive, var_naive] = run(0.0f);
    expect_close(to_string(device) + " running_mean", running_mean.host(), mean_exact, mean_naive);
    expect_close(to_string(device) + " running_var", running_var.host(), var_exact, var_naive);
  }
}

TEST(BatchNorm, TrainsWithoutAndEvaluatesWithoutChangingRunningStatistics) {
  for (const Device device : test_devices()) {
    Inputs in(kBatchNormCases[4]);
    const Result<float> tracked = device_result(device, in);
    Context context(device);
    const DeviceArray<float> x(device, in.x), gamma(device, in.gamma), beta(device, in.beta);
    const DeviceArray<float> y(device, static_cast<int64_t>(in.x.size()));
    const DeviceArray<float> mean(device, in.params.channels), rstd(device, in.params.channels);
    const DeviceWorkspace workspace(device, batch_norm_workspace_bytes(context, in.params));
    batch_norm_forward(context, in.params, x.get(), gamma.get(), beta.get(), nullptr, nullptr, y.get(), mean,
                       rstd, workspace);
    expect_equal(to_string(device), y.host(), tracked.y);
    in.params.training = false;
    expect_equal(to_string(device), device_result(device, in).running_mean, in.running_mean);
    expect_equal(to_string(device), device_result(device, in).running_var, in.running_var);
  }
}

TEST(BatchNorm, AccumulatesGradients) {
  for (const Device device : test_devices()) {
    const Inputs in(kBatchNormCases[4]);
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

// A naive E[x^2] - E[x]^2 in float32 has no correct digit left here.
TEST(BatchNorm, NoCancellation) {
  for (const Device device : test_devices()) {
    Inputs in({"far", {.n = 2, .spatial = 500, .channels = 3, .momentum = 1.0f}});
    for (float& value : in.x) {
      value = 10000.0f + (value > 0 ? 1.0f : -1.0f);
    }
    const Result<double> exact = reference_result<double>(in);
    const Result<float> found = device_result(device, in);
    for (size_t c = 0; c < 3; ++c) {
      EXPECT_NEAR(found.rstd[c], exact.rstd[c], 1e-5) << to_string(device);
      EXPECT_NEAR(found.running_var[c], exact.running_var[c], 1e-5) << to_string(device);
    }
  }
}

TEST(BatchNorm, AnEmptyBatchEvaluates) {
  for (const Device device : test_devices()) {
    const Inputs in({"empty", {.n = 0, .spatial = 4, .channels = 3, .training = false}});
    const Result<float> found = device_result(device, in);
    expect_equal(to_string(device), found.mean, in.running_mean);
    expect_equal(to_string(device), found.dgamma, std::vector<float>(3, 0.0f));
  }
}

// In training no statistic is written or moved, and sums over nothing are 0.
TEST(BatchNorm, AnEmptyBatchTrains) {
  for (const Device device : test_devices()) {
    const Inputs in({"empty", {.n = 2, .spatial = 0, .channels = 3}});
    const Result<float> found = device_result(device, in);
    expect_equal(to_string(device), found.running_mean, in.running_mean);
    expect_equal(to_string(device), found.running_var, in.running_var);
    expect_equal(to_string(device), found.dgamma, std::vector<float>(3, 0.0f));
    expect_equal(to_string(device), found.dbeta, std::vector<float>(3, 0.0f));
  }
}

TEST(BatchNorm, ReferenceGradients) {
  for (const bool training : {true, false}) {
    for (const bool affine : {true, false}) {
      const Inputs in({"tiny",
                       {.n = 2,
                        .spatial = 4,
                        .channels = 3,
                        .training = training,
                        .activation = affine ? Activation::silu : Activation::gelu},
                       affine});
      const Result<double> r = reference_result<double>(in);
      const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gamma,
                            const std::vector<double>& beta) {
        std::vector<double> y(x.size()), mean(3), rstd(3);
        std::vector<double> running_mean = widen(in.running_mean), running_var = widen(in.running_var);
        reference::batch_norm_forward<double>(in.params, x.data(), affine ? gamma.data() : nullptr,
                                              affine ? beta.data() : nullptr, running_mean.data(),
                                              running_var.data(), y.data(), mean.data(), rstd.data());
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

TEST(BatchNorm, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(64);
  float* p = x.data();
  const Workspace workspace{p, 256};
  const auto forward = [&](const BatchNormParams& params, float* beta, float* running_mean,
                           float* running_var, const Workspace& given) {
    batch_norm_forward(context, params, p, p, beta, running_mean, running_var, p, p, p, given);
  };
  EXPECT_THROW(forward({.n = 1, .spatial = 1}, p, p, p, workspace), ShapeError);  // no variance of one value
  EXPECT_THROW(forward({.spatial = 4, .activation = Activation::sigmoid}, p, p, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4, .momentum = 1.5f}, p, p, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4, .channels = 0}, p, p, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4}, nullptr, p, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4}, p, p, nullptr, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4, .training = false}, p, nullptr, nullptr, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4}, p, p, p, {}), ShapeError);
  EXPECT_THROW(batch_norm_backward(context, {.spatial = 4}, p, p, p, p, p, p, p, p, nullptr,
                                   GradMode::overwrite, workspace),
               ShapeError);
}

// For tests/oracle/norms.py. The second forward call takes dy as its input: two updates of one module.
TEST(BatchNorm, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/batch.txt");
  int number = 0;
  for (const BatchNormCase& c : kBatchNormCases) {
    if (c.offset != 0.0f) {
      continue;  // a mean far from 0 leaves float32 fewer digits than the oracle asks for
    }
    const Inputs in(c);
    const BatchNormParams& p = in.params;
    const Result<float> r = device_result({DeviceType::cpu, 0}, in);
    Inputs again = in;
    again.x = in.dy;
    again.running_mean = r.running_mean;
    again.running_var = r.running_var;
    const Result<float> twice = device_result({DeviceType::cpu, 0}, again);
    index << p.n << ' ' << p.spatial << ' ' << p.channels << ' ' << p.training << ' ' << p.momentum << ' '
          << static_cast<int>(p.activation) << ' ' << c.affine << ' ' << c.name << '\n';
    write_arrays(concat(folder, "/batch", number++, ".f32"),
                 {&in.x, &in.gamma, &in.beta, &in.running_mean, &in.running_var, &in.dy, &r.y, &r.dx,
                  &r.dgamma, &r.dbeta, &twice.running_mean, &twice.running_var});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
