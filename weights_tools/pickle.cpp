// The stack machine: see pickle.hpp.
#include "weights_tools/pickle.hpp"

#include <algorithm>
#include <bit>
#include <unordered_map>

#include "base/error.hpp"
#include "weights_tools/text.hpp"

namespace vesal::weights {
namespace {

enum Opcode : uint8_t {
  kMark = '(',
  kEmptyTuple = ')',
  kStop = '.',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kNewObjEx = 0x92,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

constexpr size_t kMaxGlobalName = 1024;
constexpr size_t kObjectFields = 3;  // callable, arguments, state; what was set on the object follows

// Bytes [begin, end) of a file, one after the other.
class ByteReader {
 public:
  ByteReader(const FileSource& file, uint64_t begin, uint64_t end)
      : file_(file), next_(begin), end_(end), buffer_(std::min<uint64_t>(64u << 10, end - begin)) {}

  uint64_t position() const { return next_ - (filled_ - used_); }
  uint64_t remaining() const { return end_ - position(); }

  // The caller asks for no more than remaining().
  void read(std::byte* target, size_t count) {
    while (count > 0) {
      if (used_ == filled_) {
        filled_ = std::min<uint64_t>(buffer_.size(), end_ - next_);
        file_.read(next_, std::span(buffer_).first(filled_));
        next_ += filled_;
        used_ = 0;
      }
      const size_t part = std::min(count, filled_ - used_);
      std::copy_n(buffer_.begin() + static_cast<std::ptrdiff_t>(used_), part, target);
      target += part;
      used_ += part;
      count -= part;
    }
  }

 private:
  const FileSource& file_;
  uint64_t next_;  // the first byte of the file that is not in the buffer yet
  uint64_t end_;
  std::vector<std::byte> buffer_;
  size_t used_ = 0;
  size_t filled_ = 0;
};

}  // namespace

class Unpickler {
 public:
  Unpickler(const FileSource& file, uint64_t begin, uint64_t end, std::string_view what)
      : what_(concat(file.name(), ": ", what)),
        begin_(begin),
        cut_(end - begin > kMaxPickleBytes),
        reader_(file, begin, cut_ ? begin + kMaxPickleBytes : end) {}

  Pickle run() {
    while (true) {
      opcode_at_ = reader_.position();
      const uint8_t opcode = number<1>();
      if (opcode == kStop) {
        if (!marks_.empty() || stack_.size() != 1) {
          refuse("STOP with ", stack_.size(), " values and ", marks_.size(),
                 " marks on the stack, expected one value");
        }
        pickle_.root_ = stack_.back();
        return std::move(pickle_);
      }
      step(opcode);
    }
  }

  uint64_t position() const { return reader_.position(); }

 private:
  template <class... Args>
  [[noreturn]] void refuse(const Args&... args) const {
    throw FormatError(concat(what_, ": byte ", opcode_at_ - begin_, ": ", args...));
  }

  void need(uint64_t count) const {
    if (reader_.remaining() < count) {
      if (cut_) {
        refuse("the pickle passes ", kMaxPickleBytes, " bytes, expected at most that");
      }
      refuse("asks for ", count, " bytes, but ", reader_.remaining(), " are left; truncated?");
    }
  }

  template <size_t N>
  uint64_t number() {
    need(N);
    std::byte bytes[N];
    reader_.read(bytes, N);
    return little_endian<N>(bytes);
  }

  PickleValue string(PickleKind kind, uint64_t length) {
    need(length);
    const size_t start = pickle_.text_.size();
    pickle_.text_.resize(start + length);
    reader_.read(reinterpret_cast<std::byte*>(pickle_.text_.data() + start), length);
    return {kind, static_cast<uint64_t>(start) << 32 | length};
  }

