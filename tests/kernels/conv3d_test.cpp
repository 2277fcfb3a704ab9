// conv3d on every device against the reference, in all three passes.
#include "kernels/conv3d/conv3d.hpp"

#include <cstdlib>
#include <fstream>
#include <tuple>

#include "base/parallel.hpp"
#include "kernels/conv3d/conv3d_cases.hpp"
#include "kernels/conv3d/conv3d_ref.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

struct Inputs {
  std::vector<float> x, weight, bias, dy;
};

Inputs random_inputs(const Conv3dParams& p) {
  return {random_normal(p.input_count(), 1), random_normal(p.weight_count(), 2, 0.2f),
          random_normal(p.c_out, 3), random_normal(p.output_count(), 4)};
}

Inputs integer_inputs(const Conv3dParams& p) {
  return {random_integers(p.input_count(), 1), random_integers(p.weight_count(), 2),
          random_integers(p.c_out, 3), random_integers(p.output_count(), 4)};
}

struct Outputs {
  std::vector<float> y, dx, dweight, dbias;

  std::vector<float> all() const {
    std::vector<float> values;
    for (const std::vector<float>* part : {&y, &dx, &dweight, &dbias}) {
      values.insert(values.end(), part->begin(), part->end());
    }
    return values;
  }
};

Outputs run(Context& context, const Conv3dParams& p, const Inputs& in) {
  const Device device = context.device();
  const DeviceArray<float> x(device, in.x), weight(device, in.weight), bias(device, in.bias),
      dy(device, in.dy);
  const DeviceArray<float> y(device, p.output_count()), dx(device, p.input_count());
  const DeviceArray<float> dweight(device, p.weight_count()), dbias(device, p.c_out);
  const auto workspace = [&](ConvPass pass) {
    return std::make_unique<DeviceWorkspace>(device, conv3d_workspace_bytes(context, p, pass));
  };
  conv3d_forward(context, p, x.get(), weight.get(), bias.get(), y.get(), *workspace(ConvPass::forward));
  conv3d_backward_data(context, p, dy.get(), weight.get(), dx.get(), *workspace(ConvPass::backward_data));
  conv3d_backward_weight(context, p, x.get(), dy.get(), dweight.get(), dbias.get(), GradMode::overwrite,
                         *workspace(ConvPass::backward_weight));
  return {y.host(), dx.host(), dweight.host(), dbias.host()};
}

template <class T>
struct Reference {
  std::vector<T> y, dx, dweight, dbias;
};

template <class T>
Reference<T> reference_run(const Conv3dParams& p, const Inputs& in, bool with_bias = true) {
  const std::vector<T> x(in.x.begin(), in.x.end()), weight(in.weight.begin(), in.weight.end());
  const std::vector<T> bias(in.bias.begin(), in.bias.end()), dy(in.dy.begin(), in.dy.end());
  Reference<T> e{std::vector<T>(in.dy.size()), std::vector<T>(in.x.size()), std::vector<T>(in.weight.size()),
                 std::vector<T>(in.bias.size())};
  reference::conv3d_forward(p, x.data(), weight.data(), with_bias ? bias.data() : nullptr, e.y.data());
  reference::conv3d_backward_data(p, dy.data(), weight.data(), e.dx.data());
  reference::conv3d_backward_weight(p, x.data(), dy.data(), e.dweight.data(), e.dbias.data());
  return e;
}

void expect_matches(const std::string& where, const Outputs& out, const Reference<double>& exact,
                    const Reference<float>& naive) {
  expect_close(where + "y", out.y, exact.y, naive.y);
  expect_close(where + "dx", out.dx, exact.dx, naive.dx);
  expect_close(where + "dweight", out.dweight, exact.dweight, naive.dweight);
  expect_close(where + "dbias", out.dbias, exact.dbias, naive.dbias);
}

