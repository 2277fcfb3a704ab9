// The header of a .npy array, its data in another order of bytes and axes, and the archive around it: see
// npz.hpp.
#include "imaging/npz.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>

#include "base/dtype.hpp"
#include "base/error.hpp"
#include "weights_tools/text.hpp"

namespace vesal::imaging {
namespace {

static_assert(std::endian::native == std::endian::little, "arrays are brought to little-endian");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kVersionBytes = 2;

// Fills the span with the next bytes.
using ReadNext = std::function<void(std::span<std::byte>)>;

struct NpyHeader {
  NpyType type = NpyType::u8;
  bool big_endian = false;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

// 'f4' and the like, behind the byte order.
std::optional<NpyType> type_of(std::string_view code) {
  static constexpr std::array<std::pair<std::string_view, NpyType>, 12> known{{{"b1", NpyType::boolean},
                                                                               {"u1", NpyType::u8},
                                                                               {"u2", NpyType::u16},
                                                                               {"u4", NpyType::u32},
                                                                               {"u8", NpyType::u64},
                                                                               {"i1", NpyType::i8},
                                                                               {"i2", NpyType::i16},
                                                                               {"i4", NpyType::i32},
                                                                               {"i8", NpyType::i64},
                                                                               {"f2", NpyType::f16},
                                                                               {"f4", NpyType::f32},
                                                                               {"f8", NpyType::f64}}};
  const auto* found =
      std::find_if(known.begin(), known.end(), [&](const auto& entry) { return entry.first == code; });
  return found == known.end() ? std::nullopt : std::optional(found->second);
}

// The dictionary of a header, read from front to back:
//   {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
// Keys stand once each, in any order; numbers are decimal; there are no escapes in strings and no white space
// but spaces.
class HeaderText {
 public:
  HeaderText(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  NpyHeader parse() {
    NpyHeader header;
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string("a key");
      expect(':');
      if (key == "descr" && !has_descr) {
        has_descr = true;
        parse_descr(header);
      } else if (key == "fortran_order" && !has_order) {
        has_order = true;
        header.fortran_order = parse_bool();
      } else if (key == "shape" && !has_shape) {
        has_shape = true;
        header.shape = parse_shape();
      } else {
        refuse(concat("key ", weights::one_line(key), " is unknown or occurs twice"));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_spaces();
    if (position_ + 1 != text_.size() || text_[position_] != '\n') {
      refuse("expected spaces and one line feed behind its dictionary");
    }
    if (!has_descr || !has_order || !has_shape) {
      refuse(concat(!has_descr ? "descr" : !has_order ? "fortran_order" : "shape", " is missing"));
    }
    return header;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw FormatError(concat(where_, ": header: ", what));
  }

  void skip_spaces() {
    while (position_ < text_.size() && text_[position_] == ' ') {
      ++position_;
    }
  }
  bool accept(char wanted) {
    skip_spaces();
    const bool found = position_ < text_.size() && text_[position_] == wanted;
    position_ += found ? 1 : 0;
    return found;
  }
  void expect(char wanted) {
    if (!accept(wanted)) {
      refuse(concat("found ", rest(), ", expected '", wanted, "'"));
    }
  }
  std::string rest() const {
    return position_ == text_.size() ? "its end" : weights::one_line(text_.substr(position_, 24));
  }
  bool accept_word(std::string_view word) {
    skip_spaces();
    const bool found = text_.substr(position_).starts_with(word);
    position_ += found ? word.size() : 0;
    return found;
  }

  std::string_view string(const char* what) {
    skip_spaces();
    const char quote = position_ < text_.size() ? text_[position_] : '\0';
    if (quote != '\'' && quote != '"') {
      refuse(concat("found ", rest(), ", expected ", what, " in quotes"));
    }
    const size_t begin = position_ + 1;
    const size_t end = text_.find(quote, begin);
    if (end == std::string_view::npos ||
        text_.substr(begin, end - begin).find('\\') != std::string_view::npos) {
      refuse(concat("found ", rest(), ", expected ", what, " in quotes, without escapes"));
    }
    position_ = end + 1;
    return text_.substr(begin, end - begin);
  }

  bool parse_bool() {
    if (accept_word("True")) {
      return true;
    }
    if (!accept_word("False")) {
      refuse(concat("fortran_order: found ", rest(), ", expected True or False"));
    }
    return false;
  }

  void parse_descr(NpyHeader& header) {
    skip_spaces();
    if (position_ < text_.size() && text_[position_] == '[') {
      refuse("descr: found a structured type, expected a plain number type");
    }
    const std::string_view descr = string("descr");
    if (descr.find('O') != std::string_view::npos) {
      refuse("descr: found Python objects, which only executing the file could read; expected numbers");
    }
    const auto type = descr.empty() ? std::nullopt : type_of(descr.substr(1));
    const bool order_known =
        type && (descr[0] == '<' || descr[0] == '>' || (descr[0] == '|' && size_of(*type) == 1));
    if (!order_known) {
      refuse(
          concat("descr: found ", weights::one_line(descr),
                 ", expected a byte order < or > (| for one byte) and one of b1, u1, u2, u4, u8, i1, i2, i4, "
                 "i8, f2, f4, f8"));
    }
    header.type = *type;
    header.big_endian = descr[0] == '>';
  }

  std::vector<int64_t> parse_shape() {
    std::vector<int64_t> shape;
    expect('(');
    bool comma = true;
    while (!accept(')')) {
      if (!comma) {
        refuse(concat("shape: found ", rest(), ", expected a comma"));
      }
      if (shape.size() == kMaxNpyRank) {
        refuse(concat("shape: more than ", kMaxNpyRank, " axes"));
      }
      skip_spaces();
      int64_t extent = 0;
      const char* begin = text_.data() + position_;
      const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), extent);
      if (error != std::errc() || extent < 0) {
        refuse(concat("shape: found ", rest(), ", expected a number from 0 to 2^63 - 1"));
      }
      position_ += static_cast<size_t>(end - begin);
      shape.push_back(extent);
      comma = accept(',');
    }
    if (shape.size() == 1 && !comma) {
      refuse("shape: found a number in parentheses, expected a tuple");
    }
    return shape;
  }

