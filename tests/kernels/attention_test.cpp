// Attention on every device against double-precision loops, its gradients against numeric differences, and
// the properties that tolerances cannot show: bit-equal repeats, independence of the thread count, that what
// is masked or lies between strided tokens is neither read nor written, and what a query gives that has
// nothing to attend.
#include "kernels/attention/attention.hpp"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <numeric>

#include "base/parallel.hpp"
#include "kernels/attention/attention_cases.hpp"
#include "kernels/attention/attention_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// In the fused layout q holds qkv, and k and v are empty; arrays that a case lacks are empty too.
template <class T>
struct Inputs {
  std::vector<T> q, k, v, bias, axial_bias, dout;
  std::vector<uint8_t> key_mask;
};

template <class T>
struct Outputs {
  std::vector<T> out, lse, dq, dk, dv, daxial_bias;
};

AttentionParams laid_out(AttentionParams p, AttentionLayout layout) {
  if (layout == AttentionLayout::fused) {
    p.q_stride = p.k_stride = p.v_stride = 3 * p.channels();
  } else if (layout == AttentionLayout::roomy) {
    p.q_stride = p.channels() + p.head_dim;
    p.k_stride = p.channels() + 2 * p.head_dim;
    p.v_stride = p.channels() + 3 * p.head_dim;
  }
  return p;
}

int64_t stride_or_packed(const AttentionParams& p, int64_t stride) {
  return stride == 0 ? p.channels() : stride;
}

// Normal numbers; what lies between strided tokens is NaN.
std::vector<float> random_tokens(int64_t tokens, int64_t stride, int64_t used, uint64_t seed,
                                 float magnitude) {
  std::vector<float> values = random_normal(tokens * stride, seed, magnitude);
  for (int64_t i = 0; i < tokens * stride; ++i) {
    values[static_cast<size_t>(i)] = i % stride < used ? values[static_cast<size_t>(i)] : kNaN;
  }
  return values;
}

// A third of the keys is hidden, of the last of several samples all; a fifth of the bias is -infinity.
Inputs<float> make_inputs(const AttentionCase& c, uint64_t seed, float magnitude = 1.0f) {
  const AttentionParams p = laid_out(c.params, c.layout);
  Inputs<float> r;
  if (c.layout == AttentionLayout::fused) {
    r.q = random_normal(p.n * p.queries * 3 * p.channels(), seed, magnitude);
  } else {
    r.q = random_tokens(p.n * p.queries, stride_or_packed(p, p.q_stride), p.channels(), seed, magnitude);
    r.k = random_tokens(p.n * p.keys, stride_or_packed(p, p.k_stride), p.channels(), seed + 1, magnitude);
    r.v = random_tokens(p.n * p.keys, stride_or_packed(p, p.v_stride), p.channels(), seed + 2, magnitude);
  }
  r.dout = random_normal(p.n * p.queries * p.channels(), seed + 3);
  RandomStream random(seed, 4, 0);
  for (int64_t i = 0; c.key_mask && i < p.n * p.keys; ++i) {
    const bool last = p.n > 1 && i / p.keys == p.n - 1;
    r.key_mask.push_back(last || random.below(3) == 0 ? 0 : 1);
  }
  if (c.bias) {
    r.bias = random_normal(p.bias_samples * p.bias_heads * p.queries * p.keys, seed + 5);
    for (float& value : r.bias) {
      value = random.below(5) == 0 ? -kInfinity : value;
    }
    std::fill_n(r.bias.begin(), p.keys, -kInfinity);  // the first query has nothing to attend
  }
  if (c.axial) {
    r.axial_bias = random_normal(p.n * p.queries * p.heads * p.axial_size(), seed + 6, 0.5f);
  }
  return r;
}

