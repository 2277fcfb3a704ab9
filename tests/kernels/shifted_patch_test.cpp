// Shifted patch tokenization on every device against double-precision loops, its gradients against numeric
// differences, and what tolerances cannot show: bit-equal repeats, independence of the thread count, and that
// an absent group is never read.
#include "kernels/shifted_patch/shifted_patch.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>

#include "base/parallel.hpp"
#include "kernels/shifted_patch/shifted_patch_cases.hpp"
#include "kernels/shifted_patch/shifted_patch_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

struct Inputs {
  std::vector<float> x, gamma, beta, weight, bias, missing, dy;
  std::vector<uint8_t> mask;
};

Inputs make_inputs(const ShiftedPatchCase& c, uint64_t seed) {
  const ShiftedPatchParams& p = c.params;
  Inputs inputs;
  inputs.x = random_normal(p.n * p.d * p.h * p.w * p.groups * p.channels, seed);
  inputs.gamma = random_normal(p.groups * p.features(), seed + 1);
  inputs.beta = random_normal(p.groups * p.features(), seed + 2);
  inputs.weight = random_normal(p.groups * p.out * p.features(), seed + 3);
  inputs.bias = random_normal(p.groups * p.out, seed + 4);
  inputs.missing = random_normal(c.mask.empty() ? 0 : p.groups * p.out, seed + 5);
  inputs.dy = random_normal(p.tokens() * p.out, seed + 6);
  inputs.mask = c.mask;
  return inputs;
}

template <class T>
struct Outputs {
  std::vector<T> y, mean, rstd, dx, dgamma, dbeta, dweight, dbias, dmissing;
};

// Name and member of each output.
template <class T>
const std::vector<std::pair<const char*, std::vector<T> Outputs<T>::*>>& parts() {
  using O = Outputs<T>;
  static const std::vector<std::pair<const char*, std::vector<T> O::*>> all{{"y", &O::y},
                                                                            {"mean", &O::mean},
                                                                            {"rstd", &O::rstd},
                                                                            {"dx", &O::dx},
                                                                            {"dgamma", &O::dgamma},
                                                                            {"dbeta", &O::dbeta},
                                                                            {"dweight", &O::dweight},
                                                                            {"dbias", &O::dbias},
                                                                            {"dmissing", &O::dmissing}};
  return all;
}

template <class T>
std::vector<T> convert(const std::vector<float>& values) {
  return std::vector<T>(values.begin(), values.end());
}

// What an absent group's entries of mean and rstd are set to here: nobody writes them.
constexpr float kUntouched = -77.0f;

template <class T>
Outputs<T> run_reference(const ShiftedPatchParams& p, const Inputs& in) {
  const std::vector<T> x = convert<T>(in.x);
  const std::vector<T> gamma = convert<T>(in.gamma);
  const std::vector<T> beta = convert<T>(in.beta);
  const std::vector<T> weight = convert<T>(in.weight);
  const std::vector<T> bias = convert<T>(in.bias);
  const std::vector<T> missing = convert<T>(in.missing);
  const std::vector<T> dy = convert<T>(in.dy);
  const uint8_t* mask = in.mask.empty() ? nullptr : in.mask.data();
  Outputs<T> r;
  r.y.resize(dy.size());
  r.mean.assign(static_cast<size_t>(p.groups * p.tokens()), T(kUntouched));
  r.rstd = r.mean;
  r.dx.resize(x.size());
  r.dgamma.resize(gamma.size());
  r.dbeta.resize(beta.size());
  r.dweight.resize(weight.size());
  r.dbias.resize(bias.size());
  r.dmissing.resize(missing.size());
  reference::shifted_patch_forward<T>(p, x.data(), mask, gamma.data(), beta.data(), weight.data(),
                                      bias.data(), missing.data(), r.y.data(), r.mean.data(), r.rstd.data());
  reference::shifted_patch_backward<T>(p, x.data(), mask, gamma.data(), beta.data(), weight.data(), dy.data(),
                                       r.dx.data(), r.dgamma.data(), r.dbeta.data(), r.dweight.data(),
                                       r.dbias.data(), mask == nullptr ? nullptr : r.dmissing.data());
  return r;
}

