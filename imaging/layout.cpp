#include "imaging/layout.hpp"

#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/parallel.hpp"

namespace vesal::imaging {
namespace {

// The canonical axis that a letter names, and whether it names its negative end.
std::optional<std::pair<int, bool>> axis_of(char letter) {
  constexpr std::string_view positive = "RAS";
  constexpr std::string_view negative = "LPI";
  if (const size_t found = positive.find(letter); found != std::string_view::npos) {
    return std::pair(static_cast<int>(found), false);
  }
  if (const size_t found = negative.find(letter); found != std::string_view::npos) {
    return std::pair(static_cast<int>(found), true);
  }
  return std::nullopt;
}

// Calls body(index here, index there) for every voxel: `here` in the layout's order, `there` in the canonical
// one.
template <class Body>
void for_each_voxel(Size3 canonical, const Layout& layout, const Body& body) {
  Size3 n;
  std::array<int64_t, 3> steps{};
  const std::array<int64_t, 3> strides{1, canonical.x, canonical.x * canonical.y};
  int64_t origin = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const auto a = static_cast<size_t>(axis);
    n[axis] = canonical[layout.axis[a]];
    steps[a] = strides[static_cast<size_t>(layout.axis[a])];
    if (layout.flipped[a]) {
      origin += steps[a] * (n[axis] - 1);
      steps[a] = -steps[a];
    }
  }
  parallel_for(n.z, 1, [&](int64_t begin, int64_t end) {
    for (int64_t z = begin; z < end; ++z) {
      for (int64_t y = 0; y < n.y; ++y) {
        int64_t here = (z * n.y + y) * n.x;
        int64_t there = origin + z * steps[2] + y * steps[1];
        for (int64_t x = 0; x < n.x; ++x) {
          body(static_cast<size_t>(here++), static_cast<size_t>(there));
          there += steps[0];
        }
      }
    }
  });
}

Geometry geometry_in(const Geometry& canonical, const Layout& layout) {
  Geometry geometry;
  Affine affine = canonical.affine;
  for (int axis = 0; axis < 3; ++axis) {
    const auto a = static_cast<size_t>(axis);
    const int from = layout.axis[a];
    geometry.size[axis] = canonical.size[from];
    geometry.spacing_mm[axis] = canonical.spacing_mm[from];
    for (size_t row = 0; row < 3; ++row) {
      const double column = canonical.affine[row][static_cast<size_t>(from)];
      affine[row][a] = layout.flipped[a] ? -column : column;
      affine[row][3] += layout.flipped[a] ? column * static_cast<double>(canonical.size[from] - 1) : 0.0;
    }
  }
  geometry.affine = affine;
  return geometry;
}

}  // namespace

void check_rule(const LayoutRule& rule) {
  check<UsageError>(rule.axes == "kji" || rule.axes == "ijk", "axes: found ", rule.axes,
                    ", expected kji or ijk");
  std::array<bool, 3> seen{};
  bool good = rule.orientation.size() == 3;
  for (const char letter : rule.orientation) {
    const auto axis = axis_of(letter);
    good = good && axis && !seen[static_cast<size_t>(axis->first)];
    if (axis) {
      seen[static_cast<size_t>(axis->first)] = true;
    }
  }
  check<UsageError>(good || rule.orientation == "stored", "orientation: found ", rule.orientation,
                    ", expected stored or three of the letters R or L, A or P, S or I, such as RAS");
}

Layout layout_for(const LayoutRule& rule, const NiftiHeader& header) {
  check_rule(rule);
  Layout ijk;
  if (rule.orientation == "stored") {
    ijk = {header.axis, header.flipped};
  } else {
    for (size_t i = 0; i < 3; ++i) {
      std::tie(ijk.axis[i], ijk.flipped[i]) = *axis_of(rule.orientation[i]);
    }
  }
  return {from_ijk(rule, ijk.axis), from_ijk(rule, ijk.flipped)};
}

template <class T>
Volume<T> to_layout(const Volume<T>& canonical, const Layout& layout) {
  Volume<T> out(geometry_in(canonical.geometry, layout));
  for_each_voxel(canonical.size(), layout,
                 [&](size_t here, size_t there) { out.data[here] = canonical.data[there]; });
  return out;
}

template <class T>
Volume<T> from_layout(const Volume<T>& volume, const Layout& layout, const Geometry& canonical) {
  for (int axis = 0; axis < 3; ++axis) {
    check<ShapeError>(volume.size()[axis] == canonical.size[layout.axis[static_cast<size_t>(axis)]],
                      "from_layout: a volume of ", to_string(volume.size()), " for a grid of ",
                      to_string(canonical.size));
  }
  Volume<T> out(canonical);
  for_each_voxel(canonical.size, layout,
                 [&](size_t here, size_t there) { out.data[there] = volume.data[here]; });
  return out;
}

template Image to_layout(const Image&, const Layout&);
template LabelMap to_layout(const LabelMap&, const Layout&);
template Image from_layout(const Image&, const Layout&, const Geometry&);
template LabelMap from_layout(const LabelMap&, const Layout&, const Geometry&);

}  // namespace vesal::imaging
