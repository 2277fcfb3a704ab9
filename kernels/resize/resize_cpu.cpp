// Resizing on the host. Limited by memory. An output row (fixed n, d, h) is made in two steps: the up to four
// input rows that it lies between are blended into one row, contiguous over w and c, which is then
// interpolated along w. The backward pass does the same the other way round for each input row: a weighted
// sum of the output rows that read it, then a sum along w. The tables and row buffers live in the context's
// cache and keep their memory.
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
constexpr int kRowsAtATime = 8;           // output rows whose weights are at hand

struct ResizeScratch {
  std::vector<float> rows;
  std::vector<ResizeAxis::Taps> taps;  // of each output of the w axis
  struct Readers {
    int32_t begin, end;  // outputs
    int32_t offset;      // of the first one's weight
  };
  std::vector<Readers> readers;  // of each input of the w axis
  std::vector<float> weights;
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

void fill_taps(const ResizeAxis& axis, ResizeScratch& scratch) {
  scratch.taps.resize(static_cast<size_t>(axis.out));
  for (int o = 0; o < axis.out; ++o) {
    scratch.taps[static_cast<size_t>(o)] = axis.taps(o);
  }
}

void fill_readers(const ResizeAxis& axis, ResizeScratch& scratch) {
  scratch.readers.resize(static_cast<size_t>(axis.in));
  scratch.weights.clear();
  for (int i = 0; i < axis.in; ++i) {
    const ResizeAxis::Range range = axis.readers(i);
    scratch.readers[static_cast<size_t>(i)] = {range.begin, range.end,
                                               static_cast<int32_t>(scratch.weights.size())};
    for (int o = range.begin; o < range.end; ++o) {
      scratch.weights.push_back(axis.weight(o, i));
    }
  }
}

// Calls body(row, buffer) for every row in [0, rows), in parallel; `buffer` holds row_elements floats of the
// thread's own.
template <class Body>
void for_each_row(int64_t rows, int64_t work_elements, int64_t row_elements, ResizeScratch& scratch,
                  Body&& body) {
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

void blend(int64_t count, const float* a, float wa, const float* b, float wb, const float* c, float wc,
           const float* d, float wd, float* __restrict__ out) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] = (wa * a[e] + wb * b[e]) + (wc * c[e] + wd * d[e]);
  }
}

// out += the four rows of `stride` elements from `rows` on, weighted.
void add_four(int64_t count, const float* rows, int64_t stride, const float* weights,
              float* __restrict__ out) {
  const float *a = rows, *b = a + stride, *c = b + stride, *d = c + stride;
  const float wa = weights[0], wb = weights[1], wc = weights[2], wd = weights[3];
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] += (wa * a[e] + wb * b[e]) + (wc * c[e] + wd * d[e]);
  }
}

void add_one(int64_t count, const float* row, float weight, float* __restrict__ out) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] += weight * row[e];
  }
}

// out += the weighted sum of `rows` rows of `count` elements.
void sum_rows(int64_t rows, int64_t count, const float* source, int64_t stride, const float* weights,
              float* out) {
  for (; rows >= 4; rows -= 4, source += 4 * stride, weights += 4) {
    add_four(count, source, stride, weights, out);
  }
  for (; rows > 0; --rows, source += stride, ++weights) {
    add_one(count, source, *weights, out);
  }
}

// The steps along w. kChannels is the number of channels where it is small, so that their loops disappear;
// else 0.
template <int kChannels>
void interpolate_line(const float* line, int64_t channels_, const std::vector<ResizeAxis::Taps>& taps,
                      float* target) {
  const int64_t channels = kChannels > 0 ? kChannels : channels_;
  for (const ResizeAxis::Taps& tap : taps) {
    const float* a = line + tap.first * channels;
    if (tap.first == tap.second) {
      std::copy_n(a, channels, target);
    } else {
      blend(channels, a, 1.0f - tap.fraction, line + tap.second * channels, tap.fraction, target);
    }
    target += channels;
  }
}