// Both passes on a device. In accumulate mode the parameters' gradients start as `before`, else as NaN.
Outputs<float> run_device(Device device, const ShiftedPatchParams& p, const Inputs& in,
                          GradMode mode = GradMode::overwrite,
                          float before = std::numeric_limits<float>::quiet_NaN()) {
  Context context(device);
  const auto start = [&](const std::vector<float>& like) { return std::vector<float>(like.size(), before); };
  const DeviceArray<float> x(device, in.x), gamma(device, in.gamma), beta(device, in.beta),
      weight(device, in.weight);
  const DeviceArray<float> bias(device, in.bias), missing(device, in.missing), dy(device, in.dy);
  const DeviceArray<uint8_t> mask(device, in.mask);
  const bool masked = !in.mask.empty();
  const std::vector<float> untouched(static_cast<size_t>(p.groups * p.tokens()), kUntouched);
  const DeviceArray<float> mean(device, untouched), rstd(device, untouched);
  const DeviceArray<float> y(device, p.tokens() * p.out);
  const DeviceArray<float> dx(device, static_cast<int64_t>(in.x.size()));
  const DeviceArray<float> dgamma(device, start(in.gamma)), dbeta(device, start(in.beta));
  const DeviceArray<float> dweight(device, start(in.weight)), dbias(device, start(in.bias));
  const DeviceArray<float> dmissing(device, start(in.missing));
  const uint8_t* mask_pointer = masked ? mask.get() : nullptr;
  const float* missing_pointer = masked ? missing.get() : nullptr;
  float* dmissing_pointer = masked ? dmissing.get() : nullptr;
  {
    const DeviceWorkspace workspace(device,
                                    shifted_patch_workspace_bytes(context, p, ShiftedPatchPass::forward));
    shifted_patch_forward(context, p, x.get(), mask_pointer, gamma.get(), beta.get(), weight.get(),
                          bias.get(), missing_pointer, y.get(), mean.get(), rstd.get(), workspace);
  }
  const DeviceWorkspace workspace(device,
                                  shifted_patch_workspace_bytes(context, p, ShiftedPatchPass::backward));
  shifted_patch_backward(context, p, x.get(), mask_pointer, gamma.get(), beta.get(), weight.get(), mean.get(),
                         rstd.get(), dy.get(), dx.get(), dgamma.get(), dbeta.get(), dweight.get(),
                         dbias.get(), dmissing_pointer, mode, workspace);
  return {y.host(),     mean.host(),    rstd.host(),  dx.host(),      dgamma.host(),
          dbeta.host(), dweight.host(), dbias.host(), dmissing.host()};
}

std::vector<float> joined(const Outputs<float>& r) {
  std::vector<float> all;
  for (const auto& [name, part] : parts<float>()) {
    all.insert(all.end(), (r.*part).begin(), (r.*part).end());
  }
  return all;
}

const ShiftedPatchCase& find_case(const std::string& name) {
  for (const ShiftedPatchCase& c : kShiftedPatchCases) {
    if (c.name == name) {
      return c;
    }
  }
  throw UsageError(concat("no case ", name));
}

// What a naive float32 evaluation reaches (naive_error.hpp).
Outputs<float> run_naive(const ShiftedPatchParams& p, const Inputs& inputs, const Outputs<double>& exact) {
  constexpr int kEvaluations = 8;
  Outputs<float> worst = run_reference<float>(p, inputs);
  RandomStream random(9, 0, 0);
  for (int k = 1; k < kEvaluations; ++k) {
    Inputs moved = inputs;
    for (const auto part : {&Inputs::x, &Inputs::gamma, &Inputs::beta, &Inputs::weight, &Inputs::bias,
                            &Inputs::missing, &Inputs::dy}) {
      moved.*part = moved_by_one_ulp(inputs.*part, random);
    }
    const Outputs<float> other = run_reference<float>(p, moved);
    for (size_t i = 0; i < parts<float>().size(); ++i) {
      const auto part = parts<float>()[i].second;
      keep_worse(worst.*part, other.*part, exact.*(parts<double>()[i].second));
    }
  }
  return worst;
}

