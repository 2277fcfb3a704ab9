// Runs MeshNet forward and backward with random numbers everywhere and writes all that took part to a
// safetensors file, for meshnet.py to compute again: meshnet_oracle DEVICE PRESET FILE.
#include <cstdio>
#include <cstring>

#include "base/philox.hpp"
#include "models/meshnet.hpp"
#include "weights_tools/parameters.hpp"
#include "weights_tools/safetensors.hpp"

namespace {

using namespace vesal;

void dump(const char* device, const char* preset, const char* path) {
  DeviceContext context(parse_device(device));
  models::MeshNetConfig config = models::meshnet_preset(preset);
  // Every dilation once on an extent that the largest passes.
  config.dilations = {1, 2, 4, 8, 3};
  models::MeshNet model(context, config, 11);
  const Shape shape{2, 10, 9, 11, 1};
  RandomStream random(6, 0, 0);
  const auto draw = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      value = random.normal();
    }
    return values;
  };
  const std::vector<float> volume = draw(element_count(shape));
  Tape tape;
  Variable logits;
  std::vector<float> upstream;
  {
    const TapeScope scope(context, &tape);
    logits = model.forward(context, Tensor::from_host(context, volume, shape));
    upstream = draw(logits.value().count());
    logits.add_gradient(context, Tensor::from_host(context, upstream, logits.shape()));
  }
  tape.backward(context);

  std::vector<weights::TensorSource> tensors;
  const auto add = [&](const std::string& name, Shape extent, const std::vector<float>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    tensors.push_back({name, DType::f32, std::move(extent),
                       [copy = std::vector<std::byte>(bytes.begin(), bytes.end())] { return copy; }});
  };
  for (const auto& parameter : model.parameters().all()) {
    const Shape& memory = parameter->value.shape();
    const Shape file = weights::file_shape(memory, parameter->layout);
    add("param." + parameter->name, file,
        weights::to_file_order(parameter->value.to_host<float>(context), memory, parameter->layout));
    add("grad." + parameter->name, file,
        weights::to_file_order(parameter->gradient.to_host<float>(context), memory, parameter->layout));
  }
  add("volume", shape, volume);
  add("upstream", logits.shape(), upstream);
  add("logits", logits.shape(), logits.value().to_host<float>(context));
  weights::write_safetensors(path, std::move(tensors), model.metadata());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: meshnet_oracle cpu|simt|cuda PRESET FILE.safetensors\n");
    return 2;
  }
  try {
    dump(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "meshnet_oracle: %s\n", error.what());
    return 1;
  }
  return 0;
}