TEST(Conv3d, MatchesTheReference) {
  for (const Conv3dCase& c : kConv3dCases) {
    const Inputs in = random_inputs(c.params);
    const Reference<double> exact = reference_run<double>(c.params, in);
    const Reference<float> naive = reference_run<float>(c.params, in);
    for (const Device device : test_devices()) {
      Context context(device);
      expect_matches(concat(c.name, " on ", to_string(device), ": "), run(context, c.params, in), exact,
                     naive);
    }
  }
}

// Nothing to compute for no samples; their sums are 0, and leave what is accumulated into as it was.
TEST(Conv3d, NoSamples) {
  for (const Device device : test_devices()) {
    for (const auto& kernel : {std::array{3, 3, 3}, std::array{2, 2, 2}}) {
      Conv3dParams p{.n = 0, .d = 3, .h = 4, .w = 5, .c_in = 2, .c_out = 3, .kernel = kernel};
      if (kernel[0] == 2) {
        p.stride = kernel;
        p.padding = {};
      }
      Context context(device);
      const Outputs out = run(context, p, random_inputs(p));
      EXPECT_TRUE(out.y.empty() && out.dx.empty());
      EXPECT_EQ(out.dweight, std::vector<float>(static_cast<size_t>(p.weight_count()), 0.0f));
      EXPECT_EQ(out.dbias, std::vector<float>(3, 0.0f));
      const std::vector<float> before = random_normal(p.weight_count(), 1);
      const DeviceArray<float> dweight(device, before);
      const DeviceWorkspace workspace(device, conv3d_workspace_bytes(context, p, ConvPass::backward_weight));
      conv3d_backward_weight(context, p, nullptr, nullptr, dweight.get(), nullptr, GradMode::accumulate,
                             workspace);
      expect_equal(to_string(device), dweight.host(), before);
    }
  }
}

// Several slabs of the bias gradient, both threads, on the CPU.
TEST(Conv3d, LargerVolumesOnTheCpu) {
  for (const Conv3dParams& p : {Conv3dParams{.n = 2, .d = 17, .h = 16, .w = 18, .c_in = 5, .c_out = 18},
                                Conv3dParams{.n = 1,
                                .d = 16,
                                .h = 18,
                                .w = 20,
                                .c_in = 21,
                                .c_out = 3,
                                .kernel = {1, 1, 1},
                                .padding = {0, 0, 0}},
                                Conv3dParams{.n = 2,
                                .d = 16,
                                .h = 17,
                                .w = 18,
                                .c_in = 35,
                                .c_out = 35,
                                .stride = {1, 2, 1},
                                .padding = {2, 2, 2},
                                .dilation = {2, 2, 2},
                                .groups = 35}}) {
    const Inputs in = random_inputs(p);
    Context context(Device{});
    expect_matches("cpu: ", run(context, p, in), reference_run<double>(p, in), reference_run<float>(p, in));
  }
}

// Where vectors of channels cannot be read at once the kernels on devices go another way, in the same order.
TEST(Conv3d, MisalignedTensorsGiveTheSameBits) {
  const auto shifted = [](Device device, const std::vector<float>& values) {
    std::vector<float> moved(1, 0.0f);
    moved.insert(moved.end(), values.begin(), values.end());
    return DeviceArray<float>(device, moved);
  };
  const auto tail = [](const DeviceArray<float>& array) {
    const std::vector<float> values = array.host();
    return std::vector<float>(values.begin() + 1, values.end());
  };
  for (const Conv3dCase& c : kConv3dCases) {
    const Conv3dParams& p = c.params;
    const Inputs in = random_inputs(p);
    for (const Device device : test_devices_where_cpu_is(false)) {
      Context context(device);
      const std::string where = concat(c.name, " on ", to_string(device), ": ");
      const Outputs expected = run(context, p, in);
      const DeviceArray<float> x = shifted(device, in.x), weight = shifted(device, in.weight),
                               bias = shifted(device, in.bias), dy = shifted(device, in.dy);
      const DeviceArray<float> y(device, p.output_count() + 1), dx(device, p.input_count() + 1),
          dweight(device, p.weight_count() + 1), dbias(device, p.c_out + 1);
      const auto workspace = [&](ConvPass pass) {
        return std::make_unique<DeviceWorkspace>(device, conv3d_workspace_bytes(context, p, pass));
      };
      conv3d_forward(context, p, x + 1, weight + 1, bias + 1, y + 1, *workspace(ConvPass::forward));
      conv3d_backward_data(context, p, dy + 1, weight + 1, dx + 1, *workspace(ConvPass::backward_data));
      conv3d_backward_weight(context, p, x + 1, dy + 1, dweight + 1, dbias + 1, GradMode::overwrite,
                             *workspace(ConvPass::backward_weight));
      expect_equal(where + "y", tail(y), expected.y);
      expect_equal(where + "dx", tail(dx), expected.dx);
      expect_equal(where + "dweight", tail(dweight), expected.dweight);
      expect_equal(where + "dbias", tail(dbias), expected.dbias);
    }
  }
}

