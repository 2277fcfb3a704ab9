// Resizing on the host. Limited by memory. An output row (fixed n, d, h) is made in two steps: the input rows
// that it lies between (up to 4, cubic 16) are blended into one row, contiguous over w and c, which is then
// interpolated along w. The backward pass does the same the other way round for each input row: a weighted
// sum of the output rows that read it, then a sum along w. The tables and row buffers live in the context's
// cache and keep their memory.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/float_rows_cpu.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/resize/resize.hpp"
#include "kernels/resize/resize_axis.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int64_t kGrainBytes = 1 << 15;  // the least a thread is started for
constexpr int kRowsAtATime = 8;           // output rows whose weights are at hand

using Axis = ResizeAxis<int64_t>;

// The voxels that an output of an axis reads, without those of weight 0.
struct Taps {
  int count = 0;
  int index[4];
  float weight[4];
};

template <int kTaps>
Taps taps_of(const Axis& axis, int64_t output) {
  const ResizeTaps<kTaps> all = axis.taps<kTaps>(axis.at(static_cast<int>(output)));
  Taps taps;
  for (int k = 0; k < kTaps; ++k) {
    if (all.weight[k] != 0.0f) {
      taps.index[taps.count] = all.index[k];
      taps.weight[taps.count++] = all.weight[k];
    }
  }
  return taps;
}

struct ResizeScratch {
  std::vector<float> rows;
  std::vector<Taps> taps;  // of each output of the w axis
  struct Readers {
    int32_t begin, end;  // outputs
    int32_t offset;      // of the first one's weight
  };
  std::vector<Readers> readers;  // of each input of the w axis
  std::vector<float> weights;
};

template <int kTaps>
void fill_taps(const Axis& axis, ResizeScratch& scratch) {
  scratch.taps.resize(static_cast<size_t>(axis.out));
  for (int o = 0; o < axis.out; ++o) {
    scratch.taps[static_cast<size_t>(o)] = taps_of<kTaps>(axis, o);
  }
}

template <int kTaps>
void fill_readers(const Axis& axis, ResizeScratch& scratch) {
  scratch.readers.resize(static_cast<size_t>(axis.in));
  scratch.weights.clear();
  for (int i = 0; i < axis.in; ++i) {
    const Axis::Range range = axis.readers<kTaps>(i);
    scratch.readers[static_cast<size_t>(i)] = {range.begin, range.end,
                                               static_cast<int32_t>(scratch.weights.size())};
    for (int o = range.begin; o < range.end; ++o) {
      scratch.weights.push_back(axis.weight<kTaps>(axis.at(o), i));
    }
  }
}

// Calls body(row, buffer, out) for every row in [0, rows), in parallel; of the thread's own are `buffer` with
// row_elements floats and, where T is not float32, `out` with out_elements.
template <class T, class Body>
void for_each_row(int64_t rows, int64_t work_elements, int64_t row_elements, int64_t out_elements,
                  ResizeScratch& scratch, Body&& body) {
  const int64_t padded = ceil_div(row_elements, 16) * 16;
  const int64_t all = padded + (std::is_same_v<T, float> ? 0 : ceil_div(out_elements, 16) * 16);
  const int64_t workers = thread_count();
  scratch.rows.resize(static_cast<size_t>(std::max<int64_t>(all * workers, 1)));
  const int64_t least = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, work_elements * 4));
  const int64_t pieces = std::clamp<int64_t>(rows / least, 1, workers);
  parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      float* buffer = scratch.rows.data() + piece * all;
      for (int64_t row = rows * piece / pieces; row < rows * (piece + 1) / pieces; ++row) {
        body(row, buffer, buffer + padded);
      }
    }
  });
}

// out = wa a + wb b, or also + wc c + wd d.
// In, here and below, is const float* or what reads like it.
template <class In>
void blend(int64_t count, In a, float wa, In b, float wb, float* __restrict__ out) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] = wa * a[e] + wb * b[e];
  }
}

template <class In>
void blend(int64_t count, In a, float wa, In b, float wb, In c, float wc, In d, float wd,
           float* __restrict__ out) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] = (wa * a[e] + wb * b[e]) + (wc * c[e] + wd * d[e]);
  }
}

template <class In>
void add_four(int64_t count, In a, In b, In c, In d, const float* weights, float* __restrict__ out) {
  const float wa = weights[0], wb = weights[1], wc = weights[2], wd = weights[3];
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] += (wa * a[e] + wb * b[e]) + (wc * c[e] + wd * d[e]);
  }
}

template <class In>
void add_one(int64_t count, In row, float weight, float* __restrict__ out) {
#pragma omp simd
  for (int64_t e = 0; e < count; ++e) {
    out[e] += weight * row[e];
  }
}

// out += the weighted sum of `rows` rows of `count` elements.
template <class In>
void sum_rows(int64_t rows, int64_t count, In source, int64_t stride, const float* weights, float* out) {
  for (; rows >= 4; rows -= 4, source = source + 4 * stride, weights += 4) {
    add_four(count, source, source + stride, source + 2 * stride, source + 3 * stride, weights, out);
  }
  for (; rows > 0; --rows, source = source + stride, ++weights) {
    add_one(count, source, *weights, out);
  }
}

