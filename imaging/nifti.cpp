// NIfTI reading and writing: see nifti.hpp.
#include "imaging/nifti.hpp"

#include <nifti2_io.h>
#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include "base/atomic_file.hpp"
#include "base/parallel.hpp"

namespace vesal::imaging {
namespace {

static_assert(std::endian::native == std::endian::little,
              "files are written in host byte order, little-endian");
static_assert(sizeof(nifti_1_header) == 348 && sizeof(nifti_2_header) == 540);

constexpr int64_t kExtenderBytes = 4;
// Deflate's best ratio is 1032 to 1: a stream of n bytes never holds more than this times n.
constexpr int64_t kMaxGzipRatio = 1040;
// Of a header and its extensions together: where the voxels start at the latest.
constexpr int64_t kMaxOffset = int64_t{1} << 28;
constexpr int64_t kMaxVoxels = int64_t{1} << 32;
// What may follow the voxels in a gzip stream beyond the size of the file itself.
constexpr int64_t kMaxTrailingBytes = int64_t{1} << 20;

// A plain or gzip file as one stream. zlib reads both, and checks the checksum at the stream's end.
class Input {
 public:
  explicit Input(const std::filesystem::path& path) : path_(path) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    check<IoError>(!error && std::filesystem::exists(status), path.string(),
                   ": no such file, expected a NIfTI file");
    check<IoError>(!std::filesystem::is_directory(status), path.string(),
                   ": is a folder, expected a NIfTI file");
    file_bytes_ = static_cast<int64_t>(std::filesystem::file_size(path, error));
    check<IoError>(!error, path.string(), ": size cannot be read: ", error.message());
    file_ = gzopen(path.c_str(), "rb");
    check<IoError>(file_ != nullptr, path.string(), ": cannot be opened: ", std::strerror(errno));
    gzbuffer(file_, static_cast<unsigned>(std::clamp<int64_t>(file_bytes_, 1 << 12, 1 << 18)));
  }
  ~Input() { gzclose_r(file_); }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  // Reads up to `count` bytes; fewer only at the end of the file. A damaged gzip stream is a FormatError.
  int64_t read(void* bytes, int64_t count) {
    char* next = static_cast<char*>(bytes);
    int64_t done = 0;
    while (done < count) {
      const unsigned piece = static_cast<unsigned>(std::min<int64_t>(count - done, 1 << 28));
      const int got = gzread(file_, next + done, piece);
      int code = Z_OK;
      const char* message = gzerror(file_, &code);
      check<IoError>(code != Z_ERRNO, path_.string(), ": reading failed: ", std::strerror(errno));
      check<FormatError>(code != Z_BUF_ERROR, path_.string(), ": gzip stream ends too early after ",
                         file_bytes_, " bytes: the file is truncated, expected a whole one");
      check<FormatError>(got >= 0 && (code == Z_OK || code == Z_STREAM_END), path_.string(),
                         ": gzip stream is damaged (", without_name(message), "), expected an intact file");
      if (got == 0) {
        break;
      }
      done += got;
    }
    position_ += done;
    return done;
  }

  // Reads to the end, so that a checksum there is verified; but not what a gzip bomb unpacks to.
  void drain() {
    std::vector<char> scratch(1 << 14);
    const int64_t most = file_bytes_ + kMaxTrailingBytes;
    for (int64_t done = 0; const int64_t got = read(scratch.data(), static_cast<int64_t>(scratch.size()));) {
      done += got;
      check<FormatError>(done <= most, path_.string(), ": more than ", most,
                         " bytes follow the voxels that dim declares, expected the end of the file");
    }
  }

