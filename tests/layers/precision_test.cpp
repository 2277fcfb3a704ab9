// Activations stored as bf16 and f16: ops hand on their input's storage type, parameters' copies follow their
// float32 masters, and loss scaling leaves no trace in the numbers. (That kernels round once is checked by
// their own tests.)
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "kernels/context/storage.hpp"
#include "kernels/elementwise/elementwise.hpp"
#include "layers/dense_graph_reasoning.hpp"
#include "layers/loss_scaler.hpp"
#include "layers/modules.hpp"
#include "layers/optimizer.hpp"
#include "runtime/device_api.hpp"

namespace vesal::layers {
namespace {

using Forward = std::function<Variable(const std::vector<Variable>&)>;

float rounded(DType dtype, float value) {
  return dtype == DType::bf16 ? kernels::widen(kernels::narrow<bf16>(value))
                              : kernels::widen(kernels::narrow<f16>(value));
}

std::vector<float> rounded(DType dtype, std::vector<float> values) {
  for (float& value : values) {
    value = rounded(dtype, value);
  }
  return values;
}

class Precision : public ::testing::TestWithParam<Device> {
 protected:
  DeviceContext context{GetParam()};
  ParameterStore store;
  ParameterBuilder builder{context, store, 3};

  std::vector<float> random_values(const Shape& shape, uint64_t op) {
    RandomStream random(19, 0, op);
    std::vector<float> values(static_cast<size_t>(element_count(shape)));
    for (float& value : values) {
      value = random.normal();
    }
    return values;
  }
  // Numbers that `rounding` can hold, stored as `dtype`.
  Tensor tensor(const Shape& shape, uint64_t op, DType rounding, DType dtype) {
    const Tensor wide = Tensor::from_host(context, rounded(rounding, random_values(shape, op)), shape);
    return convert(context, wide, dtype).value();
  }
  std::vector<float> host(const Tensor& x) {
    return convert(context, x, DType::f32).value().to_host<float>(context);
  }

  struct Result {
    std::vector<float> y;
    std::vector<std::vector<float>> dx, gradients;
  };
  Result run(const Forward& forward, const std::vector<Shape>& shapes, DType rounding, DType dtype) {
    std::vector<Variable> leaves;
    for (size_t i = 0; i < shapes.size(); ++i) {
      leaves.push_back(Variable::leaf(tensor(shapes[i], i + 1, rounding, dtype)));
    }
    store.clear_gradients();
    context.seed_step(1, 2);
    Tape tape;
    Variable y;
    {
      const TapeScope scope(context, &tape);
      y = forward(leaves);
    }
    EXPECT_EQ(y.value().dtype(), dtype);
    y.add_gradient(context, tensor(y.shape(), 99, rounding, dtype));
    tape.backward(context);
    Result result;
    result.y = host(y.value());
    for (const Variable& leaf : leaves) {
      EXPECT_EQ(leaf.gradient().dtype(), dtype);
      result.dx.push_back(host(leaf.gradient()));
    }
    for (const auto& parameter : store.all()) {
      EXPECT_EQ(parameter->gradient.dtype(), DType::f32);
      EXPECT_TRUE(parameter->gradient_written) << parameter->name;
      result.gradients.push_back(parameter->gradient.to_host<float>(context));
    }
    return result;
  }