template <class T>
const T* data_or_null(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

template <class T>
reference::Attention<T> view(const AttentionCase& c, const Inputs<T>& inputs) {
  const AttentionParams p = laid_out(c.params, c.layout);
  const bool fused = c.layout == AttentionLayout::fused;
  const T* q = inputs.q.data();
  return {p,
          q,
          fused ? q + p.channels() : inputs.k.data(),
          fused ? q + 2 * p.channels() : inputs.v.data(),
          data_or_null(inputs.key_mask),
          data_or_null(inputs.bias),
          data_or_null(inputs.axial_bias)};
}

template <class T>
std::vector<T> convert(const std::vector<float>& values) {
  return std::vector<T>(values.begin(), values.end());
}

template <class T>
Inputs<T> convert(const Inputs<float>& from) {
  return {convert<T>(from.q),          convert<T>(from.k),    convert<T>(from.v), convert<T>(from.bias),
          convert<T>(from.axial_bias), convert<T>(from.dout), from.key_mask};
}

// Outputs that no kernel writes, between strided tokens, keep the value `untouched`.
constexpr float kUntouched = -77.0f;

template <class T>
Outputs<T> run_reference(const AttentionCase& c, const Inputs<float>& given) {
  const Inputs<T> inputs = convert<T>(given);
  const reference::Attention<T> a = view(c, inputs);
  Outputs<T> r;
  r.out.resize(inputs.dout.size());
  r.lse.resize(inputs.dout.size() / static_cast<size_t>(a.p.head_dim));
  r.dq.assign(inputs.q.size(), T(kUntouched));
  r.dk.assign(inputs.k.size(), T(kUntouched));
  r.dv.assign(inputs.v.size(), T(kUntouched));
  r.daxial_bias.resize(inputs.axial_bias.size());
  const bool fused = c.layout == AttentionLayout::fused;
  T* dq = r.dq.data();
  reference::attention_forward<T>(a, r.out.data(), r.lse.data());
  reference::attention_backward<T>(
      a, r.out.data(), r.lse.data(), inputs.dout.data(), dq, fused ? dq + a.p.channels() : r.dk.data(),
      fused ? dq + 2 * a.p.channels() : r.dv.data(), c.axial ? r.daxial_bias.data() : nullptr);
  return r;
}

// What is read lies `shift` numbers behind the start of its memory.
Outputs<float> run_device(Device device, const AttentionCase& c, const Inputs<float>& inputs,
                          int64_t shift = 0) {
  Context context(device);
  const AttentionParams p = laid_out(c.params, c.layout);
  const bool fused = c.layout == AttentionLayout::fused;
  const auto shifted = [shift](std::vector<float> values) {
    values.insert(values.begin(), static_cast<size_t>(shift), kNaN);
    return values;
  };
  const DeviceArray<float> q_array(device, shifted(inputs.q)), k_array(device, shifted(inputs.k)),
      v_array(device, shifted(inputs.v)), dout_array(device, shifted(inputs.dout)), bias(device, inputs.bias),
      axial_bias(device, inputs.axial_bias);
  const float *q = q_array + shift, *k = k_array + shift, *v = v_array + shift, *dout = dout_array + shift;
  const DeviceArray<uint8_t> key_mask(device, inputs.key_mask);
  // Only strided gradients start with a value, so that everywhere else what is not written shows.
  const auto gradient = [&](const std::vector<float>& like) {
    if (c.layout == AttentionLayout::roomy) {
      return std::make_unique<DeviceArray<float>>(device, std::vector<float>(like.size(), kUntouched));
    }
    return std::make_unique<DeviceArray<float>>(device, static_cast<int64_t>(like.size()));
  };
  const auto dq = gradient(inputs.q), dk = gradient(inputs.k), dv = gradient(inputs.v);
  const DeviceArray<float> daxial_bias(device, static_cast<int64_t>(inputs.axial_bias.size()));
  const DeviceArray<float> out(device, p.n * p.queries * p.channels());
  const DeviceArray<float> lse(device, p.n * p.queries * p.heads);
  AttentionInputs in{q, fused ? q + p.channels() : k, fused ? q + 2 * p.channels() : v};
  AttentionGradients gradients{dq->get(), fused ? dq->get() + p.channels() : dk->get(),
                               fused ? dq->get() + 2 * p.channels() : dv->get()};
  if (c.key_mask) {
    in.key_mask = key_mask.get();
  }
  if (c.bias) {
    in.bias = bias.get();
  }
  if (c.axial) {
    in.axial_bias = axial_bias.get();
    gradients.daxial_bias = daxial_bias.get();
  }
  const DeviceWorkspace forward_workspace(device, attention_forward_workspace_bytes(context, p));
  attention_forward(context, p, in, out.get(), lse.get(), forward_workspace);
  const DeviceWorkspace workspace(device, attention_backward_workspace_bytes(context, p));
  attention_backward(context, p, in, out.get(), lse.get(), dout, gradients, workspace);
  return {out.host(), lse.host(), dq->host(), dk->host(), dv->host(), daxial_bias.host()};
}

std::vector<float> joined(const Outputs<float>& r) {
  std::vector<float> all;
  for (const std::vector<float>* part : {&r.out, &r.lse, &r.dq, &r.dk, &r.dv, &r.daxial_bias}) {
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

const AttentionCase& find_case(const std::string& name) {
  for (const AttentionCase& c : kAttentionCases) {
    if (c.name == name) {
      return c;
    }
  }
  throw UsageError(concat("no case ", name));
}

// The numbers of each head reordered: element c comes from element order[c], or goes there.
std::vector<float> reorder(const std::vector<float>& values, const std::vector<size_t>& order, bool back) {
  std::vector<float> result(values.size());
  for (size_t first = 0; first < values.size(); first += order.size()) {
    for (size_t c = 0; c < order.size(); ++c) {
      const size_t to = first + (back ? order[c] : c);
      result[to] = values[first + (back ? c : order[c])];
    }
  }
  return result;
}

// What a naive float32 evaluation reaches (naive_error.hpp); here the head's dimensions are also summed in
// other orders. What is -infinity stays it.
Outputs<float> run_naive(const AttentionCase& c, const Inputs<float>& inputs, const Outputs<double>& exact,
                         int evaluations = 16) {
  Outputs<float> worst = run_reference<float>(c, inputs);
  RandomStream random(9, 0, 0);
  std::vector<size_t> order(static_cast<size_t>(c.params.head_dim));
  std::iota(order.begin(), order.end(), size_t{0});
  for (int k = 1; k < evaluations; ++k) {
    for (size_t i = order.size() - 1; i > 0; --i) {
      std::swap(order[i], order[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    }
    Inputs<float> other = inputs;
    for (const auto part : {&Inputs<float>::q, &Inputs<float>::k, &Inputs<float>::v, &Inputs<float>::dout}) {
      other.*part = moved_by_one_ulp(reorder(inputs.*part, order, false), random);
    }
    other.axial_bias = moved_by_one_ulp(inputs.axial_bias, random);
    const Outputs<float> r = run_reference<float>(c, other);
    for (const auto& [part, exact_part] :
         {std::pair{&Outputs<float>::out, &exact.out}, std::pair{&Outputs<float>::dq, &exact.dq},
          std::pair{&Outputs<float>::dk, &exact.dk}, std::pair{&Outputs<float>::dv, &exact.dv}}) {
      keep_worse(worst.*part, reorder(r.*part, order, true), *exact_part);
    }
    keep_worse(worst.lse, r.lse, exact.lse);
    keep_worse(worst.daxial_bias, r.daxial_bias, exact.daxial_bias);
  }
  return worst;
}

void expect_all_close(const std::string& where, const Outputs<float>& actual, const Outputs<double>& exact,
                      const Outputs<float>& naive) {
  expect_close(where + ": out", actual.out, exact.out, naive.out);
  expect_close(where + ": lse", actual.lse, exact.lse, naive.lse);
  expect_close(where + ": dq", actual.dq, exact.dq, naive.dq);
  expect_close(where + ": dk", actual.dk, exact.dk, naive.dk);
  expect_close(where + ": dv", actual.dv, exact.dv, naive.dv);
  expect_close(where + ": daxial_bias", actual.daxial_bias, exact.daxial_bias, naive.daxial_bias);
}

TEST(Attention, MatchesReference) {
  uint64_t seed = 100;
  for (const AttentionCase& c : kAttentionCases) {
    const Inputs<float> inputs = make_inputs(c, seed += 10);
    const Outputs<double> exact = run_reference<double>(c, inputs);
    const Outputs<float> naive = run_naive(c, inputs, exact);
    for (const Device device : test_devices()) {
      expect_all_close(c.name + " on " + to_string(device), run_device(device, c, inputs), exact, naive);
    }
  }
}

// Four numbers are read at once where they may be; the bits are those of four reads.
TEST(Attention, GivesTheSameBitsWhereVectorsAreNotAligned) {
  for (const char* name : {"head dim 8", "head dim 32, fused", "head dim 64, 127 keys", "head dim 128",
                           "head dim 256, memory of 33", "axial 1x6x7, fused"}) {
    const AttentionCase& c = find_case(name);
    const Inputs<float> inputs = make_inputs(c, 31);
    for (const Device device : test_devices()) {
      const std::vector<float> aligned = joined(run_device(device, c, inputs));
      for (const int64_t shift : {1, 2, 3}) {
        expect_equal(concat(name, " on ", to_string(device), ", shifted by ", shift),
                     joined(run_device(device, c, inputs, shift)), aligned);
      }
    }
  }
}

TEST(Attention, MatchesReferenceOnRandomShapes) {
  for_each_random_case([](RandomStream& random) {
    AttentionCase c;
    AttentionParams& p = c.params;
    p.n = 1 + random.below(3);
    p.heads = static_cast<int>(1 + random.below(3));
    p.head_dim = static_cast<int>(1 + random.below(random.below(4) == 0 ? 256 : 40));
    p.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
    p.key_grid = {static_cast<int>(1 + random.below(2)), static_cast<int>(1 + random.below(5)),
                  static_cast<int>(1 + random.below(5))};
    p.keys = int64_t{p.key_grid[0]} * p.key_grid[1] * p.key_grid[2];
    c.layout = static_cast<AttentionLayout>(random.below(3));
    p.queries = c.layout == AttentionLayout::fused ? p.keys : 1 + random.below(20);
    c.key_mask = random.below(2) == 0;
    c.bias = random.below(3) == 0;
    c.axial = random.below(2) == 0;
    p.bias_samples = random.below(2) == 0 ? p.n : 1;
    p.bias_heads = random.below(2) == 0 ? p.heads : 1;
    const Inputs<float> inputs = make_inputs(c, static_cast<uint64_t>(random.below(1 << 30)));
    const Outputs<double> exact = run_reference<double>(c, inputs);
    const Outputs<float> naive = run_naive(c, inputs, exact, 8);
    for (const Device device : test_devices()) {
      expect_all_close(concat("on ", to_string(device)), run_device(device, c, inputs), exact, naive);
    }
  });
}

TEST(Attention, AnalyticGradientsMatchNumericOnes) {
  const AttentionCase c{"",
                        {.n = 2,
                         .queries = 3,
                         .keys = 12,
                         .heads = 2,
                         .head_dim = 4,
                         .scale = 0.5f,
                         .key_grid = {2, 2, 3},
                         .bias_heads = 2},
                        AttentionLayout::packed,
                        true,
                        true,
                        true};
  const Inputs<float> inputs = make_inputs(c, 7);
  const Outputs<double> analytic = run_reference<double>(c, inputs);
  const auto loss_of = [&](std::vector<double> Inputs<double>::*part) {
    return [&, part](const std::vector<double>& x) {
      Inputs<double> moved = convert<double>(inputs);
      moved.*part = x;
      std::vector<double> out(inputs.dout.size());
      reference::attention_forward<double>(view(c, moved), out.data(), nullptr);
      return std::inner_product(out.begin(), out.end(), moved.dout.begin(), 0.0);
    };
  };
  expect_gradient("q", widen(inputs.q), analytic.dq, loss_of(&Inputs<double>::q));
  expect_gradient("k", widen(inputs.k), analytic.dk, loss_of(&Inputs<double>::k));
  expect_gradient("v", widen(inputs.v), analytic.dv, loss_of(&Inputs<double>::v));
  expect_gradient("axial_bias", widen(inputs.axial_bias), analytic.daxial_bias,
                  loss_of(&Inputs<double>::axial_bias));
}

TEST(Attention, GivesTheSameBitsEachTime) {
  for (const char* name : {"head dim 15, fused", "head dim 96", "head dim 256, memory of 33", "bias per head",
                           "axial, bias and key mask", "axial of 132: gradient not in shared memory"}) {
    const AttentionCase& c = find_case(name);
    const Inputs<float> inputs = make_inputs(c, 21);
    for (const Device device : test_devices()) {
      expect_same_bits(std::string(name) + " on " + to_string(device), device,
                       [&] { return joined(run_device(device, c, inputs)); });
    }
  }
}

TEST(Attention, DoesNotDependOnTheNumberOfThreads) {
  const AttentionCase c{"",
                        {.n = 2,
                         .queries = 150,
                         .keys = 135,
                         .heads = 3,
                         .head_dim = 64,
                         .scale = 0.125f,
                         .key_grid = {3, 5, 9}},
                        AttentionLayout::packed,
                        true,
                        false,
                        true};
  const Inputs<float> inputs = make_inputs(c, 22);
  const Device cpu{DeviceType::cpu, 0};
  const int threads = thread_count();
  set_thread_count(1);
  const std::vector<float> one = joined(run_device(cpu, c, inputs));
  set_thread_count(3);
  const std::vector<float> three = joined(run_device(cpu, c, inputs));
  set_thread_count(threads);
  expect_equal("one thread and three", three, one);
}

TEST(Attention, HiddenKeysAreNeverRead) {
  for (const char* name : {"key mask", "bias per sample, key mask", "axial, bias and key mask"}) {
    const AttentionCase& c = find_case(name);
    const AttentionParams& p = c.params;
    const Inputs<float> inputs = make_inputs(c, 23);
    Inputs<float> poisoned = inputs;
    for (int64_t token = 0; token < p.n * p.keys; ++token) {
      if (inputs.key_mask[static_cast<size_t>(token)] == 0) {
        std::fill_n(poisoned.k.begin() + token * p.channels(), p.channels(), kNaN);
        std::fill_n(poisoned.v.begin() + token * p.channels(), p.channels(), kNaN);
      }
    }
    for (const Device device : test_devices()) {
      expect_equal(concat(name, ": NaN in hidden keys on ", to_string(device)),
                   joined(run_device(device, c, poisoned)), joined(run_device(device, c, inputs)));
    }
  }
}

// Both ways of hiding everything: all keys of the last sample by the mask, all keys of the first query by the
// bias.
TEST(Attention, NothingToAttendGivesZero) {
  const AttentionCase& c = find_case("bias per sample, key mask");
  const AttentionParams& p = c.params;
  const Inputs<float> inputs = make_inputs(c, 24);
  for (const Device device : test_devices()) {
    const Outputs<float> r = run_device(device, c, inputs);
    const int64_t per_sample = p.queries * p.channels();
    for (int64_t i = 0; i < p.n * per_sample; ++i) {
      const bool nothing = i < p.channels() || i >= (p.n - 1) * per_sample;
      const auto at = static_cast<size_t>(i);
      ASSERT_EQ(r.out[at] == 0.0f, nothing) << "out " << i << " on " << to_string(device);
      ASSERT_EQ(r.dq[at] == 0.0f, nothing) << "dq " << i << " on " << to_string(device);
      ASSERT_EQ(r.lse[at / static_cast<size_t>(p.head_dim)] == 0.0f, nothing)
          << "lse on " << to_string(device);
    }
  }
}

TEST(Attention, EqualScoresAverageTheValues) {
  const AttentionCase c{"", {.queries = 3, .keys = 32, .head_dim = 4}};
  Inputs<float> inputs = make_inputs(c, 25);
  std::fill(inputs.q.begin(), inputs.q.end(), 0.0f);
  for (size_t i = 0; i < inputs.v.size(); ++i) {
    inputs.v[i] = i % 4 == 0 ? static_cast<float>(i / 4) : 0.0f;
  }
  for (const Device device : test_devices()) {
    const std::vector<float> out = run_device(device, c, inputs).out;
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_EQ(out[i], i % 4 == 0 ? 15.5f : 0.0f) << "element " << i << " on " << to_string(device);
    }
  }
}

// Scores in the thousands: exp overflows unless the row's maximum is taken off first, and the softmax is
// nearly one-hot.
TEST(Attention, LargeScoresDoNotOverflow) {
  const AttentionCase& c = find_case("513 keys");
  const Inputs<float> inputs = make_inputs(c, 26, 60.0f);
  const Outputs<double> exact = run_reference<double>(c, inputs);
  const Outputs<float> naive = run_reference<float>(c, inputs);
  ASSERT_GT(*std::max_element(exact.lse.begin(), exact.lse.end()), 1000.0);
  for (const Device device : test_devices()) {
    const Outputs<float> actual = run_device(device, c, inputs);
    expect_close("lse on " + to_string(device), actual.lse, exact.lse, naive.lse);
    for (const float value : joined(actual)) {
      ASSERT_TRUE(std::isfinite(value)) << "on " << to_string(device);
    }
  }
}

TEST(Attention, RejectsWrongArguments) {
  Context context(Device{DeviceType::cpu, 0});
  std::vector<float> memory(4096);
  float* x = memory.data();
  const auto forward = [&](const AttentionParams& p, AttentionInputs inputs) {
    attention_forward(context, p, inputs, x, nullptr, {});
  };
  EXPECT_NO_THROW(forward({}, {x, x, x}));
  EXPECT_THROW(forward({.head_dim = 0}, {x, x, x}), ShapeError);
  EXPECT_THROW(forward({.head_dim = 257}, {x, x, x}), ShapeError);
  EXPECT_THROW(forward({.queries = 0}, {x, x, x}), ShapeError);
  EXPECT_THROW(forward({.keys = 0}, {x, x, x}), ShapeError);
  EXPECT_THROW(forward({.keys = int64_t{1} << 40}, {x, x, x}), ShapeError);
  EXPECT_THROW(forward({.heads = 2, .v_stride = 31}, {x, x, x}), ShapeError);
  EXPECT_THROW(forward({}, {x, nullptr, x}), ShapeError);
  EXPECT_THROW(forward({}, {x, x, ConstData{x, DType::bf16}}), ShapeError);
  EXPECT_THROW(forward({.n = 3, .bias_samples = 2}, {x, x, x, nullptr, x}), ShapeError);
  EXPECT_THROW(forward({.heads = 3, .bias_heads = 2}, {x, x, x, nullptr, x}), ShapeError);
  EXPECT_THROW(forward({.keys = 6, .key_grid = {1, 2, 2}}, {x, x, x, nullptr, nullptr, x}), ShapeError);
  EXPECT_THROW(forward({.keys = 6, .key_grid = {0, 2, 3}}, {x, x, x, nullptr, nullptr, x}), ShapeError);
  const AttentionParams p{.key_grid = {1, 1, 1}};
  const size_t bytes = attention_backward_workspace_bytes(context, p);
  const Workspace workspace{x, bytes};
  EXPECT_NO_THROW(attention_backward(context, p, {x, x, x}, x, x, x, {x, x, x}, workspace));
  EXPECT_THROW(attention_backward(context, p, {x, x, x}, x, x, x, {x, x, x}, Workspace{}), ShapeError);
  EXPECT_THROW(attention_backward(context, p, {x, x, x}, x, nullptr, x, {x, x, x}, workspace), ShapeError);
  EXPECT_THROW(attention_backward(context, p, {x, x, x}, x, x, x, {x, nullptr, x}, workspace), ShapeError);
  EXPECT_THROW(attention_backward(context, p, {x, x, x, nullptr, nullptr, x}, x, x, x, {x, x, x}, workspace),
               ShapeError);
}

// The tokens of a strided array one after another.
std::vector<float> packed(const std::vector<float>& values, int64_t offset, int64_t stride,
                          int64_t channels) {
  std::vector<float> result;
  for (auto token = values.begin() + offset; values.end() - token >= channels; token += stride) {
    result.insert(result.end(), token, token + channels);
    if (values.end() - token < stride) {
      break;
    }
  }
  return result;
}

Data after(const Data& data, int64_t count) {
  return {static_cast<char*>(data.pointer) + count * static_cast<int64_t>(size_of(data.dtype)), data.dtype};
}

// One case at least for each layout of a head over threads and of the tensors, and for several tiles.
TEST(Attention, Storage) {
  for (const char* name :
       {"head dim 7", "head dim 15, fused", "head dim 17, roomy", "head dim 64, 127 keys", "head dim 96",
        "head dim 128", "head dim 129", "513 keys", "key mask", "bias per sample and head, roomy",
        "axial 1x6x7, fused", "axial, bias and key mask", "axial of 132: gradient not in shared memory"}) {
    const AttentionCase& c = find_case(name);
    const AttentionParams p = laid_out(c.params, c.layout);
    const Inputs<float> inputs = make_inputs(c, 71);
    // The backward pass is given an out of its own: what it computes from a rounded one is not rounded
    // float32.
    const Outputs<float> given = run_device(Device{DeviceType::cpu, 0}, c, inputs);
    expect_rounded_float32(name, [&](Call& call) {
      const Data q = call.in(inputs.q);
      AttentionInputs in;
      in.q = q;
      AttentionGradients gradients;
      gradients.dq = call.in_out(std::vector<float>(inputs.q.size(), kUntouched));
      if (c.layout == AttentionLayout::fused) {
        in.k = after(q, p.channels());
        in.v = after(q, 2 * p.channels());
        gradients.dk = after(gradients.dq, p.channels());
        gradients.dv = after(gradients.dq, 2 * p.channels());
      } else {
        in.k = call.in(inputs.k);
        in.v = call.in(inputs.v);
        gradients.dk = call.in_out(std::vector<float>(inputs.k.size(), kUntouched));
        gradients.dv = call.in_out(std::vector<float>(inputs.v.size(), kUntouched));
      }
      const DeviceArray<uint8_t> key_mask(call.context().device(), inputs.key_mask);
      if (c.key_mask) {
        in.key_mask = key_mask.get();
      }
      if (c.bias) {
        in.bias = call.in_float(inputs.bias);
      }
      if (c.axial) {
        in.axial_bias = call.in_float(inputs.axial_bias);
        gradients.daxial_bias = call.out_float(static_cast<int64_t>(inputs.axial_bias.size()));
      }
      attention_forward(call.context(), p, in, call.out(p.n * p.queries * p.channels()),
                        call.out_float(p.n * p.queries * p.heads).as<float>("lse"),
                        call.workspace(attention_forward_workspace_bytes(call.context(), p)));
      attention_backward(call.context(), p, in, call.in(given.out), call.in_float(given.lse).as<float>("lse"),
                         call.in(inputs.dout), gradients,
                         call.workspace(attention_backward_workspace_bytes(call.context(), p)));
    });
  }
}

TEST(Attention, StorageTypesThatDifferAreOneLine) {
  Context context(Device{DeviceType::cpu, 0});
  const AttentionParams p{.head_dim = 4};
  std::vector<float> x(4);
  std::vector<uint16_t> narrow(4);
  const Data wide = x.data(), half{narrow.data(), DType::f16};
  EXPECT_EQ(shape_error([&] {
              attention_forward(context, p, AttentionInputs{half, half, wide}, half, nullptr, {});
            }),
            "attention_forward: tensors are stored as f16 and f32, expected one type");
  const Workspace workspace{x.data(), x.size() * sizeof(float)};
  EXPECT_EQ(shape_error([&] {
              attention_backward(context, p, AttentionInputs{half, half, half}, half, x.data(), half,
                                 AttentionGradients{half, half, wide}, workspace);
            }),
            "attention_backward: tensors are stored as f16 and f32, expected one type");
}

// Writes every case's inputs and the CPU's results where tests/oracle/attention.py asks for them.
TEST(Attention, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/attention.txt");
  int number = 0;
  for (const AttentionCase& c : kAttentionCases) {
    const AttentionParams p = laid_out(c.params, c.layout);
    const Inputs<float> in = make_inputs(c, 4000 + static_cast<uint64_t>(number));
    const Outputs<float> r = run_device(Device{DeviceType::cpu, 0}, c, in);
    const bool fused = c.layout == AttentionLayout::fused;
    const auto part = [&](const std::vector<float>& own, const std::vector<float>& qkv, int which,
                          int64_t stride) {
      return packed(fused ? qkv : own, fused ? which * p.channels() : 0, stride_or_packed(p, stride),
                    p.channels());
    };
    const std::vector<float> q = part(in.q, in.q, 0, p.q_stride), k = part(in.k, in.q, 1, p.k_stride),
                             v = part(in.v, in.q, 2, p.v_stride), dq = part(r.dq, r.dq, 0, p.q_stride),
                             dk = part(r.dk, r.dq, 1, p.k_stride), dv = part(r.dv, r.dq, 2, p.v_stride),
                             key_mask(in.key_mask.begin(), in.key_mask.end());
    index << p.n << ' ' << p.queries << ' ' << p.keys << ' ' << p.heads << ' ' << p.head_dim << ' '
          << c.key_mask << ' ' << (c.bias ? p.bias_samples : 0) << ' ' << p.bias_heads;
    for (const int extent : p.key_grid) {
      index << ' ' << (c.axial ? extent : 0);
    }
    index << ' ' << p.scale << ' ' << c.name << '\n';
    write_arrays(
        concat(folder, "/attention", number++, ".f32"),
        {&q, &k, &v, &key_mask, &in.bias, &in.axial_bias, &in.dout, &r.out, &dq, &dk, &dv, &r.daxial_bias});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