TEST(ShiftedPatch, DirectionsAreTheContractsOnes) {
  using Triple = std::array<int, 3>;
  EXPECT_EQ(shift_direction(ShiftSet::corner8, 0), (Triple{0, 0, 0}));
  EXPECT_EQ(shift_direction(ShiftSet::corner8, 1), (Triple{-1, -1, -1}));
  EXPECT_EQ(shift_direction(ShiftSet::corner8, 2), (Triple{-1, -1, 1}));
  EXPECT_EQ(shift_direction(ShiftSet::corner8, 4), (Triple{-1, 1, 1}));
  EXPECT_EQ(shift_direction(ShiftSet::corner8, 5), (Triple{1, -1, -1}));
  EXPECT_EQ(shift_direction(ShiftSet::corner8, 8), (Triple{1, 1, 1}));
  EXPECT_EQ(shift_direction(ShiftSet::face6, 1), (Triple{-1, 0, 0}));
  EXPECT_EQ(shift_direction(ShiftSet::face6, 4), (Triple{0, 1, 0}));
  EXPECT_EQ(shift_direction(ShiftSet::face6, 6), (Triple{0, 0, 1}));
  EXPECT_EQ(shift_direction(ShiftSet::tetra4, 1), (Triple{-1, -1, -1}));
  EXPECT_EQ(shift_direction(ShiftSet::tetra4, 2), (Triple{1, -1, 1}));
  EXPECT_EQ(shift_direction(ShiftSet::tetra4, 3), (Triple{1, 1, -1}));
  EXPECT_EQ(shift_direction(ShiftSet::tetra4, 4), (Triple{-1, 1, 1}));
  // The paper's order: left, right, up, down, then the corners.
  const std::vector<Triple> cardinal{{0, 0, -1}, {0, 0, 1}, {0, -1, 0}, {0, 1, 0}};
  const std::vector<Triple> diagonal{{0, -1, -1}, {0, -1, 1}, {0, 1, -1}, {0, 1, 1}};
  for (int k = 0; k < 4; ++k) {
    EXPECT_EQ(shift_direction(ShiftSet::cardinal4, 1 + k), cardinal[static_cast<size_t>(k)]);
    EXPECT_EQ(shift_direction(ShiftSet::diagonal4, 1 + k), diagonal[static_cast<size_t>(k)]);
    EXPECT_EQ(shift_direction(ShiftSet::cardinal8, 1 + k), cardinal[static_cast<size_t>(k)]);
    EXPECT_EQ(shift_direction(ShiftSet::cardinal8, 5 + k), diagonal[static_cast<size_t>(k)]);
  }
  EXPECT_THROW(shift_direction(ShiftSet::diagonal4, 5), ShapeError);
  EXPECT_THROW(shift_direction(ShiftSet::cardinal8, -1), ShapeError);
}

// With LayerNorm without effect on the order (gamma 1, beta 0) and an identity projection, the output of a
// depth-1 volume is the normalised features themselves: in the order (p_row, p_col, copy, c) of a 2D
// checkpoint.
TEST(ShiftedPatch, ImagesHaveTheFeatureOrderOf2DCheckpoints) {
  const ShiftedPatchParams base{.h = 4, .w = 6, .channels = 2};
  ShiftedPatchParams p = image_params(base, 2, ShiftSet::diagonal4);
  const int64_t features = 5 * 4 * 2;
  ASSERT_EQ(p.features(), features);
  p.out = features;
  Inputs in;
  in.x = random_normal(p.h * p.w * p.channels, 31);
  in.gamma.assign(static_cast<size_t>(features), 1.0f);
  in.beta.assign(static_cast<size_t>(features), 0.0f);
  in.weight.assign(static_cast<size_t>(features * features), 0.0f);
  for (int64_t i = 0; i < features; ++i) {
    in.weight[static_cast<size_t>(i * features + i)] = 1.0f;
  }
  in.bias.assign(static_cast<size_t>(features), 0.0f);
  in.dy.assign(static_cast<size_t>(p.tokens() * features), 0.0f);
  constexpr int kSteps[5][2] = {{0, 0}, {-1, -1}, {-1, 1}, {1, -1}, {1, 1}};
  for (const Device device : test_devices()) {
    const Outputs<float> r = run_device(device, p, in);
    for (int64_t token = 0; token < p.tokens(); ++token) {
      size_t at = static_cast<size_t>(token * features);
      for (int64_t row = 0; row < 2; ++row) {
        for (int64_t column = 0; column < 2; ++column) {
          for (const auto& step : kSteps) {
            const int64_t y = token / 3 * 2 + row + step[0];
            const int64_t x = token % 3 * 2 + column + step[1];
            const bool inside = y >= 0 && y < p.h && x >= 0 && x < p.w;
            for (int64_t c = 0; c < 2; ++c, ++at) {
              const float value = inside ? in.x[static_cast<size_t>((y * p.w + x) * 2 + c)] : 0.0f;
              const size_t t = static_cast<size_t>(token);
              ASSERT_NEAR(r.y[at], (value - r.mean[t]) * r.rstd[t], 1e-5f)
                  << "token " << token << ", number " << at << " on " << to_string(device);
            }
          }
        }
      }
    }
  }
}

