// The stack machine: what it understands, what it refuses, and that neither costs more than the file is
// worth.
#include "weights_tools/pickle.hpp"

#include <sys/resource.h>

#include <cmath>

#include "tests/weights_tools/torch_fixture.hpp"

namespace vesal::weights {
namespace {

class PickleTest : public FileTest {
 protected:
  Pickle load(std::string_view bytes) const {
    const FileSource file(write(bytes));
    return unpickle(file, 0, file.size(), "data.pkl");
  }
  // A pickle of protocol 2 with these opcodes.
  Pickle run(std::string_view opcodes) const { return load(PickleBuilder().op(opcodes).stop()); }

  void expect_refused(std::string_view bytes, std::string_view part) const {
    const std::string line = line_of([&] { load(bytes); });
    EXPECT_FALSE(line.empty()) << "was accepted, expected: " << part;
    EXPECT_NE(line.find(part), std::string::npos) << "found: " << line << "\nexpected: " << part;
    EXPECT_NE(line.find("data.pkl"), std::string::npos) << line;
  }
  void expect_opcodes_refused(std::string_view opcodes, std::string_view part) const {
    expect_refused(PickleBuilder().op(opcodes).stop(), part);
  }

  int64_t integer(std::string_view opcodes) const {
    const Pickle pickle = run(opcodes);
    EXPECT_EQ(pickle.root().kind, PickleKind::integer);
    return pickle.integer(pickle.root());
  }
  double real(std::string_view opcodes) const {
    const Pickle pickle = run(opcodes);
    EXPECT_EQ(pickle.root().kind, PickleKind::real);
    return pickle.real(pickle.root());
  }
  std::string text(const std::string& opcodes, PickleKind kind) const {
    const Pickle pickle = run(opcodes);
    EXPECT_EQ(pickle.root().kind, kind);
    return std::string(pickle.text(pickle.root()));
  }
};

std::string opcodes(std::initializer_list<int> values) { return {values.begin(), values.end()}; }

TEST_F(PickleTest, Numbers) {
  EXPECT_EQ(integer(opcodes({'K', 0xff})), 255);
  EXPECT_EQ(integer(opcodes({'M', 0x34, 0x12})), 0x1234);
  EXPECT_EQ(integer("J" + le(0x7fffffff, 4)), 0x7fffffff);
  EXPECT_EQ(integer("J" + le(0xffffffff, 4)), -1);
  EXPECT_EQ(integer("J" + le(0x80000000, 4)), -2147483648ll);
  EXPECT_EQ(integer(opcodes({0x8a, 0})), 0);
  EXPECT_EQ(integer(opcodes({0x8a, 1, 0x80})), -128);
  EXPECT_EQ(integer(opcodes({0x8a, 2, 0xff, 0x00})), 255);
  EXPECT_EQ(integer(opcodes({0x8a, 3, 0xff, 0xff, 0x7f})), 0x7fffff);
  EXPECT_EQ(integer("\x8a\x08" + le(uint64_t{1} << 63, 8)), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(integer("\x8b" + le(5, 4) + le(0xfffffffffe, 5)), -2);
  EXPECT_EQ(real("G" + std::string("\x3f\xf8\0\0\0\0\0\0", 8)), 1.5);
  EXPECT_EQ(real("G" + std::string("\xc0\0\0\0\0\0\0\0", 8)), -2.0);
  EXPECT_TRUE(std::isnan(real("G" + std::string("\x7f\xf8\0\0\0\0\0\0", 8))));
  EXPECT_EQ(text("\x8a\x09" + std::string("123456789"), PickleKind::big_integer), "123456789");
  for (const auto& [opcode, value] : {std::pair("\x88", true), {"\x89", false}}) {
    const Pickle pickle = run(opcode);
    EXPECT_EQ(pickle.root().kind, PickleKind::boolean);
    EXPECT_EQ(pickle.boolean(pickle.root()), value);
  }
  EXPECT_EQ(run("N").root().kind, PickleKind::none);
}

TEST_F(PickleTest, Strings) {
  EXPECT_EQ(text("X" + le(3, 4) + "abc", PickleKind::text), "abc");
  EXPECT_EQ(text("X" + le(0, 4), PickleKind::text), "");
  EXPECT_EQ(text("\x8c\x03" + std::string("abc"), PickleKind::text), "abc");
  EXPECT_EQ(text("\x8d" + le(3, 8) + "abc", PickleKind::text), "abc");
  EXPECT_EQ(text("U\3abc", PickleKind::bytes), "abc");
  EXPECT_EQ(text("T" + le(3, 4) + "abc", PickleKind::bytes), "abc");
  EXPECT_EQ(text("C\3abc", PickleKind::bytes), "abc");
  EXPECT_EQ(text("B" + le(3, 4) + "abc", PickleKind::bytes), "abc");
  EXPECT_EQ(text("\x8e" + le(3, 8) + "abc", PickleKind::bytes), "abc");
  // Longer than the buffer that the file is read through.
  const std::string large(200'000, 'y');
  EXPECT_EQ(text("X" + le(large.size(), 4) + large, PickleKind::text), large);
}

TEST_F(PickleTest, Containers) {
  for (const auto& [code, kind, count] : {std::tuple(")", PickleKind::tuple, 0),
                                          {"N\x85", PickleKind::tuple, 1},
                                          {"NN\x86", PickleKind::tuple, 2},
                                          {"NNN\x87", PickleKind::tuple, 3},
                                          {"(NNNNt", PickleKind::tuple, 4},
                                          {"(t", PickleKind::tuple, 0},
                                          {"]", PickleKind::list, 0},
                                          {"]Na", PickleKind::list, 1},
                                          {"](NNe", PickleKind::list, 2},
                                          {"}", PickleKind::dict, 0},
                                          {"}NNs", PickleKind::dict, 2},
                                          {"}(NNNNu", PickleKind::dict, 4},
                                          {"}(u", PickleKind::dict, 0},
                                          {"\x8f(NN\x90", PickleKind::set, 2},
                                          {"(NN\x91", PickleKind::set, 2},
                                          {"c__builtin__\nset\n](NNe\x85R", PickleKind::set, 2}}) {
    const Pickle pickle = run(code);
    EXPECT_EQ(pickle.root().kind, kind) << code;
    EXPECT_EQ(pickle.items(pickle.root()).size(), static_cast<size_t>(count)) << code;
  }
  const Pickle order = run("(K\1K\2\x85K\3K\4t");
  const auto items = order.items(order.root());
  EXPECT_EQ(order.integer(items[0]), 1);
  EXPECT_EQ(order.integer(order.items(items[1])[0]), 2);
  EXPECT_EQ(order.integer(items[3]), 4);
}

TEST_F(PickleTest, MemoryOfThePickle) {
  for (const std::string& code :
       {std::string("K\7q\1h\1"), "K\7r" + le(4'000'000'000, 4) + "j" + le(4'000'000'000, 4),
        opcodes({'K', 7, 0x94, 'h', 0}), opcodes({'N', 0x94, 'K', 7, 0x94, 'h', 1})}) {
    const Pickle pickle = run("(" + code + "t");
    EXPECT_EQ(pickle.integer(pickle.items(pickle.root()).back()), 7);
  }
  // Written again, it is the later one.
  const Pickle pickle = run("(K\1q\5K\2q\5h\5t");
  EXPECT_EQ(pickle.integer(pickle.items(pickle.root()).back()), 2);
}

TEST_F(PickleTest, CallsAreDataAndNothingIsCalled) {
  const Pickle pickle =
      load(PickleBuilder().global("os", "system").op("(").text("touch /tmp/never").op("tR").stop());
  const PickleValue root = pickle.root();
  ASSERT_EQ(root.kind, PickleKind::object);
  EXPECT_EQ(pickle.global_name(pickle.callable(root)), "os.system");
  EXPECT_EQ(pickle.text(pickle.items(pickle.arguments(root))[0]), "touch /tmp/never");
  EXPECT_EQ(pickle.state(root).kind, PickleKind::none);

  const Pickle built =
      load(PickleBuilder().global("argparse", "Namespace").op(")\x81}").text("lr").op("K\1sb").stop());
  EXPECT_EQ(built.state(built.root()).kind, PickleKind::dict);
  EXPECT_TRUE(built.items(built.root()).empty());

  // A class of its own that is a dictionary; one that is a list.
  const Pickle items = load(PickleBuilder().global("easydict", "EasyDict").op(")\x81K\1K\2s").stop());
  EXPECT_EQ(items.items(items.root()).size(), 2u);
  EXPECT_EQ(run("cmy\nList\n)\x81K\1a").root().kind, PickleKind::object);

  // Protocol 4: names from the stack, keywords; what a call returns may be called.
  const Pickle four = load(PickleBuilder(4)
                               .op(opcodes({0x95, 1, 0, 0, 0, 0, 0, 0, 0}))
                               .text("a.b")
                               .text("C.d")
                               .op("\x93)}\x92)R")
                               .stop());
  EXPECT_EQ(four.global_name(four.callable(four.callable(four.root()))), "a.b.C.d");
}

TEST_F(PickleTest, Dictionaries) {
  for (const char* code : {"ccollections\nOrderedDict\n)R", "ccollections\nOrderedDict\n)\x81",
                           "ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R"}) {
    const Pickle pickle = run(std::string(code) + "K\1K\2s");
    EXPECT_EQ(pickle.root().kind, PickleKind::dict);
    EXPECT_EQ(pickle.items(pickle.root()).size(), 2u);
  }
  // Python 2's form.
  const Pickle two = run("ccollections\nOrderedDict\n](](K\1K\2e](K\3K\4ee\x85R");
  ASSERT_EQ(two.items(two.root()).size(), 4u);
  EXPECT_EQ(two.integer(two.items(two.root())[3]), 4);
  // The state of a state_dict, its _metadata, says nothing of weights.
  EXPECT_EQ(run("ccollections\nOrderedDict\n)R}K\1K\2sb").root().kind, PickleKind::dict);
  expect_opcodes_refused("ccollections\nOrderedDict\nN\x85R", "an OrderedDict made from None");
  expect_opcodes_refused("ccollections\nOrderedDict\n](Ne\x85R", "expected pairs");
  expect_opcodes_refused("ccollections\nOrderedDict\n]](K\1e\x61\x85R", "expected pairs");
  expect_opcodes_refused("c__builtin__\nset\nN\x85R", "a set made from");
}

TEST_F(PickleTest, PersistentReferences) {
  const Pickle pickle = run("(K\1QK\2Qt");
  ASSERT_EQ(pickle.persistent_values().size(), 2u);
  const PickleValue second = pickle.persistent_values()[1];
  EXPECT_EQ(second.kind, PickleKind::persistent);
  EXPECT_EQ(pickle.integer(pickle.persistent_id(second)), 2);
}

TEST_F(PickleTest, WrongUseOfTheStackIsRefused) {
  for (const char* code :
       {"",  "NN",  "(N",   "N(",    "a",       "]a",    "]Na(", "s",    "}Ns", "u",    "NNu",  "e",
        "t", "N(t", "\x85", "N\x86", "NN\x87",  "R",     ")R",   "b",    "Nb",  "\x81", "\x92", "\x93",
        "Q", "q\1", "\x94", "(q\1t", "N(\x85t", "](NNa", "\x90", "](e(", "(u",  "(e"}) {
    const std::string line = line_of([&] { run(code); });
    EXPECT_FALSE(line.empty()) << code;
  }
}

// CVE-2026-24747: items set on what is no dictionary.
TEST_F(PickleTest, WrongTypesAreRefused) {
  for (const char* target : {"N", "K\1", "U\1x", ")", "]", "\x8f", "cos\nsystem\n", "K\1Q",
                             "ctorch._utils\n_rebuild_tensor_v2\n)R", "ctorch\nSize\n)R",
                             "ctorch._tensor\n_rebuild_from_type_v2\n)R"}) {
    expect_opcodes_refused(std::string(target) + "K\1K\2s", "expected a dictionary");
    expect_opcodes_refused(std::string(target) + "(K\1K\2u", "expected a dictionary");
  }
  expect_opcodes_refused("}(K\1u", "expected pairs");
  for (const char* target : {"N", "K\1", "U\1x", ")", "}", "\x8f", "cos\nsystem\n", "K\1Q",
                             "ctorch._utils\n_rebuild_tensor_v2\n)R"}) {
    expect_opcodes_refused(std::string(target) + "K\1a", "expected a list");
    expect_opcodes_refused(std::string(target) + "(K\1e", "expected a list");
  }
  expect_opcodes_refused("](N\x90", "expected a set");
  for (const char* callable : {"N", "K\1", "U\1x", ")", "]", "}", "\x8f"}) {
    expect_opcodes_refused(std::string(callable) + ")R", "expected a class or function");
    expect_opcodes_refused(std::string(callable) + ")\x81", "expected a class or function");
    if (*callable != ')') {
      expect_opcodes_refused("cos\nsystem\n" + std::string(callable) + "}\x92", "expected a tuple");
    }
  }
  expect_opcodes_refused("cos\nsystem\nNR", "expected a tuple of arguments");
  expect_opcodes_refused("cos\nsystem\n]R", "expected a tuple of arguments");
  expect_opcodes_refused("cos\nsystem\n)N\x92", "expected a dictionary of keywords");
  for (const char* target : {"N", "K\1", ")", "]", "cos\nsystem\n", "K\1Q"}) {
    expect_opcodes_refused(std::string(target) + "}b", "expected an object");
  }
}

TEST_F(PickleTest, GlobalsWithTricksAreRefused) {
  expect_opcodes_refused("c\nsystem\n", "a global is named \"\"");
  expect_opcodes_refused("cos\n\n", "a global is named \"\"");
  expect_opcodes_refused("cos\r\nsystem\n", "a global is named \"os\\x0d\"");
  expect_opcodes_refused("cos \nsystem\n", "a global is named");
  expect_opcodes_refused("cos\n system\n", "a global is named");
  expect_opcodes_refused("cos\nsys\x1b[2Jtem\n", "\\x1b[2J");
  expect_opcodes_refused(std::string("cos\nsys\0tem\n", 12), "a global is named");
  expect_opcodes_refused("cos\nsystem", "truncated?");
  expect_opcodes_refused("c" + std::string(2000, 'x') + "\ny\n", "more than 1024 characters");
  expect_opcodes_refused("X" + le(4, 4) + "os\ny" + "X" + le(1, 4) + "z\x93", "a global is named \"os\\ny\"");
  expect_opcodes_refused("K\1X" + le(1, 4) + "z\x93", "named by an integer");
  expect_opcodes_refused("U\2osU\1z\x93", "named by bytes");
}

TEST_F(PickleTest, UnknownOpcodesAndProtocolsAreRefused) {
  const std::string known =
      "(.)BCGJKMNQRTUX]abcehjqrstu}"
      "\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95";
  for (int code = 0; code < 256; ++code) {
    if (known.find(static_cast<char>(code)) == std::string::npos) {
      expect_opcodes_refused(std::string(1, static_cast<char>(code)), concat("opcode ", code));
    }
  }
  for (int protocol = 0; protocol < 256; ++protocol) {
    if (protocol >= 2 && protocol <= 5) {
      EXPECT_EQ(load(PickleBuilder(protocol).op("N").stop()).root().kind, PickleKind::none);
    } else {
      expect_refused(PickleBuilder(protocol).op("N").stop(), "expected 2 to 5");
    }
  }
}

TEST_F(PickleTest, LengthsPastTheEndAreRefusedBeforeMemoryIsAsked) {
  for (const char* opcode : {"X", "B", "T", "\x8b"}) {
    expect_opcodes_refused(opcode + le(0xffffffff, 4) + "abc", "asks for 4294967295 bytes");
    expect_opcodes_refused(opcode + le(5, 4) + "abc", "asks for 5 bytes");
  }
  for (const char* opcode : {"\x8d", "\x8e", "\x95"}) {
    expect_opcodes_refused(opcode + le(~uint64_t{0}, 8) + "abc", "asks for 18446744073709551615 bytes");
  }
  for (const char* opcode : {"\x8c", "U", "C", "\x8a"}) {
    expect_opcodes_refused(opcode + le(200, 1) + "abc", "asks for 200 bytes");
  }
}

TEST_F(PickleTest, TheEndIsTheEnd) {
  expect_refused("", "truncated");
  expect_refused("\x80\x02N", "truncated");
  expect_refused(PickleBuilder().op("N").stop() + "x", "1 bytes follow the end");
  expect_refused(PickleBuilder().op("N").stop() + PickleBuilder().op("N").stop(), "bytes follow the end");
  const std::string good =
      PickleBuilder().op("}(").text("a").vector("0", 3).text("b").integer(1 << 20).op("u").stop();
  for (size_t length = 0; length < good.size(); ++length) {
    expect_refused(good.substr(0, length), "truncated");
  }
  EXPECT_EQ(load(good).root().kind, PickleKind::dict);
  // Several in a row.
  const FileSource file(write(good + PickleBuilder().op("K\7").stop()));
  uint64_t next = 0;
  unpickle(file, 0, file.size(), "first", &next);
  EXPECT_EQ(next, good.size());
  const Pickle second = unpickle(file, next, file.size(), "second");
  EXPECT_EQ(second.integer(second.root()), 7);
}

TEST_F(PickleTest, MemoEntriesThatWereNeverWrittenAreRefused) {
  expect_opcodes_refused("h\1", "memo entry 1 was never written");
  expect_opcodes_refused("Nq\1h\2", "memo entry 2");
  expect_opcodes_refused("j" + le(4'000'000'000, 4), "memo entry 4000000000");
}

TEST_F(PickleTest, NestingIsLimited) {
  const auto repeated = [](std::string_view code, int times) {
    std::string result;
    for (int i = 0; i < times; ++i) {
      result += code;
    }
    return result;
  };
  EXPECT_EQ(run("N" + repeated("\x85", 256)).root().kind, PickleKind::tuple);
  expect_opcodes_refused("N" + repeated("\x85", 257), "nested more than 256 deep");
  expect_opcodes_refused("N" + repeated("\x85", 3'000'000), "nested more than 256 deep");
  expect_opcodes_refused(repeated("]", 1000) + repeated("a", 999), "nested more than 256 deep");
  expect_opcodes_refused(repeated("(", 257) + "N", "marks nested more than 256 deep");
  expect_opcodes_refused("cx\ny\n" + repeated(")\x81", 300), "nested more than 256 deep");
  expect_opcodes_refused(")" + repeated("cx\ny\n)R", 1) + repeated("\x85Q", 300),
                         "nested more than 256 deep");
}

// A tuple of twice the tuple before, and so on: 2^200 elements for whoever copies.
TEST_F(PickleTest, AMemoBombStaysSmall) {
  std::string code = ")q\1";
  for (int i = 0; i < 200; ++i) {
    code += "h\1h\1\x86q\1";
  }
  const Pickle pickle = run("(" + code + "t");
  EXPECT_EQ(pickle.root().kind, PickleKind::tuple);
}

TEST_F(PickleTest, WhatContainsItselfDoesNoHarm) {
  for (const char* code :
       {"]q\1h\1a", "}q\1K\1h\1s", "]q\1(h\1h\1h\1e", "cx\ny\n)\x81q\1h\1b", "cx\ny\n)\x81q\1K\1h\1s"}) {
    EXPECT_TRUE(run(code).root().is_node()) << code;
  }
}

// The limits hold, and the memory that a file of a few megabytes can ask for is bounded by them.
TEST_F(PickleTest, MemoryIsLimited) {
  const auto many = [](std::string_view code, size_t times) {
    std::string result;
    result.reserve(code.size() * times);
    for (size_t i = 0; i < times; ++i) {
      result += code;
    }
    return result;
  };
  expect_opcodes_refused(many("]", kMaxPickleNodes + 1), "more than 8388608 objects");
  expect_opcodes_refused(many("N", kMaxPickleStack + 1), "more than 16777216 values on the stack");
  const std::string list = "(" + many("N", 12'000'000) + "e";
  expect_opcodes_refused("]" + list + list + list, "more than 33554432 elements");
  // A list of a million elements, and OrderedDicts and sets made from it again and again.
  const std::string million = "](" + many("N", 1'000'000) + "eq\1";
  EXPECT_EQ(run("(" + million + "c__builtin__\nset\nh\1\x85Rt").root().kind, PickleKind::tuple);
  expect_opcodes_refused(million + many("c__builtin__\nset\nh\1\x85R", 2),
                         "from the same list over and over");
  expect_opcodes_refused(
      "](" + many("NN\x86", 300'000) + "eq\1" + many("ccollections\nOrderedDict\nh\1\x85R", 2),
      "from the same list over and over");
#ifndef VESAL_SANITIZED
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  EXPECT_LT(usage.ru_maxrss, 1'500'000) << "kilobytes";
#endif
}

TEST_F(PickleTest, APickleIsLimitedToItsBytes) {
  // A sparse file: the limit ends it, not the disk.
  const std::filesystem::path path = write("\x80\x02X" + le(0x20000000, 4));
  std::filesystem::resize_file(path, 0x30000000);
  const FileSource file(path);
  EXPECT_NE(line_of([&] { unpickle(file, 0, file.size(), "data.pkl"); }).find("passes 268435456 bytes"),
            std::string::npos);
}

TEST_F(PickleTest, DamageDoesNoHarm) {
  const std::string good = PickleBuilder()
                               .op("}(")
                               .text("epoch")
                               .integer(7)
                               .text("state_dict")
                               .global("collections", "OrderedDict")
                               .op(")Rq\1(")
                               .text("a")
                               .vector("0", 3)
                               .text("b")
                               .vector("1", 4)
                               .op("u}b")
                               .text("args")
                               .global("argparse", "Namespace")
                               .op(")\x81}")
                               .text("x")
                               .op("h\1sb\x8f(NK\1\x90]Nau")
                               .stop();
  load(good);
  expect_no_harm(good, 5000, [](const std::filesystem::path& path) {
    const FileSource file(path);
    unpickle(file, 0, file.size(), "data.pkl");
  });
}

}  // namespace
}  // namespace vesal::weights
