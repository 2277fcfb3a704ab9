// How long axes are cut for reductions over rows: into slabs whose number depends on the row count only,
// never on threads or the device, so that partial sums per slab, added in slab order, have the same bits
// whoever computes them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/host_device.hpp"
#include "base/size.hpp"

namespace vesal::kernels {

inline constexpr int64_t kSlabRows = 256;  // a slab holds about this many rows while there are few slabs
inline constexpr int64_t kMaxSlabs = 512;

// At least 1; for no rows one empty slab.
inline int64_t slab_count(int64_t rows) {
  return std::clamp<int64_t>(ceil_div(rows, kSlabRows), 1, kMaxSlabs);
}
// First row of a slab; slab_begin(rows, slabs, slabs) is rows.
VESAL_HOST_DEVICE inline int64_t slab_begin(int64_t rows, int64_t slabs, int64_t slab) {
  return rows * slab / slabs;
}

// Workspace for `sums` sums per sample, slab and channel, as double (CPU) or float (kernels).
inline size_t column_partials_bytes(int64_t n, int64_t rows, int64_t channels, int64_t sums) {
  return static_cast<size_t>(
      checked_mul(checked_mul(n * slab_count(rows), sums), checked_mul(channels, sizeof(double))));
}

}  // namespace vesal::kernels
