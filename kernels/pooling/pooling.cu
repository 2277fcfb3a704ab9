// Max and average pooling, with windows of a fixed size or adaptive ones, forward and backward.
//
// Bytes: x read once and y (and an index) written once; backward, dy and index read and dx written once. Far
// less than one operation a byte: limited by memory, once finding the windows costs few instructions. So one
// thread has four channels of a voxel of the result where they come in fours, and what it divides by is known
// before the launch (divider.hpp). Channels are fastest, so that a warp reads and writes whole lines; what
// windows share comes from the caches. Backward is a gather over the windows that cover a voxel. Element
// numbers are 32 bits wide where they fit. A window is one thread's work: for a single output a sample,
// kernels/reduce has more of them.
#include "base/size.hpp"
#include "kernels/context/divider.hpp"
#include "kernels/context/packs.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/context/voxel_packs.hpp"
#include "kernels/pooling/pool_axis.hpp"
#include "kernels/pooling/pooling.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;

// What PoolAxis (pool_axis.hpp) says of windows, in formulas that hold for fixed and for adaptive ones: a
// branch that asks which costs more than a division by one. Numbers along an axis fit 32 bits (pooling.cpp),
// element numbers, of type Index below, do not always.
struct Axis {
  int in, out;
  // Window o: from o * step / d - padding to (o * step + reach) / d, both rounded down, d by_step's divisor.
  int step, reach, padding;
  // Voxel i: the windows from behind (i * scale + before) / d to (i * scale + after) / d, d by_stride's.
  int scale, before, after;
  Divider32 by_step, by_stride;

  explicit Axis(const PoolAxis<int>& a)
      : in(a.in),
        out(a.out),
        step(a.kernel == 0 ? a.in : a.stride),
        reach(a.kernel == 0 ? a.in - 1 : a.kernel - 1 - a.padding),
        padding(a.padding),
        scale(a.kernel == 0 ? a.out : 1),
        before(a.kernel == 0 ? -a.in : a.padding - a.kernel),
        after(a.kernel == 0 ? a.out - 1 : a.padding),
        by_step(a.kernel == 0 ? a.out : 1),
        by_stride(a.kernel == 0 ? a.in : a.stride) {}

  VESAL_DEVICE int begin(int o) const { return by_step.divide(o * step) - padding; }
  VESAL_DEVICE int end(int o) const { return by_step.divide(o * step + reach) + 1; }
  VESAL_DEVICE int extent(int o) const { return end(o) - begin(o); }
  VESAL_DEVICE int first(int o) const { return max(begin(o), 0); }
  VESAL_DEVICE int last(int o) const { return min(end(o), in); }
  VESAL_DEVICE int divisor(int o, bool count_include_pad) const {
    return min(end(o), count_include_pad ? in + padding : in) - (count_include_pad ? begin(o) : first(o));
  }

  struct Range {
    int begin, end;
  };
  VESAL_DEVICE Range windows_over(int voxel) const {
    const int beyond = voxel * scale + before;  // below 0: the first window covers the voxel
    const int next = by_stride.divide(max(beyond, 0)) + 1;
    return {beyond < 0 ? 0 : next, min(by_stride.divide(voxel * scale + after) + 1, out)};
  }
};

struct Axes {
  Axis d, h, w;
  explicit Axes(const PoolParams& p) : Axes(pool_axes<int>(p)) {}
  explicit Axes(const PoolAxes<int>& axes) : d(axes.d), h(axes.h), w(axes.w) {}
};

// T is the storage type; Index is int or int64_t; Number, of the voxels in a window, uint8_t or int32_t.
template <class T, class Index, int kWidth, class Number>
VESAL_KERNEL void max_forward(Axes axes, VoxelPacks<Index, kWidth> result, Index channels,
                              const T* VESAL_RESTRICT x, T* VESAL_RESTRICT y, Number* VESAL_RESTRICT index) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pack >= result.count) {
    return;
  }
  const VoxelPack<Index> p = result.at(static_cast<Index>(pack));
  const int d0 = axes.d.begin(p.d), h0 = axes.h.begin(p.h), w0 = axes.w.begin(p.w);
  const int extent_h = axes.h.extent(p.h), extent_w = axes.w.extent(p.w);
  const int last_d = axes.d.last(p.d), last_h = axes.h.last(p.h), last_w = axes.w.last(p.w);
  const int first_h = axes.h.first(p.h), first_w = axes.w.first(p.w);
  Floats<kWidth> best = {};
  int winners[kWidth];
  VESAL_UNROLL
  for (int k = 0; k < kWidth; ++k) {
    winners[k] = -1;
  }
  for (int d = axes.d.first(p.d); d < last_d; ++d) {
    for (int h = first_h; h < last_h; ++h) {
      const T* line = x + ((p.n * axes.d.in + d) * axes.h.in + h) * axes.w.in * channels + p.c;
      const int number = ((d - d0) * extent_h + h - h0) * extent_w - w0;
      for (int w = first_w; w < last_w; ++w) {
        const Floats<kWidth> values = load_floats<kWidth>(line + w * channels);
        VESAL_UNROLL
        for (int k = 0; k < kWidth; ++k) {
          const float value = values[k];
          if (winners[k] < 0 || value > best[k] || (value != value && best[k] == best[k])) {
            best[k] = value;
            winners[k] = number + w;
          }
        }
      }
    }
  }
  store_floats<kWidth>(y + pack * kWidth, best);
  if (index != nullptr) {
    Pack<Number, kWidth> numbers;
    VESAL_UNROLL
    for (int k = 0; k < kWidth; ++k) {
      numbers[k] = static_cast<Number>(winners[k]);
    }
    store_pack<kWidth>(index + pack * kWidth, numbers);
  }
}

