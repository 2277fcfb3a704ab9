#include "base/philox.hpp"

#include <cmath>
#include <numbers>

namespace vesal {

uint32_t RandomStream::next_bits() {
  if (used_ == 4) {
    // 96 bits of counter name the stream (step: 64, op: 32), 32 count blocks within it.
    const Philox4 block = philox(key_, step_, (op_ << 32) | block_);
    words_[0] = block.x;
    words_[1] = block.y;
    words_[2] = block.z;
    words_[3] = block.w;
    ++block_;
    used_ = 0;
  }
  return words_[used_++];
}

float RandomStream::uniform(float low, float high) {
  return low + (high - low) * (1.0f - uniform());
}

float RandomStream::normal() {
  if (has_spare_normal_) {
    has_spare_normal_ = false;
    return spare_normal_;
  }
  const float radius = std::sqrt(-2.0f * std::log(uniform()));
  const float angle = 2.0f * std::numbers::pi_v<float> * uniform();
  spare_normal_ = radius * std::sin(angle);
  has_spare_normal_ = true;
  return radius * std::cos(angle);
}

int64_t RandomStream::below(int64_t n) {
  const uint64_t high = next_bits();
  const uint64_t low = next_bits();
  const auto wide = static_cast<unsigned __int128>((high << 32) | low) * static_cast<uint64_t>(n);
  return static_cast<int64_t>(wide >> 64);
}

}  // namespace vesal
