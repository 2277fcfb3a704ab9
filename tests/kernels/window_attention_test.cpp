// Window attention on every device against double-precision loops, its gradients against numeric differences,
// and the properties that tolerances cannot show: bit-equal repeats, independence of the thread count, and
// that what is masked is never read.
#include "kernels/window_attention/window_attention.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <numeric>

#include "base/parallel.hpp"
#include "kernels/window_attention/window_attention_cases.hpp"
#include "kernels/window_attention/window_attention_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

struct Inputs {
  std::vector<float> qkv;
  std::vector<float> qkv_bias;  // empty: none
  std::vector<float> bias_table;
  std::vector<float> dout;
};

Inputs make_inputs(const WindowAttentionParams& p, bool with_bias, uint64_t seed, float magnitude = 1.0f) {
  Inputs inputs;
  inputs.qkv = random_normal(p.tokens() * 3 * p.channels(), seed, magnitude);
  if (with_bias) {
    inputs.qkv_bias = random_normal(3 * p.channels(), seed + 1, magnitude);
  }
  inputs.bias_table = random_normal(p.bias_rows() * p.heads, seed + 2, 0.5f);
  inputs.dout = random_normal(p.tokens() * p.channels(), seed + 3);
  return inputs;
}

template <class T>
struct Outputs {
  std::vector<T> out, lse, dqkv, dqkv_bias, dbias_table;
};

template <class T>
std::vector<T> convert(const std::vector<float>& values) {
  return std::vector<T>(values.begin(), values.end());
}

