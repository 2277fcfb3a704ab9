// SHA-256 (FIPS 180-4), so that a report can say exactly which weights a result came from.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace vesal {

class Sha256 {
 public:
  void update(const void* bytes, size_t count);
  // 64 hexadecimal digits; ends the computation.
  std::string finish();

 private:
  void block(const uint8_t* bytes);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> buffer_{};
  size_t filled_ = 0;
  uint64_t total_ = 0;
};

// Of a whole file. Throws IoError.
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace vesal
