// The ZIP reader: archives as torch and others write them, and every archive that two readers could read
// differently.
#include "weights_tools/zip.hpp"

#include "tests/weights_tools/torch_fixture.hpp"

namespace vesal::weights {
namespace {

class ZipTest : public FileTest {
 protected:
  static void read(const std::filesystem::path& path) {
    const FileSource file(path);
    const ZipArchive zip(file);
    for (const ZipEntry& entry : zip.entries()) {
      zip.check_data(entry);
    }
  }

  void expect_refused(const std::string& bytes, std::string_view part) const {
    const std::filesystem::path path = write(bytes);
    const std::string line = line_of([&] { read(path); });
    EXPECT_FALSE(line.empty()) << "was accepted, expected: " << part;
    EXPECT_NE(line.find(part), std::string::npos) << "found: " << line << "\nexpected: " << part;
  }
  void expect_read(const std::string& bytes) const {
    const std::filesystem::path path = write(bytes);
    EXPECT_EQ(line_of([&] { read(path); }), "");
  }

  // Two entries, "a/data.pkl" and "a/data/0".
  static ZipBuilder two(ZipBuilder::Style style = ZipBuilder::Style::torch) {
    ZipBuilder zip(style);
    zip.add("a/data.pkl", "pickle").add("a/data/0", std::string(100, 'x'));
    return zip;
  }
};

TEST_F(ZipTest, ReadsWhatTorchWritesAndWhatOthersWrite) {
  for (const auto style : {ZipBuilder::Style::torch, ZipBuilder::Style::plain}) {
    ZipBuilder builder = two(style);
    builder.add("a/empty", "").add("a/Data.pkl", "another name");
    const FileSource file(write(builder.finish()));
    const ZipArchive zip(file);
    ASSERT_EQ(zip.entries().size(), 4u);
    const ZipEntry* entry = zip.find("a/data/0");
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry->offset, builder.data[1]);
    EXPECT_EQ(entry->bytes, 100u);
    EXPECT_EQ(style == ZipBuilder::Style::torch, entry->offset % 64 == 0);
    zip.check_data(*entry);
    EXPECT_EQ(zip.find("a/Data.pkl")->bytes, 12u);
    EXPECT_EQ(zip.find("a/DATA.pkl"), nullptr);
    EXPECT_EQ(zip.find("a"), nullptr);
  }
  expect_read(ZipBuilder().finish());
  expect_read(ZipBuilder(ZipBuilder::Style::plain).finish());
}

TEST_F(ZipTest, AcceptsEveryFormOfDataDescriptor) {
  // Without and with a signature, with sizes of 4 and 8 bytes, behind one entry.
  const std::string name = "a/x", data = "data";
  const uint64_t crc = ::crc32(0, reinterpret_cast<const Bytef*>(data.data()), 4);
  for (const std::string& descriptor :
       {le(crc, 4) + le(4, 4) + le(4, 4), std::string("PK\7\b") + le(crc, 4) + le(4, 4) + le(4, 4),
        le(crc, 4) + le(4, 8) + le(4, 8), std::string("PK\7\b") + le(crc, 4) + le(4, 8) + le(4, 8)}) {
    const auto archive = [&](const std::string& behind) {
      const std::string local = std::string("PK\3\4") + le(0, 2) + le(8, 2) + le(0, 18) + le(3, 2) +
                                le(0, 2) + name + data + behind;
      const std::string central = std::string("PK\1\2") + le(0, 4) + le(8, 2) + le(0, 6) + le(crc, 4) +
                                  le(4, 4) + le(4, 4) + le(3, 2) + le(0, 16) + name;
      return local + central + std::string("PK\5\6") + le(0, 4) + le(1, 2) + le(1, 2) +
             le(central.size(), 4) + le(local.size(), 4) + le(0, 2);
    };
    expect_read(archive(descriptor));
    expect_refused(archive(patched(descriptor, descriptor.size() - 4, "\5")), "data descriptor contradicts");
    expect_refused(archive(patched(descriptor, 0, "\1")), "data descriptor contradicts");
    expect_refused(archive(descriptor + "x"), "expected a data descriptor");
    expect_refused(archive(""), "expected a data descriptor");
  }
}

TEST_F(ZipTest, RefusesCompressionAndEncryption) {
  for (const auto style : {ZipBuilder::Style::torch, ZipBuilder::Style::plain}) {
    ZipBuilder zip = two(style);
    const std::string good = zip.finish();
    for (const char* method : {"\1", "\x8", "\x9", "\xc", "\x5d", "\x63"}) {
      const std::string bad = patched(good, zip.central[1] + 10, method);
      expect_refused(bad, "compression method");
      expect_refused(patched(bad, zip.local[1] + 8, method), "compression method");
    }
    const auto flags = static_cast<unsigned char>(good[zip.central[0] + 8]);
    expect_refused(patched(good, zip.central[0] + 8, le(flags | 1, 1)), "encrypted");
    expect_refused(patched(good, zip.central[0] + 8, le(flags | 0x40, 1)), "flags");
    expect_refused(patched(good, zip.central[0] + 9, "\x20"), "flags");
  }
}

// TorchScript compresses code, which is never read; nothing else may be.
TEST_F(ZipTest, CompressedCodeIsAcceptedUnread) {
  for (const auto& [name, good] :
       {std::pair("a/code/x.py", true), {"a/code.py", false}, {"code/x.py", false}}) {
    ZipBuilder zip;
    zip.add("a/data.pkl", "pickle").add(name, "compressed");
    std::string bytes = zip.finish();
    bytes = patched(patched(bytes, zip.central[1] + 10, "\x8"), zip.local[1] + 8, "\x8");
    // It claims to be a gigabyte when unpacked, which nobody does.
    bytes =
        patched(patched(bytes, zip.central[1] + 24, le(1 << 30, 4)), zip.data[1] + 10 + 12, le(1 << 30, 4));
    if (good) {
      expect_read(bytes);
    } else {
      expect_refused(bytes, "compression method 8");
    }
  }
}

TEST_F(ZipTest, RefusesLocalHeadersThatContradictTheDirectory) {
  for (const auto style : {ZipBuilder::Style::torch, ZipBuilder::Style::plain}) {
    ZipBuilder zip = two(style);
    const std::string good = zip.finish();
    const size_t local = zip.local[1];
    expect_refused(patched(good, local, "PK\3\5"), "no local header");
    expect_refused(patched(good, local + 6, "\2"), "flags");
    expect_refused(patched(good, local + 14, le(1, 4)), "CRC-32");
    expect_refused(patched(good, local + 18, le(99, 4)), "compressed size");
    expect_refused(patched(good, local + 22, le(101, 4)), "size");
    expect_refused(patched(good, local + 18, le(0xffffffff, 4)), "ZIP64 size is missing");
    expect_refused(patched(good, local + 30, "b"), "names it \"b/data/0\"");
    expect_refused(patched(good, local + 26, le(7, 2)), "names it \"a/data/\"");
    expect_refused(patched(good, local + 28, le(0xffff, 2)), "pass the directory");
    expect_refused(patched(good, zip.central[1] + 16, le(1, 4)), "");
    expect_refused(patched(good, zip.central[1] + 20, le(99, 4)), "stored as 99 bytes, but 100");
    expect_refused(patched(good, zip.central[1] + 20, le(99, 4) + le(99, 4)), "");
  }
  ZipBuilder plain = two(ZipBuilder::Style::plain);
  expect_refused(patched(plain.finish(), plain.local[1] + 18, le(0, 4)), "compressed size");
}

TEST_F(ZipTest, DamagedDataIsNoticed) {
  ZipBuilder zip = two(ZipBuilder::Style::plain);
  const std::string damaged = patched(zip.finish(), zip.data[1] + 50, "y");
  expect_refused(damaged, "\"a/data/0\": CRC-32");
  // torch.serialization.set_crc32_options(False)
  expect_read(patched(patched(damaged, zip.local[1] + 14, le(0, 4)), zip.central[1] + 16, le(0, 4)));
}

// Fifield's bomb lets many entries quote the same data.
TEST_F(ZipTest, RefusesOverlapsHolesAndPrefixes) {
  for (const auto style : {ZipBuilder::Style::torch, ZipBuilder::Style::plain}) {
    ZipBuilder zip = two(style);
    const std::string good = zip.finish();
    // The second entry is the first once more, then lies within its data.
    expect_refused(patched(good, zip.central[1] + 42, le(zip.local[0], 4)), "overlaps");
    expect_refused(patched(good, zip.central[1] + 42, le(zip.data[0] + 1, 4)), "overlaps");
    expect_refused(patched(good, zip.central[1] + 42, le(good.size(), 4)), "passes the directory");
    expect_refused(patched(good, zip.central[1] + 42, le(zip.central[0], 4)), "passes the directory");
    expect_refused(patched(good, zip.central[0] + 20, le(1000, 4) + le(1000, 4)), "pass the directory");
    expect_refused(patched(good, zip.central[1] + 20, le(0x7fffffff, 4) + le(0x7fffffff, 4)),
                   "pass the directory");
  }
  // A quoted local header: the data of the first entry ends with the second's header.
  ZipBuilder outer(ZipBuilder::Style::plain);
  ZipBuilder inner(ZipBuilder::Style::plain);
  inner.add("b", "hidden");
  outer.add("a", inner.finish()).add("b", "shown");
  const std::string quoting = outer.finish();
  expect_refused(patched(quoting, outer.central[1] + 42, le(outer.data[0], 4)), "overlaps");

  // Bytes in front, between and behind, all offsets right.
  const auto archive = [](const std::string& front, const std::string& behind) {
    ZipBuilder zip(ZipBuilder::Style::plain);
    zip.add("a", "data");
    const std::string good = zip.finish();
    const std::string local = concat(front, good.substr(0, zip.central[0]), behind);
    const std::string central =
        patched(good.substr(zip.central[0], zip.end - zip.central[0]), 42, le(front.size(), 4));
    return local + central + patched(good.substr(zip.end), 16, le(local.size(), 4));
  };
  expect_read(archive("", ""));
  expect_refused(archive("#!/bin/sh\n", ""), "10 bytes in front of the first entry");
  expect_refused(archive("", "more"), "4 bytes behind it belong to no entry");
  const std::string empty = ZipBuilder(ZipBuilder::Style::plain).finish();
  expect_refused(std::string("prefix") + patched(empty, 16, le(6, 4)), "6 bytes that belong to no entry");
  // Offsets that are not right: the directory does not end where the end record starts.
  expect_refused(std::string("prefix") + two().finish(), "");
  expect_refused(std::string("prefix") + two(ZipBuilder::Style::plain).finish(),
                 "expected it to end at byte");
}

TEST_F(ZipTest, RefusesNames) {
  const auto named = [](std::string_view name) {
    ZipBuilder zip;
    zip.add("a/data.pkl", "pickle").add(name, "x");
    return zip.finish();
  };
  expect_refused(named("a/data.pkl"), "occurs twice");
  for (const char* name : {"../x", "a/../../x", "a/..", ".", "./x", "/etc/passwd", "a//x", "a/", "a\\x",
                           "C:\\x", "a/\n", "a/\x1b[31m", "a/\x7f", "a/\xff", "a/\xc0\xaf"}) {
    expect_refused(named(name), "expected a relative path");
  }
  expect_refused(named(""), "expected a relative path");
  expect_refused(named(std::string_view("a/x\0y", 5)), "expected a relative path");
  expect_read(named("a/.data/serialization_id"));
  expect_read(named("a/..."));
  expect_read(named("a/\u00fc"));
}

TEST_F(ZipTest, RefusesEndRecordsThatHideOthers) {
  for (const auto style : {ZipBuilder::Style::torch, ZipBuilder::Style::plain}) {
    ZipBuilder zip = two(style);
    const std::string good = zip.finish();
    // A comment, alone and with an end record in it.
    expect_refused(patched(good, zip.end + 20, le(7, 2)) + "comment", "no end record");
    expect_refused(patched(good, zip.end + 20, le(22, 2)) + good.substr(zip.end), "");
    expect_refused(good + "x", "no end record");
    expect_refused(good + std::string(70000, '\0'), "no end record");
    expect_refused(good + good, "");
    expect_refused(patched(good, zip.end + 4, "\1"), "disks");
    expect_refused(patched(good, zip.end + 6, "\1"), "disks");
    expect_refused(patched(good, zip.end + 8, "\1"), "expected twice the same");
    expect_refused(patched(good, zip.end + 8, le(0x10001, 4)), "");
    expect_refused(patched(good, zip.end + 8, le(0x30003, 4)), "");
    expect_refused(patched(good, zip.end + 12, le(1, 4)), "");
    expect_refused(patched(good, zip.end + 16, le(1, 4)), "");
    expect_refused(patched(good, zip.end + 12, le(0xfffffff0, 4)), "");
    expect_refused(patched(good, zip.central[0], "PK\1\3"), "is no entry");
    expect_refused(patched(good, zip.central[1] + 28, le(60000, 2)), "an entry passes its end");
    expect_refused(patched(good, zip.central[0] + 34, "\1"), "another disk");
    expect_refused(patched(good, zip.central[0] + 32, "\1"), "comment");
  }
}

TEST_F(ZipTest, RefusesFakeZip64) {
  ZipBuilder zip = two();
  const std::string good = zip.finish();
  // The short values may be all ones and mean the long ones, or be the same; nothing else.
  expect_read(patched(good, zip.end + 8, "\xff\xff\xff\xff"));
  expect_read(patched(good, zip.end + 12, "\xff\xff\xff\xff\xff\xff\xff\xff"));
  expect_refused(patched(good, zip.end64 + 24, le(1, 8) + le(1, 8)),
                 "entries: found 2, but 1 in the ZIP64 record");
  expect_refused(patched(good, zip.end64 + 24, le(3, 8)), "disks");
  expect_refused(patched(good, zip.end64 + 40, le(1, 8)), "directory size");
  expect_refused(patched(good, zip.end64 + 48, le(1, 8)), "directory offset");
  expect_refused(patched(good, zip.end64 + 16, le(1, 4)), "disks");
  expect_refused(patched(good, zip.end64 + 4, le(45, 8)), "a length of 45");
  expect_refused(patched(good, zip.end64, "PK\6\5"), "not at byte");
  expect_refused(patched(good, zip.locator + 8, le(zip.end64 - 1, 8)), "points to byte");
  expect_refused(patched(good, zip.locator + 8, le(~uint64_t{0}, 8)), "points to byte");
  expect_refused(patched(good, zip.locator + 16, le(2, 4)), "disks");
  // Without its locator the ZIP64 record is a hole.
  expect_refused(patched(good, zip.locator, "PK\6\5"), "expected it to end at byte");
  const std::string all_ones = patched(patched(good, zip.end + 8, "\xff\xff\xff\xff"), zip.end + 12,
                                       "\xff\xff\xff\xff\xff\xff\xff\xff");
  expect_refused(patched(all_ones, zip.end64 + 24, le(uint64_t{1} << 40, 8) + le(uint64_t{1} << 40, 8)),
                 "expected at most");
  expect_refused(patched(all_ones, zip.end64 + 40, le(~uint64_t{0}, 8)), "expected it to end");
  expect_refused(patched(all_ones, zip.end64 + 48, le(~uint64_t{0}, 8)), "expected it to end");
}

TEST_F(ZipTest, Zip64SizesOfEntries) {
  // An entry with extra fields in the directory and in its local header.
  const auto archive = [](uint64_t short_size, const std::string& central_extra, uint64_t local_size,
                          const std::string& local_extra) {
    const uint64_t crc = ::crc32(0, reinterpret_cast<const Bytef*>("data"), 4);
    const std::string local = std::string("PK\3\4") + le(0, 2) + le(0, 2) + le(0, 6) + le(crc, 4) +
                              le(local_size, 4) + le(local_size, 4) + le(1, 2) + le(local_extra.size(), 2) +
                              "a" + local_extra + "data";
    const std::string central = std::string("PK\1\2") + le(0, 4) + le(0, 2) + le(0, 6) + le(crc, 4) +
                                le(short_size, 4) + le(short_size, 4) + le(1, 2) +
                                le(central_extra.size(), 2) + le(0, 14) + "a" + central_extra;
    return local + central + std::string("PK\5\6") + le(0, 4) + le(1, 2) + le(1, 2) + le(central.size(), 4) +
           le(local.size(), 4) + le(0, 2);
  };
  const uint64_t ones = 0xffffffff;
  const std::string sizes = le(1, 2) + le(16, 2) + le(4, 8) + le(4, 8);
  expect_read(archive(4, "", 4, ""));
  expect_read(archive(ones, sizes, ones, sizes));
  expect_read(archive(ones, le(0x5455, 2) + le(1, 2) + "x" + sizes, 4, ""));
  expect_refused(archive(ones, "", 4, ""), "ZIP64 size is missing");
  expect_refused(archive(ones, le(1, 2) + le(8, 2) + le(4, 8), 4, ""), "ZIP64 size is missing");
  expect_refused(archive(4, sizes, 4, ""), "contradict the short ones");
  expect_refused(archive(ones, sizes + sizes, 4, ""), "occur twice");
  expect_refused(archive(ones, le(1, 2) + le(17, 2) + le(4, 8) + le(4, 8), 4, ""), "passes its end");
  expect_refused(archive(ones, sizes + "x", 4, ""), "passes its end");
  expect_refused(archive(ones, le(1, 2) + le(16, 2) + le(~uint64_t{0}, 8) + le(~uint64_t{0}, 8), 4, ""),
                 "pass the directory");
  expect_refused(archive(ones, sizes, ones, ""), "missing in the local header");
  expect_refused(archive(ones, sizes, ones, le(1, 2) + le(16, 2) + le(5, 8) + le(5, 8)),
                 "in the local header");
  expect_refused(archive(4, "", 4, sizes + "xyz"), "passes its end");
}

// A storage of more than 4 GiB and an entry behind it, as torch writes them; most of the file is a hole.
TEST_F(ZipTest, EntriesPastFourGigabytes) {
  const uint64_t large = (uint64_t{1} << 32) + 10, ones = 0xffffffff;
  const std::string start = concat("PK\3\4", le(0, 2), le(0x808, 2), le(0, 18), le(3, 2), le(20, 2), "a/0",
                                   le(1, 2), le(16, 2), le(large, 8), le(large, 8));
  const uint64_t second = start.size() + large + 24;
  const std::string behind = concat("PK\7\b", le(5, 4), le(large, 8), le(large, 8));
  const std::string last = concat("PK\3\4", le(0, 2), le(0x808, 2), le(0, 18), le(3, 2), le(0, 2), "a/1",
                                  "data", "PK\7\b", le(6, 4), le(4, 8), le(4, 8));
  const std::string directory =
      concat("PK\1\2", le(0, 4), le(0x808, 2), le(0, 6), le(5, 4), le(ones, 4), le(ones, 4), le(3, 2),
             le(20, 2), le(0, 10), le(0, 4), "a/0", le(1, 2), le(16, 2), le(large, 8), le(large, 8),  //
             "PK\1\2", le(0, 4), le(0x808, 2), le(0, 6), le(6, 4), le(4, 4), le(4, 4), le(3, 2), le(12, 2),
             le(0, 10), le(ones, 4), "a/1", le(1, 2), le(8, 2), le(second, 8));
  const uint64_t directory_start = second + last.size();
  const std::string end =
      concat("PK\6\6", le(44, 8), le(0, 4), le(0, 8), le(2, 8), le(2, 8), le(directory.size(), 8),
             le(directory_start, 8), "PK\6\7", le(0, 4), le(directory_start + directory.size(), 8), le(1, 4),
             "PK\5\6", le(0, 4), le(2, 2), le(2, 2), le(directory.size(), 4), le(ones, 4), le(0, 2));
  const std::filesystem::path path = write(start);
  std::filesystem::resize_file(path, second - 24);
  std::ofstream(path, std::ios::binary | std::ios::app) << behind << last << directory << end;
  const FileSource file(path);
  const ZipArchive zip(file);
  ASSERT_EQ(zip.entries().size(), 2u);
  EXPECT_EQ(zip.find("a/0")->offset, start.size());
  EXPECT_EQ(zip.find("a/0")->bytes, large);
  EXPECT_EQ(zip.find("a/1")->offset, second + 33);
  EXPECT_EQ(zip.find("a/1")->bytes, 4u);
}

TEST_F(ZipTest, EveryTruncationIsRefused) {
  for (const auto style : {ZipBuilder::Style::torch, ZipBuilder::Style::plain}) {
    const std::string good = two(style).finish();
    for (size_t length = 0; length < good.size(); ++length) {
      const std::filesystem::path path = write(good.substr(0, length));
      EXPECT_NE(line_of([&] { read(path); }), "") << length << " of " << good.size() << " bytes";
    }
  }
}

TEST_F(ZipTest, DamageDoesNoHarm) {
  expect_no_harm(two().finish(), 3000, read);
  expect_no_harm(two(ZipBuilder::Style::plain).finish(), 3000, read);
}

TEST_F(ZipTest, AFileThatShrinksIsAnError) {
  ZipBuilder builder;
  builder.add("a/data/0", std::string(1 << 20, 'x'));
  const FileSource file(write(builder.finish()));
  const ZipArchive zip(file);
  std::filesystem::resize_file(file.path(), 1000);
  EXPECT_NE(line_of([&] { zip.check_data(zip.entries()[0]); }).find("shortened"), std::string::npos);
}

}  // namespace
}  // namespace vesal::weights
