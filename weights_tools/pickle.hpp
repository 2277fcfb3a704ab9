// Python pickles, read as data. A pickle is a program for a stack machine that builds objects by calling
// functions which it names; this reader runs the stack machine and calls nothing. A name stays a name
// (`global`), and a call becomes a node that says what would have been called with what (`object`); who reads
// the result gives the few calls that it knows a meaning. Names and opcodes: Python's pickletools.
//
// Understood are the binary opcodes of protocols 2 to 4: what PyTorch writes, and what Python 2 wrote for
// strings. All others (text opcodes of protocol 0, extension registries, out-of-band buffers) are refused.
// The machine is strict where Python is: a value is set on a dictionary, appended to a list, and called with
// a tuple, or the file is refused. collections.OrderedDict and defaultdict are dictionaries.
//
// Memory grows with the bytes of the pickle and is bounded by the limits below. Values live in flat tables
// and refer to each other by number: nothing here recurses, neither to read nor to destroy, and a list that
// contains itself does no harm. Every error is a FormatError of one line: file, pickle, byte, what was found.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weights_tools/file_source.hpp"

namespace vesal::weights {

constexpr uint64_t kMaxPickleBytes = 256u << 20;
constexpr size_t kMaxPickleStack = 16u << 20;
constexpr size_t kMaxPickleMemo = 16u << 20;
// Tuples, lists, dictionaries, sets, globals, calls and persistent references together, and what they hold.
constexpr size_t kMaxPickleNodes = 8u << 20;
constexpr size_t kMaxPickleItems = 32u << 20;
// Containers within containers, and marks within marks.
constexpr unsigned kMaxPickleNesting = 256;

enum class PickleKind : uint8_t {
  none,
  boolean,
  integer,      // fits int64_t
  big_integer,  // does not
  real,
  text,
  bytes,
  tuple,
  list,
  dict,
  set,
  global,      // the name of a class or function
  object,      // a call that was not made
  persistent,  // a reference to something outside the pickle: torch's storages
};

// "a tuple", "an integer": for messages.
std::string_view name_of(PickleKind kind);

// A value of a Pickle, which holds what the value refers to.
struct PickleValue {
  PickleKind kind = PickleKind::none;
  uint64_t bits = 0;  // the number, the place of the text, or the index of the node

  bool is_node() const { return kind >= PickleKind::tuple; }
  bool is_string() const { return kind == PickleKind::text || kind == PickleKind::bytes; }
};

class Pickle {
 public:
  PickleValue root() const { return root_; }
  // All persistent references, in order of appearance, also those that the root does not reach.
  const std::vector<PickleValue>& persistent_values() const { return persistent_; }

  // Each of these asks for a value of the kind that it names.
  bool boolean(PickleValue value) const { return value.bits != 0; }
  int64_t integer(PickleValue value) const { return static_cast<int64_t>(value.bits); }
  double real(PickleValue value) const;
  // Of text and bytes: as in the file, so that text need not be UTF-8. Of a big integer: its little-endian
  // bytes.
  std::string_view text(PickleValue value) const;
  // Of a tuple, list or set: its elements. Of a dictionary: key, value, key, value, in order of insertion; a
  // key that was set twice is there twice. Of an object: what was set on it as on a dictionary.
  std::span<const PickleValue> items(PickleValue value) const;
  // "torch._utils._rebuild_tensor_v2".
  std::string global_name(PickleValue value) const;
  // What an object would have called (a global, an object or a persistent reference), its arguments (a
  // tuple), and the state that it was given afterwards (none: nothing).
  PickleValue callable(PickleValue value) const { return nodes_[value.bits].items[0]; }
  PickleValue arguments(PickleValue value) const { return nodes_[value.bits].items[1]; }
  PickleValue state(PickleValue value) const { return nodes_[value.bits].items[2]; }
  PickleValue persistent_id(PickleValue value) const { return nodes_[value.bits].items[0]; }

 private:
  friend class Unpickler;
  struct Node {
    std::vector<PickleValue> items;
    uint32_t depth = 1;  // containers within it, itself included
  };
  std::string text_;
  std::vector<Node> nodes_;
  std::vector<PickleValue> persistent_;
  PickleValue root_;
};

// Reads the pickle that starts at byte `begin` and ends before `end` at the latest; `what` names it in
// messages. Where `next` is given it receives the byte behind the pickle; otherwise the pickle must end at
// `end`.
Pickle unpickle(const FileSource& file, uint64_t begin, uint64_t end, std::string_view what,
                uint64_t* next = nullptr);

}  // namespace vesal::weights
