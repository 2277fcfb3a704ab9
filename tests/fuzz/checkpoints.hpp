// Pickles as PyTorch writes them, small: what the targets of pickles and checkpoints start from.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "tests/weights_tools/torch_builders.hpp"

namespace vesal::fuzz {

// Their storages are "0", of 6 floats, and "1", of 3 of them.
inline std::vector<std::string> checkpoint_pickles() {
  using weights::PickleBuilder;
  const std::string whole = PickleBuilder().vector("1", 3).stop();
  const std::string vector = whole.substr(2, whole.size() - 3);
  std::vector<std::string> pickles;
  const auto keep = [&](const PickleBuilder& b) { pickles.push_back(b.stop()); };

  // A state_dict with the versions of its modules, beside other things.
  PickleBuilder b;
  b.op("}(").text("epoch").integer(7).text("loss").op("G").op(std::string("\x3f\xf0\0\0\0\0\0\0", 8));
  b.text("state_dict").global("collections", "OrderedDict").op(")Rq\1(");
  b.text("module.a").tensor("0", 6, 1, {2, 2}, {1, 3}).text("module.b").vector("1", 3);
  b.text("module.c").tensor("0", 6, 0, {}, {}).text("module.d").tensor("0", 6, 2, {2, 2}, {0, 1}).op("u");
  b.op("}").text("_metadata").global("collections", "OrderedDict").op(")Rsb").text("args");
  b.global("argparse", "Namespace").op(")\x81}").text("x").op("h\1sb").text("sizes");
  b.op("](NK\1M\1\2J\1\2\3\4\x8a\3\1\2\3e").text("names").op("\x8f(").text("x").op("\x90u");
  keep(b);

  // Parameters, types of their own, a rebuilt dtype.
  b = PickleBuilder().op("}(").text("w").global("torch._utils", "_rebuild_parameter").op("(");
  b.op(vector).op("\x88").global("collections", "OrderedDict").op(")RtR").text("v");
  b.global("torch._tensor", "_rebuild_from_type_v2").op("(").global("torch._utils", "_rebuild_tensor_v2");
  b.global("my", "Tensor").op("(").storage("FloatStorage", "1", 3).integer(0).integers({3}).integers({1});
  b.op("\x89").global("collections", "OrderedDict").op(")Rt}tR").text("u");
  b.global("torch._utils", "_rebuild_tensor_v3").op("(").storage("FloatStorage", "0", 6).integer(0);
  keep(b.integers({3, 4}).integers({4, 1}).op("\x89}").global("torch", "bfloat16").op("tRu"));

  // Modules within modules, with what is not saved.
  b = PickleBuilder().global("my", "Net").op(")\x81}(").text("_parameters").op("}(").text("w");
  b.op(vector).text("none").op("Nu").text("_buffers").op("}(").text("mean").vector("1", 3);
  b.text("scratch").vector("1", 3).op("u").text("_non_persistent_buffers_set").global("__builtin__", "set");
  b.op("](").text("scratch").op("e\x85R").text("_modules").op("}").text("child").global("my", "Net");
  b.op(")\x81}(").text("_parameters").op("}").text("v").tensor("0", 6, 0, {2, 3}, {3, 1}).op("s");
  keep(b.text("_modules").op("}ubsub"));

  // Several dictionaries.
  b = PickleBuilder().op("}(").text("ema").op("}").text("w").vector("1", 3).op("s").text("model").op("}");
  b.text("w").vector("1", 3).op("s").text("optimizer").op("}").text("state").op("}");
  keep(b.integer(0).op("}").text("exp_avg").tensor("0", 6, 0, {6}, {1}).op("sssu"));

  // Protocol 4: a frame, short strings, a memo without numbers.
  const auto text = [](std::string_view value) {
    return concat("\x8c", weights::le(value.size(), 1), value, "\x94");
  };
  const auto global = [&](std::string_view module, std::string_view name) {
    return concat(text(module), text(name), "\x93\x94");
  };
  const std::string frame =
      concat("}\x94", text("w"), global("torch._utils", "_rebuild_tensor_v2"), "((", text("storage"),
             global("torch", "FloatStorage"), text("1"), text("cpu"), "K\3tQK", weights::le(0, 1),
             "K\3\x85K\1\x85\x89", global("collections", "OrderedDict"), ")RtRs.");
  pickles.push_back(concat("\x80\4\x95", weights::le(frame.size(), 8), frame));

  // Python 2: byte strings, and an OrderedDict made from pairs.
  keep(PickleBuilder().global("collections", "OrderedDict").op("](](U\1w").op(vector).op("ee\x85R"));

  // TorchScript: attributes of objects.
  b = PickleBuilder().global("__torch__", "Net").op(")\x81}(").text("training").op("\x88").text("w");
  b.op(vector).text("child").global("__torch__.a", "Net").op(")\x81}(").text("v").op(vector).text("list");
  keep(b.op("](K\1K\2eubub"));
  return pickles;
}

}  // namespace vesal::fuzz
