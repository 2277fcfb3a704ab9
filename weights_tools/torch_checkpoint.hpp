// PyTorch checkpoints (.pt, .pth, .ckpt, ...), read without Python: nothing in a file is ever executed.
//
// Formats, told apart by content:
//   zip          torch.save since 1.6: a ZIP archive (zip.hpp) of data.pkl, one entry data/KEY a storage,
//   byteorder TorchScript  torch.jit.save: the same archive with constants.pkl and code/; tensors are named
//   by the path of
//                attributes that leads to them in data.pkl, the code is never read
//   legacy       torch.save before 1.6: five pickles (magic number, version, system, object, storage keys),
//   then for
//                every key the number of elements and their bytes
//   tar          torch.save before 0.2: refused with advice
// Storages are little-endian; a file that says otherwise is refused.
//
// The object is walked as data (pickle.hpp). What torch rebuilds tensors with is known: _rebuild_tensor, _v2,
// _v3, _rebuild_parameter, _rebuild_from_type_v2 and their kin. Everything else (optimizers,
// argparse.Namespace, numpy scalars, calls of os.system) is opaque and does no harm, unless it sits where a
// tensor must be: quantized, sparse and other special tensors within the weights are refused.
//
// The weights are one dictionary of named tensors. It is the object itself or lies in it under a name such as
// "state_dict", "model", "network_weights" or "ema"; a pickled module (_parameters, _buffers, _modules)
// counts as the dictionary that its state_dict() would be. Where several dictionaries hold tensors, the usual
// name decides, weights before their averages; where none has a usual name, the file is refused with a list
// of what it holds and the caller names one. "module." and "_orig_mod." (DataParallel, torch.compile) in
// front of every name are stripped; n_averaged, which AveragedModel counts beside them, may stand without.
//
// Every tensor is checked before it is listed: a storage that is there and has the size that the pickle says,
// a view that lies in it (view_problem in strided_read.hpp). Storages are compared with the archive's CRC-32
// once, before the first tensor of theirs is read. Errors are one line: IoError (cannot be read) or
// FormatError.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "weights_tools/weights_file.hpp"
#include "weights_tools/zip.hpp"

namespace vesal::weights {

class TorchCheckpoint : public WeightsFile {
 public:
  // All tensors together, contiguous in memory: this, or kMaxExpansion times the file where that is more.
  static constexpr uint64_t kMaxTotalBytes = uint64_t{1} << 30;
  static constexpr uint64_t kMaxExpansion = 64;

  // `dictionary` names the dictionary that holds the weights by the keys that lead to it, joined by dots
  // ("ema.model";
  // "." is the object itself); empty: found as above.
  explicit TorchCheckpoint(std::filesystem::path path, std::string_view dictionary = {});

  // Whether a file that starts with these bytes (512, where there are as many) is, or was once, a PyTorch
  // checkpoint.
  static bool recognises(std::string_view start);

  std::string_view format() const override;

 private:
  enum class Layout { zip, script, legacy };

  void check_data(const StoredTensor& tensor) const override;
  void read_parts(const StoredTensor& tensor, std::span<std::byte> target,
                  const FileSource::Consumer& consume) const override;

  Layout layout_ = Layout::zip;
  std::unique_ptr<ZipArchive> zip_;
  std::map<uint64_t, const ZipEntry*> entries_;  // storages in a zip, by offset
  mutable std::mutex mutex_;
  mutable std::set<const ZipEntry*> checked_;
};

}  // namespace vesal::weights
