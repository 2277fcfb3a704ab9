// What every kernel call gets beside its data: the device, the stream, and the caches that libraries need between calls
// (oneDNN primitives, cuBLAS handles). The caller owns it; one per device and host thread.
#pragma once

#include <cstddef>
#include <memory>
#include <typeindex>
#include <unordered_map>

#include "base/data.hpp"
#include "base/device.hpp"

namespace vesal::kernels {

class Context {
 public:
  explicit Context(Device device, StreamHandle stream = {}) : device_(device), stream_(stream) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Device device() const { return device_; }
  StreamHandle stream() const { return stream_; }

  // The cache of type T, default-constructed on first use and kept for the life of this context.
  template <class T>
  T& cache() {
    std::shared_ptr<void>& slot = caches_[std::type_index(typeid(T))];
    if (!slot) {
      slot = std::make_shared<T>();
    }
    return *static_cast<T*>(slot.get());
  }

 private:
  Device device_;
  StreamHandle stream_;
  std::unordered_map<std::type_index, std::shared_ptr<void>> caches_;
};

// Scratch memory on the context's device, as large as the family's *_workspace_bytes asked for, aligned to 256 bytes.
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;

  // Throws ShapeError, naming `what`, if fewer than `needed` bytes were given.
  void require(size_t needed, const char* what) const {
    check<ShapeError>(bytes >= needed, what, ": workspace holds ", bytes, " bytes, ", needed, " are needed");
  }
};

// What a backward function does with a gradient that it computes: replace what is there, or add to it.
enum class GradMode { overwrite, accumulate };

// Activations, alone (kernels/elementwise) or fused into the end of another kernel, as PyTorch defines them:
//   relu        x > 0 ? x : 0                                        slope at 0: 0
//   leaky_relu  x > 0 ? x : slope x                                  slope at 0: slope
//   gelu        x (1 + erf(x / sqrt(2))) / 2
//   gelu_tanh   x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
//   silu        x / (1 + e^-x)
//   hardswish   x min(max(x + 3, 0), 6) / 6                          slope -1/2 at -3 and 3/2 at 3
//   elu         x > 0 ? x : e^x - 1 (alpha is 1)                     slope at 0: 1
//   sigmoid     1 / (1 + e^-x)
// Each kernel says which of them it takes.
enum class Activation { none, relu, leaky_relu, gelu, gelu_tanh, silu, hardswish, elu, sigmoid };

}  // namespace vesal::kernels
