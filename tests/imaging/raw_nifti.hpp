// NIfTI-1 files byte by byte, from the standard's table of offsets, so that reader and writer do not vouch for
// each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace vesal::imaging {

// A NIfTI-1 file, field by field.
struct RawNifti {
  std::vector<char> bytes = std::vector<char>(352, 0);

  RawNifti() {
    put<int32_t>(0, 348);
    put<int16_t>(40, 3);
    for (int i = 1; i < 8; ++i) {
      put<int16_t>(40 + 2 * i, 1);
      put<float>(76 + 4 * i, 1.0f);
    }
    put<float>(76, 1.0f);
    put<float>(108, 352.0f);
    put<char>(123, 2);  // mm
    std::memcpy(bytes.data() + 344, "n+1", 4);
  }
  template <class T>
  void put(int offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof(T));
  }
  void dims(std::vector<int> extents) {
    put<int16_t>(40, static_cast<int16_t>(extents.size()));
    for (size_t i = 0; i < extents.size(); ++i) {
      put<int16_t>(static_cast<int>(42 + 2 * i), static_cast<int16_t>(extents[i]));
    }
  }
  void type(int code, int bits) {
    put<int16_t>(70, static_cast<int16_t>(code));
    put<int16_t>(72, static_cast<int16_t>(bits));
  }
  void sform(const std::vector<float>& rows, int code = 1) {
    put<int16_t>(254, static_cast<int16_t>(code));
    std::memcpy(bytes.data() + 280, rows.data(), 48);
  }
  template <class T>
  void voxels(const std::vector<T>& values) {
    const char* first = reinterpret_cast<const char*>(values.data());
    bytes.insert(bytes.end(), first, first + values.size() * sizeof(T));
  }
};

// A 2 x 3 x 4 float file with values 0..23.
inline RawNifti small_file() {
  RawNifti raw;
  raw.dims({2, 3, 4});
  raw.type(16, 32);
  std::vector<float> values(24);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i);
  }
  raw.voxels(values);
  return raw;
}

}  // namespace vesal::imaging
