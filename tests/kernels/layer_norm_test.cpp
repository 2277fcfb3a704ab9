// Layer normalisation on every device against its reference: output, statistics and all gradients.
#include "kernels/layer_norm/layer_norm.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "kernels/layer_norm/layer_norm_cases.hpp"
#include "kernels/layer_norm/layer_norm_ref.hpp"
#include "tests/kernels/norm_fixture.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

struct LayerNormFamily {
  using Params = LayerNormParams;
  using Case = LayerNormCase;
  static Params params(const Case& c) {
    return {.rows = c.rows, .channels = c.channels, .activation = c.activation};
  }
  static int64_t elements(const Params& p) { return p.rows * p.channels; }
  static int64_t statistics(const Params& p) { return p.rows; }
  template <class T, class... Rest>
  static void reference_forward(const Params& p, const T* x, Rest... rest) {
    reference::layer_norm_forward<T>(p, x, rest...);
  }
  template <class T, class... Rest>
  static void reference_backward(const Params& p, const T* x, Rest... rest) {
    reference::layer_norm_backward<T>(p, x, rest...);
  }
  static constexpr auto workspace_bytes = layer_norm_backward_workspace_bytes;
  static void forward(Context& context, const Params& p, ConstData x, ConstData gamma, ConstData beta, Data y,
                      float* mean, float* rstd, Workspace) {
    layer_norm_forward(context, p, x, gamma, beta, y, mean, rstd);
  }
  static constexpr auto backward = layer_norm_backward;
};

using Inputs = NormInputs<LayerNormFamily>;
template <class T>
using Result = NormResult<T>;

TEST(LayerNorm, MatchesTheReference) { expect_cases_match<LayerNormFamily>(kLayerNormCases); }

TEST(LayerNorm, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    expect_random_case_matches<LayerNormFamily>(random_layer_norm_case(random), random);
  });
}

TEST(LayerNorm, NothingFromNothing) { expect_nothing_from_nothing<LayerNormFamily>({"no_rows", 0, 5}); }

TEST(LayerNorm, AccumulatesGradients) { expect_accumulated_gradients<LayerNormFamily>(kLayerNormCases[5]); }

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
      expect_reference_gradients<LayerNormFamily>({"tiny", 3, 5, 0.0f, activation, affine});
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

TEST(LayerNorm, Storage) {
  for (const LayerNormCase& c : kLayerNormCases) {
    const Inputs in(c);
    const LayerNormParams& p = in.params;
    const int64_t count = p.rows * p.channels;
    expect_rounded_float32(c.name, [&](Call& call) {
      const auto given = [&](const std::vector<float>& values) {
        return c.affine ? call.in_float(values) : Data();
      };
      const auto added_to = [&](const std::vector<float>& values) {
        return c.affine ? call.in_out_float(values) : Data();
      };
      const Data gamma = given(in.gamma), beta = given(in.beta);
      const Data mean = call.out_float(p.rows), rstd = call.out_float(p.rows);
      layer_norm_forward(call.context(), p, call.in(in.x), gamma, beta, call.out(count), nullptr, nullptr);
      layer_norm_forward(call.context(), p, call.in(in.x), gamma, beta, call.out(count),
                         mean.as<float>("mean"), rstd.as<float>("rstd"));
      for (const GradMode mode : {GradMode::overwrite, GradMode::accumulate}) {
        layer_norm_backward(call.context(), p, call.in(in.x), gamma, beta, mean.as<float>("mean"),
                            rstd.as<float>("rstd"), call.in(in.dy), call.out(count), added_to(in.gamma),
                            added_to(in.beta), mode,
                            call.workspace(layer_norm_backward_workspace_bytes(call.context(), p)));
      }
    });
  }
}

TEST(LayerNorm, MixedStorageIsOneLine) {
  for (const Device device : test_devices()) {
    Call call(device, DType::bf16, DType::bf16);
    const std::vector<float> values(4, 1.0f);
    const LayerNormParams p{.rows = 1, .channels = 4};
    EXPECT_EQ(shape_error([&] {
                layer_norm_forward(call.context(), p, call.in(values), {}, {}, call.out_float(4), nullptr,
                                   nullptr);
              }),
              "layer_norm_forward: tensors are stored as bf16 and f32, expected one type");
    float* statistics = call.in_float(values).as<float>("statistics");
    EXPECT_EQ(shape_error([&] {
                layer_norm_backward(call.context(), p, call.in(values), {}, {}, statistics, statistics,
                                    call.in(values), call.out_float(4), {}, {}, GradMode::overwrite,
                                    call.workspace(layer_norm_backward_workspace_bytes(call.context(), p)));
              }),
              "layer_norm_backward: tensors are stored as bf16 and f32, expected one type");
  }
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
