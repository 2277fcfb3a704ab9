// A target as libFuzzer calls it.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tests/fuzz/fuzz.hpp"

extern "C" {

size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  vesal::fuzz::refusal_of({reinterpret_cast<const char*>(data), size});
  return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  vesal::RandomStream random(seed, 0, 0);
  vesal::fuzz::mutate(bytes, random, [most](std::string& part) {
    std::string room = part;
    room.resize(std::max(most, part.size()) + 1);
    room.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(room.data()), part.size(), room.size()));
    part = room;
  });
  size = std::min(bytes.size(), most);
  std::memcpy(data, bytes.data(), size);
  return size;
}
}
