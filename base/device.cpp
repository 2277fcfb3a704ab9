#include "base/device.hpp"

#include <charconv>

#include "base/error.hpp"

namespace vesal {

std::string to_string(Device device) {
  switch (device.type) {
    case DeviceType::cpu:
      return "cpu";
    case DeviceType::simt:
      return "simt";
    case DeviceType::cuda:
      return device.index == 0 ? "cuda" : concat("cuda:", device.index);
  }
  return "?";
}

Device parse_device(std::string_view name) {
  if (name == "cpu") {
    return {DeviceType::cpu, 0};
  }
  if (name == "simt") {
    return {DeviceType::simt, 0};
  }
  if (name == "cuda") {
    return {DeviceType::cuda, 0};
  }
  constexpr std::string_view prefix = "cuda:";
  if (name.starts_with(prefix)) {
    int index = 0;
    const char* first = name.data() + prefix.size();
    const char* last = name.data() + name.size();
    const auto [end, error] = std::from_chars(first, last, index);
    if (error == std::errc() && end == last && index >= 0) {
      return {DeviceType::cuda, index};
    }
  }
  throw UsageError(concat("device \"", name, "\": expected cpu, cuda, cuda:N or simt"));
}

}  // namespace vesal
