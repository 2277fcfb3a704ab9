// Axes sorted by stride, so that the file is read from front to back: see strided_read.hpp.
#include "weights_tools/strided_read.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.hpp"

namespace vesal::weights {
namespace {

__extension__ using Int128 = __int128;

constexpr uint64_t kWindowBytes = 1u << 20;

struct Axis {
  uint64_t extent = 1;
  uint64_t source_step = 0;  // bytes
  uint64_t target_step = 0;  // bytes
};

// A part of the file, moved forward as later bytes are asked for.
class Window {
 public:
  Window(const FileSource& file, uint64_t end) : file_(file), end_(end) {}

  // `count` bytes at `offset`; count <= kWindowBytes.
  const std::byte* at(uint64_t offset, uint64_t count) {
    if (offset < start_ || offset + count > start_ + bytes_.size()) {
      start_ = offset;
      bytes_.resize(std::min(kWindowBytes, end_ - offset));
      file_.read(start_, bytes_);
    }
    return bytes_.data() + (offset - start_);
  }

 private:
  const FileSource& file_;
  uint64_t end_;
  uint64_t start_ = 0;
  std::vector<std::byte> bytes_;
};

// Axes of more than one element, the largest stride first; neighbours that are one axis in the file and in
// memory are merged.
std::vector<Axis> sorted_axes(const Shape& shape, const Shape& strides, uint64_t element_bytes) {
  std::vector<Axis> axes;
  uint64_t target_step = element_bytes;
  for (size_t i = shape.size(); i-- > 0;) {
    const auto extent = static_cast<uint64_t>(shape[i]);
    if (extent > 1) {
      axes.push_back({extent, static_cast<uint64_t>(strides[i]) * element_bytes, target_step});
    }
    target_step *= extent;
  }
  std::stable_sort(axes.begin(), axes.end(),
                   [](const Axis& a, const Axis& b) { return a.source_step < b.source_step; });
  std::vector<Axis> merged;
  for (const Axis& axis : axes) {
    if (!merged.empty() && merged.back().source_step * merged.back().extent == axis.source_step &&
        merged.back().target_step * merged.back().extent == axis.target_step) {
      merged.back().extent *= axis.extent;
    } else {
      merged.push_back(axis);
    }
  }
  std::reverse(merged.begin(), merged.end());
  return merged;
}

}  // namespace

std::string view_problem(std::span<const int64_t> shape, std::span<const int64_t> strides, int64_t offset,
                         uint64_t elements, uint64_t element_bytes) {
  if (shape.size() > kMaxStoredRank) {
    return concat("rank ", shape.size(), ", expected at most ", kMaxStoredRank);
  }
  if (strides.size() != shape.size()) {
    return concat(strides.size(), " strides for rank ", shape.size());
  }
  if (offset < 0) {
    return concat("storage offset ", offset, ", expected no negative number");
  }
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  // Factors are below 2^63 and are checked one by one, so that no product passes 2^126.
  Int128 bytes = static_cast<Int128>(element_bytes);
  Int128 last = offset;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 0 || strides[i] < 0) {
      return concat("axis ", i, " of extent ", shape[i], " with stride ", strides[i],
                    ", expected no negative number");
    }
    bytes *= std::max<int64_t>(shape[i], 1);
    if (bytes > INT64_MAX) {
      return "its size passes 2^63 bytes";
    }
    last += empty ? 0 : static_cast<Int128>(shape[i] - 1) * strides[i];
    if (last > INT64_MAX) {
      return concat("reaches past element 2^63, the storage holds ", elements);
    }
  }
  if (empty) {
    return static_cast<uint64_t>(offset) <= elements
               ? ""
               : concat("starts at element ", offset, ", the storage holds ", elements);
  }
  if (last >= static_cast<Int128>(elements)) {
    return concat("reaches element ", static_cast<int64_t>(last), ", the storage holds ", elements);
  }
  // An axis may not step into what the axes with smaller strides cover.
  std::vector<std::pair<int64_t, int64_t>> axes;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] > 1 && strides[i] > 0) {
      axes.emplace_back(strides[i], shape[i]);
    }
  }
  std::sort(axes.begin(), axes.end());
  Int128 covered = 1;
  for (const auto& [stride, extent] : axes) {
    if (stride < covered) {
      return concat("its elements overlap: stride ", stride, " steps into ", static_cast<int64_t>(covered),
                    " elements that are taken");
    }
    covered += static_cast<Int128>(extent - 1) * stride;
  }
  const uint64_t most = std::max(kMaxExpandedBytes, elements * element_bytes);
  if (static_cast<uint64_t>(bytes) > most) {
    return concat("expands to ", static_cast<uint64_t>(bytes), " bytes, expected at most ", most);
  }
  return "";
}

void read_strided(const FileSource& file, uint64_t offset, uint64_t element_bytes, const Shape& shape,
                  const Shape& strides, std::span<std::byte> target) {
  if (target.empty()) {
    return;
  }
  std::vector<Axis> axes = sorted_axes(shape, strides, element_bytes);
  // The innermost run of elements that lie side by side in the file and in memory.
  uint64_t run = element_bytes;
  if (!axes.empty() && axes.back().source_step == element_bytes && axes.back().target_step == element_bytes) {
    run *= axes.back().extent;
    axes.pop_back();
  }
  if (axes.empty()) {
    file.read(offset, target.first(run));
    return;
  }
  uint64_t end = offset + run;
  for (const Axis& axis : axes) {
    end += (axis.extent - 1) * axis.source_step;
  }
  Window window(file, end);
  std::vector<uint64_t> index(axes.size(), 0);
  uint64_t source = offset;
  std::byte* next = target.data();
  while (true) {
    if (run > kWindowBytes) {
      file.read(source, {next, run});
    } else {
      std::memcpy(next, window.at(source, run), run);
    }
    size_t axis = axes.size();
    while (axis-- > 0) {
      if (++index[axis] < axes[axis].extent) {
        source += axes[axis].source_step;
        next += axes[axis].target_step;
        break;
      }
      index[axis] = 0;
      source -= (axes[axis].extent - 1) * axes[axis].source_step;
      next -= (axes[axis].extent - 1) * axes[axis].target_step;
      if (axis == 0) {
        return;
      }
    }
  }
}

}  // namespace vesal::weights