  PickleValue integer(uint64_t length) {
    if (length > 8) {
      return string(PickleKind::big_integer, length);
    }
    need(length);
    std::byte bytes[8] = {};
    reader_.read(bytes, length);
    uint64_t value = little_endian<8>(bytes);
    if (length > 0 && length < 8 && (value >> (8 * length - 1) & 1) != 0) {
      value |= ~uint64_t{0} << (8 * length);
    }
    return {PickleKind::integer, value};
  }

  // A line of GLOBAL.
  PickleValue line() {
    const size_t start = pickle_.text_.size();
    for (char c; (c = static_cast<char>(number<1>())) != '\n';) {
      if (pickle_.text_.size() - start == kMaxGlobalName) {
        refuse("a name of more than ", kMaxGlobalName, " characters");
      }
      pickle_.text_ += c;
    }
    return {PickleKind::text, static_cast<uint64_t>(start) << 32 | (pickle_.text_.size() - start)};
  }

  PickleValue global(PickleValue module, PickleValue name) {
    for (const PickleValue part : {module, name}) {
      if (part.kind != PickleKind::text) {
        refuse("a global is named by ", name_of(part.kind), ", expected text");
      }
      const std::string_view text = pickle_.text(part);
      const bool good = !text.empty() && text.size() <= kMaxGlobalName &&
                        std::all_of(text.begin(), text.end(),
                                    [](char c) { return static_cast<unsigned char>(c) > 0x20 && c != 0x7f; });
      if (!good) {
        refuse("a global is named ", one_line(text),
               ", expected a name without spaces and control characters");
      }
    }
    return node(PickleKind::global, {module, name});
  }

  PickleValue node(PickleKind kind, std::span<const PickleValue> items) {
    if (pickle_.nodes_.size() == kMaxPickleNodes) {
      refuse("more than ", kMaxPickleNodes, " objects");
    }
    const PickleValue value{kind, pickle_.nodes_.size()};
    pickle_.nodes_.emplace_back();
    add(value, items);
    return value;
  }
  PickleValue node(PickleKind kind, std::initializer_list<PickleValue> items) {
    return node(kind, std::span(items.begin(), items.size()));
  }

  void add(PickleValue container, std::span<const PickleValue> items) {
    item_count_ += items.size();
    if (item_count_ > kMaxPickleItems) {
      refuse("more than ", kMaxPickleItems, " elements of objects");
    }
    Pickle::Node& holder = pickle_.nodes_[container.bits];
    for (const PickleValue& item : items) {
      deepen(holder, item);
    }
    holder.items.insert(holder.items.end(), items.begin(), items.end());
  }

  void deepen(Pickle::Node& holder, PickleValue item) {
    if (item.is_node()) {
      holder.depth = std::max(holder.depth, pickle_.nodes_[item.bits].depth + 1);
      if (holder.depth > kMaxPickleNesting) {
        refuse("objects nested more than ", kMaxPickleNesting, " deep");
      }
    }
  }

  void push(PickleValue value) {
    if (stack_.size() == kMaxPickleStack) {
      refuse("more than ", kMaxPickleStack, " values on the stack");
    }
    stack_.push_back(value);
  }

  // The value on top, which a mark does not hide.
  PickleValue& top() {
    if (stack_.size() == (marks_.empty() ? 0 : marks_.back())) {
      refuse("needs a value that is not on the stack");
    }
    return stack_.back();
  }
  PickleValue pop() {
    const PickleValue value = top();
    stack_.pop_back();
    return value;
  }
  // All values above the last mark, which goes.
  std::vector<PickleValue> pop_to_mark() {
    if (marks_.empty()) {
      refuse("needs a mark that is not on the stack");
    }
    const auto first = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<PickleValue> values(first, stack_.end());
    stack_.erase(first, stack_.end());
    marks_.pop_back();
    return values;
  }

  void tuple(size_t count) {
    PickleValue items[3];
    for (size_t i = count; i-- > 0;) {
      items[i] = pop();
    }
    push(node(PickleKind::tuple, std::span<const PickleValue>(items, count)));
  }

  void append(PickleValue target, std::span<const PickleValue> values) {
    if (target.kind == PickleKind::list) {
      add(target, values);
    } else if (!takes_items(target)) {
      refuse("appends to ", description(target), ", expected a list");
    }
  }

