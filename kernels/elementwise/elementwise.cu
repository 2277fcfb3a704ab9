// Elementwise functions and their gradients. Each reads its inputs and writes its output once (8 to 12 bytes
// an element) and does 1 to about 40 operations on it: memory bandwidth limits all of them, once few enough
// instructions go beside the accesses and enough bytes are under way. So accesses take four elements, a
// thread has two of them (eight where a channel's number is shared by rows) in flight for each input, and a
// reciprocal replaces divisions by the same number. Tensors that are not aligned to four elements go one by
// one.
#include "base/philox.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/activations_device.hpp"
#include "kernels/context/device_loops.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/pack_loops.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/elementwise/elementwise.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

// Functions of one element each, as pack_loops.hpp wants them: a is the first input, b the second.

template <Unary kKind>
struct UnaryForward {
  static constexpr int kInputs = 1;
  float slope;
  VESAL_DEVICE float operator()(float x, float) const { return activated<kKind>(x, slope); }
};

template <Unary kKind>
struct UnaryBackward {
  static constexpr int kInputs = 2;
  float slope;
  VESAL_DEVICE float operator()(float x, float dy) const { return activation_gradient<kKind>(x, dy, slope); }
};

struct Copy {
  static constexpr int kInputs = 1;
  VESAL_DEVICE float operator()(float x, float) const { return x; }
};

struct Fill {
  static constexpr int kInputs = 0;
  float value;
  VESAL_DEVICE float operator()(float, float) const { return value; }
};

struct Add {
  static constexpr int kInputs = 2;
  VESAL_DEVICE float operator()(float a, float b) const { return a + b; }
};

struct ScaleAdd {
  static constexpr int kInputs = 2;
  float alpha, beta;
  VESAL_DEVICE int inputs() const { return beta == 0.0f ? 1 : 2; }
  VESAL_DEVICE float operator()(float x, float y) const {
    return beta == 0.0f ? alpha * x : alpha * x + beta * y;
  }
};

struct Multiply {
  static constexpr int kInputs = 2;
  VESAL_DEVICE float operator()(float a, float b) const { return a * b; }
};

struct GatedFactor {
  float gate, factor;
};

VESAL_DEVICE GatedFactor gated_factor(const float* scale, const float* gate, int64_t sample) {
  const float g = gate != nullptr ? gate[sample] : 1.0f;
  return {g, scale[0] * g};
}

struct ScaledAddForward {
  const float* scale;
  const float* gate;
  struct OfSample {
    static constexpr int kInputs = 2;
    GatedFactor s;
    VESAL_DEVICE int inputs() const { return s.gate == 0.0f ? 1 : 2; }
    VESAL_DEVICE float operator()(float a, float b) const { return s.gate == 0.0f ? a : a + s.factor * b; }
  };
  VESAL_DEVICE OfSample of(int64_t sample) const { return {gated_factor(scale, gate, sample)}; }
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

struct GateSamples {
  const float* gate;
  struct OfSample {
    static constexpr int kInputs = 1;
    float gate;
    VESAL_DEVICE int inputs() const { return gate == 0.0f ? 0 : 1; }
    VESAL_DEVICE float operator()(float x, float) const { return gate == 0.0f ? 0.0f : gate * x; }
  };
  VESAL_DEVICE OfSample of(int64_t sample) const { return {gate[sample]}; }
};

// One channel at a time (device_loops.hpp), or four of them (pack_loops.hpp): y = f(x, state of the channel).
template <class T>
struct AddSampleVector {
  const T* x;
  const T* v;
  T* y;
  int64_t channels;
  VESAL_DEVICE float prepare(int64_t sample, int64_t column) const {
    return widen(v[sample * channels + column]);
  }
  VESAL_DEVICE Floats<kPack> states(int64_t sample, int64_t column) const {
    return {prepare(sample, column), prepare(sample, column + 1), prepare(sample, column + 2),
            prepare(sample, column + 3)};
  }
  VESAL_DEVICE float operator()(float value, float added) const { return value + added; }
  VESAL_DEVICE void apply(float added, int64_t, int64_t i) const {
    y[i] = narrow<T>((*this)(widen(x[i]), added));
  }
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
  const T* x;
  T* y;
  int64_t channels;
  float probability, scale;
  uint64_t seed, step, op;
  VESAL_DEVICE float factor_of(uint32_t bits) const {
    return uniform_from_bits(bits) <= probability ? 0.0f : scale;
  }
  VESAL_DEVICE float prepare(int64_t sample, int64_t column) const {
    const auto drawn = static_cast<uint64_t>(sample * channels + column);
    const Philox4 bits = philox(seed, step, (op << 32) | (drawn / 4));
    const uint64_t word = drawn % 4;
    return factor_of(word == 0 ? bits.x : (word == 1 ? bits.y : (word == 2 ? bits.z : bits.w)));
  }
  VESAL_DEVICE Floats<kPack> states(int64_t sample, int64_t column) const {
    const auto drawn = static_cast<uint64_t>(sample * channels + column);  // a multiple of 4, as both are
    const Philox4 bits = philox(seed, step, (op << 32) | (drawn / 4));
    return {factor_of(bits.x), factor_of(bits.y), factor_of(bits.z), factor_of(bits.w)};
  }
  VESAL_DEVICE float operator()(float value, float factor) const {
    return factor == 0.0f ? 0.0f : factor * value;
  }
  VESAL_DEVICE void apply(float factor, int64_t, int64_t i) const {
    y[i] = narrow<T>((*this)(widen(x[i]), factor));
  }
};

template <class F, class T>
void launch_columns(StreamHandle stream, int64_t n, int64_t rows, int64_t channels, const F& f, const T* x,
                    T* y) {
  if (channels % kPack == 0 && can_pack(x, y)) {
    launch_pack_columns(stream, n, rows, channels, f, x, y);
  } else {
    launch_column_map(stream, n, rows, channels, f);
  }
}

// What a dropped-out element is multiplied with if it stays.
float kept_scale(float probability) { return probability < 1.0f ? 1.0f / (1.0f - probability) : 0.0f; }

}  // namespace

