// NIfTI files: orientations, byte orders, versions, types, scaling, damaged files, atomic writing. Headers
// are built here byte by byte, from the standard's table of offsets, so that reader and writer do not vouch
// for each other.
#include "imaging/nifti.hpp"

#include <sys/resource.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <limits>

#include "raw_nifti.hpp"
#include "support.hpp"

namespace vesal::imaging {
namespace {

constexpr const char* kOrientations[] = {"RAS", "LPS", "LAS", "PSR", "PIR", "LIA", "SRA", "IPL"};

void write_gzip(const std::filesystem::path& path, const std::vector<char>& bytes) {
  gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_EQ(gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size())), static_cast<int>(bytes.size()));
  gzclose(file);
}

TEST(Nifti, RoundTripInEveryOrientation) {
  const TemporaryFolder folder;
  Geometry geometry = make_geometry({5, 6, 7}, {1.0, 1.5, 2.25});
  geometry.affine[0][3] = -12.5;
  const Image image = random_image(geometry, 3);
  LabelMap labels(geometry);
  for (size_t i = 0; i < labels.data.size(); ++i) {
    labels.data[i] = static_cast<uint8_t>(i % 251);
  }
  for (const std::string orientation : kOrientations) {
    const NiftiHeader header = make_nifti_header(geometry, orientation);
    for (const char* ending : {".nii", ".nii.gz"}) {
      const auto path = folder / (orientation + ending);
      write_like(path, image, header);
      const NiftiImage back = read_nifti(path);
      EXPECT_EQ(back.header.orientation, orientation);
      EXPECT_EQ(back.volume.data, image.data) << orientation;
      EXPECT_EQ(geometry_difference(back.volume.geometry, geometry, 1e-5), "") << orientation;
      const auto label_path = folder / (orientation + "-label" + ending);
      write_like(label_path, labels, back.header);
      const NiftiImage label_back = read_nifti(label_path);
      ASSERT_EQ(label_back.volume.data.size(), labels.data.size());
      EXPECT_TRUE(std::equal(labels.data.begin(), labels.data.end(), label_back.volume.data.begin(),
                             [](uint8_t a, float b) { return static_cast<float>(a) == b; }));
      EXPECT_EQ(label_back.header.orientation, orientation);
    }
  }
}

TEST(Nifti, StoredOrderIsThatOfTheOrientation) {
  const TemporaryFolder folder;
  const Geometry geometry = make_geometry({3, 4, 5}, {1, 1, 1});
  const Image image = random_image(geometry, 4);
  write_like(folder / "lps.nii", image, make_nifti_header(geometry, "LPS"));
  const std::vector<char> lps = bytes_of(folder / "lps.nii");
  const auto stored = [](const std::vector<char>& file, int index) {
    float value = 0;
    std::memcpy(&value, file.data() + 352 + 4 * index, 4);
    return value;
  };
  ASSERT_EQ(lps.size(), 352u + 240u);
  EXPECT_EQ(stored(lps, 0), image.at(2, 3, 0));   // first voxel: rightmost, most anterior, lowest
  EXPECT_EQ(stored(lps, 1), image.at(1, 3, 0));   // i runs to the left
  EXPECT_EQ(stored(lps, 3), image.at(2, 2, 0));   // j runs to posterior
  EXPECT_EQ(stored(lps, 12), image.at(2, 3, 1));  // k runs to superior
  write_like(folder / "pir.nii", image, make_nifti_header(geometry, "PIR"));
  const std::vector<char> pir = bytes_of(folder / "pir.nii");
  EXPECT_EQ(stored(pir, 0), image.at(0, 3, 4));
  EXPECT_EQ(stored(pir, 1), image.at(0, 2, 4));   // i: posterior, 4 voxels
  EXPECT_EQ(stored(pir, 4), image.at(0, 3, 3));   // j: inferior, 5 voxels
  EXPECT_EQ(stored(pir, 20), image.at(1, 3, 4));  // k: right
}

