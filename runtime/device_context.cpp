#include "runtime/device_context.hpp"

#include "runtime/device_api.hpp"

namespace vesal {

Stream::Stream(Device device) : device_(device), handle_(device_api::create_stream(device)) {}
Stream::~Stream() { device_api::destroy_stream(device_, handle_); }
void Stream::synchronize() const { device_api::synchronize(device_, handle_); }

Event::Event(Device device) : device_(device), native_(device_api::create_event(device)) {}
Event::~Event() { device_api::destroy_event(device_, native_); }
void Event::record(const Stream& stream) { device_api::record_event(device_, native_, stream.handle()); }
void Event::make_wait(const Stream& stream) const { device_api::wait_event(device_, native_, stream.handle()); }
double Event::milliseconds_since(const Event& start) const {
  return device_api::elapsed_ms(device_, start.native_, native_);
}

namespace {
Device required(Device device) {
  device_api::require(device);
  return device;
}
}  // namespace

DeviceContext::DeviceContext(Device device)
    : device_(required(device)),
      stream_(device),
      allocator_(std::make_shared<Allocator>(device)),
      kernels_(device, stream_.handle()) {}

Scratch DeviceContext::scratch(size_t bytes) {
  if (bytes == 0) {
    return {nullptr, 0};
  }
  const AllocationTag tag("workspace");
  return {allocator_->allocate(bytes), bytes};
}

}  // namespace vesal