  void set_items(PickleValue target, std::span<const PickleValue> values) {
    if (values.size() % 2 != 0) {
      refuse("sets ", values.size(), " values, expected pairs of key and value");
    }
    if (target.kind != PickleKind::dict && !takes_items(target)) {
      refuse("sets items of ", description(target), ", expected a dictionary");
    }
    add(target, values);
  }

  // An instance of a class that nothing is known of may be a list or a dictionary. What torch rebuilds is
  // neither.
  bool takes_items(PickleValue value) const {
    if (value.kind != PickleKind::object) {
      return false;
    }
    const PickleValue callable = pickle_.callable(value);
    if (callable.kind != PickleKind::global) {
      return true;
    }
    const std::string_view module = pickle_.text(pickle_.nodes_[callable.bits].items[0]);
    return module != "torch" && module != "torch._utils" && module != "torch._tensor";
  }

  std::string description(PickleValue value) const {
    if (value.kind == PickleKind::object && pickle_.callable(value).kind == PickleKind::global) {
      return "the result of " + one_line(pickle_.global_name(pickle_.callable(value)));
    }
    return std::string(name_of(value.kind));
  }

  PickleValue call(PickleValue callable, PickleValue arguments) {
    // A persistent reference: old PyTorch keeps classes of modules, with their source, as such.
    if (callable.kind != PickleKind::global && callable.kind != PickleKind::object &&
        callable.kind != PickleKind::persistent) {
      refuse("calls ", name_of(callable.kind), ", expected a class or function");
    }
    if (arguments.kind != PickleKind::tuple) {
      refuse("calls with ", name_of(arguments.kind), ", expected a tuple of arguments");
    }
    if (callable.kind == PickleKind::global) {
      const std::string name = pickle_.global_name(callable);
      if (name == "collections.defaultdict") {
        return node(PickleKind::dict, {});
      }
      if (name == "collections.OrderedDict") {
        return ordered_dict(arguments);
      }
      // Protocols 2 and 3 have no opcode for sets.
      if (name == "__builtin__.set" || name == "builtins.set") {
        const std::span<const PickleValue> given = pickle_.items(arguments);
        if (given.size() != 1 || given[0].kind != PickleKind::list) {
          refuse("a set made from ", given.size(), " arguments, expected a list");
        }
        copy(pickle_.items(given[0]).size());
        const std::vector<PickleValue> elements(pickle_.items(given[0]).begin(),
                                                pickle_.items(given[0]).end());
        return node(PickleKind::set, elements);
      }
    }
    return node(PickleKind::object, {callable, arguments, PickleValue()});
  }

  // Elements of a list become those of another object. Who wrote the list once copies no more elements than
  // it has bytes; who copies it over and over makes much of a small file.
  void copy(size_t elements) {
    copied_ += elements;
    if (copied_ > reader_.position() - begin_) {
      refuse("sets and dictionaries are made from the same list over and over");
    }
  }

  // OrderedDict(), and Python 2's OrderedDict([[key, value], ...]).
  PickleValue ordered_dict(PickleValue arguments) {
    std::vector<PickleValue> values;
    const std::span<const PickleValue> given = pickle_.items(arguments);
    if (!given.empty()) {
      if (given.size() != 1 || given[0].kind != PickleKind::list) {
        refuse("an OrderedDict made from ", name_of(given[0].kind), ", expected nothing or a list of pairs");
      }
      copy(2 * pickle_.items(given[0]).size());
      for (const PickleValue& pair : pickle_.items(given[0])) {
        const bool is_sequence = pair.kind == PickleKind::list || pair.kind == PickleKind::tuple;
        if (!is_sequence || pickle_.items(pair).size() != 2) {
          refuse("an OrderedDict made from ", name_of(pair.kind), ", expected pairs of key and value");
        }
        const std::span<const PickleValue> both = pickle_.items(pair);
        values.insert(values.end(), both.begin(), both.end());
      }
    }
    return node(PickleKind::dict, values);
  }