void expect_matches_reference(const ShiftedPatchCase& c, uint64_t seed) {
  const Inputs inputs = make_inputs(c, seed);
  const Outputs<double> exact = run_reference<double>(c.params, inputs);
  const Outputs<float> naive = run_naive(c.params, inputs, exact);
  for (const Device device : test_devices()) {
    const Outputs<float> actual = run_device(device, c.params, inputs);
    for (size_t i = 0; i < parts<float>().size(); ++i) {
      const auto& [name, part] = parts<float>()[i];
      expect_close(c.name + " on " + to_string(device) + ": " + name, actual.*part,
                   exact.*(parts<double>()[i].second), naive.*part);
    }
  }
}

TEST(ShiftedPatch, MatchesReference) {
  uint64_t seed = 100;
  for (const ShiftedPatchCase& c : kShiftedPatchCases) {
    expect_matches_reference(c, seed += 10);
  }
}

TEST(ShiftedPatch, MatchesReferenceOnRandomShapes) {
  for_each_random_case([](RandomStream& random) {
    const ShiftedPatchCase c = draw_shifted_patch(random);
    expect_matches_reference(c, static_cast<uint64_t>(random.below(1 << 20)));
  });
}

TEST(ShiftedPatch, AnalyticGradientsMatchNumericOnes) {
  const std::vector<ShiftedPatchCase> tiny{
      {"two samples, masked", {.n = 2, .d = 2, .h = 2, .w = 3, .groups = 2, .out = 3}, {1, 0, 1, 1}},
      {"odd, tetra4", {.d = 3, .h = 2, .w = 3, .channels = 2, .out = 2, .shifts = ShiftSet::tetra4}, {}},
      {"image, diagonal4",
       image_params({.h = 3, .w = 4, .channels = 2, .out = 2}, 2, ShiftSet::diagonal4),
       {}},
      {"image, cardinal8, masked",
       image_params({.n = 2, .h = 4, .w = 3, .groups = 2, .out = 2}, 2, ShiftSet::cardinal8),
       {0, 1, 1, 1}},
      {"cardinal4, patch 1x2x3, shift 2x1x2",
       {.d = 2,
        .h = 3,
        .w = 4,
        .out = 2,
        .patch = {1, 2, 3},
        .shift = {2, 1, 2},
        .shifts = ShiftSet::cardinal4},
       {}},
  };
  for (const ShiftedPatchCase& c : tiny) {
    const ShiftedPatchParams& p = c.params;
    const Inputs inputs = make_inputs(c, 7);
    const Outputs<double> analytic = run_reference<double>(p, inputs);
    // Inputs and their gradients, in the same order.
    std::vector<std::vector<double>> values{widen(inputs.x),      widen(inputs.gamma), widen(inputs.beta),
                                            widen(inputs.weight), widen(inputs.bias),  widen(inputs.missing)};
    const std::vector<const std::vector<double>*> gradients{&analytic.dx,    &analytic.dgamma,
                                                            &analytic.dbeta, &analytic.dweight,
                                                            &analytic.dbias, &analytic.dmissing};
    for (size_t which = 0; which < values.size(); ++which) {
      const auto loss = [&](const std::vector<double>& changed) {
        std::vector<std::vector<double>> v = values;
        v[which] = changed;
        std::vector<double> y(inputs.dy.size());
        std::vector<double> mean(static_cast<size_t>(p.groups * p.tokens()));
        std::vector<double> rstd(mean.size());
        reference::shifted_patch_forward<double>(p, v[0].data(), c.mask.empty() ? nullptr : c.mask.data(),
                                                 v[1].data(), v[2].data(), v[3].data(), v[4].data(),
                                                 v[5].data(), y.data(), mean.data(), rstd.data());
        double sum = 0;
        for (size_t i = 0; i < y.size(); ++i) {
          sum += y[i] * static_cast<double>(inputs.dy[i]);
        }
        return sum;
      };
      expect_gradient(concat(c.name, ", input ", which), values[which], *gradients[which], loss);
    }
  }
}

