// Elementwise functions on the CPU: vectorised loops over even pieces of the data.
#include <algorithm>

#include "base/parallel.hpp"
#include "base/philox.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/activations_cpu.hpp"
#include "kernels/context/dispatch.hpp"
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
  const float* x = x_.as<float>("unary_forward: x");
  float* y = y_.as<float>("unary_forward: y");
  AllActivations::choose(kind, [&](auto k) {
    map(count, [=](int64_t i) { y[i] = activated<decltype(k)::value>(x[i], slope); });
  });
}

void unary_backward(Context&, Unary kind, int64_t count, ConstData x_, ConstData dy_, Data dx_, float slope) {
  const float* x = x_.as<float>("unary_backward: x");
  const float* dy = dy_.as<float>("unary_backward: dy");
  float* dx = dx_.as<float>("unary_backward: dx");
  AllActivations::choose(kind, [&](auto k) {
    map(count, [=](int64_t i) { dx[i] = activation_gradient<decltype(k)::value>(x[i], dy[i], slope); });
  });
}

void fill(Context&, int64_t count, float value, Data y_) {
  float* y = y_.as<float>("fill: y");
  map(count, [=](int64_t i) { y[i] = value; });
}

void add(Context&, int64_t count, ConstData a_, ConstData b_, Data y_) {
  const float* a = a_.as<float>("add: a");
  const float* b = b_.as<float>("add: b");
  float* y = y_.as<float>("add: y");
  map(count, [=](int64_t i) { y[i] = a[i] + b[i]; });
}

void scale_add(Context&, int64_t count, float alpha, ConstData x_, float beta, Data y_) {
  const float* x = x_.as<float>("scale_add: x");
  float* y = y_.as<float>("scale_add: y");
  if (beta == 0.0f) {
    map(count, [=](int64_t i) { y[i] = alpha * x[i]; });
  } else {
    map(count, [=](int64_t i) { y[i] = alpha * x[i] + beta * y[i]; });
  }
}

void multiply(Context&, int64_t count, ConstData a_, ConstData b_, Data y_) {
  const float* a = a_.as<float>("multiply: a");
  const float* b = b_.as<float>("multiply: b");
  float* y = y_.as<float>("multiply: y");
  map(count, [=](int64_t i) { y[i] = a[i] * b[i]; });
}

void scaled_add_forward(Context&, int64_t n, int64_t inner, ConstData a_, ConstData b_, ConstData scale_,
                        ConstData gate_, Data y_) {
  const float* scale = scale_.as<float>("scaled_add_forward: scale");
  const float* gate = gate_.as<float>("scaled_add_forward: gate");
  for (int64_t s = 0; s < n; ++s) {
    const float* a = a_.as<float>("scaled_add_forward: a") + s * inner;
    const float* b = b_.as<float>("scaled_add_forward: b") + s * inner;
    float* y = y_.as<float>("scaled_add_forward: y") + s * inner;
    const float factor = scale[0] * (gate ? gate[s] : 1.0f);
    if (gate && gate[s] == 0.0f) {
      map(inner, [=](int64_t i) { y[i] = a[i]; });
    } else {
      map(inner, [=](int64_t i) { y[i] = a[i] + factor * b[i]; });
    }
  }
}

void scaled_add_backward(Context&, int64_t n, int64_t inner, ConstData b_, ConstData scale_, ConstData gate_,
                         ConstData dy_, Data db_, Data dscale_, GradMode mode, Workspace workspace) {
  const float* b = b_.as<float>("scaled_add_backward: b");
  const float* scale = scale_.as<float>("scaled_add_backward: scale");
  const float* gate = gate_.as<float>("scaled_add_backward: gate");
  const float* dy = dy_.as<float>("scaled_add_backward: dy");
  float* db = db_.as<float>("scaled_add_backward: db");
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
}

void gate_samples(Context&, int64_t n, int64_t inner, ConstData gate_, ConstData x_, Data y_) {
  const float* gate = gate_.as<float>("gate_samples: gate");
  for (int64_t s = 0; s < n; ++s) {
    const float* x = x_.as<float>("gate_samples: x") + s * inner;
    float* y = y_.as<float>("gate_samples: y") + s * inner;
    const float g = gate[s];
    if (g == 0.0f) {
      map(inner, [=](int64_t i) { y[i] = 0.0f; });
    } else {
      map(inner, [=](int64_t i) { y[i] = g * x[i]; });
    }
  }
}

void add_sample_vector(Context&, int64_t n, int64_t spatial, int64_t channels, ConstData x_, ConstData v_,
                       Data y_) {
  const float* x = x_.as<float>("add_sample_vector: x");
  const float* v = v_.as<float>("add_sample_vector: v");
  float* y = y_.as<float>("add_sample_vector: y");
  column_map(n, spatial, channels, [&](int64_t sample) {
    return [=, added = repeat_channels(channels, [&](int64_t c) { return v[sample * channels + c]; })](
               int64_t i, int64_t j) { y[i] = x[i] + added[static_cast<size_t>(j)]; };
  });
}

void dropout(Context&, int64_t count, float probability, const DropoutKey& key, ConstData x_, Data y_) {
  const float* x = x_.as<float>("dropout: x");
  float* y = y_.as<float>("dropout: y");
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
}

void dropout_channels(Context&, int64_t n, int64_t spatial, int64_t channels, float probability,
                      const DropoutKey& key, ConstData x_, Data y_) {
  const float* x = x_.as<float>("dropout_channels: x");
  float* y = y_.as<float>("dropout_channels: y");
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
}

}  // namespace vesal::kernels::cpu
