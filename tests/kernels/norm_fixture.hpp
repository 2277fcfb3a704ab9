// What the tests of normalisations without running statistics share: inputs, the reference's and a device's
// results, and their comparison. `Family` names the family's Params and Case and its functions, and says what
// params a case has, how many elements and how many statistics.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"

namespace vesal::kernels::testing {

template <class T>
struct NormResult {
  std::vector<T> y, mean, rstd, dx, dgamma, dbeta;
};

template <class Family>
struct NormInputs {
  typename Family::Params params;
  bool affine;
  std::vector<float> x, gamma, beta, dy;
  explicit NormInputs(const typename Family::Case& c, uint64_t seed = 1)
      : params(Family::params(c)),
        affine(c.affine),
        x(random_normal(Family::elements(params), seed)),
        gamma(random_normal(params.channels, seed + 1)),
        beta(random_normal(params.channels, seed + 2)),
        dy(random_normal(Family::elements(params), seed + 3)) {
    for (float& value : x) {
      value += c.offset;
    }
  }
};

template <class T, class Family>
NormResult<T> reference_result(const NormInputs<Family>& in) {
  const std::vector<T> x(in.x.begin(), in.x.end()), gamma(in.gamma.begin(), in.gamma.end()),
      beta(in.beta.begin(), in.beta.end()), dy(in.dy.begin(), in.dy.end());
  const auto statistics = static_cast<size_t>(Family::statistics(in.params));
  NormResult<T> r{std::vector<T>(x.size()), std::vector<T>(statistics),   std::vector<T>(statistics),
                  std::vector<T>(x.size()), std::vector<T>(gamma.size()), std::vector<T>(gamma.size())};
  const T* g = in.affine ? gamma.data() : nullptr;
  const T* b = in.affine ? beta.data() : nullptr;
  Family::reference_forward(in.params, x.data(), g, b, r.y.data(), r.mean.data(), r.rstd.data());
  Family::reference_backward(in.params, x.data(), g, b, static_cast<const T*>(r.mean.data()),
                             static_cast<const T*>(r.rstd.data()), dy.data(), r.dx.data(),
                             in.affine ? r.dgamma.data() : nullptr, in.affine ? r.dbeta.data() : nullptr);
  return r;
}

// `start` is what dgamma and dbeta hold before they are accumulated into; none overwrites.
template <class Family>
NormResult<float> device_result(Device device, const NormInputs<Family>& in, const float* start = nullptr) {
  Context context(device);
  const auto& p = in.params;
  const int64_t count = Family::elements(p);
  const DeviceArray<float> x(device, in.x), gamma(device, in.gamma), beta(device, in.beta), dy(device, in.dy);
  const DeviceArray<float> y(device, count), mean(device, Family::statistics(p)),
      rstd(device, Family::statistics(p));
  const DeviceArray<float> dx(device, count);
  const std::vector<float> initial(in.gamma.size(), start ? *start : NAN);
  const DeviceArray<float> dgamma(device, initial), dbeta(device, initial);
  const auto given = [&](const DeviceArray<float>& array) { return in.affine ? Data(array.get()) : Data(); };
  {
    const DeviceWorkspace workspace(device, Family::workspace_bytes(context, p));
    Family::forward(context, p, x.get(), given(gamma), given(beta), y.get(), mean, rstd, workspace);
  }
  const DeviceWorkspace workspace(device, Family::workspace_bytes(context, p));
  Family::backward(context, p, x.get(), given(gamma), given(beta), mean, rstd, dy.get(), dx.get(),
                   given(dgamma), given(dbeta), start ? GradMode::accumulate : GradMode::overwrite,
                   workspace);
  return {y.host(), mean.host(), rstd.host(), dx.host(), dgamma.host(), dbeta.host()};
}

template <class Family>
void expect_result(const std::string& what, const NormInputs<Family>& in, const NormResult<float>& found,
                   const NormResult<double>& exact, const NormResult<float>& naive) {
  expect_close(what + " y", found.y, exact.y, naive.y);
  expect_close(what + " mean", found.mean, exact.mean, naive.mean);
  expect_close(what + " rstd", found.rstd, exact.rstd, naive.rstd);
  expect_close(what + " dx", found.dx, exact.dx, naive.dx);
  if (in.affine) {
    expect_close(what + " dgamma", found.dgamma, exact.dgamma, naive.dgamma);
    expect_close(what + " dbeta", found.dbeta, exact.dbeta, naive.dbeta);
  }
}

// Every case on every device against the reference, and with the same bits each time.
template <class Family>
void expect_cases_match(const std::vector<typename Family::Case>& cases) {
  for (const Device device : test_devices()) {
    for (const typename Family::Case& c : cases) {
      const std::string what = to_string(device) + " " + c.name;
      const NormInputs<Family> in(c);
      expect_result(what, in, device_result(device, in), reference_result<double>(in),
                    reference_result<float>(in));
      expect_same_bits(what, device, [&] {
        const NormResult<float> r = device_result(device, in);
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

template <class Family>
void expect_accumulated_gradients(const typename Family::Case& c) {
  for (const Device device : test_devices()) {
    const NormInputs<Family> in(c);
    const float start = 3.0f;
    const NormResult<float> plain = device_result(device, in);
    const NormResult<float> added = device_result(device, in, &start);
    for (size_t i = 0; i < plain.dgamma.size(); ++i) {
      EXPECT_NEAR(added.dgamma[i], plain.dgamma[i] + start,
                  4 * 0x1p-23 * (std::abs(plain.dgamma[i]) + start));
      EXPECT_NEAR(added.dbeta[i], plain.dbeta[i] + start, 4 * 0x1p-23 * (std::abs(plain.dbeta[i]) + start));
    }
  }
}

// A case drawn at random, on every device against the reference.
template <class Family>
void expect_random_case_matches(const typename Family::Case& c, RandomStream& random) {
  SCOPED_TRACE(c.name);
  NormInputs<Family> in(c, 10 + static_cast<uint64_t>(random.below(1 << 20)));
  // An output of order 1 in every case: the error rule counts in places of the largest.
  in.beta[0] = 1.5f + std::abs(in.beta[0]);
  const NormResult<double> exact = reference_result<double>(in);
  NormResult<float> naive = reference_result<float>(in);
  // Two or three elements leave little of dx: a single float32 evaluation may be exact by luck.
  for (int trial = 0; trial < 6; ++trial) {
    NormInputs<Family> moved = in;
    moved.x = moved_by_one_ulp(in.x, random);
    moved.dy = moved_by_one_ulp(in.dy, random);
    const NormResult<float> other = reference_result<float>(moved);
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
}

// The reference's own gradients against differences of its forward pass.
template <class Family>
void expect_reference_gradients(const typename Family::Case& c) {
  const NormInputs<Family> in(c);
  const NormResult<double> r = reference_result<double>(in);
  const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gamma,
                        const std::vector<double>& beta) {
    std::vector<double> y(x.size()), mean(r.mean.size()), rstd(r.mean.size());
    Family::reference_forward(in.params, x.data(), in.affine ? gamma.data() : nullptr,
                              in.affine ? beta.data() : nullptr, y.data(), mean.data(), rstd.data());
    double total = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      total += y[i] * in.dy[i];
    }
    return total;
  };
  const std::vector<double> x = widen(in.x), gamma = widen(in.gamma), beta = widen(in.beta);
  expect_gradient("dx", x, r.dx, [&](const std::vector<double>& v) { return loss(v, gamma, beta); });
  if (in.affine) {
    expect_gradient("dgamma", gamma, r.dgamma,
                    [&](const std::vector<double>& v) { return loss(x, v, beta); });
    expect_gradient("dbeta", beta, r.dbeta, [&](const std::vector<double>& v) { return loss(x, gamma, v); });
  }
}

// Sums over nothing are 0, and leave what is accumulated into as it was.
template <class Family>
void expect_nothing_from_nothing(const typename Family::Case& c) {
  for (const Device device : test_devices()) {
    const NormInputs<Family> in(c);
    const NormResult<float> found = device_result(device, in);
    EXPECT_TRUE(found.y.empty() && found.dx.empty());
    const std::vector<float> zeros(in.gamma.size(), 0.0f);
    expect_equal(to_string(device) + " dgamma", found.dgamma, zeros);
    expect_equal(to_string(device) + " dbeta", found.dbeta, zeros);
    const float start = 3.0f;
    const NormResult<float> added = device_result(device, in, &start);
    const std::vector<float> threes(in.gamma.size(), start);
    expect_equal(to_string(device) + " dgamma", added.dgamma, threes);
    expect_equal(to_string(device) + " dbeta", added.dbeta, threes);
  }
}

}  // namespace vesal::kernels::testing