void unary_forward(Context& context, Unary kind, int64_t count, ConstData x, Data y, float slope) {
  with_storage("unary_forward", {x, y}, [&]<class T>(T) {
    AllActivations::choose(kind, [&](auto k) {
      launch_pack_map(context.stream(), 1, count, UnaryForward<decltype(k)::value>{slope},
                      y.as<T>("unary_forward: y"), x.as<T>("unary_forward: x"));
    });
  });
}

void unary_backward(Context& context, Unary kind, int64_t count, ConstData x, ConstData dy, Data dx,
                    float slope) {
  with_storage("unary_backward", {x, dy, dx}, [&]<class T>(T) {
    AllActivations::choose(kind, [&](auto k) {
      launch_pack_map(context.stream(), 1, count, UnaryBackward<decltype(k)::value>{slope},
                      dx.as<T>("unary_backward: dx"), x.as<T>("unary_backward: x"),
                      dy.as<T>("unary_backward: dy"));
    });
  });
}

void convert(Context& context, int64_t count, ConstData x, Data y) {
  with_storage("convert", {x}, [&]<class From>(From) {
    with_storage("convert", {y}, [&]<class To>(To) {
      launch_pack_map(context.stream(), 1, count, Copy{}, y.as<To>("convert: y"), x.as<From>("convert: x"));
    });
  });
}

void fill(Context& context, int64_t count, float value, Data y) {
  with_storage("fill", {y}, [&]<class T>(T) {
    launch_pack_map(context.stream(), 1, count, Fill{value}, y.as<T>("fill: y"),
                    static_cast<const T*>(nullptr));
  });
}

void add(Context& context, int64_t count, ConstData a, ConstData b, Data y) {
  with_storage("add", {a, b, y}, [&]<class T>(T) {
    launch_pack_map(context.stream(), 1, count, Add{}, y.as<T>("add: y"), a.as<T>("add: a"),
                    b.as<T>("add: b"));
  });
}

void scale_add(Context& context, int64_t count, float alpha, ConstData x, float beta, Data y) {
  with_storage("scale_add", {x, y}, [&]<class T>(T) {
    T* target = y.as<T>("scale_add: y");
    launch_pack_map(context.stream(), 1, count, ScaleAdd{alpha, beta}, target, x.as<T>("scale_add: x"),
                    target);
  });
}

void multiply(Context& context, int64_t count, ConstData a, ConstData b, Data y) {
  with_storage("multiply", {a, b, y}, [&]<class T>(T) {
    launch_pack_map(context.stream(), 1, count, Multiply{}, y.as<T>("multiply: y"), a.as<T>("multiply: a"),
                    b.as<T>("multiply: b"));
  });
}

void scaled_add_forward(Context& context, int64_t n, int64_t inner, ConstData a, ConstData b, ConstData scale,
                        ConstData gate, Data y) {
  with_storage("scaled_add_forward", {a, b, y}, [&]<class T>(T) {
    launch_pack_map(context.stream(), n, inner,
                    ScaledAddForward{scale.as<float>("scaled_add_forward: scale"),
                                     gate.as<float>("scaled_add_forward: gate")},
                    y.as<T>("scaled_add_forward: y"), a.as<T>("scaled_add_forward: a"),
                    b.as<T>("scaled_add_forward: b"));
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
    launch_pack_map(context.stream(), n, inner, GateSamples{gate.as<float>("gate_samples: gate")},
                    y.as<T>("gate_samples: y"), x.as<T>("gate_samples: x"));
  });
}

void add_sample_vector(Context& context, int64_t n, int64_t spatial, int64_t channels, ConstData x,
                       ConstData v, Data y) {
  with_storage("add_sample_vector", {x, v, y}, [&]<class T>(T) {
    const AddSampleVector<T> f{x.as<T>("add_sample_vector: x"), v.as<T>("add_sample_vector: v"),
                               y.as<T>("add_sample_vector: y"), channels};
    launch_columns(context.stream(), n, spatial, channels, f, f.x, f.y);
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
    const DropoutChannels<T> f{x.as<T>("dropout_channels: x"),
                               y.as<T>("dropout_channels: y"),
                               channels,
                               probability,
                               kept_scale(probability),
                               key.seed,
                               key.step,
                               key.op};
    launch_columns(context.stream(), n, spatial, channels, f, f.x, f.y);
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
