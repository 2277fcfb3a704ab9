// Runs a call of an op with its tensors stored as float32, bf16 or f16 and compares. An op whose arithmetic
// does not depend on the storage type gives what it gives in float32 for the same (rounded) inputs, rounded
// once at the end, bit for bit: expect_rounded_float32. What the float32 op gives is checked by its own test.
// Where a library adds in an order of its own for each type: expect_close_when_stored.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/context/storage.hpp"
#include "tests/kernels/harness.hpp"

namespace vesal::kernels::testing {

template <class T>
inline float rounded(float value) {
  return kernels::widen(narrow<T>(value));
}

inline float rounded(DType dtype, float value) {
  return dtype == DType::bf16 ? rounded<bf16>(value) : dtype == DType::f16 ? rounded<f16>(value) : value;
}

inline std::vector<float> rounded(DType dtype, std::vector<float> values) {
  for (float& value : values) {
    value = rounded(dtype, value);
  }
  return values;
}

// The tensors of one call, stored as `dtype`, with values that `rounding` can hold.
class Call {
 public:
  Call(Device device, DType dtype, DType rounding) : device_(device), dtype_(dtype), rounding_(rounding) {}

  Context& context() { return context_; }
  DType storage() const { return dtype_; }
  Data in(const std::vector<float>& values) { return place(values, dtype_, false); }
  // Always float32: biases, scales, gradients of parameters that are added to.
  Data in_float(const std::vector<float>& values) { return place(values, DType::f32, false); }
  // Read and written.
  Data in_out(const std::vector<float>& values) { return place(values, dtype_, true); }
  Data in_out_float(const std::vector<float>& values) { return place(values, DType::f32, true); }
  Data out(int64_t count) { return reserve(count, dtype_, true); }
  Data out_float(int64_t count) { return reserve(count, DType::f32, true); }
  const int32_t* indices(const std::vector<int32_t>& values) {
    indices_.push_back(std::make_unique<DeviceArray<int32_t>>(device_, values));
    return indices_.back()->get();
  }
  Workspace workspace(size_t bytes) {
    scratch_.push_back(std::make_unique<DeviceWorkspace>(device_, bytes));
    return *scratch_.back();
  }

  // What was written, in the order of the calls above, and whether it is a stored tensor.
  struct Result {
    std::vector<float> values;
    bool stored;
  };
  std::vector<Result> results() const {
    std::vector<Result> all;
    for (const Held& held : held_) {
      if (held.written) {
        std::vector<float> values(static_cast<size_t>(held.count));
        const std::vector<unsigned char> bytes = held.memory->host();
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = held.dtype == DType::f32    ? at<float>(bytes, i)
                      : held.dtype == DType::bf16 ? kernels::widen(at<bf16>(bytes, i))
                                                  : kernels::widen(at<f16>(bytes, i));
        }
        all.push_back({std::move(values), held.dtype == dtype_});
      }
    }
    return all;
  }

 private:
  struct Held {
    std::unique_ptr<DeviceArray<unsigned char>> memory;
    int64_t count;
    DType dtype;
    bool written;
  };

