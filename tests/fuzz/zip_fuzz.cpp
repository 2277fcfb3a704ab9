// The ZIP reader: headers, directories, end records, data.
#include "base/error.hpp"
#include "tests/fuzz/archives.hpp"
#include "weights_tools/zip.hpp"

namespace vesal::fuzz {

using weights::le;
using weights::ZipBuilder;

namespace {
constexpr uint64_t kMostRead = 8u << 20;
}

std::vector<std::string> seeds() {
  std::vector<std::string> files;
  for (const auto style : {ZipBuilder::Style::torch, ZipBuilder::Style::plain}) {
    files.push_back(ZipBuilder(style).finish());
    ZipBuilder zip(style);
    zip.add("a/data.pkl", "pickle").add("a/data/0", std::string(100, 'x'), true).add("a/e", "");
    files.push_back(zip.finish());
    files.push_back(ZipBuilder(style).add("a/code/x.py", "source", true).finish());
  }
  // Sizes in ZIP64 fields, in the directory and in the local header.
  const std::string sizes = le(1, 2) + le(16, 2) + le(4, 8) + le(4, 8);
  const std::string crc = le(::crc32(0, reinterpret_cast<const Bytef*>("data"), 4), 4);
  const std::string local =
      "PK\3\4" + le(0, 10) + crc + le(~uint64_t{0}, 8) + le(1, 2) + le(20, 2) + "a" + sizes + "data";
  const std::string central =
      "PK\1\2" + le(0, 12) + crc + le(~uint64_t{0}, 8) + le(1, 2) + le(20, 2) + le(0, 14) + "a" + sizes;
  files.push_back(local + central + "PK\5\6" + le(0, 4) + le(1, 2) + le(1, 2) + le(central.size(), 4) +
                  le(local.size(), 4) + le(0, 2));
  return files;
}

void read(const std::filesystem::path& path) {
  const weights::FileSource file(path);
  const weights::ZipArchive zip(file, weights::ZipMethods::stored_or_deflated);
  for (const weights::ZipEntry& entry : zip.entries()) {
    if (zip.find(entry.name) != &entry || entry.offset + entry.bytes > file.size()) {
      throw std::logic_error("an entry that is not where it says");
    }
    weights::ZipReader reader(file, entry);
    std::vector<std::byte> data(std::min<uint64_t>(entry.size, kMostRead));
    reader.read(data);
    if (data.size() == entry.size) {
      reader.finish();
    }
    if (!entry.deflated) {
      zip.check_data(entry);
    }
  }
  try {
    const weights::ZipArchive as_torch(file);
  } catch (const FormatError&) {
    // It holds deflated entries.
  }
}

void mutate(std::string& bytes, RandomStream& random, const Change& change) {
  // Headers matter more than data here.
  if (below(random, 4) == 0) {
    mutate_archive(bytes, random, change, true);
  } else {
    change(bytes);
  }
}

}  // namespace vesal::fuzz
