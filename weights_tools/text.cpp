// UTF-8, and escapes: see text.hpp.
#include "weights_tools/text.hpp"

#include <cstddef>
#include <cstdint>

namespace vesal::weights {
namespace {

struct Character {
  uint32_t code = 0;
  size_t bytes = 0;  // 0: not UTF-8
};

// The first character of a text that is not empty.
Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) {
    return {first, 1};
  }
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) {
    return {};
  }
  uint32_t code = first & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) {
      return {};
    }
    code = code << 6 | (byte(i) & 0x3fu);
  }
  const uint32_t least = length == 4 ? 0x10000 : length == 3 ? 0x800 : 0x80;
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  return code < least || code > 0x10ffff || surrogate ? Character{} : Character{code, length};
}

// Characters that end a line, steer a terminal, or change the order in which a line is shown.
bool is_unsafe(uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code <= 0x9f) || code == 0x61c || code == 0x200e || code == 0x200f ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
}

std::string hexadecimal(uint32_t value, int digits) {
  std::string result;
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) {
    result += "0123456789abcdef"[value >> shift & 0xf];
  }
  return result;
}

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t bytes = first_character(text).bytes;
    if (bytes == 0) {
      return false;
    }
    text.remove_prefix(bytes);
  }
  return true;
}

std::string one_line(std::string_view text) {
  constexpr size_t kMost = 80;
  std::string result = "\"";
  while (!text.empty()) {
    if (result.size() > kMost) {
      return result + "...\"";
    }
    const Character character = first_character(text);
    const size_t bytes = character.bytes == 0 ? 1 : character.bytes;
    if (character.bytes == 0) {
      result += "\\x" + hexadecimal(static_cast<unsigned char>(text[0]), 2);
    } else if (character.code == '\n') {
      result += "\\n";
    } else if (character.code == '"' || character.code == '\\') {
      result += {'\\', text[0]};
    } else if (is_unsafe(character.code)) {
      result += character.code < 0x80 ? "\\x" + hexadecimal(character.code, 2)
                                      : "\\u" + hexadecimal(character.code, 4);
    } else {
      result += text.substr(0, bytes);
    }
    text.remove_prefix(bytes);
  }
  return result + "\"";
}

}  // namespace vesal::weights
