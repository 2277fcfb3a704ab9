// linear on every device against the reference, in all three passes.
#include "kernels/linear/linear.hpp"

#include "base/parallel.hpp"
#include "kernels/linear/linear_cases.hpp"
#include "kernels/linear/linear_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

struct Inputs {
  std::vector<float> x, weight, bias, dy;
};

Inputs random_inputs(const LinearParams& p, uint64_t seed = 1) {
  return {random_normal(p.rows * p.in, seed), random_normal(p.out * p.in, seed + 1, 0.3f),
          random_normal(p.out, seed + 2), random_normal(p.rows * p.out, seed + 3)};
}

Inputs integer_inputs(const LinearParams& p) {
  return {random_integers(p.rows * p.in, 1), random_integers(p.out * p.in, 2), random_integers(p.out, 3),
          random_integers(p.rows * p.out, 4)};
}

struct Outputs {
  std::vector<float> y, pre_activation, dx, dweight, dbias;

  std::vector<float> all() const {
    std::vector<float> values;
    for (const std::vector<float>* part : {&y, &pre_activation, &dx, &dweight, &dbias}) {
      values.insert(values.end(), part->begin(), part->end());
    }
    return values;
  }
};

Outputs run(Context& context, const LinearParams& p, const Inputs& in, bool with_bias = true) {
  const Device device = context.device();
  const DeviceArray<float> x(device, in.x), weight(device, in.weight), bias(device, in.bias),
      dy(device, in.dy);
  const DeviceArray<float> y(device, p.rows * p.out), pre(device, p.rows * p.out), dx(device, p.rows * p.in);
  const DeviceArray<float> dweight(device, p.out * p.in), dbias(device, p.out);
  const auto workspace = [&](LinearPass pass) {
    return std::make_unique<DeviceWorkspace>(device, linear_workspace_bytes(context, p, pass));
  };
  linear_forward(context, p, x.get(), weight.get(), with_bias ? ConstData(bias.get()) : nullptr, y.get(),
                 with_bias ? Data(pre.get()) : nullptr, *workspace(LinearPass::forward));
  linear_backward_data(context, p, dy.get(), weight.get(), dx.get(), *workspace(LinearPass::backward_data));
  linear_backward_weight(context, p, x.get(), dy.get(), dweight.get(),
                         with_bias ? Data(dbias.get()) : nullptr, GradMode::overwrite,
                         *workspace(LinearPass::backward_weight));
  return {y.host(), pre.host(), dx.host(), dweight.host(), dbias.host()};
}

template <class T>
struct Reference {
  std::vector<T> y, pre_activation, dx, dweight, dbias;
};

template <class T>
Reference<T> reference_run(const LinearParams& p, const Inputs& in, bool with_bias = true) {
  const std::vector<T> x(in.x.begin(), in.x.end()), weight(in.weight.begin(), in.weight.end());
  const std::vector<T> bias(in.bias.begin(), in.bias.end()), dy(in.dy.begin(), in.dy.end());
  Reference<T> e{std::vector<T>(in.dy.size()), std::vector<T>(in.dy.size()), std::vector<T>(in.x.size()),
                 std::vector<T>(in.weight.size()), std::vector<T>(in.bias.size())};
  reference::linear_forward(p, x.data(), weight.data(), with_bias ? bias.data() : nullptr, e.y.data(),
                            e.pre_activation.data());
  reference::linear_backward_data(p, dy.data(), weight.data(), e.dx.data());
  reference::linear_backward_weight(p, x.data(), dy.data(), e.dweight.data(), e.dbias.data());
  return e;
}

TEST(Linear, MatchesTheReference) {
  for (const LinearCase& c : kLinearCases) {
    const Inputs in = random_inputs(c.params);
    const Reference<double> exact = reference_run<double>(c.params, in);
    const Reference<float> naive = reference_run<float>(c.params, in);
    for (const Device device : test_devices()) {
      Context context(device);
      const std::string where = concat(c.name, " on ", to_string(device), ": ");
      const Outputs out = run(context, c.params, in);
      expect_close(where + "y", out.y, exact.y, naive.y);
      expect_close(where + "pre_activation", out.pre_activation, exact.pre_activation, naive.pre_activation);
      expect_close(where + "dx", out.dx, exact.dx, naive.dx);
      expect_close(where + "dweight", out.dweight, exact.dweight, naive.dweight);
      expect_close(where + "dbias", out.dbias, exact.dbias, naive.dbias);
    }
  }
}

