// numpy's arrays and the archives around them.
#include "imaging/npz.hpp"
#include "tests/fuzz/archives.hpp"

namespace vesal::fuzz {
namespace {

// A deflated entry of a small file may hold a thousand times as much.
constexpr uint64_t kMostRead = 8u << 20;

std::string npy(std::string_view descr, std::string_view shape, bool fortran, const std::string& data,
                int version) {
  std::string header = concat("{'descr': '", descr, "', 'fortran_order': ", fortran ? "True" : "False",
                              ", 'shape': ", shape, ", }");
  header.append(63 - (header.size() + 10) % 64, ' ');
  header += '\n';
  return concat("\x93NUMPY", weights::le(static_cast<uint64_t>(version), 2),
                weights::le(header.size(), version == 1 ? 2 : 4), header, data);
}

}  // namespace

std::vector<std::string> seeds() {
  const std::string floats = weights::raw<float>({0, 1, 2, 3, 4, 5});
  const weights::Records arrays{{"image.npy", npy("<f4", "(1, 2, 3)", false, floats, 1)},
                                {"label.npy", npy("|u1", "(6,)", false, std::string("\0\1\2\3\4\5", 6), 1)},
                                {"turned.npy", npy(">i2", "(3, 2)", true, floats.substr(0, 12), 2)},
                                {"mask.npy", npy("|b1", "()", false, "\1", 3)},
                                {"half.npy", npy("<f2", "(2, 0, 3)", true, "", 1)}};
  std::vector<std::string> files;
  for (const bool deflate : {false, true}) {
    for (const auto style : {weights::ZipBuilder::Style::torch, weights::ZipBuilder::Style::plain}) {
      weights::ZipBuilder all(style);
      for (const auto& [name, data] : arrays) {
        all.add(name, data, deflate);
        files.push_back(weights::ZipBuilder(style).add(name, data, deflate).finish());
      }
      files.push_back(all.finish());
    }
  }
  return files;
}

void read(const std::filesystem::path& path) {
  const imaging::NpzFile file(path);
  for (const std::string& name : file.names()) {
    const imaging::NpyArray array = file.read(name, kMostRead);
    if (array.to_floats().size() != static_cast<size_t>(array.count())) {
      throw std::logic_error("an array of another size than its shape says");
    }
    try {
      array.to_labels();
    } catch (const FormatError&) {
      // Most arrays are no labels.
    }
  }
}

void mutate(std::string& bytes, RandomStream& random, const Change& change) {
  mutate_archive(bytes, random, change, true);
}

}  // namespace vesal::fuzz