template <class T, class Index, int kWidth>
VESAL_KERNEL void average_forward(Axes axes, VoxelPacks<Index, kWidth> result, Index channels,
                                  bool count_include_pad, const T* VESAL_RESTRICT x, T* VESAL_RESTRICT y) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pack >= result.count) {
    return;
  }
  const VoxelPack<Index> p = result.at(static_cast<Index>(pack));
  const int last_d = axes.d.last(p.d), last_h = axes.h.last(p.h), last_w = axes.w.last(p.w);
  const int first_h = axes.h.first(p.h), first_w = axes.w.first(p.w);
  Floats<kWidth> sums = {};
  for (int d = axes.d.first(p.d); d < last_d; ++d) {
    for (int h = first_h; h < last_h; ++h) {
      const T* line = x + ((p.n * axes.d.in + d) * axes.h.in + h) * axes.w.in * channels + p.c;
      Floats<kWidth> line_sums = {};  // a sum of sums: large windows round less
      for (int w = first_w; w < last_w; ++w) {
        const Floats<kWidth> values = load_floats<kWidth>(line + w * channels);
        VESAL_UNROLL
        for (int k = 0; k < kWidth; ++k) {
          line_sums[k] += values[k];
        }
      }
      VESAL_UNROLL
      for (int k = 0; k < kWidth; ++k) {
        sums[k] += line_sums[k];
      }
    }
  }
  const auto divisor =
      static_cast<float>(axes.d.divisor(p.d, count_include_pad) * axes.h.divisor(p.h, count_include_pad) *
                         axes.w.divisor(p.w, count_include_pad));
  VESAL_UNROLL
  for (int k = 0; k < kWidth; ++k) {
    sums[k] /= divisor;
  }
  store_floats<kWidth>(y + pack * kWidth, sums);
}

template <class T, class Index, int kWidth, class Number>
VESAL_KERNEL void max_backward(Axes axes, VoxelPacks<Index, kWidth> result, Index channels,
                               const T* VESAL_RESTRICT dy, const Number* VESAL_RESTRICT index,
                               T* VESAL_RESTRICT dx) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pack >= result.count) {
    return;
  }
  const VoxelPack<Index> p = result.at(static_cast<Index>(pack));
  const auto over_d = axes.d.windows_over(p.d);
  const auto over_h = axes.h.windows_over(p.h);
  const auto over_w = axes.w.windows_over(p.w);
  Floats<kWidth> sums = {};
  for (int od = over_d.begin; od < over_d.end; ++od) {
    const int in_d = p.d - axes.d.begin(od);
    for (int oh = over_h.begin; oh < over_h.end; ++oh) {
      const int in_h = in_d * axes.h.extent(oh) + p.h - axes.h.begin(oh);
      const Index row = ((p.n * axes.d.out + od) * axes.h.out + oh) * axes.w.out;
      for (int ow = over_w.begin; ow < over_w.end; ++ow) {
        const Index out = (row + ow) * channels + p.c;
        const int number = in_h * axes.w.extent(ow) + p.w - axes.w.begin(ow);
        const Pack<Number, kWidth> winners = load_pack<kWidth>(index + out);
        const Floats<kWidth> gradients = load_floats<kWidth>(dy + out);
        VESAL_UNROLL
        for (int k = 0; k < kWidth; ++k) {
          sums[k] += winners[k] == number ? gradients[k] : 0.0f;
        }
      }
    }
  }
  store_floats<kWidth>(dx + pack * kWidth, sums);
}

