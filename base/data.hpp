// A pointer that knows its storage type: what kernel contracts take, so that one function serves f32, bf16 and f16.
// A `float*` converts by itself; an implementation asks for the type that it supports and gets a ShapeError otherwise.
#pragma once

#include "base/dtype.hpp"
#include "base/error.hpp"

namespace vesal {

struct ConstData {
  const void* pointer = nullptr;
  DType dtype = DType::f32;

  ConstData() = default;
  ConstData(std::nullptr_t) {}
  ConstData(const void* p, DType type) : pointer(p), dtype(type) {}
  template <class T>
  ConstData(const T* p) : pointer(p), dtype(dtype_of<T>::value) {}

  explicit operator bool() const { return pointer != nullptr; }

  // The typed pointer (null stays null). `what` names operation and argument for the error: "conv3d_forward: x".
  template <class T>
  const T* as(const char* what) const {
    check<ShapeError>(pointer == nullptr || dtype == dtype_of<T>::value, what, " is stored as ",
                      name_of(dtype), ", supported here: ", name_of(dtype_of<T>::value));
    return static_cast<const T*>(pointer);
  }
};

struct Data {
  void* pointer = nullptr;
  DType dtype = DType::f32;

  Data() = default;
  Data(std::nullptr_t) {}
  Data(void* p, DType type) : pointer(p), dtype(type) {}
  template <class T>
  Data(T* p) : pointer(p), dtype(dtype_of<T>::value) {}

  explicit operator bool() const { return pointer != nullptr; }
  operator ConstData() const { return {pointer, dtype}; }

  template <class T>
  T* as(const char* what) const {
    check<ShapeError>(pointer == nullptr || dtype == dtype_of<T>::value, what, " is stored as ",
                      name_of(dtype), ", supported here: ", name_of(dtype_of<T>::value));
    return static_cast<T*>(pointer);
  }
};

}  // namespace vesal
