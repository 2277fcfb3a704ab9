#include "runtime/device_api.hpp"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "base/error.hpp"
#include "base/parallel.hpp"
#include "kernels/simt/memory.hpp"

#if VESAL_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace vesal::device_api {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kAlignment = 256;

#if VESAL_WITH_CUDA
void cuda_check(cudaError_t status, const char* what) {
  check<DeviceError>(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();  // no driver or no GPU: not an error until one is asked for
    return 0;
  }
  return count;
}

void select(Device device) { cuda_check(cudaSetDevice(device.index), "cudaSetDevice"); }

cudaStream_t native(StreamHandle stream) { return static_cast<cudaStream_t>(stream.native); }
#endif

[[noreturn, maybe_unused]] void no_cuda() {
  throw DeviceError("device cuda: this build of vesal has no CUDA backend; build it where a CUDA toolkit is installed");
}

enum class Direction { to_device, to_host, on_device };

void copy(Device device, StreamHandle stream, void* target, const void* source, size_t bytes, Direction direction) {
  if (bytes == 0) {
    return;
  }
  if (device.type != DeviceType::cuda) {
    std::memcpy(target, source, bytes);
    return;
  }
#if VESAL_WITH_CUDA
  const cudaMemcpyKind kind = direction == Direction::to_device ? cudaMemcpyHostToDevice
                              : direction == Direction::to_host ? cudaMemcpyDeviceToHost
                                                                : cudaMemcpyDeviceToDevice;
  cuda_check(cudaMemcpyAsync(target, source, bytes, kind, native(stream)), "copying to, from or on the GPU");
#else
  (void)stream;
  (void)direction;
  no_cuda();
#endif
}

}  // namespace

void* allocate(Device device, size_t bytes) {
  const size_t wanted = bytes == 0 ? 1 : bytes;
  if (device.type == DeviceType::simt) {
    return kernels::simt::allocate(wanted);
  }
  if (device.type == DeviceType::cpu) {
    void* pointer = std::aligned_alloc(kAlignment, (wanted + kAlignment - 1) / kAlignment * kAlignment);
    check<DeviceError>(pointer != nullptr, "cpu: no memory for a block of ", bytes, " bytes");
    return pointer;
  }
#if VESAL_WITH_CUDA
  select(device);
  void* pointer = nullptr;
  const cudaError_t status = cudaMalloc(&pointer, wanted);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    throw DeviceError(concat(to_string(device), ": no memory for a block of ", bytes, " bytes (",
                             cudaGetErrorString(status), ")"));
  }
  return pointer;
#else
  no_cuda();
#endif
}

void deallocate(Device device, void* pointer) noexcept {
  if (device.type == DeviceType::simt) {
    kernels::simt::deallocate(pointer);
  } else if (device.type == DeviceType::cpu) {
    std::free(pointer);
  } else {
#if VESAL_WITH_CUDA
    (void)cudaFree(pointer);  // at process end the driver may be gone already
#endif
  }
}

void copy_to_device(Device device, StreamHandle stream, void* target, const void* source, size_t bytes) {
  copy(device, stream, target, source, bytes, Direction::to_device);
}

void copy_to_host(Device device, StreamHandle stream, void* target, const void* source, size_t bytes) {
  copy(device, stream, target, source, bytes, Direction::to_host);
}

void copy_on_device(Device device, StreamHandle stream, void* target, const void* source, size_t bytes) {
  copy(device, stream, target, source, bytes, Direction::on_device);
}

void set_bytes(Device device, StreamHandle stream, void* target, unsigned char value, size_t bytes) {
  if (bytes == 0) {
    return;
  }
  if (device.type != DeviceType::cuda) {
    std::memset(target, value, bytes);
    return;
  }
#if VESAL_WITH_CUDA
  cuda_check(cudaMemsetAsync(target, value, bytes, native(stream)), "fill on the GPU");
#else
  (void)stream;
  no_cuda();
#endif
}

StreamHandle create_stream(Device device) {
  if (device.type != DeviceType::cuda) {
    return {};
  }
#if VESAL_WITH_CUDA
  select(device);
  cudaStream_t stream = nullptr;
  cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  return {stream};
#else
  no_cuda();
#endif
}