template <class T, class Index, int kWidth>
VESAL_KERNEL void average_backward(Axes axes, VoxelPacks<Index, kWidth> result, Index channels,
                                   bool count_include_pad, const T* VESAL_RESTRICT dy, T* VESAL_RESTRICT dx) {
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pack >= result.count) {
    return;
  }
  const VoxelPack<Index> p = result.at(static_cast<Index>(pack));
  const auto over_d = axes.d.windows_over(p.d);
  const auto over_h = axes.h.windows_over(p.h);
  const auto over_w = axes.w.windows_over(p.w);
  Floats<kWidth> sums = {};
  for (int od = over_d.begin; od < over_d.end; ++od) {
    const int divisor_d = axes.d.divisor(od, count_include_pad);
    for (int oh = over_h.begin; oh < over_h.end; ++oh) {
      const int divisor_h = divisor_d * axes.h.divisor(oh, count_include_pad);
      const Index row = ((p.n * axes.d.out + od) * axes.h.out + oh) * axes.w.out;
      for (int ow = over_w.begin; ow < over_w.end; ++ow) {
        const Floats<kWidth> gradients = load_floats<kWidth>(dy + (row + ow) * channels + p.c);
        const float share = 1.0f / static_cast<float>(divisor_h * axes.w.divisor(ow, count_include_pad));
        VESAL_UNROLL
        for (int k = 0; k < kWidth; ++k) {
          sums[k] += gradients[k] * share;
        }
      }
    }
  }
  store_floats<kWidth>(dx + pack * kWidth, sums);
}

int64_t input_count(const PoolParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const PoolParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w() * p.c; }

struct Extents {
  int64_t d, h, w;
};

Extents input_extents(const PoolParams& p) { return {p.d, p.h, p.w}; }
Extents output_extents(const PoolParams& p) { return {p.out_d(), p.out_h(), p.out_w()}; }

// Calls use(result, channels) with a VoxelPacks of these extents: numbers of 32 bits where every element's
// fits, and then four channels a thread where `packed` says that the arrays allow it.
template <class Use>
void with_result(const PoolParams& p, const Extents& extents, bool packed, Use&& use) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const auto start = [&]<class Index, int kWidth>() {
    use(VoxelPacks<Index, kWidth>(p.n, extents.d, extents.h, extents.w, p.c), static_cast<Index>(p.c));
  };
  if (input_count(p) >= kLimit || output_count(p) >= kLimit) {
    start.template operator()<int64_t, 1>();
  } else if (packed && p.c % kPack == 0) {
    start.template operator()<int, kPack>();
  } else {
    start.template operator()<int, 1>();
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
      with_result(params, output_extents(params), can_pack(x, y, numbers),
                  [&]<class Index, int kWidth>(const VoxelPacks<Index, kWidth>& result, Index channels) {
                    launch(context.stream(), {.grid = ceil_div(result.count, kBlock), .block = kBlock},
                           max_forward<T, Index, kWidth, Number>, Axes(params), result, channels, x, y,
                           numbers);
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
      with_result(params, input_extents(params), can_pack(dy, dx, numbers),
                  [&]<class Index, int kWidth>(const VoxelPacks<Index, kWidth>& result, Index channels) {
                    launch(context.stream(), {.grid = ceil_div(result.count, kBlock), .block = kBlock},
                           max_backward<T, Index, kWidth, Number>, Axes(params), result, channels, dy,
                           numbers, dx);
                  });
    });
  });
}

void avg_pool3d_forward(Context& context, const PoolParams& params, ConstData x_, Data y_) {
  with_storage("avg_pool3d_forward", {x_, y_}, [&]<class T>(T) {
    const T* x = x_.as<T>("avg_pool3d_forward: x");
    T* y = y_.as<T>("avg_pool3d_forward: y");
    with_result(params, output_extents(params), can_pack(x, y),
                [&]<class Index, int kWidth>(const VoxelPacks<Index, kWidth>& result, Index channels) {
                  launch(context.stream(), {.grid = ceil_div(result.count, kBlock), .block = kBlock},
                         average_forward<T, Index, kWidth>, Axes(params), result, channels,
                         params.count_include_pad, x, y);
                });
  });
}

void avg_pool3d_backward(Context& context, const PoolParams& params, ConstData dy_, Data dx_) {
  with_storage("avg_pool3d_backward", {dy_, dx_}, [&]<class T>(T) {
    const T* dy = dy_.as<T>("avg_pool3d_backward: dy");
    T* dx = dx_.as<T>("avg_pool3d_backward: dx");
    with_result(params, input_extents(params), can_pack(dy, dx),
                [&]<class Index, int kWidth>(const VoxelPacks<Index, kWidth>& result, Index channels) {
                  launch(context.stream(), {.grid = ceil_div(result.count, kBlock), .block = kBlock},
                         average_backward<T, Index, kWidth>, Axes(params), result, channels,
                         params.count_include_pad, dy, dx);
                });
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