  void build(PickleValue target, PickleValue state) {
    // A state_dict's own attributes: the versions of its modules.
    if (target.kind == PickleKind::dict) {
      return;
    }
    if (target.kind != PickleKind::object) {
      refuse("sets the state of ", name_of(target.kind), ", expected an object");
    }
    Pickle::Node& holder = pickle_.nodes_[target.bits];
    deepen(holder, state);
    holder.items[2] = state;
  }

  void get(uint64_t index) {
    const auto found = memo_.find(static_cast<uint32_t>(index));
    if (found == memo_.end()) {
      refuse("memo entry ", index, " was never written");
    }
    push(found->second);
  }

  void put(uint64_t index) {
    const PickleValue value = top();
    memo_[static_cast<uint32_t>(index)] = value;
    if (memo_.size() > kMaxPickleMemo) {
      refuse("more than ", kMaxPickleMemo, " memo entries");
    }
  }

  void step(uint8_t opcode) {
    switch (opcode) {
      case kProto:
        if (const uint64_t version = number<1>(); version < 2 || version > 5) {
          refuse("protocol ", version, ", expected 2 to 5");
        }
        break;
      case kFrame:
        need(number<8>());
        break;
      case kMark:
        if (marks_.size() == kMaxPickleNesting) {
          refuse("marks nested more than ", kMaxPickleNesting, " deep");
        }
        marks_.push_back(stack_.size());
        break;
      case kNone:
        push({});
        break;
      case kNewTrue:
        push({PickleKind::boolean, 1});
        break;
      case kNewFalse:
        push({PickleKind::boolean, 0});
        break;
      case kBinInt1:
        push({PickleKind::integer, number<1>()});
        break;
      case kBinInt2:
        push({PickleKind::integer, number<2>()});
        break;
      case kBinInt:
        push(integer(4));
        break;
      case kLong1:
        push(integer(number<1>()));
        break;
      case kLong4:
        push(integer(number<4>()));
        break;
      case kBinFloat:
        push({PickleKind::real, __builtin_bswap64(number<8>())});
        break;
      case kBinUnicode:
        push(string(PickleKind::text, number<4>()));
        break;
      case kShortBinUnicode:
        push(string(PickleKind::text, number<1>()));
        break;
      case kBinUnicode8:
        push(string(PickleKind::text, number<8>()));
        break;
      case kBinBytes:
      case kBinString:
        push(string(PickleKind::bytes, number<4>()));
        break;
      case kShortBinBytes:
      case kShortBinString:
        push(string(PickleKind::bytes, number<1>()));
        break;
      case kBinBytes8:
        push(string(PickleKind::bytes, number<8>()));
        break;
      case kEmptyTuple:
        push(node(PickleKind::tuple, {}));
        break;
      case kEmptyList:
        push(node(PickleKind::list, {}));
        break;
      case kEmptyDict:
        push(node(PickleKind::dict, {}));
        break;
      case kEmptySet:
        push(node(PickleKind::set, {}));
        break;
      case kTuple1:
      case kTuple2:
      case kTuple3:
        tuple(opcode - kTuple1 + 1u);
        break;
      case kTuple:
        push(node(PickleKind::tuple, pop_to_mark()));
        break;
      case kFrozenSet:
        push(node(PickleKind::set, pop_to_mark()));
        break;
      case kAppend: {
        const PickleValue value = pop();
        append(top(), {&value, 1});
        break;
      }
      case kAppends: {
        const std::vector<PickleValue> values = pop_to_mark();
        append(top(), values);
        break;
      }
      case kAddItems: {
        const std::vector<PickleValue> values = pop_to_mark();
        if (top().kind != PickleKind::set) {
          refuse("adds elements to ", name_of(top().kind), ", expected a set");
        }
        add(top(), values);
        break;
      }
      case kSetItem: {
        const PickleValue value = pop();
        const PickleValue pair[] = {pop(), value};
        set_items(top(), pair);
        break;
      }
      case kSetItems: {
        const std::vector<PickleValue> values = pop_to_mark();
        set_items(top(), values);
        break;
      }
      case kGlobal: {
        const PickleValue module = line();
        push(global(module, line()));
        break;
      }
      case kStackGlobal: {
        const PickleValue name = pop();
        push(global(pop(), name));
        break;
      }
      case kReduce:
      case kNewObj: {
        const PickleValue arguments = pop();
        push(call(pop(), arguments));
        break;
      }
      case kNewObjEx: {
        if (const PickleValue keywords = pop(); keywords.kind != PickleKind::dict) {
          refuse("calls with ", name_of(keywords.kind), ", expected a dictionary of keywords");
        }
        const PickleValue arguments = pop();
        push(call(pop(), arguments));
        break;
      }
      case kBuild: {
        const PickleValue state = pop();
        build(top(), state);
        break;
      }
      case kBinPersId: {
        const PickleValue reference = node(PickleKind::persistent, {pop()});
        pickle_.persistent_.push_back(reference);
        push(reference);
        break;
      }
      case kBinGet:
        get(number<1>());
        break;
      case kLongBinGet:
        get(number<4>());
        break;
      case kBinPut:
        put(number<1>());
        break;
      case kLongBinPut:
        put(number<4>());
        break;
      case kMemoize:
        put(memo_.size());
        break;
      default:
        refuse("opcode ", static_cast<int>(opcode),
               ", which PyTorch never writes; not a pickle of protocol 2 to 4?");
    }
  }