template <class T>
T* pointer_or_null(std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

template <class T>
Outputs<T> run_reference(const WindowAttentionParams& p, const Inputs& inputs) {
  const std::vector<T> qkv = convert<T>(inputs.qkv);
  std::vector<T> qkv_bias = convert<T>(inputs.qkv_bias);
  const std::vector<T> bias_table = convert<T>(inputs.bias_table);
  const std::vector<T> dout = convert<T>(inputs.dout);
  Outputs<T> r;
  r.out.resize(dout.size());
  r.lse.resize(static_cast<size_t>(p.tokens() * p.heads));
  r.dqkv.resize(qkv.size());
  r.dqkv_bias.resize(qkv_bias.size());
  r.dbias_table.resize(bias_table.size());
  reference::window_attention_forward<T>(p, qkv.data(), pointer_or_null(qkv_bias), bias_table.data(),
                                         r.out.data(), r.lse.data());
  reference::window_attention_backward<T>(p, qkv.data(), pointer_or_null(qkv_bias), bias_table.data(),
                                          r.out.data(), r.lse.data(), dout.data(), r.dqkv.data(),
                                          pointer_or_null(r.dqkv_bias), r.dbias_table.data());
  return r;
}

// Both passes on a device. In accumulate mode the parameters' gradients start as `before`.
Outputs<float> run_device(Device device, const WindowAttentionParams& p, const Inputs& inputs,
                          GradMode mode = GradMode::overwrite, float before = 0.0f) {
  Context context(device);
  const bool with_bias = !inputs.qkv_bias.empty();
  const auto start = [&](const std::vector<float>& like) {
    const float poison = std::numeric_limits<float>::quiet_NaN();
    return std::vector<float>(like.size(), mode == GradMode::accumulate ? before : poison);
  };
  const DeviceArray<float> qkv(device, inputs.qkv);
  const DeviceArray<float> qkv_bias(device, inputs.qkv_bias);
  const DeviceArray<float> bias_table(device, inputs.bias_table);
  const DeviceArray<float> dout(device, inputs.dout);
  const DeviceArray<float> out(device, p.tokens() * p.channels());
  const DeviceArray<float> lse(device, p.tokens() * p.heads);
  const DeviceArray<float> dqkv(device, static_cast<int64_t>(inputs.qkv.size()));
  const DeviceArray<float> dqkv_bias(device, start(inputs.qkv_bias));
  const DeviceArray<float> dbias_table(device, start(inputs.bias_table));
  const float* bias_pointer = with_bias ? qkv_bias.get() : nullptr;
  float* dbias_pointer = with_bias ? dqkv_bias.get() : nullptr;
  window_attention_forward(context, p, qkv.get(), bias_pointer, bias_table.get(), out.get(), lse.get());
  const DeviceWorkspace workspace(device, window_attention_backward_workspace_bytes(context, p));
  window_attention_backward(context, p, qkv.get(), bias_pointer, bias_table.get(), out.get(), lse.get(),
                            dout.get(), dqkv.get(), dbias_pointer, dbias_table.get(), mode, workspace);
  return {out.host(), lse.host(), dqkv.host(), dqkv_bias.host(), dbias_table.host()};
}

std::vector<float> joined(const Outputs<float>& r) {
  std::vector<float> all;
  for (const std::vector<float>* part : {&r.out, &r.lse, &r.dqkv, &r.dqkv_bias, &r.dbias_table}) {
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

const WindowAttentionCase& find_case(const std::string& name) {
  for (const WindowAttentionCase& c : kWindowAttentionCases) {
    if (c.name == name) {
      return c;
    }
  }
  throw UsageError(concat("no case ", name));
}

// The numbers of each head reordered: element c comes from element order[c].
std::vector<float> reorder(const std::vector<float>& values, const std::vector<size_t>& order, bool back) {
  std::vector<float> result(values.size());
  for (size_t first = 0; first < values.size(); first += order.size()) {
    for (size_t c = 0; c < order.size(); ++c) {
      (back ? result[first + order[c]] : result[first + c]) =
          back ? values[first + c] : values[first + order[c]];
    }
  }
  return result;
}

// What a naive float32 evaluation reaches (naive_error.hpp); here the head's dimensions are also summed in
// other orders.
Outputs<float> run_naive(const WindowAttentionParams& p, const Inputs& inputs, const Outputs<double>& exact) {
  constexpr int kEvaluations = 16;
  Outputs<float> worst = run_reference<float>(p, inputs);
  RandomStream random(9, 0, 0);
  std::vector<size_t> order(static_cast<size_t>(p.head_dim));
  std::iota(order.begin(), order.end(), size_t{0});
  for (int k = 1; k < kEvaluations; ++k) {
    for (size_t c = order.size() - 1; c > 0; --c) {
      std::swap(order[c], order[static_cast<size_t>(random.below(static_cast<int64_t>(c) + 1))]);
    }
    Inputs reordered = inputs;
    for (const auto part : {&Inputs::qkv, &Inputs::qkv_bias, &Inputs::dout}) {
      reordered.*part = moved_by_one_ulp(reorder(inputs.*part, order, false), random);
    }
    reordered.bias_table = moved_by_one_ulp(inputs.bias_table, random);
    const Outputs<float> other = run_reference<float>(p, reordered);
    keep_worse(worst.out, reorder(other.out, order, true), exact.out);
    keep_worse(worst.lse, other.lse, exact.lse);
    keep_worse(worst.dqkv, reorder(other.dqkv, order, true), exact.dqkv);
    keep_worse(worst.dqkv_bias, reorder(other.dqkv_bias, order, true), exact.dqkv_bias);
    keep_worse(worst.dbias_table, other.dbias_table, exact.dbias_table);
  }
  return worst;
}

void expect_matches_reference(const WindowAttentionCase& c, uint64_t seed) {
  const Inputs inputs = make_inputs(c.params, c.qkv_bias, seed);
  const Outputs<double> exact = run_reference<double>(c.params, inputs);
  const Outputs<float> naive = run_naive(c.params, inputs, exact);
  for (const Device device : test_devices()) {
    const std::string where = c.name + " on " + to_string(device);
    const Outputs<float> actual = run_device(device, c.params, inputs);
    expect_close(where + ": out", actual.out, exact.out, naive.out);
    expect_close(where + ": lse", actual.lse, exact.lse, naive.lse);
    expect_close(where + ": dqkv", actual.dqkv, exact.dqkv, naive.dqkv);
    expect_close(where + ": dqkv_bias", actual.dqkv_bias, exact.dqkv_bias, naive.dqkv_bias);
    expect_close(where + ": dbias_table", actual.dbias_table, exact.dbias_table, naive.dbias_table);
  }
}

TEST(WindowAttention, MatchesReference) {
  uint64_t seed = 100;
  for (const WindowAttentionCase& c : kWindowAttentionCases) {
    expect_matches_reference(c, seed += 10);
  }
}

TEST(WindowAttention, MatchesReferenceOnRandomShapes) {
  for_each_random_case([](RandomStream& random) {
    const WindowAttentionCase c = draw_window_attention(random);
    expect_matches_reference(c, static_cast<uint64_t>(random.below(1 << 20)));
  });
}

TEST(WindowAttention, ClippingIsTheContractsOne) {
  const ClippedWindow inner = clip_window({7, 7, 7}, {3, 3, 3}, {8, 9, 100});
  EXPECT_EQ(inner.window, (std::array<int, 3>{7, 7, 7}));
  EXPECT_EQ(inner.shift, (std::array<int, 3>{3, 3, 3}));
  const ClippedWindow mixed = clip_window({7, 7, 7}, {3, 2, 3}, {6, 8, 7});
  EXPECT_EQ(mixed.window, (std::array<int, 3>{6, 7, 7}));
  EXPECT_EQ(mixed.shift, (std::array<int, 3>{0, 2, 0})) << "an axis as long as its window is not shifted";
}

// With MONAI's rule two tokens of a 1x2x2 window meet the biases that tokens 0 to 3 of a 1x3x3 window have:
// places (0, 0), (0, 1), (0, 2), (1, 0).
TEST(WindowAttention, KeptTableIsReadByTokenNumber) {
  const WindowAttentionParams p{.h = 2, .w = 2, .head_dim = 4, .window = {1, 2, 2}, .bias_window = {1, 3, 3}};
  ASSERT_EQ(p.bias_rows(), 25);
  const std::array<int, 4> offsets{0, 1, 2, 5};
  std::vector<float> table = random_normal(25, 77);
  const std::vector<float> qkv(static_cast<size_t>(4 * 12), 0.0f);
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> q(device, qkv);
    const DeviceArray<float> t(device, table);
    const DeviceArray<float> out(device, 16), lse(device, 4);
    window_attention_forward(context, p, q.get(), nullptr, t.get(), out.get(), lse.get());
    const std::vector<float> values = lse.host();
    for (size_t i = 0; i < 4; ++i) {
      double sum = 0;
      for (size_t j = 0; j < 4; ++j) {
        sum += std::exp(static_cast<double>(table[static_cast<size_t>(12 + offsets[i] - offsets[j])]));
      }
      EXPECT_NEAR(static_cast<double>(values[i]), std::log(sum), 1e-6)
          << "token " << i << " on " << to_string(device);
    }
  }
}

TEST(WindowAttention, AnalyticGradientsMatchNumericOnes) {
  const std::vector<WindowAttentionCase> tiny{
      {"attend",
       {.d = 3,
        .h = 2,
        .w = 3,
        .heads = 2,
        .head_dim = 4,
        .window = {2, 2, 2},
        .shift = {1, 0, 1},
        .scale = 0.5f}},
      {"masked",
       {.d = 3,
        .h = 2,
        .w = 3,
        .heads = 1,
        .head_dim = 5,
        .window = {2, 2, 2},
        .shift = {1, 1, 0},
        .padding = PaddingMode::masked,
        .scale = 0.5f}},
      clipped_case("Swin, clipped", {.d = 2, .h = 3, .w = 2, .heads = 2, .head_dim = 4, .scale = 0.5f},
                   {3, 2, 4}, {1, 1, 1}, false),
      clipped_case("MONAI, clipped",
                   {.d = 2, .h = 3, .w = 2, .head_dim = 4, .padding = PaddingMode::masked, .scale = 0.5f},
                   {3, 2, 4}, {1, 1, 1}, true),
  };
  for (const WindowAttentionCase& c : tiny) {
    const WindowAttentionParams& p = c.params;
    const Inputs inputs = make_inputs(p, true, 7);
    const Outputs<double> analytic = run_reference<double>(p, inputs);
    const std::vector<double> qkv = widen(inputs.qkv);
    const std::vector<double> qkv_bias = widen(inputs.qkv_bias);
    const std::vector<double> bias_table = widen(inputs.bias_table);
    const auto loss = [&](const std::vector<double>& q, const std::vector<double>& b,
                          const std::vector<double>& t) {
      std::vector<double> out(inputs.dout.size());
      reference::window_attention_forward<double>(p, q.data(), b.data(), t.data(), out.data(), nullptr);
      double sum = 0;
      for (size_t i = 0; i < out.size(); ++i) {
        sum += out[i] * static_cast<double>(inputs.dout[i]);
      }
      return sum;
    };
    expect_gradient(c.name + ": qkv", qkv, analytic.dqkv,
                    [&](const std::vector<double>& x) { return loss(x, qkv_bias, bias_table); });
    expect_gradient(c.name + ": qkv_bias", qkv_bias, analytic.dqkv_bias,
                    [&](const std::vector<double>& x) { return loss(qkv, x, bias_table); });
    expect_gradient(c.name + ": bias_table", bias_table, analytic.dbias_table,
                    [&](const std::vector<double>& x) { return loss(qkv, qkv_bias, x); });
  }
}

TEST(WindowAttention, AccumulatesWhereAsked) {
  const WindowAttentionCase& c = find_case("padding attends");
  const Inputs inputs = make_inputs(c.params, true, 55);
  for (const Device device : test_devices()) {
    const Outputs<float> fresh = run_device(device, c.params, inputs);
    const Outputs<float> added = run_device(device, c.params, inputs, GradMode::accumulate, 3.0f);
    expect_equal("dqkv is overwritten in either mode", added.dqkv, fresh.dqkv);
    for (const auto& [sum, term] :
         {std::pair{&added.dqkv_bias, &fresh.dqkv_bias}, std::pair{&added.dbias_table, &fresh.dbias_table}}) {
      for (size_t i = 0; i < term->size(); ++i) {
        ASSERT_EQ((*sum)[i], 3.0f + (*term)[i]) << "on " << to_string(device) << ", element " << i;
      }
    }
  }
}

TEST(WindowAttention, GivesTheSameBitsEachTime) {
  for (const char* name :
       {"window 4^3 shifted", "padding attends", "head dim 96", "129 tokens a window",
        "2D, window 1x7x7 shifted", "window 7^3 shifted, masked, no qkv bias",
        "MONAI, window 7^3 clipped on two axes, shifted on the third", "bias table of 4097 rows"}) {
    const WindowAttentionCase& c = find_case(name);
    const Inputs inputs = make_inputs(c.params, c.qkv_bias, 21);
    for (const Device device : test_devices()) {
      expect_same_bits(std::string(name) + " on " + to_string(device), device,
                       [&] { return joined(run_device(device, c.params, inputs)); });
    }
  }
}

TEST(WindowAttention, DoesNotDependOnTheNumberOfThreads) {
  const WindowAttentionParams p{
      .n = 1, .d = 9, .h = 12, .w = 8, .heads = 3, .head_dim = 12, .shift = {2, 2, 2}};
  const Inputs inputs = make_inputs(p, true, 22);
  const Device cpu{DeviceType::cpu, 0};
  const int threads = thread_count();
  set_thread_count(1);
  const std::vector<float> one = joined(run_device(cpu, p, inputs));
  set_thread_count(3);
  const std::vector<float> three = joined(run_device(cpu, p, inputs));
  set_thread_count(threads);
  expect_equal("one thread and three", three, one);
}

// Masked padding: what qkv_bias holds must not matter, NaN included.
TEST(WindowAttention, MaskedPaddingIsNeverRead) {
  const WindowAttentionParams p = find_case("padding masked").params;
  Inputs inputs = make_inputs(p, true, 23);
  for (const Device device : test_devices()) {
    const Outputs<float> clean = run_device(device, p, inputs);
    Inputs poisoned = inputs;
    std::fill(poisoned.qkv_bias.begin(), poisoned.qkv_bias.end(), std::numeric_limits<float>::quiet_NaN());
    expect_equal("NaN in masked padding on " + to_string(device), joined(run_device(device, p, poisoned)),
                 joined(clean));
    for (const float gradient : clean.dqkv_bias) {
      EXPECT_EQ(gradient, 0.0f);
    }
  }
}

// With one window that covers the whole volume and equal scores, the output is the mean of the values.
TEST(WindowAttention, EqualScoresAverageTheValues) {
  const WindowAttentionParams p{.d = 2, .h = 4, .w = 4, .heads = 1, .head_dim = 4, .window = {2, 4, 4}};
  std::vector<float> qkv(static_cast<size_t>(p.tokens() * 12), 0.0f);
  for (int64_t token = 0; token < 32; ++token) {
    qkv[static_cast<size_t>(token * 12 + 8)] = static_cast<float>(token);
  }
  const std::vector<float> table(static_cast<size_t>(p.bias_rows()), 1.0f);
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> q(device, qkv);
    const DeviceArray<float> t(device, table);
    const DeviceArray<float> out(device, p.tokens() * 4);
    window_attention_forward(context, p, q.get(), nullptr, t.get(), out.get(), nullptr);
    const std::vector<float> values = out.host();
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i], i % 4 == 0 ? 15.5f : 0.0f) << "element " << i << " on " << to_string(device);
    }
  }
}

