// numpy's arrays and archives: everything numpy writes, and every malformation as one clear line.
#include "imaging/npz.hpp"

#include <zlib.h>

#include <cmath>

#include "tests/imaging/support.hpp"
#include "tests/weights_tools/torch_fixture.hpp"

namespace vesal::imaging {
namespace {

using weights::le;
using weights::patched;
using weights::raw;
using weights::ZipBuilder;

// A .npy file with this dictionary.
std::string npy(const std::string& dictionary, const std::string& data, int version = 1) {
  std::string header = dictionary;
  header.append(63 - (header.size() + 10) % 64, ' ');
  header += '\n';
  return std::string("\x93NUMPY") + static_cast<char>(version) + '\0' +
         le(header.size(), version == 1 ? 2 : 4) + header + data;
}

std::string dictionary(const std::string& descr, const std::string& shape, bool fortran = false) {
  return "{'descr': '" + descr + "', 'fortran_order': " + (fortran ? "True" : "False") +
         ", 'shape': " + shape + ", }";
}

std::string deflated(const std::string& data) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, data.size()), '\0');
  std::string input = data;
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(::deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

uint64_t crc_of(const std::string& data) {
  return ::crc32(0, reinterpret_cast<const Bytef*>(data.data()), static_cast<uInt>(data.size()));
}

// One deflated entry "labels.npy" that claims `size` bytes with this CRC-32.
std::string deflated_archive(const std::string& stream, uint64_t size, uint64_t crc) {
  ZipBuilder zip(ZipBuilder::Style::plain);
  zip.add("labels.npy", stream);
  std::string bytes = zip.finish();
  for (const auto& [start, method, checksum, length] :
       {std::array<size_t, 4>{zip.local[0], 8, 14, 22}, {zip.central[0], 10, 16, 24}}) {
    bytes = patched(bytes, start + method, le(8, 2));
    bytes = patched(bytes, start + checksum, le(crc, 4));
    bytes = patched(bytes, start + length, le(size, 4));
  }
  return bytes;
}

class NpzTest : public weights::FileTest {
 protected:
  static NpyArray parse(const std::string& bytes) {
    return parse_npy(std::as_bytes(std::span(bytes)), "a.npy");
  }
  static void expect_refused(const std::string& bytes, const std::string& part) {
    expect_error<FormatError>([&] { parse(bytes); }, {"a.npy", part});
  }
  void expect_archive_refused(const std::string& bytes, const std::string& part) const {
    const auto path = write(bytes, "file.npz");
    expect_error<FormatError>([&] { NpzFile(path).read("labels"); }, {path.string(), part});
  }
};

TEST_F(NpzTest, ReadsEveryTypeInEitherByteOrder) {
  const auto floats = [](const std::string& descr, const std::string& data) {
    const NpyArray array = parse(npy(dictionary(descr, "(2,)"), data));
    EXPECT_EQ(array.shape, std::vector<int64_t>{2}) << descr;
    EXPECT_EQ(array.count(), 2) << descr;
    return array.to_floats();
  };
  EXPECT_EQ(floats("|b1", raw<uint8_t>({1, 0})), (std::vector<float>{1, 0}));
  EXPECT_EQ(floats("|u1", raw<uint8_t>({200, 3})), (std::vector<float>{200, 3}));
  EXPECT_EQ(floats("<u2", raw<uint16_t>({60000, 3})), (std::vector<float>{60000, 3}));
  EXPECT_EQ(floats("<u4", raw<uint32_t>({3000000000u, 3})), (std::vector<float>{3000000000.0f, 3}));
  EXPECT_EQ(floats("<u8", raw<uint64_t>({uint64_t{1} << 63, 3})), (std::vector<float>{0x1p63f, 3}));
  EXPECT_EQ(floats("|i1", raw<int8_t>({-100, 3})), (std::vector<float>{-100, 3}));
  EXPECT_EQ(floats("<i2", raw<int16_t>({-30000, 3})), (std::vector<float>{-30000, 3}));
  EXPECT_EQ(floats("<i4", raw<int32_t>({-70000, 3})), (std::vector<float>{-70000, 3}));
  EXPECT_EQ(floats("<i8", raw<int64_t>({-70000, 3})), (std::vector<float>{-70000, 3}));
  EXPECT_EQ(floats("<f2", raw<uint16_t>({0x3e00, 0xc000})), (std::vector<float>{1.5f, -2}));
  EXPECT_EQ(floats("<f4", raw<float>({1.5f, -2})), (std::vector<float>{1.5f, -2}));
  EXPECT_EQ(floats("<f8", raw<double>({1.5, -2})), (std::vector<float>{1.5f, -2}));

  EXPECT_EQ(floats(">u2", raw<uint8_t>({1, 2, 0, 3})), (std::vector<float>{258, 3}));
  EXPECT_EQ(floats(">i4", raw<uint8_t>({255, 255, 255, 254, 0, 0, 0, 3})), (std::vector<float>{-2, 3}));
  EXPECT_EQ(floats(">f8", raw<uint8_t>({0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0})),
            (std::vector<float>{1.5f, -2}));
}

TEST_F(NpzTest, ReadsEveryShapeOrderAndVersion) {
  const std::string data = raw<uint16_t>({1, 2, 3, 4, 5, 6});
  for (const int version : {1, 2, 3}) {
    const NpyArray c = parse(npy(dictionary("<u2", "(1, 2, 3)"), data, version));
    EXPECT_EQ(c.shape, (std::vector<int64_t>{1, 2, 3}));
    EXPECT_EQ(c.to_labels(), (std::vector<uint8_t>{1, 2, 3, 4, 5, 6}));
    const NpyArray fortran = parse(npy(dictionary("<u2", "(1, 2, 3)", true), data, version));
    EXPECT_EQ(fortran.to_labels(), (std::vector<uint8_t>{1, 3, 5, 2, 4, 6}));
  }
  EXPECT_EQ(parse(npy(dictionary("|u1", "(2, 2)", true), "\1\2\3\4")).to_labels(),
            (std::vector<uint8_t>{1, 3, 2, 4}));
  EXPECT_EQ(parse(npy(dictionary("<f4", "(2, 2)", true), raw<float>({1, 2, 3, 4}))).to_floats(),
            (std::vector<float>{1, 3, 2, 4}));
  EXPECT_EQ(parse(npy(dictionary("<f8", "(2, 2)", true), raw<double>({1, 2, 3, 4}))).to_floats(),
            (std::vector<float>{1, 3, 2, 4}));
  EXPECT_EQ(parse(npy(dictionary("<f4", "()"), raw<float>({7}))).to_floats(), std::vector<float>{7});
  EXPECT_EQ(parse(npy(dictionary("<f4", "(3, 0)", true), "")).count(), 0);
  // Extents beside a 0 whose strides pass 2^63.
  EXPECT_EQ(parse(npy(dictionary("|u1", "(9223372036854775807, 2, 0)", true), "")).count(), 0);
  EXPECT_EQ(parse(npy(dictionary("|b1", "(2,)"), "\1\1")).to_labels(), (std::vector<uint8_t>{1, 1}));
  EXPECT_EQ(parse(npy("{\"shape\":(1,),\"fortran_order\":False,\"descr\":\"|u1\"}", "\5")).to_labels(),
            std::vector<uint8_t>{5})
      << "any order of keys, either quote, no spaces";
}

TEST_F(NpzTest, RefusesEveryOtherHeader) {
  const std::string good = npy(dictionary("|u1", "(2,)"), "\1\2");
  EXPECT_EQ(parse(good).count(), 2);
  for (size_t length = 0; length < good.size(); ++length) {
    expect_error<FormatError>([&] { parse(good.substr(0, length)); }, {"a.npy"});
  }
  expect_refused(good + "x", "ask for 2 bytes, found 3");
  expect_refused(patched(good, 1, "M"), "does not begin with");
  expect_refused(patched(good, 6, le(0, 1)), "version 0.0");
  expect_refused(patched(good, 6, le(4, 1)), "version 4.0");
  expect_refused(patched(good, 7, "\1"), "version 1.1");
  expect_refused(std::string("\x93NUMPY\2\0", 8) + le(1u << 30, 4), "a header of 1073741824 bytes");

  const auto refused = [](const std::string& text, const std::string& part) {
    expect_refused(npy(text, "\1\2"), part);
  };
  refused("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "Python objects");
  refused("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (2,), }", "structured");
  for (const char* descr :
       {"", "<", "|u2", "=u1", "u1", "<u3", "<f16", "<c8", "<U4", "|S2", "|V2", "<M8", "<u1 "}) {
    refused(dictionary(descr, "(2,)"), "descr: found");
  }
  refused("{'descr': '\\x7cu1', 'fortran_order': False, 'shape': (2,), }", "without escapes");
  refused("{'descr': |u1, 'fortran_order': False, 'shape': (2,), }", "in quotes");
  refused("{'descr': '|u1', 'fortran_order': 0, 'shape': (2,), }", "True or False");
  for (const char* shape : {"(2)", "2", "(-2,)", "(2.0,)", "(0x2,)", "(2L,)", "(2,,)", "(,)", "[2]", "(2 1)",
                            "(+2,)", "(9223372036854775808,)", "(2,", "(__import__('os'),)"}) {
    refused(dictionary("|u1", shape), "header:");
  }
  refused(dictionary("|u1", "(1" + std::string(40, ',') + ")"), "shape:");
  std::string many = "(";
  for (int i = 0; i < 40; ++i) {
    many += "1,";
  }
  refused(dictionary("|u1", many + ")"), "more than 32 axes");
  refused(dictionary("|u1", "(4294967296, 4294967296, 4294967296)"), "pass 2^64");
  refused(dictionary("<f8", "(4611686018427387904, 4611686018427387904)"), "pass 2^64");
  refused("{'descr': '|u1', 'shape': (2,), }", "fortran_order is missing");
  refused("{'fortran_order': False, 'shape': (2,), }", "descr is missing");
  refused("{'descr': '|u1', 'fortran_order': False, }", "shape is missing");
  refused("{'descr': '|u1', 'descr': '|u1', 'fortran_order': False, 'shape': (2,), }", "occurs twice");
  refused("{'descr': '|u1', 'fortran_order': False, 'shape': (2,), 'x': 1}", "\"x\" is unknown");
  refused("{'descr': '|u1', 'fortran_order': False, 'shape': (2,), } + {}", "line feed");
  refused("{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }\n", "line feed");
  refused("{'descr': '|u1' 'fortran_order': False, 'shape': (2,), }", "header:");
  refused("", "expected '{'");
  expect_refused(npy(dictionary("|b1", "(2,)"), "\1\2"), "a boolean of 2");
  expect_error<FormatError>([&] { parse_npy(std::as_bytes(std::span(good)), "a.npy", 1); },
                            {"2 bytes, expected at most 1"});
}

TEST_F(NpzTest, LabelsAreWholeNumbersFrom0To255) {
  EXPECT_EQ(parse(npy(dictionary("<f4", "(2,)"), raw<float>({255, 0}))).to_labels(),
            (std::vector<uint8_t>{255, 0}));
  const auto refused = [](const std::string& descr, const std::string& data) {
    expect_error<FormatError>([&] { parse(npy(dictionary(descr, "(2,)"), data)).to_labels(); },
                              {"a.npy", "element 1 is ", "from 0 to 255"});
  };
  refused("<f4", raw<float>({0, 0.5f}));
  refused("<f4", raw<float>({0, std::nanf("")}));
  refused("<f8", raw<double>({0, HUGE_VAL}));
  refused("<i4", raw<int32_t>({0, -1}));
  refused("<u2", raw<uint16_t>({0, 256}));
  refused("<i8", raw<int64_t>({0, int64_t{1} << 40}));
}

TEST_F(NpzTest, ReadsStoredAndDeflatedArchives) {
  const std::string array = npy(dictionary("|u1", "(50, 40)"), std::string(2000, '\3'));
  for (const auto style : {ZipBuilder::Style::torch, ZipBuilder::Style::plain}) {
    ZipBuilder zip(style);
    zip.add("labels.npy", array).add("a/b.npy", npy(dictionary("<f4", "()"), raw<float>({7})));
    const NpzFile file(write(zip.finish(), "stored.npz"));
    EXPECT_EQ(file.names(), (std::vector<std::string>{"labels", "a/b"}));
    EXPECT_TRUE(file.contains("labels") && !file.contains("labels.npy") && !file.contains("b"));
    EXPECT_EQ(file.read("labels").to_labels(), std::vector<uint8_t>(2000, 3));
    EXPECT_EQ(file.read("a/b").to_floats(), std::vector<float>{7});
    expect_error<FormatError>([&] { file.read("b"); },
                              {"stored.npz", "no array \"b\"", "\"labels\", \"a/b\""});
    expect_error<FormatError>([&] { file.read("labels", 1999); }, {"2000 bytes, expected at most 1999"});
  }
  const std::string stream = deflated(array);
  EXPECT_LT(stream.size(), 200u);
  const NpzFile file(write(deflated_archive(stream, array.size(), crc_of(array)), "deflated.npz"));
  EXPECT_EQ(file.read("labels").to_labels(), std::vector<uint8_t>(2000, 3));
}

TEST_F(NpzTest, RefusesDamagedArchives) {
  const std::string array = npy(dictionary("|u1", "(50, 40)"), std::string(2000, '\3'));
  const std::string stream = deflated(array);
  const uint64_t crc = crc_of(array);
  expect_archive_refused(deflated_archive(stream, array.size(), crc ^ 1), "CRC-32");
  // Who says 0 means it: only torch may leave a checksum out.
  expect_archive_refused(deflated_archive(stream, array.size(), 0), "CRC-32");
  expect_archive_refused(deflated_archive(stream.substr(0, stream.size() - 3), array.size(), crc),
                         "too early");
  expect_archive_refused(deflated_archive(stream + "x", array.size(), crc), "behind the end");
  expect_archive_refused(deflated_archive("\xff" + stream, array.size(), crc), "damaged");
  expect_archive_refused(deflated_archive(stream, array.size() - 1, crc), "ask for 2000 bytes, found 1999");
  expect_archive_refused(deflated_archive(stream, array.size() + 1, crc), "ask for 2000 bytes, found 2001");
  // The array in the stream is right, the directory's size too short or too long for it.
  const std::string shorter = npy(dictionary("|u1", "(50, 39)"), std::string(1950, '\3'));
  expect_archive_refused(deflated_archive(deflated(shorter + "x"), shorter.size(), crc_of(shorter)),
                         "hold more");
  expect_archive_refused(deflated_archive(deflated(shorter.substr(1)), shorter.size() - 1, crc),
                         "\\x93NUMPY");
  expect_archive_refused(
      deflated_archive(deflated(shorter.substr(0, shorter.size() - 1)), shorter.size(), crc), "hold fewer");
  // A bomb: 4 GB claimed of a few bytes.
  expect_archive_refused(deflated_archive(stream, 0xfffffff0u, crc), "hold at most 1032 times as many");

  ZipBuilder zip(ZipBuilder::Style::plain);
  zip.add("labels.npy", array);
  const std::string stored = zip.finish();
  EXPECT_EQ(NpzFile(write(stored, "good.npz")).read("labels").count(), 2000);
  expect_archive_refused(patched(stored, zip.data[0] + array.size() - 1, "\4"), "CRC-32");
  expect_archive_refused(stored.substr(0, stored.size() - 1), "zip");
  zip = ZipBuilder(ZipBuilder::Style::plain);
  expect_archive_refused(zip.add("labels.txt", array).finish(), "expected arrays only");
  zip = ZipBuilder(ZipBuilder::Style::plain);
  expect_archive_refused(zip.add(".npy", array).finish(), "expected arrays only");
  expect_archive_refused(ZipBuilder(ZipBuilder::Style::plain).finish(), "the file is empty");
  EXPECT_THROW(NpzFile(folder_ / "absent.npz"), IoError);
}

TEST_F(NpzTest, DamagedFilesDoNoHarm) {
  const std::string array = npy(dictionary("<i2", "(5, 4)", true), raw<int64_t>({1, 2, 3, 4, 5}));
  const auto read_all = [](const std::filesystem::path& path) {
    const NpzFile file(path);
    for (const std::string& name : file.names()) {
      file.read(name, 1 << 20);
    }
  };
  expect_no_harm(deflated_archive(deflated(array), array.size(), crc_of(array)), 3000, read_all);
  RandomStream random(5, 0, 0);
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = array;
    damaged[static_cast<size_t>(random.below(static_cast<int64_t>(damaged.size() - 40)))] =
        static_cast<char>(random.below(256));
    try {
      parse(damaged);
    } catch (const FormatError&) {
    }
  }
}

TEST_F(NpzTest, ReadsRealFiles) {
  const auto labels = data_folder() / "meshnet/model18cls_ijk_crop48_40_48_size160_176_160_labels.npz";
  NEED_FILE(labels);
  const NpyArray array = NpzFile(labels).read("labels");
  EXPECT_EQ(array.shape, (std::vector<int64_t>{160, 176, 160}));
  std::vector<int64_t> counts(256, 0);
  for (const uint8_t label : array.to_labels()) {
    ++counts[label];
  }
  EXPECT_EQ(counts[0], 3268968);
  EXPECT_EQ(counts[17], 7491);
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data_folder() / "deeplesion")) {
    if (entry.path().extension() != ".npz") {
      continue;
    }
    ++found;
    const NpzFile file(entry.path());
    const NpyArray images = file.read("imgs");
    EXPECT_EQ(images.type, NpyType::u8);
    ASSERT_EQ(images.shape.size(), 3u);
    EXPECT_EQ(images.shape[1], 512);
    EXPECT_EQ(file.read("gts").shape, images.shape);
    EXPECT_EQ(file.read("spacing").count(), 3);
  }
  EXPECT_GT(found, 0);
}

}  // namespace
}  // namespace vesal::imaging
