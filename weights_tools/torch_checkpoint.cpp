// The two containers of torch.save, and the list of tensors: see torch_checkpoint.hpp.
#include "weights_tools/torch_checkpoint.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <iterator>
#include <utility>

#include "base/error.hpp"
#include "weights_tools/pickle.hpp"
#include "weights_tools/strided_read.hpp"
#include "weights_tools/text.hpp"
#include "weights_tools/torch_objects.hpp"

namespace vesal::weights {
namespace {

static_assert(std::endian::native == std::endian::little,
              "storages are little-endian; no byte swap is built in");

constexpr std::string_view kZipStart = "PK\3\4";
constexpr std::string_view kTarMagic = "ustar";
constexpr size_t kTarMagicOffset = 257;
// The first pickle of a legacy file holds 0x1950a86a20f9469cfc6c, the second this version.
constexpr std::string_view kLegacyMagic = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
constexpr int64_t kLegacyVersion = 1001;

bool is_tar(std::string_view start) {
  return start.size() > kTarMagicOffset && start.substr(kTarMagicOffset).starts_with(kTarMagic);
}

// Elements of one type in the file, which tensors are views of.
struct Placed {
  std::string_view dtype;
  uint64_t elements = 0;
  uint64_t offset = 0;  // in the file
};

// What both containers come down to: the pickle, and where every storage lies.
struct Contents {
  Pickle pickle;
  std::function<uint64_t(const TorchStorage&, const std::string& where)>
      place;  // the byte at which it starts
};

// How a storage is named in messages.
std::string storage_name(std::string_view key) { return concat("storage ", one_line(key)); }

// The legacy container: pickles one after the other, then storages.
class LegacyReader {
 public:
  explicit LegacyReader(const FileSource& file) : file_(file) {
    const Pickle magic = next_pickle("magic number");
    check<FormatError>(
        magic.root().kind == PickleKind::big_integer && magic.text(magic.root()) == kLegacyMagic, file.name(),
        ": is a pickle, but not PyTorch's: its magic number is not there");
    const Pickle version = next_pickle("protocol version");
    check<FormatError>(
        version.root().kind == PickleKind::integer && version.integer(version.root()) == kLegacyVersion,
        file.name(), ": protocol version: expected ", kLegacyVersion);
    check_system(next_pickle("system"));
    pickle_ = next_pickle("object");
    place_storages(next_pickle("storage keys"));
  }

  Pickle take_pickle() { return std::move(pickle_); }

  uint64_t place(const TorchStorage& storage, const std::string& where) const {
    const auto found = placed_.find(storage.key);
    check<FormatError>(found != placed_.end(), where, ": ", storage_name(storage.key), ": not in the file");
    return found->second.offset;
  }

 private:
  Pickle next_pickle(std::string_view what) { return unpickle(file_, next_, file_.size(), what, &next_); }

  void check_system(const Pickle& system) const {
    bool little = false;
    if (system.root().kind == PickleKind::dict) {
      const std::span<const PickleValue> items = system.items(system.root());
      for (size_t i = 0; i + 1 < items.size(); i += 2) {
        if (items[i].is_string() && system.text(items[i]) == "little_endian") {
          little = items[i + 1].kind == PickleKind::boolean && system.boolean(items[i + 1]);
        }
      }
    }
    check<FormatError>(little, file_.name(), ": system: expected little_endian: True");
  }

  // Every key in the list, in its order, stands for 8 bytes with the number of elements and the elements.
  void place_storages(const Pickle& keys) {
    const TorchObjects objects(pickle_, file_.name(), false);
    for (const PickleValue& persistent : pickle_.persistent_values()) {
      if (!objects.is_storage(persistent)) {
        continue;
      }
      const TorchStorage storage = objects.storage(persistent, file_.name() + ": object");
      const auto [place, is_new] =
          placed_.emplace(std::string(storage.key), Placed{storage.dtype, storage.elements, kUnplaced});
      check<FormatError>(
          is_new || (place->second.dtype == storage.dtype && place->second.elements == storage.elements),
          file_.name(), ": ", storage_name(storage.key), ": described twice, differently");
    }
    check<FormatError>(
        keys.root().kind == PickleKind::list && keys.items(keys.root()).size() == placed_.size(),
        file_.name(), ": storage keys: expected a list of ", placed_.size());
    for (const PickleValue& key : keys.items(keys.root())) {
      const auto found = key.is_string() ? placed_.find(keys.text(key)) : placed_.end();
      check<FormatError>(found != placed_.end() && found->second.offset == kUnplaced, file_.name(),
                         ": storage keys: found ", key.is_string() ? one_line(keys.text(key)) : "no text",
                         ", expected every storage of the object once");
      place_storage(found->first, found->second);
    }
    check<FormatError>(next_ == file_.size(), file_.name(), ": ", file_.size() - next_,
                       " bytes follow the last storage");
  }

