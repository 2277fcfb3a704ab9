// Reading with every check, and writing: see safetensors.hpp.
#include "weights_tools/safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "base/atomic_file.hpp"
#include "base/error.hpp"
#include "weights_tools/strided_read.hpp"

namespace vesal::weights {
namespace {

static_assert(std::endian::native == std::endian::little,
              "safetensors are little-endian; no byte swap is built in");

constexpr std::string_view kMetadataKey = "__metadata__";
// Tensors and lines of metadata. A header of the largest size could name ten million.
constexpr size_t kMaxNames = 1'000'000;

// Follows the parser through a header and accepts exactly
//   {"name": {"dtype": "F32", "shape": [..], "data_offsets": [b, e]}, ..., "__metadata__": {"key": "value",
//   ...}}.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  struct Entry {
    std::string name;
    std::string dtype;
    std::vector<uint64_t> shape;
    std::vector<uint64_t> range;
  };

  explicit HeaderHandler(const std::string& file) : file_(file) {}

  std::vector<Entry> entries;
  Metadata metadata;

  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return refuse("a number that is not whole"); }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) {
      return refuse("a number");
    }
    std::vector<uint64_t>& list = field_ == "shape" ? entries.back().shape : entries.back().range;
    if (list.size() == kMaxStoredRank) {
      throw FormatError(concat(where(), ": more than ", kMaxStoredRank, " numbers"));
    }
    list.push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      metadata[field_] = value;
      return true;
    }
    if (depth_ == 2 && field_ == "dtype") {
      entries.back().dtype = value;
      return true;
    }
    return refuse("a string");
  }

  bool start_object(size_t) override {
    if (in_array_ || depth_ >= 2) {
      return refuse("an object");
    }
    ++depth_;
    if (depth_ == 2) {
      in_metadata_ = name_ == kMetadataKey;
      fields_.clear();
      field_.clear();
      if (!in_metadata_) {
        entries.push_back({name_, {}, {}, {}});
      }
    }
    return true;
  }

  bool key(string_t& text) override {
    if (depth_ == 1 || in_metadata_) {
      check<FormatError>(++name_count_ <= kMaxNames, file_, ": header: more than ", kMaxNames, " names");
    }
    if (depth_ == 1) {
      if (!names_.insert(text).second) {
        throw FormatError(concat(file_, ": header: the name ", one_line(text), " occurs twice"));
      }
      name_ = text;
      return true;
    }
    field_ = text;
    if (!fields_.insert(text).second) {
      throw FormatError(concat(where(), " occurs twice"));
    }
    if (!in_metadata_ && text != "dtype" && text != "shape" && text != "data_offsets") {
      throw FormatError(concat(where(), " is unknown, expected dtype, shape, data_offsets"));
    }
    return true;
  }

  bool end_object() override {
    if (depth_ == 2 && !in_metadata_) {
      check<FormatError>(fields_.size() == 3, file_, ": header: tensor ", one_line(name_), " has ",
                         fields_.size(), " of the three fields dtype, shape, data_offsets");
    }
    --depth_;
    return true;
  }

  bool start_array(size_t) override {
    if (in_array_ || depth_ != 2 || in_metadata_ || field_ == "dtype") {
      return refuse("a list");
    }
    in_array_ = true;
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    throw FormatError(concat(file_, ": header: not valid JSON near byte ", position));
  }

 private:
  std::string where() const {
    if (depth_ < 2) {
      return concat(file_, ": header", name_.empty() ? "" : ": " + one_line(name_));
    }
    return concat(file_, ": header: ", in_metadata_ ? "__metadata__" : "tensor " + one_line(name_), ": ",
                  one_line(field_));
  }

  bool refuse(const char* found) const {
    throw FormatError(concat(where(), ": found ", found, ", expected ",
                             depth_ == 0         ? "an object"
                             : depth_ == 1       ? "an object that describes a tensor"
                             : in_metadata_      ? "a string"
                             : field_ == "dtype" ? "a type name"
                                                 : "a list of whole numbers"));
  }

  const std::string& file_;
  std::set<std::string> names_;
  std::set<std::string> fields_;
  size_t name_count_ = 0;
  std::string name_;
  std::string field_;
  int depth_ = 0;
  bool in_metadata_ = false;
  bool in_array_ = false;
};

}  // namespace

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : WeightsFile(std::move(path)) {
  const std::string& file = file_.name();
  const uint64_t file_bytes = file_.size();
  check<FormatError>(file_bytes >= 8, file, ": holds ", file_bytes,
                     " bytes, a safetensors file starts with 8 bytes of header length");
  std::array<std::byte, 8> start;
  file_.read(0, start);
  check<FormatError>(std::memcmp(start.data(), "PK\3\4", 4) != 0, file,
                     ": is a ZIP archive (a PyTorch .pt/.pth file?), expected safetensors");
  const uint64_t header_bytes = little_endian<8>(start.data());
  check<FormatError>(header_bytes <= kMaxHeaderBytes, file, ": header length ", header_bytes,
                     ", expected at most ", kMaxHeaderBytes, "; not a safetensors file?");
  check<FormatError>(header_bytes <= file_bytes - 8, file, ": header length ", header_bytes,
                     " passes the file's ", file_bytes, " bytes; truncated, or not a safetensors file?");
  std::string header(header_bytes, '\0');
  file_.read(8, std::as_writable_bytes(std::span(header)));
  check<FormatError>(!header.empty() && header[0] == '{', file, ": the header does not start with '{'");

  HeaderHandler handler(file);
  nlohmann::json::sax_parse(header, &handler);
  metadata_ = std::move(handler.metadata);

  std::vector<StoredTensor> tensors;
  const uint64_t data_start = 8 + header_bytes;
  const uint64_t data_bytes = file_bytes - data_start;
  for (const HeaderHandler::Entry& entry : handler.entries) {
    const std::string where = concat(file, ": tensor ", one_line(entry.name));
    const uint64_t element = stored_bytes(entry.dtype);
    check<FormatError>(element != 0, where, ": type ", one_line(entry.dtype), " is not supported");
    StoredTensor tensor;
    tensor.name = entry.name;
    tensor.dtype = entry.dtype;
    uint64_t bytes = element;
    bool fits = true;
    for (const uint64_t extent : entry.shape) {
      fits = fits && extent <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) &&
             !__builtin_mul_overflow(bytes, extent, &bytes) &&
             bytes <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
      tensor.shape.push_back(static_cast<int64_t>(extent));
    }
    check<FormatError>(fits, where, ": the shape's size passes 2^63 bytes");
    check<FormatError>(entry.range.size() == 2, where, ": data_offsets holds ", entry.range.size(),
                       " numbers, expected 2");
    const uint64_t begin = entry.range[0];
    const uint64_t end = entry.range[1];
    check<FormatError>(begin <= end && end <= data_bytes, where, ": data_offsets [", begin, ", ", end,
                       "] lie outside the file's ", data_bytes, " bytes of data; truncated?");
    check<FormatError>(end - begin == bytes, where, ": data_offsets span ", end - begin, " bytes, but ",
                       entry.dtype, " ", to_string(tensor.shape), " needs ", bytes);
    tensor.strides = contiguous_strides(tensor.shape);
    tensor.count = static_cast<int64_t>(bytes / element);
    tensor.offset = data_start + begin;
    tensor.bytes = bytes;
    tensors.push_back(std::move(tensor));
  }
  std::stable_sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  uint64_t next = data_start;
  for (const StoredTensor& tensor : tensors) {
    check<FormatError>(tensor.offset == next, file, ": tensor ", one_line(tensor.name), " starts at byte ",
                       tensor.offset - data_start, " of the data, expected ", next - data_start, ": ",
                       tensor.offset < next ? "tensors overlap" : "there is a hole");
    next += tensor.bytes;
  }
  check<FormatError>(next == file_bytes, file, ": ", file_bytes - next, " bytes follow the last tensor");
  set_tensors(std::move(tensors));
}

