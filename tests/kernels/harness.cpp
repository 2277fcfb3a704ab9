#include "tests/kernels/harness.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "base/philox.hpp"
#include "kernels/simt/memory.hpp"
#include "kernels/simt/schedule.hpp"

#if VESAL_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace vesal::kernels::testing {
namespace {

constexpr size_t kGuardBytes = 64;
constexpr unsigned char kGuardByte = 0xa5;

// Builds that check every access of the emulated kernels run those kernels only, once.
#ifdef VESAL_RACE
constexpr bool kRaceLane = true;
#else
constexpr bool kRaceLane = false;
#endif

#if VESAL_WITH_CUDA
void cuda_check(cudaError_t status, const char* what) {
  check<DeviceError>(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}
#endif

double largest_magnitude(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) {
    largest = std::max(largest, std::abs(value));
  }
  return largest;
}

}  // namespace

std::vector<DType> half_types() {
  return kRaceLane ? std::vector{DType::bf16} : std::vector{DType::bf16, DType::f16};
}

bool accesses_are_checked() {
#ifdef VESAL_SANITIZED
  return true;
#else
  return kRaceLane;
#endif
}

std::vector<Device> test_devices() {
  if constexpr (kRaceLane) {
    return {{DeviceType::simt, 0}};
  }
  std::vector<Device> devices{{DeviceType::cpu, 0}, {DeviceType::simt, 0}};
#if VESAL_WITH_CUDA
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) {
    devices.push_back({DeviceType::cuda, 0});
  }
#endif
  if (const char* wanted = std::getenv("VESAL_TEST_DEVICE")) {
    std::erase_if(devices, [&](Device device) { return to_string(device) != wanted; });
    check<DeviceError>(!devices.empty(), "VESAL_TEST_DEVICE: found ", wanted,
                       ", expected cpu, simt or, with a GPU, cuda");
  }
  return devices;
}

void* device_allocate(Device device, size_t bytes) {
  switch (device.type) {
    case DeviceType::cpu: {
      // [size][guard][data][guard]; the data stays aligned to 64 bytes.
      auto* block =
          static_cast<unsigned char*>(std::aligned_alloc(64, (bytes + 3 * kGuardBytes + 63) / 64 * 64));
      std::memcpy(block, &bytes, sizeof(bytes));
      std::memset(block + kGuardBytes, kGuardByte, kGuardBytes);
      std::memset(block + 2 * kGuardBytes + bytes, kGuardByte, kGuardBytes);
      return block + 2 * kGuardBytes;
    }
    case DeviceType::simt:
      return simt::allocate(bytes);
    case DeviceType::cuda: {
      void* pointer = nullptr;
#if VESAL_WITH_CUDA
      cuda_check(cudaMalloc(&pointer, std::max<size_t>(bytes, 1)), "cudaMalloc");
#endif
      return pointer;
    }
  }
  return nullptr;
}

void device_free(Device device, void* pointer) {
  if (pointer == nullptr) {
    return;
  }
  switch (device.type) {
    case DeviceType::cpu: {
      unsigned char* block = static_cast<unsigned char*>(pointer) - 2 * kGuardBytes;
      size_t bytes = 0;
      std::memcpy(&bytes, block, sizeof(bytes));
      for (size_t i = 0; i < kGuardBytes; ++i) {
        EXPECT_EQ(block[kGuardBytes + i], kGuardByte) << "written before the start of a device array";
        EXPECT_EQ(block[2 * kGuardBytes + bytes + i], kGuardByte) << "written past the end of a device array";
      }
      std::free(block);
      return;
    }
    case DeviceType::simt:
      EXPECT_NO_THROW(simt::deallocate(pointer));
      return;
    case DeviceType::cuda:
#if VESAL_WITH_CUDA
      EXPECT_EQ(cudaFree(pointer), cudaSuccess);
#endif
      return;
  }
}

