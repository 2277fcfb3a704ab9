// Sobel gradients and the edge gate against their references, on every device.
#include "kernels/sobel/sobel.hpp"

#include <cmath>
#include <numeric>

#include "kernels/sobel/sobel_cases.hpp"
#include "kernels/sobel/sobel_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

int64_t voxel_count(const SobelParams& p) { return p.n * p.d * p.h * p.w; }

std::string on(Device device, const std::string& name) {
  return concat(name, ", device ", static_cast<int>(device.type));
}

void append(std::vector<float>& all, const std::vector<float>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

TEST(SobelGradient, MatchesReference) {
  for (const SobelCase& c : kSobelCases) {
    const SobelParams& p = c.params;
    const bool isotropic = p.spacing == std::array<float, 3>{1, 1, 1};
    for (const bool integers : {false, true}) {
      if (integers && !isotropic) {
        continue;
      }
      const int64_t count = voxel_count(p);
      const std::vector<float> x = integers ? random_integers(count, 1) : random_normal(count, 2);
      const std::vector<float> dg = integers ? random_integers(3 * count, 3) : random_normal(3 * count, 4);
      const std::vector<double> wide_x = widen(x), wide_dg = widen(dg);
      std::vector<double> exact(dg.size()), exact_dx(x.size());
      std::vector<float> naive(dg.size()), naive_dx(x.size());
      reference::sobel_gradient_forward(p, wide_x.data(), exact.data());
      reference::sobel_gradient_forward(p, x.data(), naive.data());
      reference::sobel_gradient_backward(p, wide_dg.data(), exact_dx.data());
      reference::sobel_gradient_backward(p, dg.data(), naive_dx.data());
      for (const Device device : test_devices()) {
        const std::string what = on(device, c.name);
        Context context(device);
        const DeviceArray<float> in(device, x), dgradient(device, dg);
        expect_same_bits(what, device, [&] {
          const DeviceArray<float> gradient(device, 3 * count), dx(device, count);
          sobel_gradient_forward(context, p, in.get(), gradient.get());
          sobel_gradient_backward(context, p, dgradient.get(), dx.get());
          std::vector<float> all = gradient.host();
          if (integers) {
            expect_equal("gradient, " + what, all, exact);
            expect_equal("dx, " + what, dx.host(), exact_dx);
          } else {
            expect_close("gradient, " + what, all, exact, naive);
            expect_close("dx, " + what, dx.host(), exact_dx, naive_dx);
          }
          append(all, dx.host());
          return all;
        });
      }
    }
  }
}

// A ramp along an axis: 32 units a voxel inside (2 by the derivative, 16 by the smoothing, downwards), over
// the spacing.
TEST(SobelGradient, RampHasAKnownSlope) {
  const SobelParams p{1, 5, 6, 7, {2.0f, 4.0f, 0.5f}};
  std::vector<float> x;
  for (int64_t d = 0; d < p.d; ++d) {
    for (int64_t h = 0; h < p.h; ++h) {
      for (int64_t w = 0; w < p.w; ++w) {
        x.push_back(static_cast<float>(3 * d - 2 * h + w));
      }
    }
  }
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> in(device, x), out(device, 3 * voxel_count(p));
    sobel_gradient_forward(context, p, in.get(), out.get());
    const std::vector<float> gradient = out.host();
    const int64_t voxel = (2 * p.h + 3) * p.w + 3;
    EXPECT_EQ(gradient[voxel * 3], -32.0f * 3 / 2);
    EXPECT_EQ(gradient[voxel * 3 + 1], 32.0f * 2 / 4);
    EXPECT_EQ(gradient[voxel * 3 + 2], -32.0f * 1 / 0.5f);
  }
}