  void place_storage(const std::string& key, Placed& storage) {
    const std::string where = concat(file_.name(), ": ", storage_name(key));
    std::byte count[8];
    file_.read(next_, count);
    next_ += sizeof(count);
    check<FormatError>(little_endian<8>(count) == storage.elements, where, ": holds ",
                       little_endian<8>(count), " elements, the object says ", storage.elements);
    const uint64_t element = stored_bytes(storage.dtype);
    check<FormatError>(storage.elements <= (file_.size() - next_) / element, where, ": its ",
                       storage.elements, " elements pass the end of the file; truncated?");
    storage.offset = next_;
    next_ += storage.elements * element;
  }

  static constexpr uint64_t kUnplaced = ~uint64_t{0};
  const FileSource& file_;
  uint64_t next_ = 0;
  Pickle pickle_;
  std::map<std::string, Placed, std::less<>> placed_;
};

// The folder that all entries of a torch archive lie in, with its slash.
std::string archive_folder(const ZipArchive& zip, const std::string& file) {
  check<FormatError>(!zip.entries().empty(), file, ": zip: holds nothing, expected data.pkl");
  const std::string& first = zip.entries().front().name;
  const std::string folder = first.substr(0, first.find('/') + 1);
  for (const ZipEntry& entry : zip.entries()) {
    check<FormatError>(
        !folder.empty() && entry.name.starts_with(folder), file, ": zip entry ", one_line(entry.name),
        ": expected all entries in one folder, as torch.save writes them; not a PyTorch file?");
  }
  check<FormatError>(zip.find(folder + "data.pkl") != nullptr, file, ": zip: holds no entry ",
                     one_line(folder + "data.pkl"), "; not a PyTorch file?");
  return folder;
}

void check_byte_order(const ZipArchive& zip, const std::string& folder, const FileSource& file) {
  const ZipEntry* entry = zip.find(folder + "byteorder");
  if (entry == nullptr) {
    return;  // before 2.1, on machines that were little-endian
  }
  std::string text(std::min<uint64_t>(entry->bytes, 16), '\0');
  file.read(entry->offset, std::as_writable_bytes(std::span(text)));
  check<FormatError>(text == "little", file.name(), ": zip entry ", one_line(entry->name), ": found ",
                     one_line(text), ", expected \"little\"; save it again on a little-endian machine");
}

}  // namespace

bool TorchCheckpoint::recognises(std::string_view start) {
  const bool pickle = start.size() >= 2 && start[0] == '\x80' && start[1] >= 2 && start[1] <= 5;
  return start.starts_with(kZipStart) || pickle || is_tar(start);
}

TorchCheckpoint::TorchCheckpoint(std::filesystem::path path, std::string_view dictionary)
    : WeightsFile(std::move(path)) {
  const std::string& file = file_.name();
  std::string start(std::min<uint64_t>(file_.size(), 512), '\0');
  file_.read(0, std::as_writable_bytes(std::span(start)));
  check<FormatError>(
      !is_tar(start), file,
      ": is a tar archive, which PyTorch wrote before 0.2; load it with PyTorch and save it again");
  check<FormatError>(recognises(start), file,
                     ": is neither a ZIP archive nor a pickle, expected a PyTorch checkpoint");

  Contents contents;
  if (start.starts_with(kZipStart)) {
    zip_ = std::make_unique<ZipArchive>(file_);
    const std::string folder = archive_folder(*zip_, file);
    layout_ = zip_->find(folder + "constants.pkl") != nullptr ? Layout::script : Layout::zip;
    check_byte_order(*zip_, folder, file_);
    const ZipEntry& pickle = *zip_->find(folder + "data.pkl");
    zip_->check_data(pickle);
    contents.pickle = unpickle(file_, pickle.offset, pickle.offset + pickle.bytes, "data.pkl");
    contents.place = [this, folder, known = std::map<std::string, Placed, std::less<>>()](
                         const TorchStorage& storage, const std::string& where) mutable {
      const std::string name = concat(where, ": ", storage_name(storage.key));
      if (const auto found = known.find(storage.key); found != known.end()) {
        check<FormatError>(found->second.dtype == storage.dtype && found->second.elements == storage.elements,
                           name, ": described twice, differently");
        return found->second.offset;
      }
      const ZipEntry* entry = zip_->find(concat(folder, "data/", storage.key));
      check<FormatError>(entry != nullptr, name, ": there is no such entry in the archive");
      const uint64_t element = stored_bytes(storage.dtype);
      check<FormatError>(entry->bytes % element == 0 && entry->bytes / element == storage.elements, name,
                         ": holds ", entry->bytes, " bytes, ", storage.elements, " elements of ", element,
                         " bytes were declared");
      known.emplace(std::string(storage.key), Placed{storage.dtype, storage.elements, entry->offset});
      if (entry->bytes > 0) {
        entries_.emplace(entry->offset, entry);
      }
      return entry->offset;
    };
  } else {
    layout_ = Layout::legacy;
    const auto legacy = std::make_shared<LegacyReader>(file_);
    contents.pickle = legacy->take_pickle();
    contents.place = [legacy](const TorchStorage& storage, const std::string& where) {
      return legacy->place(storage, where);
    };
  }

  const TorchObjects objects(contents.pickle, file, layout_ == Layout::script);
  const std::vector<TorchDictionary> found = objects.dictionaries();
  const TorchDictionary& chosen = objects.choose(found, dictionary);
  dictionary_ = chosen.path;
  for (const TorchDictionary& other : found) {
    dictionaries_.push_back(other.path);
  }
  std::vector<StoredTensor> tensors;
  uint64_t total = 0;
  const uint64_t most = std::max(kMaxTotalBytes, file_.size() * kMaxExpansion);
  for (TorchNamed& named : objects.entries(chosen)) {
    if (!objects.is_tensor(named.value)) {
      skipped_.push_back(std::move(named.name));
      continue;
    }
    const std::string where = concat(file, ": tensor ", one_line(named.name));
    TorchTensor tensor = objects.tensor(named.value, where);
    const TorchStorage storage = objects.storage(tensor.storage, where);
    const uint64_t view_start =
        contents.place(storage, where) + storage.view_offset * stored_bytes(storage.dtype);
    const std::string_view dtype = tensor.dtype.empty() ? storage.dtype : tensor.dtype;
    const uint64_t element = stored_bytes(dtype);
    const uint64_t elements = storage.view_elements * stored_bytes(storage.dtype) / element;
    const std::string problem = view_problem(tensor.shape, tensor.strides, tensor.offset, elements, element);
    check<FormatError>(problem.empty(), where, ": ", problem);
    StoredTensor stored;
    stored.name = std::move(named.name);
    stored.dtype = dtype;
    for (const int64_t extent : tensor.shape) {
      stored.count *= extent;
    }
    stored.bytes = static_cast<uint64_t>(stored.count) * element;
    stored.offset = view_start + static_cast<uint64_t>(tensor.offset) * element;
    stored.shape = std::move(tensor.shape);
    stored.strides = std::move(tensor.strides);
    check<FormatError>(!__builtin_add_overflow(total, stored.bytes, &total) && total <= most, where,
                       ": all tensors up to here take ", total, " bytes in memory, expected at most ", most);
    tensors.push_back(std::move(stored));
  }
  set_tensors(std::move(tensors));
}

std::string_view TorchCheckpoint::format() const {
  switch (layout_) {
    case Layout::zip:
      return "PyTorch (zip)";
    case Layout::script:
      return "TorchScript";
    case Layout::legacy:
      return "PyTorch (legacy)";
  }
  return "?";
}

void TorchCheckpoint::check_data(const StoredTensor& tensor) const {
  if (zip_ == nullptr || tensor.bytes == 0) {
    return;
  }
  const ZipEntry* entry = std::prev(entries_.upper_bound(tensor.offset))->second;
  const std::lock_guard lock(mutex_);
  if (!checked_.contains(entry)) {
    zip_->check_data(*entry);
    checked_.insert(entry);
  }
}

// A tensor that is all of a storage, as most are: one pass checks and reads it.
void TorchCheckpoint::read_parts(const StoredTensor& tensor, std::span<std::byte> target,
                                 const FileSource::Consumer& consume) const {
  const ZipEntry* entry = nullptr;
  if (zip_ != nullptr && tensor.bytes > 0) {
    entry = std::prev(entries_.upper_bound(tensor.offset))->second;
    const std::lock_guard lock(mutex_);
    if (tensor.offset != entry->offset || tensor.bytes != entry->bytes || checked_.contains(entry)) {
      entry = nullptr;
    }
  }
  if (entry == nullptr) {
    WeightsFile::read_parts(tensor, target, consume);
    return;
  }
  zip_->read_parts(*entry, target, consume);
  const std::lock_guard lock(mutex_);
  checked_.insert(entry);
}

}  // namespace vesal::weights