TEST(Nifti, QformAndSformOfNewFilesAgree) {
  const TemporaryFolder folder;
  const Geometry geometry = make_geometry({4, 5, 6}, {1, 2, 3});
  const Image image = random_image(geometry, 5);
  for (const std::string orientation : kOrientations) {
    const auto path = folder / (orientation + ".nii");
    write_like(path, image, make_nifti_header(geometry, orientation));
    std::vector<char> bytes = bytes_of(path);
    const int16_t none = 0;
    std::memcpy(bytes.data() + 254, &none, 2);  // sform_code 0: the qform must say the same
    write_bytes(path, bytes);
    const NiftiImage back = read_nifti(path);
    EXPECT_EQ(back.header.orientation, orientation);
    EXPECT_EQ(geometry_difference(back.volume.geometry, geometry, 1e-4), "") << orientation;
    EXPECT_EQ(back.volume.data, image.data);
  }
}

TEST(Nifti, SformBeforeQformBeforePixdim) {
  const TemporaryFolder folder;
  RawNifti raw = small_file();
  raw.put<float>(80, 2.0f);
  raw.put<float>(84, 3.0f);
  raw.put<float>(88, 4.0f);
  write_bytes(folder / "pixdim.nii", raw.bytes);
  NiftiHeader header = read_nifti_header(folder / "pixdim.nii");
  EXPECT_EQ(header.orientation, "RAS");
  EXPECT_EQ(header.geometry.spacing_mm, (Vector3{2, 3, 4}));
  // Half a turn about z (quaternion 0 0 0 1): LPS, with an offset.
  raw.put<int16_t>(252, 1);
  raw.put<float>(264, 1.0f);
  raw.put<float>(268, 10.0f);
  write_bytes(folder / "qform.nii", raw.bytes);
  header = read_nifti_header(folder / "qform.nii");
  EXPECT_EQ(header.orientation, "LPS");
  // Stored voxel 0 lies at x = 10, which is canonical voxel 1 of 2; canonical voxel 0 lies 2 mm to the left.
  EXPECT_NEAR(apply(header.geometry.affine, {0, 0, 0}).x, 8, 1e-6);
  // A sform wins.
  raw.sform({0, 0, 5, 1, 6, 0, 0, 2, 0, 7, 0, 3}, 2);
  write_bytes(folder / "sform.nii", raw.bytes);
  header = read_nifti_header(folder / "sform.nii");
  EXPECT_EQ(header.orientation, "ASR");
  EXPECT_EQ(header.geometry.size, (Size3{4, 2, 3}));
  EXPECT_EQ(header.geometry.spacing_mm, (Vector3{5, 6, 7}));
}

TEST(Nifti, UnitsAreMillimetres) {
  const TemporaryFolder folder;
  RawNifti raw = small_file();
  raw.put<char>(123, 1);  // metres
  write_bytes(folder / "m.nii", raw.bytes);
  EXPECT_EQ(read_nifti_header(folder / "m.nii").geometry.spacing_mm, (Vector3{1000, 1000, 1000}));
  raw.put<char>(123, 3);  // micrometres
  write_bytes(folder / "u.nii", raw.bytes);
  EXPECT_DOUBLE_EQ(read_nifti_header(folder / "u.nii").geometry.spacing_mm.x, 0.001);
  raw.put<char>(123, 0);  // unknown
  write_bytes(folder / "n.nii", raw.bytes);
  EXPECT_DOUBLE_EQ(read_nifti_header(folder / "n.nii").geometry.spacing_mm.x, 1);
}

template <class T>
void check_type(const TemporaryFolder& folder, int code, T low, T high) {
  RawNifti raw;
  raw.dims({2, 2, 2});
  raw.type(code, static_cast<int>(8 * sizeof(T)));
  raw.voxels(std::vector<T>{low, high, 0, 1, 2, 3, 4, 5});
  write_bytes(folder / "typed.nii", raw.bytes);
  const Image image = read_nifti(folder / "typed.nii").volume;
  EXPECT_EQ(image.data[0], static_cast<float>(low)) << code;
  EXPECT_EQ(image.data[1], static_cast<float>(high)) << code;
  EXPECT_EQ(image.data[7], 5.0f) << code;
}

