// The rotary embedding on the CPU: sines and cosines of every place and pair first, then one pass over the
// tokens.
#include <algorithm>
#include <vector>

#include "base/parallel.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/rotary/rotary.hpp"
#include "kernels/rotary/rotary_angle.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(rotary_forward)
VESAL_DECLARE_BACKENDS(rotary_backward)

namespace cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;  // numbers worth a thread

template <class T>
void turn(const RotaryParams& p, Input<T> x, int64_t x_stride, Output<T> y, int64_t y_stride,
          float direction) {
  const RotaryFrequencies frequencies = rotary_frequencies(p);
  const int pairs = p.pairs();
  const int places = std::max({p.grid[0], p.grid[1], p.grid[2]});
  std::vector<RotaryAngle> angles;
  angles.reserve(static_cast<size_t>(places) * static_cast<size_t>(pairs));
  for (int place = 0; place < places; ++place) {
    for (int i = 0; i < pairs; ++i) {
      const RotaryAngle angle = rotary_angle(place, frequencies.turns[i], frequencies.rest[i]);
      angles.push_back({angle.cosine, direction * angle.sine});
    }
  }
  const int turned = 2 * p.axes * pairs;
  parallel_for(p.n * p.tokens, std::max<int64_t>(1, kGrain / p.channels()), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t l = token % p.tokens;
      const int64_t on_grid = l % p.grid_size();
      const int64_t place[3] = {on_grid % p.grid[2], on_grid / p.grid[2] % p.grid[1],
                                on_grid / p.grid[2] / p.grid[1]};
      const int first_unchanged = l < p.tokens - p.excluded ? turned : 0;
      for (int m = 0; m < p.heads; ++m) {
        const Input<T> from = x + (token * x_stride + int64_t{m} * p.head_dim);
        const Output<T> to = y + (token * y_stride + int64_t{m} * p.head_dim);
        for (int a = 0; a < p.axes && first_unchanged > 0; ++a) {
          const RotaryAngle* angle = angles.data() + place[a] * pairs;
          for (int i = 0; i < pairs; ++i) {
            const int c = 2 * (a * pairs + i);
            const float first = from[c];
            const float second = from[c + 1];
            // Fused explicitly: GCC 12 makes one multiply-add-subtract of such a pair, -ffp-contract=off or
            // not, but not in every instance of the loop.
            to[c] = __builtin_fmaf(first, angle[i].cosine, -(second * angle[i].sine));
            to[c + 1] = __builtin_fmaf(first, angle[i].sine, second * angle[i].cosine);
          }
        }
        for (int c = first_unchanged; c < p.head_dim; ++c) {
          to[c] = from[c];
        }
      }
    }
  });
}

}  // namespace

void rotary_forward(Context&, const RotaryParams& p, ConstData x, Data y) {
  with_storage("rotary_forward", {x, y}, [&]<class T>(T) {
    turn<T>(p, input<T>(x, "rotary_forward: x"), p.x_stride, output<T>(y, "rotary_forward: y"), p.y_stride,
            1.0f);
  });
}

void rotary_backward(Context&, const RotaryParams& p, ConstData dy, Data dx) {
  with_storage("rotary_backward", {dy, dx}, [&]<class T>(T) {
    turn<T>(p, input<T>(dy, "rotary_backward: dy"), p.y_stride, output<T>(dx, "rotary_backward: dx"),
            p.x_stride, -1.0f);
  });
}

}  // namespace cpu
}  // namespace vesal::kernels
