// From the end record to the central directory to the local headers: see zip.hpp.
#include "weights_tools/zip.hpp"

#include <libdeflate.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "base/error.hpp"
#include "weights_tools/text.hpp"

namespace vesal::weights {
namespace {

constexpr uint64_t kLocalSignature = 0x04034b50;
constexpr uint64_t kCentralSignature = 0x02014b50;
constexpr uint64_t kEndSignature = 0x06054b50;
constexpr uint64_t kEnd64Signature = 0x06064b50;
constexpr uint64_t kLocatorSignature = 0x07064b50;
constexpr uint64_t kDescriptorSignature = 0x08074b50;

constexpr uint64_t kLocalBytes = 30;
constexpr uint64_t kCentralBytes = 46;
constexpr uint64_t kEndBytes = 22;
constexpr uint64_t kEnd64Bytes = 56;
constexpr uint64_t kLocatorBytes = 20;

constexpr uint64_t kEncrypted = 1u << 0;
constexpr uint64_t kHasDescriptor = 1u << 3;
constexpr uint64_t kNameIsUtf8 = 1u << 11;
// Bits 1 and 2 tell how hard a compressor tried.
constexpr uint64_t kKnownFlags = kHasDescriptor | kNameIsUtf8 | 1u << 1 | 1u << 2;

constexpr uint64_t kStored = 0;
constexpr uint64_t kDeflated = 8;
constexpr uint64_t kZip64Field = 1;
// Deflate's best: 258 bytes for two bits.
constexpr uint64_t kMaxDeflateRatio = 1032;
constexpr uint64_t kAllOnes16 = 0xffff;
constexpr uint64_t kAllOnes32 = 0xffffffff;

// The place of the central directory.
struct Directory {
  uint64_t entries = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// What the central directory says of an entry, beside what ZipEntry keeps.
struct CentralHeader {
  ZipEntry entry;
  uint64_t flags = 0;
  uint64_t method = 0;
  uint64_t local_offset = 0;
};

// The field with this id among the extra fields, which must fill `extra` exactly and not repeat it.
std::optional<std::span<const std::byte>> find_extra(std::span<const std::byte> extra, uint64_t id,
                                                     const std::string& where) {
  std::optional<std::span<const std::byte>> found;
  while (!extra.empty()) {
    check<FormatError>(extra.size() >= 4 && little_endian<2>(extra.data() + 2) <= extra.size() - 4, where,
                       ": extra field: passes its end");
    const uint64_t length = little_endian<2>(extra.data() + 2);
    if (little_endian<2>(extra.data()) == id) {
      check<FormatError>(!found, where, ": extra field: ZIP64 sizes occur twice");
      found = extra.subspan(4, length);
    }
    extra = extra.subspan(4 + length);
  }
  return found;
}

// A value of an end record and its ZIP64 twin: the short one must be the same, or all ones where it stands
// for the long one.
void check_twin(uint64_t short_value, uint64_t all_ones, uint64_t long_value, const char* what,
                const std::string& file) {
  check<FormatError>(short_value == all_ones || short_value == long_value, file, ": zip end record: ", what,
                     ": found ", short_value, ", but ", long_value, " in the ZIP64 record");
}

Directory find_directory(const FileSource& file) {
  const std::string& name = file.name();
  check<FormatError>(file.size() >= kEndBytes, name, ": zip: holds ", file.size(),
                     " bytes, an archive at least ", kEndBytes);
  const uint64_t end_offset = file.size() - kEndBytes;
  std::array<std::byte, kEndBytes> end;
  file.read(end_offset, end);
  // Whoever searches backwards for the end record finds another one in a comment; so a comment is not
  // accepted.
  check<FormatError>(
      little_endian<4>(end.data()) == kEndSignature && little_endian<2>(end.data() + 20) == 0, name,
      ": zip: the last ", kEndBytes,
      " bytes are no end record; truncated, followed by other bytes, or with a comment, which torch "
      "never writes?");
  check<FormatError>(little_endian<2>(end.data() + 4) == 0 && little_endian<2>(end.data() + 6) == 0, name,
                     ": zip end record: split over several disks, expected one file");
  check<FormatError>(little_endian<2>(end.data() + 8) == little_endian<2>(end.data() + 10), name,
                     ": zip end record: found ", little_endian<2>(end.data() + 8), " and ",
                     little_endian<2>(end.data() + 10), " entries, expected twice the same number");
  Directory directory{little_endian<2>(end.data() + 10), little_endian<4>(end.data() + 16),
                      little_endian<4>(end.data() + 12)};
  uint64_t directory_end = end_offset;

  std::array<std::byte, kLocatorBytes> locator{};
  if (end_offset >= kLocatorBytes) {
    file.read(end_offset - kLocatorBytes, locator);
  }
  if (little_endian<4>(locator.data()) == kLocatorSignature) {
    const uint64_t found = little_endian<8>(locator.data() + 8);
    const uint64_t locator_offset = end_offset - kLocatorBytes;
    check<FormatError>(locator_offset >= kEnd64Bytes && found == locator_offset - kEnd64Bytes, name,
                       ": zip ZIP64 locator: points to byte ", found, ", expected the record in front of it");
    check<FormatError>(
        little_endian<4>(locator.data() + 4) == 0 && little_endian<4>(locator.data() + 16) == 1, name,
        ": zip ZIP64 locator: split over several disks, expected one file");
    std::array<std::byte, kEnd64Bytes> end64;
    file.read(found, end64);
    check<FormatError>(little_endian<4>(end64.data()) == kEnd64Signature, name,
                       ": zip ZIP64 record: not at byte ", found, ", where its locator points");
    check<FormatError>(little_endian<8>(end64.data() + 4) == kEnd64Bytes - 12, name,
                       ": zip ZIP64 record: found a length of ", little_endian<8>(end64.data() + 4),
                       ", expected ", kEnd64Bytes - 12);
    check<FormatError>(little_endian<4>(end64.data() + 16) == 0 && little_endian<4>(end64.data() + 20) == 0 &&
                           little_endian<8>(end64.data() + 24) == little_endian<8>(end64.data() + 32),
                       name, ": zip ZIP64 record: split over several disks, expected one file");
    const Directory long_values{little_endian<8>(end64.data() + 32), little_endian<8>(end64.data() + 48),
                                little_endian<8>(end64.data() + 40)};
    check_twin(directory.entries, kAllOnes16, long_values.entries, "entries", name);
    check_twin(directory.offset, kAllOnes32, long_values.offset, "directory offset", name);
    check_twin(directory.bytes, kAllOnes32, long_values.bytes, "directory size", name);
    directory = long_values;
    directory_end = found;
  }
  check<FormatError>(directory.offset <= directory_end && directory.bytes == directory_end - directory.offset,
                     name, ": zip end record: a directory of ", directory.bytes, " bytes at byte ",
                     directory.offset, ", expected it to end at byte ", directory_end,
                     ", where the end records start");
  check<FormatError>(directory.entries <= ZipArchive::kMaxEntries, name, ": zip: ", directory.entries,
                     " entries, expected at most ", ZipArchive::kMaxEntries);
  check<FormatError>(directory.bytes <= ZipArchive::kMaxDirectoryBytes, name, ": zip: a directory of ",
                     directory.bytes, " bytes, expected at most ", ZipArchive::kMaxDirectoryBytes);
  return directory;
}

void check_entry_name(const std::string& entry, const std::string& file) {
  bool good = is_utf8(entry);
  for (size_t start = 0; good && start <= entry.size();) {
    const size_t end = std::min(entry.find('/', start), entry.size());
    const std::string_view part = std::string_view(entry).substr(start, end - start);
    good = !part.empty() && part != "." && part != "..";
    start = end + 1;
  }
  good = good && std::none_of(entry.begin(), entry.end(), [](char c) {
           return static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\';
         });
  check<FormatError>(good, file, ": zip entry ", one_line(entry),
                     ": expected a relative path in UTF-8 without control characters");
}

bool is_code(std::string_view entry) {
  const size_t slash = entry.find('/');
  return slash != std::string_view::npos && entry.substr(slash).starts_with("/code/");
}

// The central header at the start of `bytes`; `bytes` is moved behind it.
CentralHeader read_central(std::span<const std::byte>& bytes, ZipMethods methods, const std::string& file) {
  check<FormatError>(bytes.size() >= kCentralBytes && little_endian<4>(bytes.data()) == kCentralSignature,
                     file, ": zip directory: ", bytes.size(),
                     " bytes before its end is no entry; fewer entries than the end record says?");
  const std::byte* head = bytes.data();
  const uint64_t name_length = little_endian<2>(head + 28);
  const uint64_t extra_length = little_endian<2>(head + 30);
  check<FormatError>(name_length + extra_length <= bytes.size() - kCentralBytes, file,
                     ": zip directory: an entry passes its end");
  CentralHeader central;
  central.entry.name.assign(reinterpret_cast<const char*>(head) + kCentralBytes, name_length);
  check_entry_name(central.entry.name, file);
  const std::string where = concat(file, ": zip entry ", one_line(central.entry.name));

  central.flags = little_endian<2>(head + 8);
  check<FormatError>((central.flags & kEncrypted) == 0, where, ": is encrypted, expected plain data");
  check<FormatError>((central.flags & ~kKnownFlags) == 0, where, ": found flags ", central.flags,
                     ", expected none but ", kKnownFlags);
  central.method = little_endian<2>(head + 10);
  const bool may_be_deflated = methods == ZipMethods::stored_or_deflated || is_code(central.entry.name);
  check<FormatError>(central.method == kStored || (central.method == kDeflated && may_be_deflated), where,
                     ": found compression method ", central.method, ", expected 0 (stored)",
                     methods == ZipMethods::stored ? ": torch never compresses data" : " or 8 (deflated)");
  central.entry.deflated = central.method == kDeflated;
  central.entry.crc = static_cast<uint32_t>(little_endian<4>(head + 16));
  central.entry.bytes = little_endian<4>(head + 20);
  central.entry.size = little_endian<4>(head + 24);
  central.local_offset = little_endian<4>(head + 42);
  check<FormatError>(little_endian<2>(head + 32) == 0, where, ": has a comment, which torch never writes");
  check<FormatError>(little_endian<2>(head + 34) == 0, where, ": lies on another disk, expected one file");

  const auto zip64 = find_extra(bytes.subspan(kCentralBytes + name_length, extra_length), kZip64Field, where);
  std::span<const std::byte> rest = zip64.value_or(std::span<const std::byte>());
  // In this order, and only those whose short form is all ones.
  for (uint64_t* value : {&central.entry.size, &central.entry.bytes, &central.local_offset}) {
    if (*value == kAllOnes32) {
      check<FormatError>(rest.size() >= 8, where, ": a ZIP64 size is missing");
      *value = little_endian<8>(rest.data());
      rest = rest.subspan(8);
    }
  }
  check<FormatError>(rest.empty(), where, ": ZIP64 sizes that contradict the short ones");
  check<FormatError>(central.method != kStored || central.entry.bytes == central.entry.size, where,
                     ": stored as ", central.entry.bytes, " bytes, but ", central.entry.size,
                     " uncompressed");
  bytes = bytes.subspan(kCentralBytes + name_length + extra_length);
  return central;
}

// Compares the local header with the central one and finds the data behind it.
void read_local(CentralHeader& central, const FileSource& file, uint64_t directory_offset) {
  const std::string where = concat(file.name(), ": zip entry ", one_line(central.entry.name));
  check<FormatError>(
      directory_offset >= kLocalBytes && central.local_offset <= directory_offset - kLocalBytes, where,
      ": its header at byte ", central.local_offset, " passes the directory at byte ", directory_offset);
  std::array<std::byte, kLocalBytes> head;
  file.read(central.local_offset, head);
  check<FormatError>(little_endian<4>(head.data()) == kLocalSignature, where, ": no local header at byte ",
                     central.local_offset);
  const uint64_t name_length = little_endian<2>(head.data() + 26);
  const uint64_t extra_length = little_endian<2>(head.data() + 28);
  const uint64_t room = directory_offset - central.local_offset - kLocalBytes;
  check<FormatError>(
      name_length + extra_length <= room && central.entry.bytes <= room - name_length - extra_length, where,
      ": its ", central.entry.bytes, " bytes pass the directory at byte ", directory_offset);
  std::vector<std::byte> tail(name_length + extra_length);
  file.read(central.local_offset + kLocalBytes, tail);
  const std::string_view local_name(reinterpret_cast<const char*>(tail.data()), name_length);
  check<FormatError>(local_name == central.entry.name, where, ": its local header names it ",
                     one_line(local_name));
  check<FormatError>(little_endian<2>(head.data() + 6) == central.flags, where, ": flags ", central.flags,
                     " in the directory, ", little_endian<2>(head.data() + 6), " in the local header");
  check<FormatError>(little_endian<2>(head.data() + 8) == central.method, where, ": compression method ",
                     central.method, " in the directory, ", little_endian<2>(head.data() + 8),
                     " in the local header");

  const bool deferred = (central.flags & kHasDescriptor) != 0;
  const auto check_same = [&](uint64_t local, uint64_t expected, const char* what) {
    check<FormatError>(local == expected || (deferred && local == 0), where, ": ", what, " ", expected,
                       " in the directory, ", local, " in the local header");
  };
  uint64_t bytes = little_endian<4>(head.data() + 18);
  uint64_t uncompressed = little_endian<4>(head.data() + 22);
  const auto zip64 = find_extra(std::span<const std::byte>(tail).subspan(name_length), kZip64Field, where);
  if (bytes == kAllOnes32 || uncompressed == kAllOnes32) {
    check<FormatError>(zip64 && zip64->size() >= 16, where, ": a ZIP64 size is missing in the local header");
    uncompressed = little_endian<8>(zip64->data());
    bytes = little_endian<8>(zip64->data() + 8);
  }
  check_same(bytes, central.entry.bytes, "compressed size");
  check_same(uncompressed, central.entry.size, "size");
  check_same(little_endian<4>(head.data() + 14), central.entry.crc, "CRC-32");
  central.entry.offset = central.local_offset + kLocalBytes + name_length + extra_length;
}

// What lies between an entry's data and the next entry: nothing, or the data descriptor that its flags
// announce, in one of four forms: with or without a signature, with sizes of 4 or 8 bytes.
void check_gap(const CentralHeader& central, uint64_t gap, const FileSource& file) {
  const auto refuse = [&](const auto&... what) {
    throw FormatError(concat(file.name(), ": zip entry ", one_line(central.entry.name), ": ", what...));
  };
  const uint64_t start = central.entry.offset + central.entry.bytes;
  if ((central.flags & kHasDescriptor) == 0) {
    if (gap != 0) {
      refuse(gap, " bytes behind it belong to no entry");
    }
    return;
  }
  if (gap != 12 && gap != 16 && gap != 20 && gap != 24) {
    refuse(gap, " bytes behind it, expected a data descriptor");
  }
  std::array<std::byte, 24> bytes{};
  file.read(start, std::span(bytes).first(gap));
  const bool is_signed = gap == 16 || gap == 24;
  const std::byte* next = bytes.data() + (is_signed ? 4 : 0);
  const bool is_long = gap >= 20;
  const uint64_t compressed = is_long ? little_endian<8>(next + 4) : little_endian<4>(next + 4);
  const uint64_t uncompressed = is_long ? little_endian<8>(next + 12) : little_endian<4>(next + 8);
  if ((is_signed && little_endian<4>(bytes.data()) != kDescriptorSignature) ||
      little_endian<4>(next) != central.entry.crc || compressed != central.entry.bytes ||
      uncompressed != central.entry.size) {
    refuse("its data descriptor contradicts the directory");
  }
}

}  // namespace

ZipArchive::ZipArchive(const FileSource& file, ZipMethods methods) : file_(file) {
  const Directory directory = find_directory(file);
  std::vector<std::byte> bytes(directory.bytes);
  file.read(directory.offset, bytes);
  std::vector<CentralHeader> headers;
  std::span<const std::byte> rest = bytes;
  for (uint64_t i = 0; i < directory.entries; ++i) {
    headers.push_back(read_central(rest, methods, file.name()));
  }
  check<FormatError>(rest.empty(), file.name(), ": zip directory: ", rest.size(), " bytes behind its ",
                     directory.entries, " entries");
  std::stable_sort(headers.begin(), headers.end(), [](const CentralHeader& a, const CentralHeader& b) {
    return a.local_offset < b.local_offset;
  });
  for (size_t i = 0; i < headers.size(); ++i) {
    CentralHeader& central = headers[i];
    const uint64_t previous_end = i == 0 ? 0 : headers[i - 1].entry.offset + headers[i - 1].entry.bytes;
    check<FormatError>(central.local_offset >= previous_end, file.name(), ": zip entry ",
                       one_line(central.entry.name), ": overlaps entry ",
                       one_line(headers[i == 0 ? 0 : i - 1].entry.name));
    read_local(central, file, directory.offset);
    if (i == 0) {
      check<FormatError>(central.local_offset == 0, file.name(), ": zip: ", central.local_offset,
                         " bytes in front of the first entry");
    } else {
      check_gap(headers[i - 1], central.local_offset - previous_end, file);
    }
  }
  if (headers.empty()) {
    check<FormatError>(directory.offset == 0, file.name(), ": zip: ", directory.offset,
                       " bytes that belong to no entry");
  } else {
    const ZipEntry& last = headers.back().entry;
    check_gap(headers.back(), directory.offset - last.offset - last.bytes, file);
  }

  entries_.reserve(headers.size());
  for (CentralHeader& central : headers) {
    entries_.push_back(std::move(central.entry));
  }
  for (size_t i = 0; i < entries_.size(); ++i) {
    check<FormatError>(index_.emplace(entries_[i].name, i).second, file.name(), ": zip entry ",
                       one_line(entries_[i].name), ": the name occurs twice");
  }
}

const ZipEntry* ZipArchive::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

void ZipArchive::check_data(const ZipEntry& entry) const {
  if (entry.crc != 0) {
    read_parts(entry, {}, [](uint64_t, std::span<const std::byte>) {});
  }
}

void ZipArchive::read_parts(const ZipEntry& entry, std::span<std::byte> target,
                            const FileSource::Consumer& consume) const {
  if (entry.crc == 0) {
    file_.read_parts(entry.offset, entry.bytes, target, consume);
    return;
  }
  constexpr uint64_t kPartBytes = FileSource::kPartBytes;
  std::vector<uint32_t> sums((entry.bytes + kPartBytes - 1) / kPartBytes);
  file_.read_parts(entry.offset, entry.bytes, target,
                   [&](uint64_t position, std::span<const std::byte> part) {
                     sums[position / kPartBytes] = ::libdeflate_crc32(0, part.data(), part.size());
                     consume(position, part);
                   });
  uLong crc = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    const uint64_t count = std::min(kPartBytes, entry.bytes - i * kPartBytes);
    crc = ::crc32_combine(crc, sums[i], static_cast<z_off_t>(count));
  }
  check<FormatError>(crc == entry.crc, file_.name(), ": zip entry ", one_line(entry.name), ": CRC-32 ", crc,
                     ", expected ", entry.crc, "; damaged?");
}

struct ZipReader::Stream {
  z_stream zlib{};
  std::vector<std::byte> input = std::vector<std::byte>(1u << 16);
  bool ended = false;
};

ZipReader::ZipReader(const FileSource& file, const ZipEntry& entry)
    : file_(file), entry_(entry), crc_(::crc32(0, nullptr, 0)) {
  if (!entry.deflated) {
    return;
  }
  if (entry.size / kMaxDeflateRatio > entry.bytes) {
    refuse(concat("claims ", entry.size, " bytes in ", entry.bytes, " deflated ones, which hold at most ",
                  kMaxDeflateRatio, " times as many"));
  }
  stream_ = std::make_unique<Stream>();
  // Negative: without zlib's own header and checksum.
  check<FormatError>(inflateInit2(&stream_->zlib, -MAX_WBITS) == Z_OK, file.name(),
                     ": zip: no memory to inflate");
}

ZipReader::~ZipReader() {
  if (stream_) {
    inflateEnd(&stream_->zlib);
  }
}

void ZipReader::refuse(const std::string& what) const {
  throw FormatError(concat(file_.name(), ": zip entry ", one_line(entry_.name), ": ", what));
}

void ZipReader::read(std::span<std::byte> target) {
  if (target.size() > entry_.size - done_) {
    refuse(concat("ends after ", entry_.size, " bytes, expected ", target.size(), " from byte ", done_));
  }
  done_ += target.size();
  // zlib counts in 32 bits.
  for (std::span<std::byte> rest = target; !rest.empty();) {
    const std::span<std::byte> piece = rest.first(std::min<size_t>(rest.size(), 1u << 30));
    rest = rest.subspan(piece.size());
    if (stream_ == nullptr) {
      file_.read(entry_.offset + consumed_, piece);
      consumed_ += piece.size();
    } else {
      z_stream& zlib = stream_->zlib;
      zlib.next_out = reinterpret_cast<Bytef*>(piece.data());
      zlib.avail_out = static_cast<uInt>(piece.size());
      while (zlib.avail_out > 0) {
        if (stream_->ended) {
          refuse(concat("its deflated bytes hold fewer than ", entry_.size, " bytes"));
        }
        take_in();
        const int code = ::inflate(&zlib, Z_NO_FLUSH);
        stream_->ended = code == Z_STREAM_END;
        if (code != Z_OK && code != Z_STREAM_END) {
          refuse(code == Z_BUF_ERROR ? "its deflated bytes end too early" : "its deflated bytes are damaged");
        }
      }
    }
    crc_ = ::crc32(crc_, reinterpret_cast<const Bytef*>(piece.data()), static_cast<uInt>(piece.size()));
  }
}

void ZipReader::take_in() {
  z_stream& zlib = stream_->zlib;
  if (zlib.avail_in > 0) {
    return;
  }
  const size_t count = std::min<uint64_t>(stream_->input.size(), entry_.bytes - consumed_);
  file_.read(entry_.offset + consumed_, std::span(stream_->input).first(count));
  consumed_ += count;
  zlib.next_in = reinterpret_cast<Bytef*>(stream_->input.data());
  zlib.avail_in = static_cast<uInt>(count);
}

void ZipReader::finish() {
  check<ShapeError>(done_ == entry_.size, file_.name(), ": zip entry ", one_line(entry_.name), ": ", done_,
                    " bytes read of ", entry_.size);
  if (stream_) {
    z_stream& zlib = stream_->zlib;
    Bytef more = 0;
    zlib.next_out = &more;
    zlib.avail_out = 1;
    while (!stream_->ended) {
      take_in();
      const int code = ::inflate(&zlib, Z_NO_FLUSH);
      stream_->ended = code == Z_STREAM_END;
      if (zlib.avail_out == 0) {
        refuse(concat("its deflated bytes hold more than ", entry_.size, " bytes"));
      }
      if (code != Z_OK && code != Z_STREAM_END) {
        refuse(code == Z_BUF_ERROR ? "its deflated bytes end too early" : "its deflated bytes are damaged");
      }
    }
    if (zlib.avail_in > 0 || consumed_ != entry_.bytes) {
      refuse(concat("bytes behind the end of its deflated ones"));
    }
  }
  if (crc_ != entry_.crc) {
    refuse(concat("CRC-32 ", crc_, ", expected ", entry_.crc, "; damaged?"));
  }
}

}  // namespace vesal::weights