TEST(Nifti, EveryRealType) {
  const TemporaryFolder folder;
  check_type<uint8_t>(folder, 2, 0, 255);
  check_type<int16_t>(folder, 4, -32768, 32767);
  check_type<int32_t>(folder, 8, -70000, 70000);
  check_type<float>(folder, 16, -1.5f, 3e30f);
  check_type<double>(folder, 64, -1.25, 1e20);
  check_type<int8_t>(folder, 256, -128, 127);
  check_type<uint16_t>(folder, 512, 0, 65535);
  check_type<uint32_t>(folder, 768, 0, 4000000000u);
  check_type<int64_t>(folder, 1024, -5000000000, 5000000000);
  check_type<uint64_t>(folder, 1280, 0, 5000000000u);
}

TEST(Nifti, ScaleAndIntercept) {
  const TemporaryFolder folder;
  RawNifti raw;
  raw.dims({2, 2, 2});
  raw.type(4, 16);
  raw.voxels(std::vector<int16_t>{-1, 0, 1, 2, 3, 4, 5, 1000});
  raw.put<float>(112, 0.5f);
  raw.put<float>(116, -10.0f);
  write_bytes(folder / "scaled.nii", raw.bytes);
  EXPECT_EQ(read_nifti(folder / "scaled.nii").volume.data,
            (std::vector<float>{-10.5f, -10, -9.5f, -9, -8.5f, -8, -7.5f, 490}));
  raw.put<float>(112, 0.0f);  // slope 0: no scaling, the intercept neither
  write_bytes(folder / "unscaled.nii", raw.bytes);
  EXPECT_EQ(read_nifti(folder / "unscaled.nii").volume.data[7], 1000.0f);
}

TEST(Nifti, OtherByteOrder) {
  const TemporaryFolder folder;
  RawNifti raw = small_file();
  raw.sform({-1, 0, 0, 9, 0, -2, 0, 8, 0, 0, 3, 7});
  write_bytes(folder / "little.nii", raw.bytes);
  std::vector<char> big = raw.bytes;
  const auto swap = [&](int offset, int width, int count) {
    for (int i = 0; i < count; ++i) {
      for (int byte = 0; byte < width; ++byte) {
        big[static_cast<size_t>(offset + i * width + byte)] =
            raw.bytes[static_cast<size_t>(offset + (i + 1) * width - 1 - byte)];
      }
    }
  };
  swap(0, 4, 1);     // sizeof_hdr
  swap(40, 2, 8);    // dim
  swap(68, 2, 4);    // intent_code, datatype, bitpix, slice_start
  swap(76, 4, 11);   // pixdim, vox_offset, slope, inter
  swap(252, 2, 2);   // form codes
  swap(256, 4, 18);  // quaternion, offsets, sform
  swap(352, 4, 24);  // voxels
  write_bytes(folder / "big.nii", big);
  const NiftiImage a = read_nifti(folder / "little.nii");
  const NiftiImage b = read_nifti(folder / "big.nii");
  EXPECT_EQ(a.volume.data, b.volume.data);
  EXPECT_EQ(a.header.orientation, "LPS");
  EXPECT_EQ(b.header.orientation, "LPS");
  EXPECT_EQ(geometry_difference(a.header.geometry, b.header.geometry, 1e-9), "");
  write_like(folder / "from_big.nii", b.volume, b.header);
  write_like(folder / "from_little.nii", a.volume, a.header);
  EXPECT_EQ(bytes_of(folder / "from_big.nii"), bytes_of(folder / "from_little.nii"));
}