  std::string_view text_;
  const std::string& where_;
  size_t position_ = 0;
};

void swap_bytes(std::vector<std::byte>& data, size_t element) {
  for (size_t i = 0; i < data.size(); i += element) {
    std::reverse(data.begin() + static_cast<std::ptrdiff_t>(i),
                 data.begin() + static_cast<std::ptrdiff_t>(i + element));
  }
}

// Elements whose first axis is fastest, in the order in which the last one is.
template <class T>
std::vector<std::byte> row_major(const std::vector<std::byte>& data, const std::vector<int64_t>& shape) {
  std::vector<std::byte> out(data.size());
  const size_t rank = shape.size();
  std::vector<int64_t> strides(rank, 1);
  for (size_t axis = 1; axis < rank; ++axis) {
    strides[axis] = strides[axis - 1] * shape[axis - 1];
  }
  std::vector<int64_t> index(rank, 0);
  int64_t from = 0;
  for (size_t to = 0; to < out.size(); to += sizeof(T)) {
    std::memcpy(out.data() + to, data.data() + static_cast<size_t>(from) * sizeof(T), sizeof(T));
    for (size_t axis = rank; axis-- > 0;) {
      from += strides[axis];
      if (++index[axis] < shape[axis]) {
        break;
      }
      from -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
  return out;
}

NpyArray read_npy(const ReadNext& read, uint64_t size, const std::string& source, uint64_t max_bytes) {
  std::array<std::byte, 12> start;
  const auto take = [&](std::span<std::byte> target, const char* what) {
    check<FormatError>(target.size() <= size, source, ": ends within its ", what, "; truncated?");
    size -= target.size();
    read(target);
  };
  take(std::span(start).first(kMagic.size() + kVersionBytes), "first 8 bytes");
  check<FormatError>(std::memcmp(start.data(), kMagic.data(), kMagic.size()) == 0, source,
                     ": does not begin with \\x93NUMPY, expected a .npy array");
  const int major = std::to_integer<int>(start[6]);
  const int minor = std::to_integer<int>(start[7]);
  check<FormatError>(major >= 1 && major <= 3 && minor == 0, source, ": version ", major, ".", minor,
                     ", expected 1.0, 2.0 or 3.0");
  const size_t length_bytes = major == 1 ? 2 : 4;
  take(std::span(start).first(length_bytes), "header's length");
  const uint64_t length =
      major == 1 ? weights::little_endian<2>(start.data()) : weights::little_endian<4>(start.data());
  check<FormatError>(length <= kMaxNpyHeaderBytes, source, ": a header of ", length,
                     " bytes, expected at most ", kMaxNpyHeaderBytes);
  std::string text(length, '\0');
  take(std::as_writable_bytes(std::span(text)), "header");

  NpyArray array;
  array.source = source;
  NpyHeader header = HeaderText(text, source).parse();
  array.type = header.type;
  array.shape = std::move(header.shape);
  const size_t element = size_of(array.type);
  uint64_t bytes = element;
  for (const int64_t extent : array.shape) {
    check<FormatError>(!__builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes), source,
                       ": header: shape: its bytes pass 2^64");
  }
  check<FormatError>(bytes == size, source, ": header: shape and descr ask for ", bytes, " bytes, found ",
                     size);
  check<FormatError>(bytes <= max_bytes, source, ": ", bytes, " bytes, expected at most ", max_bytes);
  array.data.resize(bytes);
  take(array.data, "data");

  if (header.big_endian) {
    swap_bytes(array.data, element);
  }
  // Extents beside a 0 may overflow strides.
  if (header.fortran_order && array.shape.size() > 1 && bytes > 0) {
    array.data = element == 1   ? row_major<uint8_t>(array.data, array.shape)
                 : element == 2 ? row_major<uint16_t>(array.data, array.shape)
                 : element == 4 ? row_major<uint32_t>(array.data, array.shape)
                                : row_major<uint64_t>(array.data, array.shape);
  }
  if (array.type == NpyType::boolean) {
    const auto bad =
        std::find_if(array.data.begin(), array.data.end(), [](std::byte b) { return b > std::byte{1}; });
    check<FormatError>(bad == array.data.end(), source, ": found a boolean of ",
                       bad == array.data.end() ? 0 : std::to_integer<int>(*bad), ", expected 0 or 1");
  }
  return array;
}

// Calls visit(index, value) for every element in its own type; f16 as float.
template <class Visit>
void for_each(const NpyArray& array, const Visit& visit) {
  const auto run = [&]<class T>(T) {
    for (size_t i = 0; i < array.data.size() / sizeof(T); ++i) {
      T value;
      std::memcpy(&value, array.data.data() + i * sizeof(T), sizeof(T));
      if constexpr (std::is_same_v<T, f16>) {
        visit(i, static_cast<float>(value));
      } else {
        visit(i, value);
      }
    }
  };
  switch (array.type) {
    case NpyType::boolean:
    case NpyType::u8:
      return run(uint8_t{});
    case NpyType::u16:
      return run(uint16_t{});
    case NpyType::u32:
      return run(uint32_t{});
    case NpyType::u64:
      return run(uint64_t{});
    case NpyType::i8:
      return run(int8_t{});
    case NpyType::i16:
      return run(int16_t{});
    case NpyType::i32:
      return run(int32_t{});
    case NpyType::i64:
      return run(int64_t{});
    case NpyType::f16:
      return run(f16{});
    case NpyType::f32:
      return run(float{});
    case NpyType::f64:
      return run(double{});
  }
}

}  // namespace

size_t size_of(NpyType type) {
  constexpr std::array<size_t, 12> sizes{1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 4, 8};
  return sizes[static_cast<size_t>(type)];
}

std::string_view name_of(NpyType type) {
  constexpr std::array<std::string_view, 12> names{"bool", "u8",  "u16", "u32", "u64", "i8",
                                                   "i16",  "i32", "i64", "f16", "f32", "f64"};
  return names[static_cast<size_t>(type)];
}

std::vector<float> NpyArray::to_floats() const {
  std::vector<float> out(static_cast<size_t>(count()));
  for_each(*this, [&](size_t i, auto value) { out[i] = static_cast<float>(value); });
  return out;
}

std::vector<uint8_t> NpyArray::to_labels() const {
  std::vector<uint8_t> out(static_cast<size_t>(count()));
  for_each(*this, [&](size_t i, auto value) {
    const bool good = value >= decltype(value){0} && static_cast<double>(value) <= 255.0 &&
                      std::floor(static_cast<double>(value)) == static_cast<double>(value);
    check<FormatError>(good, source, ": element ", i, " is ", +value, ", expected a label from 0 to 255");
    out[i] = static_cast<uint8_t>(value);
  });
  return out;
}

NpyArray parse_npy(std::span<const std::byte> bytes, const std::string& source, uint64_t max_bytes) {
  size_t position = 0;
  const ReadNext read = [&](std::span<std::byte> target) {
    if (!target.empty()) {
      std::memcpy(target.data(), bytes.data() + position, target.size());
      position += target.size();
    }
  };
  return read_npy(read, bytes.size(), source, max_bytes);
}

NpzFile::NpzFile(std::filesystem::path path)
    : file_(std::move(path)), archive_(file_, weights::ZipMethods::stored_or_deflated) {
  constexpr std::string_view kEnding = ".npy";
  for (const weights::ZipEntry& entry : archive_.entries()) {
    check<FormatError>(entry.name.size() > kEnding.size() && entry.name.ends_with(kEnding), file_.name(),
                       ": entry ", weights::one_line(entry.name), ": expected arrays only, NAME.npy");
    names_.push_back(entry.name.substr(0, entry.name.size() - kEnding.size()));
  }
}

bool NpzFile::contains(std::string_view name) const {
  return std::find(names_.begin(), names_.end(), name) != names_.end();
}

NpyArray NpzFile::read(std::string_view name, uint64_t max_bytes) const {
  const weights::ZipEntry* entry = archive_.find(std::string(name) + ".npy");
  if (entry == nullptr) {
    std::string listed;
    for (const std::string& known : names_) {
      listed += concat(listed.empty() ? "" : ", ", weights::one_line(known));
    }
    throw FormatError(concat(file_.name(), ": found no array ", weights::one_line(name), ", expected one of ",
                             listed.empty() ? "none: the file is empty" : listed));
  }
  weights::ZipReader reader(file_, *entry);
  NpyArray array = read_npy([&](std::span<std::byte> target) { reader.read(target); }, entry->size,
                            concat(file_.name(), ": array ", weights::one_line(name)), max_bytes);
  reader.finish();
  return array;
}

}  // namespace vesal::imaging
