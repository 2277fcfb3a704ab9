// The optimisers, the moving average and the gradient norm on every device against a double-precision
// reference over ten steps.
#include "kernels/optimizer/optimizer.hpp"

#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/optimizer/optimizer_cases.hpp"
#include "kernels/optimizer/optimizer_ref.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::testing {
namespace {

// The tensors of a case as pieces of flat device arrays, with their tables in device memory. What a rule does
// not use is null in the tables.
class Parameters {
 public:
  Parameters(Device device, const std::vector<int64_t>& counts,
             const OptimizerRule& rule = kOptimizerRules[0])
      : device_(device),
        total_(std::accumulate(counts.begin(), counts.end(), int64_t{0})),
        parameter(device, random_normal(total_, 1)),
        gradient(device, random_normal(total_, 2)),
        first(device, std::vector<float>(static_cast<size_t>(total_), 0.0f)),
        second(device, std::vector<float>(static_cast<size_t>(total_), 0.0f)),
        largest(device, std::vector<float>(static_cast<size_t>(total_), 0.0f)),
        average(device, random_normal(total_, 3)),
        host_tensors_(make_tensors(counts, rule)),
        host_chunks_(optimizer_chunks(host_tensors_)),
        tensors_(device, host_tensors_),
        chunks_(device, host_chunks_) {}