TEST(Nifti, WritingKeepsTheHeadersGeometry) {
  const TemporaryFolder folder;
  RawNifti raw = small_file();
  raw.sform({-1, 0.1f, 0, 9, 0.1f, -2, 0, 8, 0, 0, 3, 7}, 4);  // oblique
  raw.put<int16_t>(252, 3);
  raw.put<float>(264, 1.0f);
  raw.put<float>(124, 77.0f);  // cal_max: of the input's intensities
  std::memcpy(raw.bytes.data() + 148, "scanner text", 12);
  write_bytes(folder / "in.nii", raw.bytes);
  const NiftiImage image = read_nifti(folder / "in.nii");
  LabelMap labels(image.header.geometry, uint8_t{2});
  write_like(folder / "out.nii", labels, image.header);
  const std::vector<char> out = bytes_of(folder / "out.nii");
  ASSERT_EQ(out.size(), 352u + 24u);
  const auto same = [&](int offset, int count) {
    return std::equal(out.begin() + offset, out.begin() + offset + count, raw.bytes.begin() + offset);
  };
  EXPECT_TRUE(same(40, 16)) << "dim";
  EXPECT_TRUE(same(76, 32)) << "pixdim";
  EXPECT_TRUE(same(123, 1)) << "xyzt_units";
  EXPECT_TRUE(same(148, 104)) << "descrip, aux_file";
  EXPECT_TRUE(same(252, 76)) << "qform and sform";
  const auto field = [&]<class T>(int offset, T value) {
    std::memcpy(&value, out.data() + offset, sizeof(T));
    return value;
  };
  EXPECT_EQ(field(68, int16_t{}), 1002);
  EXPECT_EQ(field(70, int16_t{}), 2);
  EXPECT_EQ(field(72, int16_t{}), 8);
  EXPECT_EQ(field(112, float{}), 1.0f);
  EXPECT_EQ(field(116, float{}), 0.0f);
  EXPECT_EQ(field(124, float{}), 0.0f);
  write_like(folder / "same.nii", image.volume, image.header);
  const std::vector<char> floats = bytes_of(folder / "same.nii");
  EXPECT_TRUE(std::equal(raw.bytes.begin() + 352, raw.bytes.end(), floats.begin() + 352))
      << "voxels back in place";
  expect_error<ShapeError>(
      [&] {
        write_like(folder / "x.nii", LabelMap(make_geometry({1, 2, 3}, {1, 1, 1})), image.header);
      },
      {"1 x 2 x 3", "2 x 3 x 4"});
  EXPECT_FALSE(std::filesystem::exists(folder / "x.nii"));
}

TEST(Nifti, VersionTwoAndExtensions) {
  const TemporaryFolder folder;
  std::vector<char> raw(544, 0);
  const auto put = [&]<class T>(int offset, T value) { std::memcpy(raw.data() + offset, &value, sizeof(T)); };
  put(0, int32_t{540});
  std::memcpy(raw.data() + 4, "n+2\0\r\n\032\n", 8);
  put(12, int16_t{4});  // datatype int16
  put(14, int16_t{16});
  const int64_t dims[8] = {4, 3, 2, 2, 1, 1, 1, 1};
  std::memcpy(raw.data() + 16, dims, sizeof(dims));
  for (int i = 0; i < 8; ++i) {
    put(104 + 8 * i, 1.0);
  }
  put(168, int64_t{544 + 32});
  put(176, 2.0);  // slope
  put(348, int32_t{1});
  const double sform[12] = {-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0};
  std::memcpy(raw.data() + 400, sform, sizeof(sform));
  raw[540] = 1;
  std::vector<char> extension(32, 'x');
  const int32_t fields[2] = {32, 6};
  std::memcpy(extension.data(), fields, 8);
  raw.insert(raw.end(), extension.begin(), extension.end());
  for (int16_t i = 0; i < 12; ++i) {
    raw.push_back(static_cast<char>(i));
    raw.push_back(0);
  }
  write_bytes(folder / "two.nii", raw);
  const NiftiImage image = read_nifti(folder / "two.nii");
  EXPECT_EQ(image.header.version, 2);
  EXPECT_EQ(image.header.orientation, "LAS");
  ASSERT_EQ(image.header.extensions.size(), 1u);
  EXPECT_EQ(image.header.extensions[0].code, 6);
  EXPECT_EQ(image.volume.at(2, 0, 0), 0.0f);
  EXPECT_EQ(image.volume.at(0, 0, 0), 4.0f);
  EXPECT_EQ(image.volume.at(0, 1, 1), 22.0f);
  write_like(folder / "again.nii.gz", image.volume, image.header);
  const NiftiImage again = read_nifti(folder / "again.nii.gz");
  EXPECT_EQ(again.volume.data, image.volume.data);
  EXPECT_EQ(again.header.version, 2);
  ASSERT_EQ(again.header.extensions.size(), 1u);
  EXPECT_EQ(again.header.extensions[0].bytes, image.header.extensions[0].bytes);
}