  // For an op of one kernel, with numbers that both types hold: what float32 gives, rounded once; parameters'
  // gradients are the same bits.
  void expect_rounded_float32(const Forward& forward, const std::vector<Shape>& shapes) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      SCOPED_TRACE(name_of(dtype));
      for (const auto& parameter : store.all()) {
        const std::vector<float> values = rounded(dtype, parameter->value.to_host<float>(context));
        parameter->value.copy_from_host(context, values.data(), parameter->value.bytes());
      }
      store.values_changed();
      const Result wide = run(forward, shapes, dtype, DType::f32);
      const Result narrow = run(forward, shapes, dtype, dtype);
      EXPECT_EQ(narrow.y, rounded(dtype, wide.y));
      for (size_t i = 0; i < shapes.size(); ++i) {
        EXPECT_EQ(narrow.dx[i], rounded(dtype, wide.dx[i])) << "input " << i;
      }
      EXPECT_EQ(narrow.gradients, wide.gradients);
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, Precision, ::testing::ValuesIn(device_api::present_devices()),
                         [](const auto& info) { return std::string(to_string(info.param)).substr(0, 4); });

TEST_P(Precision, OpsKeepTheStorageTypeOfTheirInput) {
  const Shape volume{2, 3, 2, 3, 6};
  const auto one = [&](const auto& op) {
    expect_rounded_float32([&](const auto& x) { return op(x[0]); }, {volume});
    store = ParameterStore();
  };
  const auto two = [&](const Shape& a, const Shape& b, const auto& op) {
    expect_rounded_float32([&](const auto& x) { return op(x[0], x[1]); }, {a, b});
    store = ParameterStore();
  };
  one([&](const Variable& x) { return activate(context, x, kernels::Activation::silu); });
  one([&](const Variable& x) { return dropout(context, x, 0.4f); });
  one([&](const Variable& x) { return dropout_channels(context, x, 0.4f); });
  one([&](const Variable& x) { return drop_path(context, x, 0.4f); });
  one([&](const Variable& x) { return take_samples(context, x, 1, 2); });
  const InstanceNorm instance(builder, 6, kernels::Activation::relu);
  one([&](const Variable& x) { return instance(context, x); });
  const BatchNorm batch(builder, 6);
  one([&](const Variable& x) { return batch(context, x, true); });
  const GroupNorm group(builder, 2, 6, kernels::Activation::gelu);
  one([&](const Variable& x) { return group(context, x); });
  two(volume, volume, [&](const Variable& a, const Variable& b) { return add(context, a, b); });
  Parameter* scale = builder.constant("scale", {1}, 0.7f);
  two(volume, volume, [&](const Variable& a, const Variable& b) { return add_scaled(context, a, b, scale); });
  two(volume, {2, 6}, [&](const Variable& x, const Variable& v) { return add_sample_vector(context, x, v); });
  two(volume, {2, 3, 2, 3, 4},
      [&](const Variable& a, const Variable& b) { return concat_channels(context, a, b); });
  two(volume, {1, 3, 2, 3, 6},
      [&](const Variable& a, const Variable& b) { return concat_samples(context, a, b); });
}

TEST_P(Precision, OpsWithWeightsKeepTheStorageTypeOfTheirInput) {
  const Shape volume{2, 4, 3, 5, 6};
  const auto one = [&](const Shape& shape, const auto& op) {
    expect_rounded_float32([&](const auto& x) { return op(x[0]); }, {shape});
    store = ParameterStore();
  };
  const UpConv3d up(builder, 6, 3);
  one(volume, [&](const Variable& x) { return up(context, x); });
  const LayerNorm norm(builder, 6);
  one(volume, [&](const Variable& x) { return norm(context, x); });
  const ShiftedPatch merge(builder, 1, 6, 4, kernels::ShiftSet::tetra4, false);
  one(volume, [&](const Variable& x) { return merge(context, x); });
  const RotarySettings turns{.grid = {1, 2, 3}};
  one({2, 6, 8}, [&](const Variable& x) { return rotary(context, x, turns); });
}

TEST_P(Precision, PoolsAndResizeKeepTheStorageTypeOfTheirInput) {
  const Shape volume{2, 4, 3, 5, 6};
  const auto one = [&](const auto& op) {
    expect_rounded_float32([&](const auto& x) { return op(x[0]); }, {volume});
  };
  one([&](const Variable& x) { return max_pool3d(context, x, PoolGeometry{}); });
  one([&](const Variable& x) { return avg_pool3d(context, x, {.padding = {1, 1, 0}, .ceil_mode = true}); });
  one([&](const Variable& x) { return adaptive_max_pool3d(context, x, {2, 2, 3}); });
  one([&](const Variable& x) { return adaptive_avg_pool3d(context, x, {3, 1, 2}); });
  one([&](const Variable& x) { return resize(context, x, {7, 2, 9}); });
  one([&](const Variable& x) {
    return resize_by(context, x, {0.5, 2.0, 1.5}, {kernels::Interpolation::tricubic});
  });
}

TEST_P(Precision, RegionsAndGraphsKeepTheStorageTypeOfTheirInput) {
  std::vector<int32_t> labels;
  for (int32_t v = 0; v < 2 * 3 * 4 * 3; ++v) {
    labels.push_back((v / 2 * 5 + v / 7) % 5 - 1);
  }
  const Regions regions = build_regions(context, Tensor::from_host(context, labels, {2, 3, 4, 3}), 5);
  expect_rounded_float32([&](const auto& x) { return region_mean(context, x[0], regions); },
                         {{2, 3, 4, 3, 4}});
  expect_rounded_float32([&](const auto& x) { return region_gather(context, x[0], regions); }, {{2, 5, 4}});
  const Tensor features = Tensor::from_host(context, random_values({2, 2, 3, 2, 4}, 5), {2, 2, 3, 2, 4});
  const SparseGraph graph = build_graph(context, features, 3);
  const int64_t nodes = graph.graph.nodes;
  const Tensor weights = Tensor::from_host(context, random_values({graph.capacity}, 6), {graph.capacity});
  for (const DType rounding : {DType::bf16, DType::f16}) {
    const Tensor both_hold = convert(context, convert(context, weights, rounding), DType::f32).value();
    const auto forward = [&](const auto& x) {
      return propagate(context, graph, convert(context, both_hold, x[0].value().dtype()), x[0]);
    };
    const Result wide = run(forward, {{nodes, 4}}, rounding, DType::f32);
    const Result narrow = run(forward, {{nodes, 4}}, rounding, rounding);
    EXPECT_EQ(narrow.y, rounded(rounding, wide.y));
    EXPECT_EQ(narrow.dx[0], rounded(rounding, wide.dx[0]));
  }
  expect_rounded_float32([&](const auto& x) { return mask_nodes(context, graph, x[0]); }, {{nodes, 4}});
}

// Ops of several kernels store what is between them, and products on the CPU add in an order of their own for
// each type: a few roundings more, of at most u = 2^-8 or 2^-11 of what is rounded. 8 u of the length of a
// result or gradient is above their sum.
TEST_P(Precision, OpsOfSeveralKernelsAreAsCloseAsTheirStorage) {
  const auto close = [&](const std::vector<Shape>& shapes, const Forward& forward) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      SCOPED_TRACE(name_of(dtype));
      const Result wide = run(forward, shapes, dtype, DType::f32);
      const Result narrow = run(forward, shapes, dtype, dtype);
      const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
        double difference = 0, size = 0;
        for (size_t i = 0; i < b.size(); ++i) {
          difference += std::pow(static_cast<double>(a.at(i)) - b[i], 2);
          size += std::pow(static_cast<double>(b[i]), 2);
        }
        return std::sqrt(difference / size);
      };
      const double bound = 8 * (dtype == DType::bf16 ? 0x1p-8 : 0x1p-11);
      EXPECT_LE(distance(narrow.y, wide.y), bound);
      for (size_t i = 0; i < shapes.size(); ++i) {
        EXPECT_LE(distance(narrow.dx[i], wide.dx[i]), bound) << "input " << i;
      }
      // Together: some are 0 but for rounding (a bias before a softmax over what it shifts).
      const auto joined = [](const std::vector<std::vector<float>>& parts) {
        std::vector<float> all;
        for (const std::vector<float>& part : parts) {
          all.insert(all.end(), part.begin(), part.end());
        }
        return all;
      };
      if (!wide.gradients.empty()) {
        EXPECT_LE(distance(joined(narrow.gradients), joined(wide.gradients)), bound);
      }
    }
    store = ParameterStore();
  };
  const Conv3d conv(builder, 6, 5);
  close({{2, 4, 3, 5, 6}}, [&](const auto& x) { return conv(context, x[0]); });
  const Conv3d grouped(builder, 6, 4, ConvGeometry{.dilation = {1, 2, 1}, .groups = 2});
  close({{2, 4, 3, 5, 6}}, [&](const auto& x) { return grouped(context, x[0]); });
  const Linear linear(builder, 6, 7);
  close({{2, 3, 6}}, [&](const auto& x) { return linear(context, x[0], kernels::Activation::gelu); });
  const Linear qkv(builder, 8, 24);
  Parameter* table = builder.truncated_normal("table", {27, 2}, 0.5f);
  const WindowAttentionSettings windows{.heads = 2, .window = {2, 2, 2}};
  close({{1, 3, 4, 2, 8}}, [&](const auto& x) {
    return window_attention(context, qkv(context, x[0]), qkv.bias(), table, windows);
  });
  const MultiHeadAttention attention(builder, 6, 2, 8);
  close({{2, 4, 6}, {2, 3, 6}, {2, 3, 6}},
        [&](const auto& x) { return attention(context, x[0], x[1], x[2]); });
  AttentionSettings settings{.heads = 2};
  settings.query_grid = settings.key_grid = {2, 1, 3};
  settings.relative_position = {builder.uniform("rel_pos_d", {3, 4}, 1.0f, false), nullptr,
                                builder.uniform("rel_pos_w", {5, 4}, 1.0f, false)};
  close({{2, 2, 1, 3, 24}}, [&](const auto& x) { return self_attention(context, x[0], settings); });
  Parameter* gamma = builder.constant("gamma", {3}, 1.2f);
  Parameter* beta = builder.constant("beta", {3}, 0.3f);
  close({{2, 4, 5, 3, 5}}, [&](const auto& x) { return edge_gate(context, x[0], gamma, beta, {2, 1, 1}); });
  const DenseGraphReasoning dense(builder, {.channels = 8, .layout = MfibLayout::original});
  close({{2, 2, 3, 2, 8}, {2, 2, 3, 2, 8}}, [&](const auto& x) {
    const auto [a, b] = dense(context, x[0], x[1]);
    return concat_samples(context, a, b);
  });
  const Tensor features = Tensor::from_host(context, random_values({2, 2, 3, 2, 4}, 5), {2, 2, 3, 2, 4});
  const SparseGraph graph = build_graph(context, features, 3);
  Parameter* theta = builder.uniform("theta", {kernels::kOneSetEdgeTypes}, 0.5f, false);
  Parameter* u = builder.uniform("u", {1, 4}, 0.5f, true);
  Parameter* v = builder.uniform("v", {1, 4}, 0.5f, true);
  close({{graph.graph.nodes, 4}}, [&](const auto& x) {
    const DType dtype = x[0].value().dtype();
    return add(context,
               propagate(context, graph, attention_edge_weights(context, graph, x[0], u, v, theta), x[0]),
               propagate(context, graph, symmetric_edge_weights(context, graph, theta, dtype), x[0]));
  });
}