void write_safetensors(const std::filesystem::path& path, std::vector<TensorSource> tensors,
                       const Metadata& metadata) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorSource& a, const TensorSource& b) {
    return size_of(a.dtype) > size_of(b.dtype);
  });
  const std::string file = path.string();
  std::string header = "{";
  try {
    if (!metadata.empty()) {
      header += nlohmann::json(kMetadataKey).dump() + ":" + nlohmann::json(metadata).dump();
    }
    std::set<std::string_view> names{kMetadataKey};
    int64_t offset = 0;
    for (const TensorSource& tensor : tensors) {
      check<UsageError>(names.insert(tensor.name).second, file, ": the tensor name ", one_line(tensor.name),
                        " occurs twice or is reserved");
      const int64_t bytes =
          checked_mul(element_count(tensor.shape), static_cast<int64_t>(size_of(tensor.dtype)));
      header += concat(header.size() > 1 ? "," : "", nlohmann::json(tensor.name).dump(), ":{\"dtype\":\"",
                       stored_name(tensor.dtype), "\",\"shape\":", nlohmann::json(tensor.shape).dump(),
                       ",\"data_offsets\":[", offset, ",", offset + bytes, "]}");
      offset += bytes;
    }
  } catch (const nlohmann::json::exception&) {
    throw UsageError(concat(file, ": a tensor's name or the metadata is not valid UTF-8"));
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  check<UsageError>(header.size() <= SafetensorsFile::kMaxHeaderBytes, file, ": the header would hold ",
                    header.size(), " bytes, the format allows ", SafetensorsFile::kMaxHeaderBytes);

  AtomicFile out(path);
  const uint64_t header_bytes = header.size();
  out.write(&header_bytes, sizeof(header_bytes));
  out.write(header);
  for (const TensorSource& tensor : tensors) {
    const std::vector<std::byte> bytes = tensor.bytes();
    const auto expected = static_cast<size_t>(element_count(tensor.shape)) * size_of(tensor.dtype);
    check<ShapeError>(bytes.size() == expected, file, ": tensor ", one_line(tensor.name), ": ", bytes.size(),
                      " bytes were given for ", to_string(tensor.shape), ", expected ", expected);
    out.write(bytes.data(), bytes.size());
  }
  out.commit();
}

}  // namespace vesal::weights
