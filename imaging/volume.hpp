// Voxel grids and what lies on them: sizes, boxes, affines, volumes. No file format is known here.
//
// A volume is stored [D, H, W] = [z][y][x], x fastest. Everything in imaging/ works on canonical axes: x
// grows to the patient's right, y to anterior, z to superior (RAS+); imaging/nifti.hpp brings files there and
// back. Triples are written X Y Z.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/size.hpp"

namespace vesal::imaging {

// Extents or an index, in voxels.
struct Size3 {
  int64_t x = 0;
  int64_t y = 0;
  int64_t z = 0;

  // x * y * z; throws ShapeError on overflow or a negative extent.
  int64_t voxels() const { return checked_mul(checked_mul(x, y), z); }
  int64_t operator[](int axis) const { return axis == 0 ? x : axis == 1 ? y : z; }
  int64_t& operator[](int axis) { return axis == 0 ? x : axis == 1 ? y : z; }
  friend bool operator==(const Size3&, const Size3&) = default;
};

// A point, a direction or a spacing; mm unless a name says otherwise.
struct Vector3 {
  double x = 0;
  double y = 0;
  double z = 0;

  double operator[](int axis) const { return axis == 0 ? x : axis == 1 ? y : z; }
  double& operator[](int axis) { return axis == 0 ? x : axis == 1 ? y : z; }
  friend bool operator==(const Vector3&, const Vector3&) = default;
};

// A box of voxels: [start, start + size) on each axis.
struct Box3 {
  Size3 start;
  Size3 size;

  bool empty() const { return size.x <= 0 || size.y <= 0 || size.z <= 0; }
  friend bool operator==(const Box3&, const Box3&) = default;
};

// "240 x 240 x 155" and "1 x 1 x 2.5", in the order X Y Z.
std::string to_string(Size3 size);
std::string to_string(Vector3 vector);

// A 4x4 matrix with the last row 0 0 0 1: voxel index (i, j, k, 1) to mm, RAS+.
using Affine = std::array<std::array<double, 4>, 4>;

Affine identity_affine();
// affine * (point, 1).
Vector3 apply(const Affine& affine, Vector3 point);
// Lengths of the three columns: the voxel's edges in mm.
Vector3 spacing_of(const Affine& affine);

struct Geometry {
  Size3 size;
  Vector3 spacing_mm;
  Affine affine = identity_affine();

  double voxel_ml() const { return spacing_mm.x * spacing_mm.y * spacing_mm.z / 1000.0; }
  // Edge lengths of the whole grid in mm, outer voxel faces included.
  Vector3 field_of_view_mm() const {
    return {static_cast<double>(size.x) * spacing_mm.x, static_cast<double>(size.y) * spacing_mm.y,
            static_cast<double>(size.z) * spacing_mm.z};
  }
};

// A grid with axes along RAS and its centre at mm (0, 0, 0).
Geometry make_geometry(Size3 size, Vector3 spacing_mm);

// What differs between two grids, in words ("size 240 x 240 x 155 against 128 x 128 x 64"), or "" when they
// are one grid: equal sizes, and no voxel centre moves by more than `tolerance_mm`.
std::string geometry_difference(const Geometry& a, const Geometry& b, double tolerance_mm = 0.1);

// The grid of a part of `geometry`; the box may reach outside.
Geometry cropped_geometry(const Geometry& geometry, Box3 box);

template <class T>
struct Volume {
  Geometry geometry;
  std::vector<T> data;  // [D, H, W]; empty: no volume

  Volume() = default;
  explicit Volume(Geometry grid, T value = T{})
      : geometry(std::move(grid)), data(static_cast<size_t>(geometry.size.voxels()), value) {}

  Size3 size() const { return geometry.size; }
  bool empty() const { return data.empty(); }
  int64_t index(int64_t x, int64_t y, int64_t z) const {
    return (z * geometry.size.y + y) * geometry.size.x + x;
  }
  T& at(int64_t x, int64_t y, int64_t z) { return data[static_cast<size_t>(index(x, y, z))]; }
  const T& at(int64_t x, int64_t y, int64_t z) const { return data[static_cast<size_t>(index(x, y, z))]; }
};

using Image = Volume<float>;
using LabelMap = Volume<uint8_t>;

// The part of a volume inside `box`, which lies within it; throws ShapeError otherwise.
template <class T>
Volume<T> crop(const Volume<T>& volume, Box3 box);
extern template Image crop(const Image&, Box3);
extern template LabelMap crop(const LabelMap&, Box3);

// Writes `part` into `volume` at box.start; part.size() == box.size, the box lies within `volume`.
template <class T>
void paste(const Volume<T>& part, Box3 box, Volume<T>& volume);
extern template void paste(const Image&, Box3, Image&);
extern template void paste(const LabelMap&, Box3, LabelMap&);

}  // namespace vesal::imaging