// The weighted sum of 1 to 16 rows: a single one of floats itself (its weight is 1), else in `out`.
template <class In>
const float* blend_rows(int rows, int64_t count, const In* source, const float* weights, float* out) {
  if (rows == 1) {
    if constexpr (std::is_same_v<In, const float*>) {
      return source[0];
    } else {
      return as_floats(source[0].pointer, count, out);
    }
  }
  int done = 2;
  if (rows < 4) {
    blend(count, source[0], weights[0], source[1], weights[1], out);
  } else {
    blend(count, source[0], weights[0], source[1], weights[1], source[2], weights[2], source[3], weights[3],
          out);
    done = 4;
  }
  for (; done + 4 <= rows; done += 4) {
    add_four(count, source[done], source[done + 1], source[done + 2], source[done + 3], weights + done, out);
  }
  for (; done < rows; ++done) {
    add_one(count, source[done], weights[done], out);
  }
  return out;
}

// The steps along w. kChannels is the number of channels where it is small, so that their loops disappear;
// else 0.
template <int kChannels>
void interpolate_line(const float* line, int64_t channels_, const std::vector<Taps>& taps, float* target) {
  const int64_t channels = kChannels > 0 ? kChannels : channels_;
  for (const Taps& tap : taps) {
    const float* source[4] = {};
    for (int k = 0; k < tap.count; ++k) {
      source[k] = line + tap.index[k] * channels;
    }
    const float* result = blend_rows(tap.count, channels, source, tap.weight, target);
    if (result != target) {
      std::copy_n(result, channels, target);
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

template <class T, int kTaps>
void forward(const ResizeParams& p, const T* x, T* y, ResizeScratch& scratch) {
  const auto axes = resize_axes<int64_t>(p);
  fill_taps<kTaps>(axes.w, scratch);
  const int64_t row_elements = p.w * p.c;
  const int64_t out_elements = p.out_w * p.c;
  const int64_t channels = p.c;
  for_each_row<T>(p.n * p.out_d * p.out_h, out_elements, row_elements, out_elements, scratch,
                  [&](int64_t row, float* buffer, float* out) {
                    const Taps h = taps_of<kTaps>(axes.h, row % p.out_h);
                    const Taps d = taps_of<kTaps>(axes.d, row / p.out_h % p.out_d);
                    const Input<T> sample{x + row / p.out_h / p.out_d * p.d * p.h * row_elements};
                    Input<T> rows[kTaps * kTaps] = {};
                    float weights[kTaps * kTaps] = {};
                    int count = 0;
                    for (int a = 0; a < d.count; ++a) {
                      for (int b = 0; b < h.count; ++b, ++count) {
                        rows[count] = sample + (d.index[a] * p.h + h.index[b]) * row_elements;
                        weights[count] = d.weight[a] * h.weight[b];
                      }
                    }
                    const float* line = blend_rows(count, row_elements, rows, weights, buffer);
                    write_floats(y + row * out_elements, out_elements, out, [&](float* target) {
                      with_channels(channels, [&]<int kChannels>() {
                        interpolate_line<kChannels>(line, channels, scratch.taps, target);
                      });
                    });
                  });
}

template <class T, int kTaps>
void backward(const ResizeParams& p, const T* dy, T* dx, ResizeScratch& scratch) {
  const auto axes = resize_axes<int64_t>(p);
  const int64_t row_elements = p.out_w * p.c;
  const int64_t in_elements = p.w * p.c;
  const int64_t channels = p.c;
  fill_readers<kTaps>(axes.w, scratch);
  // Each output row is read by up to kTaps^2 input rows.
  const int64_t work = ceil_div(kTaps * kTaps * p.out_d * p.out_h, p.d * p.h) * row_elements;
  for_each_row<T>(
      p.n * p.d * p.h, work, row_elements, in_elements, scratch, [&](int64_t row, float* buffer, float* out) {
        const auto h = static_cast<int>(row % p.h);
        const auto d = static_cast<int>(row / p.h % p.d);
        const Input<T> sample{dy + row / p.h / p.d * p.out_d * p.out_h * row_elements};
        const Axis::Range over_d = axes.d.readers<kTaps>(d);
        const Axis::Range over_h = axes.h.readers<kTaps>(h);
        std::memset(buffer, 0, static_cast<size_t>(row_elements) * sizeof(float));
        for (int od = over_d.begin; od < over_d.end; ++od) {
          const float weight_d = axes.d.weight<kTaps>(axes.d.at(od), d);
          for (int oh = over_h.begin; oh < over_h.end; oh += kRowsAtATime) {
            const int count = std::min(kRowsAtATime, over_h.end - oh);
            float weights[kRowsAtATime];
            for (int i = 0; i < count; ++i) {
              weights[i] = weight_d * axes.h.weight<kTaps>(axes.h.at(oh + i), h);
            }
            sum_rows(count, row_elements, sample + (od * p.out_h + oh) * row_elements, row_elements, weights,
                     buffer);
          }
        }
        write_floats(dx + row * in_elements, in_elements, out, [&](float* target) {
          with_channels(channels,
                        [&]<int kChannels>() { gather_line<kChannels>(buffer, channels, scratch, target); });
        });
      });
}

}  // namespace

void resize_forward(Context& context, const ResizeParams& params, ConstData x_, Data y_) {
  auto& scratch = context.cache<ResizeScratch>();
  with_storage("resize_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("resize_forward: x");
    T* y = y_.as<T>("resize_forward: y");
    with_resize_taps(params.interpolation, [&]<int kTaps>() { forward<T, kTaps>(params, x, y, scratch); });
  });
}

void resize_backward(Context& context, const ResizeParams& params, ConstData dy_, Data dx_) {
  auto& scratch = context.cache<ResizeScratch>();
  with_storage("resize_backward", {dy_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("resize_backward: dy");
    T* dx = dx_.as<T>("resize_backward: dx");
    with_resize_taps(params.interpolation, [&]<int kTaps>() { backward<T, kTaps>(params, dy, dx, scratch); });
  });
}

}  // namespace vesal::kernels::cpu