  bool compressed() { return gzdirect(file_) == 0; }
  int64_t file_bytes() const { return file_bytes_; }
  // What the file can hold at most, unpacked.
  int64_t most_bytes() { return checked_mul(file_bytes_, compressed() ? kMaxGzipRatio : 1); }
  int64_t position() const { return position_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  // zlib prefixes its message with the path, which ours names already.
  std::string without_name(const char* message) const {
    const std::string text = message;
    const std::string prefix = path_.string() + ": ";
    return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
  }

  std::filesystem::path path_;
  gzFile file_ = nullptr;
  int64_t file_bytes_ = 0;
  int64_t position_ = 0;
};

// The fields that reading needs, from either version.
struct Fields {
  std::array<int64_t, 8> dim{};
  int datatype = 0;
  double slope = 0;
  double inter = 0;
  int64_t offset = 0;
  std::array<double, 8> pixdim{};
  int qform_code = 0;
  int sform_code = 0;
  std::array<double, 3> quaternion{};
  std::array<double, 3> qoffset{};
  std::array<std::array<double, 4>, 3> sform{};
  int units = 0;
  bool pair = false;  // .hdr + .img
};

template <class Header>
Fields fields_of(const Header& h) {
  Fields f;
  for (size_t i = 0; i < 8; ++i) {
    f.dim[i] = h.dim[i];
    f.pixdim[i] = static_cast<double>(h.pixdim[i]);
  }
  f.datatype = h.datatype;
  f.slope = static_cast<double>(h.scl_slope);
  f.inter = static_cast<double>(h.scl_inter);
  f.qform_code = h.qform_code;
  f.sform_code = h.sform_code;
  f.quaternion = {static_cast<double>(h.quatern_b), static_cast<double>(h.quatern_c),
                  static_cast<double>(h.quatern_d)};
  f.qoffset = {static_cast<double>(h.qoffset_x), static_cast<double>(h.qoffset_y),
               static_cast<double>(h.qoffset_z)};
  for (size_t i = 0; i < 4; ++i) {
    f.sform[0][i] = static_cast<double>(h.srow_x[i]);
    f.sform[1][i] = static_cast<double>(h.srow_y[i]);
    f.sform[2][i] = static_cast<double>(h.srow_z[i]);
  }
  f.units = h.xyzt_units & 7;
  f.pair = h.magic[1] == 'i';
  return f;
}

// Bytes of one voxel of the types that hold one real number, 0 for all others.
int voxel_bytes(int datatype) {
  switch (datatype) {
    case DT_UINT8:
    case DT_INT8:
      return 1;
    case DT_INT16:
    case DT_UINT16:
      return 2;
    case DT_INT32:
    case DT_UINT32:
    case DT_FLOAT32:
      return 4;
    case DT_INT64:
    case DT_UINT64:
    case DT_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

std::string dims_text(const Fields& f) {
  std::string text;
  for (int64_t i = 1; i <= std::clamp<int64_t>(f.dim[0], 1, 7); ++i) {
    text += concat(i > 1 ? " x " : "", f.dim[static_cast<size_t>(i)]);
  }
  return text;
}

void check_dims(const Fields& f, const std::string& name) {
  check<FormatError>(f.dim[0] >= 1 && f.dim[0] <= 7, name, ": dim[0] is ", f.dim[0], ", expected 3");
  for (int64_t i = 1; i <= f.dim[0]; ++i) {
    check<FormatError>(f.dim[static_cast<size_t>(i)] >= 1, name, ": dim[", i, "] is ",
                       f.dim[static_cast<size_t>(i)], ", expected at least 1");
  }
  check<FormatError>(f.dim[0] >= 3 && f.dim[3] > 1, name, ": dim is ", dims_text(f),
                     ", a 2D image; expected a 3D volume");
  double volumes = 1;
  for (int64_t i = 4; i <= f.dim[0]; ++i) {
    volumes *= static_cast<double>(f.dim[static_cast<size_t>(i)]);
  }
  check<FormatError>(volumes == 1, name, ": dim is ", dims_text(f), ", ", volumes,
                     " volumes; expected one 3D volume (split the file, or pick one volume of it)");
  const double voxels =
      static_cast<double>(f.dim[1]) * static_cast<double>(f.dim[2]) * static_cast<double>(f.dim[3]);
  check<FormatError>(voxels <= static_cast<double>(kMaxVoxels), name, ": dim is ", dims_text(f), ", ", voxels,
                     " voxels; expected at most ", kMaxVoxels);
}

double millimetres_per_unit(int units) {
  return units == NIFTI_UNITS_METER ? 1000.0 : units == NIFTI_UNITS_MICRON ? 0.001 : 1.0;
}

// The affine of the stored axes: sform, qform or pixdim.
Affine stored_affine(const Fields& f, const std::string& name) {
  Affine affine = identity_affine();
  const char* source = "pixdim";
  if (f.sform_code > 0) {
    source = "sform (srow_x, srow_y, srow_z)";
    for (size_t i = 0; i < 3; ++i) {
      affine[i] = f.sform[i];
    }
  } else {
    for (size_t i = 1; i <= 3; ++i) {
      check<FormatError>(std::isfinite(f.pixdim[i]) && f.pixdim[i] != 0, name, ": pixdim[", i, "] is ",
                         f.pixdim[i], ", expected a voxel size in mm");
    }
    if (f.qform_code > 0) {
      source = "qform (quatern_b, quatern_c, quatern_d)";
      for (size_t i = 0; i < 3; ++i) {
        check<FormatError>(std::isfinite(f.quaternion[i]) && std::isfinite(f.qoffset[i]), name, ": ", source,
                           " or its offset is not finite, expected numbers");
      }
      const nifti_dmat44 m = nifti_quatern_to_dmat44(
          f.quaternion[0], f.quaternion[1], f.quaternion[2], f.qoffset[0], f.qoffset[1], f.qoffset[2],
          std::abs(f.pixdim[1]), std::abs(f.pixdim[2]), std::abs(f.pixdim[3]), f.pixdim[0] < 0 ? -1.0 : 1.0);
      for (size_t i = 0; i < 3; ++i) {
        std::copy_n(m.m[i], 4, affine[i].begin());
      }
    } else {
      for (size_t i = 0; i < 3; ++i) {
        affine[i][i] = std::abs(f.pixdim[i + 1]);
      }
    }
  }
  const double scale = millimetres_per_unit(f.units);
  bool finite = true;
  for (size_t i = 0; i < 3; ++i) {
    for (double& value : affine[i]) {
      value *= scale;
      finite = finite && std::isfinite(value);
    }
  }
  const Vector3 spacing = spacing_of(affine);
  const auto& a = affine;
  const double determinant = a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1]) -
                             a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0]) +
                             a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0]);
  check<FormatError>(finite && std::abs(determinant) > 1e-6 * spacing.x * spacing.y * spacing.z, name, ": ",
                     source, " is singular or not finite (determinant ", determinant,
                     "), expected three independent axes");
  return affine;
}

