// Computes one block of the original 2D fusion network, or all of it, with numbers that fusion_2d.py
// describes:
//
//   fusion_2d_oracle DEVICE BLOCK key=value ... < RANGES > TENSORS
//   fusion_2d_oracle DEVICE import FILE OUT.safetensors seed=N < RANGES
//   fusion_2d_oracle DEVICE entries
//
// RANGES has a line per tensor, NAME OFFSET SCALE PAIR NEGATE [EXTENTS]; fusion_2d.py says what the numbers
// mean and how elements follow from them. Parameters, running statistics, inputs (input.*) and the gradients
// of outputs (cotangent.*) are filled; outputs, gradients and, in training, running statistics are written,
// each as a line "NAME EXTENTS" and float32 numbers in PyTorch's layout. `import` reads a checkpoint
// strictly, compares every number with the RANGES', and writes it as safetensors.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <sstream>

#include "layers/swin.hpp"
#include "models/catalogue.hpp"
#include "models/fusion_2d.hpp"
#include "weights_tools/parameters.hpp"

namespace {

using namespace vesal;

uint64_t fnv1a(std::string_view text) {
  uint64_t value = 0xCBF29CE484222325;
  for (const char c : text) {
    value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3;
  }
  return value;
}

uint64_t hash(uint64_t key, uint64_t index) {
  uint64_t x = (index + 1) * 0x9E3779B97F4A7C15 + key;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

double unit(uint64_t key, uint64_t index) {
  return static_cast<double>(hash(key, index) >> 40) / 8388608.0 - 1.0;
}

// One line of RANGES.
struct Range {
  double offset = 0, scale = 0;
  uint64_t pair = 0;
  bool negate = false;
  Shape shape;
};

class Numbers {
 public:
  Numbers(std::istream& lines, std::string seed) : seed_(std::move(seed)) {
    for (std::string name, offset, scale, extents; lines >> name >> offset >> scale;) {
      Range range;
      lines >> range.pair >> range.negate >> extents;
      range.offset = std::strtod(offset.c_str(), nullptr);
      range.scale = std::strtod(scale.c_str(), nullptr);
      std::istringstream list(extents.substr(1, extents.size() - 2));
      for (std::string extent; std::getline(list, extent, ',');) {
        range.shape.push_back(std::stoll(extent));
      }
      ranges_[name] = range;
    }
  }

  const Shape& shape(const std::string& name) const { return at(name).shape; }

  // Row-major in PyTorch's layout. Throws ShapeError where the script thinks of another shape.
  std::vector<float> values(const std::string& name, const Shape& expected) const {
    const Range& range = at(name);
    check<ShapeError>(range.shape == expected, name, ": found ", to_string(expected), ", the script has ",
                      to_string(range.shape));
    const uint64_t key = fnv1a(name.starts_with("input.") ? seed_ + "/" + name : name);
    const uint64_t negate_key = fnv1a(name + "/negate");
    std::vector<float> values(static_cast<size_t>(element_count(range.shape)));
    for (uint64_t i = 0; i < values.size(); ++i) {
      double u = unit(key, i);
      if (range.pair != 0 && i / range.pair % 2 == 1) {
        u = -0.9 * unit(key, i - range.pair) + 0.1 * u;
      }
      const double x = range.offset + range.scale * u;
      const bool negated = range.negate && hash(negate_key, i / 2) % 8 == 0;
      values[i] = static_cast<float>(negated ? -x : x);
    }
    return values;
  }

 private:
  const Range& at(const std::string& name) const {
    const auto found = ranges_.find(name);
    check<UsageError>(found != ranges_.end(), "the script has no range for ", name);
    return found->second;
  }

  std::string seed_;
  std::map<std::string, Range> ranges_;
};

// Exchanges [N, C, voxels] and [N, voxels, C].
std::vector<float> turned(const std::vector<float>& values, int64_t n, int64_t rows, int64_t columns) {
  std::vector<float> result(values.size());
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        result[static_cast<size_t>((s * columns + c) * rows + r)] =
            values[static_cast<size_t>((s * rows + r) * columns + c)];
      }
    }
  }
  return result;
}

void emit(const std::string& name, const Shape& shape, const std::vector<float>& values) {
  std::string line = name;
  for (const int64_t extent : shape) {
    line += concat(' ', extent);
  }
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fwrite(values.data(), sizeof(float), values.size(), stdout);
}

// An image [N, 1, H, W, C] as PyTorch's [N, C, H, W].
void emit_image(DeviceContext& context, const std::string& name, const Tensor& tensor) {
  const Shape& s = tensor.shape();
  emit(name, {s[0], s[4], s[2], s[3]}, turned(tensor.to_host<float>(context), s[0], s[2] * s[3], s[4]));
}

