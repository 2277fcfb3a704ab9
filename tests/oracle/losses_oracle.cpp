// Evaluates losses with their gradients and steps of every optimiser, and writes what went in and what came
// out for losses.py to compute again: losses_oracle DEVICE FOLDER. A line of index.txt is one case, KIND
// followed by KEY=VALUE; its tensors lie one after the other as float32 in NUMBER.f32, in the order that
// losses.py reads.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include "base/philox.hpp"
#include "layers/losses.hpp"
#include "layers/optimizer.hpp"

namespace {

using namespace vesal;
using namespace vesal::layers;

const Shape kShape{2, 3, 4, 5, 4};
constexpr int64_t kChannels = 4;
constexpr float kWeight = 0.6f;

class Oracle {
 public:
  Oracle(const char* device, std::filesystem::path folder)
      : context_(parse_device(device)), folder_(std::move(folder)), index_(folder_ / "index.txt") {}

  void run() {
    cross_entropies();
    overlaps();
    distillations();
    pointwise_losses();
    optimizers();
    check<IoError>(index_.flush().good(), folder_.string(), ": cannot write index.txt");
  }

 private:
  template <class... Parts>
  void begin(const Parts&... parts) {
    index_ << concat(parts...) << '\n';
    data_ = std::ofstream(folder_ / concat(number_++, ".f32"), std::ios::binary);
  }
  void add(const std::vector<float>& values) {
    data_.write(reinterpret_cast<const char*>(values.data()),
                static_cast<std::streamsize>(values.size() * sizeof(float)));
    check<IoError>(data_.flush().good(), folder_.string(), ": cannot write a case");
  }
  void add(const Tensor& tensor) {
    if (tensor.dtype() == DType::u8) {
      const std::vector<uint8_t> bytes = tensor.to_host<uint8_t>(context_);
      add(std::vector<float>(bytes.begin(), bytes.end()));
    } else {
      add(tensor.to_host<float>(context_));
    }
  }
  // The loss and the gradient that the tape gives x.
  template <class Loss>
  void add_result(const Tensor& x, const Loss& loss) {
    Tape tape;
    const Variable leaf = Variable::leaf(x);
    Tensor value;
    {
      const TapeScope scope(context_, &tape);
      value = loss(leaf);
    }
    tape.backward(context_);
    add(value);
    add(leaf.gradient());
  }

  Tensor normal(Shape shape, float scale = 2.0f) {
    std::vector<float> values(static_cast<size_t>(element_count(shape)));
    for (float& value : values) {
      value = scale * random_.normal();
    }
    return Tensor::from_host(context_, values, std::move(shape));
  }
  Tensor positive(Shape shape) {
    std::vector<float> values(static_cast<size_t>(element_count(shape)));
    for (float& value : values) {
      value = 0.25f + 0.01f * static_cast<float>(random_.below(200));
    }
    return Tensor::from_host(context_, values, std::move(shape));
  }
  // Numbers below `classes`, some of them `ignored` unless that is negative.
  Tensor labels(Shape shape, int64_t classes, int ignored) {
    std::vector<uint8_t> values(static_cast<size_t>(element_count(shape)));
    for (uint8_t& value : values) {
      const bool ignore = ignored >= 0 && random_.below(4) == 0;
      value = static_cast<uint8_t>(ignore ? ignored : random_.below(classes));
    }
    return Tensor::from_host(context_, values, std::move(shape));
  }

  void cross_entropies() {
    for (const int ignored : {-1, 255, 2}) {
      for (const float smoothing : {0.0f, 0.1f}) {
        for (const float gamma : {0.0f, 2.0f}) {
          for (const bool weighted : {false, true}) {
            begin("cross_entropy ignore=", ignored, " smoothing=", smoothing, " gamma=", gamma,
                  " weighted=", weighted ? 1 : 0);
            CrossEntropySettings settings{
                .ignore_label = ignored, .label_smoothing = smoothing, .focal_gamma = gamma};
            const Tensor logits = normal(kShape);
            const Tensor target = labels({2, 3, 4, 5}, kChannels, ignored);
            add(logits);
            add(target);
            if (weighted) {
              settings.class_weights = positive({kChannels});
              add(settings.class_weights);
            }
            add_result(logits, [&](const Variable& x) {
              return cross_entropy_loss(context_, x, target, settings, kWeight);
            });
          }
        }
      }
    }
  }

  void overlaps() {
    for (const kernels::Overlap kind : {kernels::Overlap::dice, kernels::Overlap::iou}) {
      for (const bool softmax : {true, false}) {
        for (const bool batch : {false, true}) {
          for (const int first : {0, 1}) {
            for (const int ignored : {-1, 255}) {
              begin("overlap iou=", kind == kernels::Overlap::iou ? 1 : 0, " softmax=", softmax ? 1 : 0,
                    " batch=", batch ? 1 : 0, " first=", first, " ignore=", ignored, " smooth=", 0.5f);
              const OverlapLossSettings settings{.kind = kind,
                                                 .softmax = softmax,
                                                 .first_channel = first,
                                                 .ignore_label = ignored,
                                                 .smooth = 0.5f,
                                                 .batch = batch};
              const Tensor logits = normal(kShape);
              const Tensor target =
                  softmax ? labels({2, 3, 4, 5}, kChannels, ignored) : labels(kShape, 2, ignored);
              add(logits);
              add(target);
              add_result(logits, [&](const Variable& x) {
                return overlap_loss(context_, x, target, settings, kWeight);
              });
            }
          }
        }
      }
    }
  }