// Half of them with numbers that float32 adds exactly: there a wrong index cannot hide behind rounding.
TEST(Conv3d, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const Conv3dParams p = draw_conv3d(random);
    const bool integers = random.bernoulli(0.5f);
    const Inputs in = integers ? integer_inputs(p) : random_inputs(p);
    const Reference<double> exact = reference_run<double>(p, in);
    const Reference<float> naive = reference_run<float>(p, in);
    for (const Device device : test_devices()) {
      Context context(device);
      const std::string where = concat(to_string(device), ": ");
      const Outputs out = run(context, p, in);
      if (integers) {
        expect_equal(where + "y", out.y, exact.y);
        expect_equal(where + "dx", out.dx, exact.dx);
        expect_equal(where + "dweight", out.dweight, exact.dweight);
        expect_equal(where + "dbias", out.dbias, exact.dbias);
      } else {
        expect_matches(where, out, exact, naive);
      }
    }
  });
}

TEST(Conv3d, IsExactForIntegersWithAndWithoutBias) {
  for (const Conv3dCase& c : kConv3dCases) {
    const Conv3dParams& p = c.params;
    const Inputs in = integer_inputs(p);
    const Reference<double> exact = reference_run<double>(p, in);
    const Reference<double> plain = reference_run<double>(p, in, false);
    for (const Device device : test_devices()) {
      Context context(device);
      const std::string where = concat(c.name, " on ", to_string(device), ": ");
      const Outputs out = run(context, p, in);
      expect_equal(where + "y", out.y, exact.y);
      expect_equal(where + "dx", out.dx, exact.dx);
      expect_equal(where + "dweight", out.dweight, exact.dweight);
      expect_equal(where + "dbias", out.dbias, exact.dbias);
      const DeviceArray<float> x(device, in.x), weight(device, in.weight), y(device, p.output_count());
      const DeviceWorkspace workspace(device, conv3d_workspace_bytes(context, p, ConvPass::forward));
      conv3d_forward(context, p, x.get(), weight.get(), nullptr, y.get(), workspace);
      expect_equal(where + "y without bias", y.host(), plain.y);
    }
  }
}

TEST(Conv3d, AccumulatesGradientsAndLeavesTheBiasAlone) {
  for (const Conv3dCase& c : kConv3dCases) {
    const Conv3dParams& p = c.params;
    const Inputs in = integer_inputs(p);
    Reference<double> exact = reference_run<double>(p, in);
    const std::vector<float> weight_before = random_integers(p.weight_count(), 5);
    const std::vector<float> bias_before = random_integers(p.c_out, 6);
    for (size_t i = 0; i < weight_before.size(); ++i) {
      exact.dweight[i] += static_cast<double>(weight_before[i]);
    }
    for (size_t i = 0; i < bias_before.size(); ++i) {
      exact.dbias[i] += static_cast<double>(bias_before[i]);
    }
    for (const Device device : test_devices()) {
      Context context(device);
      const std::string where = concat(c.name, " on ", to_string(device), ": ");
      const DeviceArray<float> x(device, in.x), dy(device, in.dy);
      const DeviceArray<float> dweight(device, weight_before), dbias(device, bias_before);
      const DeviceArray<float> without_bias(device, weight_before);
      const DeviceWorkspace workspace(device, conv3d_workspace_bytes(context, p, ConvPass::backward_weight));
      conv3d_backward_weight(context, p, x.get(), dy.get(), dweight.get(), dbias.get(), GradMode::accumulate,
                             workspace);
      conv3d_backward_weight(context, p, x.get(), dy.get(), without_bias.get(), nullptr, GradMode::accumulate,
                             workspace);
      expect_equal(where + "dweight", dweight.host(), exact.dweight);
      expect_equal(where + "dbias", dbias.host(), exact.dbias);
      expect_equal(where + "dweight without dbias", without_bias.host(), exact.dweight);
    }
  }
}