void copy_to_device(Device device, void* target, const void* source, size_t bytes) {
  if (bytes == 0) {
    return;
  }
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    cuda_check(cudaMemcpy(target, source, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    return;
  }
#endif
  (void)device;
  std::memcpy(target, source, bytes);
}

void copy_to_host(Device device, void* target, const void* source, size_t bytes) {
  if (bytes == 0) {
    return;
  }
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    cuda_check(cudaMemcpy(target, source, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
    return;
  }
#endif
  (void)device;
  std::memcpy(target, source, bytes);
}

std::vector<float> random_normal(int64_t count, uint64_t seed, float scale) {
  RandomStream random(seed, 0, 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = scale * random.normal();
  }
  return values;
}

std::vector<float> random_integers(int64_t count, uint64_t seed, int low, int high) {
  RandomStream random(seed, 0, 2);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = static_cast<float>(low + random.below(high - low + 1));
  }
  return values;
}

void expect_close(const std::string& what, const std::vector<float>& actual, const std::vector<double>& exact,
                  const std::vector<float>& naive) {
  ASSERT_EQ(actual.size(), exact.size()) << what;
  ASSERT_EQ(naive.size(), exact.size()) << what;
  double naive_error = 0;
  double worst = 0;
  size_t worst_index = 0;
  size_t failing = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    naive_error = std::max(naive_error, std::abs(static_cast<double>(naive[i]) - exact[i]));
  }
  const double limit = std::max(2 * naive_error, 4 * 0x1p-23 * largest_magnitude(exact));
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = std::abs(static_cast<double>(actual[i]) - exact[i]);
    if (!(error <= limit)) {
      ++failing;
    }
    if (!(error <= worst)) {
      worst = std::isnan(error) ? INFINITY : error;
      worst_index = i;
    }
  }
  EXPECT_EQ(failing, 0u) << what << ": " << failing << " of " << exact.size()
                         << " elements differ by more than " << limit << "; worst at " << worst_index
                         << ": found " << actual[worst_index] << ", expected " << exact[worst_index];
}

void expect_equal(const std::string& what, const std::vector<float>& actual,
                  const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(float)) != 0) {
      FAIL() << what << ": element " << i << " is " << actual[i] << ", expected the same bits as "
             << expected[i];
    }
  }
}

void expect_equal(const std::string& what, const std::vector<float>& actual,
                  const std::vector<double>& exact) {
  ASSERT_EQ(actual.size(), exact.size()) << what;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (static_cast<double>(actual[i]) != exact[i]) {
      FAIL() << what << ": element " << i << " is " << actual[i] << ", expected exactly " << exact[i];
    }
  }
}

void expect_gradient(const std::string& what, std::vector<double> x, const std::vector<double>& analytic,
                     const std::function<double(const std::vector<double>&)>& loss, double step,
                     double relative) {
  ASSERT_EQ(x.size(), analytic.size()) << what;
  std::vector<double> numeric(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double centre = x[i];
    x[i] = centre + step;
    const double above = loss(x);
    x[i] = centre - step;
    const double below = loss(x);
    x[i] = centre;
    numeric[i] = (above - below) / (2 * step);
  }
  const double limit = relative * std::max(1.0, largest_magnitude(numeric));
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_LE(std::abs(analytic[i] - numeric[i]), limit)
        << what << ": gradient of element " << i << ": analytic " << analytic[i] << ", numeric "
        << numeric[i];
  }
}

void expect_same_bits(const std::string& what, Device device,
                      const std::function<std::vector<float>()>& run) {
  if (device.type != DeviceType::simt) {
    const std::vector<float> first = run();
    expect_equal(what + ", repeated", run(), first);
    return;
  }
  if constexpr (kRaceLane) {  // what is ordered does not depend on the schedule
    run();
    return;
  }
  simt::set_schedule(simt::Schedule::forward);
  const std::vector<float> first = run();
  simt::set_schedule(simt::Schedule::reverse);
  const std::vector<float> reversed = run();
  simt::set_schedule(simt::Schedule::random, 12345);
  const std::vector<float> shuffled = run();
  simt::set_schedule(simt::Schedule::forward);
  expect_equal(what + ", reverse schedule", reversed, first);
  expect_equal(what + ", random schedule", shuffled, first);
}

namespace {

int64_t number_from_environment(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::atoll(text) : otherwise;
}

}  // namespace

void for_each_random_case(const std::function<void(RandomStream&)>& body) {
  const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string test = concat(info->test_suite_name(), ".", info->name());
  uint64_t name = 1469598103934665603ull;  // FNV-1a, so that every test has streams of its own
  for (const char c : test) {
    name = (name ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  }
  const int64_t seed = number_from_environment("VESAL_RANDOM_SEED", 0);
  const int64_t only = number_from_environment("VESAL_RANDOM_CASE", -1);
  const int64_t cases = number_from_environment("VESAL_RANDOM_CASES", accesses_are_checked() ? 20 : 200);
  for (int64_t i = only >= 0 ? only : 0; i < (only >= 0 ? only + 1 : cases); ++i) {
    RandomStream random(name ^ static_cast<uint64_t>(seed), static_cast<uint64_t>(i), 0);
    body(random);
    if (::testing::Test::HasFailure()) {
      std::string program = "PROGRAM";
      std::ifstream command("/proc/self/cmdline");
      std::getline(command, program, '\0');
      ADD_FAILURE() << "repeat: VESAL_RANDOM_SEED=" << seed << " VESAL_RANDOM_CASE=" << i << ' ' << program
                    << " --gtest_filter=" << test;
      return;
    }
  }
}

}  // namespace vesal::kernels::testing
