// PyTorch checkpoints of all three containers, down to the numbers.
#include "base/error.hpp"
#include "tests/fuzz/archives.hpp"
#include "tests/fuzz/checkpoints.hpp"
#include "weights_tools/weights_file.hpp"

namespace vesal::fuzz {
namespace {

// Small files may declare expanded tensors of up to a gigabyte together; reading some of it is enough.
constexpr uint64_t kMostRead = 8u << 20;

const std::string kSix = weights::raw<float>({0, 1, 2, 3, 4, 5});

}  // namespace

std::vector<std::string> seeds() {
  std::vector<std::string> files;
  for (const std::string& pickle : checkpoint_pickles()) {
    const bool script = pickle.find("__torch__") != std::string::npos;
    files.push_back(
        weights::zip_of(pickle, {{"0", kSix}, {"1", weights::kThree}},
                        {script ? std::pair("constants.pkl", "?") : std::pair("byteorder", "little")}));
  }
  // Before 1.6: every storage of the object, and no other, follows it.
  const std::string six = weights::le(6, 8) + kSix;
  const std::string three = weights::le(3, 8) + weights::kThree;
  files.push_back(weights::legacy_of(checkpoint_pickles()[0], {"0", "1"}, six + three));
  files.push_back(weights::legacy_of(checkpoint_pickles()[3], {"1", "0"}, three + six));
  weights::PickleBuilder view;
  view.op("}").text("w").global("torch._utils", "_rebuild_tensor").op("((").text("storage");
  view.global("torch", "FloatStorage").text("1").text("cpu").integer(3).op("(").text("view").integer(1);
  view.integer(2).op("ttQ").integer(1).integers({1}).integers({1}).op("tRs");
  files.push_back(weights::legacy_of(view.stop(), {"1"}, three));
  return files;
}

void read(const std::filesystem::path& path) {
  const std::unique_ptr<weights::WeightsFile> file = weights::open_weights(path);
  uint64_t total = 0;
  for (const weights::StoredTensor& tensor : file->tensors()) {
    if (file->find(tensor.name) != &tensor) {
      throw std::logic_error("a tensor that is not found under its name");
    }
    total += tensor.bytes;
    if (tensor.bytes <= kMostRead && total <= kMostRead) {
      file->read_bytes(tensor);
    }
  }
}

void mutate(std::string& bytes, RandomStream& random, const Change& change) {
  mutate_archive(bytes, random, change, false);
}

}  // namespace vesal::fuzz
