// Builders of pickles, ZIP archives and PyTorch checkpoints, byte by byte, so that tests can write what no
// well-behaved program would.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vesal::weights {

// `value` in `bytes` bytes, little-endian; more than 8 end in zeros.
inline std::string le(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) {
    text += static_cast<char>(i < 8 ? value >> (8 * i) : 0);
  }
  return text;
}

// Values as a file holds them.
template <class T>
std::string raw(std::initializer_list<T> values) {
  return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T)};
}

class PickleBuilder {
 public:
  explicit PickleBuilder(int protocol = 2) : bytes_{'\x80', static_cast<char>(protocol)} {}

  PickleBuilder& op(std::string_view bytes) {
    bytes_ += bytes;
    return *this;
  }
  PickleBuilder& text(std::string_view value) { return op("X").op(le(value.size(), 4)).op(value); }
  PickleBuilder& integer(int64_t value) {
    return value >= 0 && value < 256 ? op("K").op(le(static_cast<uint64_t>(value), 1))
                                     : op("\x8a\x08").op(le(static_cast<uint64_t>(value), 8));
  }
  PickleBuilder& global(std::string_view module, std::string_view name) {
    return op("c").op(module).op("\n").op(name).op("\n");
  }
  PickleBuilder& integers(const std::vector<int64_t>& values) {
    op("(");
    for (const int64_t value : values) {
      integer(value);
    }
    return op("t");
  }
  PickleBuilder& storage(std::string_view type, std::string_view key, int64_t elements) {
    return op("(").text("storage").global("torch", type).text(key).text("cpu").integer(elements).op("tQ");
  }
  // The arguments behind the storage, and the call.
  PickleBuilder& view(int64_t offset, const std::vector<int64_t>& shape,
                      const std::vector<int64_t>& strides) {
    return integer(offset)
        .integers(shape)
        .integers(strides)
        .op("\x89")
        .global("collections", "OrderedDict")
        .op(")RtR");
  }
  // A float tensor.
  PickleBuilder& tensor(std::string_view key, int64_t elements, int64_t offset,
                        const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    return global("torch._utils", "_rebuild_tensor_v2")
        .op("(")
        .storage("FloatStorage", key, elements)
        .view(offset, shape, strides);
  }
  // The vector of all elements of a storage.
  PickleBuilder& vector(std::string_view key, int64_t elements) {
    return tensor(key, elements, 0, {elements}, {1});
  }

  std::string stop() const { return bytes_ + "."; }

 private:
  std::string bytes_;
};

// A raw deflate stream, as ZIP archives hold them.
inline std::string deflated(std::string_view data) {
  z_stream stream{};
  ::deflateInit2(&stream, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(::deflateBound(&stream, data.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  ::deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

class ZipBuilder {
 public:
  enum class Style {
    torch,  // data descriptors, empty local sizes, padded extra fields, ZIP64 end records
    plain   // as simple as a ZIP can be
  };

  explicit ZipBuilder(Style style = Style::torch) : style_(style) {}

  ZipBuilder& add(std::string_view name, std::string_view data, bool deflate = false) {
    const auto crc = static_cast<uint32_t>(
        ::crc32(0, reinterpret_cast<const Bytef*>(data.data()), static_cast<uInt>(data.size())));
    const std::string stored = deflate ? deflated(data) : std::string(data);
    const bool torch = style_ == Style::torch;
    const std::string method = le(torch ? 0x808 : 0, 2) + le(deflate ? 8 : 0, 2) + le(0, 4);
    const std::string sizes = le(crc, 4) + le(stored.size(), 4) + le(data.size(), 4);
    local.push_back(bytes_.size());
    std::string extra;
    if (torch) {
      const size_t padding = 63 - (bytes_.size() + 30 + name.size() + 4 + 63) % 64;
      extra = std::string("FB") + le(padding, 2) + std::string(padding, 'Z');
    }
    bytes_ += std::string("PK\3\4") + le(0, 2) + method + (torch ? le(0, 12) : sizes) + le(name.size(), 2) +
              le(extra.size(), 2) + std::string(name) + extra;
    this->data.push_back(bytes_.size());
    bytes_ += stored;
    if (torch) {
      bytes_ += std::string("PK\7\b") + sizes;
    }
    directory_offsets_.push_back(directory_.size());
    directory_ += std::string("PK\1\2") + le(0, 4) + method + sizes + le(name.size(), 2) + le(0, 12) +
                  le(local.back(), 4) + std::string(name);
    return *this;
  }

  std::string finish() {
    const size_t start = bytes_.size();
    for (const size_t offset : directory_offsets_) {
      central.push_back(start + offset);
    }
    bytes_ += directory_;
    if (style_ == Style::torch) {
      end64 = bytes_.size();
      bytes_ += std::string("PK\6\6") + le(44, 8) + le(0x2d031e, 4) + le(0, 8) + le(local.size(), 8) +
                le(local.size(), 8) + le(directory_.size(), 8) + le(start, 8);
      locator = bytes_.size();
      bytes_ += std::string("PK\6\7") + le(0, 4) + le(end64, 8) + le(1, 4);
    }
    end = bytes_.size();
    bytes_ += std::string("PK\5\6") + le(0, 4) + le(local.size(), 2) + le(local.size(), 2) +
              le(directory_.size(), 4) + le(start, 4) + le(0, 2);
    return bytes_;
  }

  // Where in the file things are; the last four are known when it is finished.
  std::vector<size_t> local;
  std::vector<size_t> data;
  std::vector<size_t> central;
  size_t end64 = 0;
  size_t locator = 0;
  size_t end = 0;

 private:
  Style style_;
  std::string bytes_;
  std::string directory_;
  std::vector<size_t> directory_offsets_;
};

// `bytes` with others in their place.
inline std::string patched(std::string bytes, size_t at, std::string_view replacement) {
  std::copy(replacement.begin(), replacement.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
  return bytes;
}

using Records = std::vector<std::pair<std::string, std::string>>;

// A storage.
inline const std::string kThree = raw<float>({1.0f, 2.0f, 3.0f});

// The archive of a pickle and storages.
inline std::string zip_of(const std::string& pickle, const Records& storages = {{"0", kThree}},
                          const Records& more = {}) {
  ZipBuilder zip;
  zip.add("archive/data.pkl", pickle);
  for (const auto& [key, data] : storages) {
    zip.add("archive/data/" + key, data);
  }
  for (const auto& [name, data] : more) {
    zip.add(std::string("archive/") + name, data);
  }
  return zip.add("archive/version", "3\n").finish();
}

// {"w": the value that the opcodes push}
inline PickleBuilder one(const PickleBuilder& value) {
  return PickleBuilder().op("}").text("w").op(value.stop().substr(2, value.stop().size() - 3)).op("s");
}

// A legacy file: pickles, then storages as they are given.
inline std::string legacy_of(const std::string& object, const std::vector<std::string>& keys,
                             const std::string& storages) {
  PickleBuilder list;
  list.op("](");
  for (const std::string& key : keys) {
    list.text(key);
  }
  return PickleBuilder().op("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").stop() +
         PickleBuilder().op("M\xe9\x03").stop() +
         PickleBuilder()
             .op("}")
             .text("protocol_version")
             .op("M\xe9\x03s")
             .text("little_endian")
             .op("\x88s")
             .stop() +
         object + list.op("e").stop() + storages;
}

}  // namespace vesal::weights