// Which canonical axis each stored axis runs along, as nibabel decides: columns of the rotation nearest to
// the affine, the clearest column first, each taking the free axis on which it is largest.
void match_axes(const Affine& stored, NiftiHeader& header) {
  const Vector3 spacing = spacing_of(stored);
  nifti_dmat33 directions{};
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 3; ++column) {
      directions.m[row][column] =
          stored[static_cast<size_t>(row)][static_cast<size_t>(column)] / spacing[column];
    }
  }
  const nifti_dmat33 rotation = nifti_dmat33_polar(directions);
  const auto largest = [&](int column) {
    return std::max(
        {std::abs(rotation.m[0][column]), std::abs(rotation.m[1][column]), std::abs(rotation.m[2][column])});
  };
  std::array<int, 3> order{0, 1, 2};
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return largest(a) > largest(b); });
  std::array<bool, 3> taken{};
  for (const int column : order) {
    int best = -1;
    for (int row = 0; row < 3; ++row) {
      if (!taken[static_cast<size_t>(row)] &&
          (best < 0 || std::abs(rotation.m[row][column]) > std::abs(rotation.m[best][column]))) {
        best = row;
      }
    }
    taken[static_cast<size_t>(best)] = true;
    header.axis[static_cast<size_t>(column)] = best;
    header.flipped[static_cast<size_t>(column)] = rotation.m[best][column] < 0;
  }
  constexpr std::string_view positive = "RAS";
  constexpr std::string_view negative = "LPI";
  header.orientation.clear();
  for (size_t column = 0; column < 3; ++column) {
    const size_t axis = static_cast<size_t>(header.axis[column]);
    header.orientation += header.flipped[column] ? negative[axis] : positive[axis];
  }
  // Canonical index -> stored index -> mm.
  header.geometry.affine = identity_affine();
  Vector3 first{stored[0][3], stored[1][3], stored[2][3]};
  for (size_t column = 0; column < 3; ++column) {
    const int axis = header.axis[column];
    header.geometry.size[axis] = header.stored_size[static_cast<int>(column)];
    header.geometry.spacing_mm[axis] = spacing[static_cast<int>(column)];
    const double sign = header.flipped[column] ? -1.0 : 1.0;
    for (int row = 0; row < 3; ++row) {
      const double value = stored[static_cast<size_t>(row)][column];
      header.geometry.affine[static_cast<size_t>(row)][static_cast<size_t>(axis)] = sign * value;
      if (header.flipped[column]) {
        first[row] += value * static_cast<double>(header.stored_size[static_cast<int>(column)] - 1);
      }
    }
  }
  for (int row = 0; row < 3; ++row) {
    header.geometry.affine[static_cast<size_t>(row)][3] = first[row];
  }
}

struct Parsed {
  NiftiHeader header;
  Fields fields;
  bool swapped = false;
};