TEST(Linear, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const LinearParams p = random_linear_params(random);
    const bool with_bias = random.below(3) != 0;
    SCOPED_TRACE(concat("[", p.rows, ", ", p.in, "] to ", p.out, ", activation ",
                        static_cast<int>(p.activation), with_bias ? ", bias" : ""));
    const Inputs in = random_inputs(p, static_cast<uint64_t>(random.below(1 << 20)));
    const Reference<double> exact = reference_run<double>(p, in, with_bias);
    Reference<float> naive = reference_run<float>(p, in, with_bias);
    // A handful of elements: a single float32 evaluation may be exact by luck.
    for (int trial = 0; trial < 4; ++trial) {
      Inputs moved = in;
      moved.x = moved_by_one_ulp(in.x, random);
      moved.weight = moved_by_one_ulp(in.weight, random);
      moved.dy = moved_by_one_ulp(in.dy, random);
      const Reference<float> other = reference_run<float>(p, moved, with_bias);
      keep_worse(naive.y, other.y, exact.y);
      keep_worse(naive.pre_activation, other.pre_activation, exact.pre_activation);
      keep_worse(naive.dx, other.dx, exact.dx);
      keep_worse(naive.dweight, other.dweight, exact.dweight);
      keep_worse(naive.dbias, other.dbias, exact.dbias);
    }
    for (const Device device : test_devices()) {
      Context context(device);
      const std::string where = to_string(device) + ": ";
      const Outputs out = run(context, p, in, with_bias);
      expect_close(where + "y", out.y, exact.y, naive.y);
      expect_close(where + "dx", out.dx, exact.dx, naive.dx);
      expect_close(where + "dweight", out.dweight, exact.dweight, naive.dweight);
      if (with_bias) {
        expect_close(where + "pre_activation", out.pre_activation, exact.pre_activation,
                     naive.pre_activation);
        expect_close(where + "dbias", out.dbias, exact.dbias, naive.dbias);
      }
    }
  });
}

// Large enough for the blocked forward pass on the CPU (several blocks a thread, a ragged last one).
TEST(Linear, ManyRowsInBlocksOnTheCpu) {
  const LinearParams p{.rows = 20011, .in = 13, .out = 21, .activation = Activation::gelu};
  const Inputs in = random_inputs(p);
  Context context(Device{});
  const Outputs out = run(context, p, in);
  const Reference<double> exact = reference_run<double>(p, in);
  const Reference<float> naive = reference_run<float>(p, in);
  expect_close("y", out.y, exact.y, naive.y);
  expect_close("pre_activation", out.pre_activation, exact.pre_activation, naive.pre_activation);
  expect_close("dweight", out.dweight, exact.dweight, naive.dweight);
  expect_close("dbias", out.dbias, exact.dbias, naive.dbias);
}

TEST(Linear, IsExactForIntegersAndWithoutBias) {
  for (const LinearCase& c : kLinearCases) {
    LinearParams p = c.params;
    p.activation = p.activation == Activation::gelu ? Activation::none : p.activation;
    const Inputs in = integer_inputs(p);
    const Reference<double> exact = reference_run<double>(p, in, false);
    for (const Device device : test_devices()) {
      Context context(device);
      const std::string where = concat(c.name, " on ", to_string(device), ": ");
      const Outputs out = run(context, p, in, false);
      expect_equal(where + "y", out.y, exact.y);
      expect_equal(where + "dx", out.dx, exact.dx);
      expect_equal(where + "dweight", out.dweight, exact.dweight);
    }
  }
}

TEST(Linear, AccumulatesGradients) {
  for (const LinearCase& c : kLinearCases) {
    const Inputs in = integer_inputs(c.params);
    Reference<double> exact = reference_run<double>(c.params, in);
    const std::vector<float> weight_before = random_integers(c.params.out * c.params.in, 5);
    const std::vector<float> bias_before = random_integers(c.params.out, 6);
    for (size_t i = 0; i < weight_before.size(); ++i) {
      exact.dweight[i] += static_cast<double>(weight_before[i]);
    }
    for (size_t i = 0; i < bias_before.size(); ++i) {
      exact.dbias[i] += static_cast<double>(bias_before[i]);
    }
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceArray<float> x(device, in.x), dy(device, in.dy);
      const DeviceArray<float> dweight(device, weight_before), dbias(device, bias_before);
      const DeviceWorkspace workspace(device,
                                      linear_workspace_bytes(context, c.params, LinearPass::backward_weight));
      linear_backward_weight(context, c.params, x.get(), dy.get(), dweight.get(), dbias.get(),
                             GradMode::accumulate, workspace);
      expect_equal(c.name + ": dweight", dweight.host(), exact.dweight);
      expect_equal(c.name + ": dbias", dbias.host(), exact.dbias);
    }
  }
}

TEST(Linear, RepeatsBitForBit) {
  for (const LinearCase& c : kLinearCases) {
    const Inputs in = random_inputs(c.params);
    for (const Device device : test_devices()) {
      Context context(device);
      expect_same_bits(concat(c.name, " on ", to_string(device)), device,
                       [&] { return run(context, c.params, in).all(); });
    }
  }
}

