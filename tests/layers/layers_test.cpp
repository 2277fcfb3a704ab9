// Differentiable ops: every op's gradient against differences of its own forward pass, on cpu and on simt;
// parameters, schedules, the optimiser. (Kernels are checked in double by their own tests; what is checked
// here is what an op adds: which tensors it saves, which gradient goes where, how shared parameters add up.)
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "layers/dense_graph_reasoning.hpp"
#include "layers/edge_attention.hpp"
#include "layers/graph_reasoning.hpp"
#include "layers/losses.hpp"
#include "layers/optimizer.hpp"
#include "layers/schedule.hpp"
#include "layers/swin.hpp"
#include "runtime/checkpoint.hpp"
#include "runtime/device_api.hpp"

namespace vesal::layers {
namespace {

using Forward = std::function<Variable(const std::vector<Variable>&)>;

class Layers : public ::testing::TestWithParam<Device> {
 protected:
  DeviceContext context{GetParam()};
  ParameterStore store;
  ParameterBuilder builder{context, store, 3};

  Tensor random_tensor(Shape shape, uint64_t op, float scale = 1.0f) {
    RandomStream random(17, 0, op);
    std::vector<float> values(static_cast<size_t>(element_count(shape)));
    for (float& value : values) {
      value = scale * random.normal();
    }
    return Tensor::from_host(context, values, std::move(shape));
  }

  // sum(y * direction) in double.
  double project(const Tensor& y, const std::vector<float>& direction) {
    const std::vector<float> values = y.to_host<float>(context);
    return std::inner_product(values.begin(), values.end(), direction.begin(), 0.0);
  }

  // Compares the gradients of sum(forward(inputs) * r), r random, with central differences along random
  // directions of every input and every parameter. The forward pass is float32, so a difference with step h
  // is known to about 1e-7 * |y| / h: with h = 1e-2 that is 1e-5 of the values, and curvature adds h^2. Two
  // per cent of the gradient's size along a direction is far above both and far below any wrong factor or
  // missing term.
  void check_gradients(const Forward& forward, std::vector<Tensor> inputs, double step = 1e-2) {
    Tape tape;
    std::vector<Variable> leaves;
    for (const Tensor& input : inputs) {
      leaves.push_back(Variable::leaf(input));
    }
    store.clear_gradients();
    Variable y;
    {
      const TapeScope scope(context, &tape);
      y = forward(leaves);
    }
    ASSERT_TRUE(y.requires_grad());
    const Tensor direction = random_tensor(y.shape(), 99);
    const std::vector<float> r = direction.to_host<float>(context);
    y.add_gradient(context, direction);
    tape.backward(context);

    const auto value = [&] {
      std::vector<Variable> constants(inputs.begin(), inputs.end());
      return project(forward(constants).value(), r);
    };
    const auto check_one = [&](const Tensor& x, const Tensor& gradient, const std::string& name) {
      const std::vector<float> start = x.to_host<float>(context);
      const std::vector<float> g = gradient.to_host<float>(context);
      RandomStream random(23, 0, static_cast<uint64_t>(start.size()));
      double scale = 0;
      double worst = 0;
      for (int trial = 0; trial < 4; ++trial) {
        std::vector<float> d(start.size());
        double norm = 0;
        for (float& v : d) {
          v = random.normal();
          norm += static_cast<double>(v) * v;
        }
        std::vector<float> moved(start.size());
        const auto at = [&](double h) {
          for (size_t i = 0; i < start.size(); ++i) {
            moved[i] = start[i] + static_cast<float>(h * d[i] / std::sqrt(norm));
          }
          x.copy_from_host(context, moved.data(), moved.size() * sizeof(float));
          return value();
        };
        const double numeric = (at(step) - at(-step)) / (2 * step);
        x.copy_from_host(context, start.data(), start.size() * sizeof(float));
        const double analytic = std::inner_product(g.begin(), g.end(), d.begin(), 0.0) / std::sqrt(norm);
        scale = std::max({scale, std::abs(numeric), std::abs(analytic)});
        worst = std::max(worst, std::abs(numeric - analytic));
      }
      // A direction almost orthogonal to the gradient has no size of its own: compare with the gradient's
      // norm too.
      const double norm_of_gradient = std::sqrt(std::inner_product(g.begin(), g.end(), g.begin(), 0.0));
      scale = std::max(scale, norm_of_gradient / std::sqrt(static_cast<double>(g.size())));
      EXPECT_LE(worst, 0.02 * scale + 2e-4) << name;
    };
    for (size_t i = 0; i < inputs.size(); ++i) {
      ASSERT_TRUE(leaves[i].gradient().defined()) << "input " << i << " got no gradient";
      check_one(inputs[i], leaves[i].gradient(), "input " + std::to_string(i));
    }
    for (const auto& parameter : store.all()) {
      ASSERT_TRUE(parameter->gradient_written) << parameter->name;
      check_one(parameter->value, parameter->gradient, parameter->name);
    }
  }

