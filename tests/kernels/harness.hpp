// What every kernel test uses: devices to run on, poisoned and guarded device arrays, inputs, and the error
// rule.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.hpp"
#include "base/philox.hpp"
#include "kernels/context/context.hpp"

namespace vesal::kernels::testing {

// cpu and simt always; cuda when this build has it and a GPU is present. simt only in builds with VESAL_RACE,
// and the one that VESAL_TEST_DEVICE names where it is set (DeviceError where it is not there).
std::vector<Device> test_devices();
// bf16 and f16; bf16 alone in builds with VESAL_RACE: the kernels of both are one template, whose accesses are
// as wide and lie where the others do, so that nothing but their arithmetic is left to compare.
std::vector<DType> half_types();
// Whether every access of the emulated kernels is checked, by which they are some hundred times slower.
bool accesses_are_checked();

// Raw device memory for DeviceArray: separate, guarded blocks on cpu and simt.
void* device_allocate(Device device, size_t bytes);
void device_free(Device device,
                 void* pointer);  // checks the guards and fails the test when one was overwritten
void copy_to_device(Device device, void* target, const void* source, size_t bytes);
void copy_to_host(Device device, void* target, const void* source, size_t bytes);

// Memory on a device for the life of a test. Without initial values every byte is 0xff, which is NaN as a
// float and an impossible index as an integer: what a kernel forgets to write shows. On simt the allocation's
// own poison stays, which is as impossible, and by which the race lane knows what was never written; not in
// arrays of bytes, where it has zeros.
template <class T>
class DeviceArray {
 public:
  DeviceArray(Device device, int64_t count) : DeviceArray(device, count, nullptr) {}
  DeviceArray(Device device, const std::vector<T>& values)
      : DeviceArray(device, static_cast<int64_t>(values.size()), values.data()) {}
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { device_free(device_, pointer_); }

  T* get() const { return pointer_; }
  operator T*() const { return pointer_; }
  int64_t size() const { return count_; }
  std::vector<T> host() const {
    std::vector<T> values(static_cast<size_t>(count_));
    copy_to_host(device_, values.data(), pointer_, values.size() * sizeof(T));
    return values;
  }

 private:
  DeviceArray(Device device, int64_t count, const T* values) : device_(device), count_(count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    pointer_ = static_cast<T*>(device_allocate(device, bytes));
    if (values != nullptr) {
      copy_to_device(device, pointer_, values, bytes);
    } else if (device.type != DeviceType::simt || sizeof(T) == 1) {
      const std::vector<unsigned char> poison(bytes, 0xff);
      copy_to_device(device, pointer_, poison.data(), bytes);
    }
  }

  Device device_;
  int64_t count_;
  T* pointer_ = nullptr;
};

// A Workspace of exactly `bytes` bytes, poisoned like an output.
class DeviceWorkspace {
 public:
  DeviceWorkspace(Device device, size_t bytes) : bytes_(bytes), array_(device, static_cast<int64_t>(bytes)) {}
  operator Workspace() const { return {array_.get(), bytes_}; }

 private:
  size_t bytes_;
  DeviceArray<unsigned char> array_;
};

// Standard normal numbers times `scale`, the same for the same seed.
std::vector<float> random_normal(int64_t count, uint64_t seed, float scale = 1.0f);
// Small integers in [low, high] as floats: sums and products of them are exact in float32.
std::vector<float> random_integers(int64_t count, uint64_t seed, int low = -4, int high = 4);

template <class T>
std::vector<double> widen(const std::vector<T>& values) {
  return std::vector<double>(values.begin(), values.end());
}

// The error rule. `exact` is the reference evaluated in double, `naive` the same reference evaluated in
// float32. max |actual - exact| must be at most twice max |naive - exact|, with a floor of four units in the
// last place of max |exact|: the error that rounding inputs and output of a few float32 operations makes
// anyway. NaN never passes.
void expect_close(const std::string& what, const std::vector<float>& actual, const std::vector<double>& exact,
                  const std::vector<float>& naive);
// Bit-equality; for integer-valued inputs where the op only adds and multiplies, and for repeats.
void expect_equal(const std::string& what, const std::vector<float>& actual,
                  const std::vector<float>& expected);
void expect_equal(const std::string& what, const std::vector<float>& actual,
                  const std::vector<double>& exact);

// Compares an analytic gradient with central differences of `loss` (both in double) for each element of `x`:
// max |analytic - numeric| <= relative * max(1, max |numeric|). `loss` reads the x it is given.
void expect_gradient(const std::string& what, std::vector<double> x, const std::vector<double>& analytic,
                     const std::function<double(const std::vector<double>&)>& loss, double step = 1e-5,
                     double relative = 1e-7);

// Runs `run` on simt under the forward, the reverse and a random schedule and expects the same bits each
// time. `run` returns the outputs of one evaluation. On other devices it runs twice: bit-equal repeats.
void expect_same_bits(const std::string& what, Device device, const std::function<std::vector<float>()>& run);

// Calls body(random) for case 0, 1, ... of this test: 200 of them (20 in builds with a sanitizer or
// VESAL_RACE, where an instruction costs ten), or VESAL_RANDOM_CASES. What the stream gives depends on
// VESAL_RANDOM_SEED (default 0), the running test's name and the case's number only. The body draws a shape
// from it, small enough for the emulator, and checks it; when that fails, one line is printed that repeats
// just this case.
void for_each_random_case(const std::function<void(RandomStream&)>& body);

}  // namespace vesal::kernels::testing
