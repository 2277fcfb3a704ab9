// The few things that every device must do beside running kernels: memory, copies, queues. The only file of the runtime
// that knows CUDA's API. On simt, memory comes from the emulator, each block guarded; on cpu and simt every call is done
// when it returns.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/device.hpp"

namespace vesal::device_api {

// Bytes are aligned to 256. Throws DeviceError, naming size and device, when there is not enough memory.
void* allocate(Device device, size_t bytes);
void deallocate(Device device, void* pointer) noexcept;

// Copies in stream order. Host memory must stay valid until the stream is synchronised.
void copy_to_device(Device device, StreamHandle stream, void* target, const void* source, size_t bytes);
void copy_to_host(Device device, StreamHandle stream, void* target, const void* source, size_t bytes);
void copy_on_device(Device device, StreamHandle stream, void* target, const void* source, size_t bytes);
void set_bytes(Device device, StreamHandle stream, void* target, unsigned char value, size_t bytes);

StreamHandle create_stream(Device device);
void destroy_stream(Device device, StreamHandle stream) noexcept;
// Waits for the stream and reports errors of earlier kernels as DeviceError.
void synchronize(Device device, StreamHandle stream);

void* create_event(Device device);
void destroy_event(Device device, void* event) noexcept;
void record_event(Device device, void* event, StreamHandle stream);
void wait_event(Device device, void* event, StreamHandle stream);
// Milliseconds between two recorded events, waiting for the second.
double elapsed_ms(Device device, void* start, void* end);

// Throws DeviceError with one line of advice unless the device exists in this build and on this machine.
void require(Device device);
// Devices that exist here: cpu, every GPU that this build can use, simt.
std::vector<Device> present_devices();
// A line for people: processor or GPU name, memory, driver.
std::string describe(Device device);

}  // namespace vesal::device_api
