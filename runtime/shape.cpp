// Shapes as text: see tensor.hpp. Apart from tensor.cpp, so that what reads files links without a device.
#include "runtime/tensor.hpp"

namespace vesal {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace vesal
