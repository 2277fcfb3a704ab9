// Instance normalisation on every device against its reference: output, statistics and all gradients.
#include "kernels/instance_norm/instance_norm.hpp"

#include <cmath>

#include "kernels/instance_norm/instance_norm_cases.hpp"
#include "kernels/instance_norm/instance_norm_ref.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::testing {
namespace {

template <class T>
struct Result {
  std::vector<T> y, mean, rstd, dx, dgamma, dbeta;
};

struct Inputs {
  InstanceNormParams params;
  bool affine;
  std::vector<float> x, gamma, beta, dy;
  explicit Inputs(const InstanceNormCase& c)
      : params(c.params),
        affine(c.affine),
        x(random_normal(c.params.n * c.params.spatial * c.params.channels, 1)),
        gamma(random_normal(c.params.channels, 2)),
        beta(random_normal(c.params.channels, 3)),
        dy(random_normal(c.params.n * c.params.spatial * c.params.channels, 4)) {
    for (float& value : x) {
      value += c.offset;
    }
  }
};

template <class T>
Result<T> reference_result(const Inputs& in) {
  const std::vector<T> x(in.x.begin(), in.x.end()), gamma(in.gamma.begin(), in.gamma.end()),
      beta(in.beta.begin(), in.beta.end()), dy(in.dy.begin(), in.dy.end());
  const auto statistics = static_cast<size_t>(in.params.n * in.params.channels);
  Result<T> r{std::vector<T>(x.size()), std::vector<T>(statistics),   std::vector<T>(statistics),
              std::vector<T>(x.size()), std::vector<T>(gamma.size()), std::vector<T>(gamma.size())};
  const T* g = in.affine ? gamma.data() : nullptr;
  const T* b = in.affine ? beta.data() : nullptr;
  reference::instance_norm_forward<T>(in.params, x.data(), g, b, r.y.data(), r.mean.data(), r.rstd.data());
  reference::instance_norm_backward<T>(in.params, x.data(), g, b, r.mean.data(), r.rstd.data(), dy.data(),
                                       r.dx.data(), in.affine ? r.dgamma.data() : nullptr,
                                       in.affine ? r.dbeta.data() : nullptr);
  return r;
}

// `start` is what dgamma and dbeta hold before they are accumulated into; none overwrites.
Result<float> device_result(Device device, const Inputs& in, const float* start = nullptr) {
  Context context(device);
  const InstanceNormParams& p = in.params;
  const int64_t count = p.n * p.spatial * p.channels;
  const DeviceArray<float> x(device, in.x), gamma(device, in.gamma), beta(device, in.beta), dy(device, in.dy);
  const DeviceArray<float> y(device, count), mean(device, p.n * p.channels), rstd(device, p.n * p.channels);
  const DeviceArray<float> dx(device, count);
  const std::vector<float> initial(in.gamma.size(), start ? *start : NAN);
  const DeviceArray<float> dgamma(device, initial), dbeta(device, initial);
  const auto given = [&](const DeviceArray<float>& array) { return in.affine ? Data(array.get()) : Data(); };
  {
    const DeviceWorkspace workspace(device, instance_norm_workspace_bytes(context, p));
    instance_norm_forward(context, p, x.get(), given(gamma), given(beta), y.get(), mean, rstd, workspace);
  }
  const DeviceWorkspace workspace(device, instance_norm_workspace_bytes(context, p));
  instance_norm_backward(context, p, x.get(), given(gamma), given(beta), mean, rstd, dy.get(), dx.get(),
                         given(dgamma), given(dbeta), start ? GradMode::accumulate : GradMode::overwrite,
                         workspace);
  return {y.host(), mean.host(), rstd.host(), dx.host(), dgamma.host(), dbeta.host()};
}

TEST(InstanceNorm, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const InstanceNormCase& c : kInstanceNormCases) {
      const std::string what = to_string(device) + " " + c.name;
      const Inputs in(c);
      const Result<double> exact = reference_result<double>(in);
      const Result<float> naive = reference_result<float>(in);
      const Result<float> found = device_result(device, in);
      expect_close(what + " y", found.y, exact.y, naive.y);
      expect_close(what + " mean", found.mean, exact.mean, naive.mean);
      expect_close(what + " rstd", found.rstd, exact.rstd, naive.rstd);
      expect_close(what + " dx", found.dx, exact.dx, naive.dx);
      if (c.affine) {
        expect_close(what + " dgamma", found.dgamma, exact.dgamma, naive.dgamma);
        expect_close(what + " dbeta", found.dbeta, exact.dbeta, naive.dbeta);
      }
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

TEST(InstanceNorm, AccumulatesGradients) {
  for (const Device device : test_devices()) {
    const Inputs in(kInstanceNormCases[1]);
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
TEST(InstanceNorm, NoCancellation) {
  for (const Device device : test_devices()) {
    Inputs in({"far", {.n = 1, .spatial = 1000, .channels = 3}});
    for (float& value : in.x) {
      value = 10000.0f + (value > 0 ? 1.0f : -1.0f);
    }
    const Result<double> exact = reference_result<double>(in);
    const Result<float> found = device_result(device, in);
    for (size_t c = 0; c < 3; ++c) {
      EXPECT_NEAR(found.rstd[c], exact.rstd[c], 1e-5) << to_string(device);
    }
  }
}

TEST(InstanceNorm, ReferenceGradients) {
  for (const bool affine : {true, false}) {
    Inputs in(
        {"tiny",
         {.n = 2, .spatial = 4, .channels = 3, .activation = Activation::leaky_relu, .negative_slope = 0.3f},
         affine});
    const Result<double> r = reference_result<double>(in);
    const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gamma,
                          const std::vector<double>& beta) {
      std::vector<double> y(x.size()), mean(6), rstd(6);
      reference::instance_norm_forward<double>(in.params, x.data(), affine ? gamma.data() : nullptr,
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

TEST(InstanceNorm, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(64);
  float* p = x.data();
  const Workspace workspace{p, 256};
  EXPECT_THROW(instance_norm_forward(context, {.spatial = 4, .activation = Activation::gelu}, p, p, p, p, p,
                                     p, workspace),
               ShapeError);
  EXPECT_THROW(instance_norm_forward(context, {.spatial = 0}, p, p, p, p, p, p, workspace), ShapeError);
  EXPECT_THROW(instance_norm_forward(context, {.spatial = 4}, p, p, nullptr, p, p, p, workspace), ShapeError);
  EXPECT_THROW(instance_norm_forward(context, {.spatial = 4}, p, p, p, p, p, p, {}), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
