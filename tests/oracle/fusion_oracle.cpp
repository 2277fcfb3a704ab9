// Runs one training step of fusion-micro without an optimiser and writes everything that took part to a safetensors file,
// for fusion.py to compute again: fusion_oracle DEVICE EDGE_WEIGHTS FILE.
#include <cstdio>
#include <cstring>

#include "base/philox.hpp"
#include "models/fusion.hpp"
#include "weights_tools/parameters.hpp"
#include "weights_tools/safetensors.hpp"

namespace {

using namespace vesal;

void dump(const char* device_name, std::string_view edge_weights, const char* path) {
  DeviceContext context(parse_device(device_name));
  models::FusionConfig config = models::fusion_preset("fusion-micro");
  config.edge_weights =
      edge_weights == "attention" ? layers::EdgeWeights::attention : layers::EdgeWeights::symmetric;
  models::Fusion model(context, config, 21);

  // Parameters that start as zeros or ones would hide mistakes: move all of them a little.
  RandomStream random(5, 0, 0);
  for (const auto& parameter : model.parameters().all()) {
    std::vector<float> values = parameter->value.to_host<float>(context);
    for (float& value : values) {
      value += 0.05f * random.normal();
    }
    parameter->value.copy_from_host(context, values.data(), values.size() * sizeof(float));
  }

  const std::vector<models::ModalityMask> masks{{1, 0, 1, 0}, {1, 1, 1, 1}};
  const Shape extent{2, 32, 32, 16};
  const int64_t voxels = element_count(extent);
  std::vector<float> volume(static_cast<size_t>(voxels * models::kModalities));
  std::vector<uint8_t> labels(static_cast<size_t>(voxels));
  for (float& value : volume) {
    value = random.normal();
  }
  for (int64_t i = 0; i < voxels; ++i) {
    const int64_t x = i % 16, y = i / 16 % 32, z = i / 512 % 32;
    const int64_t r = (x - 8) * (x - 8) + (y - 14) * (y - 14) + (z - 15) * (z - 15);
    labels[static_cast<size_t>(i)] = r < 9 ? 1 : r < 20 ? 3 : r < 40 ? 2 : 0;
  }
  Shape volume_shape = extent;
  volume_shape.push_back(models::kModalities);
  const Tensor input = Tensor::from_host(context, volume, volume_shape);
  const Tensor target = Tensor::from_host(context, labels, extent);

  Tape tape;
  models::FusionOutputs outputs;
  models::FusionLoss loss;
  {
    const TapeScope scope(context, &tape);
    outputs = model.forward(context, input, masks, {.training = true, .edges = true});
    loss = models::fusion_loss(context, outputs, target, {});
  }
  tape.backward(context);

  std::vector<weights::TensorSource> tensors;
  const auto add = [&](const std::string& name, DType dtype, Shape shape, const void* data, size_t bytes) {
    std::vector<std::byte> copy(bytes);
    std::memcpy(copy.data(), data, bytes);
    tensors.push_back({name, dtype, std::move(shape), [copy] { return copy; }});
  };
  const auto add_floats = [&](const std::string& name, const Tensor& tensor) {
    const std::vector<float> values = tensor.to_host<float>(context);
    add(name, DType::f32, tensor.shape(), values.data(), values.size() * sizeof(float));
  };
  for (const auto& parameter : model.parameters().all()) {
    const Shape& shape = parameter->value.shape();
    const Shape stored = weights::file_shape(shape, parameter->layout);
    std::vector<float> gradient(static_cast<size_t>(parameter->value.count()), 0.0f);
    if (parameter->gradient_written) {
      gradient = parameter->gradient.to_host<float>(context);
    }
    for (const auto& [prefix, memory] : {std::pair{"param.", parameter->value.to_host<float>(context)},
                                         std::pair{"grad.", gradient}}) {
      const std::vector<float> values = weights::to_file_order(memory, shape, parameter->layout);
      add(prefix + parameter->name, DType::f32, stored, values.data(), values.size() * sizeof(float));
    }
  }
  add("input.volume", DType::f32, volume_shape, volume.data(), volume.size() * sizeof(float));
  add("input.labels", DType::u8, extent, labels.data(), labels.size());
  add("input.mask", DType::u8, {2, models::kModalities}, masks.data(), sizeof(masks[0]) * masks.size());
  add_floats("output.segmentation", outputs.segmentation.value());
  add_floats("output.edges", outputs.edges.value());
  add_floats("loss.segmentation", loss.segmentation);
  add_floats("loss.edge", loss.edge);
  for (size_t i = 0; i < outputs.deep.size(); ++i) {
    add_floats("output.deep." + std::to_string(i), outputs.deep[i].value());
    add_floats("loss.deep." + std::to_string(i), loss.deep[i]);
  }
  weights::write_safetensors(path, std::move(tensors), models::to_metadata(config));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: fusion_oracle cpu|simt|cuda symmetric|attention FILE.safetensors\n");
    return 2;
  }
  try {
    dump(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fusion_oracle: %s\n", error.what());
    return 1;
  }
  return 0;
}