TEST(Nifti, HeaderAndImageInTwoFiles) {
  const TemporaryFolder folder;
  RawNifti raw = small_file();
  std::memcpy(raw.bytes.data() + 344, "ni1", 4);
  raw.put<float>(108, 0.0f);
  write_bytes(folder / "pair.hdr", {raw.bytes.begin(), raw.bytes.begin() + 348});
  expect_error<IoError>([&] { read_nifti(folder / "pair.hdr"); }, {"pair.img", "no such file"});
  write_bytes(folder / "pair.img", {raw.bytes.begin() + 352, raw.bytes.end()});
  EXPECT_EQ(read_nifti(folder / "pair.hdr").volume.data[23], 23.0f);
}

TEST(Nifti, BadFiles) {
  const TemporaryFolder folder;
  const auto reject = [&](const std::string& name, const std::vector<char>& bytes,
                          std::vector<std::string> parts) {
    write_bytes(folder / name, bytes);
    parts.push_back(name);
    expect_error<FormatError>([&] { read_nifti(folder / name); }, parts);
  };
  expect_error<IoError>([&] { read_nifti(folder / "missing.nii.gz"); },
                        {"missing.nii.gz", "no such file", "expected a NIfTI file"});
  expect_error<IoError>([&] { read_nifti(folder.path()); }, {"is a folder"});
  reject("empty.nii", {}, {"is empty"});
  reject("short.nii", std::vector<char>(100, 'a'), {"not a NIfTI file", "100 bytes"});
  reject("text.nii", std::vector<char>(1000, 'a'), {"not a NIfTI file", "sizeof_hdr"});
  RawNifti raw = small_file();
  std::memset(raw.bytes.data() + 344, 0, 4);
  reject("analyze.nii", raw.bytes, {"not a NIfTI file", "magic"});
  raw = small_file();
  raw.bytes.pop_back();
  reject("truncated.nii", raw.bytes, {"truncated"});
  raw = small_file();
  raw.dims({24, 1});
  reject("flat.nii", raw.bytes, {"dim is 24 x 1", "2D", "3D"});
  raw.dims({6, 4, 1});
  reject("thin.nii", raw.bytes, {"dim is 6 x 4 x 1", "2D"});
  raw.dims({2, 3, 2, 2});
  reject("series.nii", raw.bytes, {"dim is 2 x 3 x 2 x 2", "2 volumes", "expected one 3D volume"});
  raw.dims({2, 3, 2, 1, 2});
  reject("vectors.nii", raw.bytes, {"2 volumes"});
  raw.dims({2, 0, 2});
  reject("zero.nii", raw.bytes, {"dim[2] is 0"});
  raw.dims({2, -3, 2});
  reject("negative.nii", raw.bytes, {"dim[2] is -3"});
  raw.put<int16_t>(40, 9);
  reject("rank.nii", raw.bytes, {"dim[0] is 9"});
  raw = small_file();
  raw.dims({32767, 32767, 3});
  reject("absurd.nii", raw.bytes, {"more than this file", "can hold"});
  write_gzip(folder / "absurd.nii.gz", raw.bytes);
  expect_error<FormatError>([&] { read_nifti(folder / "absurd.nii.gz"); }, {"can hold"});
  raw.dims({32767, 32767, 32767});
  reject("more_absurd.nii", raw.bytes, {"dim is 32767 x 32767 x 32767", "expected at most 4294967296"});
  expect_error<FormatError>([&] { read_nifti_header(folder / "more_absurd.nii"); }, {"expected at most"});
  raw = small_file();
  raw.type(128, 24);
  reject("rgb.nii", raw.bytes, {"datatype is 128", "RGB24", "expected"});
  raw.type(32, 64);
  reject("complex.nii", raw.bytes, {"datatype is 32"});
  raw = small_file();
  raw.put<float>(80, 0.0f);
  reject("pixdim.nii", raw.bytes, {"pixdim[1] is 0"});
  raw = small_file();
  raw.sform({1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0});
  reject("singular.nii", raw.bytes, {"sform", "singular"});
  raw.sform({1, 0, 0, 0, 0, std::numeric_limits<float>::quiet_NaN(), 0, 0, 0, 0, 1, 0});
  reject("nan_form.nii", raw.bytes, {"sform"});
  raw = small_file();
  raw.put<int16_t>(252, 1);
  for (const int field : {256, 260, 264, 268, 272, 276}) {
    RawNifti bad = raw;
    bad.put<float>(field, field < 268 ? std::numeric_limits<float>::quiet_NaN()
                                      : std::numeric_limits<float>::infinity());
    reject("quaternion.nii", bad.bytes, {"qform", "not finite"});
  }
  raw = small_file();
  raw.put<float>(108, 100.0f);
  reject("offset.nii", raw.bytes, {"vox_offset is 100"});
  raw.put<float>(108, std::numeric_limits<float>::quiet_NaN());
  reject("offset_nan.nii", raw.bytes, {"vox_offset"});
  raw.put<float>(108, 1e6f);
  reject("offset_far.nii", raw.bytes, {"can hold"});
  raw = small_file();
  raw.put<float>(108, 384.0f);
  raw.bytes[348] = 1;
  raw.put<int32_t>(352, 1 << 20);
  raw.bytes.resize(512);
  reject("extension.nii", raw.bytes, {"esize"});
}