TEST(ShiftedPatch, AccumulatesWhereAsked) {
  const ShiftedPatchCase& c = find_case("batch with other groups absent in each sample");
  const Inputs inputs = make_inputs(c, 55);
  for (const Device device : test_devices()) {
    const Outputs<float> fresh = run_device(device, c.params, inputs);
    const Outputs<float> added = run_device(device, c.params, inputs, GradMode::accumulate, 3.0f);
    expect_equal("dx is overwritten in either mode", added.dx, fresh.dx);
    for (const auto part : {&Outputs<float>::dgamma, &Outputs<float>::dbeta, &Outputs<float>::dweight,
                            &Outputs<float>::dbias, &Outputs<float>::dmissing}) {
      for (size_t i = 0; i < (fresh.*part).size(); ++i) {
        ASSERT_EQ((added.*part)[i], 3.0f + (fresh.*part)[i])
            << "on " << to_string(device) << ", element " << i;
      }
    }
  }
}

TEST(ShiftedPatch, GivesTheSameBitsEachTime) {
  for (const char* name : {"embedding, two of four absent", "merge, tetra4, odd extents", "65 tokens",
                           "patch 1, shift 3: reaching past several tokens",
                           "2D, diagonal4, patch 4, two of three modalities, batch",
                           "patch 2x4x3, shift 1x2x3, tetra4, masked"}) {
    const ShiftedPatchCase& c = find_case(name);
    const Inputs inputs = make_inputs(c, 21);
    for (const Device device : test_devices()) {
      expect_same_bits(std::string(name) + " on " + to_string(device), device,
                       [&] { return joined(run_device(device, c.params, inputs)); });
    }
  }
}

// Large enough for several slices of tokens on the CPU.
TEST(ShiftedPatch, DoesNotDependOnTheNumberOfThreadsAndHandlesSeveralSlices) {
  const ShiftedPatchCase c{
      "", {.n = 2, .d = 12, .h = 16, .w = 24, .groups = 2, .channels = 12, .out = 6}, {1, 1, 0, 1}};
  const Inputs inputs = make_inputs(c, 22);
  const Device cpu{DeviceType::cpu, 0};
  const int threads = thread_count();
  set_thread_count(1);
  const Outputs<float> one = run_device(cpu, c.params, inputs);
  set_thread_count(3);
  const Outputs<float> three = run_device(cpu, c.params, inputs);
  set_thread_count(threads);
  expect_equal("one thread and three", joined(three), joined(one));
  const Outputs<double> exact = run_reference<double>(c.params, inputs);
  const Outputs<float> naive = run_naive(c.params, inputs, exact);
  for (size_t i = 0; i < parts<float>().size(); ++i) {
    const auto& [name, part] = parts<float>()[i];
    expect_close(name, one.*part, exact.*(parts<double>()[i].second), naive.*part);
  }
}

// What an absent group holds leaves no trace: NaN in its voxels changes no bit of the output or of any
// gradient.
TEST(ShiftedPatch, AbsentGroupsAreNeverRead) {
  for (const char* name :
       {"embedding, two of four absent", "batch with other groups absent in each sample"}) {
    const ShiftedPatchCase& c = find_case(name);
    const ShiftedPatchParams& p = c.params;
    const Inputs inputs = make_inputs(c, 23);
    for (const float content :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 5.0f}) {
      Inputs changed = inputs;
      const int64_t voxels = p.d * p.h * p.w;
      for (int64_t i = 0; i < static_cast<int64_t>(changed.x.size()); ++i) {
        const int64_t sample = i / (voxels * p.groups * p.channels);
        const int64_t group = i / p.channels % p.groups;
        if (c.mask[static_cast<size_t>(sample * p.groups + group)] == 0) {
          changed.x[static_cast<size_t>(i)] = content;
        }
      }
      for (const Device device : test_devices()) {
        const Outputs<float> clean = run_device(device, p, inputs);
        const Outputs<float> actual = run_device(device, p, changed);
        expect_equal(concat(name, ", ", content, " in absent groups on ", to_string(device)), joined(actual),
                     joined(clean));
        for (int64_t i = 0; i < static_cast<int64_t>(actual.dx.size()); ++i) {
          const int64_t at = i / (voxels * p.groups * p.channels) * p.groups + i / p.channels % p.groups;
          if (c.mask[static_cast<size_t>(at)] == 0) {
            ASSERT_EQ(actual.dx[static_cast<size_t>(i)], 0.0f) << "gradient of an absent group's voxel";
          }
        }
      }
    }
  }
}

