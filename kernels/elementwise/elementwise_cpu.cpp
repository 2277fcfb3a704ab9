// Elementwise functions on the CPU: vectorised loops over even pieces of the data.
#include <algorithm>

#include "base/parallel.hpp"
#include "base/philox.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/activations_cpu.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/wide_rows.hpp"
#include "kernels/elementwise/elementwise.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements below which a second thread does not pay

// body(i) for every i < count; iterations are independent.
template <class Body>
void map(int64_t count, Body body) {
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      body(i);
    }
  });
}

// What a dropped-out element is multiplied with if it stays.
float kept_scale(float probability) { return probability < 1.0f ? 1.0f / (1.0f - probability) : 0.0f; }

}  // namespace

void unary_forward(Context&, Unary kind, int64_t count, ConstData x_, Data y_, float slope) {
  with_storage("unary_forward", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "unary_forward: x");
    const auto y = output<T>(y_, "unary_forward: y");
    AllActivations::choose(kind, [&](auto k) {
      map(count, [=](int64_t i) { y[i] = activated<decltype(k)::value>(x[i], slope); });
    });
  });
}

void unary_backward(Context&, Unary kind, int64_t count, ConstData x_, ConstData dy_, Data dx_, float slope) {
  with_storage("unary_backward", {x_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "unary_backward: x");
    const auto dy = input<T>(dy_, "unary_backward: dy");
    const auto dx = output<T>(dx_, "unary_backward: dx");
    AllActivations::choose(kind, [&](auto k) {
      map(count, [=](int64_t i) { dx[i] = activation_gradient<decltype(k)::value>(x[i], dy[i], slope); });
    });
  });
}

void convert(Context&, int64_t count, ConstData x_, Data y_) {
  with_storage("convert", {x_}, [&]<class From>(From) {
    with_storage("convert", {y_}, [&]<class To>(To) {
      map(count,
          [x = input<From>(x_, "convert: x"), y = output<To>(y_, "convert: y")](int64_t i) { y[i] = x[i]; });
    });
  });
}

void fill(Context&, int64_t count, float value, Data y_) {
  with_storage("fill", {y_}, [&]<class T>(T) {
    map(count, [=, y = output<T>(y_, "fill: y")](int64_t i) { y[i] = value; });
  });
}

void add(Context&, int64_t count, ConstData a_, ConstData b_, Data y_) {
  with_storage("add", {a_, b_, y_}, [&]<class T>(T) {
    map(count, [a = input<T>(a_, "add: a"), b = input<T>(b_, "add: b"),
                y = output<T>(y_, "add: y")](int64_t i) { y[i] = a[i] + b[i]; });
  });
}

void scale_add(Context&, int64_t count, float alpha, ConstData x_, float beta, Data y_) {
  with_storage("scale_add", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "scale_add: x");
    const auto y = output<T>(y_, "scale_add: y");
    if (beta == 0.0f) {
      map(count, [=](int64_t i) { y[i] = alpha * x[i]; });
    } else {
      map(count, [=](int64_t i) { y[i] = alpha * x[i] + beta * y[i]; });
    }
  });
}

void multiply(Context&, int64_t count, ConstData a_, ConstData b_, Data y_) {
  with_storage("multiply", {a_, b_, y_}, [&]<class T>(T) {
    map(count, [a = input<T>(a_, "multiply: a"), b = input<T>(b_, "multiply: b"),
                y = output<T>(y_, "multiply: y")](int64_t i) { y[i] = a[i] * b[i]; });
  });
}

void scaled_add_forward(Context&, int64_t n, int64_t inner, ConstData a_, ConstData b_, ConstData scale_,
                        ConstData gate_, Data y_) {
  with_storage("scaled_add_forward", {a_, b_, y_}, [&]<class T>(T) {
    const float* scale = scale_.as<float>("scaled_add_forward: scale");
    const float* gate = gate_.as<float>("scaled_add_forward: gate");
    for (int64_t s = 0; s < n; ++s) {
      const auto a = input<T>(a_, "scaled_add_forward: a") + s * inner;
      const auto b = input<T>(b_, "scaled_add_forward: b") + s * inner;
      const auto y = output<T>(y_, "scaled_add_forward: y") + s * inner;
      const float factor = scale[0] * (gate ? gate[s] : 1.0f);
      if (gate && gate[s] == 0.0f) {
        map(inner, [=](int64_t i) { y[i] = a[i]; });
      } else {
        map(inner, [=](int64_t i) { y[i] = a[i] + factor * b[i]; });
      }
    }
  });
}

