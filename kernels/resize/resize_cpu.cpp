// Resizing on the host. Limited by memory. An output row (fixed n, d, h) is made in two steps: the up to four input rows
// that it lies between are blended into one row, contiguous over w and c, which is then interpolated along w. The
// backward pass does the same the other way round for each input row: a weighted sum of the output rows that read it,
// then a sum along w. The tables and row buffers live in the context's cache and keep their memory.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/resize/resize.hpp"
#include "kernels/resize/resize_axis.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kGrainBytes = 1 << 15;  // the least a thread is started for

struct ResizeScratch {
  std::vector<float> rows;
  std::vector<int32_t> first, second;  // per output of the w axis
  std::vector<float> fraction;
};

struct Axes {
  ResizeAxis d, h, w;

  explicit Axes(const ResizeParams& p)
      : d(axis(p, p.d, p.out_d)), h(axis(p, p.h, p.out_h)), w(axis(p, p.w, p.out_w)) {}

 private:
  static ResizeAxis axis(const ResizeParams& p, int64_t in, int64_t out) {
    return {static_cast<int>(in), static_cast<int>(out), p.interpolation == Interpolation::nearest};
  }
};

void fill_tables(const ResizeAxis& axis, ResizeScratch& scratch) {
  const auto out = static_cast<size_t>(axis.out);
  scratch.first.resize(out);
  scratch.second.resize(out);
  scratch.fraction.resize(out);
  for (int o = 0; o < axis.out; ++o) {
    const ResizeAxis::Taps taps = axis.taps(o);
    scratch.first[static_cast<size_t>(o)] = taps.first;
    scratch.second[static_cast<size_t>(o)] = taps.second;
    scratch.fraction[static_cast<size_t>(o)] = taps.fraction;
  }
}

// Calls body(row, buffer) for every row in [0, rows), in parallel; `buffer` holds row_elements floats of the thread's own.
template <class Body>
void for_each_row(int64_t rows, int64_t work_elements, int64_t row_elements, ResizeScratch& scratch, Body&& body) {
  const int64_t padded = ceil_div(row_elements, 16) * 16;
  const int64_t workers = thread_count();
  scratch.rows.resize(static_cast<size_t>(std::max<int64_t>(padded * workers, 1)));
  const int64_t least = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, work_elements * 4));
  const int64_t pieces = std::clamp<int64_t>(rows / least, 1, workers);
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      float* buffer = scratch.rows.data() + piece * padded;
      for (int64_t row = rows * piece / pieces; row < rows * (piece + 1) / pieces; ++row) {
        body(row, buffer);
      }
    }
  });
}

// out = wa a + wb b, or also + wc c + wd d.
void blend(int64_t count, const float* a, float wa, const float* b, float wb, float* __restrict__ out) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] = wa * a[e] + wb * b[e];
  }
}

void blend(int64_t count, const float* a, float wa, const float* b, float wb, const float* c, float wc, const float* d,
           float wd, float* __restrict__ out) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] = (wa * a[e] + wb * b[e]) + (wc * c[e] + wd * d[e]);
  }
}

void add_scaled(int64_t count, float scale, const float* a, float* __restrict__ out) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] += scale * a[e];
  }
}

}  // namespace