// The one op here of two kernels: its sum is rounded once more between them, by half a unit in the last place
// (2^-8 or 2^-11 of the first term) at most.
TEST_P(Precision, CombineRoundsTwice) {
  const Shape shape{2, 5};
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const Forward forward = [&](const auto& x) { return combine(context, 0.5f, x[0], -3.0f, x[1]); };
    const Result wide = run(forward, {shape, shape}, dtype, DType::f32);
    const Result narrow = run(forward, {shape, shape}, dtype, dtype);
    const double unit = dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
    const std::vector<float> b = host(tensor(shape, 2, dtype, DType::f32));
    for (size_t i = 0; i < b.size(); ++i) {
      EXPECT_NEAR(narrow.y[i], wide.y[i], unit * (std::abs(3 * b[i]) + 1.01 * std::abs(wide.y[i]) + unit));
    }
    EXPECT_EQ(narrow.dx[0], rounded(dtype, wide.dx[0]));
    EXPECT_EQ(narrow.dx[1], rounded(dtype, wide.dx[1]));
  }
}

TEST_P(Precision, ConvertTakesTheGradientBack) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    const Variable x = Variable::leaf(Tensor::from_host(context, random_values({3, 5}, 1), {3, 5}));
    EXPECT_EQ(convert(context, x, DType::f32).value().data(), x.value().data());
    Tape tape;
    Variable narrow, wide;
    {
      const TapeScope scope(context, &tape);
      narrow = convert(context, x, dtype);
      wide = convert(context, narrow, DType::f32);
    }
    EXPECT_EQ(narrow.value().dtype(), dtype);
    EXPECT_EQ(wide.value().to_host<float>(context), rounded(dtype, random_values({3, 5}, 1)));
    wide.add_gradient(context, Tensor::from_host(context, random_values({3, 5}, 2), {3, 5}));
    tape.backward(context);
    EXPECT_EQ(x.gradient().to_host<float>(context), rounded(dtype, random_values({3, 5}, 2)));
  }
}

