// Runs a call of an op with its tensors stored as float32, bf16 or f16 and compares. An op whose arithmetic
// does not depend on the storage type gives what it gives in float32 for the same (rounded) inputs, rounded
// once at the end, bit for bit: expect_rounded_float32. What the float32 op gives is checked by its own test.
#pragma once

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

// The tensors of one call, stored as `dtype`, with values that `rounding` can hold.
class Call {
 public:
  Call(Device device, DType dtype, DType rounding) : device_(device), dtype_(dtype), rounding_(rounding) {}

  Context& context() { return context_; }
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
    for (float& value : values) {
      value = rounded(rounding_, value);
    }
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

inline void expect_rounded_float32(const std::string& what, const std::function<void(Call&)>& run) {
  for (const Device device : test_devices()) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
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
        std::vector<float> values = expected[k].values;
        if (found[k].stored) {
          for (float& value : values) {
            value = rounded(dtype, value);
          }
        }
        expect_equal(concat("output ", k), found[k].values, values);
      }
    }
  }
}

}  // namespace vesal::kernels::testing
