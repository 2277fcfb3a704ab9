// NIfTI-1 and NIfTI-2 files (.nii, .nii.gz, either byte order; also .hdr + .img) to volumes on canonical axes
// (RAS+) and back to the input's own axes and header.
//
// Header layouts, byte swaps and quaternions are those of libnifti2; the bytes are read and written here,
// with zlib, because a truncated stream, a wrong checksum or a full disk has to be an error. Errors are one
// line and name the file, the field, what was found and what was expected: IoError (the file cannot be read
// or written), FormatError (it does not hold one 3D scalar volume), UsageError (a bad output name).
#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "imaging/volume.hpp"

namespace vesal::imaging {

// What is needed to write a volume the way a file was: its header in host byte order, its extensions, and how
// its axes lie against the canonical ones. Opaque but for the fields that are documented.
struct NiftiHeader {
  struct Extension {
    int code = 0;
    std::vector<std::byte> bytes;
  };

  int version = 1;               // 1 or 2
  std::vector<std::byte> bytes;  // the 348 or 540 bytes of the header
  std::vector<Extension> extensions;

  Geometry geometry;              // on canonical axes
  Size3 stored_size;              // in the file's own order
  std::array<int, 3> axis{};      // stored axis -> canonical axis
  std::array<bool, 3> flipped{};  // the stored axis runs against its canonical axis
  std::string orientation;  // of the stored axes, "LPS" for BraTS: i to the Left, j Posterior, k Superior
};

struct NiftiImage {
  Image volume;  // canonical axes, scl_slope and scl_inter applied
  NiftiHeader header;
};

// Reads one 3D volume. The affine is the sform when its code is > 0, else the qform when its code is > 0,
// else the pixdim; in mm whatever xyzt_units says (unknown counts as mm). Axes are matched to RAS as by
// nibabel: the nearest rotation's largest components. 4D and more are fine while the further extents are 1.
NiftiImage read_nifti(const std::filesystem::path& path);
// The header alone: cheap, and all that `inspect` and grid checks need.
NiftiHeader read_nifti_header(const std::filesystem::path& path);

// Throws FormatError with the count and the first place of NaN or infinite voxels.
void require_finite(const Image& volume, const std::filesystem::path& path);
// Throws FormatError when every voxel is 0.
void require_nonzero(const Image& volume, const std::filesystem::path& path);

// The header of a new file: a canonical grid stored along the axes that `orientation` names ("RAS", "LPS",
// "PIR", ...), qform and sform with code 1 (scanner), mm.
NiftiHeader make_nifti_header(const Geometry& canonical, const std::string& orientation);

// How voxels of a float volume are stored; int16 rounds to nearest and throws FormatError out of range.
enum class VoxelType { float32, int16 };

// Write a volume given on the canonical grid of `header` in that header's own axes order, with its geometry
// fields unchanged bit for bit. Label maps are uint8 with intent 1002 (LABEL); scl_slope is 1. `path` ends in
// .nii or .nii.gz. The same volume gives the same bytes (no time stamp), and the file is complete or absent
// (AtomicFile). Throws ShapeError when the volume's size is not the header's.
void write_like(const std::filesystem::path& path, const LabelMap& labels, const NiftiHeader& header);
void write_like(const std::filesystem::path& path, const Image& volume, const NiftiHeader& header,
                VoxelType type = VoxelType::float32);

}  // namespace vesal::imaging