TEST(SobelMagnitude, MatchesReference) {
  for (const SobelCase& c : kSobelCases) {
    const SobelParams& p = c.params;
    const int64_t count = voxel_count(p);
    const std::vector<float> x = random_normal(count, 5), dm = random_normal(count, 6);
    const std::vector<double> wide_x = widen(x), wide_dm = widen(dm);
    std::vector<double> exact(x.size()), exact_dx(x.size());
    std::vector<float> naive(x.size()), naive_dx(x.size());
    reference::sobel_magnitude_forward(p, wide_x.data(), exact.data());
    reference::sobel_magnitude_forward(p, x.data(), naive.data());
    reference::sobel_magnitude_backward(p, wide_x.data(), wide_dm.data(), exact_dx.data());
    reference::sobel_magnitude_backward(p, x.data(), dm.data(), naive_dx.data());
    for (const Device device : test_devices()) {
      const std::string what = on(device, c.name);
      Context context(device);
      const DeviceArray<float> in(device, x), dmagnitude(device, dm);
      expect_same_bits(what, device, [&] {
        const DeviceArray<float> magnitude(device, count), dx(device, count);
        const DeviceWorkspace workspace(device, sobel_magnitude_workspace_bytes(context, p));
        sobel_magnitude_forward(context, p, in.get(), magnitude.get());
        sobel_magnitude_backward(context, p, in.get(), dmagnitude.get(), dx.get(), workspace);
        std::vector<float> all = magnitude.host();
        expect_close("magnitude, " + what, all, exact, naive);
        expect_close("dx, " + what, dx.host(), exact_dx, naive_dx);
        append(all, dx.host());
        return all;
      });
    }
  }
}

// Where the volume is constant the gradient is zero: magnitude sqrt(eps), and no gradient flows, even with
// eps = 0.
TEST(SobelMagnitude, IsFlatWhereTheVolumeIs) {
  for (const float eps : {1e-12f, 0.0f}) {
    const SobelParams p{1, 4, 5, 6, {1, 1, 1}, eps};
    const int64_t count = voxel_count(p);
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceArray<float> in(device, std::vector<float>(static_cast<size_t>(count), 0.0f)),
          dm(device, random_normal(count, 7)), magnitude(device, count), dx(device, count);
      const DeviceWorkspace workspace(device, sobel_magnitude_workspace_bytes(context, p));
      sobel_magnitude_forward(context, p, in.get(), magnitude.get());
      sobel_magnitude_backward(context, p, in.get(), dm.get(), dx.get(), workspace);
      for (int64_t v = 0; v < count; ++v) {
        EXPECT_EQ(magnitude.host()[v], std::sqrt(eps));
        EXPECT_EQ(dx.host()[v], 0.0f);
      }
    }
  }
}

TEST(EdgeGate, MatchesReference) {
  for (const EdgeGateCase& c : kEdgeGateCases) {
    const EdgeGateParams& p = c.params;
    const int64_t count = p.voxels * p.channels;
    const std::vector<float> g = random_normal(3 * p.voxels, 8, 2.0f), x = random_normal(count, 9),
                             dy = random_normal(count, 10);
    const std::vector<double> wide_g = widen(g), wide_x = widen(x), wide_dy = widen(dy);
    std::vector<double> exact(x.size()), exact_dg(g.size()), exact_dx(x.size());
    std::vector<float> naive(x.size()), naive_dg(g.size()), naive_dx(x.size());
    reference::edge_gate_forward(p, wide_g.data(), wide_x.data(), exact.data());
    reference::edge_gate_forward(p, g.data(), x.data(), naive.data());
    reference::edge_gate_backward(p, wide_g.data(), wide_x.data(), wide_dy.data(), exact_dg.data(),
                                  exact_dx.data());
    reference::edge_gate_backward(p, g.data(), x.data(), dy.data(), naive_dg.data(), naive_dx.data());
    for (const Device device : test_devices()) {
      const std::string what = on(device, c.name);
      Context context(device);
      const DeviceArray<float> gradient(device, g), in(device, x), upstream(device, dy);
      expect_same_bits(what, device, [&] {
        const DeviceArray<float> y(device, count), dgradient(device, 3 * p.voxels), dx(device, count);
        edge_gate_forward(context, p, gradient.get(), in.get(), y.get());
        edge_gate_backward(context, p, gradient.get(), in.get(), upstream.get(), dgradient.get(), dx.get());
        std::vector<float> all = y.host();
        expect_close("y, " + what, all, exact, naive);
        expect_close("dgradient, " + what, dgradient.host(), exact_dg, naive_dg);
        expect_close("dx, " + what, dx.host(), exact_dx, naive_dx);
        append(all, dgradient.host());
        append(all, dx.host());
        return all;
      });
    }
  }
}

