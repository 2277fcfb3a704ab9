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
    const GroupNormCase c = random_group_norm_case(random);
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

TEST(GroupNorm, NothingFromNothing) {
  expect_nothing_from_nothing<GroupNormFamily>({.n = 0, .spatial = 4, .channels = 6, .groups = 3});
  expect_nothing_from_nothing<GroupNormFamily>({.n = 2, .spatial = 0, .channels = 6, .groups = 3});
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
      const Inputs in(
          {"tiny",
           {.n = 2, .spatial = 3, .channels = 4, .groups = groups, .activation = Activation::silu},
           affine});
      const Result<double> r = reference_result<double>(in);
      const auto loss = [&](const std::vector<double>& x, const std::vector<double>& gamma,
                            const std::vector<double>& beta) {
        std::vector<double> y(x.size()), mean(r.mean.size()), rstd(r.mean.size());
        reference::group_norm_forward<double>(in.params, x.data(), affine ? gamma.data() : nullptr,
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
