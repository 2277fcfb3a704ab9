// A temporary folder, and the one question that most tests of files ask: with which line is this file
// refused?
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "tests/weights_tools/torch_builders.hpp"
#include "weights_tools/weights_file.hpp"

namespace vesal::weights {

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() /
              concat("vesal_", info->test_suite_name(), "_", info->name(), "_", ::getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(std::string_view bytes, const char* name = "file.pt") const {
    // A new file each time: ext4 waits for the disk when an old one is truncated and written again.
    std::filesystem::remove(folder_ / name);
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }

  // The line with which `use` refuses a file; "" when it does not. Lines are lines, short, and begin with the
  // file.
  template <class Use>
  std::string line_of(const Use& use) const {
    const auto start = std::chrono::steady_clock::now();
    std::string line;
    try {
      use();
    } catch (const FormatError& error) {
      line = error.what();
      EXPECT_TRUE(line.starts_with(folder_.string())) << line;
      EXPECT_LT(line.size(), folder_.string().size() + 1000) << line;
      for (const char c : line) {
        EXPECT_TRUE(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f) << line;
      }
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20)) << line;
    return line;
  }

  // Opens a file and reads every tensor of it.
  std::string refusal(const std::filesystem::path& path, std::string_view dictionary = {}) const {
    return line_of([&] {
      const std::unique_ptr<WeightsFile> file = open_weights(path, dictionary);
      for (const StoredTensor& tensor : file->tensors()) {
        file->read_bytes(tensor);
      }
    });
  }
  std::string refusal_of(std::string_view bytes) const { return refusal(write(bytes)); }

  void expect_refused(std::string_view bytes, std::string_view part) const {
    const std::string line = refusal_of(bytes);
    EXPECT_FALSE(line.empty()) << "was accepted, expected: " << part;
    EXPECT_NE(line.find(part), std::string::npos) << "found: " << line << "\nexpected: " << part;
  }

  // Damages a file in many ways, the same ones every time: what is not refused is read without harm.
  template <class Use>
  void expect_no_harm(const std::string& bytes, int times, const Use& use) const {
    RandomStream random(17, 0, 0);
    const auto below = [&](size_t limit) {
      return static_cast<size_t>(random.below(static_cast<int64_t>(limit)));
    };
    for (int i = 0; i < times; ++i) {
      std::string damaged = bytes;
      for (size_t changes = 1 + below(4); changes > 0; --changes) {
        const size_t at = below(damaged.size());
        switch (below(4)) {
          case 0:
            damaged[at] = static_cast<char>(below(256));
            break;
          case 1:
            damaged[at] = static_cast<char>(damaged[at] ^ (1 << below(8)));
            break;
          case 2:
            damaged.erase(at, 1 + below(8));
            break;
          default:
            damaged.insert(at, damaged, below(damaged.size()), 1 + below(8));
        }
        damaged += damaged.empty() ? "x" : "";
      }
      const std::filesystem::path path = write(damaged, "damaged");
      line_of([&] { use(path); });
    }
  }

  std::filesystem::path folder_;
};

}  // namespace vesal::weights
