// How the volume that a network sees lies against the canonical axes (volume.hpp). Most networks see volumes
// as they are here: x to the right, y to anterior, z to superior, [D, H, W] = [z][y][x]. Others were trained
// on arrays as nibabel gives them, [i][j][k] in the orientation of the file, and see nothing they know in any
// other order.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "imaging/nifti.hpp"
#include "imaging/volume.hpp"

namespace vesal::imaging {

// Of a volume's own x, y and z (W, H and D): which canonical axis it runs along, and whether against it.
struct Layout {
  std::array<int, 3> axis{0, 1, 2};
  std::array<bool, 3> flipped{};

  friend bool operator==(const Layout&, const Layout&) = default;
};

// What weights say: `orientation` is three letters, where i, j and k run to ("RAS": to the right, anterior,
// superior), or "stored": as in the input's file. `axes` is "kji" where [D, H, W] = [k][j][i], as in a NIfTI
// file, or "ijk" where it is [i][j][k].
struct LayoutRule {
  std::string orientation = "RAS";
  std::string axes = "kji";
};
// Throws UsageError for anything else, and for letters that do not name three different axes.
void check_rule(const LayoutRule& rule);
// The layout for an input; only "stored" asks for its header.
Layout layout_for(const LayoutRule& rule, const NiftiHeader& header);

// A triple that belongs to i, j, k (patch, spacing, mirrored axes) in the layout's own X Y Z.
template <class Triple>
Triple from_ijk(const LayoutRule& rule, const Triple& ijk) {
  Triple xyz = ijk;
  if (rule.axes == "ijk") {
    xyz[0] = ijk[2];
    xyz[2] = ijk[0];
  }
  return xyz;
}

// The same voxels in the other order; the result's geometry has the affine of its own axes.
template <class T>
Volume<T> to_layout(const Volume<T>& canonical, const Layout& layout);
extern template Image to_layout(const Image&, const Layout&);
extern template LabelMap to_layout(const LabelMap&, const Layout&);

// The way back, onto the grid that `canonical` describes; its size has to be that of the volume's.
template <class T>
Volume<T> from_layout(const Volume<T>& volume, const Layout& layout, const Geometry& canonical);
extern template Image from_layout(const Image&, const Layout&, const Geometry&);
extern template LabelMap from_layout(const LabelMap&, const Layout&, const Geometry&);

}  // namespace vesal::imaging