TEST_P(Precision, TensorsOfTwoTypesAreRefused) {
  const Tensor wide = Tensor::zeros(context, {2, 3}), narrow = Tensor::zeros(context, {2, 3}, DType::f16);
  const auto message = [&](const auto& op) {
    try {
      op();
    } catch (const ShapeError& error) {
      return std::string(error.what());
    }
    return std::string("nothing was thrown");
  };
  const std::string both = "tensors are stored as f32 and f16, expected one type";
  EXPECT_EQ(message([&] { add(context, wide, narrow); }), "add: " + both);
  EXPECT_EQ(message([&] { concat_samples(context, wide, narrow); }), "concat_samples: " + both);
}

TEST_P(Precision, CopiesFollowTheirMasters) {
  Parameter* weight = builder.uniform("weight", {3, 7}, 1.0f, true);
  const std::vector<float> start = weight->value.to_host<float>(context);
  EXPECT_EQ(weight->stored(context, DType::f32).data(), weight->value.data());
  for (const DType dtype : {DType::bf16, DType::f16}) {
    EXPECT_EQ(weight->stored(context, dtype).dtype(), dtype);
    EXPECT_EQ(host(weight->stored(context, dtype)), rounded(dtype, start));
  }
  const void* place = weight->stored(context, DType::f16).data();

  Sgd optimizer(context, store,
                {.momentum = 0.0f, .nesterov = false, .weight_decay = 0.0f, .max_norm = 0.0f});
  kernels::fill(context.kernels(), 21, 0.25f, weight->gradient);
  weight->gradient_written = true;
  optimizer.step(context, 1.0f);
  std::vector<float> moved = start;
  for (float& value : moved) {
    value -= 0.25f;
  }
  EXPECT_EQ(weight->value.to_host<float>(context), moved);
  EXPECT_EQ(host(weight->stored(context, DType::f16)), rounded(DType::f16, moved));
  EXPECT_EQ(weight->stored(context, DType::f16).data(), place);  // the same memory in every step

  Ema ema(context, store, {});
  weight->value.copy_from_host(context, start.data(), weight->value.bytes());
  store.values_changed();
  EXPECT_EQ(host(weight->stored(context, DType::f16)), rounded(DType::f16, start));
  ema.swap(context);
  EXPECT_EQ(host(weight->stored(context, DType::f16)), rounded(DType::f16, moved));
}