Tensor image(DeviceContext& context, const Numbers& numbers, const std::string& name) {
  const Shape& s = numbers.shape(name);
  return Tensor::from_host(context, turned(numbers.values(name, s), s[0], s[1], s[2] * s[3]),
                           {s[0], 1, s[2], s[3], s[1]});
}

void fill(DeviceContext& context, const Numbers& numbers, layers::ParameterStore& store) {
  for (const weights::NamedTensor& named : weights::named_parameters(store)) {
    if (named.constant != nullptr) {
      continue;
    }
    const std::vector<float> values = numbers.values(named.name, weights::file_shape(named));
    if (named.counter != nullptr) {
      *named.counter = static_cast<int64_t>(values[0]);
    } else {
      const std::vector<float> memory = weights::to_memory_order(values, named.tensor.shape(), named.layout);
      named.tensor.copy_from_host(context, memory.data(), memory.size() * sizeof(float));
    }
  }
  store.values_changed();
}

class Settings {
 public:
  Settings(int count, char** words) {
    for (int i = 0; i < count; ++i) {
      const std::string word = words[i];
      const size_t equals = word.find('=');
      values_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  const std::string& text(const std::string& key) const {
    const auto found = values_.find(key);
    check<UsageError>(found != values_.end(), "setting ", key, " is missing");
    return found->second;
  }
  int64_t number(const std::string& key) const { return std::stoll(text(key)); }

 private:
  std::map<std::string, std::string> values_;
};

// Runs f, which computes outputs from the inputs of these names, and its backward pass.
template <class F>
void run(DeviceContext& context, const Numbers& numbers, layers::ParameterStore& store, bool training,
         const std::vector<std::string>& inputs, F&& f) {
  fill(context, numbers, store);
  std::vector<Variable> leaves;
  for (const std::string& name : inputs) {
    leaves.push_back(Variable::leaf(image(context, numbers, "input." + name)));
  }
  Tape tape;
  std::vector<Variable> outputs;
  {
    const TapeScope scope(context, &tape);
    outputs = f(leaves);
    tape.record_loss("cotangents", {}, [&](DeviceContext& ctx, std::span<const Tensor>) {
      for (size_t i = 0; i < outputs.size(); ++i) {
        outputs[i].add_gradient(ctx, image(ctx, numbers, "cotangent." + std::to_string(i)));
      }
    });
  }
  tape.backward(context);
  for (size_t i = 0; i < outputs.size(); ++i) {
    emit_image(context, "output." + std::to_string(i), outputs[i].value());
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    emit_image(context, "grad.input." + inputs[i], leaves[i].gradient());
  }
  for (const auto& parameter : store.all()) {
    const Shape& shape = parameter->value.shape();
    std::vector<float> gradient(static_cast<size_t>(parameter->value.count()), 0.0f);
    if (parameter->gradient_written) {
      gradient = parameter->gradient.to_host<float>(context);
    }
    emit("grad." + parameter->name, weights::file_shape(shape, parameter->layout),
         weights::to_file_order(gradient, shape, parameter->layout));
  }
  if (training) {
    for (const auto& buffer : store.buffers()) {
      emit("after." + buffer->name, buffer->value.shape(), buffer->value.to_host<float>(context));
    }
    for (const auto& counter : store.counters()) {
      emit("after." + counter->name, {}, {static_cast<float>(counter->value)});
    }
  }
}

void compute(const char* device, const std::string& block, const Settings& settings) {
  DeviceContext context(parse_device(device));
  const Numbers numbers(std::cin, settings.text("seed"));
  const bool training = settings.number("training") != 0;
  const auto end_of = [&] {
    return settings.text("head") == "linear" ? models::HeadEnd::linear : models::HeadEnd::relu;
  };
  layers::ParameterStore store;
  const layers::ParameterBuilder builder(context, store, std::nullopt);
  using Variables = std::vector<Variable>;
  if (block == "network") {
    models::Fusion2dConfig config = models::fusion_2d_preset(settings.text("preset"));
    config.dropout = models::DecoderDropout::off;
    config.drop_path = 0.0f;
    models::Fusion2d model(context, config, std::nullopt);
    run(context, numbers, model.parameters(), training, {"semantic", "edge"}, [&](const Variables& x) {
      const models::Fusion2dOutputs outputs = model.forward(context, x[0], x[1], training);
      return Variables{outputs.segmentation, outputs.edges};
    });
  } else if (block == "shifted_patch") {
    const layers::ShiftedPatch patch =
        models::shifted_patch_2d(builder, settings.number("in"), settings.number("out"));
    run(context, numbers, store, training, {"x"},
        [&](const Variables& x) { return Variables{patch(context, x[0])}; });
  } else if (block == "swin_block") {
    const layers::SwinSettings swin{.channels = settings.number("channels"),
                                    .heads = static_cast<int>(settings.number("heads")),
                                    .window = {1, 7, 7},
                                    .padding = kernels::PaddingMode::attend,
                                    .shift_always = true};
    const layers::SwinBlock swin_block(builder, swin, settings.number("shifted") != 0, 0.0f);
    run(context, numbers, store, training, {"x"},
        [&](const Variables& x) { return Variables{swin_block(context, x[0], training)}; });
  } else if (block == "edge_encoder") {
    const models::EdgeEncoder2d encoder(builder);
    run(context, numbers, store, training, {"x"}, [&](const Variables& x) {
      const std::array<Variable, 4> maps = encoder(context, x[0], training);
      return Variables(maps.begin(), maps.end());
    });
  } else if (block == "esab") {
    const models::EdgeSpatialAttention esab(builder, settings.number("channels"), end_of(),
                                            end_of() == models::HeadEnd::linear ? 1e-12f : 0.0f);
    run(context, numbers, store, training, {"x"},
        [&](const Variables& x) { return Variables{esab(context, x[0], training)}; });
  } else if (block == "mfib") {
    const models::FusionLevel2d level(
        builder, settings.number("channels"), settings.number("out"),
        settings.text("layout") == "fixed" ? layers::MfibLayout::fixed : layers::MfibLayout::original);
    run(context, numbers, store, training, {"x", "y"}, [&](const Variables& x) {
      const auto [a, b] = level(context, x[0], x[1], training);
      return Variables{a, b};
    });
  } else if (block == "up") {
    const models::Up2d up(builder, settings.number("in"), settings.number("out"), end_of());
    run(context, numbers, store, training, {"x", "skip"},
        [&](const Variables& x) { return Variables{up(context, x[0], x[1], training)}; });
  } else {
    throw UsageError(concat("block ", block, " is unknown"));
  }
}

void import_strictly(const char* device, const char* path, const char* out, const Settings& settings) {
  DeviceContext context(parse_device(device));
  const Numbers numbers(std::cin, settings.text("seed"));
  const std::unique_ptr<models::Model> model = models::make_model(context, "fusion-2d", std::nullopt);
  const std::vector<weights::NamedTensor> tensors = weights::named_parameters(model->parameters());
  weights::load_tensors(context, *weights::open_weights(path), tensors);
  int64_t compared = 0, constants = 0;
  for (const weights::NamedTensor& named : tensors) {
    if (named.constant != nullptr) {
      ++constants;
      continue;
    }
    const std::vector<float> expected = numbers.values(named.name, weights::file_shape(named));
    const std::vector<float> found = named.counter != nullptr
                                         ? std::vector<float>{static_cast<float>(*named.counter)}
                                         : weights::to_file_order(named.tensor.to_host<float>(context),
                                                                  named.tensor.shape(), named.layout);
    check<FormatError>(
        named.counter != nullptr ? *named.counter == static_cast<int64_t>(expected[0]) : found == expected,
        named.name, ": other numbers than the script's");
    ++compared;
  }
  weights::write_tensors(context, out, tensors, model->metadata());
  std::printf("%lld tensors equal, %lld constants, %lld parameters\n", static_cast<long long>(compared),
              static_cast<long long>(constants), static_cast<long long>(model->parameters().count()));
}

void list_entries(const char* device) {
  DeviceContext context(parse_device(device));
  const std::unique_ptr<models::Model> model = models::make_model(context, "fusion-2d", std::nullopt);
  for (const weights::NamedTensor& named : weights::named_parameters(model->parameters())) {
    std::string line = named.name;
    for (const int64_t extent : weights::file_shape(named)) {
      line += concat(' ', extent);
    }
    std::puts(line.c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc >= 5 && std::string_view(argv[2]) == "import") {
      import_strictly(argv[1], argv[3], argv[4], Settings(argc - 5, argv + 5));
    } else if (argc >= 3 && std::string_view(argv[2]) == "entries") {
      list_entries(argv[1]);
    } else if (argc >= 3) {
      compute(argv[1], argv[2], Settings(argc - 3, argv + 3));
    } else {
      std::fprintf(stderr, "usage: fusion_2d_oracle cpu|simt|cuda BLOCK|import|entries ... < RANGES\n");
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fusion_2d_oracle: %s\n", error.what());
    return 1;
  }
  return 0;
}