// Inference needs no statistics and an input layer no dx: neither changes what else is computed.
TEST(ShiftedPatch, StatisticsAndInputGradientAreOptional) {
  const ShiftedPatchCase& c = find_case("embedding, no mask");
  const ShiftedPatchParams& p = c.params;
  const Inputs in = make_inputs(c, 24);
  for (const Device device : test_devices()) {
    const Outputs<float> full = run_device(device, p, in);
    Context context(device);
    const DeviceArray<float> x(device, in.x), gamma(device, in.gamma), beta(device, in.beta),
        weight(device, in.weight);
    const DeviceArray<float> bias(device, in.bias), dy(device, in.dy);
    const DeviceArray<float> mean(device, full.mean), rstd(device, full.rstd);
    const DeviceArray<float> y(device, p.tokens() * p.out);
    const DeviceWorkspace forward(device,
                                  shifted_patch_workspace_bytes(context, p, ShiftedPatchPass::forward));
    shifted_patch_forward(context, p, x.get(), nullptr, gamma.get(), beta.get(), weight.get(), bias.get(),
                          nullptr, y.get(), nullptr, nullptr, forward);
    expect_equal("y without statistics", y.host(), full.y);
    const DeviceArray<float> dgamma(device, gamma.size()), dbeta(device, beta.size()),
        dweight(device, weight.size());
    const DeviceArray<float> dbias(device, bias.size());
    // Without a mask no group is absent, so a gradient of the missing-tokens is all zeros.
    const DeviceArray<float> dmissing(device, bias.size());
    const DeviceWorkspace backward(device,
                                   shifted_patch_workspace_bytes(context, p, ShiftedPatchPass::backward));
    shifted_patch_backward(context, p, x.get(), nullptr, gamma.get(), beta.get(), weight.get(), mean.get(),
                           rstd.get(), dy.get(), nullptr, dgamma.get(), dbeta.get(), dweight.get(),
                           dbias.get(), dmissing.get(), GradMode::overwrite, backward);
    expect_equal("dgamma without dx", dgamma.host(), full.dgamma);
    expect_equal("dweight without dx", dweight.host(), full.dweight);
    expect_equal("dmissing without mask", dmissing.host(),
                 std::vector<float>(static_cast<size_t>(bias.size()), 0.0f));
  }
}

// Kernels that read four numbers at once must see where they cannot.
TEST(ShiftedPatch, TensorsAlignedToFourBytesOnlyGiveTheSameBits) {
  const ShiftedPatchCase& c = find_case("four channels, masked, batch");
  const ShiftedPatchParams& p = c.params;
  const Inputs in = make_inputs(c, 25);
  const auto moved = [](std::vector<float> values) {
    values.insert(values.begin(), 0.0f);
    return values;
  };
  for (const Device device : test_devices()) {
    const Outputs<float> full = run_device(device, p, in);
    Context context(device);
    const DeviceArray<float> x(device, moved(in.x)), gamma(device, moved(in.gamma)),
        beta(device, moved(in.beta)), weight(device, moved(in.weight)), bias(device, in.bias),
        missing(device, in.missing), dy(device, moved(in.dy)), mean(device, moved(full.mean)),
        rstd(device, moved(full.rstd));
    const DeviceArray<float> y(device, dy.size()), dx(device, x.size()), dgamma(device, gamma.size()),
        dbeta(device, beta.size()), dweight(device, weight.size()), dbias(device, bias.size()),
        dmissing(device, bias.size());
    const DeviceArray<uint8_t> mask(device, in.mask);
    const DeviceWorkspace forward(device,
                                  shifted_patch_workspace_bytes(context, p, ShiftedPatchPass::forward));
    shifted_patch_forward(context, p, x.get() + 1, mask.get(), gamma.get() + 1, beta.get() + 1,
                          weight.get() + 1, bias.get(), missing.get(), y.get() + 1, nullptr, nullptr,
                          forward);
    const DeviceWorkspace backward(device,
                                   shifted_patch_workspace_bytes(context, p, ShiftedPatchPass::backward));
    shifted_patch_backward(context, p, x.get() + 1, mask.get(), gamma.get() + 1, beta.get() + 1,
                           weight.get() + 1, mean.get() + 1, rstd.get() + 1, dy.get() + 1, dx.get() + 1,
                           dgamma.get() + 1, dbeta.get() + 1, dweight.get() + 1, dbias.get(), dmissing.get(),
                           GradMode::overwrite, backward);
    const auto tail = [](const DeviceArray<float>& array) {
      std::vector<float> values = array.host();
      values.erase(values.begin());
      return values;
    };
    expect_equal("y", tail(y), full.y);
    expect_equal("dx", tail(dx), full.dx);
    expect_equal("dgamma", tail(dgamma), full.dgamma);
    expect_equal("dbeta", tail(dbeta), full.dbeta);
    expect_equal("dweight", tail(dweight), full.dweight);
  }
}