template <int kChannels>
void gather_line(const float* line, int64_t channels_, const ResizeScratch& scratch, float* target) {
  const int64_t channels = kChannels > 0 ? kChannels : channels_;
  for (const ResizeScratch::Readers& readers : scratch.readers) {
    const float* source = line + readers.begin * channels;
    const float* weights = scratch.weights.data() + readers.offset;
    if constexpr (kChannels > 0) {
      float sum[kChannels] = {};
      for (int64_t o = 0; o < readers.end - readers.begin; ++o) {
        for (int c = 0; c < kChannels; ++c) {
          sum[c] += weights[o] * source[o * kChannels + c];
        }
      }
      std::copy_n(sum, kChannels, target);
    } else {
      std::fill_n(target, channels, 0.0f);
      sum_rows(readers.end - readers.begin, channels, source, channels, weights, target);
    }
    target += channels;
  }
}

// Calls body<channels> for 1 to 4 channels and body<0> for others.
template <class Body>
void with_channels(int64_t channels, Body&& body) {
  switch (channels) {
    case 1:
      return body.template operator()<1>();
    case 2:
      return body.template operator()<2>();
    case 3:
      return body.template operator()<3>();
    case 4:
      return body.template operator()<4>();
    default:
      return body.template operator()<0>();
  }
}

}  // namespace

void resize_forward(Context& context, const ResizeParams& p, ConstData x_, Data y_) {
  const float* x = x_.as<float>("resize_forward: x");
  float* y = y_.as<float>("resize_forward: y");
  auto& scratch = context.cache<ResizeScratch>();
  const Axes axes(p);
  fill_taps(axes.w, scratch);
  const int64_t row_elements = p.w * p.c;
  const int64_t channels = p.c;
  for_each_row(
      p.n * p.out_d * p.out_h, p.out_w * p.c, row_elements, scratch, [&](int64_t row, float* buffer) {
        const ResizeAxis::Taps h = axes.h.taps(static_cast<int>(row % p.out_h));
        const ResizeAxis::Taps d = axes.d.taps(static_cast<int>(row / p.out_h % p.out_d));
        const float* sample = x + row / p.out_h / p.out_d * p.d * p.h * row_elements;
        const auto source = [&](int depth, int height) {
          return sample + (depth * p.h + height) * row_elements;
        };
        const float* line = buffer;
        if (d.first == d.second && h.first == h.second) {
          line = source(d.first, h.first);
        } else if (d.first == d.second) {
          blend(row_elements, source(d.first, h.first), 1.0f - h.fraction, source(d.first, h.second),
                h.fraction, buffer);
        } else if (h.first == h.second) {
          blend(row_elements, source(d.first, h.first), 1.0f - d.fraction, source(d.second, h.first),
                d.fraction, buffer);
        } else {
          const float low = 1.0f - d.fraction;
          blend(row_elements, source(d.first, h.first), low * (1.0f - h.fraction), source(d.first, h.second),
                low * h.fraction, source(d.second, h.first), d.fraction * (1.0f - h.fraction),
                source(d.second, h.second), d.fraction * h.fraction, buffer);
        }
        float* target = y + row * p.out_w * channels;
        if (p.w == p.out_w) {
          std::copy_n(line, row_elements, target);
        } else {
          with_channels(channels, [&]<int kChannels>() {
            interpolate_line<kChannels>(line, channels, scratch.taps, target);
          });
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
  fill_readers(axes.w, scratch);
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
      for (int oh = over_h.begin; oh < over_h.end; oh += kRowsAtATime) {
        const int count = std::min(kRowsAtATime, over_h.end - oh);
        float weights[kRowsAtATime];
        for (int i = 0; i < count; ++i) {
          weights[i] = weight_d * axes.h.weight(oh + i, h);
        }
        sum_rows(count, row_elements, sample + (od * p.out_h + oh) * row_elements, row_elements, weights,
                 buffer);
      }
    }
    float* target = dx + row * p.w * channels;
    with_channels(channels,
                  [&]<int kChannels>() { gather_line<kChannels>(buffer, channels, scratch, target); });
  });
}

}  // namespace vesal::kernels::cpu
