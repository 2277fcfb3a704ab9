// Max and average pooling, forward and backward.
//
// Bytes: x read once and y (and a byte of index) written once; backward, dy and index read and dx written
// once. Far less than one operation a byte: limited by memory. One thread an element of the result, channels
// fastest, so that a warp reads and writes whole lines; what windows share comes from the caches. Backward is
// a gather over the windows that cover a voxel. Element numbers are 32 bits wide where they fit: the
// divisions that decompose them are not free. No GPU timing exists yet (see bench/results/README.md).
#include "base/size.hpp"
#include "kernels/pooling/pooling.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels::VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;

// Index is int or int64_t.
template <class Index>
struct Shape {
  Index count;  // elements of the result
  Index c;
  Index d, h, w;  // input
  Index out_d, out_h, out_w;
  int kd, kh, kw;
  int sd, sh, sw;
};

template <class Index>
struct Position {
  Index n, d, h, w, c;
};

template <class Index>
VESAL_DEVICE Position<Index> position_of(Index element, Index d, Index h, Index w, Index c) {
  Position<Index> p;
  Index rest = element / c;
  p.c = element - rest * c;
  Index next = rest / w;
  p.w = rest - next * w;
  rest = next;
  next = rest / h;
  p.h = rest - next * h;
  p.n = next / d;
  p.d = next - p.n * d;
  return p;
}

template <class Index>
VESAL_KERNEL void max_forward(Shape<Index> s, const float* VESAL_RESTRICT x, float* VESAL_RESTRICT y,
                              unsigned char* VESAL_RESTRICT index) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= s.count) {
    return;
  }
  const Position<Index> p = position_of<Index>(static_cast<Index>(element), s.out_d, s.out_h, s.out_w, s.c);
  const Index d0 = p.d * s.sd, h0 = p.h * s.sh, w0 = p.w * s.sw;
  float best = 0.0f;
  int winner = -1;
  for (int a = 0; a < s.kd && d0 + a < s.d; ++a) {
    for (int b = 0; b < s.kh && h0 + b < s.h; ++b) {
      const float* line = x + (((p.n * s.d + d0 + a) * s.h + h0 + b) * s.w + w0) * s.c + p.c;
      for (int e = 0; e < s.kw && w0 + e < s.w; ++e) {
        const float value = line[e * s.c];
        if (winner < 0 || value > best || (value != value && best == best)) {
          best = value;
          winner = (a * s.kh + b) * s.kw + e;
        }
      }
    }
  }
  y[element] = best;
  if (index != nullptr) {
    index[element] = static_cast<unsigned char>(winner);
  }
}

template <class Index>
VESAL_KERNEL void average_forward(Shape<Index> s, const float* VESAL_RESTRICT x, float* VESAL_RESTRICT y) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= s.count) {
    return;
  }
  const Position<Index> p = position_of<Index>(static_cast<Index>(element), s.out_d, s.out_h, s.out_w, s.c);
  const Index d0 = p.d * s.sd, h0 = p.h * s.sh, w0 = p.w * s.sw;
  float sum = 0.0f;
  int covered = 0;
  for (int a = 0; a < s.kd && d0 + a < s.d; ++a) {
    for (int b = 0; b < s.kh && h0 + b < s.h; ++b) {
      const float* line = x + (((p.n * s.d + d0 + a) * s.h + h0 + b) * s.w + w0) * s.c + p.c;
      for (int e = 0; e < s.kw && w0 + e < s.w; ++e) {
        sum += line[e * s.c];
        ++covered;
      }
    }
  }
  y[element] = sum / static_cast<float>(covered);
}

// The first of the windows (one every `stride`, `kernel` wide) that cover a position.
template <class Index>
VESAL_DEVICE Index first_window(Index position, int kernel, int stride) {
  return position < kernel ? Index{0} : (position - kernel) / stride + 1;
}

template <class Index>
VESAL_KERNEL void max_backward(Shape<Index> s, const float* VESAL_RESTRICT dy,
                               const unsigned char* VESAL_RESTRICT index, float* VESAL_RESTRICT dx) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= s.count) {
    return;
  }
  const Position<Index> p = position_of<Index>(static_cast<Index>(element), s.d, s.h, s.w, s.c);
  const Index first_w = first_window(p.w, s.kw, s.sw);
  float sum = 0.0f;
  for (Index od = first_window(p.d, s.kd, s.sd); od < s.out_d && od * s.sd <= p.d; ++od) {
    for (Index oh = first_window(p.h, s.kh, s.sh); oh < s.out_h && oh * s.sh <= p.h; ++oh) {
      for (Index ow = first_w; ow < s.out_w && ow * s.sw <= p.w; ++ow) {
        const Index out = (((p.n * s.out_d + od) * s.out_h + oh) * s.out_w + ow) * s.c + p.c;
        const Index number = ((p.d - od * s.sd) * s.kh + p.h - oh * s.sh) * s.kw + p.w - ow * s.sw;
        sum += index[out] == number ? dy[out] : 0.0f;
      }
    }
  }
  dx[element] = sum;
}

