// torch._utils' functions as data, and the search for the weights: see torch_objects.hpp.
#include "weights_tools/torch_objects.hpp"

#include <algorithm>
#include <iterator>
#include <unordered_set>

#include "base/error.hpp"
#include "weights_tools/text.hpp"

namespace vesal::weights {
namespace {

struct NamedType {
  std::string_view torch;
  std::string_view stored;
};
constexpr NamedType kStorageTypes[] = {{"FloatStorage", "F32"},
                                       {"DoubleStorage", "F64"},
                                       {"HalfStorage", "F16"},
                                       {"BFloat16Storage", "BF16"},
                                       {"LongStorage", "I64"},
                                       {"IntStorage", "I32"},
                                       {"ShortStorage", "I16"},
                                       {"CharStorage", "I8"},
                                       {"ByteStorage", "U8"},
                                       {"BoolStorage", "BOOL"},
                                       {"UntypedStorage", "U8"},
                                       {"_UntypedStorage", "U8"},
                                       {"ComplexFloatStorage", "C64"},
                                       {"ComplexDoubleStorage", "C128"},
                                       {"Float8_e4m3fnStorage", "F8_E4M3"},
                                       {"Float8_e5m2Storage", "F8_E5M2"}};
constexpr NamedType kTypes[] = {{"float32", "F32"},
                                {"float64", "F64"},
                                {"float16", "F16"},
                                {"bfloat16", "BF16"},
                                {"int64", "I64"},
                                {"int32", "I32"},
                                {"int16", "I16"},
                                {"int8", "I8"},
                                {"uint8", "U8"},
                                {"uint16", "U16"},
                                {"uint32", "U32"},
                                {"uint64", "U64"},
                                {"bool", "BOOL"},
                                {"complex64", "C64"},
                                {"complex128", "C128"},
                                {"float8_e5m2", "F8_E5M2"},
                                {"float8_e4m3fn", "F8_E4M3"}};

// Names under which training programs keep weights, the likelier first; averages of weights come last.
constexpr std::string_view kUsualNames[] = {"state_dict",
                                            "model_state_dict",
                                            "network_weights",
                                            "model_state",
                                            "model",
                                            "network",
                                            "net",
                                            "module",
                                            "weights",
                                            "params",
                                            "parameters",
                                            "ema_state_dict",
                                            "state_dict_ema",
                                            "model_ema_state_dict",
                                            "model_ema",
                                            "params_ema",
                                            "ema_model",
                                            "ema"};
// Beginnings of names under which they keep something else.
constexpr std::string_view kOtherNames[] = {"optim", "sched", "lr_sched", "scaler", "grad_scaler"};

std::string_view find_type(std::span<const NamedType> types, std::string_view torch) {
  const auto found =
      std::find_if(types.begin(), types.end(), [&](const NamedType& t) { return t.torch == torch; });
  return found == types.end() ? std::string_view() : found->stored;
}

constexpr std::string_view kRebuildTensor = "torch._utils._rebuild_tensor";
constexpr std::string_view kRebuildTensorV2 = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view kRebuildTensorV3 = "torch._utils._rebuild_tensor_v3";

// Functions and classes whose first argument is the tensor.
bool is_wrapper(std::string_view function) {
  return function == "torch._utils._rebuild_parameter" ||
         function == "torch._utils._rebuild_parameter_with_state" ||
         function == "torch.nn.parameter.Parameter" || function == "torch.nn.parameter.Buffer";
}

// (function, type, arguments, state): tensors with attributes or of a class of their own.
bool is_typed(std::string_view function) {
  return function == "torch._tensor._rebuild_from_type_v2" ||
         function == "torch._tensor._rebuild_from_type" || function == "torch.tensor._rebuild_from_type";
}

bool rebuilds_tensor(std::string_view function) {
  return function.starts_with("torch._utils._rebuild_") || is_wrapper(function) || is_typed(function);
}

std::vector<std::string_view> split(std::string_view path) {
  std::vector<std::string_view> parts;
  for (size_t start = 0; start <= path.size();) {
    const size_t end = std::min(path.find('.', start), path.size());
    parts.push_back(path.substr(start, end - start));
    start = end + 1;
  }
  return parts;
}

// How usual every key of a path is; empty when one of them is not.
std::vector<std::ptrdiff_t> rank(std::string_view path) {
  std::vector<std::ptrdiff_t> ranks;
  for (const std::string_view part : split(path)) {
    const auto found = std::find(std::begin(kUsualNames), std::end(kUsualNames), part);
    if (found == std::end(kUsualNames)) {
      return {};
    }
    ranks.push_back(found - std::begin(kUsualNames));
  }
  return ranks;
}

bool is_something_else(std::string_view path) {
  const std::vector<std::string_view> parts = split(path);
  return std::any_of(parts.begin(), parts.end(), [](std::string_view part) {
    return std::any_of(std::begin(kOtherNames), std::end(kOtherNames),
                       [&](std::string_view name) { return part.starts_with(name); });
  });
}

}  // namespace

// A module on the way through the tree of modules.
struct TorchObjects::Module {
  PickleValue value;
  std::string prefix;  // of the names of what it holds
  unsigned depth = 0;
};

int64_t TorchObjects::integer(PickleValue value, const char* what, const std::string& where) const {
  check<FormatError>(value.kind == PickleKind::integer, where, ": ", what, ": found ",
                     vesal::weights::name_of(value.kind), ", expected an integer");
  return pickle_.integer(value);
}

Shape TorchObjects::integers(PickleValue value, const char* what, const std::string& where) const {
  // torch.Size((1, 2)) is the tuple within.
  if (value.kind == PickleKind::object && pickle_.callable(value).kind == PickleKind::global &&
      pickle_.global_name(pickle_.callable(value)) == "torch.Size") {
    const std::span<const PickleValue> arguments = pickle_.items(pickle_.arguments(value));
    value = arguments.size() == 1 ? arguments[0] : value;
  }
  check<FormatError>(value.kind == PickleKind::tuple, where, ": ", what, ": found ", name_of(value.kind),
                     ", expected a tuple of integers");
  Shape result;
  for (const PickleValue& item : pickle_.items(value)) {
    result.push_back(integer(item, what, where));
  }
  return result;
}

bool TorchObjects::is_tensor(PickleValue value) const {
  return value.kind == PickleKind::object && pickle_.callable(value).kind == PickleKind::global &&
         rebuilds_tensor(pickle_.global_name(pickle_.callable(value)));
}

std::pair<std::string, PickleValue> TorchObjects::unwrap(PickleValue value, const std::string& where) const {
  constexpr int kMostWrappers = 8;
  for (int i = 0; i < kMostWrappers; ++i) {
    check<FormatError>(is_tensor(value), where, ": found ", name_of(value.kind),
                       " within a parameter, expected a tensor");
    check<FormatError>(pickle_.state(value).kind == PickleKind::none, where,
                       ": its state is set after it was rebuilt, which is not supported");
    std::string function = pickle_.global_name(pickle_.callable(value));
    PickleValue arguments = pickle_.arguments(value);
    if (is_typed(function)) {
      const std::span<const PickleValue> given = pickle_.items(arguments);
      check<FormatError>(
          given.size() >= 3 && given[0].kind == PickleKind::global && given[2].kind == PickleKind::tuple,
          where, ": ", function, ": expected a function, a type and a tuple of arguments");
      function = pickle_.global_name(given[0]);
      arguments = given[2];
    }
    if (!is_wrapper(function)) {
      return {std::move(function), arguments};
    }
    const std::span<const PickleValue> given = pickle_.items(arguments);
    check<FormatError>(!given.empty(), where, ": ", function, ": expected a tensor, found no argument");
    value = given[0];
  }
  throw FormatError(concat(where, ": more than ", kMostWrappers, " parameters within each other"));
}

TorchTensor TorchObjects::tensor(PickleValue value, const std::string& where) const {
  const auto [function, arguments] = unwrap(value, where);
  const bool v3 = function == kRebuildTensorV3;
  check<FormatError>(function == kRebuildTensor || function == kRebuildTensorV2 || v3, where,
                     ": is rebuilt by ", one_line(function),
                     ", which is not supported; expected a plain dense tensor");
  const std::span<const PickleValue> given = pickle_.items(arguments);
  const size_t least = function == kRebuildTensor ? 4 : v3 ? 7 : 6;
  check<FormatError>(given.size() >= least && given.size() <= least + (least > 4 ? 1 : 0), where, ": ",
                     function, ": found ", given.size(), " arguments, expected ", least);
  TorchTensor result;
  result.storage = given[0];
  check<FormatError>(given[0].kind == PickleKind::persistent, where, ": storage: found ",
                     name_of(given[0].kind), ", expected a storage");
  result.offset = integer(given[1], "storage offset", where);
  result.shape = integers(given[2], "size", where);
  result.strides = integers(given[3], "stride", where);
  if (v3) {
    const std::string type = given[6].kind == PickleKind::global ? pickle_.global_name(given[6])
                                                                 : std::string(name_of(given[6].kind));
    result.dtype =
        type.starts_with("torch.") ? find_type(kTypes, std::string_view(type).substr(6)) : std::string_view();
    check<FormatError>(!result.dtype.empty(), where, ": type ", one_line(type), " is not supported");
  }
  // Flags that change what the stored numbers mean: conjugated, negated.
  if (given.size() > least) {
    const PickleValue flags = given[least];
    check<FormatError>(
        flags.kind == PickleKind::none || (flags.kind == PickleKind::dict && pickle_.items(flags).empty()),
        where, ": metadata of the tensor: found ", name_of(flags.kind), ", expected nothing");
  }
  return result;
}

bool TorchObjects::is_storage(PickleValue persistent) const {
  const PickleValue id = pickle_.persistent_id(persistent);
  if (id.kind != PickleKind::tuple || pickle_.items(id).empty()) {
    return false;
  }
  const PickleValue tag = pickle_.items(id)[0];
  return tag.is_string() && pickle_.text(tag) == "storage";
}

TorchStorage TorchObjects::storage(PickleValue persistent, const std::string& where) const {
  check<FormatError>(is_storage(persistent), where,
                     ": persistent id: expected a tuple that starts with 'storage'");
  const std::span<const PickleValue> id = pickle_.items(pickle_.persistent_id(persistent));
  check<FormatError>(id.size() == 5 || id.size() == 6, where, ": persistent id: found ", id.size(),
                     " fields, expected 5 or 6");
  check<FormatError>(id[1].kind == PickleKind::global, where, ": storage type: found ", name_of(id[1].kind),
                     ", expected a class");
  const std::string type = pickle_.global_name(id[1]);
  const size_t dot = type.rfind('.');
  const std::string_view module = std::string_view(type).substr(0, dot);
  TorchStorage result;
  if (module == "torch" || module == "torch.cuda" || module == "torch.storage") {
    result.dtype = find_type(kStorageTypes, std::string_view(type).substr(dot + 1));
  }
  check<FormatError>(!result.dtype.empty(), where, ": storage type ", one_line(type), " is not supported");
  check<FormatError>(id[2].is_string(), where, ": storage key: found ", name_of(id[2].kind),
                     ", expected text");
  result.key = pickle_.text(id[2]);
  const auto size = [&](PickleValue value, const char* what) {
    const int64_t number = integer(value, what, where);
    check<FormatError>(number >= 0, where, ": ", what, ": found ", number, ", expected no negative number");
    return static_cast<uint64_t>(number);
  };
  result.elements = size(id[4], "storage elements");
  result.view_elements = result.elements;
  if (id.size() == 6 && id[5].kind != PickleKind::none) {
    check<FormatError>(id[5].kind == PickleKind::tuple && pickle_.items(id[5]).size() == 3, where,
                       ": view of a storage: expected None or a tuple of 3");
    result.view_offset = size(pickle_.items(id[5])[1], "view offset");
    result.view_elements = size(pickle_.items(id[5])[2], "view elements");
    check<FormatError>(result.view_elements <= result.elements &&
                           result.view_offset <= result.elements - result.view_elements,
                       where, ": view of a storage: ", result.view_elements, " elements at ",
                       result.view_offset, ", the storage holds ", result.elements);
  }
  return result;
}

void TorchObjects::spend(uint64_t elements) const {
  work_ += elements + 1;
  check<FormatError>(work_ <= kMaxObjectWork, file_, ": its objects refer to each other more than ",
                     kMaxObjectWork, " times");
}

PickleValue TorchObjects::find(PickleValue dictionary, std::string_view name) const {
  const std::span<const PickleValue> items = pickle_.items(dictionary);
  spend(items.size());
  PickleValue result;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    if (items[i].is_string() && pickle_.text(items[i]) == name) {
      result = items[i + 1];
    }
  }
  return result;
}

