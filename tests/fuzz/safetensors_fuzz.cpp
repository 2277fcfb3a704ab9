// safetensors: the header, the ranges, the numbers.
#include "tests/fuzz/fuzz.hpp"
#include "tests/weights_tools/torch_builders.hpp"
#include "weights_tools/safetensors.hpp"

namespace vesal::fuzz {
namespace {

std::string file_of(std::string header, size_t data) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return weights::le(header.size(), 8) + header + std::string(data, '\1');
}

}  // namespace

std::vector<std::string> seeds() {
  std::vector<std::string> files{file_of("{}", 0)};
  files.push_back(file_of(
      R"({"__metadata__":{"format":"pt","vesal.model":"meshnet"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})",
      24));
  files.push_back(file_of(
      R"({"b\u00e9\n":{"shape":[],"data_offsets":[8,9],"dtype":"BOOL"},"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},)"
      R"("e":{"dtype":"I64","shape":[0,7],"data_offsets":[9,9]},"h":{"dtype":"BF16","shape":[1,2],"data_offsets":[9,13]}})",
      13));
  return files;
}

void read(const std::filesystem::path& path) {
  const weights::SafetensorsFile file(path);
  for (const weights::StoredTensor& tensor : file.tensors()) {
    if (file.find(tensor.name) != &tensor) {
      throw std::logic_error("a tensor that is not found under its name");
    }
    file.read_bytes(tensor);
  }
}

// The length of the header is made to fit what became of it, three times in four.
void mutate(std::string& bytes, RandomStream& random, const Change& change) {
  if (bytes.size() <= 8 || below(random, 4) == 0) {
    change(bytes);
    return;
  }
  const auto length =
      static_cast<size_t>(weights::little_endian<8>(reinterpret_cast<const std::byte*>(bytes.data())));
  const size_t end = length <= bytes.size() - 8 ? 8 + length : bytes.size();
  std::string header = bytes.substr(8, end - 8);
  std::string data = bytes.substr(end);
  change(below(random, 8) == 0 ? data : header);
  bytes = weights::le(header.size(), 8) + header + data;
}

}  // namespace vesal::fuzz