// Reads and checks the header; the stream then stands somewhere before the voxels.
Parsed parse_header(Input& input) {
  const std::string name = input.path().string();
  Parsed parsed;
  NiftiHeader& header = parsed.header;
  header.bytes.resize(sizeof(nifti_1_header));
  int64_t got = input.read(header.bytes.data(), static_cast<int64_t>(header.bytes.size()));
  check<FormatError>(got > 0, name, ": is empty, expected a NIfTI file");
  check<FormatError>(got == static_cast<int64_t>(header.bytes.size()), name, ": not a NIfTI file: it has ",
                     got, " bytes, a header has ", header.bytes.size());
  int32_t header_size = 0;
  std::memcpy(&header_size, header.bytes.data(), 4);
  int32_t swapped_size = header_size;
  nifti_swap_4bytes(1, &swapped_size);
  parsed.swapped = swapped_size == 348 || swapped_size == 540;
  const int32_t real_size = parsed.swapped ? swapped_size : header_size;
  check<FormatError>(real_size == 348 || real_size == 540, name, ": not a NIfTI file: sizeof_hdr is ",
                     header_size, ", expected 348 (NIfTI-1) or 540 (NIfTI-2)");
  header.version = real_size == 348 ? 1 : 2;
  if (header.version == 2) {
    const int64_t rest = static_cast<int64_t>(sizeof(nifti_2_header) - sizeof(nifti_1_header));
    header.bytes.resize(sizeof(nifti_2_header));
    got = input.read(header.bytes.data() + sizeof(nifti_1_header), rest);
    check<FormatError>(got == rest, name, ": header is truncated, expected 540 bytes");
  }
  const auto magic_is = [](const char* magic, char digit) {
    return magic[0] == 'n' && (magic[1] == '+' || magic[1] == 'i') && magic[2] == digit && magic[3] == 0;
  };
  if (header.version == 1) {
    nifti_1_header h;
    std::memcpy(&h, header.bytes.data(), sizeof(h));
    check<FormatError>(
        magic_is(h.magic, '1'), name,
        ": not a NIfTI file: magic is missing (Analyze 7.5 has no orientation and is not read)");
    if (parsed.swapped) {
      nifti_swap_as_nifti1(&h);
      std::memcpy(header.bytes.data(), &h, sizeof(h));
    }
    parsed.fields = fields_of(h);
    check<FormatError>(std::isfinite(h.vox_offset) && std::abs(h.vox_offset) < 0x1p31f, name,
                       ": vox_offset is ", h.vox_offset, ", expected at least 352");
    parsed.fields.offset = static_cast<int64_t>(h.vox_offset);
  } else {
    nifti_2_header h;
    std::memcpy(&h, header.bytes.data(), sizeof(h));
    check<FormatError>(magic_is(h.magic, '2'), name, ": not a NIfTI file: magic is missing");
    if (parsed.swapped) {
      nifti_swap_as_nifti2(&h);
      std::memcpy(header.bytes.data(), &h, sizeof(h));
    }
    parsed.fields = fields_of(h);
    parsed.fields.offset = h.vox_offset;
  }
  Fields& f = parsed.fields;
  check_dims(f, name);
  check<FormatError>(voxel_bytes(f.datatype) > 0, name, ": datatype is ", f.datatype, " (",
                     nifti_datatype_to_string(f.datatype),
                     "), expected one number per voxel: an integer of 8 to 64 bits, float32 or float64");
  header.stored_size = {f.dim[1], f.dim[2], f.dim[3]};
  const Affine stored = stored_affine(f, name);
  match_axes(stored, header);

  check<FormatError>(f.offset <= kMaxOffset, name, ": vox_offset is ", f.offset, ", expected at most ",
                     kMaxOffset);
  const int64_t header_end = static_cast<int64_t>(header.bytes.size()) + kExtenderBytes;
  if (f.pair) {
    check<FormatError>(f.offset >= 0, name, ": vox_offset is ", f.offset, ", expected at least 0");
    return parsed;
  }
  // Some writers leave vox_offset 0 in single files; the voxels then follow the header.
  f.offset = f.offset == 0 ? header_end : f.offset;
  check<FormatError>(f.offset >= header_end, name, ": vox_offset is ", f.offset, ", expected at least ",
                     header_end);
  // Before there is room made for extensions.
  check<FormatError>(f.offset <= input.most_bytes(), name, ": vox_offset is ", f.offset,
                     ", more than this file of ", input.file_bytes(), " bytes can hold");
  std::array<char, 4> extender{};
  if (input.read(extender.data(), kExtenderBytes) == kExtenderBytes && extender[0] != 0) {
    while (input.position() + 16 <= f.offset) {
      int32_t sizes[2];
      check<FormatError>(input.read(sizes, 8) == 8, name, ": extension is truncated");
      if (parsed.swapped) {
        nifti_swap_4bytes(2, sizes);
      }
      const int64_t size = sizes[0];
      check<FormatError>(
          size >= 16 && size % 16 == 0 && size <= kMaxOffset && input.position() - 8 + size <= f.offset, name,
          ": esize of an extension is ", size, ", expected a multiple of 16 that ends before byte ",
          f.offset);
      NiftiHeader::Extension extension{sizes[1], std::vector<std::byte>(static_cast<size_t>(size - 8))};
      check<FormatError>(input.read(extension.bytes.data(), size - 8) == size - 8, name,
                         ": extension is truncated");
      header.extensions.push_back(std::move(extension));
    }
  }
  return parsed;
}