template <class Index>
VESAL_KERNEL void average_backward(Shape<Index> s, const float* VESAL_RESTRICT dy, float* VESAL_RESTRICT dx) {
  const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (element >= s.count) {
    return;
  }
  const Position<Index> p = position_of<Index>(static_cast<Index>(element), s.d, s.h, s.w, s.c);
  const Index first_w = first_window(p.w, s.kw, s.sw);
  float sum = 0.0f;
  for (Index od = first_window(p.d, s.kd, s.sd); od < s.out_d && od * s.sd <= p.d; ++od) {
    const Index covered_d = min(static_cast<Index>(s.kd), s.d - od * s.sd);
    for (Index oh = first_window(p.h, s.kh, s.sh); oh < s.out_h && oh * s.sh <= p.h; ++oh) {
      const Index covered_h = min(static_cast<Index>(s.kh), s.h - oh * s.sh);
      for (Index ow = first_w; ow < s.out_w && ow * s.sw <= p.w; ++ow) {
        const Index covered_w = min(static_cast<Index>(s.kw), s.w - ow * s.sw);
        const Index out = (((p.n * s.out_d + od) * s.out_h + oh) * s.out_w + ow) * s.c + p.c;
        sum += dy[out] / static_cast<float>(covered_d * covered_h * covered_w);
      }
    }
  }
  dx[element] = sum;
}

int64_t input_count(const PoolParams& p) { return p.n * p.d * p.h * p.w * p.c; }
int64_t output_count(const PoolParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w() * p.c; }

template <class Index>
Shape<Index> shape_of(const PoolParams& p, int64_t count) {
  const auto index = [](int64_t value) { return static_cast<Index>(value); };
  return {index(count),     index(p.c),       index(p.d),       index(p.h),  index(p.w),
          index(p.out_d()), index(p.out_h()), index(p.out_w()), p.kernel[0], p.kernel[1],
          p.kernel[2],      p.stride[0],      p.stride[1],      p.stride[2]};
}

// Calls start(Shape) with numbers of 32 bits where every element, position and stride fits.
template <class Start>
void with_shape(const PoolParams& p, int64_t count, Start&& start) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const bool small = input_count(p) < kLimit && output_count(p) < kLimit && p.stride[0] < 65536 &&
                     p.stride[1] < 65536 && p.stride[2] < 65536;
  if (small) {
    start(shape_of<int>(p, count));
  } else {
    start(shape_of<int64_t>(p, count));
  }
}

}  // namespace

void max_pool3d_forward(Context& context, const PoolParams& params, ConstData x_, Data y_, uint8_t* index) {
  const float* x = x_.as<float>("max_pool3d_forward: x");
  float* y = y_.as<float>("max_pool3d_forward: y");
  with_shape(params, output_count(params), [&]<class Index>(const Shape<Index>& shape) {
    launch(context.stream(), {.grid = ceil_div(shape.count, kBlock), .block = kBlock}, max_forward<Index>,
           shape, x, y, index);
  });
}

void max_pool3d_backward(Context& context, const PoolParams& params, ConstData dy_, const uint8_t* index,
                         Data dx_) {
  const float* dy = dy_.as<float>("max_pool3d_backward: dy");
  float* dx = dx_.as<float>("max_pool3d_backward: dx");
  with_shape(params, input_count(params), [&]<class Index>(const Shape<Index>& shape) {
    launch(context.stream(), {.grid = ceil_div(shape.count, kBlock), .block = kBlock}, max_backward<Index>,
           shape, dy, index, dx);
  });
}

void avg_pool3d_forward(Context& context, const PoolParams& params, ConstData x_, Data y_) {
  const float* x = x_.as<float>("avg_pool3d_forward: x");
  float* y = y_.as<float>("avg_pool3d_forward: y");
  with_shape(params, output_count(params), [&]<class Index>(const Shape<Index>& shape) {
    launch(context.stream(), {.grid = ceil_div(shape.count, kBlock), .block = kBlock}, average_forward<Index>,
           shape, x, y);
  });
}

void avg_pool3d_backward(Context& context, const PoolParams& params, ConstData dy_, Data dx_) {
  const float* dy = dy_.as<float>("avg_pool3d_backward: dy");
  float* dx = dx_.as<float>("avg_pool3d_backward: dx");
  with_shape(params, input_count(params), [&]<class Index>(const Shape<Index>& shape) {
    launch(context.stream(), {.grid = ceil_div(shape.count, kBlock), .block = kBlock},
           average_backward<Index>, shape, dy, dx);
  });
}

}  // namespace vesal::kernels::VESAL_BACKEND