// A small file that unpacks to much: behind the voxels, in front of them, or as extensions.
TEST(Nifti, GzipBombs) {
  const TemporaryFolder folder;
  RawNifti raw = small_file();
  const auto packed = [&](const char* name, size_t bytes) {
    std::vector<char> large = raw.bytes;
    large.resize(large.size() + bytes, 0);
    write_gzip(folder / name, large);
    return folder / name;
  };
  EXPECT_EQ(read_nifti(packed("padded.nii.gz", 1000)).volume.data[23], 23.0f);
  expect_error<FormatError>([&] { read_nifti(packed("behind.nii.gz", 64 << 20)); },
                            {"behind.nii.gz", "follow the voxels that dim declares"});
  raw.put<float>(108, 0x1p28f + 32);
  expect_error<FormatError>([&] { read_nifti(packed("offset.nii.gz", 1 << 20)); },
                            {"vox_offset is 268435488", "expected at most 268435456"});
  raw.put<float>(108, 0x1p28f);
  raw.bytes[348] = 1;
  raw.put<int32_t>(352, 1 << 27);
  expect_error<FormatError>([&] { read_nifti(packed("extension.nii.gz", 1 << 20)); },
                            {"vox_offset is 268435456", "can hold"});
}

TEST(Nifti, TrailingExtentsOfOneAreFine) {
  const TemporaryFolder folder;
  RawNifti raw = small_file();
  raw.dims({2, 3, 4, 1, 1});
  write_bytes(folder / "5d.nii", raw.bytes);
  const NiftiImage image = read_nifti(folder / "5d.nii");
  EXPECT_EQ(image.volume.size(), (Size3{2, 3, 4}));
  write_like(folder / "back.nii", image.volume, image.header);
  EXPECT_EQ(bytes_of(folder / "back.nii")[40], 5) << "dim is the input's";
}

TEST(Nifti, DamagedGzip) {
  const TemporaryFolder folder;
  const Geometry geometry = make_geometry({16, 16, 16}, {1, 1, 1});
  const auto path = folder / "good.nii.gz";
  write_like(path, random_image(geometry, 8), make_nifti_header(geometry, "RAS"));
  const std::vector<char> good = bytes_of(path);
  for (const size_t keep :
       {good.size() - 1, good.size() - 8, good.size() - 9, good.size() / 2, size_t{400}}) {
    write_bytes(folder / "cut.nii.gz", {good.begin(), good.begin() + static_cast<std::ptrdiff_t>(keep)});
    expect_error<FormatError>([&] { read_nifti(folder / "cut.nii.gz"); }, {"cut.nii.gz", "truncated"});
  }
  std::vector<char> bad = good;
  bad[bad.size() - 6] ^= 1;  // in the checksum
  write_bytes(folder / "crc.nii.gz", bad);
  expect_error<FormatError>([&] { read_nifti(folder / "crc.nii.gz"); },
                            {"crc.nii.gz", "damaged", "incorrect data check"});
  bad = good;
  bad[bad.size() - 2] ^= 1;  // in the length
  write_bytes(folder / "length.nii.gz", bad);
  expect_error<FormatError>([&] { read_nifti(folder / "length.nii.gz"); },
                            {"damaged", "incorrect length check"});
  bad = good;
  bad[bad.size() / 2] ^= 0x55;
  write_bytes(folder / "flip.nii.gz", bad);
  expect_error<FormatError>([&] { read_nifti(folder / "flip.nii.gz"); }, {"damaged"});
}

