// AddressSanitizer's hooks, empty in builds without it, and the poison pattern.
#pragma once

#include <cstddef>
#include <cstring>

#include "kernels/simt/memory.hpp"

#if defined(__SANITIZE_ADDRESS__)
#define VESAL_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define VESAL_SIMT_ASAN 1
#endif
#endif
#ifndef VESAL_SIMT_ASAN
#define VESAL_SIMT_ASAN 0
#endif

#if VESAL_SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define VESAL_SIMT_NO_ASAN __attribute__((no_sanitize_address, noinline))
#else
#define VESAL_SIMT_NO_ASAN
#endif

namespace vesal::kernels::simt {

inline void asan_poison([[maybe_unused]] void* start, [[maybe_unused]] size_t bytes) {
#if VESAL_SIMT_ASAN
  ASAN_POISON_MEMORY_REGION(start, bytes);
#endif
}

inline void asan_unpoison([[maybe_unused]] void* start, [[maybe_unused]] size_t bytes) {
#if VESAL_SIMT_ASAN
  ASAN_UNPOISON_MEMORY_REGION(start, bytes);
#endif
}

// Fills with kPoison; a tail shorter than a word gets the pattern's first bytes.
inline void poison_fill(void* start, size_t bytes) {
  auto* out = static_cast<unsigned char*>(start);
  size_t done = 0;
  for (; done + sizeof(kPoison) <= bytes; done += sizeof(kPoison)) {
    std::memcpy(out + done, &kPoison, sizeof(kPoison));
  }
  std::memcpy(out + done, &kPoison, bytes - done);
}

}  // namespace vesal::kernels::simt