// Sixty-four steps, each too small for the copy to hold, add up in the master.
TEST_P(Precision, MastersKeepWhatCopiesCannotHold) {
  Parameter* weight = builder.constant("weight", {4}, 1.0f);
  Sgd optimizer(context, store,
                {.momentum = 0.0f, .nesterov = false, .weight_decay = 0.0f, .max_norm = 0.0f});
  kernels::fill(context.kernels(), 4, 1.0f, weight->gradient);
  weight->gradient_written = true;
  for (int step = 0; step < 64; ++step) {
    optimizer.step(context, 0x1p-10f);
  }
  EXPECT_EQ(weight->value.to_host<float>(context), std::vector<float>(4, 0.9375f));
  EXPECT_EQ(host(weight->stored(context, DType::bf16)), std::vector<float>(4, 0.9375f));
}

TEST_P(Precision, ScaledGradientsGiveTheSameStep) {
  const auto train = [&](float loss_scale) {
    ParameterStore own;
    const ParameterBuilder build(context, own, 3);
    Parameter* weight = build.uniform("weight", {4100}, 1.0f, true);
    Parameter* untouched = build.uniform("untouched", {3}, 1.0f, true);
    AdamW optimizer(context, own, {.max_norm = 0.5f});
    std::vector<float> norms;
    for (uint64_t step = 0; step < 3; ++step) {
      std::vector<float> gradient = random_values({4100}, step);
      for (float& g : gradient) {
        g *= loss_scale;
      }
      weight->gradient.copy_from_host(context, gradient.data(), weight->gradient.bytes());
      weight->gradient_written = true;
      optimizer.step(context, 0.01f, loss_scale);
      norms.push_back(optimizer.last_gradient_norm(context));
    }
    std::vector<float> all = weight->value.to_host<float>(context);
    const std::vector<float> rest = untouched->value.to_host<float>(context);
    all.insert(all.end(), rest.begin(), rest.end());
    all.insert(all.end(), norms.begin(), norms.end());
    return all;
  };
  EXPECT_EQ(train(65536.0f), train(1.0f));
}