// The gate of no edge is a half, and that of a strong one is open, without overflow.
TEST(EdgeGate, LimitsAreExact) {
  const EdgeGateParams p{2, 3, 0.0f};
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> gradient(device, std::vector<float>{0, 0, 0, 300, -400, 1200}),
        x(device, std::vector<float>{2, -4, 6, 1, 2, 3}), y(device, 6), dgradient(device, 6), dx(device, 6);
    edge_gate_forward(context, p, gradient.get(), x.get(), y.get());
    EXPECT_EQ(y.host(), (std::vector<float>{1, -2, 3, 1, 2, 3}));
    edge_gate_backward(context, p, gradient.get(), x.get(), x.get(), dgradient.get(), dx.get());
    EXPECT_EQ(dx.host(), (std::vector<float>{1, -2, 3, 1, 2, 3}));
    EXPECT_EQ(dgradient.host(), (std::vector<float>{0, 0, 0, 0, 0, 0}));
  }
}

struct SobelInputs {
  std::vector<float> x, dgradient, dmagnitude;
};

template <class T>
struct SobelResult {
  std::vector<T> gradient, gradient_dx, magnitude, magnitude_dx;
};

template <class T>
SobelResult<T> sobel_reference(const SobelParams& p, const SobelInputs& in) {
  const std::vector<T> x(in.x.begin(), in.x.end()), dg(in.dgradient.begin(), in.dgradient.end()),
      dm(in.dmagnitude.begin(), in.dmagnitude.end());
  SobelResult<T> r{std::vector<T>(dg.size()), std::vector<T>(x.size()), std::vector<T>(x.size()),
                   std::vector<T>(x.size())};
  reference::sobel_gradient_forward(p, x.data(), r.gradient.data());
  reference::sobel_gradient_backward(p, dg.data(), r.gradient_dx.data());
  reference::sobel_magnitude_forward(p, x.data(), r.magnitude.data());
  reference::sobel_magnitude_backward(p, x.data(), dm.data(), r.magnitude_dx.data());
  return r;
}

TEST(Sobel, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const SobelParams p = random_sobel_params(random);
    SCOPED_TRACE(concat("[", p.n, ", ", p.d, ", ", p.h, ", ", p.w, "], spacing ", p.spacing[0], " ",
                        p.spacing[1], " ", p.spacing[2]));
    const int64_t count = voxel_count(p);
    const auto seed = static_cast<uint64_t>(random.below(1 << 20));
    const SobelInputs in{random_normal(count, seed), random_normal(3 * count, seed + 1),
                         random_normal(count, seed + 2)};
    const SobelResult<double> exact = sobel_reference<double>(p, in);
    SobelResult<float> naive = sobel_reference<float>(p, in);
    // A handful of voxels: a single float32 evaluation may be exact by luck.
    for (int trial = 0; trial < 4; ++trial) {
      const SobelResult<float> other =
          sobel_reference<float>(p, {moved_by_one_ulp(in.x, random), moved_by_one_ulp(in.dgradient, random),
                                     moved_by_one_ulp(in.dmagnitude, random)});
      keep_worse(naive.gradient, other.gradient, exact.gradient);
      keep_worse(naive.gradient_dx, other.gradient_dx, exact.gradient_dx);
      keep_worse(naive.magnitude, other.magnitude, exact.magnitude);
      keep_worse(naive.magnitude_dx, other.magnitude_dx, exact.magnitude_dx);
    }
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceArray<float> x(device, in.x), dgradient(device, in.dgradient),
          dmagnitude(device, in.dmagnitude), gradient(device, 3 * count), gradient_dx(device, count),
          magnitude(device, count), magnitude_dx(device, count);
      const DeviceWorkspace workspace(device, sobel_magnitude_workspace_bytes(context, p));
      sobel_gradient_forward(context, p, x.get(), gradient.get());
      sobel_gradient_backward(context, p, dgradient.get(), gradient_dx.get());
      sobel_magnitude_forward(context, p, x.get(), magnitude.get());
      sobel_magnitude_backward(context, p, x.get(), dmagnitude.get(), magnitude_dx.get(), workspace);
      const std::string where = to_string(device);
      expect_close("gradient, " + where, gradient.host(), exact.gradient, naive.gradient);
      expect_close("dx of the gradient, " + where, gradient_dx.host(), exact.gradient_dx, naive.gradient_dx);
      expect_close("magnitude, " + where, magnitude.host(), exact.magnitude, naive.magnitude);
      expect_close("dx of the magnitude, " + where, magnitude_dx.host(), exact.magnitude_dx,
                   naive.magnitude_dx);
    }
  });
}

