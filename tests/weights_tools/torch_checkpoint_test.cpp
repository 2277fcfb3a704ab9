// Checkpoints built byte by byte: what is found in them, and every malformation refused. What PyTorch itself
// writes is compared in tests/oracle/checkpoints.py.
#include "weights_tools/torch_checkpoint.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "base/dtype.hpp"
#include "tests/weights_tools/torch_fixture.hpp"
#include "weights_tools/parameters.hpp"
#include "weights_tools/pickle.hpp"
#include "weights_tools/safetensors.hpp"
#include "weights_tools/torch_objects.hpp"

namespace vesal::weights {
namespace {

PickleBuilder opcodes() { return PickleBuilder(); }

class TorchCheckpointTest : public FileTest {
 protected:
  std::vector<float> floats(const WeightsFile& file, std::string_view name) const {
    const StoredTensor* tensor = file.find(name);
    EXPECT_NE(tensor, nullptr) << name;
    return tensor == nullptr ? std::vector<float>() : file.read_floats(*tensor);
  }
  std::vector<std::string> names(const WeightsFile& file) const {
    std::vector<std::string> result;
    for (const StoredTensor& tensor : file.tensors()) {
      result.push_back(tensor.name);
    }
    return result;
  }
  // {"w": value} with these storages is refused.
  void expect_value_refused(const PickleBuilder& value, std::string_view part,
                            const Records& storages = {{"0", kThree}}) const {
    expect_refused(zip_of(one(value).stop(), storages), part);
  }
  static PickleBuilder view(int64_t offset, const std::vector<int64_t>& shape,
                            const std::vector<int64_t>& strides) {
    return opcodes().tensor("0", 3, offset, shape, strides);
  }
};

TEST_F(TorchCheckpointTest, ViewsOfSharedStorages) {
  const std::string pickle = PickleBuilder()
                                 .op("}(")
                                 .text("whole")
                                 .tensor("0", 6, 0, {2, 3}, {3, 1})
                                 .text("turned")
                                 .tensor("0", 6, 0, {3, 2}, {1, 3})
                                 .text("tail")
                                 .tensor("0", 6, 4, {2}, {1})
                                 .text("expanded")
                                 .tensor("0", 6, 5, {2, 2}, {0, 0})
                                 .text("number")
                                 .tensor("0", 6, 2, {}, {})
                                 .text("empty")
                                 .tensor("0", 6, 6, {0, 3}, {3, 1})
                                 .text("other")
                                 .vector("1", 1)
                                 .op("u")
                                 .stop();
  const TorchCheckpoint file(
      write(zip_of(pickle, {{"0", raw<float>({0, 1, 2, 3, 4, 5})}, {"1", raw<float>({9})}})));
  EXPECT_EQ(file.format(), "PyTorch (zip)");
  EXPECT_EQ(file.dictionary(), ".");
  EXPECT_EQ(file.prefix(), "");
  EXPECT_TRUE(file.skipped().empty());
  EXPECT_EQ(names(file),
            (std::vector<std::string>{"whole", "turned", "tail", "expanded", "number", "empty", "other"}));
  EXPECT_EQ(floats(file, "whole"), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(floats(file, "turned"), (std::vector<float>{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(floats(file, "tail"), (std::vector<float>{4, 5}));
  EXPECT_EQ(floats(file, "expanded"), (std::vector<float>{5, 5, 5, 5}));
  EXPECT_EQ(floats(file, "number"), (std::vector<float>{2}));
  EXPECT_EQ(floats(file, "empty"), (std::vector<float>{}));
  EXPECT_EQ(floats(file, "other"), (std::vector<float>{9}));
  const StoredTensor* turned = file.find("turned");
  EXPECT_EQ(turned->dtype, "F32");
  EXPECT_EQ(turned->shape, (Shape{3, 2}));
  EXPECT_EQ(turned->strides, (Shape{1, 3}));
  EXPECT_EQ(turned->count, 6);
  EXPECT_EQ(turned->bytes, 24u);
  EXPECT_EQ(file.find("tail")->offset, turned->offset + 16);
  EXPECT_EQ(file.find("Tail"), nullptr);
  std::vector<std::byte> small(23);
  EXPECT_THROW(file.read(*turned, small), ShapeError);
}

TEST_F(TorchCheckpointTest, EveryStorageTypeInEveryForm) {
  const std::map<std::string, std::pair<std::string, size_t>> types{
      {"FloatStorage", {"F32", 4}},        {"DoubleStorage", {"F64", 8}},
      {"HalfStorage", {"F16", 2}},         {"BFloat16Storage", {"BF16", 2}},
      {"LongStorage", {"I64", 8}},         {"IntStorage", {"I32", 4}},
      {"ShortStorage", {"I16", 2}},        {"CharStorage", {"I8", 1}},
      {"ByteStorage", {"U8", 1}},          {"BoolStorage", {"BOOL", 1}},
      {"ComplexFloatStorage", {"C64", 8}}, {"ComplexDoubleStorage", {"C128", 16}},
      {"UntypedStorage", {"U8", 1}}};
  for (const auto& [type, expected] : types) {
    const auto& [dtype, bytes] = expected;
    for (const char* function : {"_rebuild_tensor_v2", "_rebuild_tensor"}) {
      PickleBuilder value;
      value.global("torch._utils", function)
          .op("(")
          .storage(type, "0", 2)
          .integer(0)
          .integers({2})
          .integers({1});
      value.op(function[15] == '\0' ? "tR" : "\x89NtR");
      const std::string data(2 * bytes, '\1');
      const std::unique_ptr<WeightsFile> file = open_weights(write(zip_of(one(value).stop(), {{"0", data}})));
      const StoredTensor& tensor = file->tensors()[0];
      EXPECT_EQ(tensor.dtype, dtype);
      EXPECT_EQ(tensor.bytes, data.size());
      const std::vector<std::byte> read = file->read_bytes(tensor);
      EXPECT_EQ(std::memcmp(read.data(), data.data(), data.size()), 0) << type;
    }
  }
  // Version 3 names the type beside a storage of bytes.
  for (const auto& [type, expected] :
       std::map<std::string, std::pair<std::string, size_t>>{{"float32", {"F32", 4}},
                                                             {"uint16", {"U16", 2}},
                                                             {"uint32", {"U32", 4}},
                                                             {"uint64", {"U64", 8}},
                                                             {"float8_e5m2", {"F8_E5M2", 1}},
                                                             {"float8_e4m3fn", {"F8_E4M3", 1}},
                                                             {"bool", {"BOOL", 1}}}) {
    const auto& [dtype, bytes] = expected;
    PickleBuilder value;
    value.global("torch._utils", "_rebuild_tensor_v3").op("(");
    value.storage("UntypedStorage", "0", static_cast<int64_t>(3 * bytes))
        .integer(1)
        .integers({2})
        .integers({1});
    value.op("\x89N").global("torch", type).op("tR");
    const std::string data(3 * bytes, '\1');
    const std::unique_ptr<WeightsFile> file = open_weights(write(zip_of(one(value).stop(), {{"0", data}})));
    EXPECT_EQ(file->tensors()[0].dtype, dtype);
    EXPECT_EQ(file->read_bytes(file->tensors()[0]).size(), 2 * bytes);
  }
}

TEST_F(TorchCheckpointTest, ParametersAndTypesAroundTensors) {
  const auto wrapped = [](std::string_view module, std::string_view name, std::string_view rest) {
    return opcodes().global(module, name).op("(").vector("0", 3).op(rest);
  };
  PickleBuilder typed;
  typed.global("torch._tensor", "_rebuild_from_type_v2").op("(").global("torch._utils", "_rebuild_parameter");
  typed.global("torch.nn.parameter", "Parameter").op("(").vector("0", 3).op("\x88Nt}tR");
  for (const PickleBuilder& value : {wrapped("torch._utils", "_rebuild_parameter", "\x88NtR"),
                                     wrapped("torch._utils", "_rebuild_parameter_with_state", "\x88N}tR"),
                                     wrapped("torch.nn.parameter", "Parameter", "\x88t\x81"), typed}) {
    EXPECT_EQ(floats(*open_weights(write(zip_of(one(value).stop()))), "w"), (std::vector<float>{1, 2, 3}));
  }
  expect_value_refused(wrapped("torch._utils", "_rebuild_parameter", "\x88NtR}b"), "its state is set");
  expect_value_refused(opcodes().global("torch._utils", "_rebuild_parameter").op(")R"), "expected a tensor");
  expect_value_refused(opcodes().global("torch._utils", "_rebuild_parameter").op("N\x85R"),
                       "found None within");
  expect_value_refused(opcodes().global("torch._tensor", "_rebuild_from_type_v2").op("N\x85R"),
                       "expected a function");
  PickleBuilder deep;
  for (int i = 0; i < 20; ++i) {
    deep.global("torch._utils", "_rebuild_parameter").op("(");
  }
  deep.vector("0", 3);
  for (int i = 0; i < 20; ++i) {
    deep.op("tR");
  }
  expect_value_refused(deep, "more than 8 parameters");
}

TEST_F(TorchCheckpointTest, ViewsOutsideTheirStorage) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(refusal_of(zip_of(one(view(0, {3}, {1})).stop())), "");
  expect_value_refused(view(0, {4}, {1}), "tensor \"w\": reaches element 3, the storage holds 3");
  expect_value_refused(view(1, {3}, {1}), "reaches element 3");
  expect_value_refused(view(0, {2}, {3}), "reaches element 3");
  expect_value_refused(view(3, {}, {}), "reaches element 3");
  expect_value_refused(view(-1, {3}, {1}), "no negative number");
  expect_value_refused(view(2, {3}, {-1}), "no negative number");
  expect_value_refused(view(0, {-3}, {1}), "no negative number");
  expect_value_refused(view(0, {3}, {}), "0 strides for rank 1");
  expect_value_refused(view(0, {2, 2}, {1, 1}), "overlap");
  expect_value_refused(view(0, {1ll << 40}, {0}), "expands to");
  expect_value_refused(view(0, {kMost, kMost}, {0, 0}), "2^63");
  expect_value_refused(view(0, {2, 2}, {kMost, kMost}), "2^63");
  expect_value_refused(view(kMost, {2}, {kMost}), "2^63");
  expect_value_refused(view(kMost, {1}, {1}), "reaches element");
  expect_value_refused(view(0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}), "rank 9");
  expect_value_refused(view(4, {0}, {1}), "starts at element 4");
}

TEST_F(TorchCheckpointTest, ArgumentsOfTheWrongKind) {
  const auto rebuild = [](const std::function<void(PickleBuilder&)>& arguments,
                          const char* name = "_rebuild_tensor_v2") {
    PickleBuilder value;
    value.global("torch._utils", name).op("(");
    arguments(value);
    return value.op("tR");
  };
  const auto good = [](PickleBuilder& b) {
    b.storage("FloatStorage", "0", 3).integer(0).integers({3}).integers({1}).op("\x89N");
  };
  EXPECT_EQ(refusal_of(zip_of(one(rebuild(good)).stop())), "");
  EXPECT_EQ(refusal_of(zip_of(one(rebuild([&](PickleBuilder& b) { good(b), b.op("N"); })).stop())), "");
  EXPECT_EQ(refusal_of(zip_of(one(rebuild([&](PickleBuilder& b) { good(b), b.op("}"); })).stop())), "");
  // Flags such as "neg" change what the numbers mean.
  expect_value_refused(rebuild([&](PickleBuilder& b) { good(b), b.op("}").text("neg").op("\x88s"); }),
                       "metadata");
  expect_value_refused(rebuild([&](PickleBuilder& b) { good(b), b.op("NN"); }), "found 8 arguments");
  expect_value_refused(rebuild([](PickleBuilder&) {}), "found 0 arguments");
  expect_value_refused(rebuild(good, "_rebuild_tensor"), "found 6 arguments, expected 4");
  expect_value_refused(rebuild(good, "_rebuild_tensor_v3"), "found 6 arguments, expected 7");
  expect_value_refused(
      rebuild([&](PickleBuilder& b) { good(b), b.global("torch", "qint8"); }, "_rebuild_tensor_v3"),
      "type \"torch.qint8\" is not supported");
  expect_value_refused(rebuild([&](PickleBuilder& b) { good(b), b.op("N"); }, "_rebuild_tensor_v3"),
                       "is not supported");
  for (const char* function :
       {"_rebuild_qtensor", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage",
        "_rebuild_device_tensor_from_numpy", "_rebuild_nested_tensor"}) {
    expect_value_refused(rebuild(good, function), "which is not supported");
  }
  const auto with = [&](std::string_view storage, std::string_view offset, std::string_view size,
                        std::string_view stride) {
    return rebuild([&](PickleBuilder& b) { b.op(storage).op(offset).op(size).op(stride).op("\x89N"); });
  };
  const std::string stored = opcodes().storage("FloatStorage", "0", 3).stop();
  const std::string storage = stored.substr(2, stored.size() - 3);
  EXPECT_EQ(refusal_of(zip_of(one(with(storage, "K\1", "K\2\x85", "K\1\x85")).stop())), "");
  EXPECT_EQ(refusal_of(zip_of(one(with(storage, "K\1", "ctorch\nSize\nK\2\x85\x85R", "K\1\x85")).stop())),
            "");
  expect_value_refused(with("N", "K\1", "K\2\x85", "K\1\x85"), "storage: found None");
  expect_value_refused(with("cos\nsystem\n)R", "K\1", "K\2\x85", "K\1\x85"), "storage: found an object");
  expect_value_refused(with(storage, "N", "K\2\x85", "K\1\x85"), "storage offset: found None");
  expect_value_refused(with(storage, "\x88", "K\2\x85", "K\1\x85"), "storage offset: found a boolean");
  expect_value_refused(with(storage,
                            "\x8a\x09"
                            "123456789",
                            "K\2\x85", "K\1\x85"),
                       "past 64 bits");
  expect_value_refused(with(storage, "K\1", "K\2", "K\1\x85"), "size: found an integer, expected a tuple");
  expect_value_refused(with(storage, "K\1", "]K\2a", "K\1\x85"), "size: found a list");
  expect_value_refused(with(storage, "K\1", "U\1x\x85", "K\1\x85"), "size: found bytes, expected an integer");
  expect_value_refused(with(storage, "K\1", "K\2\x85", "N"), "stride: found None");
  expect_value_refused(with(storage, "K\1", "K\2\x85", "ctorch\nSize\n)R"), "stride: found an object");
  expect_value_refused(with("K\1Q", "K\1", "K\2\x85", "K\1\x85"), "persistent id");
  expect_value_refused(with(")Q", "K\1", "K\2\x85", "K\1\x85"), "persistent id");
}

TEST_F(TorchCheckpointTest, StoragesThatAreNotWhatThePickleSays) {
  const auto vector = [](std::string_view key, int64_t elements) { return opcodes().vector(key, elements); };
  // CVE-2026-24747: the entry is smaller than declared.
  expect_value_refused(vector("0", 3), "holds 8 bytes, 3 elements of 4 bytes were declared",
                       {{"0", kThree.substr(4)}});
  expect_value_refused(vector("0", 3), "holds 13 bytes", {{"0", kThree + "x"}});
  expect_value_refused(vector("0", 3), "holds 16 bytes", {{"0", kThree + "abcd"}});
  expect_value_refused(vector("0", 3), "there is no such entry", {{"1", kThree}});
  expect_value_refused(vector("0", 1ll << 62), "holds 12 bytes");
  expect_value_refused(vector("0", std::numeric_limits<int64_t>::max()), "holds 12 bytes");
  expect_value_refused(opcodes().tensor("0", -1, 0, {1}, {1}), "no negative number");
  expect_value_refused(vector("../data/0", 3), "there is no such entry");
  expect_value_refused(vector("../data.pkl", 3), "there is no such entry");
  expect_value_refused(vector(std::string("0\0", 2), 3), "there is no such entry");
  expect_value_refused(vector("", 3), "there is no such entry");
  const auto typed = [](std::string_view module, std::string_view type) {
    PickleBuilder value;
    value.global("torch._utils", "_rebuild_tensor_v2").op("(").op("(").text("storage").global(module, type);
    return value.text("0").text("cpu").integer(3).op("tQ").view(0, {3}, {1});
  };
  EXPECT_EQ(refusal_of(zip_of(one(typed("torch.cuda", "FloatStorage")).stop())), "");
  expect_value_refused(typed("torch", "QInt8Storage"),
                       "storage type \"torch.QInt8Storage\" is not supported");
  expect_value_refused(typed("os", "FloatStorage"), "storage type \"os.FloatStorage\" is not supported");
  const auto id = [](std::string_view fields) {
    return opcodes()
        .global("torch._utils", "_rebuild_tensor_v2")
        .op("(")
        .op(fields)
        .op("Q")
        .view(0, {3}, {1});
  };
  expect_value_refused(id("(U\7storaget"), "found 1 fields");
  expect_value_refused(id("(U\7storageNU\1"
                          "0U\3cpuK\3t"),
                       "storage type: found None");
  expect_value_refused(id("(U\7storagectorch\nFloatStorage\nK\1U\3cpuK\3t"), "storage key: found an integer");
  expect_value_refused(id("(U\7storagectorch\nFloatStorage\nU\1"
                          "0U\3cpuNt"),
                       "storage elements: found None");
  expect_value_refused(id("(U\7storagectorch\nFloatStorage\nU\1"
                          "0U\3cpuK\3K\1t"),
                       "view of a storage");
  expect_value_refused(id("(U\6modulectorch\nFloatStorage\nNNt"), "starts with 'storage'");
  EXPECT_EQ(refusal_of(zip_of(one(id("(U\7storagectorch\nFloatStorage\nU\1"
                                     "0U\3cpuK\3Nt"))
                                  .stop())),
            "");

  // One key, two descriptions.
  const auto two = [](std::string_view type, int64_t elements) {
    PickleBuilder value;
    value.op("}(").text("a").vector("0", 3).text("b").global("torch._utils", "_rebuild_tensor_v2").op("(");
    return value.storage(type, "0", elements).view(0, {1}, {1}).op("u").stop();
  };
  EXPECT_EQ(refusal_of(zip_of(two("FloatStorage", 3))), "");
  expect_refused(zip_of(two("IntStorage", 3)), "described twice");
  expect_refused(zip_of(two("FloatStorage", 2)), "described twice");
}

TEST_F(TorchCheckpointTest, NothingIsCalled) {
  const std::string command = "touch " + (folder_ / "never").string();
  PickleBuilder attack;
  attack.global("os", "system").op("(").text(command).op("tR");
  const std::string call = attack.stop().substr(2, attack.stop().size() - 3);
  expect_refused(zip_of(attack.stop()), "found an object that holds no named tensors");
  expect_refused(zip_of(PickleBuilder().op("}").text("w").op(call).op("s").stop()), "holds no named tensors");
  // Beside tensors it is a value that is skipped; within one it is refused.
  const std::filesystem::path path =
      write(zip_of(PickleBuilder().op("}(").text("x").op(call).text("w").vector("0", 3).op("u").stop()));
  const TorchCheckpoint file(path);
  EXPECT_EQ(file.skipped(), (std::vector<std::string>{"x"}));
  EXPECT_EQ(floats(file, "w"), (std::vector<float>{1, 2, 3}));
  expect_value_refused(opcodes().global("torch._utils", "_rebuild_parameter").op(call + "\x85R"),
                       "found an object within");
  expect_value_refused(opcodes()
                           .global("torch._tensor", "_rebuild_from_type_v2")
                           .op("(")
                           .global("os", "system")
                           .op("N")
                           .op("(")
                           .text(command)
                           .op("tNtR"),
                       "is rebuilt by \"os.system\", which is not supported");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "never"));
}

TEST_F(TorchCheckpointTest, TheWeightsAreFoundAmongOtherThings) {
  const auto dictionary = [](PickleBuilder& b, int tensors) {
    b.op("}(");
    for (int i = 0; i < tensors; ++i) {
      b.text(std::string("t") + std::to_string(i)).vector("0", 3);
    }
    b.op("u");
  };
  using Layout = std::vector<std::pair<std::string, int>>;
  const auto file_of = [&](const Layout& layout) {
    PickleBuilder b;
    b.op("}(");
    for (const auto& [key, tensors] : layout) {
      b.text(key);
      dictionary(b, tensors);
    }
    return write(zip_of(b.op("u").stop()));
  };
  for (const auto& [layout, expected] : std::vector<std::pair<Layout, std::string>>{
           {{{"state_dict", 2}, {"optimizer", 9}}, "state_dict"},
           {{{"ema", 2}, {"model", 2}}, "model"},
           {{{"model", 2}, {"state_dict", 2}}, "state_dict"},
           {{{"network_weights", 5}, {"logging", 1}}, "network_weights"},
           {{{"anything", 1}}, "anything"},
           {{{"optimizer", 1}}, "optimizer"},
           {{{"anything", 1}, {"optimizer_states", 4}, {"lr_scheduler", 1}}, "anything"}}) {
    const TorchCheckpoint file(file_of(layout));
    EXPECT_EQ(file.dictionary(), expected);
    EXPECT_EQ(file.dictionaries().size(), layout.size());
  }
  const auto ambiguous = [&](const Layout& layout) { return refusal(file_of(layout)); };
  EXPECT_NE(ambiguous({{"encoder", 2}, {"decoder", 3}}).find("\"encoder\" (2), \"decoder\" (3)"),
            std::string::npos);
  EXPECT_NE(ambiguous({{"model", 1}, {"encoder", 3}}).find("several dictionaries"), std::string::npos);
  EXPECT_NE(
      ambiguous({{"a", 1}, {"b", 1}, {"c", 1}, {"d", 1}, {"e", 1}, {"f", 1}, {"g", 1}, {"h", 1}, {"i", 1}})
          .find(", ..."),
      std::string::npos);

  const std::filesystem::path both = file_of({{"encoder", 2}, {"decoder", 3}});
  EXPECT_EQ(open_weights(both, "decoder")->tensors().size(), 3u);
  EXPECT_NE(refusal(both, "model").find("holds no dictionary of tensors \"model\", expected one of"),
            std::string::npos);
  EXPECT_NE(refusal(both, ".").find("holds no dictionary"), std::string::npos);

  // Nested, and tensors beside the dictionary.
  PickleBuilder b;
  b.op("}(").text("model").op("}").text("state_dict");
  dictionary(b, 3);
  b.op("s").text("ema").op("}").text("state_dict");
  dictionary(b, 3);
  b.op("s").text("rng").vector("0", 3).op("u");
  const std::filesystem::path nested = write(zip_of(b.stop()));
  EXPECT_EQ(TorchCheckpoint(nested).dictionary(), "model.state_dict");
  EXPECT_EQ(TorchCheckpoint(nested).dictionaries(),
            (std::vector<std::string>{".", "model.state_dict", "ema.state_dict"}));
  EXPECT_EQ(TorchCheckpoint(nested, "ema.state_dict").tensors().size(), 3u);
  EXPECT_EQ(names(TorchCheckpoint(nested, ".")), (std::vector<std::string>{"rng"}));
  EXPECT_EQ(TorchCheckpoint(nested, ".").skipped(), (std::vector<std::string>{"model", "ema"}));

  // A dictionary of a class of its own; a tensor alone.
  const TorchCheckpoint own(write(
      zip_of(PickleBuilder().global("my", "Dict").op(")\x81").text("w").vector("0", 3).op("s").stop())));
  EXPECT_EQ(names(own), (std::vector<std::string>{"w"}));
  const TorchCheckpoint alone(write(zip_of(PickleBuilder().vector("0", 3).stop())));
  EXPECT_EQ(names(alone), (std::vector<std::string>{"tensor"}));
  for (const char* nothing : {"N", "]", "}", "K\1", ")", "cos\nsystem\n", "K\1Q"}) {
    expect_refused(zip_of(PickleBuilder().op(nothing).stop()),
                   "that holds no named tensors, expected a dictionary of tensors");
  }
}

TEST_F(TorchCheckpointTest, PrefixesOfWrappersAreStripped) {
  const auto named = [&](const std::vector<std::string>& given) {
    PickleBuilder b;
    b.op("}(");
    for (const std::string& name : given) {
      b.text(name).vector("0", 3);
    }
    return TorchCheckpoint(write(zip_of(b.op("u").stop())));
  };
  using Names = std::vector<std::string>;
  const auto expect = [&](const Names& given, const std::string& prefix, const Names& expected) {
    const auto file = named(given);
    EXPECT_EQ(file.prefix(), prefix);
    EXPECT_EQ(names(file), expected);
    EXPECT_NE(file.find(expected[0]), nullptr);
  };
  expect({"module.a", "module.b.c"}, "module.", {"a", "b.c"});
  expect({"_orig_mod.a", "_orig_mod.b"}, "_orig_mod.", {"a", "b"});
  expect({"module._orig_mod.a"}, "module._orig_mod.", {"a"});
  expect({"_orig_mod.module.a", "_orig_mod.module.b"}, "_orig_mod.module.", {"a", "b"});
  expect({"module.module.a"}, "module.module.", {"a"});
  expect({"module.a", "b"}, "", {"module.a", "b"});
  expect({"module.module."}, "module.", {"module."});
  expect({"modules.a"}, "", {"modules.a"});
  // torch.optim.swa_utils.AveragedModel counts beside the module.
  expect({"n_averaged", "module.a"}, "module.", {"n_averaged", "a"});
  expect({"n_averaged", "module.n_averaged"}, "", {"n_averaged", "module.n_averaged"});
  expect({"n_averaged"}, "", {"n_averaged"});
}

TEST_F(TorchCheckpointTest, Names) {
  const auto named = [](std::string_view name) {
    return zip_of(PickleBuilder().op("}").text(name).vector("0", 3).op("s").stop());
  };
  for (const char* good : {"a", "A", "../../etc/passwd", "with space", "\u4f60", "a\nb"}) {
    EXPECT_EQ(refusal_of(named(good)), "") << good;
  }
  expect_refused(named("\xff\xfe"), "a tensor's name: found \"\\xff\\xfe\"");
  expect_refused(named("\xed\xa0\x80"), "expected UTF-8");
  expect_refused(named(""), "a tensor's name");
  expect_refused(named(std::string(5000, 'x')), "a tensor's name");
  expect_refused(
      zip_of(PickleBuilder().op("}(").text("a").vector("0", 3).integer(1).vector("0", 3).op("u").stop()),
      "a tensor's name: found an integer");
  // Twice the same is refused, also where the second is no tensor; names that differ in case are two names.
  const auto two = [](std::string_view first, std::string_view second) {
    return zip_of(
        PickleBuilder().op("}(").text(first).vector("0", 3).text(second).vector("0", 3).op("u").stop());
  };
  EXPECT_EQ(refusal_of(two("Weight", "weight")), "");
  expect_refused(two("w", "w"), "the name \"w\" occurs twice");
  expect_refused(zip_of(PickleBuilder().op("}(").text("w").vector("0", 3).text("w").op("Nu").stop()),
                 "occurs twice");
  // What a name could do to a terminal.
  const std::string line = refusal_of(
      zip_of(PickleBuilder().op("}").text("\x1b[2J\n\u202e").tensor("0", 3, 9, {1}, {1}).op("s").stop()));
  EXPECT_NE(line.find("tensor \"\\x1b[2J\\n\\u202e\": reaches"), std::string::npos) << line;
  // Text of Python 2.
  EXPECT_EQ(refusal_of(zip_of(PickleBuilder().op("}U\1w").vector("0", 3).op("s").stop())), "");
}

TEST_F(TorchCheckpointTest, ObjectsThatAreReachedOverAndOver) {
  // A module of two modules that are the same one, and so on: 2^200 names.
  const auto module = [](PickleBuilder& b, const std::function<void()>& modules) {
    b.global("my", "Net").op(")\x81}(").text("_parameters").op("}").text("_modules").op("}(");
    modules();
    b.op("uub");
  };
  PickleBuilder bomb;
  module(bomb, [] {});
  bomb.op("q\1");
  for (int i = 0; i < 60; ++i) {
    module(bomb, [&] { bomb.text("a").op("h\1").text("b").op("h\1"); });
    bomb.op("q\1");
  }
  // What is below stays on the stack: all of it in one tuple, and the last.
  expect_refused(zip_of(PickleBuilder()
                            .op("}")
                            .text("m")
                            .op("(" + bomb.stop().substr(2, bomb.stop().size() - 3) + "t")
                            .op("0")
                            .stop()),
                 "opcode 48");
  const std::string inner = bomb.stop().substr(2, bomb.stop().size() - 3);
  const std::string line = refusal_of(
      zip_of(PickleBuilder().op("}(").text("all").op("(" + inner + "t").text("m").op("h\1u").stop()));
  EXPECT_NE(line.find("refer to each other"), std::string::npos) << line;

  // Many modules share a dictionary of many tensors, and a module holds another one many times.
  const auto repeated = [](std::string_view bytes, int times) {
    std::string names;
    for (int i = 0; i < times; ++i) {
      names += concat("X", le(6, 4), 100'000 + i, bytes);
    }
    return names;
  };
  PickleBuilder shared;
  shared.op("}(").text("w").vector("0", 3).op("q\1").op(repeated("h\1", 100'000)).op("uq\2");
  shared.global("my", "Net").op(")\x81}(").text("_parameters").op("h\2").text("_modules").op("}ubq\3");
  const std::string leaf = shared.stop().substr(2, shared.stop().size() - 3);
  const auto tree = [&](int modules) {
    PickleBuilder b;
    b.op("}(")
        .text("all")
        .op("(" + leaf + "t")
        .text("m")
        .global("my", "Net")
        .op(")\x81}(")
        .text("_parameters")
        .op("}");
    b.text("_modules").op("}(" + repeated("h\3", modules) + "uubu");
    return zip_of(b.stop());
  };
  EXPECT_EQ(refusal_of(tree(5)), "");
  expect_refused(tree(20), "its modules hold more than 1000000 names");
  PickleBuilder wide;
  wide.global("my", "Net").op(")\x81}(").text("_parameters").op("}").text("_modules").op("}ubq\1");
  for (int level = 2; level < 6; ++level) {
    const std::string below_it = concat('h', static_cast<char>(level - 1));
    wide.global("my", "Net").op(")\x81}(").text("_parameters").op("}").text("_modules").op("}(");
    wide.op(repeated(below_it, 300'000) + "uub").op(concat('q', static_cast<char>(level)));
  }
  const std::string levels = wide.stop().substr(2, wide.stop().size() - 3);
  expect_refused(
      zip_of(PickleBuilder().op("}(").text("all").op("(" + levels + "t").text("m").op("h\5u").stop()),
      "holds more than 1000000 modules");

  // A module that contains itself, a dictionary that does.
  PickleBuilder itself;
  itself.global("my", "Net")
      .op(")\x81q\1}(")
      .text("_parameters")
      .op("}")
      .text("w")
      .vector("0", 3)
      .op("s")
      .text("_modules");
  itself.op("}").text("a").op("h\1sub");
  expect_refused(zip_of(itself.stop()), "modules nested more than 256 deep");
  const TorchCheckpoint file(write(
      zip_of(PickleBuilder().op("}q\1(").text("self").op("h\1").text("w").vector("0", 3).op("u").stop())));
  EXPECT_EQ(file.skipped(), (std::vector<std::string>{"self"}));

  // Many dictionaries of one tensor.
  PickleBuilder many;
  many.op("}(");
  for (int i = 0; i < 1001; ++i) {
    many.text(std::string("d") + std::to_string(i)).op("}").text("w").vector("0", 3).op("s");
  }
  expect_refused(zip_of(many.op("u").stop()), "more than 1000 dictionaries");
}

TEST_F(TorchCheckpointTest, TheNumberOfTensorsIsLimited) {
  const auto named = [](int count) {
    PickleBuilder b;
    b.op("}(").text("t").vector("0", 3).op("q\1");
    std::string names;
    for (int i = 1; i < count; ++i) {
      names += concat("X", le(7, 4), 1'000'000 + i, "h\1");
    }
    return zip_of(b.op(names).op("u").stop());
  };
  EXPECT_EQ(open_weights(write(named(10'000)))->tensors().size(), 10'000u);
  expect_refused(named(1'000'001), "found 1000001 names, expected at most 1000000");
}

TEST_F(TorchCheckpointTest, MemoryOfAllTensorsIsLimited) {
  const auto expanded = [](int count) {
    PickleBuilder b;
    b.op("}(");
    for (int i = 0; i < count; ++i) {
      b.text(std::string("t") + std::to_string(i)).tensor("0", 3, 0, {16 << 20}, {0});
    }
    return zip_of(b.op("u").stop());
  };
  EXPECT_NO_THROW(open_weights(write(expanded(16))));
  expect_refused(expanded(17), "all tensors up to here take");
}

TEST_F(TorchCheckpointTest, PickledModules) {
  const auto module = [](PickleBuilder& b, const std::function<void()>& parameters,
                         const std::function<void()>& buffers, const std::function<void()>& modules) {
    b.global("my", "Net").op(")\x81}(").text("training").op("\x88").text("_parameters").op("}(");
    parameters();
    b.op("u").text("_buffers").op("}(");
    buffers();
    b.op("u")
        .text("_non_persistent_buffers_set")
        .global("__builtin__", "set")
        .op("](")
        .text("scratch")
        .op("e\x85R");
    b.text("_modules").op("}(");
    modules();
    b.op("uub");
  };
  const auto nothing = [] {};
  PickleBuilder b;
  module(
      b, [&] { b.text("w").vector("0", 3).text("absent").op("N"); },
      [&] { b.text("mean").vector("0", 3).text("scratch").vector("0", 3); },
      [&] {
        b.text("first");
        module(
            b, [&] { b.text("w").vector("0", 3); }, nothing, nothing);
        b.text("none").op("N").text("second");
        module(
            b, nothing, [&] { b.text("var").vector("0", 3); }, nothing);
      });
  const TorchCheckpoint file(write(zip_of(b.stop())));
  EXPECT_EQ(names(file), (std::vector<std::string>{"w", "mean", "first.w", "second.var"}));
}

TEST_F(TorchCheckpointTest, TorchScriptByThePathsOfAttributes) {
  const auto object = [](PickleBuilder& b, std::string_view name, const std::function<void()>& attributes) {
    b.global("__torch__." + std::string(name), "Net").op(")\x81}(");
    attributes();
    b.op("ub");
  };
  PickleBuilder b;
  object(b, "a", [&] {
    b.text("training").op("\x88").text("w").vector("0", 3).text("name").text("x").text("child");
    object(b, "b", [&] { b.text("v").vector("0", 3).text("list").op("](K\1K\2e"); });
  });
  const auto script = [&](std::string_view folder) {
    ZipBuilder zip;
    zip.add("net/data.pkl", b.stop()).add("net/data/0", kThree).add("net/constants.pkl", "not even a pickle");
    zip.add(concat("net/", folder, "/x.py"), "compressed code");
    std::string bytes = zip.finish();
    return patched(patched(bytes, zip.central[3] + 10, "\x8"), zip.local[3] + 8, "\x8");
  };
  const TorchCheckpoint file(write(script("code")));
  EXPECT_EQ(file.format(), "TorchScript");
  EXPECT_EQ(names(file), (std::vector<std::string>{"w", "child.v"}));
  EXPECT_EQ(floats(file, "child.v"), (std::vector<float>{1, 2, 3}));
  expect_refused(script("extra"), "compression method 8");
}

TEST_F(TorchCheckpointTest, ByteOrder) {
  const std::string pickle = one(opcodes().vector("0", 3)).stop();
  EXPECT_EQ(refusal_of(zip_of(pickle, {{"0", kThree}}, {{"byteorder", "little"}})), "");
  for (const char* order : {"big", "", "Little", "little\n", "littlebig", "\x1b[2J"}) {
    expect_refused(zip_of(pickle, {{"0", kThree}}, {{"byteorder", order}}), "expected \"little\"");
  }
}

TEST_F(TorchCheckpointTest, ArchivesThatAreNotTorchs) {
  const std::string pickle = one(opcodes().vector("0", 3)).stop();
  const auto archive = [](const Records& records) {
    ZipBuilder zip;
    for (const auto& [name, data] : records) {
      zip.add(name, data);
    }
    return zip.finish();
  };
  expect_refused(archive({{"a/data.pkl", pickle}, {"b/data/0", kThree}}),
                 "expected all entries in one folder");
  expect_refused(archive({{"x.npy", "data"}}), "expected all entries in one folder");
  expect_refused(archive({{"a/data", "data"}}), "holds no entry \"a/data.pkl\"");
  expect_refused(archive({{"a/DATA.pkl", pickle}, {"a/data/0", kThree}}), "holds no entry \"a/data.pkl\"");
  expect_refused(archive({{"a/b/data.pkl", pickle}}), "holds no entry");
  expect_refused(archive({{"a/data.pkl", ""}}), "data.pkl: byte 0: asks for 1 bytes");
  expect_refused(archive({{"a/data.pkl", pickle + "x"}, {"a/data/0", kThree}}),
                 "1 bytes follow the end of the pickle");
  expect_refused(archive({{"a/data.pkl", pickle + pickle}, {"a/data/0", kThree}}),
                 "follow the end of the pickle");
}

TEST_F(TorchCheckpointTest, DamageIsNoticed) {
  ZipBuilder zip;
  zip.add("a/data.pkl", one(opcodes().vector("0", 3)).stop()).add("a/data/0", kThree);
  const std::string good = zip.finish();
  expect_refused(patched(good, zip.data[0] + 10, "?"), "\"a/data.pkl\": CRC-32");
  const std::unique_ptr<WeightsFile> file = open_weights(write(patched(good, zip.data[1] + 5, "?")));
  EXPECT_NE(line_of([&] { file->read_bytes(file->tensors()[0]); }).find("\"a/data/0\": CRC-32"),
            std::string::npos);
}

// Larger than the parts that files are read in.
TEST_F(TorchCheckpointTest, LargeStoragesAreCheckedWhicheverWayTheyAreRead) {
  const int64_t count = 3 * FileSource::kPartBytes / 4 + 1;
  std::vector<float> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0.0f);
  ZipBuilder zip;
  zip.add("a/data.pkl", one(opcodes().vector("0", count)).stop())
      .add("a/data/0", {reinterpret_cast<const char*>(values.data()), 4 * values.size()});
  const std::string good = zip.finish();
  const auto in_parts = [&](const WeightsFile& file) {
    std::vector<float> found(values.size(), NAN);
    file.read_float_parts(file.tensors()[0], [&](int64_t position, std::span<const float> part) {
      std::copy(part.begin(), part.end(), found.begin() + position);
    });
    return found;
  };
  for (const bool twice : {false, true}) {
    const std::unique_ptr<WeightsFile> file = open_weights(write(good));
    if (twice) {
      EXPECT_TRUE(file->read_floats(file->tensors()[0]) == values);
    }
    EXPECT_TRUE(in_parts(*file) == values) << twice;
  }
  for (const size_t byte : {size_t{3}, 4 * values.size() - 1}) {
    const std::filesystem::path path = write(patched(good, zip.data[1] + byte, "?"));
    const std::unique_ptr<WeightsFile> file = open_weights(path);
    EXPECT_NE(line_of([&] { file->read_floats(file->tensors()[0]); }).find("CRC-32"), std::string::npos)
        << byte;
    EXPECT_NE(line_of([&] { in_parts(*file); }).find("CRC-32"), std::string::npos) << byte;
  }
}

TEST_F(TorchCheckpointTest, ValuesThatNoTensorHas) {
  PickleBuilder value;
  value.global("torch._utils", "_rebuild_tensor_v2").op("(").storage("BoolStorage", "0", 3).view(0, {3}, {1});
  EXPECT_EQ(refusal_of(zip_of(one(value).stop(), {{"0", std::string("\0\1\0", 3)}})), "");
  expect_value_refused(value, "found 2 at position 1, expected booleans", {{"0", "\1\2\1"}});
  // NaN is a number that a reader hands on; load_tensors refuses it.
  const std::unique_ptr<WeightsFile> file =
      open_weights(write(zip_of(one(opcodes().vector("0", 1)).stop(), {{"0", raw<float>({NAN})}})));
  EXPECT_TRUE(std::isnan(file->read_floats(file->tensors()[0])[0]));
}

TEST_F(TorchCheckpointTest, LoadTensorsTakesACheckpoint) {
  PickleBuilder b;
  b.op("}(").text("module.w").tensor("0", 4, 0, {2, 2}, {1, 2}).text("module.steps");
  b.global("torch._utils", "_rebuild_tensor_v2")
      .op("(")
      .storage("LongStorage", "1", 1)
      .view(0, {}, {})
      .op("u");
  const std::unique_ptr<WeightsFile> file = open_weights(
      write(zip_of(b.stop(), {{"0", raw<float>({1, 2, 3, 4})}, {"1", raw<int64_t>({int64_t{1} << 40})}})));
  DeviceContext context{Device{}};
  const Tensor w = Tensor::zeros(context, {2, 2});
  int64_t steps = 0;
  load_tensors(context, *file, {{"w", w}, {"steps", Tensor(), layers::ParameterLayout::plain, &steps}});
  EXPECT_EQ(w.to_host<float>(context), (std::vector<float>{1, 3, 2, 4}));
  EXPECT_EQ(steps, int64_t{1} << 40);
}

TEST_F(TorchCheckpointTest, AFileThatShrinksIsAnError) {
  const std::string large(1 << 20, '\0');
  const std::filesystem::path path =
      write(zip_of(one(opcodes().vector("0", 1 << 18)).stop(), {{"0", large}}));
  const std::unique_ptr<WeightsFile> file = open_weights(path);
  std::filesystem::resize_file(path, 10'000);
  EXPECT_NE(line_of([&] { file->read_bytes(file->tensors()[0]); }).find("shortened"), std::string::npos);
}

TEST_F(TorchCheckpointTest, LegacyFiles) {
  const std::string object =
      PickleBuilder().op("}(").text("a").vector("7", 3).text("b").tensor("12", 2, 1, {1}, {1}).op("u").stop();
  const std::string twelve = le(2, 8) + raw<float>({4, 5});
  const std::string seven = le(3, 8) + kThree;
  const TorchCheckpoint file(write(legacy_of(object, {"12", "7"}, twelve + seven)));
  EXPECT_EQ(file.format(), "PyTorch (legacy)");
  EXPECT_EQ(floats(file, "a"), (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(floats(file, "b"), (std::vector<float>{5}));

  expect_refused(legacy_of(object, {"12", "7"}, twelve + seven + "x"), "1 bytes follow the last storage");
  expect_refused(legacy_of(object, {"12"}, twelve), "storage keys: expected a list of 2");
  expect_refused(legacy_of(object, {"12", "7", "8"}, twelve + seven + le(0, 8)), "expected a list of 2");
  expect_refused(legacy_of(object, {"12", "8"}, twelve + seven), "found \"8\", expected every storage");
  expect_refused(legacy_of(object, {"12", "12"}, twelve + twelve), "found \"12\", expected every storage");
  expect_refused(legacy_of(object, {"12", "7"}, le(1, 8) + raw<float>({4}) + seven),
                 "holds 1 elements, the object says 2");
  expect_refused(legacy_of(object, {"12", "7"}, twelve + le(~uint64_t{0}, 8)), "the object says 3");
  expect_refused(legacy_of(object, {"12", "7"}, twelve + le(3, 8) + "abc"), "pass the end of the file");
  const std::string huge = one(opcodes().vector("0", std::numeric_limits<int64_t>::max())).stop();
  expect_refused(
      legacy_of(huge, {"0"}, le(static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), 8) + "abcd"),
      "pass the end of the file");
  const std::string conflicting = PickleBuilder().op("(").vector("0", 3).vector("0", 2).op("t").stop();
  expect_refused(legacy_of(conflicting, {"0"}, seven), "described twice, differently");
  // Classes of modules, with their source, are persistent too.
  PickleBuilder module;
  module.op("(").text("module").global("my", "Net").text("net.py").text("class Net: ...").op("tQ)\x81}(");
  module.text("_parameters").op("}").text("w").vector("7", 3).op("s").text("_modules").op("}ub");
  EXPECT_EQ(floats(TorchCheckpoint(write(legacy_of(module.stop(), {"7"}, seven))), "w"),
            (std::vector<float>{1, 2, 3}));
}

TEST_F(TorchCheckpointTest, LegacyViewsOfStorages) {
  const auto file_of = [](int64_t offset, int64_t elements) {
    PickleBuilder value;
    value.global("torch._utils", "_rebuild_tensor")
        .op("((")
        .text("storage")
        .global("torch", "FloatStorage")
        .text("0");
    value.text("cpu").integer(3).op("(").text("view").integer(offset).integer(elements).op("ttQ");
    value.integer(1).integers({1}).integers({1}).op("tR");
    return legacy_of(one(value).stop(), {"0"}, le(3, 8) + kThree);
  };
  EXPECT_EQ(floats(TorchCheckpoint(write(file_of(1, 2))), "w"), (std::vector<float>{3}));
  expect_refused(file_of(1, 1), "reaches element 1, the storage holds 1");
  expect_refused(file_of(2, 2), "2 elements at 2, the storage holds 3");
  expect_refused(file_of(-1, 2), "no negative number");
  expect_refused(file_of(std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::max()),
                 "the storage holds 3");
}

TEST_F(TorchCheckpointTest, LegacyHeaders) {
  const std::string object = one(opcodes().vector("0", 3)).stop();
  const std::string good = legacy_of(object, {"0"}, le(3, 8) + kThree);
  EXPECT_EQ(refusal_of(good), "");
  expect_refused(patched(good, 5, "\x6d"), "not PyTorch's: its magic number is not there");
  expect_refused(PickleBuilder().op("N").stop(), "not PyTorch's");
  expect_refused(object, "not PyTorch's");
  const size_t version = PickleBuilder().op("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").stop().size();
  expect_refused(patched(good, version + 3, "\xea"), "expected 1001");
  expect_refused(patched(good, good.find("\x88s"), "\x89"), "expected little_endian: True");
  expect_refused(patched(good, good.find("little_endian"), "middle"), "expected little_endian: True");
  expect_refused(good.substr(0, version), "protocol version");
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_NE(refusal_of(good.substr(0, length)), "") << length << " of " << good.size() << " bytes";
  }
}

TEST_F(TorchCheckpointTest, EveryTruncationIsRefused) {
  const std::string good = zip_of(one(opcodes().vector("0", 3)).stop());
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_NE(refusal_of(good.substr(0, length)), "") << length << " of " << good.size() << " bytes";
  }
}

TEST_F(TorchCheckpointTest, ContentDecidesNotTheName) {
  const std::string torch = zip_of(one(opcodes().vector("0", 3)).stop());
  EXPECT_EQ(open_weights(write(torch, "a.safetensors"))->format(), "PyTorch (zip)");
  write_safetensors(folder_ / "b.pth", {{"w", DType::f32, {1}, [] { return std::vector<std::byte>(4); }}},
                    {});
  const std::unique_ptr<WeightsFile> file = open_weights(folder_ / "b.pth");
  EXPECT_EQ(file->format(), "safetensors");
  EXPECT_EQ(file->tensors()[0].strides, (Shape{1}));
  EXPECT_NE(refusal(folder_ / "b.pth", "model").find("a safetensors file has none"), std::string::npos);
  std::string tar(1024, '\0');
  tar.replace(0, 8, "storages").replace(257, 5, "ustar");
  expect_refused(tar,
                 "is a tar archive, which PyTorch wrote before 0.2; load it with PyTorch and save it again");
  expect_refused("", "is empty");
  expect_refused("\x1f\x8b\x08 gzip", "is gzip data: unpack it first");
  expect_refused("\x89HDF\r\n\x1a\n", "is HDF5");
  expect_refused("<!DOCTYPE html>", "a web page");
  expect_refused("version https://git-lfs.github.com/spec/v1\n", "git lfs pull");
  expect_refused("some text", "starts with \"some tex\"");
  expect_refused(std::string("\0\1\2\n\x1b", 5), "starts with \"\\x00\\x01\\x02\\n\\x1b\"");
  expect_refused(std::string(600, '\0'), "expected safetensors or a PyTorch checkpoint");
  EXPECT_THROW(open_weights(folder_ / "absent"), IoError);
  EXPECT_THROW(open_weights(folder_), IoError);
  EXPECT_THROW(TorchCheckpoint(write("some text")), FormatError);
}

// Files that are two things at once.
TEST_F(TorchCheckpointTest, Polyglots) {
  const std::string zip = zip_of(one(opcodes().vector("0", 3)).stop());
  const std::string legacy = legacy_of(one(opcodes().vector("0", 3)).stop(), {"0"}, le(3, 8) + kThree);
  expect_refused(legacy + zip, "bytes follow the last storage");
  expect_refused(zip + legacy, "no end record");
  expect_refused(zip + zip, "");
  expect_refused(std::string("#!/bin/sh\n") + zip, "expected safetensors or a PyTorch checkpoint");
  std::string safetensors = le(2, 8) + "{}";
  expect_refused(safetensors + zip, "bytes follow the last tensor");
  EXPECT_EQ(refusal_of(safetensors), "");
}

TEST_F(TorchCheckpointTest, DamageDoesNoHarm) {
  PickleBuilder b;
  b.op("}(").text("epoch").integer(7).text("state_dict").global("collections", "OrderedDict").op(")R(");
  b.text("a")
      .tensor("0", 6, 1, {2, 2}, {1, 3})
      .text("b")
      .vector("1", 3)
      .op("u")
      .text("args")
      .global("argparse", "Namespace");
  b.op(")\x81}").text("x").op("K\1sbu");
  const std::string six = raw<float>({0, 1, 2, 3, 4, 5});
  const auto use = [](const std::filesystem::path& path) {
    const std::unique_ptr<WeightsFile> file = open_weights(path);
    for (const StoredTensor& tensor : file->tensors()) {
      file->read_bytes(tensor);
    }
  };
  // Damage to the pickle would end at its checksum: so the archive is made from the damaged pickle.
  const std::string pickle = b.stop();
  expect_no_harm(zip_of(pickle, {{"0", six}, {"1", kThree}}), 1000, use);
  expect_no_harm(legacy_of(pickle, {"0", "1"}, le(6, 8) + six + le(3, 8) + kThree), 2000, use);
  expect_no_harm(pickle, 4000, [&](const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string damaged{std::istreambuf_iterator<char>(in), {}};
    use(write(zip_of(damaged, {{"0", six}, {"1", kThree}}), "archive"));
  });
}

}  // namespace
}  // namespace vesal::weights