  // The gradient of a loss that starts the backward pass with weight 0.5 against differences of the loss.
  void check_loss(const Tensor& x, const std::function<Tensor(const Variable&, float)>& loss) {
    Tape tape;
    const Variable leaf = Variable::leaf(x);
    {
      const TapeScope scope(context, &tape);
      loss(leaf, 0.5f);
    }
    tape.backward(context);
    const std::vector<float> gradient = leaf.gradient().to_host<float>(context);
    std::vector<float> values = x.to_host<float>(context);
    for (size_t i = 0; i < values.size(); ++i) {
      const auto at = [&](float h) {
        std::vector<float> moved = values;
        moved[i] += h;
        return static_cast<double>(
            loss(Tensor::from_host(context, moved, x.shape()), 1.0f).to_host<float>(context)[0]);
      };
      EXPECT_NEAR(gradient[i], 0.5 * (at(1e-2f) - at(-1e-2f)) / 2e-2, 1e-4);
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, Layers, ::testing::ValuesIn(device_api::present_devices()),
                         [](const auto& info) { return std::string(to_string(info.param)).substr(0, 4); });

TEST_P(Layers, Conv3d) {
  const Conv3d conv(builder, 3, 5, ConvGeometry{{3, 2, 1}, {2, 1, 1}, {1, 0, 0}});
  check_gradients([&](const auto& x) { return conv(context, x[0]); }, {random_tensor({2, 5, 4, 3, 3}, 1)});
}

TEST_P(Layers, Conv3dWithDilationAndGroups) {
  const ConvGeometry geometry{
      .kernel = {3, 2, 1}, .stride = {2, 1, 1}, .padding = {2, 1, 0}, .dilation = {2, 3, 1}, .groups = 2};
  const Conv3d conv(builder, 4, 6, geometry);
  EXPECT_EQ(store.find("weight")->value.shape(), (Shape{6, 3, 2, 1, 2}));
  check_gradients([&](const auto& x) { return conv(context, x[0]); }, {random_tensor({2, 6, 5, 3, 4}, 1)});
  store = ParameterStore();
  const Conv3d depthwise(builder, 3, 3, ConvGeometry{.groups = 3});
  check_gradients([&](const auto& x) { return depthwise(context, x[0]); },
                  {random_tensor({1, 3, 4, 3, 3}, 2)});
  EXPECT_THROW(Conv3d(builder.scope("other"), 4, 6, ConvGeometry{.groups = 4}), ShapeError);
  EXPECT_THROW(Conv3d(builder.scope("other"), 4, 6, ConvGeometry{.groups = 0}), ShapeError);
  EXPECT_THROW(conv3d(context, random_tensor({1, 4, 4, 4, 4}, 3), store.find("weight"), nullptr, geometry),
               ShapeError);
}

TEST_P(Layers, ConvTranspose3dWithDilationAndGroups) {
  Parameter* weight = builder.uniform("weight", {4, 3, 2, 3, 2}, 0.5f, true, ParameterLayout::convolution);
  Parameter* bias = builder.uniform("bias", {4}, 0.5f, false);
  const ConvGeometry geometry{
      .kernel = {3, 2, 3}, .stride = {2, 1, 2}, .padding = {1, 0, 1}, .dilation = {1, 2, 2}, .groups = 2};
  check_gradients([&](const auto& x) { return conv_transpose3d(context, x[0], weight, bias, geometry); },
                  {random_tensor({2, 3, 2, 2, 4}, 1)});
}

TEST_P(Layers, UpConv3d) {
  const UpConv3d up(builder, 4, 3);
  check_gradients([&](const auto& x) { return up(context, x[0]); }, {random_tensor({1, 2, 3, 2, 4}, 1)});
}

TEST_P(Layers, LinearWithEveryActivation) {
  for (const kernels::Activation activation :
       {kernels::Activation::none, kernels::Activation::relu, kernels::Activation::gelu}) {
    store = ParameterStore();
    const Linear linear(builder, 7, 5);
    check_gradients([&](const auto& x) { return linear(context, x[0], activation); },
                    {random_tensor({2, 3, 7}, 1)}, 1e-3);
  }
}

TEST_P(Layers, Norms) {
  {
    const LayerNorm norm(builder, 6);
    check_gradients([&](const auto& x) { return norm(context, x[0]); }, {random_tensor({2, 5, 6}, 1)});
  }
  store = ParameterStore();
  {
    const InstanceNorm norm(builder, 4, kernels::Activation::relu);
    check_gradients([&](const auto& x) { return norm(context, x[0]); }, {random_tensor({2, 3, 3, 3, 4}, 1)},
                    1e-3);
  }
}

TEST_P(Layers, BatchNormInTrainingAndEvaluation) {
  for (const bool training : {true, false}) {
    store = ParameterStore();
    const BatchNorm norm(builder, 4, kernels::Activation::silu);
    norm(context, random_tensor({2, 3, 2, 3, 4}, 2), true);  // running statistics of their own
    check_gradients([&](const auto& x) { return norm(context, x[0], training); },
                    {random_tensor({2, 3, 2, 3, 4}, 1)});
  }
}

// One module over two branches, as in the fusion block of the original network: two updates, in order.
TEST_P(Layers, BatchNormAppliedTwiceUpdatesTwice) {
  const BatchNorm norm(builder, 3);
  const Tensor a = random_tensor({2, 2, 2, 2, 3}, 1), b = random_tensor({1, 3, 2, 2, 3}, 2);
  check_gradients(
      [&](const auto& x) {
        const Variable first = norm(context, x[0], true);
        return concat_samples(context, first, norm(context, x[1], true));
      },
      {a, random_tensor({2, 2, 2, 2, 3}, 3)});
  store = ParameterStore();
  const BatchNorm fresh(builder, 3);
  std::vector<double> mean(3, 0.0), var(3, 1.0);
  int64_t batches = 0;
  for (const Tensor& x : {a, b}) {
    fresh(context, x, true);
    EXPECT_EQ(store.counters()[0]->value, ++batches);
    const std::vector<float> values = x.to_host<float>(context);
    const auto rows = static_cast<double>(values.size() / 3);
    for (size_t c = 0; c < 3; ++c) {
      double m = 0, squares = 0;
      for (size_t i = c; i < values.size(); i += 3) {
        m += values[i] / rows;
      }
      for (size_t i = c; i < values.size(); i += 3) {
        squares += (values[i] - m) * (values[i] - m);
      }
      mean[c] = 0.9 * mean[c] + 0.1 * m;
      var[c] = 0.9 * var[c] + 0.1 * squares / (rows - 1);
    }
  }
  fresh(context, a, false);  // changes nothing
  EXPECT_EQ(store.counters()[0]->value, 2);
  for (size_t c = 0; c < 3; ++c) {
    EXPECT_NEAR(store.buffers()[0]->value.to_host<float>(context)[c], mean[c], 1e-6);
    EXPECT_NEAR(store.buffers()[1]->value.to_host<float>(context)[c], var[c], 1e-6);
  }
  EXPECT_EQ(store.count(), 6);  // buffers are no parameters
  EXPECT_THROW(builder.buffer("weight", {3}, 0.0f), ShapeError);
  EXPECT_THROW(builder.constant("running_mean", {3}, 0.0f), ShapeError);
  EXPECT_THROW(fresh(context, random_tensor({1, 1, 1, 1, 3}, 4), true), ShapeError);
}

// The inner block is run again in the backward pass, and so is the one around it; an input with another use,
// a parameter used twice, random numbers and running statistics come out as without.
TEST_P(Layers, CheckpointedBlocksGiveTheSameBits) {
  struct Step {
    std::vector<float> y, dx, mean;
    std::vector<std::vector<float>> gradients;
    int64_t batches = 0;
    size_t saved_bytes = 0;
    uint64_t next_op = 0;
  };
  const Tensor input = random_tensor({2, 4, 4, 4, 6}, 1), dy = random_tensor({2, 4, 4, 4, 6}, 2);
  const auto run = [&](bool outer, bool inner) {
    ParameterStore own;
    const ParameterBuilder build(context, own, 3);
    const Linear linear(build.scope("linear"), 6, 6);
    const BatchNorm norm(build.scope("norm"), 6, kernels::Activation::silu);
    context.seed_step(5, 6);
    const auto part = [&](bool recompute, const Variable& x, Block block) {
      return recompute ? checkpoint(context, {x}, std::move(block))[0]
                       : block(context, std::vector<Variable>{x})[0];
    };
    const Block inside = [&](DeviceContext&, std::span<const Variable> v) -> std::vector<Variable> {
      return {dropout(context, norm(context, linear(context, v[0]), true), 0.3f)};
    };
    const Block around = [&](DeviceContext&, std::span<const Variable> v) -> std::vector<Variable> {
      const Variable a = dropout(context, linear(context, v[0]), 0.3f);
      return {add(context, add(context, a, part(inner, a, inside)), v[0])};
    };
    const Variable x = Variable::leaf(input);
    Tape tape;
    Step step;
    Variable y;
    {
      const TapeScope scope(context, &tape);
      const Variable before = dropout(context, x, 0.3f);
      const Variable middle = part(outer, before, around);
      y = add(context, dropout(context, middle, 0.3f), before);
    }
    step.saved_bytes = tape.saved_bytes();
    y.add_gradient(context, dy);
    tape.backward(context);
    step.y = y.value().to_host<float>(context);
    step.dx = x.gradient().to_host<float>(context);
    step.mean = own.buffers()[0]->value.to_host<float>(context);
    step.batches = own.counters()[0]->value;
    step.next_op = context.next_random_op();
    for (const auto& parameter : own.all()) {
      step.gradients.push_back(parameter->gradient.to_host<float>(context));
    }
    return step;
  };
  const Step plain = run(false, false);
  EXPECT_EQ(plain.batches, 1);
  for (const auto& [outer, inner] : {std::pair{true, false}, {false, true}, {true, true}}) {
    const Step step = run(outer, inner);
    EXPECT_EQ(step.y, plain.y);
    EXPECT_EQ(step.dx, plain.dx);
    EXPECT_EQ(step.mean, plain.mean);
    EXPECT_EQ(step.gradients, plain.gradients);
    EXPECT_EQ(step.batches, 1);
    EXPECT_EQ(step.next_op, plain.next_op);
    EXPECT_LT(step.saved_bytes, plain.saved_bytes);
  }
}

TEST_P(Layers, GroupNorm) {
  for (const int64_t groups : {1, 2, 6}) {
    store = ParameterStore();
    const GroupNorm norm(builder, groups, 6, kernels::Activation::gelu);
    check_gradients([&](const auto& x) { return norm(context, x[0]); }, {random_tensor({2, 3, 2, 3, 6}, 1)});
  }
  store = ParameterStore();
  EXPECT_THROW(GroupNorm(builder, 4, 6), ShapeError);
}

TEST_P(Layers, ActivationsAndDropout) {
  for (const kernels::Activation kind : {kernels::Activation::gelu_tanh, kernels::Activation::silu,
                                         kernels::Activation::hardswish, kernels::Activation::elu}) {
    check_gradients([&](const auto& x) { return activate(context, x[0], kind); },
                    {random_tensor({2, 3, 5}, 1)}, 1e-3);
  }
  for (const auto drop : {dropout, dropout_channels}) {
    // The same step for every evaluation: the same mask.
    check_gradients(
        [&](const auto& x) {
          context.seed_step(1, 1);
          return drop(context, x[0], 0.4f);
        },
        {random_tensor({3, 2, 3, 7}, 1)});
    const Tensor x = random_tensor({3, 2, 3, 7}, 1);
    EXPECT_EQ(drop(context, x, 0.0f).value().data(), x.data());
    context.seed_step(1, 1);
    const std::vector<float> first = drop(context, x, 0.4f).value().to_host<float>(context);
    EXPECT_NE(drop(context, x, 0.4f).value().to_host<float>(context), first);  // the next op, another mask
    context.seed_step(1, 1);
    EXPECT_EQ(drop(context, x, 0.4f).value().to_host<float>(context), first);
  }
}

TEST_P(Layers, ShiftedPatchPlainAndMasked) {
  {
    const ShiftedPatch merge(builder, 1, 3, 4, kernels::ShiftSet::tetra4, false);
    check_gradients([&](const auto& x) { return merge(context, x[0]); }, {random_tensor({1, 4, 3, 4, 3}, 1)});
  }
  store = ParameterStore();
  {
    const ShiftedPatch embed(builder, 4, 1, 6, kernels::ShiftSet::corner8, true);
    const Tensor mask = Tensor::from_host(context, std::vector<uint8_t>{1, 0, 1, 1, 0, 1, 0, 1}, {2, 4});
    check_gradients([&](const auto& x) { return embed(context, x[0], mask); },
                    {random_tensor({2, 4, 4, 4, 4}, 1)});
  }
  store = ParameterStore();
  {
    const ShiftedPatch image(builder, 1, 3, 4, kernels::ShiftSet::diagonal4, false, {1, 2, 2}, {0, 1, 1});
    check_gradients([&](const auto& x) { return image(context, x[0]); }, {random_tensor({2, 1, 4, 5, 3}, 1)});
  }
}

TEST_P(Layers, WindowAttentionWithTheTableOfTheUnclippedWindow) {
  const std::array<int, 3> window{3, 3, 3};
  const kernels::ClippedWindow clipped = kernels::clip_window(window, {1, 1, 1}, {2, 4, 3});
  Parameter* bias = builder.uniform("qkv.bias", {12}, 0.5f, false);
  Parameter* table = builder.truncated_normal("relative_position_bias_table", {125, 1}, 0.5f);
  const WindowAttentionSettings settings{.window = clipped.window,
                                         .shift = clipped.shift,
                                         .padding = kernels::PaddingMode::attend,
                                         .bias_window = window};
  check_gradients([&](const auto& x) { return window_attention(context, x[0], bias, table, settings); },
                  {random_tensor({1, 2, 4, 3, 12}, 1)});
}

TEST_P(Layers, SwinStageShiftedPaddedAndSharedBias) {
  const SwinSettings settings{
      .channels = 8, .heads = 2, .window = {2, 2, 2}, .padding = kernels::PaddingMode::attend};
  const SwinStage stage(builder, settings, {0.0f, 0.0f});
  check_gradients([&](const auto& x) { return stage(context, x[0], false); },
                  {random_tensor({2, 3, 4, 5, 8}, 1)});
}

TEST_P(Layers, AttentionCrossMaskedAndBiased) {
  AttentionSettings settings{.heads = 2};
  check_gradients([&](const auto& x) { return attention(context, x[0], x[1], x[2], settings); },
                  {random_tensor({2, 3, 8}, 1), random_tensor({2, 5, 8}, 2), random_tensor({2, 5, 8}, 3)});
  settings.key_mask = Tensor::from_host(context, std::vector<uint8_t>{1, 0, 1, 1, 0, 1, 1, 1, 0, 1}, {2, 5});
  settings.bias = random_tensor({1, 2, 3, 5}, 4);
  check_gradients([&](const auto& x) { return attention(context, x[0], x[1], x[2], settings); },
                  {random_tensor({2, 3, 8}, 5), random_tensor({2, 5, 8}, 6), random_tensor({2, 5, 8}, 7)});
}

TEST_P(Layers, AttentionRefusesWhatDoesNotFit) {
  const Tensor q = random_tensor({2, 3, 8}, 1), k = random_tensor({2, 5, 8}, 2);
  EXPECT_THROW(attention(context, q, k, k, {.heads = 3}), ShapeError);
  EXPECT_THROW(attention(context, q, k, k, {.heads = 0}), ShapeError);
  EXPECT_THROW(attention(context, q, k, q, {}), ShapeError);
  EXPECT_THROW(attention(context, q, k, k, {.bias = random_tensor({1, 1, 5, 3}, 3)}), ShapeError);
  EXPECT_THROW(attention(context, q, k, k, {.bias = random_tensor({1, 3, 3, 5}, 3)}), ShapeError);
  EXPECT_THROW(attention(context, random_tensor({8}, 1), k, k, {}), ShapeError);
  EXPECT_THROW(self_attention(context, k, {}), ShapeError);
  AttentionSettings grid;
  grid.query_grid = grid.key_grid = {1, 1, 3};
  grid.relative_position[2] = builder.uniform("rel_pos_w", {5, 8}, 1.0f, false);
  EXPECT_EQ(attention(context, q, q, q, grid).shape(), q.shape());
  EXPECT_THROW(attention(context, q, k, k, grid), ShapeError);
  EXPECT_THROW(attention(context, k, q, q, grid), ShapeError);
  EXPECT_THROW(rotary(context, q, {.heads = 3}), ShapeError);
}

TEST_P(Layers, MultiHeadAttentionOverOtherChannels) {
  const MultiHeadAttention layer(builder, 6, 2, 8);
  const Tensor key_mask = Tensor::from_host(context, std::vector<uint8_t>{1, 0, 1, 1, 1, 1}, {2, 3});
  check_gradients([&](const auto& x) { return layer(context, x[0], x[1], x[2], {.key_mask = key_mask}); },
                  {random_tensor({2, 2, 2, 6}, 1), random_tensor({2, 3, 6}, 2), random_tensor({2, 3, 6}, 3)});
  EXPECT_EQ(store.all().size(), 8u);
  EXPECT_EQ(store.find("k_proj.weight")->value.shape(), (Shape{8, 6}));
  EXPECT_EQ(store.find("out_proj.weight")->value.shape(), (Shape{6, 8}));
  EXPECT_THROW(MultiHeadAttention(builder.scope("other"), 6, 4), ShapeError);
}

// The tables' gradients, and q's through scores and bias alike; the same from a fused qkv as from three
// tensors.
TEST_P(Layers, SelfAttentionWithRelativePosition) {
  AttentionSettings settings{.heads = 2};
  settings.query_grid = settings.key_grid = {2, 1, 3};
  settings.relative_position = {builder.uniform("rel_pos_d", {3, 4}, 1.0f, false), nullptr,
                                builder.uniform("rel_pos_w", {5, 4}, 1.0f, false)};
  const Tensor qkv = random_tensor({2, 2, 1, 3, 24}, 1);
  check_gradients([&](const auto& x) { return self_attention(context, x[0], settings); }, {qkv});
  const std::vector<float> all = qkv.to_host<float>(context);
  std::array<std::vector<float>, 3> parts;
  for (size_t i = 0; i < all.size(); ++i) {
    parts[i / 8 % 3].push_back(all[i]);
  }
  const auto part = [&](size_t i) { return Variable(Tensor::from_host(context, parts[i], {2, 6, 8})); };
  const Variable fused = self_attention(context, qkv, settings);
  const Variable apart = attention(context, part(0), part(1), part(2), settings);
  EXPECT_EQ(fused.shape(), (Shape{2, 2, 1, 3, 8}));
  EXPECT_EQ(fused.value().to_host<float>(context), apart.value().to_host<float>(context));
}

TEST_P(Layers, Rotary) {
  const RotarySettings plane{.heads = 2, .grid = {1, 2, 3}, .excluded = 1};
  check_gradients([&](const auto& x) { return rotary(context, x[0], plane); },
                  {random_tensor({2, 13, 8}, 1)});
  const RotarySettings space{.axes = 3, .grid = {2, 2, 3}};
  check_gradients([&](const auto& x) { return rotary(context, x[0], space); },
                  {random_tensor({1, 12, 14}, 2)});
}

TEST_P(Layers, PoolsResizeAndArithmetic) {
  const auto one = [&](const auto& f) {
    check_gradients([&](const auto& x) { return f(x[0]); }, {random_tensor({2, 4, 6, 5, 3}, 1)}, 1e-3);
  };
  one([&](const Variable& x) { return max_pool3d(context, x, {2, 2, 2}, {2, 2, 2}); });
  one([&](const Variable& x) { return avg_pool3d(context, x, {2, 2, 2}, {2, 2, 2}); });
  one([&](const Variable& x) { return resize(context, x, {7, 3, 9}); });
  one([&](const Variable& x) { return relu(context, x); });
  one([&](const Variable& x) { return take_samples(context, x, 1, 2); });
  one([&](const Variable& x) { return add(context, x, x); });
  const auto two = [&](const auto& f) {
    check_gradients([&](const auto& x) { return f(x[0], x[1]); },
                    {random_tensor({2, 3, 2, 2, 4}, 1), random_tensor({2, 3, 2, 2, 4}, 2)});
  };
  two([&](const Variable& a, const Variable& b) { return add(context, a, b); });
  two([&](const Variable& a, const Variable& b) { return combine(context, 0.5f, a, -2.0f, b); });
  two([&](const Variable& a, const Variable& b) { return concat_channels(context, a, b); });
  two([&](const Variable& a, const Variable& b) { return concat_samples(context, a, b); });
  check_gradients([&](const auto& x) { return add_sample_vector(context, x[0], x[1]); },
                  {random_tensor({2, 3, 4}, 1), random_tensor({2, 4}, 2)});
  Parameter* scale = builder.constant("scale", {1}, 0.7f);
  two([&](const Variable& a, const Variable& b) { return add_scaled(context, a, b, scale); });
}

TEST_P(Layers, EveryWayToResize) {
  using kernels::Interpolation;
  const auto one = [&](const auto& f) {
    check_gradients([&](const auto& x) { return f(x[0]); }, {random_tensor({2, 4, 3, 5, 2}, 1)});
  };
  for (const Interpolation interpolation : {Interpolation::trilinear, Interpolation::nearest,
                                            Interpolation::nearest_exact, Interpolation::tricubic}) {
    const bool corners =
        interpolation == Interpolation::trilinear || interpolation == Interpolation::tricubic;
    for (const bool align_corners : {false, true}) {
      const ResizeSettings settings{interpolation, align_corners};
      if (align_corners && !corners) {
        EXPECT_THROW(resize(context, random_tensor({2, 4, 3, 5, 2}, 1), {7, 2, 5}, settings), ShapeError);
        continue;
      }
      one([&](const Variable& x) { return resize(context, x, {7, 2, 5}, settings); });
      one([&](const Variable& x) { return resize_by(context, x, {1.3, 2.0, 0.7}, settings); });
    }
  }
  const Tensor x = random_tensor({2, 4, 3, 5, 2}, 1);
  EXPECT_EQ(resize(context, x, {4, 3, 5}, {Interpolation::tricubic}).value().data(), x.data());
  EXPECT_EQ(resize_by(context, x, {1.3, 2.0, 0.7}).shape(), (Shape{2, 5, 6, 3, 2}));
  // The factor places the voxels: floor(4 * 1.2) = 4 are others than those of x.
  const Variable placed = resize_by(context, x, {1.2, 1.0, 1.0});
  EXPECT_EQ(placed.shape(), x.shape());
  EXPECT_NE(placed.value().to_host<float>(context), x.to_host<float>(context));
  EXPECT_THROW(resize_by(context, x, {0.0, 1.0, 1.0}), ShapeError);
}

TEST_P(Layers, EveryWayToPool) {
  const auto one = [&](const auto& f) {
    check_gradients([&](const auto& x) { return f(x[0]); }, {random_tensor({2, 4, 6, 5, 3}, 1)}, 1e-3);
  };
  for (const bool ceil_mode : {false, true}) {
    PoolGeometry geometry{
        .kernel = {3, 2, 3}, .stride = {2, 3, 1}, .padding = {1, 1, 0}, .ceil_mode = ceil_mode};
    one([&](const Variable& x) { return max_pool3d(context, x, geometry); });
    one([&](const Variable& x) { return avg_pool3d(context, x, geometry); });
    geometry.count_include_pad = true;
    one([&](const Variable& x) { return avg_pool3d(context, x, geometry); });
  }
  // Windows of more than 255 voxels: the winners' index needs more than a byte.
  one([&](const Variable& x) { return max_pool3d(context, x, {.kernel = {8, 8, 8}, .padding = {4, 4, 4}}); });
  one([&](const Variable& x) { return adaptive_max_pool3d(context, x, {2, 4, 1}); });
  one([&](const Variable& x) { return adaptive_avg_pool3d(context, x, {3, 1, 7}); });
  const Tensor x = random_tensor({2, 4, 6, 5, 3}, 1);
  EXPECT_EQ(adaptive_avg_pool3d(context, x, {3, 1, 7}).shape(), (Shape{2, 3, 1, 7, 3}));
  EXPECT_THROW(adaptive_avg_pool3d(context, x, {0, 1, 1}), ShapeError);
  EXPECT_THROW(max_pool3d(context, x, {.padding = {2, 0, 0}}), ShapeError);
}

TEST_P(Layers, EdgeAttention) {
  const EdgeAttention block(builder, 5);
  check_gradients(
      [&](const auto& x) {
        return block(context, x[0], {2, 1, 1});
      },
      {random_tensor({2, 4, 5, 3, 5}, 1)}, 5e-4);
}

TEST_P(Layers, GraphOpsOnAFixedGraph) {
  // The graph itself is not differentiable: it is built once, from features that stay as they are.
  const SparseGraph graph = build_graph(context, random_tensor({2, 2, 3, 2, 4}, 5), 3);
  const int64_t nodes = graph.graph.nodes;
  {
    Parameter* theta = builder.uniform("theta", {kernels::kOneSetEdgeTypes}, 0.5f, false);
    check_gradients(
        [&](const auto& x) {
          return propagate(context, graph, symmetric_edge_weights(context, graph, theta), x[0]);
        },
        {random_tensor({nodes, 4}, 1)});
  }
  store = ParameterStore();
  {
    Parameter* theta = builder.uniform("theta", {kernels::kOneSetEdgeTypes}, 0.5f, false);
    Parameter* u = builder.uniform("u", {1, 4}, 0.5f, true);
    Parameter* v = builder.uniform("v", {1, 4}, 0.5f, true);
    check_gradients(
        [&](const auto& x) {
          return propagate(context, graph, attention_edge_weights(context, graph, x[0], u, v, theta), x[0]);
        },
        {random_tensor({nodes, 4}, 1)}, 1e-3);
  }
}

// Labels of `regions` regions over [2, 3, 4, 3], the last one without a voxel, some voxels in none.
Tensor some_labels(DeviceContext& context, int64_t regions) {
  std::vector<int32_t> labels;
  for (int64_t v = 0; v < 2 * 3 * 4 * 3; ++v) {
    labels.push_back(static_cast<int32_t>((v / 2 * 5 + v / 7) % regions) - 1);
  }
  return Tensor::from_host(context, labels, {2, 3, 4, 3});
}

TEST_P(Layers, Regions) {
  const Regions regions = build_regions(context, some_labels(context, 5), 5);
  check_gradients([&](const auto& x) { return region_mean(context, x[0], regions); },
                  {random_tensor({2, 3, 4, 3, 4}, 1)});
  check_gradients([&](const auto& x) { return region_gather(context, x[0], regions); },
                  {random_tensor({2, 5, 4}, 2)});
}

TEST_P(Layers, GraphOverRegionsAndSets) {
  const Regions regions = build_regions(context, some_labels(context, 6), 6);
  const std::vector<uint8_t> mask = {1, 0, 1, 1, 0, 1};
  const NodeSets sets{.modalities = 3, .available = Tensor::from_host(context, mask, {2, 3})};
  const SparseGraph graph = build_graph(context, random_tensor({2, 3, 6, 4}, 3), 2, regions, sets);
  Parameter* theta = builder.uniform("theta", {kernels::kEdgeTypes}, 0.5f, false);
  Parameter* u = builder.uniform("u", {1, 4}, 0.5f, true);
  Parameter* v = builder.uniform("v", {1, 4}, 0.5f, true);
  check_gradients(
      [&](const auto& x) {
        const Variable z = mask_nodes(context, graph, x[0]);
        const Variable y =
            propagate(context, graph, attention_edge_weights(context, graph, z, u, v, theta), z);
        return add(context, y, propagate(context, graph, symmetric_edge_weights(context, graph, theta), z));
      },
      {random_tensor({2 * 3 * 6, 4}, 1)}, 1e-3);
}

// From features to gradients, what the nodes of absent sets hold changes no bit.
TEST_P(Layers, AbsentNodeSetsHaveNoSay) {
  const std::vector<uint8_t> mask = {1, 0, 0, 1, 0, 1, 0, 0};
  const NodeSets sets{.modalities = 4, .available = Tensor::from_host(context, mask, {2, 4})};
  Parameter* theta = builder.uniform("theta", {kernels::kEdgeTypes}, 0.5f, false);
  Parameter* u = builder.uniform("u", {1, 3}, 0.5f, true);
  Parameter* v = builder.uniform("v", {1, 3}, 0.5f, true);
  const auto run = [&](float absent) {
    const Shape shape{2, 4, 2, 3, 2, 3};
    std::vector<float> values = random_tensor(shape, 1).to_host<float>(context);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = mask[i / 36] == 0 ? absent * static_cast<float>(i % 5) : values[i];
    }
    const Tensor features = Tensor::from_host(context, values, shape);
    const SparseGraph graph = build_graph(context, features, 3, sets);
    Tape tape;
    const Variable leaf = Variable::leaf(features.reshape({96, 3}));
    store.clear_gradients();
    Variable y;
    {
      const TapeScope scope(context, &tape);
      const Variable z = mask_nodes(context, graph, leaf);
      y = propagate(context, graph, attention_edge_weights(context, graph, z, u, v, theta), z);
      y = combine(context, 1.0f, y, -1.0f, z);
    }
    y.add_gradient(context, random_tensor(y.shape(), 9));
    tape.backward(context);
    std::vector<float> all = y.value().to_host<float>(context);
    for (const Tensor& part : {leaf.gradient(), theta->gradient, u->gradient, v->gradient}) {
      const std::vector<float> more = part.to_host<float>(context);
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  };
  const std::vector<float> expected = run(1.0f);
  EXPECT_TRUE(std::all_of(expected.begin(), expected.end(), [](float x) { return std::isfinite(x); }));
  EXPECT_EQ(run(-7.0f), expected);
  EXPECT_EQ(run(std::nanf("")), expected);
}

// Spec 5.2: with every pair an edge and the weights those of a dense matrix, the sparse product is the dense
// one, and so are its gradients. Small integers: every sum is exact.
TEST_P(Layers, SparsePropagationWithADenseMatrixIsTheDenseOne) {
  const int64_t nodes = 6, features = 5;
  const auto integers = [&](Shape shape, uint64_t op) {
    RandomStream random(31, 0, op);
    std::vector<float> values(static_cast<size_t>(element_count(shape)));
    for (float& value : values) {
      value = static_cast<float>(random.below(9) - 4);
    }
    return values;
  };
  const SparseGraph graph = build_graph(context, random_tensor({2, 1, 2, 3, 4}, 5), 5);
  ASSERT_EQ(graph.row_offsets.to_host<int32_t>(context).back(), 2 * nodes * nodes);
  Parameter* adjacency = builder.constant("adjacency", {nodes, nodes, 1}, 0.0f);
  Parameter* bias = builder.constant("bias", {nodes}, 0.0f);
  const std::vector<float> matrix = integers(adjacency->value.shape(), 1), added = integers({nodes}, 2);
  adjacency->value.copy_from_host(context, matrix.data(), matrix.size() * sizeof(float));
  bias->value.copy_from_host(context, added.data(), added.size() * sizeof(float));
  std::vector<float> edge_weights(static_cast<size_t>(graph.capacity), 0.0f);
  for (size_t e = 0; e < 2 * matrix.size(); ++e) {
    edge_weights[e] = matrix[e % matrix.size()];
  }
  const Tensor z = Tensor::from_host(context, integers({2, nodes, features}, 3), {2, nodes, features});
  const Tensor dy = Tensor::from_host(context, integers({2, nodes, features}, 4), {2, nodes, features});
  const Variable dense_z = Variable::leaf(z), sparse_z = Variable::leaf(z.reshape({2 * nodes, features}));
  const Variable weights = Variable::leaf(Tensor::from_host(context, edge_weights, {graph.capacity}));
  Tape tape;
  Variable dense, sparse;
  {
    const TapeScope scope(context, &tape);
    dense = dense_propagate(context, dense_z, adjacency, bias);
    sparse = combine(context, 1.0f, propagate(context, graph, weights, sparse_z), -1.0f, sparse_z);
  }
  dense.add_gradient(context, dy);
  sparse.add_gradient(context, dy.reshape(sparse.shape()));
  tape.backward(context);
  std::vector<float> expected = sparse.value().to_host<float>(context), dbias(added.size(), 0.0f);
  const std::vector<float> gradient = dy.to_host<float>(context);
  for (size_t i = 0; i < expected.size(); ++i) {
    expected[i] += added[i / features % nodes];
    dbias[i / features % nodes] += gradient[i];
  }
  EXPECT_EQ(dense.value().to_host<float>(context), expected);
  EXPECT_EQ(dense_z.gradient().to_host<float>(context), sparse_z.gradient().to_host<float>(context));
  const std::vector<float> dweights = weights.gradient().to_host<float>(context);
  std::vector<float> dmatrix(matrix.size());
  for (size_t e = 0; e < matrix.size(); ++e) {
    dmatrix[e] = dweights[e] + dweights[e + matrix.size()];
  }
  EXPECT_EQ(adjacency->gradient.to_host<float>(context), dmatrix);
  EXPECT_EQ(bias->gradient.to_host<float>(context), dbias);
}

TEST_P(Layers, DenseGraphReasoning) {
  for (const MfibLayout layout : {MfibLayout::fixed, MfibLayout::original}) {
    store = ParameterStore();
    const DenseGraphReasoning block(builder.scope("reason"), {.channels = 8, .layout = layout});
    ASSERT_NE(store.find("reason.BGCN.gcn.conv2.weight"), nullptr);
    EXPECT_EQ(store.count(), 2 * 2 + 2 + 4 * 4 + (8 * 2 + 2) + (8 * 4 + 4) + (4 * 8 + 8));
    check_gradients(
        [&](const auto& x) {
          const auto [a, b] = block(context, x[0], x[1]);
          return concat_samples(context, a, b);
        },
        {random_tensor({2, 2, 3, 2, 8}, 1), random_tensor({2, 2, 3, 2, 8}, 2)}, 2e-3);
  }
  EXPECT_THROW(DenseGraphReasoning(builder, {.channels = 6}), ShapeError);
}

// The whole block's gradients are compared with PyTorch in double by tests/oracle: its ReLU after a norm over
// a few interpolated nodes has too many kinks for float32 differences. Here: both branches receive the same
// message.
TEST_P(Layers, GraphReasoningTreatsBothBranchesAlike) {
  for (const EdgeWeights weights : {EdgeWeights::symmetric, EdgeWeights::attention}) {
    store = ParameterStore();
    const GraphReasoning block(builder, {.channels = 6, .nodes_per_axis = 2, .weights = weights});
    const Tensor x = random_tensor({2, 4, 3, 4, 6}, 1);
    const auto [same_a, same_b] = block(context, x, x);
    EXPECT_EQ(same_a.value().to_host<float>(context), same_b.value().to_host<float>(context));
    EXPECT_NE(same_a.value().to_host<float>(context), x.to_host<float>(context));
    const auto [a, b] = block(context, x, random_tensor({2, 4, 3, 4, 6}, 2));
    EXPECT_NE(a.value().to_host<float>(context),
              same_a.value().to_host<float>(context));  // the edges have a say
    EXPECT_EQ(a.shape(), x.shape());
    EXPECT_EQ(b.shape(), x.shape());
    const Tensor small = random_tensor({2, 3, 4, 3, 6}, 3);
    const Regions regions = build_regions(context, some_labels(context, 6), 6);
    const auto [region_a, region_b] = block(context, small, small, regions);
    EXPECT_EQ(region_a.value().to_host<float>(context), region_b.value().to_host<float>(context));
    EXPECT_EQ(region_a.shape(), small.shape());
  }
}

TEST_P(Layers, DropPathKeepsTheMeanAndFollowsTheSeed) {
  context.seed_step(1, 1);
  const Tensor ones = Tensor::from_host(context, std::vector<float>(4000, 1.0f), {4000, 1});
  const std::vector<float> y = drop_path(context, ones, 0.25f).value().to_host<float>(context);
  const double mean = std::accumulate(y.begin(), y.end(), 0.0) / 4000;
  EXPECT_NEAR(mean, 1.0, 4 * std::sqrt(0.25 / 0.75 / 4000));  // four standard errors
  for (const float v : y) {
    EXPECT_TRUE(v == 0.0f || v == 1.0f / 0.75f);
  }
  context.seed_step(1, 1);
  EXPECT_EQ(drop_path(context, ones, 0.25f).value().to_host<float>(context), y);
  context.seed_step(1, 2);
  EXPECT_NE(drop_path(context, ones, 0.25f).value().to_host<float>(context), y);
}

TEST_P(Layers, LossesStartTheBackwardPassWithTheirWeight) {
  const std::vector<uint8_t> raw{0, 1, 2, 3, 3, 2, 1, 0, 0, 0, 2, 2, 0, 3, 1, 0};
  const Tensor labels = Tensor::from_host(context, raw, {2, 2, 2, 2});
  const Tensor targets = region_targets(context, labels);
  const Tensor edges = edge_targets(context, labels);
  const Tensor logits = random_tensor({2, 2, 2, 2, 3}, 1);
  const Tensor edge_logits = random_tensor({2, 2, 2, 2, 1}, 2);
  check_loss(logits, [&](const Variable& x, float w) { return region_loss(context, x, targets, {}, w); });
  check_loss(logits, [&](const Variable& x, float w) {
    return region_loss(context, x, targets, {.batch_dice = true}, w);
  });
  check_loss(edge_logits, [&](const Variable& x, float w) { return edge_loss(context, x, edges, w); });
}

TEST_P(Layers, ClassLossesStartTheBackwardPassWithTheirWeight) {
  const Tensor logits = random_tensor({2, 2, 2, 2, 3}, 1);
  const Tensor labels = Tensor::from_host(
      context, std::vector<uint8_t>{0, 1, 2, 9, 1, 2, 1, 0, 0, 0, 2, 2, 0, 9, 1, 0}, {2, 2, 2, 2});
  CrossEntropySettings entropy{.ignore_label = 9, .label_smoothing = 0.1f, .focal_gamma = 2.0f};
  check_loss(logits,
             [&](const Variable& x, float w) { return cross_entropy_loss(context, x, labels, entropy, w); });
  entropy.class_weights = Tensor::from_host(context, std::vector<float>{0.5f, 1.0f, 2.0f}, {3});
  check_loss(logits,
             [&](const Variable& x, float w) { return cross_entropy_loss(context, x, labels, entropy, w); });
  const OverlapLossSettings dice{.first_channel = 1, .ignore_label = 9, .batch = true};
  check_loss(logits, [&](const Variable& x, float w) { return overlap_loss(context, x, labels, dice, w); });
  std::vector<uint8_t> raw(48);
  for (size_t i = 0; i < raw.size(); ++i) {
    raw[i] = i * i % 5 < 2 ? 1 : 0;
  }
  const Tensor masks = Tensor::from_host(context, raw, logits.shape());
  const OverlapLossSettings iou{.kind = kernels::Overlap::iou, .softmax = false};
  check_loss(logits, [&](const Variable& x, float w) { return overlap_loss(context, x, masks, iou, w); });
  const Tensor teacher = random_tensor({2, 2, 2, 2, 3}, 2);
  check_loss(logits,
             [&](const Variable& x, float w) { return distillation_loss(context, x, teacher, 2.0f, w); });
  EXPECT_THROW(cross_entropy_loss(context, logits, masks, {}, 1.0f), ShapeError);
  EXPECT_THROW(cross_entropy_loss(context, logits, labels, {.class_weights = teacher}, 1.0f), ShapeError);
  EXPECT_THROW(overlap_loss(context, logits, labels, iou, 1.0f), ShapeError);
  EXPECT_THROW(distillation_loss(context, logits, labels, 1.0f, 1.0f), ShapeError);
}

TEST_P(Layers, PointwiseLossesStartTheBackwardPassWithTheirWeight) {
  const Tensor x = random_tensor({2, 3, 4}, 1);
  const Tensor target = random_tensor({2, 3, 4}, 2);
  for (const kernels::PointwiseLoss kind :
       {kernels::PointwiseLoss::l1, kernels::PointwiseLoss::smooth_l1, kernels::PointwiseLoss::l2}) {
    PointwiseLossSettings settings{.kind = kind, .beta = 2.0f};
    settings.channel_weights = Tensor::from_host(context, std::vector<float>{1, 2, 0.5f, 0}, {4});
    check_loss(x,
               [&](const Variable& v, float w) { return pointwise_loss(context, v, target, settings, w); });
  }
  std::vector<uint8_t> raw(24);
  for (size_t i = 0; i < raw.size(); ++i) {
    raw[i] = i * i % 5 < 2 ? 1 : 0;
  }
  const Tensor masks = Tensor::from_host(context, raw, x.shape());
  for (const float gamma : {0.0f, 2.0f}) {
    PointwiseLossSettings settings{.kind = kernels::PointwiseLoss::bce, .gamma = gamma, .alpha = 0.25f};
    // Temporaries: the tape must keep them alive.
    const auto with_weights = [&](const Variable& v, float w) {
      PointwiseLossSettings own = settings;
      own.element_weights = random_tensor(x.shape(), 3);
      own.positive_weights = Tensor::from_host(context, std::vector<float>{1, 2, 0.5f, 3}, {4});
      return pointwise_loss(context, v, masks, own, w);
    };
    check_loss(x, with_weights);
  }
  EXPECT_THROW(pointwise_loss(context, x, random_tensor({2, 4, 3}, 2), {}, 1.0f), ShapeError);
  EXPECT_THROW(pointwise_loss(context, x, target, {.channel_weights = x}, 1.0f), ShapeError);
  EXPECT_THROW(pointwise_loss(context, x, masks, {}, 1.0f), ShapeError);
}

TEST_P(Layers, AParameterUsedTwiceGetsBothGradients) {
  const Linear linear(builder, 3, 3);
  check_gradients([&](const auto& x) { return linear(context, linear(context, x[0])); },
                  {random_tensor({4, 3}, 1)});
}

TEST_P(Layers, AdamWMovesAgainstTheGradientAndDecaysOnlyWeights) {
  Parameter* weight = builder.uniform("weight", {50}, 1.0f, true);
  Parameter* bias = builder.uniform("bias", {50}, 1.0f, false);
  Parameter* untouched = builder.uniform("untouched", {50}, 1.0f, false);
  const std::vector<float> weight0 = weight->value.to_host<float>(context);
  const std::vector<float> bias0 = bias->value.to_host<float>(context);
  const std::vector<float> untouched0 = untouched->value.to_host<float>(context);
  AdamW optimizer(context, store, {.weight_decay = 0.1f, .max_norm = 0.0f});
  for (Parameter* parameter : {weight, bias}) {
    kernels::fill(context.kernels(), 50, 2.0f, parameter->gradient);
    parameter->gradient_written = true;
  }
  optimizer.step(context, 0.01f);
  EXPECT_EQ(optimizer.steps(), 1);
  EXPECT_NEAR(optimizer.last_gradient_norm(context), std::sqrt(100 * 4.0), 1e-4);
  // In the first step the bias-corrected moments are g and g^2: every number moves by the learning rate.
  const std::vector<float> weight1 = weight->value.to_host<float>(context);
  const std::vector<float> bias1 = bias->value.to_host<float>(context);
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_NEAR(bias1[i], bias0[i] - 0.01f, 1e-6);
    EXPECT_NEAR(weight1[i], weight0[i] - 0.01f * (1.0f + 0.1f * weight0[i]), 1e-6);
  }
  EXPECT_EQ(untouched->value.to_host<float>(context), untouched0);
}

TEST_P(Layers, OptimisersLeaveFrozenParametersAlone) {
  Parameter* frozen = builder.uniform("frozen", {50}, 1.0f, true);
  Parameter* weight = builder.uniform("weight", {50}, 1.0f, true);
  frozen->trainable = false;
  const std::vector<float> before = frozen->value.to_host<float>(context);
  const std::vector<float> moving = weight->value.to_host<float>(context);
  AdamW optimizer(context, store, {.weight_decay = 0.1f, .max_norm = 0.0f});
  for (Parameter* parameter : {frozen, weight}) {
    kernels::fill(context.kernels(), 50, 2.0f, parameter->gradient);
    parameter->gradient_written = true;
  }
  optimizer.step(context, 0.01f);
  EXPECT_EQ(frozen->value.to_host<float>(context), before);
  EXPECT_NE(weight->value.to_host<float>(context), moving);
  // Nor do their gradients count for clipping.
  EXPECT_NEAR(optimizer.last_gradient_norm(context), std::sqrt(50 * 4.0), 1e-4);
  ASSERT_EQ(optimizer.states()[0].tensors.size(), 2u);
}

TEST_P(Layers, AdamFoldsTheDecayIntoTheGradient) {
  Parameter* weight = builder.constant("weight", {50}, 3.0f);
  weight->decays = true;
  AdamW optimizer(
      context, store,
      {.weight_decay = 0.5f, .max_norm = 0.0f, .amsgrad = true, .decay = kernels::WeightDecay::l2});
  kernels::fill(context.kernels(), 50, -1.5f, weight->gradient);
  weight->gradient_written = true;
  optimizer.step(context, 0.01f);
  // The gradient and the decay cancel: nothing moves.
  EXPECT_EQ(weight->value.to_host<float>(context), std::vector<float>(50, 3.0f));
  ASSERT_EQ(optimizer.states().size(), 3u);
  EXPECT_EQ(optimizer.states()[2].name, "largest_second_moment");
  kernels::fill(context.kernels(), 50, 0.5f, weight->gradient);
  optimizer.step(context, 0.01f);
  EXPECT_NE(weight->value.to_host<float>(context)[0], 3.0f);
  EXPECT_EQ(optimizer.states()[2].tensors[0].to_host<float>(context),
            optimizer.second_moment(0).to_host<float>(context));
}

TEST_P(Layers, SgdWithNesterovMomentum) {
  Parameter* weight = builder.constant("weight", {50}, 1.0f);
  Sgd optimizer(context, store, {.momentum = 0.5f, .weight_decay = 0.0f, .max_norm = 0.0f});
  ASSERT_EQ(optimizer.states().size(), 1u);
  // m = 2, step 2 + 1; then m = 3, step 2 + 1.5.
  for (const float expected : {1.0f - 3.0f, 1.0f - 3.0f - 3.5f}) {
    kernels::fill(context.kernels(), 50, 2.0f, weight->gradient);
    weight->gradient_written = true;
    optimizer.step(context, 1.0f);
    EXPECT_EQ(weight->value.to_host<float>(context), std::vector<float>(50, expected));
  }
  EXPECT_EQ(optimizer.states()[0].tensors[0].to_host<float>(context), std::vector<float>(50, 3.0f));
  EXPECT_EQ(optimizer.steps(), 2);
  Sgd plain(context, store, {.momentum = 0.0f, .nesterov = false});
  EXPECT_TRUE(plain.states().empty());
}

TEST_P(Layers, EmaFollowsTheWeights) {
  Parameter* weight = builder.constant("weight", {50}, 4.0f);
  Ema ema(context, store, {.decay = 0.5f, .warm_up = false});
  EXPECT_EQ(ema.average(0).to_host<float>(context), std::vector<float>(50, 4.0f));
  kernels::fill(context.kernels(), 50, 8.0f, weight->value);
  ema.step(context);
  EXPECT_EQ(ema.average(0).to_host<float>(context), std::vector<float>(50, 6.0f));
  const Tensor bad = Tensor::from_host(context, std::vector<float>{INFINITY}, {1});
  ema.step(context, &bad);
  EXPECT_EQ(ema.average(0).to_host<float>(context), std::vector<float>(50, 6.0f));
  EXPECT_EQ(ema.steps(), 2);
  ema.swap(context);
  EXPECT_EQ(weight->value.to_host<float>(context), std::vector<float>(50, 6.0f));
  ema.swap(context);
  EXPECT_EQ(weight->value.to_host<float>(context), std::vector<float>(50, 8.0f));
  EXPECT_EQ(ema.average(0).to_host<float>(context), std::vector<float>(50, 6.0f));
}

TEST(Schedule, EmaDecayWarmsUp) {
  EXPECT_FLOAT_EQ(ema_decay_at({.decay = 0.9f}, 1), 2.0f / 11);
  EXPECT_FLOAT_EQ(ema_decay_at({.decay = 0.9f}, 80), 81.0f / 90);
  EXPECT_FLOAT_EQ(ema_decay_at({.decay = 0.9f}, 1000), 0.9f);
  EXPECT_FLOAT_EQ(ema_decay_at({.decay = 0.9f, .warm_up = false}, 1), 0.9f);
}

TEST(Parameters, StartFromTheSeedAndHaveUniqueNames) {
  DeviceContext context({DeviceType::cpu, 0});
  const auto values = [&](uint64_t seed) {
    ParameterStore store;
    const ParameterBuilder builder(context, store, seed);
    builder.uniform("first", {10}, 1.0f, true);
    return builder.scope("a").scope("b").uniform("second", {10}, 0.5f, true)->value.to_host<float>(context);
  };
  EXPECT_EQ(values(1), values(1));
  EXPECT_NE(values(1), values(2));
  for (const float v : values(3)) {
    EXPECT_LE(std::abs(v), 0.5f);
  }
  ParameterStore store;
  const ParameterBuilder builder(context, store, 0);
  EXPECT_EQ(builder.scope("a").scope("b").constant("c", {2}, 1.0f)->name, "a.b.c");
  EXPECT_THROW(builder.constant("a.b.c", {2}, 1.0f), ShapeError);
  EXPECT_EQ(store.count(), 2);
  EXPECT_NE(store.find("a.b.c"), nullptr);
  EXPECT_EQ(store.find("a.b"), nullptr);
}

TEST(Schedule, WarmsUpAndDecays) {
  const Schedule poly{.kind = ScheduleKind::poly, .base_lr = 1.0f, .warmup_steps = 10, .total_steps = 110};
  EXPECT_FLOAT_EQ(learning_rate_at(poly, 0), 0.1f);
  EXPECT_FLOAT_EQ(learning_rate_at(poly, 9), 1.0f);
  EXPECT_FLOAT_EQ(learning_rate_at(poly, 10), 1.0f);
  EXPECT_FLOAT_EQ(learning_rate_at(poly, 60), std::pow(0.5f, 0.9f));
  EXPECT_FLOAT_EQ(learning_rate_at(poly, 110), 0.0f);
  EXPECT_FLOAT_EQ(learning_rate_at(poly, 500), 0.0f);
  const Schedule cosine{.kind = ScheduleKind::cosine,
                        .base_lr = 2.0f,
                        .warmup_steps = 0,
                        .total_steps = 100,
                        .final_factor = 0.1f};
  EXPECT_FLOAT_EQ(learning_rate_at(cosine, 0), 2.0f);
  EXPECT_NEAR(learning_rate_at(cosine, 50), 2.0f * (0.1f + 0.9f * 0.5f), 1e-6);
  EXPECT_NEAR(learning_rate_at(cosine, 100), 0.2f, 1e-6);
  EXPECT_EQ(parse_schedule_kind("cosine"), ScheduleKind::cosine);
  EXPECT_THROW(parse_schedule_kind("linear"), UsageError);
}

}  // namespace
}  // namespace vesal::layers