bool TorchObjects::is_module(PickleValue value) const {
  if (value.kind != PickleKind::object || is_tensor(value) || pickle_.state(value).kind != PickleKind::dict) {
    return false;
  }
  const PickleValue state = pickle_.state(value);
  return script_ || (find(state, "_parameters").kind == PickleKind::dict &&
                     find(state, "_modules").kind == PickleKind::dict);
}

std::string TorchObjects::name_of_key(PickleValue key) const {
  check<FormatError>(key.is_string(), file_, ": a tensor's name: found ", name_of(key.kind),
                     ", expected text");
  const std::string_view text = pickle_.text(key);
  check<FormatError>(is_utf8(text) && !text.empty() && text.size() <= kMaxTensorNameBytes, file_,
                     ": a tensor's name: found ", one_line(text), ", expected UTF-8 of 1 to ",
                     kMaxTensorNameBytes, " bytes");
  return std::string(text);
}

void TorchObjects::add_own_entries(const Module& module, std::vector<TorchNamed>& entries,
                                   std::vector<Module>& children) const {
  const auto add = [&](PickleValue dictionary, const auto& wanted) {
    const std::span<const PickleValue> items = pickle_.items(dictionary);
    spend(items.size());
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      const PickleValue value = items[i + 1];
      const bool tensor = is_tensor(value);
      if (tensor ? wanted(items[i]) : is_module(value)) {
        std::string name = module.prefix + name_of_key(items[i]);
        check<FormatError>(name.size() <= kMaxTensorNameBytes, file_, ": a tensor's name passes ",
                           kMaxTensorNameBytes, " bytes: ", one_line(name));
        spend(name.size());
        check<FormatError>(entries.size() + children.size() < kMaxTensors, file_,
                           ": its modules hold more than ", kMaxTensors, " names");
        if (tensor) {
          entries.push_back({std::move(name), value});
        } else {
          children.push_back({value, name + ".", module.depth + 1});
        }
      }
    }
  };
  const auto always = [](PickleValue) { return true; };
  const PickleValue state = pickle_.state(module.value);
  if (script_) {
    add(state, always);
    return;
  }
  add(find(state, "_parameters"), always);
  if (const PickleValue buffers = find(state, "_buffers"); buffers.kind == PickleKind::dict) {
    std::unordered_set<std::string_view> unsaved;
    if (const PickleValue names = find(state, "_non_persistent_buffers_set"); names.kind == PickleKind::set) {
      spend(pickle_.items(names).size());
      for (const PickleValue& name : pickle_.items(names)) {
        unsaved.insert(name.is_string() ? pickle_.text(name) : std::string_view());
      }
    }
    add(buffers, [&](PickleValue key) { return !key.is_string() || !unsaved.contains(pickle_.text(key)); });
  }
  add(find(state, "_modules"), always);
}

