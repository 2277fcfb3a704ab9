// Layer normalisation on every device against its reference: output, statistics and all gradients.
#include "kernels/layer_norm/layer_norm.hpp"

#include <cmath>

#include "kernels/layer_norm/layer_norm_cases.hpp"
#include "kernels/layer_norm/layer_norm_ref.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::testing {
namespace {

template <class T>
struct Result {
  std::vector<T> y, mean, rstd, dx, dgamma, dbeta;
};

struct Inputs {
  LayerNormParams params;
  std::vector<float> x, gamma, beta, dy;
  explicit Inputs(const LayerNormCase& c)
      : params{.rows = c.rows, .channels = c.channels},
        x(random_normal(c.rows * c.channels, 1)),
        gamma(random_normal(c.channels, 2)),
        beta(random_normal(c.channels, 3)),
        dy(random_normal(c.rows * c.channels, 4)) {
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
  reference::layer_norm_forward<T>(in.params, x.data(), gamma.data(), beta.data(), r.y.data(), r.mean.data(),
                                   r.rstd.data());
  reference::layer_norm_backward<T>(in.params, x.data(), gamma.data(), r.mean.data(), r.rstd.data(),
                                    dy.data(), r.dx.data(), r.dgamma.data(), r.dbeta.data());
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
  layer_norm_forward(context, p, x.get(), gamma.get(), beta.get(), y.get(), mean, rstd);
  const DeviceWorkspace workspace(device, layer_norm_backward_workspace_bytes(context, p));
  layer_norm_backward(context, p, x.get(), gamma.get(), mean, rstd, dy.get(), dx.get(), dgamma.get(),
                      dbeta.get(), start ? GradMode::accumulate : GradMode::overwrite, workspace);
  return {y.host(), mean.host(), rstd.host(), dx.host(), dgamma.host(), dbeta.host()};
}

TEST(LayerNorm, MatchesTheReference) {
  for (const Device device : test_devices()) {
    for (const LayerNormCase& c : kLayerNormCases) {
      const std::string what = to_string(device) + " " + c.name;
      const Inputs in(c);
      const Result<double> exact = reference_result<double>(in);
      const Result<float> naive = reference_result<float>(in);
      const Result<float> found = device_result(device, in);
      expect_close(what + " y", found.y, exact.y, naive.y);
      expect_close(what + " mean", found.mean, exact.mean, naive.mean);
      expect_close(what + " rstd", found.rstd, exact.rstd, naive.rstd);
      expect_close(what + " dx", found.dx, exact.dx, naive.dx);
      expect_close(what + " dgamma", found.dgamma, exact.dgamma, naive.dgamma);
      expect_close(what + " dbeta", found.dbeta, exact.dbeta, naive.dbeta);
      expect_same_bits(what, device, [&] {
        const Result<float> r = device_result(device, in);
        std::vector<float> all = r.y;
        for (const auto* part : {&r.mean, &r.rstd, &r.dx, &r.dgamma, &r.dbeta}) {
          all.insert(all.end(), part->begin(), part->end());
        }
        return all;
      });
    }
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
  Inputs in({"tiny", 3, 5});
  const Result<double> r = reference_result<double>(in);
  const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gamma,
                        const std::vector<double>& beta) {
    std::vector<double> y(x.size()), mean(3), rstd(3);
    reference::layer_norm_forward<double>(in.params, x.data(), gamma.data(), beta.data(), y.data(),
                                          mean.data(), rstd.data());
    double total = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      total += y[i] * in.dy[i];
    }
    return total;
  };
  const std::vector<double> x = widen(in.x), gamma = widen(in.gamma), beta = widen(in.beta);
  expect_gradient("dx", x, r.dx, [&](const std::vector<double>& v) { return loss(v, gamma, beta); });
  expect_gradient("dgamma", gamma, r.dgamma, [&](const std::vector<double>& v) { return loss(x, v, beta); });
  expect_gradient("dbeta", beta, r.dbeta, [&](const std::vector<double>& v) { return loss(x, gamma, v); });
}

TEST(LayerNorm, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(4);
  float* p = x.data();
  EXPECT_THROW(layer_norm_forward(context, {.rows = 1, .channels = 0}, p, p, p, p, nullptr, nullptr),
               ShapeError);
  EXPECT_THROW(layer_norm_forward(context, {.rows = 1, .channels = 4}, p, p, p, p, p, nullptr), ShapeError);
  EXPECT_THROW(layer_norm_backward(context, {.rows = 1, .channels = 4}, p, p, p, p, p, p, p, p,
                                   GradMode::overwrite, {}),
               ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
