// MeshNet: a chain of 3x3x3 convolutions with growing and shrinking dilation that keep the volume's size, and
// a 1x1x1 head (Fedorov et al. 2017, "End-to-end learning of brain tissue segmentation from imperfect
// labeling", arXiv:1612.00940). Few channels, whole volumes.
//
//   x = volume
//   for each dilation r:  x = activation(norm(conv 3x3x3, dilation r, padding r (x)))
//   logits = conv 1x1x1 (x)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "layers/ops.hpp"
#include "models/segmenter.hpp"

namespace vesal::models {

struct MeshNetConfig {
  enum class Norm {
    none,
    channel,  // mean 0 and variance 1 over the voxels of each sample and channel (PyTorch's GroupNorm with as
              // many groups as channels), no affine map
  };
  // How PyTorch's modules are nested, which names the parameters.
  enum class Naming {
    flat,    // one sequence of convolutions and activations: "model.0.weight", "model.2.weight", ...
    blocks,  // one sequence of blocks, the convolution first in each: "model.0.0.weight", "model.1.0.weight",
             // ...
  };

  std::string preset = "meshnet-gw";
  int64_t in_channels = 1;
  int64_t channels = 5;
  int64_t classes = 3;
  std::vector<int> dilations{1, 2, 4, 8, 16, 8, 4, 2, 1};
  kernels::Activation activation = kernels::Activation::relu;  // relu, elu or gelu (by erf)
  bool bias = true;  // of the dilated convolutions; the head has one
  Norm norm = Norm::none;
  Naming naming = Naming::flat;
};

// The networks of brainchop: "meshnet-gw" (grey and white matter; its model5_gw_ae), "meshnet-18" (18
// classes; model18cls), "mindgrab" (brain mask). UsageError lists them for anything else.
MeshNetConfig meshnet_preset(std::string_view name);
std::vector<std::string> meshnet_preset_names();

// A configuration as the string map that weights carry, and back. FormatError names a missing or bad field.
ModelMetadata to_metadata(const MeshNetConfig& config);
MeshNetConfig meshnet_config_from_metadata(const ModelMetadata& metadata);

class MeshNet : public Segmenter {
 public:
  // Parameters are created on the context's device and start from `seed`, or hold nothing yet. Throws
  // UsageError for a configuration without layers, and for sizes below 1.
  MeshNet(DeviceContext& context, const MeshNetConfig& config, std::optional<uint64_t> seed);

  // Of any extent. Progress is told after each convolution. Without a tape at most two activations exist at a
  // time.
  Variable forward(DeviceContext& context, const Tensor& volume, const Options& options = {}) const override;
  int64_t in_channels() const override { return config_.in_channels; }
  int64_t classes() const override { return config_.classes; }

  const MeshNetConfig& config() const { return config_; }
  ModelMetadata metadata() const override { return to_metadata(config_); }

 private:
  struct Convolution {
    layers::Parameter* weight = nullptr;
    layers::Parameter* bias = nullptr;
    layers::ConvGeometry geometry;
  };
  static Convolution make_convolution(const layers::ParameterBuilder& builder, int64_t in, int64_t out,
                                      int kernel, int dilation, bool with_bias);

  MeshNetConfig config_;
  std::vector<Convolution> convolutions_;  // the head last
};

}  // namespace vesal::models
