// A target as a test: its seeds are accepted, and neither the files of tests/fuzz/regressions/NAME, which
// once did harm, nor some thousand changed seeds, the same ones every time, do any.
//   NAME_fuzz [--changes N] [--seed S] [FOLDER]     FOLDER: regressions
//   NAME_fuzz --write FOLDER                        writes the seeds, for libFuzzer to start from
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "tests/fuzz/fuzz.hpp"

namespace fs = std::filesystem;

namespace vesal::fuzz {
namespace {

// Numbers at which sizes and signs turn.
constexpr uint64_t kEdges[] = {0,          1,          0x7f,       0x80,       0xff,       0x7fff,
                               0x8000,     0xffff,     1u << 20,   1u << 28,   0x7fffffff, 0x80000000,
                               0xffffffff, 1ull << 32, 1ull << 62, ~0ull >> 1, 1ull << 63, ~0ull};

void change(std::string& bytes, RandomStream& random) {
  for (size_t changes = 1 + below(random, 3); changes > 0; --changes) {
    bytes += bytes.empty() ? "x" : "";
    const size_t at = below(random, bytes.size());
    switch (below(random, 6)) {
      case 0:
        bytes[at] = static_cast<char>(below(random, 256));
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(random, 8)));
        break;
      case 2:
        bytes.erase(at, 1 + below(random, 8));
        break;
      case 3:
        bytes.insert(at, std::string(bytes, below(random, bytes.size()), 1 + below(random, 8)));
        break;
      case 4:
        bytes.resize(at);
        break;
      default: {
        const uint64_t edge = kEdges[below(random, std::size(kEdges))];
        const size_t width = std::min(size_t{1} << below(random, 4), bytes.size() - at);
        std::memcpy(bytes.data() + at, &edge, width);
      }
    }
  }
}

int replay(const fs::path& regressions, uint64_t changes, uint64_t seed) {
  size_t files = 0;
  if (fs::exists(regressions)) {
    for (const fs::directory_entry& entry : fs::directory_iterator(regressions)) {
      std::ifstream in(entry.path(), std::ios::binary);
      refusal_of(std::string{std::istreambuf_iterator<char>(in), {}});
      ++files;
    }
  }
  const std::vector<std::string> good = seeds();
  for (size_t i = 0; i < good.size(); ++i) {
    if (const std::string line = refusal_of(good[i]); !line.empty()) {
      std::fprintf(stderr, "seed %zu is refused, expected a file that the reader accepts: %s\n", i,
                   line.c_str());
      return 1;
    }
  }
  uint64_t kept = 0;
  for (uint64_t i = 0; i < changes; ++i) {
    RandomStream random(seed, i, 0);
    std::string bytes = good[below(random, good.size())];
    for (size_t times = 1 + below(random, 3); times > 0; --times) {
      mutate(bytes, random, [&](std::string& part) { change(part, random); });
    }
    kept += refusal_of(bytes).empty() ? 1 : 0;
  }
  std::printf("%zu regressions; %zu seeds; %zu changed ones: %zu accepted, the others refused\n", files,
              good.size(), static_cast<size_t>(changes), static_cast<size_t>(kept));
  // A mutator whose files are all refused for the same reason, or none, tests little.
  return changes > 0 && (kept == 0 || kept == changes) ? 1 : 0;
}

int write_seeds(const fs::path& folder) {
  fs::create_directories(folder);
  const std::vector<std::string> good = seeds();
  for (size_t i = 0; i < good.size(); ++i) {
    std::ofstream(folder / ("seed_" + std::to_string(i)), std::ios::binary) << good[i];
  }
  return 0;
}

}  // namespace
}  // namespace vesal::fuzz

int main(int argc, char** argv) {
  uint64_t changes = 0;
  uint64_t seed = 1;
  fs::path regressions;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (i + 1 < argc && argument == "--write") {
      return vesal::fuzz::write_seeds(argv[i + 1]);
    }
    if (i + 1 < argc && (argument == "--changes" || argument == "--seed")) {
      (argument == "--seed" ? seed : changes) = std::strtoull(argv[++i], nullptr, 10);
    } else {
      regressions = argument;
    }
  }
  return vesal::fuzz::replay(regressions, changes, seed);
}
