// Runs a small network through the installed library; exit code 0 when its output is what it should be.
#include <cmath>
#include <iostream>
#include <vector>

#include "models/fusion.hpp"
#include "runtime/device_context.hpp"

int main() {
  vesal::DeviceContext context(vesal::Device{});
  const vesal::models::Fusion network(context, vesal::models::fusion_preset("fusion-micro"), 1);
  std::vector<float> voxels(16 * 16 * 16 * 4);
  for (size_t i = 0; i < voxels.size(); ++i) {
    voxels[i] = std::sin(0.01f * static_cast<float>(i));
  }
  const vesal::Tensor volume = vesal::Tensor::from_host(context, voxels, {1, 16, 16, 16, 4});
  const vesal::models::ModalityMask all{1, 1, 1, 1};
  const vesal::models::FusionOutputs outputs = network.forward(context, volume, std::span(&all, 1), {});
  const std::vector<float> logits = outputs.segmentation.value().to_host<float>(context);
  for (const float logit : logits) {
    if (!std::isfinite(logit)) {
      std::cerr << "a logit is not finite\n";
      return 1;
    }
  }
  std::cout << network.parameters().count() << " parameters, " << logits.size() << " logits\n";
  return logits.size() == 16 * 16 * 16 * 3 ? 0 : 1;
}