TEST(Nifti, EveryTruncationAndBitOfAHeaderIsSafe) {
  // Whatever a header says, the answer is a volume or a typed error.
  const TemporaryFolder folder;
  const RawNifti raw = small_file();
  int volumes = 0;
  int errors = 0;
  for (size_t byte = 0; byte < 352; ++byte) {
    for (const int mask : {0x01, 0x80, 0xff}) {
      std::vector<char> bytes = raw.bytes;
      bytes[byte] = static_cast<char>(bytes[byte] ^ mask);
      write_bytes(folder / "fuzz.nii", bytes);
      try {
        volumes += read_nifti(folder / "fuzz.nii").volume.data.empty() ? 0 : 1;
      } catch (const FormatError&) {
        ++errors;
      }
    }
  }
  EXPECT_EQ(volumes + errors, 352 * 3);
  EXPECT_GT(errors, 40);
  EXPECT_GT(volumes, 500) << "most of the header does not matter to the voxels";
}

TEST(Nifti, FiniteAndNonzero) {
  Image image(make_geometry({4, 3, 2}, {1, 1, 1}), 1.0f);
  require_finite(image, "a.nii");
  require_nonzero(image, "a.nii");
  image.at(1, 2, 1) = std::numeric_limits<float>::quiet_NaN();
  image.at(2, 2, 1) = std::numeric_limits<float>::infinity();
  expect_error<FormatError>([&] { require_finite(image, "a.nii"); }, {"a.nii", "2 of 24", "1 2 1"});
  const Image zeros(image.geometry);
  expect_error<FormatError>([&] { require_nonzero(zeros, "b.nii"); }, {"b.nii", "all 24 voxels are 0"});
}