TEST(Conv3d, RepeatsBitForBit) {
  for (const Conv3dCase& c : kConv3dCases) {
    const Inputs in = random_inputs(c.params);
    for (const Device device : test_devices()) {
      Context context(device);
      expect_same_bits(concat(c.name, " on ", to_string(device)), device,
                       [&] { return run(context, c.params, in).all(); });
    }
  }
}

// The same context serves other shapes, weights and thread counts in between; nothing of them may stay.
TEST(Conv3d, IsIndependentOfEarlierCalls) {
  const Conv3dParams p{.n = 1, .d = 9, .h = 10, .w = 11, .c_in = 12, .c_out = 20};
  const Conv3dParams other{.n = 1, .d = 5, .h = 6, .w = 7, .c_in = 20, .c_out = 12};
  const Inputs in = random_inputs(p);
  Inputs changed = in;
  for (float& weight : changed.weight) {
    weight *= 2.0f;
  }
  Context fresh(Device{});
  const std::vector<float> expected = run(fresh, p, in).all();
  Context used(Device{});
  run(used, p, changed);
  run(used, other, random_inputs(other));
  const int threads = thread_count();
  set_thread_count(threads == 1 ? 2 : 1);
  run(used, p, in);
  set_thread_count(threads);
  expect_equal("after other calls", run(used, p, in).all(), expected);
}

// Every pass with every stored tensor; without a bias and adding to the gradients too.
void run_stored(Call& c, Conv3dParams p, const Inputs& in, const std::vector<float>& before) {
  p.storage = c.storage();
  const auto workspace = [&](ConvPass pass) {
    return c.workspace(conv3d_workspace_bytes(c.context(), p, pass));
  };
  // Results are compared in the order in which they are made here.
  const Data y = c.out(p.output_count()), plain = c.out(p.output_count()), dx = c.out(p.input_count());
  const Data dweight = c.out_float(p.weight_count()), dbias = c.out_float(p.c_out),
             sum = c.in_out_float(before);
  conv3d_forward(c.context(), p, c.in(in.x), c.in(in.weight), c.in_float(in.bias), y,
                 workspace(ConvPass::forward));
  conv3d_forward(c.context(), p, c.in(in.x), c.in(in.weight), nullptr, plain, workspace(ConvPass::forward));
  conv3d_backward_data(c.context(), p, c.in(in.dy), c.in(in.weight), dx, workspace(ConvPass::backward_data));
  conv3d_backward_weight(c.context(), p, c.in(in.x), c.in(in.dy), dweight, dbias, GradMode::overwrite,
                         workspace(ConvPass::backward_weight));
  conv3d_backward_weight(c.context(), p, c.in(in.x), c.in(in.dy), sum, nullptr, GradMode::accumulate,
                         workspace(ConvPass::backward_weight));
}

std::vector<Expected> stored_reference(DType dtype, const Conv3dParams& p, const Inputs& in,
                                       const std::vector<float>& before) {
  const Inputs held{rounded(dtype, in.x), rounded(dtype, in.weight), rounded(dtype, in.bias),
                    rounded(dtype, in.dy)};
  const Reference<double> exact = reference_run<double>(p, held);
  const Reference<float> naive = reference_run<float>(p, held);
  std::vector<double> exact_sum = exact.dweight;
  std::vector<float> naive_sum = naive.dweight;
  for (size_t i = 0; i < before.size(); ++i) {
    exact_sum[i] += static_cast<double>(rounded(dtype, before[i]));
    naive_sum[i] += rounded(dtype, before[i]);
  }
  return {{exact.y, naive.y},
          {reference_run<double>(p, held, false).y, reference_run<float>(p, held, false).y},
          {exact.dx, naive.dx},
          {exact.dweight, naive.dweight},
          {exact.dbias, naive.dbias},
          {exact_sum, naive_sum}};
}

