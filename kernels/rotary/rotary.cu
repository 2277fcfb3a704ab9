// The rotary embedding on a GPU, float32 arithmetic, in the portable dialect.
//
// What it computes: rotary.hpp: 2 numbers moved for each of x, 3 flops, and for each pair a sine and a cosine
// of about
// 20. What limits it: memory. How: a thread a pair; neighbouring threads read neighbouring pairs.
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/rotary/rotary.hpp"
#include "kernels/rotary/rotary_angle.hpp"
#include "kernels/simt/device.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(rotary_forward)
VESAL_DECLARE_BACKENDS(rotary_backward)

namespace VESAL_BACKEND {
namespace {

constexpr int kBlock = 256;

// Plain data, passed to kernels by value.
struct Geometry {
  int64_t tokens, all_tokens, turned_tokens, grid_size;
  int heads, dim, axes, pairs;
  int width, height;
};

// Thread (token, head, pair); the last pair of an odd head_dim is a single number.
template <class T>
VESAL_KERNEL void turn_kernel(Geometry g, RotaryFrequencies frequencies, const T* x, int64_t x_stride, T* y,
                              int64_t y_stride, float direction) {
  const int row_pairs = (g.dim + 1) / 2;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (index >= g.all_tokens * g.heads * row_pairs) {
    return;
  }
  const int pair = static_cast<int>(index % row_pairs);
  const int64_t head = index / row_pairs % g.heads;
  const int64_t token = index / row_pairs / g.heads;
  const T* from = x + token * x_stride + head * g.dim + 2 * pair;
  T* to = y + token * y_stride + head * g.dim + 2 * pair;
  const bool whole = 2 * pair + 1 < g.dim;
  const float first = widen(from[0]);
  const float second = whole ? widen(from[1]) : 0.0f;
  const int64_t l = token % g.tokens;
  RotaryAngle angle{1.0f, 0.0f};
  const int axis = pair / g.pairs;
  if (l < g.turned_tokens && axis < g.axes) {
    const int64_t on_grid = l % g.grid_size;
    const int64_t line = on_grid / g.width;
    const int64_t place = axis == 0 ? on_grid % g.width : axis == 1 ? line % g.height : line / g.height;
    angle = rotary_angle(static_cast<int>(place), frequencies.turns[pair % g.pairs],
                         frequencies.rest[pair % g.pairs]);
    angle.sine *= direction;
  }
  to[0] = narrow<T>(first * angle.cosine - second * angle.sine);
  if (whole) {
    to[1] = narrow<T>(first * angle.sine + second * angle.cosine);
  }
}

void turn(Context& context, const char* op, const RotaryParams& p, ConstData x, int64_t x_stride, Data y,
          int64_t y_stride, float direction) {
  const Geometry g{
      p.tokens,  p.n * p.tokens, p.tokens - p.excluded, p.grid_size(), p.heads, p.head_dim, p.axes, p.pairs(),
      p.grid[2], p.grid[1]};
  with_storage(op, {x, y}, [&]<class T>(T) {
    launch(context.stream(),
           {.grid = ceil_div(g.all_tokens * g.heads * ((g.dim + 1) / 2), kBlock), .block = kBlock},
           turn_kernel<T>, g, rotary_frequencies(p), x.as<T>(op), x_stride, y.as<T>(op), y_stride, direction);
  });
}

}  // namespace

void rotary_forward(Context& context, const RotaryParams& p, ConstData x, Data y) {
  turn(context, "rotary_forward", p, x, p.x_stride, y, p.y_stride, 1.0f);
}

void rotary_backward(Context& context, const RotaryParams& p, ConstData dy, Data dx) {
  turn(context, "rotary_backward", p, dy, p.y_stride, dx, p.x_stride, -1.0f);
}

}  // namespace VESAL_BACKEND
}  // namespace vesal::kernels