struct GateInputs {
  std::vector<float> gradient, x, dy;
};

template <class T>
struct GateResult {
  std::vector<T> y, dgradient, dx;
};

template <class T>
GateResult<T> gate_reference(const EdgeGateParams& p, const GateInputs& in) {
  const std::vector<T> g(in.gradient.begin(), in.gradient.end()), x(in.x.begin(), in.x.end()),
      dy(in.dy.begin(), in.dy.end());
  GateResult<T> r{std::vector<T>(x.size()), std::vector<T>(g.size()), std::vector<T>(x.size())};
  reference::edge_gate_forward(p, g.data(), x.data(), r.y.data());
  reference::edge_gate_backward(p, g.data(), x.data(), dy.data(), r.dgradient.data(), r.dx.data());
  return r;
}

TEST(EdgeGate, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const EdgeGateParams p = random_edge_gate_params(random);
    SCOPED_TRACE(concat("[", p.voxels, ", ", p.channels, "]"));
    const int64_t count = p.voxels * p.channels;
    const auto seed = static_cast<uint64_t>(random.below(1 << 20));
    const GateInputs in{random_normal(3 * p.voxels, seed, 2.0f), random_normal(count, seed + 1),
                        random_normal(count, seed + 2)};
    const GateResult<double> exact = gate_reference<double>(p, in);
    GateResult<float> naive = gate_reference<float>(p, in);
    for (int trial = 0; trial < 4; ++trial) {
      const GateResult<float> other =
          gate_reference<float>(p, {moved_by_one_ulp(in.gradient, random), moved_by_one_ulp(in.x, random),
                                    moved_by_one_ulp(in.dy, random)});
      keep_worse(naive.y, other.y, exact.y);
      keep_worse(naive.dgradient, other.dgradient, exact.dgradient);
      keep_worse(naive.dx, other.dx, exact.dx);
    }
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceArray<float> gradient(device, in.gradient), x(device, in.x), dy(device, in.dy),
          y(device, count), dgradient(device, 3 * p.voxels), dx(device, count);
      edge_gate_forward(context, p, gradient.get(), x.get(), y.get());
      edge_gate_backward(context, p, gradient.get(), x.get(), dy.get(), dgradient.get(), dx.get());
      expect_close("y, " + to_string(device), y.host(), exact.y, naive.y);
      expect_close("dgradient, " + to_string(device), dgradient.host(), exact.dgradient, naive.dgradient);
      expect_close("dx, " + to_string(device), dx.host(), exact.dx, naive.dx);
    }
  });
}

TEST(Sobel, GradientsAreNumeric) {
  const SobelParams p{2, 3, 2, 4, {1.5f, 1.0f, 0.75f}, 1e-3f};
  const int64_t count = voxel_count(p);
  const std::vector<double> x = widen(random_normal(count, 11)), dg = widen(random_normal(3 * count, 12)),
                            dm = widen(random_normal(count, 13));
  std::vector<double> dx(x.size());
  reference::sobel_gradient_backward(p, dg.data(), dx.data());
  expect_gradient("gradient", x, dx, [&](const std::vector<double>& at) {
    std::vector<double> gradient(dg.size());
    reference::sobel_gradient_forward(p, at.data(), gradient.data());
    return dot(gradient, dg);
  });
  reference::sobel_magnitude_backward(p, x.data(), dm.data(), dx.data());
  expect_gradient("magnitude", x, dx, [&](const std::vector<double>& at) {
    std::vector<double> magnitude(dm.size());
    reference::sobel_magnitude_forward(p, at.data(), magnitude.data());
    return dot(magnitude, dm);
  });
}

TEST(EdgeGate, GradientsAreNumeric) {
  const EdgeGateParams p{5, 3};
  const std::vector<double> g = widen(random_normal(15, 14)), x = widen(random_normal(15, 15)),
                            dy = widen(random_normal(15, 16));
  std::vector<double> dg(15), dx(15);
  reference::edge_gate_backward(p, g.data(), x.data(), dy.data(), dg.data(), dx.data());
  const auto loss = [&](const std::vector<double>& gradient, const std::vector<double>& in) {
    std::vector<double> y(15);
    reference::edge_gate_forward(p, gradient.data(), in.data(), y.data());
    return dot(y, dy);
  };
  expect_gradient("gradient", g, dg, [&](const std::vector<double>& at) { return loss(at, x); });
  expect_gradient("x", x, dx, [&](const std::vector<double>& at) { return loss(g, at); });
}

