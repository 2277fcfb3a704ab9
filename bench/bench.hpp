// What a benchmark program is made of. A family's file defines register_benchmarks(), which goes through the
// family's benchmark cases and calls add() for each operation; everything else is bench.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "kernels/context/work.hpp"
#include "runtime/device_context.hpp"

namespace vesal::bench {

// A case's parameters under the names that bench/peers/peers.py reads.
using Parameters = nlohmann::ordered_json;

// Memory for one benchmark, on its device, for as long as it runs.
class Arena {
 public:
  explicit Arena(DeviceContext& context) : context_(context) {}

  DeviceContext& device_context() { return context_; }
  kernels::Context& context() { return context_.kernels(); }

  // Standard normal numbers, the same for the same count.
  float* normal(int64_t count, float scale = 1.0f);
  float* zeros(int64_t count);
  // Numbers in [0, below).
  uint8_t* labels(int64_t count, int below);
  kernels::Workspace workspace(size_t bytes);
  // Uninitialised.
  template <class T>
  T* array(int64_t count) {
    return static_cast<T*>(allocate(static_cast<size_t>(count) * sizeof(T)));
  }
  template <class T>
  T* upload(const std::vector<T>& values) {
    T* pointer = array<T>(static_cast<int64_t>(values.size()));
    copy(pointer, values.data(), values.size() * sizeof(T));
    return pointer;
  }

 private:
  void* allocate(size_t bytes);
  void copy(void* target, const void* source, size_t bytes);

  DeviceContext& context_;
  std::vector<std::shared_ptr<void>> blocks_;
};

// One call of the kernel, enqueued on the context's stream.
using Call = std::function<void()>;
// Allocates and fills what the call needs.
using Prepare = std::function<Call(Arena&)>;

// Adds the benchmark "operation/case/DEVICE" for every device present. `operation` is the kernel's function
// ("conv3d_backward_data"); names are made of [a-z0-9_].
void add(const std::string& operation, const std::string& case_name, const Parameters& parameters,
         const kernels::Work& work, const Prepare& prepare);

// Of the family that this program measures.
void register_benchmarks();

}  // namespace vesal::bench
