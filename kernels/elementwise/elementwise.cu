// Elementwise functions and their gradients. Each reads its inputs and writes its output once (8 to 12 bytes
// an element) and does 1 to about 40 operations on it: memory bandwidth limits all of them. Threads of a warp
// take neighbouring elements, four independent ones each. No GPU timing exists yet: bench/results/README.md.
#include "base/philox.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/activations_device.hpp"
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/elementwise/elementwise.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

template <class T, Unary kKind>
struct UnaryForward {
  Input<T> x;
  Output<T> y;
  float slope;
  VESAL_DEVICE void operator()(int64_t i) const { y[i] = activated<kKind>(x[i], slope); }
};

template <class T, Unary kKind>
struct UnaryBackward {
  Input<T> x;
  Input<T> dy;
  Output<T> dx;
  float slope;
  VESAL_DEVICE void operator()(int64_t i) const { dx[i] = activation_gradient<kKind>(x[i], dy[i], slope); }
};

template <class From, class To>
struct Convert {
  Input<From> x;
  Output<To> y;
  VESAL_DEVICE void operator()(int64_t i) const { y[i] = x[i]; }
};

template <class T>
struct Fill {
  Output<T> y;
  float value;
  VESAL_DEVICE void operator()(int64_t i) const { y[i] = value; }
};

template <class T>
struct Add {
  Input<T> a;
  Input<T> b;
  Output<T> y;
  VESAL_DEVICE void operator()(int64_t i) const { y[i] = a[i] + b[i]; }
};

template <class T>
struct ScaleAdd {
  Input<T> x;
  Output<T> y;
  float alpha, beta;
  VESAL_DEVICE void operator()(int64_t i) const {
    y[i] = beta == 0.0f ? alpha * x[i] : alpha * x[i] + beta * y[i];
  }
};

template <class T>
struct Multiply {
  Input<T> a;
  Input<T> b;
  Output<T> y;
  VESAL_DEVICE void operator()(int64_t i) const { y[i] = a[i] * b[i]; }
};

struct GatedFactor {
  float gate, factor;
};

VESAL_DEVICE GatedFactor gated_factor(const float* scale, const float* gate, int64_t sample) {
  const float g = gate != nullptr ? gate[sample] : 1.0f;
  return {g, scale[0] * g};
}

template <class T>
struct ScaledAddForward {
  Input<T> a;
  Input<T> b;
  const float* scale;
  const float* gate;
  Output<T> y;
  VESAL_DEVICE GatedFactor prepare(int64_t sample, int64_t) const {
    return gated_factor(scale, gate, sample);
  }
  VESAL_DEVICE void apply(const GatedFactor& s, int64_t, int64_t i) const {
    y[i] = s.gate == 0.0f ? float(a[i]) : a[i] + s.factor * b[i];
  }
};

template <class T>
struct ScaledAddBackward {
  Input<T> b;
  const float* scale;
  const float* gate;
  Input<T> dy;
  Output<T> db;
  float* sample_sums;
  VESAL_DEVICE GatedFactor prepare(int64_t sample, int64_t) const {
    return gated_factor(scale, gate, sample);
  }
  VESAL_DEVICE void add(const GatedFactor& s, int64_t, int64_t i, float (&sums)[1]) const {
    const float d = dy[i];
    db[i] = s.factor * d;
    if (s.gate != 0.0f) {
      sums[0] += d * b[i];
    }
  }
  VESAL_DEVICE void finish(int64_t sample, int64_t, const float (&sums)[1]) const {
    sample_sums[sample] = (gate != nullptr ? gate[sample] : 1.0f) * sums[0];
  }
};

VESAL_KERNEL void sum_samples_kernel(int64_t n, const float* VESAL_RESTRICT sample_sums, bool accumulate,
                                     float* VESAL_RESTRICT target) {
  float total = accumulate ? target[0] : 0.0f;
  for (int64_t s = 0; s < n; ++s) {
    total += sample_sums[s];
  }
  target[0] = total;
}

template <class T>
struct GateSamples {
  const float* gate;
  Input<T> x;
  Output<T> y;
  VESAL_DEVICE float prepare(int64_t sample, int64_t) const { return gate[sample]; }
  VESAL_DEVICE void apply(float g, int64_t, int64_t i) const { y[i] = g == 0.0f ? 0.0f : g * x[i]; }
};

template <class T>
struct AddSampleVector {
  Input<T> x;
  Input<T> v;
  Output<T> y;
  int64_t channels;
  VESAL_DEVICE float prepare(int64_t sample, int64_t column) const { return v[sample * channels + column]; }
  VESAL_DEVICE void apply(float added, int64_t, int64_t i) const { y[i] = x[i] + added; }
};

