// The container of PyTorch's checkpoints since 1.6: a ZIP archive whose entries are stored, not compressed,
// so that a tensor's bytes have a place in the file (format: PKWARE's APPNOTE.TXT; what torch writes:
// caffe2/serialize).
//
// Any two ZIP readers agree on well-made archives and may disagree on others; so this one accepts only
// archives that can be read in one way. Every byte of the file belongs to exactly one entry, to the central
// directory behind them, or to the end records behind that. Refused, each with a FormatError: compressed
// entries where they would be read, encryption, split archives, comments (an end record may hide in one),
// ZIP64 fields that contradict the short ones, a local header that contradicts the central directory, entries
// that overlap, leave holes or pass the end, data in front of the first entry, names that occur twice, are
// not UTF-8, or would leave their folder when unpacked.
//
// torch pads the extra field of local headers so that data starts at a multiple of 64 bytes, leaves sizes and
// checksums in local headers empty and repeats them in a data descriptor, and always writes ZIP64 end
// records; all that is understood. TorchScript archives hold compressed source code beside stored tensors: an
// entry below a folder `code/` may be deflated, since nothing ever reads it. Only who asks for it
// (ZipMethods::stored_or_deflated: numpy's compressed archives) may read deflated entries, through ZipReader,
// which never gives more bytes than the directory says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "weights_tools/file_source.hpp"

namespace vesal::weights {

struct ZipEntry {
  std::string name;
  uint64_t offset = 0;  // of its first byte of data in the file
  uint64_t bytes = 0;   // in the file
  uint32_t crc = 0;     // CRC-32 of the data
  uint64_t size = 0;    // of the data; the same as `bytes` where they are stored
  bool deflated = false;
};

// Which entries an archive may hold.
enum class ZipMethods { stored, stored_or_deflated };

class ZipArchive {
 public:
  static constexpr uint64_t kMaxEntries = 1u << 20;
  static constexpr uint64_t kMaxDirectoryBytes = 256u << 20;

  // Reads and checks the central directory and every local header; the data stays where it is. `file` must
  // outlive the archive.
  explicit ZipArchive(const FileSource& file, ZipMethods methods = ZipMethods::stored);

  // In the order of their bytes.
  const std::vector<ZipEntry>& entries() const { return entries_; }
  // Null when there is none of that name. Names that differ in case are different names.
  const ZipEntry* find(std::string_view name) const;
  // Reads the data of a stored entry and throws FormatError when its CRC-32 is another: the file is damaged.
  // A CRC-32 of 0 stands for one that was not computed (torch.serialization.set_crc32_options(False)).
  void check_data(const ZipEntry& entry) const;
  // The same in one pass with what FileSource::read_parts does: what `consume` got from an entry that is
  // refused in the end is not to be believed.
  void read_parts(const ZipEntry& entry, std::span<std::byte> target,
                  const FileSource::Consumer& consume) const;

 private:
  const FileSource& file_;
  std::vector<ZipEntry> entries_;
  std::unordered_map<std::string_view, size_t> index_;
};

// The data of one entry from its first byte to its last, inflated where it is deflated. Memory does not
// depend on the entry.
class ZipReader {
 public:
  // Deflate shrinks no data to less than a 1032nd: an entry that claims more than that is refused here,
  // before anybody makes room for it. `file` is the one that the archive was opened with; both must outlive
  // the reader.
  ZipReader(const FileSource& file, const ZipEntry& entry);
  ~ZipReader();
  ZipReader(const ZipReader&) = delete;
  ZipReader& operator=(const ZipReader&) = delete;

  // Fills `target` with the next bytes. Throws FormatError for bytes past the entry's size, and where the
  // compressed stream is damaged or ends before.
  void read(std::span<std::byte> target);
  // To be called once all `size` bytes are read: throws FormatError where the compressed stream goes on, and
  // where the CRC-32 is not the directory's.
  void finish();

 private:
  struct Stream;
  // Makes sure that the inflater has input where there is any left.
  void take_in();
  [[noreturn]] void refuse(const std::string& what) const;

  const FileSource& file_;
  const ZipEntry& entry_;
  uint64_t done_ = 0;      // bytes of the data handed out
  uint64_t consumed_ = 0;  // bytes of the file taken in
  unsigned long crc_ = 0;
  std::unique_ptr<Stream> stream_;  // null for a stored entry
};

}  // namespace vesal::weights