TEST(Nifti, WritingIsAtomicAndRepeatable) {
  const TemporaryFolder folder;
  const Geometry geometry = make_geometry({32, 32, 32}, {1, 1, 1});
  const NiftiHeader header = make_nifti_header(geometry, "LPS");
  const Image image = random_image(geometry, 9);
  const auto path = folder / "a.nii.gz";
  write_like(path, image, header);
  const std::vector<char> first = bytes_of(path);
  write_like(path, image, header);
  EXPECT_EQ(bytes_of(path), first);
  EXPECT_EQ(folder.entries(), 1u);

  // A disk that takes no more than 16 KiB: the old file stays, nothing else does.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 16384;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Image other = random_image(geometry, 10);
  for (const char* name : {"a.nii.gz", "b.nii.gz", "c.nii"}) {
    expect_error<IoError>([&] { write_like(folder / name, other, header); }, {name, "writing failed"});
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(folder.entries(), 1u);
  EXPECT_EQ(bytes_of(path), first);

  expect_error<IoError>([&] { write_like(folder / "none/a.nii", image, header); },
                        {"none/a.nii", "cannot be created"});
  expect_error<UsageError>([&] { write_like(folder / "a.mha", image, header); }, {"a.mha", ".nii.gz"});
  std::filesystem::create_directory(folder / "dir.nii");
  expect_error<IoError>([&] { write_like(folder / "dir.nii", image, header); },
                        {"dir.nii", "renaming failed"});
  EXPECT_EQ(folder.entries(), 2u);
}

TEST(Nifti, Int16RoundsAndRefusesWhatDoesNotFit) {
  const TemporaryFolder folder;
  const Geometry geometry = make_geometry({2, 2, 2}, {1, 1, 1});
  Image image(geometry, 0.0f);
  image.data[0] = 2.6f;
  image.data[1] = -32768.0f;
  write_like(folder / "a.nii", image, make_nifti_header(geometry, "RAS"), VoxelType::int16);
  const Image back = read_nifti(folder / "a.nii").volume;
  EXPECT_EQ(back.data[0], 3.0f);
  EXPECT_EQ(back.data[1], -32768.0f);
  for (const float value : {32768.0f, std::numeric_limits<float>::quiet_NaN()}) {
    image.data[1] = value;
    expect_error<FormatError>(
        [&] { write_like(folder / "b.nii", image, make_nifti_header(geometry, "RAS"), VoxelType::int16); },
        {"does not fit in int16"});
  }
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(Nifti, OrientationNamesAreChecked) {
  const Geometry geometry = make_geometry({2, 2, 2}, {1, 1, 1});
  for (const char* name : {"", "RA", "RAA", "RLS", "XYZ", "RASP"}) {
    expect_error<UsageError>([&] { make_nifti_header(geometry, name); }, {"RAS or LPS"});
  }
}

// Orientation, size, sum, and sum weighted by index % 9973, as nibabel 5.0.0's as_closest_canonical gives
// them.
TEST(NiftiRealData, AgreesWithNibabel) {
  struct Known {
    const char* file;
    const char* orientation;
    Size3 size;
    double sum;
    double weighted;
  };
  const Known known[] = {
      {"nifti_odd/avg152T1_LR_nifti2.nii.gz", "LAS", {91, 109, 91}, 74825382, 315025277794},
      {"totalsegmentator/example_ct.nii.gz", "RAS", {122, 101, 112}, -496851173, -2463089823279},
      {"brats2021/BraTS2021_01477/BraTS2021_01477_seg.nii.gz", "LPS", {240, 240, 155}, 312881, 1558384654}};
  for (const Known& expected : known) {
    const auto path = data_folder() / expected.file;
    NEED_FILE(path);
    const NiftiImage image = read_nifti(path);
    double sum = 0;
    double weighted = 0;
    for (size_t i = 0; i < image.volume.data.size(); ++i) {
      sum += double(image.volume.data[i]);
      weighted += double(image.volume.data[i]) * double(i % 9973);
    }
    EXPECT_EQ(image.header.orientation, expected.orientation) << path;
    EXPECT_EQ(image.volume.size(), expected.size) << path;
    EXPECT_EQ(sum, expected.sum) << path;  // whole numbers below 2^53
    EXPECT_EQ(weighted, expected.weighted) << path;
  }
}

TEST(NiftiRealData, OddFiles) {
  const auto odd = data_folder() / "nifti_odd";
  NEED_FILE(odd);
  const NiftiImage big = read_nifti(odd / "big.nii.gz");
  const NiftiImage little = read_nifti(odd / "little.nii.gz");
  EXPECT_EQ(big.volume.data, little.volume.data);
  EXPECT_EQ(read_nifti(odd / "avg152T1_LR_nifti2.nii.gz").header.version, 2);
  EXPECT_FALSE(read_nifti_header(odd / "with_extension.nii.gz").extensions.empty());
  expect_error<FormatError>([&] { read_nifti(odd / "not-nifti.nii"); }, {"not a NIfTI file"});
}

TEST(NiftiRealData, HeadersComeBack) {
  const TemporaryFolder folder;
  const std::vector<std::filesystem::path> files{
      data_folder() / "brats2021/BraTS2021_01477/BraTS2021_01477_seg.nii.gz",
      data_folder() / "spinal_cord/sub-unf01_T2w.nii.gz",
      data_folder() / "totalsegmentator/example_ct.nii.gz", data_folder() / "meshnet/t1_crop.nii.gz"};
  for (const auto& file : files) {
    NEED_FILE(file);
    const NiftiImage image = read_nifti(file);
    write_like(folder / "again.nii.gz", image.volume, image.header);
    const NiftiImage again = read_nifti(folder / "again.nii.gz");
    EXPECT_EQ(again.volume.data, image.volume.data) << file;
    EXPECT_EQ(again.header.orientation, image.header.orientation) << file;
    EXPECT_EQ(geometry_difference(again.header.geometry, image.header.geometry, 0), "") << file;
    EXPECT_TRUE(std::equal(image.header.bytes.begin() + 252, image.header.bytes.begin() + 328,
                           again.header.bytes.begin() + 252));
  }
}

}  // namespace
}  // namespace vesal::imaging