// Where voxel (i, j, k) of the stored order lies in the canonical volume: start + i * step[0] + j * step[1] +
// ...
struct Mapping {
  int64_t start = 0;
  std::array<int64_t, 3> step{};
};
Mapping mapping_of(const NiftiHeader& header) {
  const Size3 size = header.geometry.size;
  const std::array<int64_t, 3> strides{1, size.x, size.x * size.y};
  Mapping mapping;
  for (size_t column = 0; column < 3; ++column) {
    const int64_t stride = strides[static_cast<size_t>(header.axis[column])];
    mapping.step[column] = header.flipped[column] ? -stride : stride;
    if (header.flipped[column]) {
      mapping.start += stride * (header.stored_size[static_cast<int>(column)] - 1);
    }
  }
  return mapping;
}

template <class T>
void convert_voxels(const std::byte* raw, const NiftiHeader& header, double slope, double inter, float* out) {
  const Size3 n = header.stored_size;
  const Mapping map = mapping_of(header);
  const bool scaled = slope != 1.0 || inter != 0.0;
  // A thread is worth its start from some ten thousand voxels on.
  const int64_t grain = 1 + (1 << 16) / std::max<int64_t>(1, n.x * n.y);
  parallel_for(n.z, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      for (int64_t j = 0; j < n.y; ++j) {
        const std::byte* row = raw + static_cast<size_t>((k * n.y + j) * n.x) * sizeof(T);
        float* to = out + map.start + k * map.step[2] + j * map.step[1];
        for (int64_t i = 0; i < n.x; ++i) {
          T value;
          std::memcpy(&value, row + static_cast<size_t>(i) * sizeof(T), sizeof(T));
          to[i * map.step[0]] = scaled ? static_cast<float>(static_cast<double>(value) * slope + inter)
                                       : static_cast<float>(value);
        }
      }
    }
  });
}

void convert_any(int datatype, const std::byte* raw, const NiftiHeader& header, double slope, double inter,
                 float* out) {
  switch (datatype) {
    case DT_UINT8:
      return convert_voxels<uint8_t>(raw, header, slope, inter, out);
    case DT_INT8:
      return convert_voxels<int8_t>(raw, header, slope, inter, out);
    case DT_INT16:
      return convert_voxels<int16_t>(raw, header, slope, inter, out);
    case DT_UINT16:
      return convert_voxels<uint16_t>(raw, header, slope, inter, out);
    case DT_INT32:
      return convert_voxels<int32_t>(raw, header, slope, inter, out);
    case DT_UINT32:
      return convert_voxels<uint32_t>(raw, header, slope, inter, out);
    case DT_INT64:
      return convert_voxels<int64_t>(raw, header, slope, inter, out);
    case DT_UINT64:
      return convert_voxels<uint64_t>(raw, header, slope, inter, out);
    case DT_FLOAT32:
      return convert_voxels<float>(raw, header, slope, inter, out);
    default:
      return convert_voxels<double>(raw, header, slope, inter, out);
  }
}

// The .img beside a .hdr, compressed or not.
std::filesystem::path image_of_pair(const std::filesystem::path& header) {
  std::filesystem::path stem = header;
  if (stem.extension() == ".gz") {
    stem.replace_extension();
  }
  stem.replace_extension(".img");
  std::filesystem::path packed = stem;
  packed += ".gz";
  return std::filesystem::exists(stem) || !std::filesystem::exists(packed) ? stem : packed;
}