TEST_P(Precision, AStepThatIsSkippedLeavesNoTrace) {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adam, OptimizerKind::sgd}) {
    store = ParameterStore();
    Parameter* weight = builder.uniform("weight", {50}, 1.0f, true);
    const auto optimizer = make_optimizer(context, store, kind, 0.01f, 1.0f);
    const auto step = [&](float gradient) {
      kernels::fill(context.kernels(), 50, gradient, weight->gradient);
      weight->gradient_written = true;
      optimizer->step(context, 0.01f, 1024.0f);
    };
    const auto everything = [&] {
      std::vector<std::vector<float>> all{weight->value.to_host<float>(context)};
      for (const Optimizer::State& state : optimizer->states()) {
        all.push_back(state.tensors[0].to_host<float>(context));
      }
      return all;
    };
    step(512.0f);
    const auto before = everything();
    step(INFINITY);
    EXPECT_FALSE(std::isfinite(optimizer->last_gradient_norm(context)));
    optimizer->uncount_step();
    EXPECT_EQ(optimizer->steps(), 1);
    EXPECT_EQ(everything(), before);
    step(512.0f);
    EXPECT_EQ(optimizer->last_gradient_norm(context), 0.5f * std::sqrt(50.0f));
    EXPECT_NE(everything(), before);
  }
}

TEST(LossScaler, HalvesOnOverflowAndDoublesAfterManyGoodSteps) {
  LossScaler scaler({.initial = 8.0f, .largest = 16.0f, .growth_interval = 3});
  const auto after = [&](bool finite) {
    scaler.update(finite);
    return scaler.scale();
  };
  EXPECT_EQ(after(true), 8.0f);
  EXPECT_EQ(after(true), 8.0f);
  EXPECT_EQ(after(false), 4.0f);  // the count begins again
  EXPECT_EQ(after(true), 4.0f);
  EXPECT_EQ(after(true), 4.0f);
  EXPECT_EQ(scaler.good_steps(), 2);
  EXPECT_EQ(after(true), 8.0f);
  EXPECT_EQ(scaler.good_steps(), 0);
  for (int step = 0; step < 6; ++step) {
    scaler.update(true);
  }
  EXPECT_EQ(scaler.scale(), 16.0f);  // not 32
  for (const float expected : {8.0f, 4.0f, 2.0f}) {
    EXPECT_EQ(after(false), expected);
    EXPECT_TRUE(scaler.can_shrink());
  }
  EXPECT_EQ(after(false), 1.0f);
  EXPECT_FALSE(scaler.can_shrink());
  EXPECT_EQ(after(false), 1.0f);
}

TEST(LossScaler, GoesOnWhereItWas) {
  const LossScalerSettings settings{.growth_interval = 5};
  LossScaler straight(settings), first(settings);
  EXPECT_EQ(straight.scale(), 65536.0f);
  const auto finite = [](int step) { return step % 7 != 3; };
  for (int step = 0; step < 9; ++step) {
    straight.update(finite(step));
    first.update(finite(step));
  }
  LossScaler second(settings);
  second.restore(first.scale(), first.good_steps());
  for (int step = 9; step < 40; ++step) {
    straight.update(finite(step));
    second.update(finite(step));
    ASSERT_EQ(second.scale(), straight.scale());
    ASSERT_EQ(second.good_steps(), straight.good_steps());
  }
  for (const float bad : {0.5f, 3.0f, 0.0f, 0x1p25f, std::nanf(""), INFINITY, -2.0f}) {
    EXPECT_THROW(second.restore(bad, 0), FormatError) << bad;
  }
  EXPECT_THROW(second.restore(2.0f, -1), FormatError);
  EXPECT_THROW(second.restore(2.0f, 5), FormatError);
}

TEST(Optimizers, HaveNamesAndDefaults) {
  DeviceContext context({DeviceType::cpu, 0});
  ParameterStore store;
  ParameterBuilder(context, store, 0).constant("weight", {2}, 1.0f);
  const std::vector<std::tuple<const char*, size_t, double, double>> expected{
      {"adamw", 2, 3e-3, 1e-2}, {"adam", 2, 3e-3, 0.0}, {"sgd", 1, 1e-2, 3e-5}};
  for (const auto& [name, states, rate, decay] : expected) {
    const OptimizerKind kind = parse_optimizer(name);
    EXPECT_EQ(name_of(kind), name);
    EXPECT_EQ(make_optimizer(context, store, kind, 0.1f, 1.0f)->states().size(), states);
    EXPECT_EQ(optimizer_defaults(kind).learning_rate, rate);
    EXPECT_EQ(optimizer_defaults(kind).weight_decay, decay);
  }
  const auto adam = make_optimizer(context, store, OptimizerKind::adam, 0.1f, 1.0f);
  EXPECT_EQ(dynamic_cast<AdamW&>(*adam).settings().decay, kernels::WeightDecay::l2);
  EXPECT_THROW(parse_optimizer("lamb"), UsageError);
}

}  // namespace
}  // namespace vesal::layers
