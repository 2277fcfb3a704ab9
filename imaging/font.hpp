// The bitmap font of picture.cpp: printable ASCII, 5 columns by 7 rows.
#pragma once

#include <array>
#include <cstdint>

namespace vesal::imaging {

using Glyph = std::array<uint8_t, 7>;  // rows from the top; bit 4 is the leftmost column

// The glyph of a character; a box for what is not printable ASCII.
const Glyph& glyph_of(char character);
// Rows by which the glyph is lowered: 2 for letters that reach below the line.
int drop_of(char character);

}  // namespace vesal::imaging