// On the CPU oneDNN's sgemm adds in another order where a 1x1x1 convolution is cut into blocks to be widened.
TEST(Conv3d, Storage) {
  for (const Conv3dCase& c : kConv3dCases) {
    const Inputs in = random_inputs(c.params);
    const std::vector<float> before = random_normal(c.params.weight_count(), 7);
    const auto run_case = [&](Call& call) { run_stored(call, c.params, in, before); };
    const bool is_product = c.params.taps() == 1 && c.params.groups == 1;
    expect_rounded_float32(c.name, run_case, is_product ? test_devices_where_cpu_is(false) : test_devices());
    if (is_product) {
      expect_close_when_stored(
          c.name, run_case, [&](DType dtype) { return stored_reference(dtype, c.params, in, before); },
          test_devices_where_cpu_is(true));
    }
  }
}

// Several registers of channels, ragged, and a multiplier, where the CPU has loops of its own.
TEST(Conv3d, StorageOnTheCpu) {
  for (const Conv3dParams& p :
       {Conv3dParams{.n = 2, .d = 6, .h = 7, .w = 8, .c_in = 83, .c_out = 83, .groups = 83},
        Conv3dParams{.n = 2, .d = 6, .h = 7, .w = 8, .c_in = 19, .c_out = 38, .groups = 19}}) {
    const Inputs in = random_inputs(p);
    const std::vector<float> before = random_normal(p.weight_count(), 7);
    expect_rounded_float32(concat(p.c_in, " to ", p.c_out, " channels"),
                           [&](Call& call) { run_stored(call, p, in, before); }, {Device{}});
  }
}

TEST(Conv3d, ReferenceGradientsMatchNumericDifferences) {
  for (const Conv3dParams& p : {Conv3dParams{.n = 2,
                               .d = 3,
                               .h = 2,
                               .w = 4,
                               .c_in = 2,
                               .c_out = 3,
                               .kernel = {3, 2, 3},
                               .stride = {2, 1, 1},
                               .padding = {1, 0, 2}},
                                Conv3dParams{.d = 5,
                                .h = 4,
                                .w = 3,
                                .c_in = 4,
                                .c_out = 6,
                                .kernel = {2, 3, 2},
                                .stride = {2, 1, 1},
                                .padding = {2, 1, 0},
                                .dilation = {3, 2, 1},
                                .groups = 2,
                                .padding_end = std::array{0, 3, 1}}}) {
    const Inputs in = random_inputs(p);
    const Reference<double> analytic = reference_run<double>(p, in);
    const std::vector<double> x = widen(in.x), weight = widen(in.weight), bias = widen(in.bias),
                              dy = widen(in.dy);
    const auto loss = [&](const std::vector<double>& a, const std::vector<double>& w,
                          const std::vector<double>& b) {
      std::vector<double> y(dy.size());
      reference::conv3d_forward(p, a.data(), w.data(), b.data(), y.data());
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        sum += y[i] * dy[i];
      }
      return sum;
    };
    expect_gradient("dx", x, analytic.dx,
                    [&](const std::vector<double>& v) { return loss(v, weight, bias); });
    expect_gradient("dweight", weight, analytic.dweight,
                    [&](const std::vector<double>& v) { return loss(x, v, bias); });
    expect_gradient("dbias", bias, analytic.dbias,
                    [&](const std::vector<double>& v) { return loss(x, weight, v); });
  }
}