// A base pointer that is aligned to a float only: the kernel falls back to scalar loads.
TEST(Linear, AcceptsPointersAlignedToAFloat) {
  const LinearParams p{.rows = 5, .in = 8, .out = 4};
  const Inputs in = integer_inputs(p);
  const Reference<double> exact = reference_run<double>(p, in);
  for (const Device device : test_devices()) {
    Context context(device);
    std::vector<float> shifted_x = in.x, shifted_weight = in.weight;
    shifted_x.insert(shifted_x.begin(), NAN);
    shifted_weight.insert(shifted_weight.begin(), NAN);
    const DeviceArray<float> x(device, shifted_x), weight(device, shifted_weight), bias(device, in.bias);
    const DeviceArray<float> y(device, p.rows * p.out);
    const DeviceWorkspace workspace(device, linear_workspace_bytes(context, p, LinearPass::forward));
    linear_forward(context, p, x.get() + 1, weight.get() + 1, bias.get(), y.get(), nullptr, workspace);
    expect_equal(to_string(device), y.host(), exact.y);
  }
}

TEST(Linear, PropagatesNanThroughActivations) {
  for (const Activation activation : {Activation::none, Activation::relu, Activation::gelu}) {
    const LinearParams p{.rows = 1, .in = 1, .out = 1, .activation = activation};
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceArray<float> x(device, std::vector<float>{NAN}), weight(device, std::vector<float>{1.0f});
      const DeviceArray<float> y(device, std::vector<float>{0.0f});
      const DeviceWorkspace workspace(device, linear_workspace_bytes(context, p, LinearPass::forward));
      linear_forward(context, p, x.get(), weight.get(), nullptr, y.get(), nullptr, workspace);
      EXPECT_TRUE(std::isnan(y.host()[0])) << to_string(device);
    }
  }
}

// Every pass with every stored tensor, and a second time adding to the gradients.
void run_stored(Call& c, const LinearParams& p, const Inputs& in, const std::vector<float>& before) {
  const auto workspace = [&](LinearPass pass) {
    return c.workspace(linear_workspace_bytes(c.context(), p, pass));
  };
  // Results are compared in the order in which they are made here.
  const Data y = c.out(p.rows * p.out), pre_activation = c.out(p.rows * p.out), plain = c.out(p.rows * p.out);
  const Data dx = c.out(p.rows * p.in);
  const Data dweight = c.out_float(p.out * p.in), dbias = c.out_float(p.out), sum = c.in_out_float(before);
  linear_forward(c.context(), p, c.in(in.x), c.in(in.weight), c.in_float(in.bias), y, pre_activation,
                 workspace(LinearPass::forward));
  linear_forward(c.context(), p, c.in(in.x), c.in(in.weight), nullptr, plain, nullptr,
                 workspace(LinearPass::forward));
  linear_backward_data(c.context(), p, c.in(in.dy), c.in(in.weight), dx,
                       workspace(LinearPass::backward_data));
  linear_backward_weight(c.context(), p, c.in(in.x), c.in(in.dy), dweight, dbias, GradMode::overwrite,
                         workspace(LinearPass::backward_weight));
  linear_backward_weight(c.context(), p, c.in(in.x), c.in(in.dy), sum, nullptr, GradMode::accumulate,
                         workspace(LinearPass::backward_weight));
}

std::vector<Expected> stored_reference(DType dtype, const LinearParams& p, const Inputs& in,
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
          {exact.pre_activation, naive.pre_activation},
          {reference_run<double>(p, held, false).y, reference_run<float>(p, held, false).y},
          {exact.dx, naive.dx},
          {exact.dweight, naive.dweight},
          {exact.dbias, naive.dbias},
          {exact_sum, naive_sum}};
}

// On the CPU oneDNN's sums run in other orders for a whole tensor than for the blocks that are widened.
TEST(Linear, Storage) {
  for (const LinearCase& c : kLinearCases) {
    const Inputs in = random_inputs(c.params);
    const std::vector<float> before = random_normal(c.params.out * c.params.in, 7);
    const auto run_case = [&](Call& call) { run_stored(call, c.params, in, before); };
    expect_rounded_float32(c.name, run_case, test_devices_where_cpu_is(false));
    expect_close_when_stored(
        c.name, run_case, [&](DType dtype) { return stored_reference(dtype, c.params, in, before); },
        test_devices_where_cpu_is(true));
  }
}

