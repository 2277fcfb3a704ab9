// Files that are absent, no files, or change while they are read.
#include "weights_tools/file_source.hpp"

#include <sys/stat.h>

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