  template <class T>
  static T at(const std::vector<unsigned char>& bytes, size_t i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  static std::vector<unsigned char> bytes_of(const std::vector<float>& values) {
    std::vector<unsigned char> bytes(values.size() * sizeof(T));
    for (size_t i = 0; i < values.size(); ++i) {
      const T value = narrow<T>(values[i]);
      std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
    }
    return bytes;
  }
  Data keep(std::unique_ptr<DeviceArray<unsigned char>> memory, int64_t count, DType dtype, bool written) {
    held_.push_back({std::move(memory), count, dtype, written});
    return {held_.back().memory->get(), dtype};
  }
  Data place(std::vector<float> values, DType dtype, bool written) {
    values = rounded(rounding_, std::move(values));
    const std::vector<unsigned char> bytes = dtype == DType::f32    ? bytes_of<float>(values)
                                             : dtype == DType::bf16 ? bytes_of<bf16>(values)
                                                                    : bytes_of<f16>(values);
    return keep(std::make_unique<DeviceArray<unsigned char>>(device_, bytes),
                static_cast<int64_t>(values.size()), dtype, written);
  }
  Data reserve(int64_t count, DType dtype, bool written) {
    const std::vector<unsigned char> poison(static_cast<size_t>(count) * size_of(dtype), 0xff);  // NaN
    return keep(std::make_unique<DeviceArray<unsigned char>>(device_, poison), count, dtype, written);
  }

  Device device_;
  DType dtype_, rounding_;
  Context context_{device_};
  std::vector<Held> held_;
  std::vector<std::unique_ptr<DeviceArray<int32_t>>> indices_;
  std::vector<std::unique_ptr<DeviceWorkspace>> scratch_;
};

// The test devices that are the CPU, or those that are not.
inline std::vector<Device> test_devices_where_cpu_is(bool cpu) {
  std::vector<Device> devices = test_devices();
  std::erase_if(devices, [&](Device device) { return (device.type == DeviceType::cpu) != cpu; });
  return devices;
}

inline void expect_rounded_float32(const std::string& what, const std::function<void(Call&)>& run,
                                   const std::vector<Device>& devices = test_devices()) {
  for (const Device device : devices) {
    for (const DType dtype : half_types()) {
      SCOPED_TRACE(concat(what, " on ", to_string(device), " in ", name_of(dtype)));
      Call wide(device, DType::f32, dtype);
      Call narrow(device, dtype, dtype);
      run(wide);
      run(narrow);
      const auto expected = wide.results();
      const auto found = narrow.results();
      ASSERT_EQ(found.size(), expected.size());
      ASSERT_FALSE(found.empty());
      for (size_t k = 0; k < found.size(); ++k) {
        expect_equal(concat("output ", k), found[k].values,
                     found[k].stored ? rounded(dtype, expected[k].values) : expected[k].values);
      }
    }
  }
}

// The reference of one output for inputs that the storage type can hold, in double and in float32.
struct Expected {
  std::vector<double> exact;
  std::vector<float> naive;
};

// The error rule of expect_close for a tensor stored as `dtype`: what is allowed is twice the error of the
// naive float32 result rounded to that type, with a floor of one unit in its last place at max |exact|.
inline void expect_close_when_stored(const std::string& what, DType dtype, const std::vector<float>& actual,
                                     Expected expected) {
  if (dtype == DType::f32) {
    expect_close(what, actual, expected.exact, expected.naive);
    return;
  }
  ASSERT_EQ(actual.size(), expected.exact.size()) << what;
  ASSERT_EQ(expected.naive.size(), expected.exact.size()) << what;
  double naive_error = 0, largest = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const auto naive = static_cast<double>(rounded(dtype, expected.naive[i]));
    naive_error = std::max(naive_error, std::abs(naive - expected.exact[i]));
    largest = std::max(largest, std::abs(expected.exact[i]));
  }
  const int digits = dtype == DType::bf16 ? 7 : 10;  // of the mantissa
  const double unit = largest > 0 ? std::ldexp(1.0, std::ilogb(largest) - digits) : 0;
  const double limit = std::max(2 * naive_error, unit);
  for (size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(static_cast<double>(actual[i]) - expected.exact[i]);
    ASSERT_TRUE(error <= limit) << what << ": element " << i << " is " << actual[i] << ", expected "
                                << expected.exact[i] << " within " << limit;
  }
}

// Runs the call in bf16 and f16; reference(type) gives what its outputs, in their order, should be.
inline void expect_close_when_stored(const std::string& what, const std::function<void(Call&)>& run,
                                     const std::function<std::vector<Expected>(DType)>& reference,
                                     const std::vector<Device>& devices) {
  for (const DType dtype : half_types()) {
    const std::vector<Expected> expected = reference(dtype);
    for (const Device device : devices) {
      SCOPED_TRACE(concat(what, " on ", to_string(device), " in ", name_of(dtype)));
      Call call(device, dtype, dtype);
      run(call);
      const auto found = call.results();
      ASSERT_EQ(found.size(), expected.size());
      for (size_t k = 0; k < found.size(); ++k) {
        expect_close_when_stored(concat("output ", k), found[k].stored ? dtype : DType::f32, found[k].values,
                                 expected[k]);
      }
    }
  }
}

}  // namespace vesal::kernels::testing
