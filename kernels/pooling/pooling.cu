// Max and average pooling, with windows of a fixed size or adaptive ones, forward and backward.
//
// Bytes: x read once and y (and an index) written once; backward, dy and index read and dx written once. Far
// less than one operation a byte: limited by memory. One thread an element of the result, channels fastest,
// so that a warp reads and writes whole lines; what windows share comes from the caches. Backward is a gather
// over the windows that cover a voxel. Element numbers are 32 bits wide where they fit: the divisions that
// decompose them are not free. A window is one thread's work: for a single output a sample, kernels/reduce
// has more of them. No GPU timing exists yet (see bench/results/README.md).
#include "base/size.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/pooling/pool_axis.hpp"
#include "kernels/pooling/pooling.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;

// Axes fit 32 bits (pooling.cpp), element numbers, of type Index, do not always.
using Axes = PoolAxes<int>;

template <class Index>
struct Position {
  Index n;
  int d, h, w;
  Index c;
};

template <class Index>
VESAL_DEVICE Position<Index> position_of(Index element, int d, int h, int w, Index c) {
  Position<Index> p;
  Index rest = element / c;
  p.c = element - rest * c;
  Index next = rest / w;
  p.w = static_cast<int>(rest - next * w);
  rest = next;
  next = rest / h;
  p.h = static_cast<int>(rest - next * h);
  p.n = next / d;
  p.d = static_cast<int>(next - p.n * d);
  return p;
}

// T is the storage type; Index is int or int64_t; Number, of the voxels in a window, uint8_t or int32_t.
template <class T, class Index, class Number>
VESAL_KERNEL void max_forward(Axes axes, Index count, Index channels, const T* VESAL_RESTRICT x_,
                              T* VESAL_RESTRICT y_, Number* VESAL_RESTRICT index) {
  const Input<T> x{x_};
  const Output<T> y{y_};
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= count) {
    return;
  }
  const Position<Index> p =
      position_of<Index>(static_cast<Index>(element), axes.d.out, axes.h.out, axes.w.out, channels);
  const int d0 = axes.d.begin(p.d), h0 = axes.h.begin(p.h), w0 = axes.w.begin(p.w);
  const int extent_h = axes.h.extent(p.h), extent_w = axes.w.extent(p.w);
  const int last_d = axes.d.last(p.d), last_h = axes.h.last(p.h), last_w = axes.w.last(p.w);
  const int first_h = axes.h.first(p.h), first_w = axes.w.first(p.w);
  float best = 0.0f;
  int winner = -1;
  for (int d = axes.d.first(p.d); d < last_d; ++d) {
    for (int h = first_h; h < last_h; ++h) {
      const auto line = x + ((p.n * axes.d.in + d) * axes.h.in + h) * axes.w.in * channels + p.c;
      for (int w = first_w; w < last_w; ++w) {
        const float value = line[w * channels];
        if (winner < 0 || value > best || (value != value && best == best)) {
          best = value;
          winner = ((d - d0) * extent_h + h - h0) * extent_w + w - w0;
        }
      }
    }
  }
  y[element] = best;
  if (index != nullptr) {
    index[element] = static_cast<Number>(winner);
  }
}

template <class T, class Index>
VESAL_KERNEL void average_forward(Axes axes, Index count, Index channels, bool count_include_pad,
                                  const T* VESAL_RESTRICT x_, T* VESAL_RESTRICT y_) {
  const Input<T> x{x_};
  const Output<T> y{y_};
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= count) {
    return;
  }
  const Position<Index> p =
      position_of<Index>(static_cast<Index>(element), axes.d.out, axes.h.out, axes.w.out, channels);
  const int last_d = axes.d.last(p.d), last_h = axes.h.last(p.h), last_w = axes.w.last(p.w);
  const int first_h = axes.h.first(p.h), first_w = axes.w.first(p.w);
  float sum = 0.0f;
  for (int d = axes.d.first(p.d); d < last_d; ++d) {
    for (int h = first_h; h < last_h; ++h) {
      const auto line = x + ((p.n * axes.d.in + d) * axes.h.in + h) * axes.w.in * channels + p.c;
      float line_sum = 0.0f;  // a sum of sums: large windows round less
      for (int w = first_w; w < last_w; ++w) {
        line_sum += line[w * channels];
      }
      sum += line_sum;
    }
  }
  y[element] = sum / static_cast<float>(axes.d.divisor(p.d, count_include_pad) *
                                        axes.h.divisor(p.h, count_include_pad) *
                                        axes.w.divisor(p.w, count_include_pad));
}

