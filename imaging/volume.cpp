// Sizes, affines and volumes: see volume.hpp.
#include "imaging/volume.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vesal::imaging {

std::string to_string(Size3 size) { return concat(size.x, " x ", size.y, " x ", size.z); }

std::string to_string(Vector3 vector) { return concat(vector.x, " x ", vector.y, " x ", vector.z); }

Affine identity_affine() {
  Affine affine{};
  for (size_t i = 0; i < 4; ++i) {
    affine[i][i] = 1.0;
  }
  return affine;
}

Vector3 apply(const Affine& affine, Vector3 point) {
  Vector3 result;
  for (int row = 0; row < 3; ++row) {
    const auto& a = affine[static_cast<size_t>(row)];
    result[row] = a[0] * point.x + a[1] * point.y + a[2] * point.z + a[3];
  }
  return result;
}

Vector3 spacing_of(const Affine& affine) {
  Vector3 spacing;
  for (int column = 0; column < 3; ++column) {
    const size_t c = static_cast<size_t>(column);
    spacing[column] =
        std::sqrt(affine[0][c] * affine[0][c] + affine[1][c] * affine[1][c] + affine[2][c] * affine[2][c]);
  }
  return spacing;
}

Geometry make_geometry(Size3 size, Vector3 spacing_mm) {
  Geometry geometry{size, spacing_mm, identity_affine()};
  for (int axis = 0; axis < 3; ++axis) {
    const size_t a = static_cast<size_t>(axis);
    geometry.affine[a][a] = spacing_mm[axis];
    geometry.affine[a][3] = -0.5 * static_cast<double>(size[axis] - 1) * spacing_mm[axis];
  }
  return geometry;
}

std::string geometry_difference(const Geometry& a, const Geometry& b, double tolerance_mm) {
  if (a.size != b.size) {
    return concat("size ", to_string(a.size), " against ", to_string(b.size));
  }
  for (int axis = 0; axis < 3; ++axis) {
    const double drift =
        std::abs(a.spacing_mm[axis] - b.spacing_mm[axis]) * static_cast<double>(a.size[axis]);
    if (!(drift <= tolerance_mm)) {
      return concat("spacing ", to_string(a.spacing_mm), " mm against ", to_string(b.spacing_mm), " mm");
    }
  }
  double worst = 0;
  for (int corner = 0; corner < 8; ++corner) {
    Vector3 index;
    for (int axis = 0; axis < 3; ++axis) {
      index[axis] = (corner >> axis) & 1 ? static_cast<double>(a.size[axis] - 1) : 0.0;
    }
    const Vector3 p = apply(a.affine, index);
    const Vector3 q = apply(b.affine, index);
    worst = std::max(worst, std::hypot(p.x - q.x, p.y - q.y, p.z - q.z));
  }
  if (!(worst <= tolerance_mm)) {
    const Vector3 p = apply(a.affine, {});
    const Vector3 q = apply(b.affine, {});
    return concat("position: voxel centres are up to ", worst, " mm apart (first voxel at ", p.x, " ", p.y,
                  " ", p.z, " mm against ", q.x, " ", q.y, " ", q.z, " mm)");
  }
  return "";
}

Geometry cropped_geometry(const Geometry& geometry, Box3 box) {
  Geometry part = geometry;
  part.size = box.size;
  const Vector3 first = apply(
      geometry.affine,
      {static_cast<double>(box.start.x), static_cast<double>(box.start.y), static_cast<double>(box.start.z)});
  for (int axis = 0; axis < 3; ++axis) {
    part.affine[static_cast<size_t>(axis)][3] = first[axis];
  }
  return part;
}

namespace {
void require_inside(const char* what, Size3 size, Box3 box) {
  for (int axis = 0; axis < 3; ++axis) {
    check<ShapeError>(
        box.start[axis] >= 0 && box.size[axis] >= 0 && box.start[axis] + box.size[axis] <= size[axis], what,
        ": box at ", to_string(box.start), " of ", to_string(box.size), " voxels does not lie within ",
        to_string(size));
  }
}
}  // namespace

template <class T>
Volume<T> crop(const Volume<T>& volume, Box3 box) {
  require_inside("crop", volume.size(), box);
  Volume<T> part(cropped_geometry(volume.geometry, box));
  if (part.data.empty()) {
    return part;
  }
  for (int64_t z = 0; z < box.size.z; ++z) {
    for (int64_t y = 0; y < box.size.y; ++y) {
      std::memcpy(&part.at(0, y, z), &volume.at(box.start.x, box.start.y + y, box.start.z + z),
                  static_cast<size_t>(box.size.x) * sizeof(T));
    }
  }
  return part;
}
template Image crop(const Image&, Box3);
template LabelMap crop(const LabelMap&, Box3);

template <class T>
void paste(const Volume<T>& part, Box3 box, Volume<T>& volume) {
  require_inside("paste", volume.size(), box);
  check<ShapeError>(part.size() == box.size, "paste: part has ", to_string(part.size()), " voxels, the box ",
                    to_string(box.size));
  if (part.data.empty()) {
    return;
  }
  for (int64_t z = 0; z < box.size.z; ++z) {
    for (int64_t y = 0; y < box.size.y; ++y) {
      std::memcpy(&volume.at(box.start.x, box.start.y + y, box.start.z + z), &part.at(0, y, z),
                  static_cast<size_t>(box.size.x) * sizeof(T));
    }
  }
}
template void paste(const Image&, Box3, Image&);
template void paste(const LabelMap&, Box3, LabelMap&);

}  // namespace vesal::imaging
