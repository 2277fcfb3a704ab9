// Elements that lie in a file with strides, gathered into contiguous row-major memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "runtime/tensor.hpp"
#include "weights_tools/file_source.hpp"

namespace vesal::weights {

// The most bytes that an expanded tensor (stride 0) may take in memory, or its whole storage where that is
// larger.
constexpr uint64_t kMaxExpandedBytes = 64u << 20;
constexpr size_t kMaxStoredRank = 8;

// Why a view cannot be read from a storage of `elements` elements of `element_bytes` bytes; "" when it can.
// Asked for are: a rank of kMaxStoredRank at most, one stride for every extent, no negative number, every
// element within the storage, and no element in two places of the tensor except by a stride of 0. All
// products are checked with 128 bits.
std::string view_problem(std::span<const int64_t> shape, std::span<const int64_t> strides, int64_t offset,
                         uint64_t elements, uint64_t element_bytes);

// Fills `target` from the view whose first element is at byte `offset` of the file. Strides are counted in
// elements and have passed view_problem. Every byte of the file is read at most once, through a window of 1
// MiB where the view is not contiguous.
void read_strided(const FileSource& file, uint64_t offset, uint64_t element_bytes, const Shape& shape,
                  const Shape& strides, std::span<std::byte> target);

}  // namespace vesal::weights