// Both passes with the tensors of a storage call; the parameters' gradients are added to.
void run_stored(Call& call, ShiftedPatchParams p, const Inputs& in) {
  Context& context = call.context();
  const DeviceArray<uint8_t> masks(context.device(), in.mask);
  const uint8_t* mask = in.mask.empty() ? nullptr : masks.get();
  const Data x = call.in(in.x), weight = call.in(in.weight);
  p.storage = x.dtype;
  const Data gamma = call.in_float(in.gamma), beta = call.in_float(in.beta);
  const Data missing = mask == nullptr ? Data() : call.in_float(in.missing);
  const Data dmissing = mask == nullptr ? Data() : call.in_out_float(in.missing);
  float* mean = call.out_float(p.groups * p.tokens()).as<float>("mean");
  float* rstd = call.out_float(p.groups * p.tokens()).as<float>("rstd");
  shifted_patch_forward(context, p, x, mask, gamma, beta, weight, call.in_float(in.bias), missing,
                        call.out(p.tokens() * p.out), mean, rstd,
                        call.workspace(shifted_patch_workspace_bytes(context, p, ShiftedPatchPass::forward)));
  shifted_patch_backward(
      context, p, x, mask, gamma, beta, weight, mean, rstd, call.in(in.dy),
      call.out(static_cast<int64_t>(in.x.size())), call.in_out_float(in.gamma), call.in_out_float(in.beta),
      call.in_out_float(in.weight), call.in_out_float(in.bias), dmissing, GradMode::accumulate,
      call.workspace(shifted_patch_workspace_bytes(context, p, ShiftedPatchPass::backward)));
}

TEST(ShiftedPatch, Storage) {
  for (const ShiftedPatchCase& c : kShiftedPatchCases) {
    const Inputs in = make_inputs(c, 30);
    expect_rounded_float32(c.name, [&](Call& call) { run_stored(call, c.params, in); });
  }
}

// dx gathers from several slices of tokens.
TEST(ShiftedPatch, StorageOverSeveralSlicesOnTheCpu) {
  expect_rounded_float32("slices", [](Call& call) {
    const int64_t extent = call.context().device().type == DeviceType::cpu ? 20 : 3;
    const ShiftedPatchCase c{
        "slices", {.d = extent, .h = extent, .w = extent, .channels = 8, .out = 3, .patch = {1, 1, 1}}, {}};
    run_stored(call, c.params, make_inputs(c, 31));
  });
}

TEST(ShiftedPatch, StorageTypesThatDifferAreOneLine) {
  std::vector<float> values(16384);
  float* f = values.data();
  const Data half(f, DType::bf16);
  const Workspace workspace{f, values.size() * sizeof(float)};
  ShiftedPatchParams p;
  const auto forward = [&](Context& context, ConstData x, ConstData weight, Data y) {
    shifted_patch_forward(context, p, x, nullptr, f, f, weight, f, nullptr, y, nullptr, nullptr, workspace);
  };
  for (const DeviceType type : {DeviceType::cpu, DeviceType::simt}) {
    Context context({type, 0});
    p.storage = DType::bf16;
    EXPECT_EQ(shape_error([&] { forward(context, half, half, f); }),
              "shifted_patch_forward: tensors are stored as bf16 and f32, expected one type");
    EXPECT_EQ(shape_error([&] {
                shifted_patch_backward(context, p, half, nullptr, f, f, f, f, f, half, half, f, f, f, f,
                                       nullptr, GradMode::overwrite, workspace);
              }),
              "shifted_patch_backward: tensors are stored as bf16 and f32, expected one type");
    p.storage = DType::f32;
    EXPECT_EQ(shape_error([&] { forward(context, half, half, half); }),
              "shifted_patch_forward: x is stored as bf16, the parameters say f32");
  }
}

