// The shape of a kernel launch, spelled the same for both back ends:
//   launch(ctx.stream(), {.grid = {blocks, channels}, .block = 256, .shared_bytes = bytes}, kernel,
//   arguments...);
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "base/error.hpp"

namespace vesal::kernels {

// Extents along x, y, z. Any integer type converts; launch() checks the range, so no caller needs a cast.
struct Dim3 {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;

  constexpr Dim3() = default;
  template <std::integral X, std::integral Y = int, std::integral Z = int>
  constexpr Dim3(X x_, Y y_ = 1, Z z_ = 1)
      : x(static_cast<int64_t>(x_)), y(static_cast<int64_t>(y_)), z(static_cast<int64_t>(z_)) {}
};

// A number of bytes from any integer type.
struct ByteCount {
  int64_t value = 0;

  constexpr ByteCount() = default;
  template <std::integral T>
  constexpr ByteCount(T value_) : value(static_cast<int64_t>(value_)) {}
};

struct LaunchConfig {
  Dim3 grid{};
  Dim3 block{};
  // Dynamic shared memory (VESAL_DYN_SHARED) of each block.
  ByteCount shared_bytes{};
  // For messages: a name if the caller gives one; where the launch stands is filled in by itself.
  const char* name = "";
  const char* function = __builtin_FUNCTION();
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

// "conv_tile, launched by conv3d_forward (conv3d.cu:210)": how a launch is named in errors.
inline std::string describe(const LaunchConfig& config) {
  const std::string path = config.file;
  return concat(*config.name != '\0' ? config.name : "kernel", " launched by ", config.function, " (",
                path.substr(path.find_last_of('/') + 1), ":", config.line, ")");
}

// True if the launch has no block to run: a no-op on every device.
constexpr bool is_empty(const LaunchConfig& config) {
  return config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0;
}

// The limit of CUDA that the launch breaks (compute capability 8.0 to 9.0), or null.
constexpr const char* broken_launch_limit(const LaunchConfig& config) {
  const Dim3& grid = config.grid;
  const Dim3& block = config.block;
  if (grid.x < 0 || grid.y < 0 || grid.z < 0 || config.shared_bytes.value < 0) {
    return "a negative size";
  }
  if (grid.x > 0x7fffffff) {
    return "grid.x passes 2^31 - 1";
  }
  if (grid.y > 65535 || grid.z > 65535) {
    return "grid.y or grid.z passes 65535";
  }
  if (block.x < 1 || block.y < 1 || block.z < 1) {
    return "a block extent below 1";
  }
  if (block.x > 1024 || block.y > 1024 || block.x * block.y * block.z > 1024) {
    return "a block of more than 1024 threads";
  }
  if (block.z > 64) {
    return "block.z passes 64";
  }
  return nullptr;
}

// "grid 4 x 1 x 1, block 2048 x 1 x 1, 0 bytes of dynamic shared memory".
inline std::string sizes(const LaunchConfig& config) {
  return concat("grid ", config.grid.x, " x ", config.grid.y, " x ", config.grid.z, ", block ",
                config.block.x, " x ", config.block.y, " x ", config.block.z, ", ", config.shared_bytes.value,
                " bytes of dynamic shared memory");
}

// CUDA's limit on the size of a kernel's arguments.
inline constexpr size_t kMaxArgumentBytes = 4096;

// The argument as the kernel's parameter type, converted as in an ordinary call.
template <class T>
T as_parameter(std::type_identity_t<T> value) {
  return value;
}

}  // namespace vesal::kernels