// Scores in the thousands: exp overflows unless the row's maximum is taken off first, and the softmax is
// nearly one-hot.
TEST(WindowAttention, LargeScoresDoNotOverflow) {
  const WindowAttentionCase& c = find_case("129 tokens a window");
  const Inputs inputs = make_inputs(c.params, true, 24, 60.0f);
  const Outputs<double> exact = run_reference<double>(c.params, inputs);
  const Outputs<float> naive = run_reference<float>(c.params, inputs);
  double largest = 0;
  for (const double lse : exact.lse) {
    largest = std::max(largest, lse);
  }
  ASSERT_GT(largest, 1000.0);
  for (const Device device : test_devices()) {
    const Outputs<float> actual = run_device(device, c.params, inputs);
    expect_close("lse on " + to_string(device), actual.lse, exact.lse, naive.lse);
    for (const float value : joined(actual)) {
      ASSERT_TRUE(std::isfinite(value)) << "on " << to_string(device);
    }
  }
}

TEST(WindowAttention, RejectsWrongArguments) {
  Context context(Device{DeviceType::cpu, 0});
  float x = 0;
  const auto forward = [&](const WindowAttentionParams& p) {
    window_attention_forward(context, p, &x, nullptr, &x, &x, nullptr);
  };
  EXPECT_THROW(forward({.head_dim = 3}), ShapeError);
  EXPECT_THROW(forward({.head_dim = 97}), ShapeError);
  EXPECT_THROW(forward({.window = {0, 4, 4}}), ShapeError);
  EXPECT_THROW(forward({.window = {4, 4, 4}, .shift = {0, 4, 0}}), ShapeError);
  EXPECT_THROW(forward({.d = 0}), ShapeError);
  EXPECT_THROW(forward({.window = {2000, 2000, 2000}}), ShapeError);
  EXPECT_THROW(forward({.window = {4, 4, 4}, .bias_window = {4, 3, 4}}), ShapeError);
  EXPECT_THROW(forward({.window = {1, 4, 4}, .bias_window = {0, 4, 4}}), ShapeError);
  EXPECT_THROW(forward({.window = {1, 1, 1}, .bias_window = {2000, 2000, 2000}}), ShapeError);
  const WindowAttentionParams p{.window = {1, 1, 1}};
  EXPECT_THROW(window_attention_forward(context, p, ConstData{}, nullptr, &x, &x, nullptr), ShapeError);
  EXPECT_THROW(window_attention_forward(context, p, ConstData{&x, DType::bf16}, nullptr, &x, &x, nullptr),
               ShapeError);
  EXPECT_THROW(window_attention_backward(context, p, &x, nullptr, &x, &x, &x, &x, &x, nullptr, &x,
                                         GradMode::overwrite, Workspace{}),
               ShapeError);
  const size_t bytes = window_attention_backward_workspace_bytes(context, p);
  std::vector<float> scratch(bytes / sizeof(float));
  EXPECT_THROW(window_attention_backward(context, p, &x, nullptr, &x, &x, &x, &x, &x, &x, &x,
                                         GradMode::overwrite, Workspace{scratch.data(), bytes}),
               ShapeError)
      << "dqkv_bias without qkv_bias";
}