VESAL_DEVICE float kept_or_dropped(float x, uint32_t bits, float probability, float scale) {
  return uniform_from_bits(bits) <= probability ? 0.0f : x * scale;
}

// Four elements a thread: one Philox block. kVector: float32, x and y aligned to 16 bytes.
template <class T, bool kVector>
VESAL_KERNEL void dropout_kernel(int64_t count, float probability, float scale, uint64_t seed, uint64_t step,
                                 uint64_t op, Input<T> x, Output<T> y) {
  const int64_t quad = static_cast<int64_t>(blockIdx.x) * kLoopThreads + threadIdx.x;
  const int64_t first = quad * 4;
  if (first >= count) {
    return;
  }
  const Philox4 bits = philox(seed, step, (op << 32) | static_cast<uint64_t>(quad));
  if constexpr (kVector) {
    if (first + 4 <= count) {
      const float4 v = reinterpret_cast<const float4*>(x)[quad];
      reinterpret_cast<float4*>(y)[quad] = make_float4(
          kept_or_dropped(v.x, bits.x, probability, scale), kept_or_dropped(v.y, bits.y, probability, scale),
          kept_or_dropped(v.z, bits.z, probability, scale), kept_or_dropped(v.w, bits.w, probability, scale));
      return;
    }
  }
  y[first] = kept_or_dropped(x[first], bits.x, probability, scale);
  if (first + 1 < count) {
    y[first + 1] = kept_or_dropped(x[first + 1], bits.y, probability, scale);
  }
  if (first + 2 < count) {
    y[first + 2] = kept_or_dropped(x[first + 2], bits.z, probability, scale);
  }
  if (first + 3 < count) {
    y[first + 3] = kept_or_dropped(x[first + 3], bits.w, probability, scale);
  }
}

template <class T>
struct DropoutChannels {
  Input<T> x;
  Output<T> y;
  int64_t channels;
  float probability, scale;
  uint64_t seed, step, op;
  VESAL_DEVICE float prepare(int64_t sample, int64_t column) const {
    const auto drawn = static_cast<uint64_t>(sample * channels + column);
    const Philox4 bits = philox(seed, step, (op << 32) | (drawn / 4));
    const uint64_t word = drawn % 4;
    const uint32_t mine = word == 0 ? bits.x : (word == 1 ? bits.y : (word == 2 ? bits.z : bits.w));
    return uniform_from_bits(mine) <= probability ? 0.0f : scale;
  }
  VESAL_DEVICE void apply(float factor, int64_t, int64_t i) const {
    y[i] = factor == 0.0f ? 0.0f : factor * x[i];
  }
};

// What a dropped-out element is multiplied with if it stays.
float kept_scale(float probability) { return probability < 1.0f ? 1.0f / (1.0f - probability) : 0.0f; }

}  // namespace

void unary_forward(Context& context, Unary kind, int64_t count, ConstData x, Data y, float slope) {
  with_storage("unary_forward", {x, y}, [&]<class T>(T) {
    AllActivations::choose(kind, [&](auto k) {
      launch_map(context.stream(), count,
                 UnaryForward<T, decltype(k)::value>{input<T>(x, "unary_forward: x"),
                                                     output<T>(y, "unary_forward: y"), slope});
    });
  });
}

void unary_backward(Context& context, Unary kind, int64_t count, ConstData x, ConstData dy, Data dx,
                    float slope) {
  with_storage("unary_backward", {x, dy, dx}, [&]<class T>(T) {
    AllActivations::choose(kind, [&](auto k) {
      launch_map(context.stream(), count,
                 UnaryBackward<T, decltype(k)::value>{input<T>(x, "unary_backward: x"),
                                                      input<T>(dy, "unary_backward: dy"),
                                                      output<T>(dx, "unary_backward: dx"), slope});
    });
  });
}

void convert(Context& context, int64_t count, ConstData x, Data y) {
  with_storage("convert", {x}, [&]<class From>(From) {
    with_storage("convert", {y}, [&]<class To>(To) {
      launch_map(context.stream(), count,
                 Convert<From, To>{input<From>(x, "convert: x"), output<To>(y, "convert: y")});
    });
  });
}

void fill(Context& context, int64_t count, float value, Data y) {
  with_storage("fill", {y}, [&]<class T>(T) {
    launch_map(context.stream(), count, Fill<T>{output<T>(y, "fill: y"), value});
  });
}

void add(Context& context, int64_t count, ConstData a, ConstData b, Data y) {
  with_storage("add", {a, b, y}, [&]<class T>(T) {
    launch_map(context.stream(), count,
               Add<T>{input<T>(a, "add: a"), input<T>(b, "add: b"), output<T>(y, "add: y")});
  });
}