// Several blocks and slabs, ragged last ones.
TEST(Linear, StorageOfManyRowsOnTheCpu) {
  const LinearParams p{.rows = 20011, .in = 13, .out = 21, .activation = Activation::gelu};
  const Inputs in = random_inputs(p);
  const std::vector<float> before = random_normal(p.out * p.in, 7);
  const auto run_case = [&](Call& call) { run_stored(call, p, in, before); };
  expect_close_when_stored("many rows", run_case,
                           [&](DType dtype) { return stored_reference(dtype, p, in, before); }, {Device{}});
  const int threads = thread_count();
  std::vector<std::vector<float>> results;
  for (const int count : {1, 2, 3}) {
    set_thread_count(count);
    Call call(Device{}, DType::bf16, DType::bf16);
    run_case(call);
    results.emplace_back();
    for (const Call::Result& result : call.results()) {
      results.back().insert(results.back().end(), result.values.begin(), result.values.end());
    }
  }
  set_thread_count(threads);
  expect_equal("two threads", results[1], results[0]);
  expect_equal("three threads", results[2], results[0]);
}

TEST(Linear, ReferenceGradientsMatchNumericDifferences) {
  const LinearParams p{.rows = 4, .in = 3, .out = 5};
  const Inputs in = random_inputs(p);
  const Reference<double> analytic = reference_run<double>(p, in);
  const std::vector<double> x = widen(in.x), weight = widen(in.weight), bias = widen(in.bias),
                            dy = widen(in.dy);
  const auto loss = [&](const std::vector<double>& a, const std::vector<double>& w,
                        const std::vector<double>& b) {
    std::vector<double> y(dy.size());
    reference::linear_forward<double>(p, a.data(), w.data(), b.data(), y.data(), nullptr);
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      sum += y[i] * dy[i];
    }
    return sum;
  };
  expect_gradient("dx", x, analytic.dx, [&](const std::vector<double>& v) { return loss(v, weight, bias); });
  expect_gradient("dweight", weight, analytic.dweight,
                  [&](const std::vector<double>& v) { return loss(x, v, bias); });
  expect_gradient("dbias", bias, analytic.dbias,
                  [&](const std::vector<double>& v) { return loss(x, weight, v); });
}

TEST(Linear, RefusesWrongArguments) {
  Context context(Device{});
  float value = 0;
  EXPECT_THROW(linear_workspace_bytes(context, {.rows = -1, .in = 1, .out = 1}, LinearPass::forward),
               ShapeError);
  EXPECT_THROW(linear_workspace_bytes(context, {.rows = 1, .in = 0, .out = 1}, LinearPass::forward),
               ShapeError);
  EXPECT_THROW(
      linear_workspace_bytes(context, {.rows = 1, .in = 1, .out = 1, .activation = Activation::leaky_relu},
                             LinearPass::forward),
      ShapeError);
  EXPECT_THROW(
      linear_forward(context, {.rows = 1, .in = 1, .out = 1}, &value, nullptr, nullptr, &value, nullptr, {}),
      ShapeError);
  bf16 half{1.0f};
  EXPECT_EQ(shape_error([&] {
              linear_forward(context, {.rows = 1, .in = 1, .out = 1}, &half, &value, nullptr, &value, nullptr,
                             {});
            }),
            "linear_forward: tensors are stored as bf16 and f32, expected one type");
  EXPECT_THROW(
      linear_forward(context, {.rows = 1, .in = 1, .out = 1}, &half, &half, &half, &half, nullptr, {}),
      ShapeError);
  std::vector<float> scratch(1024);
  EXPECT_THROW(linear_backward_weight(context, {.rows = 1, .in = 1, .out = 1}, &half, &half, &half, nullptr,
                                      GradMode::overwrite, {scratch.data(), scratch.size() * sizeof(float)}),
               ShapeError);
  EXPECT_THROW(linear_backward_weight(context, {.rows = 1, .in = 1, .out = 1}, &value, &value, &value, &value,
                                      GradMode::overwrite, {}),
               ShapeError);
}

#if VESAL_WITH_CUDA
TEST(Linear, CublasMatchesTheReference) {
  for (const Device device : test_devices()) {
    if (device.type != DeviceType::cuda) {
      continue;
    }
    for (const LinearCase& c : kLinearCases) {
      Context context(device);
      set_gemm_algorithm(context, GemmAlgorithm::cublas);
      const Inputs in = random_inputs(c.params);
      const Reference<double> exact = reference_run<double>(c.params, in);
      const Reference<float> naive = reference_run<float>(c.params, in);
      const Outputs out = run(context, c.params, in);
      expect_close(c.name + ": y", out.y, exact.y, naive.y);
      expect_close(c.name + ": dx", out.dx, exact.dx, naive.dx);
      expect_close(c.name + ": dweight", out.dweight, exact.dweight, naive.dweight);
      expect_close(c.name + ": dbias", out.dbias, exact.dbias, naive.dbias);
    }
  }
}
#endif

}  // namespace
}  // namespace vesal::kernels::testing
