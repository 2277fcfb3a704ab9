// The stack machine, and the search for tensors in what it built.
#include "base/error.hpp"
#include "tests/fuzz/checkpoints.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "weights_tools/pickle.hpp"
#include "weights_tools/torch_objects.hpp"

namespace vesal::fuzz {

std::vector<std::string> seeds() { return checkpoint_pickles(); }

void read(const std::filesystem::path& path) {
  const weights::FileSource file(path);
  const weights::Pickle pickle = weights::unpickle(file, 0, file.size(), "data.pkl");
  const auto search = [&](bool script) {
    const weights::TorchObjects objects(pickle, file.name(), script);
    const std::vector<weights::TorchDictionary> found = objects.dictionaries();
    for (const weights::TorchNamed& named :
         objects.entries(objects.choose(found, found.empty() ? "" : found[0].path))) {
      if (objects.is_tensor(named.value)) {
        objects.storage(objects.tensor(named.value, file.name()).storage, file.name());
      }
    }
  };
  // Few pickles make sense both ways.
  try {
    search(true);
  } catch (const FormatError&) {
    search(false);
    return;
  }
  try {
    search(false);
  } catch (const FormatError&) {
  }
}

void mutate(std::string& bytes, RandomStream&, const Change& change) { change(bytes); }

}  // namespace vesal::fuzz