  std::string what_;
  uint64_t begin_;
  bool cut_;  // the limit ends the pickle, not the file
  ByteReader reader_;
  uint64_t opcode_at_ = 0;
  Pickle pickle_;
  std::vector<PickleValue> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, PickleValue> memo_;
  size_t item_count_ = 0;
  size_t copied_ = 0;
};

std::string_view name_of(PickleKind kind) {
  switch (kind) {
    case PickleKind::none:
      return "None";
    case PickleKind::boolean:
      return "a boolean";
    case PickleKind::integer:
      return "an integer";
    case PickleKind::big_integer:
      return "an integer past 64 bits";
    case PickleKind::real:
      return "a float";
    case PickleKind::text:
      return "text";
    case PickleKind::bytes:
      return "bytes";
    case PickleKind::tuple:
      return "a tuple";
    case PickleKind::list:
      return "a list";
    case PickleKind::dict:
      return "a dictionary";
    case PickleKind::set:
      return "a set";
    case PickleKind::global:
      return "a class or function";
    case PickleKind::object:
      return "an object";
    case PickleKind::persistent:
      return "a storage";
  }
  return "?";
}

double Pickle::real(PickleValue value) const { return std::bit_cast<double>(value.bits); }

std::string_view Pickle::text(PickleValue value) const {
  return std::string_view(text_).substr(value.bits >> 32, value.bits & 0xffffffff);
}

std::span<const PickleValue> Pickle::items(PickleValue value) const {
  const std::span<const PickleValue> all = nodes_[value.bits].items;
  return value.kind == PickleKind::object ? all.subspan(kObjectFields) : all;
}

std::string Pickle::global_name(PickleValue value) const {
  const std::vector<PickleValue>& parts = nodes_[value.bits].items;
  std::string name(text(parts[0]));
  name += '.';
  name += text(parts[1]);
  return name;
}

Pickle unpickle(const FileSource& file, uint64_t begin, uint64_t end, std::string_view what, uint64_t* next) {
  Unpickler machine(file, begin, end, what);
  Pickle pickle = machine.run();
  if (next != nullptr) {
    *next = machine.position();
  } else if (machine.position() != end) {
    throw FormatError(concat(file.name(), ": ", what, ": ", end - machine.position(),
                             " bytes follow the end of the pickle"));
  }
  return pickle;
}

}  // namespace vesal::weights
