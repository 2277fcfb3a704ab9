// Files that are absent, no files, or change while they are read.
#include "weights_tools/file_source.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "tests/weights_tools/torch_fixture.hpp"

namespace vesal::weights {
namespace {

using FileSourceTest = FileTest;

TEST_F(FileSourceTest, ReadsByPosition) {
  const FileSource file(write("0123456789"));
  EXPECT_EQ(file.size(), 10u);
  EXPECT_EQ(file.name(), (folder_ / "file.pt").string());
  std::string text(4, ' ');
  file.read(6, std::as_writable_bytes(std::span(text)));
  EXPECT_EQ(text, "6789");
  file.read(10, {});
}

TEST_F(FileSourceTest, BytesPastTheEndAreRefused) {
  const FileSource file(write("0123456789"));
  std::byte bytes[11];
  for (const uint64_t offset : {uint64_t{0}, uint64_t{11}, ~uint64_t{0}, ~uint64_t{0} - 10}) {
    EXPECT_NE(line_of([&] { file.read(offset, bytes); }).find("the file holds 10"), std::string::npos)
        << offset;
  }
  EXPECT_NE(line_of([&] { file.read(10, std::span(bytes).first(1)); }), "");
  EXPECT_NE(line_of([&] { file.read(11, {}); }), "");
}

TEST_F(FileSourceTest, PartsTogetherAreTheWhole) {
  constexpr uint64_t kPart = FileSource::kPartBytes;
  std::string text(3 * kPart + 2, ' ');
  for (size_t i = 0; i < text.size(); ++i) {
    text[i] = static_cast<char>(i % 251);
  }
  const FileSource file(write(text));
  for (const uint64_t count : {uint64_t{0}, uint64_t{1}, kPart - 1, kPart, kPart + 1, 3 * kPart}) {
    for (const bool with_target : {false, true}) {
      std::vector<std::byte> target(with_target ? count : 0, std::byte{255});
      std::string seen(count, '\xff');
      std::atomic<uint64_t> handed_out = 0;
      file.read_parts(1, count, target, [&](uint64_t position, std::span<const std::byte> part) {
        EXPECT_EQ(position % kPart, 0u);
        EXPECT_EQ(part.size(), std::min(kPart, count - position));
        std::memcpy(seen.data() + position, part.data(), part.size());
        handed_out += part.size();
      });
      EXPECT_EQ(handed_out, count);
      EXPECT_TRUE(seen == text.substr(1, count)) << count;
      EXPECT_TRUE(!with_target || std::ranges::equal(target, std::as_bytes(std::span(seen)))) << count;
    }
  }
  std::byte few[2];
  const auto ignore = [](uint64_t, std::span<const std::byte>) {};
  EXPECT_THROW(file.read_parts(0, 3, few, ignore), ShapeError);
  EXPECT_NE(line_of([&] { file.read_parts(3 * kPart, 3, {}, ignore); }).find("truncated?"),
            std::string::npos);
}

// A file that shrinks between the check of its size and the access must be an error, not a signal.
TEST_F(FileSourceTest, AFileThatShrinksIsAnError) {
  const FileSource file(write(std::string(1 << 20, 'x')));
  std::filesystem::resize_file(file.path(), 5000);
  std::vector<std::byte> bytes(1 << 20);
  EXPECT_NE(line_of([&] { file.read(0, bytes); }).find("ends at byte 5000, held 1048576"), std::string::npos);
  EXPECT_NE(line_of([&] { file.read(1 << 19, std::span(bytes).first(1)); }).find("shortened"),
            std::string::npos);
}

TEST_F(FileSourceTest, WhatIsNoFileIsAnIoError) {
  EXPECT_THROW(FileSource(folder_ / "absent"), IoError);
  EXPECT_THROW(FileSource{folder_}, IoError);
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(FileSource(folder_ / "pipe"), IoError);
}

}  // namespace
}  // namespace vesal::weights
