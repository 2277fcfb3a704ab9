// AdamW and the gradient norm on every device against a double-precision reference over ten steps.
#include "kernels/optimizer/optimizer.hpp"

#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/optimizer/optimizer_cases.hpp"
#include "kernels/optimizer/optimizer_ref.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::testing {
namespace {

// The tensors of a case as pieces of flat device arrays, with their tables in device memory.
class Parameters {
 public:
  Parameters(Device device, const std::vector<int64_t>& counts)
      : device_(device),
        total_(std::accumulate(counts.begin(), counts.end(), int64_t{0})),
        parameter(device, random_normal(total_, 1)),
        gradient(device, random_normal(total_, 2)),
        first(device, std::vector<float>(static_cast<size_t>(total_), 0.0f)),
        second(device, std::vector<float>(static_cast<size_t>(total_), 0.0f)),
        host_tensors_(make_tensors(counts)),
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

 private:
  Device device_;
  int64_t total_;

 public:
  DeviceArray<float> parameter, gradient, first, second;

 private:
  std::vector<OptimizerTensor> make_tensors(const std::vector<int64_t>& counts) const {
    std::vector<OptimizerTensor> tensors;
    int64_t begin = 0;
    for (size_t t = 0; t < counts.size(); ++t) {
      tensors.push_back({parameter.get() + begin, gradient.get() + begin, first.get() + begin,
                         second.get() + begin, counts[t], t % 2 == 0 ? 0.1f : 0.0f});
      begin += counts[t];
    }
    return tensors;
  }
  std::vector<OptimizerTensor> host_tensors_;
  std::vector<OptimizerChunk> host_chunks_;
  DeviceArray<OptimizerTensor> tensors_;
  DeviceArray<OptimizerChunk> chunks_;
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

TEST(Optimizer, TenSteps) {
  for (const Device device : test_devices()) {
    for (const OptimizerCase& c : kOptimizerCases) {
      const std::string what = to_string(device) + " " + c.name;
      const auto run = [&](bool compare) {
        Context context(device);
        Parameters parameters(device, c.counts);
        const DeviceArray<float> norm(device, 1);
        std::vector<double> p = widen(parameters.parameter.host());
        std::vector<float> p_naive = parameters.parameter.host();
        std::vector<double> m(p.size(), 0.0), v(p.size(), 0.0);
        std::vector<float> m_naive(p.size(), 0.0f), v_naive(p.size(), 0.0f);
        for (int64_t step = 1; step <= 10; ++step) {
          const std::vector<float> gradient = random_normal(
              parameters.total(), 100 + static_cast<uint64_t>(step), step % 2 == 0 ? 3.0f : 0.01f);
          parameters.set_gradient(gradient);
          const AdamWParams adamw{
              .learning_rate = 0.01f, .beta1 = 0.9f, .beta2 = 0.99f, .step = step, .max_norm = c.max_norm};
          const float found_norm = norm_of(device, parameters, norm);
          adamw_step(context, adamw, parameters.tables(), c.max_norm > 0 ? norm.get() : nullptr);
          if (!compare) {
            continue;
          }
          const std::vector<double> wide = widen(gradient);
          const double exact_norm = reference::gradient_norm<double>(parameters.total(), wide.data());
          const float naive_norm = reference::gradient_norm<float>(parameters.total(), gradient.data());
          expect_close(what + " norm", {found_norm}, {exact_norm}, {naive_norm});
          int64_t begin = 0;
          for (const OptimizerTensor& tensor : parameters.host_tensors()) {
            reference::adamw_step<double>(adamw, exact_norm, tensor.weight_decay, tensor.count,
                                          p.data() + begin, wide.data() + begin, m.data() + begin,
                                          v.data() + begin);
            reference::adamw_step<float>(adamw, naive_norm, tensor.weight_decay, tensor.count,
                                         p_naive.data() + begin, gradient.data() + begin,
                                         m_naive.data() + begin, v_naive.data() + begin);
            begin += tensor.count;
          }
        }
        if (compare) {
          expect_close(what + " parameter", parameters.parameter.host(), p, p_naive);
          expect_close(what + " first moment", parameters.first.host(), m, m_naive);
          expect_close(what + " second moment", parameters.second.host(), v, v_naive);
        }
        return parameters.parameter.host();
      };
      run(true);
      expect_same_bits(what, device, [&] { return run(false); });
    }
  }
}

TEST(Optimizer, NormThatIsNotFiniteLeavesEverythingUntouched) {
  for (const Device device : test_devices()) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
      Context context(device);
      Parameters parameters(device, {300, 5000});
      std::vector<float> gradient = random_normal(parameters.total(), 5);
      const DeviceArray<float> norm(device, 1);
      const AdamWParams adamw{.step = 1, .max_norm = 1.0f};
      norm_of(device, parameters, norm);
      adamw_step(context, adamw, parameters.tables(), norm.get());  // moments that are not zero
      const std::vector<float> p = parameters.parameter.host(), m = parameters.first.host(),
                               v = parameters.second.host();
      gradient[4321] = bad;
      parameters.set_gradient(gradient);
      EXPECT_FALSE(std::isfinite(norm_of(device, parameters, norm))) << to_string(device);
      adamw_step(context, adamw, parameters.tables(), norm.get());
      expect_equal("parameter", parameters.parameter.host(), p);
      expect_equal("first moment", parameters.first.host(), m);
      expect_equal("second moment", parameters.second.host(), v);
      // A finite norm moves them again.
      gradient[4321] = 1.0f;
      parameters.set_gradient(gradient);
      norm_of(device, parameters, norm);
      adamw_step(context, adamw, parameters.tables(), norm.get());
      EXPECT_NE(parameters.parameter.host()[0], p[0]);
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
  }
}

TEST(Optimizer, WrongArgumentsThrow) {
  Context context({DeviceType::cpu, 0});
  EXPECT_THROW(adamw_step(context, {.step = 0}, {}, nullptr), ShapeError);
  EXPECT_THROW(adamw_step(context, {.max_norm = 1.0f}, {}, nullptr), ShapeError);
  EXPECT_THROW(gradient_norm(context, {.chunk_count = 3}, nullptr, {}), ShapeError);
}

}  // namespace
}  // namespace vesal::kernels::testing