  OptimizerTables tables() const { return {tensors_.get(), tensors_.size(), chunks_.get(), chunks_.size()}; }
  const std::vector<OptimizerTensor>& host_tensors() const { return host_tensors_; }
  const std::vector<OptimizerChunk>& host_chunks() const { return host_chunks_; }
  void set_gradient(const std::vector<float>& values) {
    copy_to_device(device_, gradient.get(), values.data(), values.size() * sizeof(float));
  }
  int64_t total() const { return total_; }
  // Everything that a step may change.
  std::vector<float> state() const {
    std::vector<float> all;
    for (const DeviceArray<float>* array : {&parameter, &first, &second, &largest, &average}) {
      const std::vector<float> values = array->host();
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }

 private:
  Device device_;
  int64_t total_;

 public:
  DeviceArray<float> parameter, gradient, first, second, largest, average;

 private:
  std::vector<OptimizerTensor> make_tensors(const std::vector<int64_t>& counts,
                                            const OptimizerRule& rule) const {
    std::vector<OptimizerTensor> tensors;
    int64_t begin = 0;
    for (size_t t = 0; t < counts.size(); ++t) {
      tensors.push_back({.parameter = parameter.get() + begin,
                         .gradient = gradient.get() + begin,
                         .first_moment = rule.adam || rule.momentum > 0 ? first.get() + begin : nullptr,
                         .second_moment = rule.adam ? second.get() + begin : nullptr,
                         .count = counts[t],
                         .weight_decay = t % 2 == 0 ? 0.1f : 0.0f,
                         .largest_second_moment = rule.amsgrad ? largest.get() + begin : nullptr,
                         .average = average.get() + begin});
      begin += counts[t];
    }
    return tensors;
  }
  std::vector<OptimizerTensor> host_tensors_;
  std::vector<OptimizerChunk> host_chunks_;
  DeviceArray<OptimizerTensor> tensors_;
  DeviceArray<OptimizerChunk> chunks_;
};

AdamWParams adamw_params(const OptimizerRule& rule, int64_t step, float max_norm) {
  return {.learning_rate = 0.01f,
          .beta1 = 0.9f,
          .beta2 = 0.99f,
          .step = step,
          .max_norm = max_norm,
          .decay = rule.decay};
}

SgdParams sgd_params(const OptimizerRule& rule, float max_norm) {
  return {.learning_rate = 0.01f, .momentum = rule.momentum, .nesterov = rule.nesterov, .max_norm = max_norm};
}

void step_of(Context& context, const OptimizerRule& rule, int64_t step, float max_norm,
             const OptimizerTables& tables, const float* norm) {
  if (rule.adam) {
    adamw_step(context, adamw_params(rule, step, max_norm), tables, norm);
  } else {
    sgd_step(context, sgd_params(rule, max_norm), tables, norm);
  }
}

// The same step by the reference, on flat arrays of all tensors.
template <class T>
struct ReferenceState {
  std::vector<T> parameter, first, second, largest, average;
  explicit ReferenceState(const Parameters& start)
      : first(static_cast<size_t>(start.total()), T(0)), second(first), largest(first) {
    const std::vector<float> p = start.parameter.host(), a = start.average.host();
    parameter.assign(p.begin(), p.end());
    average.assign(a.begin(), a.end());
  }
  void step(const OptimizerRule& rule, int64_t step, float max_norm, T norm,
            const std::vector<OptimizerTensor>& tensors, const std::vector<T>& gradient) {
    int64_t begin = 0;
    for (const OptimizerTensor& tensor : tensors) {
      const T decay = T(tensor.weight_decay);
      T* p = parameter.data() + begin;
      const T* g = gradient.data() + begin;
      if (rule.adam) {
        reference::adamw_step<T>(adamw_params(rule, step, max_norm), norm, decay, tensor.count, p, g,
                                 first.data() + begin, second.data() + begin,
                                 rule.amsgrad ? largest.data() + begin : nullptr);
      } else {
        reference::sgd_step<T>(sgd_params(rule, max_norm), norm, decay, tensor.count, p, g,
                               first.data() + begin);
      }
      begin += tensor.count;
    }
  }
};

float norm_of(Device device, const Parameters& parameters, const DeviceArray<float>& norm) {
  Context context(device);
  const DeviceWorkspace workspace(device, gradient_norm_workspace_bytes(context, parameters.tables()));
  gradient_norm(context, parameters.tables(), norm, workspace);
  return norm.host()[0];
}

TEST(Optimizer, ChunksCoverEveryElementOnce) {
  for (const OptimizerCase& c : kOptimizerCases) {
    const Parameters parameters({DeviceType::cpu, 0}, c.counts);
    std::vector<int64_t> next(c.counts.size(), 0);
    int32_t last_tensor = 0;
    for (const OptimizerChunk& chunk : parameters.host_chunks()) {
      EXPECT_GE(chunk.tensor, last_tensor);
      EXPECT_GT(chunk.count, 0);
      EXPECT_LE(chunk.count, kOptimizerChunk);
      EXPECT_EQ(chunk.begin, next[static_cast<size_t>(chunk.tensor)]);
      next[static_cast<size_t>(chunk.tensor)] += chunk.count;
      last_tensor = chunk.tensor;
    }
    EXPECT_EQ(next, c.counts) << c.name;
  }
}

constexpr float kEmaDecay = 0.9f;

// `steps` steps on a device; with `compare`, norm and state are held against the reference. Returns the
// state.
std::vector<float> run_steps(Device device, const OptimizerCase& c, const OptimizerRule& rule, int64_t steps,
                             bool compare) {
  const std::string what = to_string(device) + " " + rule.name + " " + c.name;
  Context context(device);
  Parameters parameters(device, c.counts, rule);
  const DeviceArray<float> norm(device, 1);
  ReferenceState<double> exact(parameters);
  ReferenceState<float> naive(parameters);
  for (int64_t step = 1; step <= steps; ++step) {
    const std::vector<float> gradient =
        random_normal(parameters.total(), 100 + static_cast<uint64_t>(step), step % 2 == 0 ? 3.0f : 0.01f);
    parameters.set_gradient(gradient);
    const float found_norm = norm_of(device, parameters, norm);
    step_of(context, rule, step, c.max_norm, parameters.tables(), c.max_norm > 0 ? norm.get() : nullptr);
    ema_step(context, kEmaDecay, parameters.tables(), norm);
    if (!compare) {
      continue;
    }
    const std::vector<double> wide = widen(gradient);
    const double exact_norm = reference::gradient_norm<double>(parameters.total(), wide.data());
    const float naive_norm = reference::gradient_norm<float>(parameters.total(), gradient.data());
    expect_close(what + " norm", {found_norm}, {exact_norm}, {naive_norm});
    exact.step(rule, step, c.max_norm, exact_norm, parameters.host_tensors(), wide);
    naive.step(rule, step, c.max_norm, naive_norm, parameters.host_tensors(), gradient);
    reference::ema_step<double>(kEmaDecay, parameters.total(), exact.parameter.data(), exact.average.data());
    reference::ema_step<float>(kEmaDecay, parameters.total(), naive.parameter.data(), naive.average.data());
  }
  if (compare) {
    expect_close(what + " parameter", parameters.parameter.host(), exact.parameter, naive.parameter);
    expect_close(what + " first moment", parameters.first.host(), exact.first, naive.first);
    expect_close(what + " second moment", parameters.second.host(), exact.second, naive.second);
    expect_close(what + " largest", parameters.largest.host(), exact.largest, naive.largest);
    expect_close(what + " average", parameters.average.host(), exact.average, naive.average);
  }
  return parameters.state();
}

TEST(Optimizer, TenSteps) {
  for (const Device device : test_devices()) {
    for (const OptimizerRule& rule : kOptimizerRules) {
      for (const OptimizerCase& c : kOptimizerCases) {
        run_steps(device, c, rule, 10, true);
        expect_same_bits(rule.name + " " + c.name, device,
                         [&] { return run_steps(device, c, rule, 10, false); });
      }
    }
  }
}

TEST(Optimizer, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const OptimizerCase c = draw_optimizer_case(random);
    const OptimizerRule& rule =
        kOptimizerRules[static_cast<size_t>(random.below(static_cast<int64_t>(kOptimizerRules.size())))];
    for (const Device device : test_devices()) {
      run_steps(device, c, rule, 3, true);
    }
  });
}

