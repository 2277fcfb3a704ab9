// Where memory lives and kernels run.
#pragma once

#include <string>
#include <string_view>

namespace vesal {

// simt executes the CUDA kernels' source on the host, thread by thread (kernels/simt/).
enum class DeviceType { cpu, cuda, simt };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

// "cpu", "cuda", "cuda:1", "simt".
std::string to_string(Device device);
// The inverse of to_string; throws UsageError for anything else.
Device parse_device(std::string_view name);

// A queue of work on a device: a cudaStream_t on cuda, null (the calling thread) on cpu and simt.
struct StreamHandle {
  void* native = nullptr;
};

}  // namespace vesal