void scaled_add_backward(Context&, int64_t n, int64_t inner, ConstData b_, ConstData scale_, ConstData gate_,
                         ConstData dy_, Data db_, Data dscale_, GradMode mode, Workspace workspace) {
  with_storage("scaled_add_backward", {b_, dy_, db_}, [&]<class T>(T) {
    const auto b = input<T>(b_, "scaled_add_backward: b");
    const float* scale = scale_.as<float>("scaled_add_backward: scale");
    const float* gate = gate_.as<float>("scaled_add_backward: gate");
    const auto dy = input<T>(dy_, "scaled_add_backward: dy");
    const auto db = output<T>(db_, "scaled_add_backward: db");
    float* dscale = dscale_.as<float>("scaled_add_backward: dscale");
    auto* partials = static_cast<double*>(workspace.data);
    column_partials<1>(n, inner, 1, partials, [&](int64_t sample) {
      const float g = gate ? gate[sample] : 1.0f;
      const float factor = scale[0] * g;
      return [=](int64_t i, int64_t, auto add) {
        const float d = dy[i];
        db[i] = factor * d;
        add(0, g == 0.0f ? 0.0f : d * b[i]);
      };
    });
    double total = 0;
    column_totals<1>(n, inner, 1, partials, [&](int64_t sample, int64_t, const std::array<double, 1>& sums) {
      total += (gate ? gate[sample] : 1.0f) * sums[0];
    });
    *dscale = static_cast<float>(mode == GradMode::accumulate ? *dscale + total : total);
  });
}

void gate_samples(Context&, int64_t n, int64_t inner, ConstData gate_, ConstData x_, Data y_) {
  with_storage("gate_samples", {x_, y_}, [&]<class T>(T) {
    const float* gate = gate_.as<float>("gate_samples: gate");
    for (int64_t s = 0; s < n; ++s) {
      const auto x = input<T>(x_, "gate_samples: x") + s * inner;
      const auto y = output<T>(y_, "gate_samples: y") + s * inner;
      const float g = gate[s];
      if (g == 0.0f) {
        map(inner, [=](int64_t i) { y[i] = 0.0f; });
      } else {
        map(inner, [=](int64_t i) { y[i] = g * x[i]; });
      }
    }
  });
}

void add_sample_vector(Context&, int64_t n, int64_t spatial, int64_t channels, ConstData x_, ConstData v_,
                       Data y_) {
  with_storage("add_sample_vector", {x_, v_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "add_sample_vector: x");
    const auto v = input<T>(v_, "add_sample_vector: v");
    const auto y = output<T>(y_, "add_sample_vector: y");
    column_map(n, spatial, channels, [&](int64_t sample) {
      return [=, added = repeat_channels(channels, [&](int64_t c) { return v[sample * channels + c]; })](
                 int64_t i, int64_t j) { y[i] = x[i] + added[static_cast<size_t>(j)]; };
    });
  });
}

void dropout(Context&, int64_t count, float probability, const DropoutKey& key, ConstData x_, Data y_) {
  with_storage("dropout", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "dropout: x");
    const auto y = output<T>(y_, "dropout: y");
    const float scale = kept_scale(probability);
    constexpr int64_t kChunk = 256;
    parallel_for(ceil_div(count, kChunk), kGrain / kChunk, [&, x, y](int64_t first, int64_t last) {
      uint32_t words[kChunk];
      const uint64_t seed = key.seed;
      const uint64_t step = key.step;
      const uint64_t op = key.op << 32;
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t begin = chunk * kChunk;
#pragma omp simd
        for (int64_t q = 0; q < kChunk / 4; ++q) {
          const Philox4 block = philox(seed, step, op | static_cast<uint64_t>(begin / 4 + q));
          words[4 * q] = block.x;
          words[4 * q + 1] = block.y;
          words[4 * q + 2] = block.z;
          words[4 * q + 3] = block.w;
        }
        const int64_t length = std::min(kChunk, count - begin);
#pragma omp simd
        for (int64_t i = 0; i < length; ++i) {
          const float value = x[begin + i] * scale;
          y[begin + i] = uniform_from_bits(words[i]) <= probability ? 0.0f : value;
        }
      }
    });
  });
}

void dropout_channels(Context&, int64_t n, int64_t spatial, int64_t channels, float probability,
                      const DropoutKey& key, ConstData x_, Data y_) {
  with_storage("dropout_channels", {x_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "dropout_channels: x");
    const auto y = output<T>(y_, "dropout_channels: y");
    if (n * spatial * channels == 0) {
      return;
    }
    RandomStream random(key.seed, key.step, key.op);
    std::vector<float> factors(static_cast<size_t>(n * channels));
    for (float& factor : factors) {
      factor = random.bernoulli(probability) ? 0.0f : kept_scale(probability);
    }
    column_map(n, spatial, channels, [&](int64_t sample) {
      return [=, factor = repeat_channels(channels, [&](int64_t c) {
                   return factors[static_cast<size_t>(sample * channels + c)];
                 })](int64_t i, int64_t j) {
        const float f = factor[static_cast<size_t>(j)];
        y[i] = f == 0.0f ? 0.0f : f * x[i];
      };
    });
  });
}

}  // namespace vesal::kernels::cpu
