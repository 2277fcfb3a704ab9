// Tensors, the allocator, streams and events, the tape: on every device that is present.
#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <new>

#include "kernels/elementwise/elementwise.hpp"
#include "kernels/simt/memory.hpp"
#include "runtime/device_api.hpp"
#include "runtime/tape.hpp"

namespace {
int64_t allocations_left = -1;  // until the next one fails; negative: none fails
}

// The host's memory may end at any moment. Not inlined: GCC takes one of the pair alone for a mismatch.
[[gnu::noinline]] void* operator new(size_t bytes) {
  if (allocations_left == 0) {
    throw std::bad_alloc();
  }
  if (allocations_left > 0) {
    --allocations_left;
  }
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) {
    return memory;
  }
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace vesal {
namespace {

class Runtime : public ::testing::TestWithParam<Device> {
 protected:
  DeviceContext context{GetParam()};

  Tensor tensor(const std::vector<float>& values, Shape shape) {
    return Tensor::from_host(context, values, std::move(shape));
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, Runtime, ::testing::ValuesIn(device_api::present_devices()),
                         [](const auto& info) { return std::string(to_string(info.param)).substr(0, 4); });

TEST_P(Runtime, TensorsGoToTheDeviceAndBack) {
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  const Tensor t = tensor(values, {2, 3});
  EXPECT_EQ(t.to_host<float>(context), values);
  EXPECT_EQ(t.size(-1), 3);
  EXPECT_EQ(t.bytes(), 24u);
  EXPECT_EQ(to_string(t.shape()), "[2, 3]");
  EXPECT_THROW(t.size(2), ShapeError);
  EXPECT_THROW(t.to_host<int32_t>(context), ShapeError);
  EXPECT_THROW(tensor(values, {7}), ShapeError);
  EXPECT_EQ(Tensor::zeros(context, {3}).to_host<float>(context), std::vector<float>(3, 0.0f));
  for (const DType dtype : {DType::bf16, DType::i64, DType::u8, DType::boolean}) {
    EXPECT_EQ(Tensor::zeros(context, {5}, dtype).bytes(), 5 * size_of(dtype));
  }
}

TEST_P(Runtime, ReshapeAndSliceShareMemory) {
  const Tensor t = tensor({0, 1, 2, 3, 4, 5, 6, 7}, {4, 2});
  const Tensor rows = t.slice(1, 3);
  EXPECT_EQ(rows.to_host<float>(context), (std::vector<float>{2, 3, 4, 5}));
  EXPECT_EQ(rows.storage(), t.storage());
  const Tensor flat = rows.reshape({4});
  const float nine = 9;
  flat.slice(0, 1).copy_from_host(context, &nine, sizeof(nine));
  EXPECT_EQ(t.to_host<float>(context)[2], 9.0f);
  EXPECT_THROW(t.slice(3, 5), ShapeError);
  EXPECT_THROW(t.reshape({3, 3}), ShapeError);
  EXPECT_EQ(t.slice(2, 2).count(), 0);
}

TEST_P(Runtime, ZeroSizedTensorsWork) {
  const Tensor t = Tensor::empty(context, {0, 4});
  EXPECT_TRUE(t.defined());
  EXPECT_TRUE(t.to_host<float>(context).empty());
  EXPECT_THROW(Tensor::empty(context, {int64_t{1} << 40, int64_t{1} << 40}), ShapeError);
}

TEST_P(Runtime, AllocatorCountsCurrentPeakAndTags) {
  Allocator& allocator = context.allocator();
  const size_t before = allocator.statistics().current_bytes;
  {
    const AllocationTag tag("activations");
    const Tensor a = Tensor::empty(context, {1000});
    {
      const AllocationTag inner("workspace");
      const Tensor b = Tensor::empty(context, {500});
      EXPECT_EQ(allocator.statistics().current_bytes, before + 6000);
      EXPECT_EQ(allocator.statistics().current_by_tag["workspace"], 2000u);
    }
    EXPECT_EQ(allocator.statistics().current_by_tag["activations"], 4000u);
    EXPECT_EQ(allocator.statistics().current_by_tag["workspace"], 0u);
  }
  EXPECT_EQ(allocator.statistics().current_bytes, before);
  EXPECT_GE(allocator.statistics().peak_bytes, before + 6000);
  EXPECT_EQ(allocator.statistics().peak_by_tag["workspace"], 2000u);
  allocator.reset_peak();
  EXPECT_EQ(allocator.statistics().peak_bytes, before);
}

TEST_P(Runtime, SteadyStepsTakeNothingFromTheSystem) {
  Allocator& allocator = context.allocator();
  if (!allocator.caching()) {
    GTEST_SKIP() << "caching is off by design on simt and in sanitizer builds: every block is its own";
  }
  const auto step = [&] {
    std::vector<Tensor> kept;
    for (const int64_t count : {100, 5000, 3000000, 100}) {
      kept.push_back(Tensor::empty(context, {count}));
    }
  };
  step();
  const AllocationStatistics warm = allocator.statistics();
  for (int i = 0; i < 10; ++i) {
    step();
  }
  EXPECT_EQ(allocator.statistics().system_allocations, warm.system_allocations);
  EXPECT_GT(warm.reserved_bytes, 0u);
  allocator.release_cached();
  EXPECT_EQ(allocator.statistics().reserved_bytes, 0u);
}

TEST_P(Runtime, AllocatorStaysWholeWhereverTheHostsMemoryEnds) {
  const auto allocator = std::make_shared<Allocator>(GetParam());
  const AllocationTag tag("a name that does not fit into a string object itself");
  int failures = 0;
  for (bool done = false; !done;) {
    std::shared_ptr<void> first, second;
    try {
      allocations_left = failures;
      first = allocator->allocate(1000);
      second = allocator->allocate(1000);
      done = true;
    } catch (const std::bad_alloc&) {
      ++failures;
    }
    allocations_left = 0;  // giving back must not need any
    first.reset();
    second.reset();
    allocations_left = -1;
    const AllocationStatistics now = allocator->statistics();
    EXPECT_EQ(now.current_bytes, 0u);
    EXPECT_LE(now.reserved_bytes, allocator->caching() ? 2048u : 0u);
  }
  EXPECT_GT(failures, 2);
  allocator->release_cached();
  EXPECT_EQ(allocator->statistics().reserved_bytes, 0u);
}

TEST_P(Runtime, AnImpossibleRequestIsADeviceError) {
  if (GetParam().type == DeviceType::cuda) {
    EXPECT_THROW(Tensor::empty(context, {int64_t{1} << 44}), DeviceError);
  }
  EXPECT_THROW(Tensor::empty(context, {std::numeric_limits<int64_t>::max() / 2}), ShapeError);
}

TEST_P(Runtime, EventsMeasureTime) {
  Event start(GetParam());
  Event end(GetParam());
  start.record(context.stream());
  end.record(context.stream());
  end.make_wait(context.stream());
  EXPECT_GE(end.milliseconds_since(start), 0.0);
}

// y = 3 x as an op of its own.
Variable triple(DeviceContext& context, const Variable& x) {
  Tensor y = x.value().empty_like(context);
  kernels::scale_add(context.kernels(), y.count(), 3.0f, x.value(), 0.0f, y);
  if (context.tape() == nullptr || !x.requires_grad()) {
    return y;
  }
  return context.tape()->record("triple", y, {x.value()},
                                [slot = x.slot()](DeviceContext& ctx, const Tensor& dy, std::span<const Tensor>) {
                                  Tensor dx = dy.empty_like(ctx);
                                  kernels::scale_add(ctx.kernels(), dx.count(), 3.0f, dy, 0.0f, dx);
                                  slot->add(ctx, std::move(dx));
                                });
}

void seed_gradient(DeviceContext& context, Tape& tape, const Variable& y) {
  tape.record_loss("sum", {}, [shape = y.shape(), slot = y.slot()](DeviceContext& ctx, std::span<const Tensor>) {
    Tensor ones = Tensor::empty(ctx, shape);
    kernels::fill(ctx.kernels(), ones.count(), 1.0f, ones);
    slot->add(ctx, std::move(ones));
  });
  (void)context;
}

TEST_P(Runtime, TapeSumsTheGradientsOfAllUses) {
  Tape tape;
  const Variable x = Variable::leaf(tensor({1, 2}, {2}));
  {
    const TapeScope scope(context, &tape);
    const Variable once = triple(context, x);
    const Variable twice = triple(context, once);
    seed_gradient(context, tape, once);
    seed_gradient(context, tape, twice);
    seed_gradient(context, tape, twice);
  }
  EXPECT_EQ(tape.op_count(), 5u);
  tape.backward(context);
  EXPECT_EQ(x.gradient().to_host<float>(context), std::vector<float>(2, 3 + 9 + 9));
  EXPECT_EQ(tape.op_count(), 0u);
}

TEST_P(Runtime, TapeLeavesSharedGradientMemoryAlone) {
  // Two leaves adopt the same gradient tensor; a second contribution to one of them must not change the other.
  const Variable a = Variable::leaf(tensor({0, 0}, {2}));
  const Variable b = Variable::leaf(tensor({0, 0}, {2}));
  const Tensor shared = tensor({1, 2}, {2});
  a.add_gradient(context, shared);
  b.add_gradient(context, shared);
  a.add_gradient(context, tensor({10, 10}, {2}));
  EXPECT_EQ(a.gradient().to_host<float>(context), (std::vector<float>{11, 12}));
  EXPECT_EQ(b.gradient().to_host<float>(context), (std::vector<float>{1, 2}));
  EXPECT_EQ(shared.to_host<float>(context), (std::vector<float>{1, 2}));
}

TEST_P(Runtime, TapeCountsSavedMemoryOnceAndFreesIt) {
  Tape tape;
  const Variable x = Variable::leaf(tensor(std::vector<float>(100, 1.0f), {100}));
  {
    const TapeScope scope(context, &tape);
    const Variable y = triple(context, x);
    const Variable z = triple(context, x);  // saves x again: counted once
    seed_gradient(context, tape, y);
    EXPECT_EQ(tape.saved_bytes(), 400u);
    triple(context, y);
    EXPECT_EQ(tape.saved_bytes(), 800u);
  }
  tape.backward(context);
  EXPECT_EQ(tape.saved_bytes(), 0u);
  // z got no gradient: its op was skipped.
  EXPECT_EQ(x.gradient().to_host<float>(context), std::vector<float>(100, 3.0f));
}

TEST_P(Runtime, NothingIsRecordedWithoutATapeOrForConstants) {
  Tape tape;
  const Variable leaf = Variable::leaf(tensor({1}, {1}));
  const Variable constant = tensor({1}, {1});
  EXPECT_FALSE(triple(context, leaf).requires_grad());
  const TapeScope scope(context, &tape);
  EXPECT_FALSE(triple(context, constant).requires_grad());
  {
    const TapeScope no_grad(context, nullptr);
    EXPECT_FALSE(triple(context, leaf).requires_grad());
  }
  EXPECT_TRUE(triple(context, leaf).requires_grad());
  EXPECT_EQ(tape.op_count(), 1u);
}

TEST_P(Runtime, ReshapedVariablesShareTheirGradient) {
  Tape tape;
  const Variable x = Variable::leaf(tensor({1, 2, 3, 4}, {2, 2}));
  {
    const TapeScope scope(context, &tape);
    seed_gradient(context, tape, triple(context, x.reshape({4})));
  }
  tape.backward(context);
  EXPECT_EQ(x.gradient().shape(), (Shape{2, 2}));
  EXPECT_EQ(x.gradient().to_host<float>(context), std::vector<float>(4, 3.0f));
}

TEST(DeviceApi, AMissingGpuIsOneLineOfAdvice) {
  try {
    DeviceContext context({DeviceType::cuda, 63});
    FAIL() << "a 64th GPU is not expected here";
  } catch (const DeviceError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("cuda"), std::string::npos);
  }
}

TEST(DeviceApi, SimtTensorsAreGuardedBlocks) {
  const size_t before = kernels::simt::live_allocations();
  {
    DeviceContext context({DeviceType::simt, 0});
    const Tensor a = Tensor::empty(context, {10});
    EXPECT_EQ(kernels::simt::live_allocations(), before + 1);
  }
  EXPECT_EQ(kernels::simt::live_allocations(), before);
}

}  // namespace
}  // namespace vesal