void read_voxels(Input& input, const Parsed& parsed, Image& volume) {
  const std::string name = input.path().string();
  const Fields& f = parsed.fields;
  const NiftiHeader& header = parsed.header;
  const int width = voxel_bytes(f.datatype);
  // Before anything is allocated: can this file hold so much?
  const double wanted = static_cast<double>(header.stored_size.x) *
                        static_cast<double>(header.stored_size.y) *
                        static_cast<double>(header.stored_size.z) * width;
  check<FormatError>(wanted + static_cast<double>(f.offset) <= static_cast<double>(input.most_bytes()), name,
                     ": dim is ", dims_text(f), " of ", nifti_datatype_to_string(f.datatype), ", ", wanted,
                     " bytes, more than this file of ", input.file_bytes(),
                     " bytes can hold: truncated or a wrong header");
  const int64_t count = header.stored_size.voxels();
  const int64_t bytes = checked_mul(count, width);
  while (input.position() < f.offset) {
    char skipped[512];
    const int64_t piece = std::min<int64_t>(f.offset - input.position(), sizeof(skipped));
    check<FormatError>(input.read(skipped, piece) == piece, name, ": ends before vox_offset ", f.offset);
  }
  std::vector<std::byte> raw(static_cast<size_t>(bytes));
  const int64_t got = input.read(raw.data(), bytes);
  check<FormatError>(got == bytes, name, ": voxel data is truncated: found ", got, " bytes, expected ",
                     bytes);
  input.drain();
  if (parsed.swapped && width > 1) {
    nifti_swap_Nbytes(count, width, raw.data());
  }
  const bool scaled = f.slope != 0 && std::isfinite(f.slope) && std::isfinite(f.inter);
  volume = Image(header.geometry);
  convert_any(f.datatype, raw.data(), header, scaled ? f.slope : 1.0, scaled ? f.inter : 0.0,
              volume.data.data());
}