std::vector<TorchNamed> TorchObjects::module_entries(PickleValue root) const {
  std::vector<TorchNamed> entries;
  std::vector<Module> waiting{{root, "", 0}};
  while (!waiting.empty()) {
    const Module module = std::move(waiting.back());
    waiting.pop_back();
    check<FormatError>(module.depth <= kMaxPickleNesting, file_, ": modules nested more than ",
                       kMaxPickleNesting, " deep; does one contain itself?");
    std::vector<Module> children;
    add_own_entries(module, entries, children);
    check<FormatError>(waiting.size() + children.size() <= kMaxTensors, file_, ": holds more than ",
                       kMaxTensors, " modules");
    // The first child is the next to be looked at.
    std::move(children.rbegin(), children.rend(), std::back_inserter(waiting));
  }
  return entries;
}

std::vector<TorchDictionary> TorchObjects::dictionaries() const {
  // Where a dictionary was found: in which of the ones before, under which key.
  struct Place {
    PickleValue value;
    size_t parent = 0;
    PickleValue key;
  };
  std::vector<TorchDictionary> found;
  std::vector<Place> places{{pickle_.root(), 0, {}}};
  std::unordered_set<uint64_t> seen;
  const auto path_of = [&](size_t place) {
    std::vector<std::string> keys;
    size_t bytes = 0;
    for (; place != 0; place = places[place].parent) {
      keys.push_back(name_of_key(places[place].key));
      bytes += keys.back().size() + 1;
      check<FormatError>(bytes <= kMaxTensorNameBytes, file_, ": the path to a dictionary of tensors passes ",
                         kMaxTensorNameBytes, " bytes");
    }
    std::string path;
    for (size_t i = keys.size(); i-- > 0;) {
      path += (path.empty() ? "" : ".") + keys[i];
    }
    return path.empty() ? "." : path;
  };
  for (size_t next = 0; next < places.size(); ++next) {
    const PickleValue value = places[next].value;
    size_t tensors = 0;
    if (next == 0 && is_tensor(value)) {
      tensors = 1;
    } else if (is_module(value)) {
      tensors = module_entries(value).size();
    } else if (value.kind == PickleKind::dict || value.kind == PickleKind::object) {
      const std::span<const PickleValue> items = pickle_.items(value);
      spend(items.size());
      for (size_t i = 0; i + 1 < items.size(); i += 2) {
        const PickleValue item = items[i + 1];
        if (!items[i].is_string()) {
          continue;
        }
        if (is_tensor(item)) {
          ++tensors;
        } else if ((item.kind == PickleKind::dict || item.kind == PickleKind::object) &&
                   seen.insert(item.bits).second) {
          places.push_back({item, next, items[i]});
        }
      }
    }
    if (tensors > 0) {
      check<FormatError>(found.size() < kMaxDictionaries, file_, ": more than ", kMaxDictionaries,
                         " dictionaries of tensors");
      found.push_back({path_of(next), value, tensors});
    }
  }
  return found;
}

