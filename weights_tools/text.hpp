// Text that comes from a file, made fit for one line of a message.
#pragma once

#include <string>
#include <string_view>

namespace vesal::weights {

// Well-formed UTF-8: shortest forms only, no surrogates, nothing past U+10FFFF.
bool is_utf8(std::string_view text);

// A string from a file, quoted: control characters, quotes, backslashes, characters that reorder or break a
// line, and bytes that are not UTF-8 are written as escapes (\n, \x1b, \u202e), long strings are cut.
std::string one_line(std::string_view text);

}  // namespace vesal::weights