void scale_add(Context& context, int64_t count, float alpha, ConstData x, float beta, Data y) {
  with_storage("scale_add", {x, y}, [&]<class T>(T) {
    launch_map(context.stream(), count,
               ScaleAdd<T>{input<T>(x, "scale_add: x"), output<T>(y, "scale_add: y"), alpha, beta});
  });
}

void multiply(Context& context, int64_t count, ConstData a, ConstData b, Data y) {
  with_storage("multiply", {a, b, y}, [&]<class T>(T) {
    launch_map(
        context.stream(), count,
        Multiply<T>{input<T>(a, "multiply: a"), input<T>(b, "multiply: b"), output<T>(y, "multiply: y")});
  });
}

void scaled_add_forward(Context& context, int64_t n, int64_t inner, ConstData a, ConstData b, ConstData scale,
                        ConstData gate, Data y) {
  with_storage("scaled_add_forward", {a, b, y}, [&]<class T>(T) {
    launch_column_map(context.stream(), n, inner, 1,
                      ScaledAddForward<T>{
                          input<T>(a, "scaled_add_forward: a"), input<T>(b, "scaled_add_forward: b"),
                          scale.as<float>("scaled_add_forward: scale"),
                          gate.as<float>("scaled_add_forward: gate"), output<T>(y, "scaled_add_forward: y")});
  });
}

void scaled_add_backward(Context& context, int64_t n, int64_t inner, ConstData b, ConstData scale,
                         ConstData gate, ConstData dy, Data db, Data dscale, GradMode mode,
                         Workspace workspace) {
  auto* partials = static_cast<float*>(workspace.data);
  float* sample_sums = partials + n * slab_count(inner);
  with_storage("scaled_add_backward", {b, dy, db}, [&]<class T>(T) {
    launch_column_sums<1>(context.stream(), n, inner, 1, partials,
                          ScaledAddBackward<T>{input<T>(b, "scaled_add_backward: b"),
                                               scale.as<float>("scaled_add_backward: scale"),
                                               gate.as<float>("scaled_add_backward: gate"),
                                               input<T>(dy, "scaled_add_backward: dy"),
                                               output<T>(db, "scaled_add_backward: db"), sample_sums});
  });
  launch(context.stream(), {.grid = {1, 1, 1}, .block = {1, 1, 1}}, sum_samples_kernel, n,
         static_cast<const float*>(sample_sums), mode == GradMode::accumulate,
         dscale.as<float>("scaled_add_backward: dscale"));
}

void gate_samples(Context& context, int64_t n, int64_t inner, ConstData gate, ConstData x, Data y) {
  with_storage("gate_samples", {x, y}, [&]<class T>(T) {
    launch_column_map(context.stream(), n, inner, 1,
                      GateSamples<T>{gate.as<float>("gate_samples: gate"), input<T>(x, "gate_samples: x"),
                                     output<T>(y, "gate_samples: y")});
  });
}

void add_sample_vector(Context& context, int64_t n, int64_t spatial, int64_t channels, ConstData x,
                       ConstData v, Data y) {
  with_storage("add_sample_vector", {x, v, y}, [&]<class T>(T) {
    launch_column_map(
        context.stream(), n, spatial, channels,
        AddSampleVector<T>{input<T>(x, "add_sample_vector: x"), input<T>(v, "add_sample_vector: v"),
                           output<T>(y, "add_sample_vector: y"), channels});
  });
}

void dropout(Context& context, int64_t count, float probability, const DropoutKey& key, ConstData x, Data y) {
  const LaunchConfig config{.grid = {ceil_div(count, 4 * kLoopThreads), 1, 1}, .block = {kLoopThreads, 1, 1}};
  with_storage("dropout", {x, y}, [&]<class T>(T) {
    const auto run = [&](auto kernel) {
      launch(context.stream(), config, kernel, count, probability, kept_scale(probability), key.seed,
             key.step, key.op, input<T>(x, "dropout: x"), output<T>(y, "dropout: y"));
    };
    if constexpr (std::is_same_v<T, float>) {
      const auto address = reinterpret_cast<uintptr_t>(x.pointer) | reinterpret_cast<uintptr_t>(y.pointer);
      if (address % 16 == 0) {
        return run(dropout_kernel<T, true>);
      }
    }
    run(dropout_kernel<T, false>);
  });
}

void dropout_channels(Context& context, int64_t n, int64_t spatial, int64_t channels, float probability,
                      const DropoutKey& key, ConstData x, Data y) {
  with_storage("dropout_channels", {x, y}, [&]<class T>(T) {
    launch_column_map(
        context.stream(), n, spatial, channels,
        DropoutChannels<T>{input<T>(x, "dropout_channels: x"), output<T>(y, "dropout_channels: y"), channels,
                           probability, kept_scale(probability), key.seed, key.step, key.op});
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