TEST(ShiftedPatch, RejectsWrongArguments) {
  Context context(Device{DeviceType::cpu, 0});
  float x = 0;
  const uint8_t mask = 1;
  const ShiftedPatchParams good{};
  std::vector<float> scratch(shifted_patch_workspace_bytes(context, good, ShiftedPatchPass::forward) /
                             sizeof(float));
  const Workspace workspace{scratch.data(), scratch.size() * sizeof(float)};
  EXPECT_THROW(shifted_patch_workspace_bytes(context, {.d = 0}, ShiftedPatchPass::forward), ShapeError);
  EXPECT_THROW(shifted_patch_workspace_bytes(context, {.patch = {2, 0, 2}}, ShiftedPatchPass::forward),
               ShapeError);
  EXPECT_THROW(shifted_patch_workspace_bytes(context, {.patch = {65, 1, 1}}, ShiftedPatchPass::forward),
               ShapeError);
  EXPECT_THROW(shifted_patch_workspace_bytes(context, {.shift = {1, 1, -1}}, ShiftedPatchPass::backward),
               ShapeError);
  EXPECT_THROW(shifted_patch_workspace_bytes(context, {.channels = int64_t{1} << 60, .patch = {64, 64, 64}},
                                             ShiftedPatchPass::forward),
               ShapeError)
      << "a number of features that passes 2^63";
  EXPECT_THROW(shifted_patch_workspace_bytes(context, {.channels = int64_t{1} << 40, .out = 1 << 20},
                                             ShiftedPatchPass::forward),
               ShapeError);
  EXPECT_THROW(shifted_patch_forward(context, good, &x, nullptr, &x, &x, &x, &x, nullptr, &x, nullptr,
                                     nullptr, Workspace{}),
               ShapeError)
      << "no workspace";
  EXPECT_THROW(shifted_patch_forward(context, good, &x, &mask, &x, &x, &x, &x, nullptr, &x, nullptr, nullptr,
                                     workspace),
               ShapeError)
      << "a mask without missing-tokens";
  EXPECT_THROW(
      shifted_patch_forward(context, good, &x, nullptr, &x, &x, &x, &x, nullptr, &x, &x, nullptr, workspace),
      ShapeError)
      << "mean without rstd";
  EXPECT_THROW(shifted_patch_backward(context, good, &x, nullptr, &x, &x, &x, nullptr, nullptr, &x, &x, &x,
                                      &x, &x, &x, nullptr, GradMode::overwrite, workspace),
               ShapeError)
      << "no statistics";
}

// Writes every case's inputs and the CPU's results where tests/oracle/shifted_patch.py asks for them.
TEST(ShiftedPatch, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/index.txt");
  uint64_t number = 0;
  for (const ShiftedPatchCase& c : kShiftedPatchCases) {
    const ShiftedPatchParams& p = c.params;
    const Inputs in = make_inputs(c, 4000 + number);
    const Outputs<float> r = run_device(Device{DeviceType::cpu, 0}, p, in);
    index << p.n << ' ' << p.d << ' ' << p.h << ' ' << p.w << ' ' << p.groups << ' ' << p.channels << ' '
          << p.out;
    for (const auto& triple : {p.patch, p.shift}) {
      index << ' ' << triple[0] << ' ' << triple[1] << ' ' << triple[2];
    }
    index << ' ' << static_cast<int>(p.shifts) << ' ' << !c.mask.empty() << ' ' << c.name << '\n';
    const std::vector<float> mask(c.mask.begin(), c.mask.end());
    write_arrays(concat(folder, '/', number++, ".f32"),
                 {&mask, &in.x, &in.gamma, &in.beta, &in.weight, &in.bias, &in.missing, &in.dy, &r.y, &r.dx,
                  &r.dgamma, &r.dbeta, &r.dweight, &r.dbias, &r.dmissing});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