// One case at least for each layout of a head over threads, and for a window of several tiles of keys.
TEST(WindowAttention, Storage) {
  for (const char* name : {"window 4^3 shifted, no qkv bias, grid not a multiple", "padding attends",
                           "padding masked, not shifted, batch", "33 tokens a window", "65 tokens a window",
                           "head dim 31", "head dim 33", "head dim 65", "bias table of 4097 rows",
                           "window 4x9x5, head dim 96: several tiles of keys"}) {
    const WindowAttentionCase& c = find_case(name);
    const WindowAttentionParams& p = c.params;
    const Inputs inputs = make_inputs(p, c.qkv_bias, 61);
    // The backward pass is given an out of its own: what it computes from a rounded one is not rounded
    // float32.
    const Outputs<float> given = run_device(Device{DeviceType::cpu, 0}, p, inputs);
    expect_rounded_float32(name, [&](Call& call) {
      const Data qkv = call.in(inputs.qkv), table = call.in_float(inputs.bias_table);
      Data bias, dbias;
      if (c.qkv_bias) {
        bias = call.in_float(inputs.qkv_bias);
        dbias = call.in_out_float(inputs.qkv_bias);
      }
      window_attention_forward(call.context(), p, qkv, bias, table, call.out(p.tokens() * p.channels()),
                               call.out_float(p.tokens() * p.heads).as<float>("lse"));
      window_attention_backward(call.context(), p, qkv, bias, table, call.in(given.out),
                                call.in_float(given.lse).as<float>("lse"), call.in(inputs.dout),
                                call.out(p.tokens() * 3 * p.channels()), dbias,
                                call.in_out_float(inputs.bias_table), GradMode::accumulate,
                                call.workspace(window_attention_backward_workspace_bytes(call.context(), p)));
    });
  }
}

