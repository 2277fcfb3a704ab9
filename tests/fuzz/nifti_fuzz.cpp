// NIfTI files: headers, extensions, voxels, gzip around them.
#include <zlib.h>

#include "base/error.hpp"
#include "imaging/nifti.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "tests/imaging/raw_nifti.hpp"

namespace vesal::fuzz {
namespace {

// Above what the largest input makes of itself: a change that makes a bomb of it is made by chance seldom
// enough.
constexpr size_t kMostUnpacked = 1u << 16;

// The bytes in one gzip member; `level` 0 stores them.
std::string gzip(const std::string& bytes, int level) {
  z_stream stream{};
  deflateInit2(&stream, level, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, bytes.size()) + 32, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

// What is in a gzip member, as far as it goes; "" where there is none.
std::string unpacked(const std::string& bytes) {
  z_stream stream{};
  std::string result(kMostUnpacked, '\0');
  inflateInit2(&stream, 15 + 16);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(result.data());
  stream.avail_out = static_cast<uInt>(result.size());
  inflate(&stream, Z_FINISH);
  result.resize(stream.total_out);
  inflateEnd(&stream);
  return result;
}

}  // namespace

std::vector<std::string> seeds() {
  const auto text = [](const std::vector<char>& bytes) { return std::string(bytes.begin(), bytes.end()); };
  std::vector<std::string> files;
  imaging::RawNifti raw = imaging::small_file();
  files.push_back(text(raw.bytes));
  raw.sform({-1, 0, 0, 9, 0, -2, 0, 8, 0, 0, 3, 7});
  raw.put<float>(112, 0.5f);  // slope
  raw.put<float>(116, -10.0f);
  files.push_back(text(raw.bytes));

  // A qform, voxels of 16 bits, an extension, trailing extents of 1.
  raw = imaging::RawNifti();
  raw.dims({2, 2, 3, 1, 1});
  raw.type(4, 16);
  raw.put<int16_t>(252, 1);
  raw.put<float>(260, 1.0f);
  raw.put<float>(268, 4.0f);
  raw.put<float>(108, 384.0f);
  raw.bytes[348] = 1;
  raw.bytes.resize(384, 'x');
  raw.put<int32_t>(352, 32);
  raw.put<int32_t>(356, 6);
  raw.voxels(std::vector<int16_t>(12, 300));
  files.push_back(text(raw.bytes));

  // Version 2.
  raw.bytes.assign(544, 0);
  raw.put<int32_t>(0, 540);
  std::memcpy(raw.bytes.data() + 4, "n+2\0\r\n\032\n", 8);
  raw.put<int16_t>(12, 2);
  raw.put<int16_t>(14, 8);
  for (int i = 0; i < 8; ++i) {
    raw.put<int64_t>(16 + 8 * i, i == 0 ? 3 : i < 4 ? 2 : 1);
    raw.put<double>(104 + 8 * i, 1.0);
  }
  raw.put<int64_t>(168, 544);
  raw.voxels(std::vector<uint8_t>{1, 2, 3, 4, 5, 6, 7, 8});
  files.push_back(text(raw.bytes));

  // The other byte order: the fields that must be read.
  raw = imaging::RawNifti();
  raw.bytes.assign(352, 0);
  const auto big = [&](int offset, uint32_t value, int width) {
    for (int i = 0; i < width; ++i) {
      raw.put<char>(offset + i, static_cast<char>(value >> (8 * (width - 1 - i))));
    }
  };
  big(0, 348, 4);
  for (int i = 0; i < 8; ++i) {
    big(40 + 2 * i, i == 0 ? 3 : i < 4 ? 2 : 1, 2);
    big(76 + 4 * i, 0x3f800000, 4);
  }
  big(70, 4, 2);
  big(72, 16, 2);
  std::memcpy(raw.bytes.data() + 344, "n+1", 4);
  raw.voxels(std::vector<int16_t>(8, 256));
  files.push_back(text(raw.bytes));

  for (size_t i = 0; i < 5; ++i) {
    files.push_back(gzip(files[i], i % 2 == 0 ? 6 : 0));
  }
  return files;
}

void read(const std::filesystem::path& path) {
  imaging::NiftiImage image;
  try {
    image = imaging::read_nifti(path);
  } catch (const IoError&) {
    imaging::read_nifti_header(path);  // a header whose voxels are in another file, which is not there
    return;
  }
  if (static_cast<int64_t>(image.volume.data.size()) != image.header.stored_size.voxels()) {
    throw std::logic_error("a volume of another size than its header says");
  }
}

// What is in a gzip file is changed and packed again, three times in four.
void mutate(std::string& bytes, RandomStream& random, const Change& change) {
  const bool packed = bytes.starts_with("\x1f\x8b");
  if (packed && below(random, 4) != 0) {
    bytes = unpacked(bytes);
    change(bytes);
    bytes = gzip(bytes, below(random, 2) == 0 ? 1 : 9);
  } else if (!packed && below(random, 16) == 0) {
    bytes = gzip(bytes, 9);
  } else {
    change(bytes);
  }
}

}  // namespace vesal::fuzz
