// A dense array on a device: shape, storage type, and shared storage. Always contiguous, last axis fastest; reshape and
// slice along the first axis are views, nothing else is strided. Activations are [N, D, H, W, C].
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/data.hpp"
#include "base/size.hpp"
#include "runtime/device_context.hpp"

namespace vesal {

using Shape = std::vector<int64_t>;
// "[1, 64, 64, 64, 4]".
std::string to_string(const Shape& shape);

class Tensor {
 public:
  // Undefined: no storage, shape [0].
  Tensor() = default;

  // Contents are whatever the memory held.
  static Tensor empty(DeviceContext& context, Shape shape, DType dtype = DType::f32);
  static Tensor zeros(DeviceContext& context, Shape shape, DType dtype = DType::f32);
  // A copy of host values, whose number must match the shape.
  template <class T>
  static Tensor from_host(DeviceContext& context, std::span<const T> values, Shape shape) {
    Tensor tensor = empty(context, std::move(shape), dtype_of<T>::value);
    tensor.copy_from_host(context, values.data(), values.size_bytes());
    return tensor;
  }
  template <class T>
  static Tensor from_host(DeviceContext& context, const std::vector<T>& values, Shape shape) {
    return from_host(context, std::span<const T>(values), std::move(shape));
  }

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int rank() const { return static_cast<int>(shape_.size()); }
  // Extent of an axis; negative counts from the end. Throws ShapeError out of range.
  int64_t size(int axis) const;
  int64_t count() const { return count_; }
  size_t bytes() const { return static_cast<size_t>(count_) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  void* data() const { return data_; }
  // Typed pointer; throws ShapeError when the storage type is another.
  template <class T>
  T* data() const {
    return Data(data_, dtype_).as<T>("tensor");
  }
  operator Data() const { return {data_, dtype_}; }
  operator ConstData() const { return {data_, dtype_}; }

  // The same memory under another shape with the same number of elements.
  Tensor reshape(Shape shape) const;
  // Rows [begin, end) of the first axis, sharing memory.
  Tensor slice(int64_t begin, int64_t end) const;
  // Another tensor of the same shape and type, uninitialised.
  Tensor empty_like(DeviceContext& context) const { return empty(context, shape_, dtype_); }

  // Waits for the stream.
  template <class T>
  std::vector<T> to_host(DeviceContext& context) const {
    check<ShapeError>(dtype_ == dtype_of<T>::value, "to_host: tensor is stored as ", name_of(dtype_));
    std::vector<T> values(static_cast<size_t>(count_));
    copy_to_host(context, values.data(), bytes());
    return values;
  }
  // Both wait for the stream, so that host memory may go away at once.
  void copy_from_host(DeviceContext& context, const void* source, size_t bytes) const;
  void copy_to_host(DeviceContext& context, void* target, size_t bytes) const;

  // How many tensors share the storage; 1 means that writing in place surprises nobody.
  long storage_users() const { return storage_.use_count(); }
  const void* storage() const { return storage_.get(); }
  size_t storage_bytes() const { return storage_bytes_; }

 private:
  std::shared_ptr<void> storage_;
  size_t storage_bytes_ = 0;
  void* data_ = nullptr;
  Shape shape_{0};
  int64_t count_ = 0;
  DType dtype_ = DType::f32;
  Device device_;
};

}  // namespace vesal