const TorchDictionary& TorchObjects::choose(const std::vector<TorchDictionary>& found,
                                            std::string_view wanted) const {
  check<FormatError>(!found.empty(), file_, ": found ", name_of(pickle_.root().kind),
                     " that holds no named tensors, expected a dictionary of tensors");
  std::string list;
  for (size_t i = 0; i < found.size() && i < 8; ++i) {
    list += concat(i == 0 ? "" : ", ", one_line(found[i].path), " (", found[i].tensors, ")");
  }
  list += found.size() > 8 ? ", ..." : "";
  if (!wanted.empty()) {
    const auto named =
        std::find_if(found.begin(), found.end(), [&](const TorchDictionary& d) { return d.path == wanted; });
    check<FormatError>(named != found.end(), file_, ": holds no dictionary of tensors ", one_line(wanted),
                       ", expected one of (number of tensors): ", list);
    return *named;
  }
  std::vector<const TorchDictionary*> plausible;
  for (const TorchDictionary& dictionary : found) {
    if (found.size() == 1 || !is_something_else(dictionary.path)) {
      plausible.push_back(&dictionary);
    }
  }
  if (plausible.size() == 1) {
    return *plausible.front();
  }
  const TorchDictionary* root = nullptr;
  const TorchDictionary* best = nullptr;  // of those with usual names
  std::vector<std::ptrdiff_t> best_rank;
  size_t most = 0;  // tensors of one with an unusual name
  for (const TorchDictionary* dictionary : plausible) {
    const std::vector<std::ptrdiff_t> its_rank = rank(dictionary->path);
    if (dictionary->path == ".") {
      root = dictionary;
    } else if (its_rank.empty()) {
      most = std::max(most, dictionary->tensors);
    } else if (best == nullptr || its_rank < best_rank) {
      best = dictionary;
      best_rank = its_rank;
    }
  }
  const TorchDictionary* chosen =
      root != nullptr && (best == nullptr || root->tensors >= best->tensors) ? root : best;
  check<FormatError>(
      chosen != nullptr && chosen->tensors >= most, file_,
      ": several dictionaries hold tensors, expected one that is named as the weights (number of "
      "tensors): ",
      list);
  return *chosen;
}

std::vector<TorchNamed> TorchObjects::entries(const TorchDictionary& dictionary) const {
  std::vector<TorchNamed> result;
  if (is_tensor(dictionary.value)) {
    result.push_back({"tensor", dictionary.value});
  } else if (is_module(dictionary.value)) {
    result = module_entries(dictionary.value);
  } else {
    const std::span<const PickleValue> items = pickle_.items(dictionary.value);
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      if (items[i].is_string() || is_tensor(items[i + 1])) {
        result.push_back({name_of_key(items[i]), items[i + 1]});
        spend(result.back().name.size());
      }
    }
  }
  check<FormatError>(result.size() <= kMaxTensors, file_, ": found ", result.size(),
                     " names, expected at most ", kMaxTensors);
  std::unordered_set<std::string_view> names;
  for (const TorchNamed& named : result) {
    check<FormatError>(names.insert(named.name).second, file_, ": the name ", one_line(named.name),
                       " occurs twice");
  }
  return result;
}

}  // namespace vesal::weights