// AMSGrad's step is the smaller one after a large gradient: the largest second moment stays.
TEST(Optimizer, AmsgradRemembersTheLargestGradient) {
  for (const Device device : test_devices()) {
    Context context(device);
    Parameters parameters(device, {3}, kOptimizerRules[1]);
    parameters.set_gradient({10, 10, 10});
    adamw_step(context, {.beta2 = 0.5f, .step = 1}, parameters.tables(), nullptr);
    const std::vector<float> largest = parameters.largest.host();
    EXPECT_EQ(largest, parameters.second.host());
    parameters.set_gradient({0, 0, 0});
    adamw_step(context, {.beta2 = 0.5f, .step = 2}, parameters.tables(), nullptr);
    EXPECT_EQ(parameters.largest.host(), largest);
    EXPECT_LT(parameters.second.host()[0], largest[0]);
  }
}

TEST(Optimizer, AverageReachesBothEnds) {
  for (const Device device : test_devices()) {
    Context context(device);
    Parameters parameters(device, {300, 5000});
    const std::vector<float> before = parameters.average.host();
    ema_step(context, 1.0f, parameters.tables(), nullptr);
    expect_equal("decay 1", parameters.average.host(), before);
    ema_step(context, 0.0f, parameters.tables(), nullptr);
    expect_close("decay 0", parameters.average.host(), widen(parameters.parameter.host()),
                 parameters.parameter.host());
  }
}

TEST(Optimizer, NormThatIsNotFiniteLeavesEverythingUntouched) {
  for (const Device device : test_devices()) {
    for (const OptimizerRule& rule : kOptimizerRules) {
      for (const float bad :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
        const std::string what = to_string(device) + " " + rule.name;
        Context context(device);
        Parameters parameters(device, {300, 5000}, rule);
        std::vector<float> gradient = random_normal(parameters.total(), 5);
        const DeviceArray<float> norm(device, 1);
        const auto step = [&] {
          step_of(context, rule, 1, 1.0f, parameters.tables(), norm);
          ema_step(context, kEmaDecay, parameters.tables(), norm);
        };
        norm_of(device, parameters, norm);
        step();  // moments that are not zero
        const std::vector<float> before = parameters.state();
        const float first_parameter = parameters.parameter.host()[0];
        gradient[4321] = bad;
        parameters.set_gradient(gradient);
        EXPECT_FALSE(std::isfinite(norm_of(device, parameters, norm))) << what;
        step();
        expect_equal(what, parameters.state(), before);
        // A finite norm moves them again.
        gradient[4321] = 1.0f;
        parameters.set_gradient(gradient);
        norm_of(device, parameters, norm);
        step();
        EXPECT_NE(parameters.parameter.host()[0], first_parameter) << what;
      }
    }
  }
}

TEST(Optimizer, NothingToDo) {
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> norm(device, 1);
    gradient_norm(context, {}, norm, {});
    EXPECT_EQ(norm.host()[0], 0.0f);
    EXPECT_NO_THROW(adamw_step(context, {}, {}, nullptr));
    EXPECT_NO_THROW(sgd_step(context, {}, {}, nullptr));
    EXPECT_NO_THROW(ema_step(context, 0.5f, {}, nullptr));
  }
}

TEST(Optimizer, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  EXPECT_THROW(adamw_step(context, {.step = 0}, {}, nullptr), ShapeError);
  EXPECT_THROW(adamw_step(context, {.max_norm = 1.0f}, {}, nullptr), ShapeError);
  EXPECT_THROW(gradient_norm(context, {.chunk_count = 3}, nullptr, {}), ShapeError);
  EXPECT_THROW(sgd_step(context, {.momentum = 1.0f}, {}, nullptr), ShapeError);
  EXPECT_THROW(sgd_step(context, {.momentum = NAN}, {}, nullptr), ShapeError);
  EXPECT_THROW(sgd_step(context, {.nesterov = true}, {}, nullptr), ShapeError);
  EXPECT_THROW(sgd_step(context, {.max_norm = 1.0f}, {}, nullptr), ShapeError);
  EXPECT_THROW(ema_step(context, 1.5f, {}, nullptr), ShapeError);
  EXPECT_THROW(ema_step(context, NAN, {}, nullptr), ShapeError);
  EXPECT_THROW(ema_step(context, 0.5f, {.chunk_count = 3}, nullptr), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