TEST(Sobel, Storage) {
  for (const SobelCase& c : kSobelCases) {
    const SobelParams& p = c.params;
    const int64_t count = voxel_count(p);
    const std::vector<float> x = random_normal(count, 17), dg = random_normal(3 * count, 18),
                             dm = random_normal(count, 19);
    expect_rounded_float32(c.name, [&](Call& call) {
      sobel_gradient_forward(call.context(), p, call.in(x), call.out(3 * count));
      sobel_gradient_backward(call.context(), p, call.in(dg), call.out(count));
      sobel_magnitude_forward(call.context(), p, call.in(x), call.out(count));
      sobel_magnitude_backward(call.context(), p, call.in(x), call.in(dm), call.out(count),
                               call.workspace(sobel_magnitude_workspace_bytes(call.context(), p)));
    });
  }
}

TEST(EdgeGate, Storage) {
  for (const EdgeGateCase& c : kEdgeGateCases) {
    const EdgeGateParams& p = c.params;
    const int64_t count = p.voxels * p.channels;
    const std::vector<float> g = random_normal(3 * p.voxels, 20, 2.0f), x = random_normal(count, 21),
                             dy = random_normal(count, 22);
    expect_rounded_float32(c.name, [&](Call& call) {
      edge_gate_forward(call.context(), p, call.in(g), call.in(x), call.out(count));
      edge_gate_backward(call.context(), p, call.in(g), call.in(x), call.in(dy), call.out(3 * p.voxels),
                         call.out(count));
    });
  }
}

TEST(Sobel, MixedStorageIsOneLine) {
  for (const Device device : test_devices()) {
    Call call(device, DType::bf16, DType::bf16);
    Context& context = call.context();
    const SobelParams p{};
    const Data half = call.in_out({1, 2, 3}), wide = call.in_out_float({1, 2, 3});
    const std::string mixed = ": tensors are stored as bf16 and f32, expected one type";
    EXPECT_EQ(shape_error([&] { sobel_gradient_forward(context, p, half, wide); }),
              "sobel_gradient_forward" + mixed);
    EXPECT_EQ(shape_error([&] { sobel_gradient_backward(context, p, half, wide); }),
              "sobel_gradient_backward" + mixed);
    EXPECT_EQ(shape_error([&] { sobel_magnitude_forward(context, p, half, wide); }),
              "sobel_magnitude_forward" + mixed);
    EXPECT_EQ(shape_error([&] {
                sobel_magnitude_backward(context, p, half, wide, half,
                                         call.workspace(sobel_magnitude_workspace_bytes(context, p)));
              }),
              "sobel_magnitude_backward" + mixed);
    EXPECT_EQ(shape_error([&] { edge_gate_forward(context, {}, half, half, wide); }),
              "edge_gate_forward" + mixed);
    EXPECT_EQ(shape_error([&] { edge_gate_backward(context, {}, half, half, half, wide, half); }),
              "edge_gate_backward" + mixed);
  }
}

TEST(Sobel, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(8), gradient(24);
  SobelParams p{1, 2, 2, 2};
  EXPECT_NO_THROW(sobel_gradient_forward(context, p, x.data(), gradient.data()));
  EXPECT_THROW(sobel_gradient_forward(context, p, nullptr, gradient.data()), ShapeError);
  EXPECT_THROW(sobel_magnitude_backward(context, p, x.data(), x.data(), x.data(), Workspace{}), ShapeError);
  EXPECT_THROW(sobel_gradient_backward(context, p, ConstData(gradient.data(), DType::bf16), x.data()),
               ShapeError);
  p.spacing[2] = 0;
  EXPECT_THROW(sobel_gradient_forward(context, p, x.data(), gradient.data()), ShapeError);
  p.spacing[2] = NAN;
  EXPECT_THROW(sobel_magnitude_forward(context, p, x.data(), gradient.data()), ShapeError);
  EXPECT_THROW(edge_gate_forward(context, {8, 0}, gradient.data(), x.data(), x.data()), ShapeError);
  EXPECT_THROW(edge_gate_forward(context, {8, 1}, gradient.data(), nullptr, x.data()), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