template <class T, class Index, class Number>
VESAL_KERNEL void max_backward(Axes axes, Index count, Index channels, const T* VESAL_RESTRICT dy,
                               const Number* VESAL_RESTRICT index, T* VESAL_RESTRICT dx) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= count) {
    return;
  }
  const Position<Index> p =
      position_of<Index>(static_cast<Index>(element), axes.d.in, axes.h.in, axes.w.in, channels);
  const auto over_d = axes.d.windows_over(p.d);
  const auto over_h = axes.h.windows_over(p.h);
  const auto over_w = axes.w.windows_over(p.w);
  float sum = 0.0f;
  for (int od = over_d.begin; od < over_d.end; ++od) {
    const int in_d = p.d - axes.d.begin(od);
    for (int oh = over_h.begin; oh < over_h.end; ++oh) {
      const int in_h = in_d * axes.h.extent(oh) + p.h - axes.h.begin(oh);
      const Index row = ((p.n * axes.d.out + od) * axes.h.out + oh) * axes.w.out;
      for (int ow = over_w.begin; ow < over_w.end; ++ow) {
        const Index out = (row + ow) * channels + p.c;
        const int number = in_h * axes.w.extent(ow) + p.w - axes.w.begin(ow);
        sum += index[out] == number ? widen(dy[out]) : 0.0f;
      }
    }
  }
  dx[element] = narrow<T>(sum);
}

template <class T, class Index>
VESAL_KERNEL void average_backward(Axes axes, Index count, Index channels, bool count_include_pad,
                                   const T* VESAL_RESTRICT dy_, T* VESAL_RESTRICT dx_) {
  const Input<T> dy{dy_};
  const Output<T> dx{dx_};
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= count) {
    return;
  }
  const Position<Index> p =
      position_of<Index>(static_cast<Index>(element), axes.d.in, axes.h.in, axes.w.in, channels);
  const auto over_d = axes.d.windows_over(p.d);
  const auto over_h = axes.h.windows_over(p.h);
  const auto over_w = axes.w.windows_over(p.w);
  float sum = 0.0f;
  for (int od = over_d.begin; od < over_d.end; ++od) {
    const int divisor_d = axes.d.divisor(od, count_include_pad);
    for (int oh = over_h.begin; oh < over_h.end; ++oh) {
      const int divisor_h = divisor_d * axes.h.divisor(oh, count_include_pad);
      const Index row = ((p.n * axes.d.out + od) * axes.h.out + oh) * axes.w.out;
      for (int ow = over_w.begin; ow < over_w.end; ++ow) {
        sum += dy[(row + ow) * channels + p.c] /
               static_cast<float>(divisor_h * axes.w.divisor(ow, count_include_pad));
      }
    }
  }
  dx[element] = sum;
}

int64_t input_count(const PoolParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const PoolParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w() * p.c; }

// Calls start(count, channels) with numbers of 32 bits where every element's fits.
template <class Start>
void with_index(const PoolParams& p, int64_t count, Start&& start) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  if (input_count(p) < kLimit && output_count(p) < kLimit) {
    start(static_cast<int>(count), static_cast<int>(p.c));
  } else {
    start(count, p.c);
  }
}

// Calls use.operator()<Number>().
template <class Use>
void with_number(const PoolParams& p, Use&& use) {
  if (p.index_type() == DType::u8) {
    use.template operator()<uint8_t>();
  } else {
    use.template operator()<int32_t>();
  }
}

}  // namespace

void max_pool3d_forward(Context& context, const PoolParams& params, ConstData x_, Data y_, Data index) {
  with_storage("max_pool3d_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("max_pool3d_forward: x");
    T* y = y_.as<T>("max_pool3d_forward: y");
    with_number(params, [&]<class Number>() {
      Number* numbers = index.as<Number>("max_pool3d_forward: index");
      with_index(params, output_count(params), [&]<class Index>(Index count, Index channels) {
        launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock},
               max_forward<T, Index, Number>, pool_axes<int>(params), count, channels, x, y, numbers);
      });
    });
  });
}

void max_pool3d_backward(Context& context, const PoolParams& params, ConstData dy_, ConstData index,
                         Data dx_) {
  with_storage("max_pool3d_backward", {dy_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("max_pool3d_backward: dy");
    T* dx = dx_.as<T>("max_pool3d_backward: dx");
    with_number(params, [&]<class Number>() {
      const Number* numbers = index.as<Number>("max_pool3d_backward: index");
      with_index(params, input_count(params), [&]<class Index>(Index count, Index channels) {
        launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock},
               max_backward<T, Index, Number>, pool_axes<int>(params), count, channels, dy, numbers, dx);
      });
    });
  });
}

void avg_pool3d_forward(Context& context, const PoolParams& params, ConstData x_, Data y_) {
  with_storage("avg_pool3d_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("avg_pool3d_forward: x");
    T* y = y_.as<T>("avg_pool3d_forward: y");
    with_index(params, output_count(params), [&]<class Index>(Index count, Index channels) {
      launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock}, average_forward<T, Index>,
             pool_axes<int>(params), count, channels, params.count_include_pad, x, y);
    });
  });
}

void avg_pool3d_backward(Context& context, const PoolParams& params, ConstData dy_, Data dx_) {
  with_storage("avg_pool3d_backward", {dy_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("avg_pool3d_backward: dy");
    T* dx = dx_.as<T>("avg_pool3d_backward: dx");
    with_index(params, input_count(params), [&]<class Index>(Index count, Index channels) {
      launch(context.stream(), {.grid = ceil_div(count, kBlock), .block = kBlock}, average_backward<T, Index>,
             pool_axes<int>(params), count, channels, params.count_include_pad, dy, dx);
    });
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
