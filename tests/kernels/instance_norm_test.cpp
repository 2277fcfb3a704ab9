// Instance normalisation on every device against its reference: output, statistics and all gradients.
#include "kernels/instance_norm/instance_norm.hpp"

#include <cmath>

#include "kernels/instance_norm/instance_norm_cases.hpp"
#include "kernels/instance_norm/instance_norm_ref.hpp"
#include "tests/kernels/norm_fixture.hpp"

namespace vesal::kernels::testing {
namespace {

struct InstanceNormFamily {
  using Params = InstanceNormParams;
  using Case = InstanceNormCase;
  static const Params& params(const Case& c) { return c.params; }
  static int64_t elements(const Params& p) { return p.n * p.spatial * p.channels; }
  static int64_t statistics(const Params& p) { return p.n * p.channels; }
  template <class T, class... Rest>
  static void reference_forward(const Params& p, const T* x, Rest... rest) {
    reference::instance_norm_forward<T>(p, x, rest...);
  }
  template <class T, class... Rest>
  static void reference_backward(const Params& p, const T* x, Rest... rest) {
    reference::instance_norm_backward<T>(p, x, rest...);
  }
  static constexpr auto workspace_bytes = instance_norm_workspace_bytes;
  static constexpr auto forward = instance_norm_forward;
  static constexpr auto backward = instance_norm_backward;
};

using Inputs = NormInputs<InstanceNormFamily>;
template <class T>
using Result = NormResult<T>;

TEST(InstanceNorm, MatchesTheReference) { expect_cases_match<InstanceNormFamily>(kInstanceNormCases); }

TEST(InstanceNorm, NothingFromNothing) {
  expect_nothing_from_nothing<InstanceNormFamily>({"nothing", {.n = 0, .spatial = 4, .channels = 6}});
  expect_nothing_from_nothing<InstanceNormFamily>({"nothing", {.n = 2, .spatial = 0, .channels = 6}});
}

TEST(InstanceNorm, AccumulatesGradients) {
  expect_accumulated_gradients<InstanceNormFamily>(kInstanceNormCases[1]);
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
    expect_reference_gradients<InstanceNormFamily>(
        {"tiny",
         {.n = 2, .spatial = 4, .channels = 3, .activation = Activation::leaky_relu, .negative_slope = 0.3f},
         affine});
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
  EXPECT_THROW(instance_norm_forward(context, {.spatial = -1}, p, p, p, p, p, p, workspace), ShapeError);
  EXPECT_THROW(instance_norm_forward(context, {.spatial = 4}, p, p, nullptr, p, p, p, workspace), ShapeError);
  EXPECT_THROW(instance_norm_forward(context, {.spatial = 4}, p, p, p, p, p, p, {}), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
