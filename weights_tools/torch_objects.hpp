// What the objects in a PyTorch pickle mean: which of them are tensors, where their elements lie, and which
// dictionaries of tensors there are. Nothing here looks at a file's bytes; a Pickle is all it reads. Errors
// are FormatErrors of one line that begin with the file's name.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tensor.hpp"
#include "weights_tools/pickle.hpp"

namespace vesal::weights {

constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxTensorNameBytes = 4096;
// Elements looked at, and bytes of names put together, by one TorchObjects: a few opcodes can make an object
// that is reached by 2^256 paths.
constexpr uint64_t kMaxObjectWork = 128u << 20;
constexpr size_t kMaxDictionaries = 1000;

// torch's persistent id of a storage: ('storage', type, key, location, elements, view).
struct TorchStorage {
  std::string_view key;
  std::string_view dtype;    // as in StoredTensor
  uint64_t elements = 0;     // of the storage under that key
  uint64_t view_offset = 0;  // the part of it that is meant, in elements: all of it but in very old files
  uint64_t view_elements = 0;
};

// What rebuilds a tensor. `offset` and `strides` count elements of `dtype`.
struct TorchTensor {
  PickleValue storage;
  std::string_view dtype;  // "": the storage's
  int64_t offset = 0;
  Shape shape;
  Shape strides;
};

// A value and the name under which it is found.
struct TorchNamed {
  std::string name;
  PickleValue value;
};

// A dictionary that holds tensors, a module, or a single tensor.
struct TorchDictionary {
  std::string path;  // the keys that lead to it, joined by dots; "." is the root
  PickleValue value;
  size_t tensors = 0;
};

class TorchObjects {
 public:
  // `file` begins messages. Both must outlive this. `script`: the root is TorchScript's tree of modules.
  TorchObjects(const Pickle& pickle, const std::string& file, bool script)
      : pickle_(pickle), file_(file), script_(script) {}

  // Whether the value is rebuilt as a tensor, of whatever kind.
  bool is_tensor(PickleValue value) const;
  // `where` begins messages. Refuses tensors that are not plain (sparse, quantized, negated views, ...).
  TorchTensor tensor(PickleValue value, const std::string& where) const;

  // Whether a persistent value is a storage; otherwise it is a class of a module.
  bool is_storage(PickleValue persistent) const;
  TorchStorage storage(PickleValue persistent, const std::string& where) const;

  // All dictionaries with tensors under names of text, from the root downwards.
  std::vector<TorchDictionary> dictionaries() const;
  // The one of them that holds the weights: the one with the path `wanted`, or else the one to be expected.
  const TorchDictionary& choose(const std::vector<TorchDictionary>& found, std::string_view wanted) const;
  // The named values of a dictionary; those of a module and all modules in it.
  std::vector<TorchNamed> entries(const TorchDictionary& dictionary) const;

 private:
  struct Module;
  // The function, and its arguments, within parameters and types around it.
  std::pair<std::string, PickleValue> unwrap(PickleValue value, const std::string& where) const;
  bool is_module(PickleValue value) const;
  std::vector<TorchNamed> module_entries(PickleValue root) const;
  void add_own_entries(const Module& module, std::vector<TorchNamed>& entries,
                       std::vector<Module>& children) const;
  void spend(uint64_t elements) const;
  // The value of a dictionary under a name; None where there is none.
  PickleValue find(PickleValue dictionary, std::string_view name) const;
  // The text of a name within the weights, after its checks.
  std::string name_of_key(PickleValue key) const;
  int64_t integer(PickleValue value, const char* what, const std::string& where) const;
  Shape integers(PickleValue value, const char* what, const std::string& where) const;

  const Pickle& pickle_;
  const std::string& file_;
  bool script_;
  mutable uint64_t work_ = 0;
};

}  // namespace vesal::weights
