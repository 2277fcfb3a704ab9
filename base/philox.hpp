// Philox4x32-10, the counter-based random generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (SC 2011). The same (key, counter) gives the same four words on every device and in any order of evaluation,
// which is what makes dropout and augmentation independent of threads and of resuming.
#pragma once

#include <cstdint>

#include "base/host_device.hpp"

namespace vesal {

struct Philox4 {
  uint32_t x, y, z, w;
};

// One block of four random words for a 64-bit key and a 128-bit counter (low, high).
VESAL_HOST_DEVICE inline Philox4 philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  Philox4 c{static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
            static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c.x;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c.z;
    c = {static_cast<uint32_t>(p1 >> 32) ^ c.y ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c.w ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// A uniform number in (0, 1], never 0 (safe for a logarithm), from one word.
VESAL_HOST_DEVICE inline float uniform_from_bits(uint32_t bits) {
  return (static_cast<float>(bits >> 8) + 1.0f) * 0x1p-24f;
}

// A sequence of random numbers for one purpose: keyed by seed, step and op, so that what one op draws never depends
// on how much another drew. Not thread-safe; make one per use.
class RandomStream {
 public:
  RandomStream(uint64_t seed, uint64_t step, uint64_t op) : key_(seed), step_(step), op_(op) {}

  uint32_t next_bits();
  // Uniform in (0, 1].
  float uniform() { return uniform_from_bits(next_bits()); }
  // Uniform in [low, high).
  float uniform(float low, float high);
  // Standard normal (Box-Muller).
  float normal();
  // Uniform integer in [0, n), n > 0.
  int64_t below(int64_t n);
  bool bernoulli(float probability) { return uniform() <= probability; }

 private:
  uint64_t key_;
  uint64_t step_;
  uint64_t op_;
  uint32_t block_ = 0;
  int used_ = 4;
  uint32_t words_[4] = {};
  bool has_spare_normal_ = false;
  float spare_normal_ = 0.0f;
};

}  // namespace vesal