TEST(WindowAttention, StorageTypesThatDifferAreOneLine) {
  Context context(Device{DeviceType::cpu, 0});
  const WindowAttentionParams p{.head_dim = 4, .window = {1, 1, 1}};
  std::vector<float> x(64);
  std::vector<uint16_t> narrow(64);
  const Data half(narrow.data(), DType::bf16);
  EXPECT_EQ(
      shape_error([&] { window_attention_forward(context, p, half, nullptr, x.data(), x.data(), nullptr); }),
      "window_attention_forward: tensors are stored as bf16 and f32, expected one type");
  const Workspace workspace{x.data(), window_attention_backward_workspace_bytes(context, p)};
  ASSERT_LE(workspace.bytes, x.size() * sizeof(float));
  EXPECT_EQ(shape_error([&] {
              window_attention_backward(context, p, half, nullptr, x.data(), half, x.data(), half, x.data(),
                                        nullptr, x.data(), GradMode::overwrite, workspace);
            }),
            "window_attention_backward: tensors are stored as bf16 and f32, expected one type");
}

// Writes every case's inputs and the CPU's results where tests/oracle/window_attention.py asks for them.
TEST(WindowAttention, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/index.txt");
  int number = 0;
  for (const WindowAttentionCase& c : kWindowAttentionCases) {
    const WindowAttentionParams& p = c.params;
    const Inputs inputs = make_inputs(p, c.qkv_bias, 4000 + static_cast<uint64_t>(number));
    const Outputs<float> r = run_device(Device{DeviceType::cpu, 0}, p, inputs);
    index << p.n << ' ' << p.d << ' ' << p.h << ' ' << p.w << ' ' << p.heads << ' ' << p.head_dim;
    for (const auto& triple : {p.window, p.shift, p.table_window()}) {
      index << ' ' << triple[0] << ' ' << triple[1] << ' ' << triple[2];
    }
    index << ' ' << (p.padding == PaddingMode::masked) << ' ' << p.scale << ' ' << c.qkv_bias << ' ' << c.name
          << '\n';
    write_arrays(concat(folder, '/', number++, ".f32"),
                 {&inputs.qkv, &inputs.qkv_bias, &inputs.bias_table, &inputs.dout, &r.out, &r.dqkv,
                  &r.dqkv_bias, &r.dbias_table});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
