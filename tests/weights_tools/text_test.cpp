// Text from files on one line of a message.
#include "weights_tools/text.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"

namespace vesal::weights {
namespace {

TEST(Text, Utf8AsTheStandardDefinesIt) {
  for (const char* good : {"", "abc", "\x7f", "\u00e9", "\u07ff", "\u0800", "\u4f60", "\ud7ff", "\ue000",
                           "\uffff", "\U00010000", "\U0010ffff", "a\u00e9b\u4f60c\U0001f600d"}) {
    EXPECT_TRUE(is_utf8(good)) << good;
  }
  // Continuations alone, overlong forms, surrogates, past the end of Unicode, cut off.
  for (const char* bad :
       {"\x80", "\xbf", "a\xff", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xed\xa0\x80",
        "\xed\xbf\xbf", "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80",
        "\xc3", "\xe4\xbd", "\xf0\x9f\x98", "\xc3(", "\xe4(\xa0"}) {
    EXPECT_FALSE(is_utf8(bad)) << bad;
  }
  EXPECT_TRUE(is_utf8(std::string_view("\0", 1)));
}

TEST(Text, WhatSteersATerminalIsEscaped) {
  EXPECT_EQ(one_line("conv.weight"), "\"conv.weight\"");
  EXPECT_EQ(one_line("a\nb\r\t\x1b[31m"), "\"a\\nb\\x0d\\x09\\x1b[31m\"");
  EXPECT_EQ(one_line("\"\\"), "\"\\\"\\\\\"");
  EXPECT_EQ(one_line("\xff\xc3"), "\"\\xff\\xc3\"");
  EXPECT_EQ(one_line("\u00e9\u4f60"), "\"\u00e9\u4f60\"");
  // A C1 control, a right-to-left override, a line separator.
  EXPECT_EQ(one_line("\u009b\u202e\u2028"), "\"\\u009b\\u202e\\u2028\"");
  EXPECT_EQ(one_line(std::string_view("a\0b", 3)), "\"a\\x00b\"");
}

TEST(Text, LongTextIsCut) {
  EXPECT_EQ(one_line(std::string(80, 'x')), concat('"', std::string(80, 'x'), '"'));
  EXPECT_EQ(one_line(std::string(81, 'x')), concat('"', std::string(80, 'x'), "...\""));
  EXPECT_LT(one_line(std::string(1 << 20, '\x1b')).size(), 100u);
}

}  // namespace
}  // namespace vesal::weights
