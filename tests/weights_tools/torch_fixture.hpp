// Builders of pickles and ZIP archives, byte by byte, so that tests can write what no well-behaved program
// would; and a temporary folder with the one question that most tests ask: with which line is this file
// refused?
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "weights_tools/weights_file.hpp"

namespace vesal::weights {

// `value` in `bytes` bytes, little-endian; more than 8 end in zeros.
inline std::string le(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) {
    text += static_cast<char>(i < 8 ? value >> (8 * i) : 0);
  }
  return text;
}

// Values as a file holds them.
template <class T>
std::string raw(std::initializer_list<T> values) {
  return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T)};
}

class PickleBuilder {
 public:
  explicit PickleBuilder(int protocol = 2) : bytes_{'\x80', static_cast<char>(protocol)} {}

  PickleBuilder& op(std::string_view bytes) {
    bytes_ += bytes;
    return *this;
  }
  PickleBuilder& text(std::string_view value) { return op("X").op(le(value.size(), 4)).op(value); }
  PickleBuilder& integer(int64_t value) {
    return value >= 0 && value < 256 ? op("K").op(le(static_cast<uint64_t>(value), 1))
                                     : op("\x8a\x08").op(le(static_cast<uint64_t>(value), 8));
  }
  PickleBuilder& global(std::string_view module, std::string_view name) {
    return op("c").op(module).op("\n").op(name).op("\n");
  }
  PickleBuilder& integers(const std::vector<int64_t>& values) {
    op("(");
    for (const int64_t value : values) {
      integer(value);
    }
    return op("t");
  }
  PickleBuilder& storage(std::string_view type, std::string_view key, int64_t elements) {
    return op("(").text("storage").global("torch", type).text(key).text("cpu").integer(elements).op("tQ");
  }
  // The arguments behind the storage, and the call.
  PickleBuilder& view(int64_t offset, const std::vector<int64_t>& shape,
                      const std::vector<int64_t>& strides) {
    return integer(offset)
        .integers(shape)
        .integers(strides)
        .op("\x89")
        .global("collections", "OrderedDict")
        .op(")RtR");
  }
  // A float tensor.
  PickleBuilder& tensor(std::string_view key, int64_t elements, int64_t offset,
                        const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    return global("torch._utils", "_rebuild_tensor_v2")
        .op("(")
        .storage("FloatStorage", key, elements)
        .view(offset, shape, strides);
  }
  // The vector of all elements of a storage.
  PickleBuilder& vector(std::string_view key, int64_t elements) {
    return tensor(key, elements, 0, {elements}, {1});
  }

  std::string stop() const { return bytes_ + "."; }

 private:
  std::string bytes_;
};

class ZipBuilder {
 public:
  enum class Style {
    torch,  // data descriptors, empty local sizes, padded extra fields, ZIP64 end records
    plain   // as simple as a ZIP can be
  };

  explicit ZipBuilder(Style style = Style::torch) : style_(style) {}

  ZipBuilder& add(std::string_view name, std::string_view data) {
    const auto crc = static_cast<uint32_t>(
        ::crc32(0, reinterpret_cast<const Bytef*>(data.data()), static_cast<uInt>(data.size())));
    const bool torch = style_ == Style::torch;
    const uint64_t flags = torch ? 0x808 : 0;
    local.push_back(bytes_.size());
    std::string extra;
    if (torch) {
      const size_t padding = 63 - (bytes_.size() + 30 + name.size() + 4 + 63) % 64;
      extra = std::string("FB") + le(padding, 2) + std::string(padding, 'Z');
    }
    bytes_ += std::string("PK\3\4") + le(0, 2) + le(flags, 2) + le(0, 6) + le(torch ? 0 : crc, 4) +
              le(torch ? 0 : data.size(), 4) + le(torch ? 0 : data.size(), 4) + le(name.size(), 2) +
              le(extra.size(), 2) + std::string(name) + extra;
    this->data.push_back(bytes_.size());
    bytes_ += data;
    if (torch) {
      bytes_ += std::string("PK\7\b") + le(crc, 4) + le(data.size(), 4) + le(data.size(), 4);
    }
    directory_offsets_.push_back(directory_.size());
    directory_ += std::string("PK\1\2") + le(0, 4) + le(flags, 2) + le(0, 6) + le(crc, 4) +
                  le(data.size(), 4) + le(data.size(), 4) + le(name.size(), 2) + le(0, 12) +
                  le(local.back(), 4) + std::string(name);
    return *this;
  }

  std::string finish() {
    const size_t start = bytes_.size();
    for (const size_t offset : directory_offsets_) {
      central.push_back(start + offset);
    }
    bytes_ += directory_;
    if (style_ == Style::torch) {
      end64 = bytes_.size();
      bytes_ += std::string("PK\6\6") + le(44, 8) + le(0x2d031e, 4) + le(0, 8) + le(local.size(), 8) +
                le(local.size(), 8) + le(directory_.size(), 8) + le(start, 8);
      locator = bytes_.size();
      bytes_ += std::string("PK\6\7") + le(0, 4) + le(end64, 8) + le(1, 4);
    }
    end = bytes_.size();
    bytes_ += std::string("PK\5\6") + le(0, 4) + le(local.size(), 2) + le(local.size(), 2) +
              le(directory_.size(), 4) + le(start, 4) + le(0, 2);
    return bytes_;
  }

  // Where in the file things are; the last four are known when it is finished.
  std::vector<size_t> local;
  std::vector<size_t> data;
  std::vector<size_t> central;
  size_t end64 = 0;
  size_t locator = 0;
  size_t end = 0;

 private:
  Style style_;
  std::string bytes_;
  std::string directory_;
  std::vector<size_t> directory_offsets_;
};

// `bytes` with others in their place.
inline std::string patched(std::string bytes, size_t at, std::string_view replacement) {
  std::copy(replacement.begin(), replacement.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
  return bytes;
}

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