void resize_forward(Context& context, const ResizeParams& p, ConstData x_, Data y_) {
  const float* x = x_.as<float>("resize_forward: x");
  float* y = y_.as<float>("resize_forward: y");
  auto& scratch = context.cache<ResizeScratch>();
  const Axes axes(p);
  fill_tables(axes.w, scratch);
  const int32_t* first = scratch.first.data();
  const int32_t* second = scratch.second.data();
  const float* fraction = scratch.fraction.data();
  const int64_t row_elements = p.w * p.c;
  const int64_t channels = p.c;
  for_each_row(p.n * p.out_d * p.out_h, p.out_w * p.c, row_elements, scratch, [&](int64_t row, float* buffer) {
    const ResizeAxis::Taps h = axes.h.taps(static_cast<int>(row % p.out_h));
    const ResizeAxis::Taps d = axes.d.taps(static_cast<int>(row / p.out_h % p.out_d));
    const float* sample = x + row / p.out_h / p.out_d * p.d * p.h * row_elements;
    const auto source = [&](int depth, int height) { return sample + (depth * p.h + height) * row_elements; };
    const float* line = buffer;
    if (d.first == d.second && h.first == h.second) {
      line = source(d.first, h.first);
    } else if (d.first == d.second) {
      blend(row_elements, source(d.first, h.first), 1.0f - h.fraction, source(d.first, h.second), h.fraction, buffer);
    } else if (h.first == h.second) {
      blend(row_elements, source(d.first, h.first), 1.0f - d.fraction, source(d.second, h.first), d.fraction, buffer);
    } else {
      const float low = 1.0f - d.fraction;
      blend(row_elements, source(d.first, h.first), low * (1.0f - h.fraction), source(d.first, h.second),
            low * h.fraction, source(d.second, h.first), d.fraction * (1.0f - h.fraction),
            source(d.second, h.second), d.fraction * h.fraction, buffer);
    }
    float* target = y + row * p.out_w * channels;
    if (p.w == p.out_w) {
      std::copy_n(line, row_elements, target);
    } else if (channels == 1) {
#pragma omp simd
      for (int64_t o = 0; o < p.out_w; ++o) {
        const float a = line[first[o]];
        const float b = line[second[o]];
        target[o] = fraction[o] == 0.0f ? a : (1.0f - fraction[o]) * a + fraction[o] * b;
      }
    } else {
      for (int64_t o = 0; o < p.out_w; ++o) {
        const float* a = line + first[o] * channels;
        if (first[o] == second[o]) {
          std::copy_n(a, channels, target + o * channels);
        } else {
          blend(channels, a, 1.0f - fraction[o], line + second[o] * channels, fraction[o], target + o * channels);
        }
      }
    }
  });
}

void resize_backward(Context& context, const ResizeParams& p, ConstData dy_, Data dx_) {
  const float* dy = dy_.as<float>("resize_backward: dy");
  float* dx = dx_.as<float>("resize_backward: dx");
  auto& scratch = context.cache<ResizeScratch>();
  const Axes axes(p);
  const int64_t row_elements = p.out_w * p.c;
  const int64_t channels = p.c;
  // Each output row is read by up to four input rows.
  const int64_t work = ceil_div(4 * p.out_d * p.out_h, p.d * p.h) * row_elements;
  for_each_row(p.n * p.d * p.h, work, row_elements, scratch, [&](int64_t row, float* buffer) {
    const auto h = static_cast<int>(row % p.h);
    const auto d = static_cast<int>(row / p.h % p.d);
    const float* sample = dy + row / p.h / p.d * p.out_d * p.out_h * row_elements;
    const ResizeAxis::Range over_d = axes.d.readers(d);
    const ResizeAxis::Range over_h = axes.h.readers(h);
    std::memset(buffer, 0, static_cast<size_t>(row_elements) * sizeof(float));
    for (int od = over_d.begin; od < over_d.end; ++od) {
      const float weight_d = axes.d.weight(od, d);
      const float* plane = sample + od * p.out_h * row_elements;
      int oh = over_h.begin;
      for (; oh + 4 <= over_h.end; oh += 4) {
        const float* a = plane + oh * row_elements;
        const float* b = a + row_elements;
        const float* c = b + row_elements;
        const float* e = c + row_elements;
        const float wa = weight_d * axes.h.weight(oh, h), wb = weight_d * axes.h.weight(oh + 1, h),
                    wc = weight_d * axes.h.weight(oh + 2, h), we = weight_d * axes.h.weight(oh + 3, h);
#pragma omp simd
        for (int64_t i = 0; i < row_elements; ++i) {
          buffer[i] += (wa * a[i] + wb * b[i]) + (wc * c[i] + we * e[i]);
        }
      }
      for (; oh < over_h.end; ++oh) {
        add_scaled(row_elements, weight_d * axes.h.weight(oh, h), plane + oh * row_elements, buffer);
      }
    }
    float* target = dx + row * p.w * channels;
    for (int i = 0; i < axes.w.in; ++i) {
      const ResizeAxis::Range over_w = axes.w.readers(i);
      float* sum = target + i * channels;
      std::fill_n(sum, channels, 0.0f);
      for (int o = over_w.begin; o < over_w.end; ++o) {
        add_scaled(channels, axes.w.weight(o, i), buffer + o * channels, sum);
      }
    }
  });
}

}  // namespace vesal::kernels::cpu