void destroy_stream(Device device, StreamHandle stream) noexcept {
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    (void)cudaStreamDestroy(native(stream));
  }
#else
  (void)device;
  (void)stream;
#endif
}

void synchronize(Device device, StreamHandle stream) {
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    cuda_check(cudaStreamSynchronize(native(stream)), "waiting for the GPU");
  }
#else
  (void)device;
  (void)stream;
#endif
}

void* create_event(Device device) {
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    select(device);
    cudaEvent_t event = nullptr;
    cuda_check(cudaEventCreate(&event), "creating an event");
    return event;
  }
#else
  (void)device;
#endif
  return new Clock::time_point();
}

void destroy_event(Device device, void* event) noexcept {
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    (void)cudaEventDestroy(static_cast<cudaEvent_t>(event));
    return;
  }
#else
  (void)device;
#endif
  delete static_cast<Clock::time_point*>(event);
}

void record_event(Device device, void* event, StreamHandle stream) {
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    cuda_check(cudaEventRecord(static_cast<cudaEvent_t>(event), native(stream)), "recording an event");
    return;
  }
#else
  (void)device;
  (void)stream;
#endif
  *static_cast<Clock::time_point*>(event) = Clock::now();
}

void wait_event(Device device, void* event, StreamHandle stream) {
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    cuda_check(cudaStreamWaitEvent(native(stream), static_cast<cudaEvent_t>(event), 0), "waiting for an event");
  }
#else
  (void)device;
  (void)event;
  (void)stream;
#endif
}

double elapsed_ms(Device device, void* start, void* end) {
#if VESAL_WITH_CUDA
  if (device.type == DeviceType::cuda) {
    cuda_check(cudaEventSynchronize(static_cast<cudaEvent_t>(end)), "waiting for an event");
    float ms = 0;
    cuda_check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(start), static_cast<cudaEvent_t>(end)),
               "timing with events");
    return ms;
  }
#else
  (void)device;
#endif
  return std::chrono::duration<double, std::milli>(*static_cast<Clock::time_point*>(end) -
                                                   *static_cast<Clock::time_point*>(start))
      .count();
}

void require(Device device) {
  if (device.type != DeviceType::cuda) {
    return;
  }
#if VESAL_WITH_CUDA
  const int count = cuda_device_count();
  check<DeviceError>(count > 0, "device cuda: no NVIDIA GPU or driver was found; use --device cpu");
  check<DeviceError>(device.index < count, "device ", to_string(device), ": this machine has ", count,
                     " GPU(s), numbered from 0");
#else
  no_cuda();
#endif
}

std::vector<Device> present_devices() {
  std::vector<Device> devices{{DeviceType::cpu, 0}};
#if VESAL_WITH_CUDA
  for (int i = 0; i < cuda_device_count(); ++i) {
    devices.push_back({DeviceType::cuda, i});
  }
#endif
  devices.push_back({DeviceType::simt, 0});
  return devices;
}

std::string describe(Device device) {
  if (device.type == DeviceType::simt) {
    return "CUDA kernels executed on the host, thread by thread (for tests)";
  }
  if (device.type == DeviceType::cpu) {
    std::ifstream cpuinfo("/proc/cpuinfo");
    std::string line;
    std::string name = "unknown processor";
    while (std::getline(cpuinfo, line)) {
      if (line.starts_with("model name")) {
        name = line.substr(line.find(':') + 2);
        break;
      }
    }
    return concat(name, ", ", available_threads(), " threads");
  }
#if VESAL_WITH_CUDA
  require(device);
  cudaDeviceProp properties{};
  cuda_check(cudaGetDeviceProperties(&properties, device.index), "reading the GPU's properties");
  int driver = 0;
  cuda_check(cudaDriverGetVersion(&driver), "reading the driver's version");
  return concat(properties.name, ", compute capability ", properties.major, ".", properties.minor, ", ",
                properties.totalGlobalMem >> 20, " MiB, driver for CUDA ", driver / 1000, ".", driver % 1000 / 10);
#else
  no_cuda();
#endif
}

}  // namespace vesal::device_api