// Deflates into an AtomicFile, or passes bytes through. The gzip header carries no time and no name.
class Output {
 public:
  Output(const std::filesystem::path& path, bool compressed)
      : file_(path), path_(path), compressed_(compressed) {
    if (compressed_) {
      check<IoError>(deflateInit2(&stream_, 4, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK,
                     path.string(), ": zlib cannot start");
      buffer_.resize(1 << 18);
    }
  }
  ~Output() {
    if (compressed_) {
      deflateEnd(&stream_);
    }
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(const void* bytes, size_t count) {
    if (!compressed_) {
      file_.write(bytes, count);
      return;
    }
    const auto* next = static_cast<const Bytef*>(bytes);
    while (count > 0) {
      const size_t piece = std::min<size_t>(count, 1u << 30);
      stream_.next_in = const_cast<Bytef*>(next);
      stream_.avail_in = static_cast<uInt>(piece);
      pump(Z_NO_FLUSH);
      next += piece;
      count -= piece;
    }
  }
  void commit() {
    if (compressed_) {
      stream_.avail_in = 0;
      pump(Z_FINISH);
    }
    file_.commit();
  }

 private:
  void pump(int flush) {
    int code = Z_OK;
    do {
      stream_.next_out = buffer_.data();
      stream_.avail_out = static_cast<uInt>(buffer_.size());
      code = deflate(&stream_, flush);
      check<IoError>(code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR, path_.string(),
                     ": compression failed");
      file_.write(buffer_.data(), buffer_.size() - stream_.avail_out);
    } while (flush == Z_FINISH ? code != Z_STREAM_END : stream_.avail_out == 0);
  }

  AtomicFile file_;
  std::filesystem::path path_;
  bool compressed_;
  z_stream stream_{};
  std::vector<Bytef> buffer_;
};

bool is_compressed_name(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  const bool packed = name.ends_with(".nii.gz");
  check<UsageError>(packed || name.ends_with(".nii"), path.string(),
                    ": output name must end in .nii or .nii.gz");
  return packed;
}

// What an output changes in its input's header; the geometry stays as it is.
template <class Header>
void adapt(Header& h, int datatype, int bits, bool labels, int64_t offset) {
  h.datatype = static_cast<decltype(h.datatype)>(datatype);
  h.bitpix = static_cast<decltype(h.bitpix)>(bits);
  h.scl_slope = 1;
  h.scl_inter = 0;
  h.cal_min = 0;
  h.cal_max = 0;
  h.intent_code = labels ? NIFTI_INTENT_LABEL : NIFTI_INTENT_NONE;
  h.intent_p1 = h.intent_p2 = h.intent_p3 = 0;
  std::memset(h.intent_name, 0, sizeof(h.intent_name));
  h.vox_offset = static_cast<decltype(h.vox_offset)>(offset);
  h.magic[1] = '+';
}

template <class From, class To, class Convert>
void write_volume(const std::filesystem::path& path, const Volume<From>& volume, const NiftiHeader& header,
                  int datatype, bool labels, const Convert& convert) {
  check<ShapeError>(volume.size() == header.geometry.size &&
                        static_cast<int64_t>(volume.data.size()) == volume.size().voxels(),
                    path.string(), ": volume has ", to_string(volume.size()), " voxels, the header ",
                    to_string(header.geometry.size));
  Output out(path, is_compressed_name(path));
  int64_t offset = static_cast<int64_t>(header.bytes.size()) + kExtenderBytes;
  for (const auto& extension : header.extensions) {
    offset += static_cast<int64_t>(extension.bytes.size()) + 8;
  }
  std::vector<std::byte> bytes = header.bytes;
  const auto rewrite = [&]<class Header>(Header h) {
    std::memcpy(&h, bytes.data(), sizeof(h));
    adapt(h, datatype, static_cast<int>(8 * sizeof(To)), labels, offset);
    std::memcpy(bytes.data(), &h, sizeof(h));
  };
  if (header.version == 1) {
    rewrite(nifti_1_header{});
  } else {
    rewrite(nifti_2_header{});
  }
  out.write(bytes.data(), bytes.size());
  const std::array<char, 4> extender{static_cast<char>(header.extensions.empty() ? 0 : 1), 0, 0, 0};
  out.write(extender.data(), extender.size());
  for (const auto& extension : header.extensions) {
    const int32_t fields[2] = {static_cast<int32_t>(extension.bytes.size() + 8), extension.code};
    out.write(fields, sizeof(fields));
    out.write(extension.bytes.data(), extension.bytes.size());
  }
  const Size3 n = header.stored_size;
  const Mapping map = mapping_of(header);
  std::vector<To> slice(static_cast<size_t>(n.x * n.y));
  for (int64_t k = 0; k < n.z; ++k) {
    for (int64_t j = 0; j < n.y; ++j) {
      const From* from = volume.data.data() + map.start + k * map.step[2] + j * map.step[1];
      for (int64_t i = 0; i < n.x; ++i) {
        slice[static_cast<size_t>(j * n.x + i)] = convert(from[i * map.step[0]]);
      }
    }
    out.write(slice.data(), slice.size() * sizeof(To));
  }
  out.commit();
}

}  // namespace

NiftiHeader read_nifti_header(const std::filesystem::path& path) {
  Input input(path);
  return parse_header(input).header;
}

NiftiImage read_nifti(const std::filesystem::path& path) {
  Input input(path);
  Parsed parsed = parse_header(input);
  NiftiImage image;
  if (parsed.fields.pair) {
    Input voxels(image_of_pair(path));
    read_voxels(voxels, parsed, image.volume);
  } else {
    read_voxels(input, parsed, image.volume);
  }
  image.header = std::move(parsed.header);
  return image;
}

void require_finite(const Image& volume, const std::filesystem::path& path) {
  int64_t bad = 0;
  int64_t first = -1;
  for (size_t i = 0; i < volume.data.size(); ++i) {
    if (!std::isfinite(volume.data[i])) {
      first = first < 0 ? static_cast<int64_t>(i) : first;
      ++bad;
    }
  }
  if (bad > 0) {
    const Size3 n = volume.size();
    throw FormatError(concat(path.string(), ": ", bad, " of ", volume.data.size(),
                             " voxels are NaN or infinite, first at RAS voxel ", first % n.x, " ",
                             first / n.x % n.y, " ", first / (n.x * n.y), "; expected finite intensities"));
  }
}

void require_nonzero(const Image& volume, const std::filesystem::path& path) {
  const bool any = std::any_of(volume.data.begin(), volume.data.end(), [](float v) { return v != 0; });
  check<FormatError>(any, path.string(), ": all ", volume.data.size(), " voxels are 0; expected an image");
}

NiftiHeader make_nifti_header(const Geometry& canonical, const std::string& orientation) {
  NiftiHeader header;
  header.orientation = orientation;
  header.geometry = canonical;
  constexpr std::string_view letters = "RLAPSI";  // 2 * axis + (runs negative)
  std::array<bool, 3> seen{};
  for (size_t column = 0; column < 3; ++column) {
    const size_t found = orientation.size() == 3 ? letters.find(orientation[column]) : std::string_view::npos;
    check<UsageError>(found != std::string_view::npos && !seen[found / 2], "orientation \"", orientation,
                      "\": expected one of R/L, one of A/P and one of S/I, e.g. RAS or LPS");
    seen[found / 2] = true;
    header.axis[column] = static_cast<int>(found / 2);
    header.flipped[column] = found % 2 == 1;
    header.stored_size[static_cast<int>(column)] = canonical.size[header.axis[column]];
  }
  for (int axis = 0; axis < 3; ++axis) {
    check<ShapeError>(
        canonical.size[axis] >= 1 && canonical.size[axis] <= std::numeric_limits<int16_t>::max(),
        "NIfTI-1 header: size ", to_string(canonical.size), " does not fit in 1 to 32767");
  }
  nifti_1_header h{};
  h.sizeof_hdr = 348;
  h.regular = 'r';
  h.dim[0] = 3;
  h.pixdim[0] = 1;
  for (size_t i = 1; i < 8; ++i) {
    h.dim[i] = 1;
    h.pixdim[i] = 1;
  }
  Affine stored = identity_affine();
  Vector3 last;
  for (size_t column = 0; column < 3; ++column) {
    const int axis = header.axis[column];
    h.dim[column + 1] = static_cast<int16_t>(canonical.size[axis]);
    h.pixdim[column + 1] = static_cast<float>(canonical.spacing_mm[axis]);
    const double sign = header.flipped[column] ? -1.0 : 1.0;
    for (size_t row = 0; row < 3; ++row) {
      stored[row][column] = sign * canonical.affine[row][static_cast<size_t>(axis)];
    }
    last[axis] = header.flipped[column] ? static_cast<double>(canonical.size[axis] - 1) : 0.0;
  }
  const Vector3 first = apply(canonical.affine, last);
  nifti_dmat44 matrix{};
  for (int row = 0; row < 3; ++row) {
    stored[static_cast<size_t>(row)][3] = first[row];
    std::copy_n(stored[static_cast<size_t>(row)].begin(), 4, matrix.m[row]);
  }
  matrix.m[3][3] = 1;
  double b = 0, c = 0, d = 0, qx = 0, qy = 0, qz = 0, dx = 0, dy = 0, dz = 0, qfac = 1;
  nifti_dmat44_to_quatern(matrix, &b, &c, &d, &qx, &qy, &qz, &dx, &dy, &dz, &qfac);
  h.pixdim[0] = static_cast<float>(qfac);
  h.quatern_b = static_cast<float>(b);
  h.quatern_c = static_cast<float>(c);
  h.quatern_d = static_cast<float>(d);
  h.qoffset_x = static_cast<float>(qx);
  h.qoffset_y = static_cast<float>(qy);
  h.qoffset_z = static_cast<float>(qz);
  for (size_t i = 0; i < 4; ++i) {
    h.srow_x[i] = static_cast<float>(stored[0][i]);
    h.srow_y[i] = static_cast<float>(stored[1][i]);
    h.srow_z[i] = static_cast<float>(stored[2][i]);
  }
  h.qform_code = NIFTI_XFORM_SCANNER_ANAT;
  h.sform_code = NIFTI_XFORM_SCANNER_ANAT;
  h.xyzt_units = NIFTI_UNITS_MM;
  h.vox_offset = 352;
  std::memcpy(h.magic, "n+1", 4);
  header.version = 1;
  header.bytes.resize(sizeof(h));
  std::memcpy(header.bytes.data(), &h, sizeof(h));
  return header;
}

void write_like(const std::filesystem::path& path, const LabelMap& labels, const NiftiHeader& header) {
  write_volume<uint8_t, uint8_t>(path, labels, header, DT_UINT8, true, [](uint8_t value) { return value; });
}

void write_like(const std::filesystem::path& path, const Image& volume, const NiftiHeader& header,
                VoxelType type) {
  if (type == VoxelType::float32) {
    write_volume<float, float>(path, volume, header, DT_FLOAT32, false, [](float value) { return value; });
    return;
  }
  write_volume<float, int16_t>(path, volume, header, DT_INT16, false, [&](float value) {
    const float rounded = std::nearbyint(value);
    check<FormatError>(rounded >= -32768.0f && rounded <= 32767.0f, path.string(), ": value ", value,
                       " does not fit in int16");
    return static_cast<int16_t>(rounded);
  });
}

}  // namespace vesal::imaging
