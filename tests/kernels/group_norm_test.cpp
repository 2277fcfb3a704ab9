// Group normalisation on every device against its reference: output, statistics and all gradients.
#include "kernels/group_norm/group_norm.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "kernels/group_norm/group_norm_cases.hpp"
#include "kernels/group_norm/group_norm_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/norm_fixture.hpp"
#include "tests/kernels/oracle_vectors.hpp"

namespace vesal::kernels::testing {
namespace {

struct GroupNormFamily {
  using Params = GroupNormParams;
  using Case = GroupNormCase;
  static const Params& params(const Case& c) { return c.params; }
  static int64_t elements(const Params& p) { return p.n * p.spatial * p.channels; }
  static int64_t statistics(const Params& p) { return p.n * p.groups; }
  template <class T, class... Rest>
  static void reference_forward(const Params& p, const T* x, Rest... rest) {
    reference::group_norm_forward<T>(p, x, rest...);
  }
  template <class T, class... Rest>
  static void reference_backward(const Params& p, const T* x, Rest... rest) {
    reference::group_norm_backward<T>(p, x, rest...);
  }
  static constexpr auto workspace_bytes = group_norm_workspace_bytes;
  static constexpr auto forward = group_norm_forward;
  static constexpr auto backward = group_norm_backward;
};

using Inputs = NormInputs<GroupNormFamily>;
template <class T>
using Result = NormResult<T>;

TEST(GroupNorm, MatchesTheReference) { expect_cases_match<GroupNormFamily>(kGroupNormCases); }

TEST(GroupNorm, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    expect_random_case_matches<GroupNormFamily>(random_group_norm_case(random), random);
  });
}

TEST(GroupNorm, NothingFromNothing) {
  expect_nothing_from_nothing<GroupNormFamily>(
      {"nothing", {.n = 0, .spatial = 4, .channels = 6, .groups = 3}});
  expect_nothing_from_nothing<GroupNormFamily>(
      {"nothing", {.n = 2, .spatial = 0, .channels = 6, .groups = 3}});
}

TEST(GroupNorm, AccumulatesGradients) { expect_accumulated_gradients<GroupNormFamily>(kGroupNormCases[3]); }

// A naive E[x^2] - E[x]^2 in float32 has no correct digit left here; nor would channel means rounded to
// float32 before they are compared.
TEST(GroupNorm, NoCancellation) {
  for (const Device device : test_devices()) {
    Inputs in({"far", {.n = 1, .spatial = 500, .channels = 6, .groups = 2}});
    for (float& value : in.x) {
      value = 10000.0f + (value > 0 ? 1.0f : -1.0f);
    }
    const Result<double> exact = reference_result<double>(in);
    const Result<float> found = device_result(device, in);
    for (size_t g = 0; g < 2; ++g) {
      EXPECT_NEAR(found.rstd[g], exact.rstd[g], 1e-5) << to_string(device);
    }
  }
}

TEST(GroupNorm, ReferenceGradients) {
  for (const int64_t groups : {1, 2, 4}) {
    for (const bool affine : {true, false}) {
      expect_reference_gradients<GroupNormFamily>(
          {"tiny",
           {.n = 2, .spatial = 3, .channels = 4, .groups = groups, .activation = Activation::silu},
           affine});
    }
  }
}

TEST(GroupNorm, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  std::vector<float> x(64);
  float* p = x.data();
  const Workspace workspace{p, 256};
  const auto forward = [&](const GroupNormParams& params, float* beta, const Workspace& given) {
    group_norm_forward(context, params, p, p, beta, p, p, p, given);
  };
  EXPECT_THROW(forward({.spatial = 4, .channels = 4, .groups = 3}, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4, .channels = 4, .groups = 0}, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4, .channels = 4, .groups = 8}, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = -1}, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4, .activation = Activation::hardswish}, p, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4}, nullptr, workspace), ShapeError);
  EXPECT_THROW(forward({.spatial = 4}, p, {}), ShapeError);
  EXPECT_THROW(group_norm_backward(context, {.spatial = 4}, p, p, p, p, p, p, p, nullptr, p,
                                   GradMode::overwrite, workspace),
               ShapeError);
}

// For tests/oracle/norms.py.
TEST(GroupNorm, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/group.txt");
  int number = 0;
  for (const GroupNormCase& c : kGroupNormCases) {
    if (c.offset != 0.0f) {
      continue;  // a mean far from 0 leaves float32 fewer digits than the oracle asks for
    }
    const Inputs in(c);
    const GroupNormParams& p = in.params;
    const Result<float> r = device_result({DeviceType::cpu, 0}, in);
    index << p.n << ' ' << p.spatial << ' ' << p.channels << ' ' << p.groups << ' '
          << static_cast<int>(p.activation) << ' ' << c.affine << ' ' << c.name << '\n';
    write_arrays(concat(folder, "/group", number++, ".f32"),
                 {&in.x, &in.gamma, &in.beta, &in.dy, &r.y, &r.dx, &r.dgamma, &r.dbeta});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
