#include "runtime/tensor.hpp"

#include "runtime/device_api.hpp"

namespace vesal {

Tensor Tensor::empty(DeviceContext& context, Shape shape, DType dtype) {
  Tensor tensor;
  tensor.count_ = element_count(shape);
  tensor.storage_bytes_ =
      static_cast<size_t>(checked_mul(tensor.count_, static_cast<int64_t>(size_of(dtype))));
  tensor.shape_ = std::move(shape);
  tensor.dtype_ = dtype;
  tensor.device_ = context.device();
  tensor.storage_ = context.allocator().allocate(tensor.storage_bytes_);
  tensor.data_ = tensor.storage_.get();
  return tensor;
}

Tensor Tensor::zeros(DeviceContext& context, Shape shape, DType dtype) {
  Tensor tensor = empty(context, std::move(shape), dtype);
  device_api::set_bytes(tensor.device_, context.stream().handle(), tensor.data_, 0, tensor.bytes());
  return tensor;
}

int64_t Tensor::size(int axis) const {
  const int index = axis < 0 ? axis + rank() : axis;
  check<ShapeError>(index >= 0 && index < rank(), "axis ", axis, " of a tensor of shape ", to_string(shape_));
  return shape_[static_cast<size_t>(index)];
}

Tensor Tensor::reshape(Shape shape) const {
  check<ShapeError>(element_count(shape) == count_, "reshape: ", to_string(shape_), " to ", to_string(shape),
                    " changes the number of elements");
  Tensor view = *this;
  view.shape_ = std::move(shape);
  return view;
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
  check<ShapeError>(rank() >= 1 && 0 <= begin && begin <= end && end <= shape_[0], "slice: rows ", begin, " to ", end,
                    " of ", to_string(shape_));
  Tensor view = *this;
  const int64_t row = shape_[0] == 0 ? 0 : count_ / shape_[0];
  view.shape_[0] = end - begin;
  view.count_ = row * (end - begin);
  view.data_ = static_cast<char*>(data_) + static_cast<size_t>(row * begin) * size_of(dtype_);
  return view;
}

void Tensor::copy_from_host(DeviceContext& context, const void* source, size_t size) const {
  check<ShapeError>(size == bytes(), "copy from host: ", size, " bytes for a tensor of shape ", to_string(shape_),
                    " with ", bytes(), " bytes");
  device_api::copy_to_device(device_, context.stream().handle(), data_, source, size);
  context.synchronize();
}

void Tensor::copy_to_host(DeviceContext& context, void* target, size_t size) const {
  check<ShapeError>(size == bytes(), "copy to host: ", size, " bytes from a tensor of shape ", to_string(shape_),
                    " with ", bytes(), " bytes");
  device_api::copy_to_host(device_, context.stream().handle(), target, data_, size);
  context.synchronize();
}

}  // namespace vesal