// Writes every case's and some random shapes' inputs and the CPU's results where tests/oracle/convolution.py
// asks for them.
TEST(Conv3d, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::vector<Conv3dCase> cases = kConv3dCases;
  RandomStream random(31, 0, 0);
  for (int i = 0; i < 40; ++i) {
    cases.push_back({concat("random_", i), draw_conv3d(random)});
  }
  std::ofstream index(std::string(folder) + "/index.txt");
  int number = 0;
  for (const Conv3dCase& c : cases) {
    const Conv3dParams& p = c.params;
    const Inputs in = random_inputs(p);
    Context context(Device{});
    const Outputs out = run(context, p, in);
    index << "conv3d " << p.n << ' ' << p.d << ' ' << p.h << ' ' << p.w << ' ' << p.c_in << ' ' << p.c_out
          << ' ' << p.groups;
    for (const auto& triple : {p.kernel, p.stride, p.padding, p.dilation, p.far_padding()}) {
      index << ' ' << triple[0] << ' ' << triple[1] << ' ' << triple[2];
    }
    index << ' ' << c.name << '\n';
    write_arrays(concat(folder, '/', number++, ".f32"),
                 {&in.x, &in.weight, &in.bias, &in.dy, &out.y, &out.dx, &out.dweight, &out.dbias});
  }
  ASSERT_TRUE(index.good());
}

TEST(Conv3d, RefusesWrongArguments) {
  const Conv3dParams good{.d = 2, .h = 2, .w = 2};
  EXPECT_NO_THROW(check_params(good, "test"));
  for (const auto change : std::vector<void (*)(Conv3dParams&)>{
           [](Conv3dParams& p) { p.n = -1; }, [](Conv3dParams& p) { p.w = 0; },
           [](Conv3dParams& p) { p.c_in = 0; }, [](Conv3dParams& p) { p.c_out = 0; },
           [](Conv3dParams& p) { p.kernel[1] = 8; }, [](Conv3dParams& p) { p.kernel[2] = 0; },
           [](Conv3dParams& p) { p.stride[0] = 0; }, [](Conv3dParams& p) { p.padding[0] = -1; },
           [](Conv3dParams& p) {
             p.padding_end = std::array{1, -1, 1};
           },
           [](Conv3dParams& p) { p.dilation[1] = 0; }, [](Conv3dParams& p) { p.dilation[2] = 2; },
           [](Conv3dParams& p) { p.storage = DType::i32; }, [](Conv3dParams& p) { p.groups = 0; },
           [](Conv3dParams& p) { p.groups = 2; },
           [](Conv3dParams& p) { p.c_in = 4, p.c_out = 6, p.groups = 4; },
           [](Conv3dParams& p) { p.c_in = 6, p.c_out = 4, p.groups = 6; },
           [](Conv3dParams& p) {
             p.padding = {0, 0, 0};
           }}) {
    Conv3dParams bad = good;
    change(bad);
    EXPECT_THROW(check_params(bad, "test"), ShapeError);
  }
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> value(device, 64);
    const DeviceArray<bf16> half(device, 64);
    const size_t bytes = conv3d_workspace_bytes(context, good, ConvPass::backward_weight);
    const DeviceWorkspace workspace(device, bytes);
    EXPECT_THROW(conv3d_forward(context, good, value.get(), nullptr, nullptr, value.get(), workspace),
                 ShapeError);
    Conv3dParams stored = good;
    stored.storage = DType::bf16;
    for (const auto& [p, x, dy, message] :
         {std::tuple<Conv3dParams, Data, Data, const char*>{
              good, half.get(), value.get(),
              "conv3d_backward_weight: a tensor is stored as bf16, params.storage is f32"},
          {stored, half.get(), value.get(),
           "conv3d_backward_weight: a tensor is stored as f32, params.storage is bf16"}}) {
      EXPECT_EQ(shape_error([&] {
                  conv3d_backward_weight(context, p, x, dy, value.get(), nullptr, GradMode::overwrite,
                                         workspace);
                }),
                message);
    }
    EXPECT_THROW(conv3d_backward_weight(context, good, value.get(), value.get(), value.get(), nullptr,
                                        GradMode::overwrite, {}),
                 ShapeError);
  }
}

}  // namespace
}  // namespace vesal::kernels::testing