  void distillations() {
    for (const float temperature : {1.0f, 3.0f}) {
      begin("distillation temperature=", temperature);
      const Tensor student = normal(kShape);
      const Tensor teacher = normal(kShape);
      add(student);
      add(teacher);
      add_result(student, [&](const Variable& x) {
        return distillation_loss(context_, x, teacher, temperature, kWeight);
      });
    }
  }

  void pointwise_losses() {
    using Kind = kernels::PointwiseLoss;
    struct Case {
      const char* name;
      PointwiseLossSettings settings;
    };
    const Case cases[] = {{"l1", {.kind = Kind::l1}},
                          {"smooth_l1", {.kind = Kind::smooth_l1, .beta = 0.5f}},
                          {"l2", {.kind = Kind::l2}},
                          {"bce", {.kind = Kind::bce}},
                          {"bce", {.kind = Kind::bce, .gamma = 2.0f, .alpha = 0.25f}},
                          {"bce", {.kind = Kind::bce, .gamma = 1.5f}}};
    for (const Case& c : cases) {
      for (const bool weighted : {false, true}) {
        PointwiseLossSettings settings = c.settings;
        const bool bce = settings.kind == Kind::bce;
        begin("pointwise kind=", c.name, " beta=", settings.beta, " gamma=", settings.gamma,
              " alpha=", settings.alpha, " weighted=", weighted ? 1 : 0);
        const Tensor x = normal(kShape);
        const Tensor target = bce ? labels(kShape, 2, -1) : normal(kShape);
        add(x);
        add(target);
        if (weighted) {
          settings.element_weights = positive(kShape);
          settings.channel_weights = positive({kChannels});
          settings.positive_weights = bce ? positive({kChannels}) : Tensor();
          add(settings.element_weights);
          add(settings.channel_weights);
          if (bce) {
            add(settings.positive_weights);
          }
        }
        add_result(x,
                   [&](const Variable& v) { return pointwise_loss(context_, v, target, settings, kWeight); });
      }
    }
  }

  // Ten steps: parameters at the start; then for each step the gradient, the parameters and their moving
  // average.
  template <class Make>
  void optimize(const Make& make) {
    constexpr float kDecay = 0.8f;
    ParameterStore store;
    const ParameterBuilder builder(context_, store, 5);
    Parameter* parameter = builder.uniform("weight", {37}, 1.0f, true);
    const auto optimizer = make(store);
    Ema ema(context_, store, {.decay = kDecay, .warm_up = false});
    add(parameter->value);
    for (int step = 0; step < 10; ++step) {
      const Tensor gradient = normal({37}, step % 3 == 0 ? 1.0f : 0.1f);
      add(gradient);
      parameter->gradient.copy_from_host(context_, gradient.to_host<float>(context_).data(),
                                         gradient.bytes());
      parameter->gradient_written = true;
      optimizer->step(context_, 0.01f);
      ema.step(context_, &optimizer->gradient_norm());
      add(parameter->value);
      add(ema.average(0));
    }
  }

  void optimizers() {
    for (const float max_norm : {0.0f, 2.0f}) {
      for (const float decay : {0.0f, 0.1f}) {
        for (const bool l2 : {false, true}) {
          for (const bool amsgrad : {false, true}) {
            begin("optimizer rule=", l2 ? "adam" : "adamw", " decay=", decay, " max_norm=", max_norm,
                  " amsgrad=", amsgrad ? 1 : 0);
            optimize([&](ParameterStore& store) {
              return std::make_unique<AdamW>(
                  context_, store,
                  AdamWSettings{.weight_decay = decay,
                                .max_norm = max_norm,
                                .amsgrad = amsgrad,
                                .decay = l2 ? kernels::WeightDecay::l2 : kernels::WeightDecay::decoupled});
            });
          }
        }
        for (const float momentum : {0.0f, 0.99f}) {
          for (const bool nesterov : {false, true}) {
            if (nesterov && momentum == 0.0f) {
              continue;
            }
            begin("optimizer rule=sgd decay=", decay, " max_norm=", max_norm, " momentum=", momentum,
                  " nesterov=", nesterov ? 1 : 0);
            optimize([&](ParameterStore& store) {
              return std::make_unique<Sgd>(context_, store,
                                           SgdSettings{.momentum = momentum,
                                                       .nesterov = nesterov,
                                                       .weight_decay = decay,
                                                       .max_norm = max_norm});
            });
          }
        }
      }
    }
  }

  DeviceContext context_;
  std::filesystem::path folder_;
  std::ofstream index_, data_;
  int number_ = 0;
  RandomStream random_{11, 0, 0};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: losses_oracle DEVICE FOLDER\n");
    return 1;
  }
  try {
    Oracle(argv[1], argv[2]).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "losses_oracle: %s\n", error.what());
    return 1;
  }
}
