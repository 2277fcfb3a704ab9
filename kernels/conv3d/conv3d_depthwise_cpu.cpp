// See the header. Lanes are channels, so that every load is one of neighbouring floats (only a multiplier
// above one makes some of them gathers); up to four registers of channels go through the taps together.
// Forward and data gradient are the same loop over a list, made once for each axis, of which source position
// meets which target position through which tap: stride, dilation and the volume's edges are in the list
// only.
#include "kernels/conv3d/conv3d_depthwise_cpu.hpp"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "base/parallel.hpp"
#include "base/size.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/vector_lanes.hpp"

namespace vesal::kernels::cpu {
namespace {

constexpr int kMostBlocks = 4;  // registers of channels that are worked on together

// One source position and tap that contribute to a target position, as steps in the source and in the
// weights.
struct Meeting {
  int64_t source, tap;
};

// The meetings of all target positions along an axis.
struct Axis {
  std::vector<Meeting> meetings;
  std::vector<size_t> first;  // of each target position, and the end

  const Meeting* begin(int64_t target) const { return meetings.data() + first[static_cast<size_t>(target)]; }
  const Meeting* end(int64_t target) const {
    return meetings.data() + first[static_cast<size_t>(target) + 1];
  }
};

// `backward`: from outputs to inputs.
Axis make_axis(const Conv3dParams& p, size_t number, bool backward, int64_t source_step, int64_t tap_step) {
  const int64_t inputs = std::array{p.d, p.h, p.w}[number];
  const int64_t outputs = std::array{p.out_d(), p.out_h(), p.out_w()}[number];
  const int64_t stride = p.stride[number];
  Axis axis;
  for (int64_t target = 0; target < (backward ? inputs : outputs); ++target) {
    axis.first.push_back(axis.meetings.size());
    for (int64_t tap = 0; tap < p.kernel[number]; ++tap) {
      const int64_t shift = tap * p.dilation[number] - p.padding[number];
      const int64_t source = backward ? (target - shift) / stride : target * stride + shift;
      const bool meets = backward ? target >= shift && source * stride + shift == target && source < outputs
                                  : source >= 0 && source < inputs;
      if (meets) {
        axis.meetings.push_back({source * source_step, tap * tap_step});
      }
    }
  }
  axis.first.push_back(axis.meetings.size());
  return axis;
}

// kLanes neighbouring stored values.
inline Lanes load_values(const float* p) { return load_lanes(p); }
template <class T>
Lanes load_values(const T* p) {
  typedef uint16_t Bits __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(2), may_alias));
  const LanesInt bits = __builtin_convertvector(*reinterpret_cast<const Bits*>(p), LanesInt);
  if constexpr (std::is_same_v<T, bf16>) {
    return reinterpret_cast<Lanes>(bits << 16);
  } else {  // as widen(f16)
    const LanesInt magnitude = bits & 0x7fff, shifted = magnitude << 13;
    const LanesInt finite = reinterpret_cast<LanesInt>(reinterpret_cast<Lanes>(shifted) * 0x1p112f);
    const LanesInt wide = magnitude >= 0x7c00 ? shifted | 0x7f800000 : finite;
    return reinterpret_cast<Lanes>(wide | (bits & 0x8000) << 16);
  }
}

// The first `count` lanes from memory, zeros in the others.
template <class T>
Lanes load_some(const T* p, int64_t count) {
  T values[kLanes] = {};
  std::copy_n(p, count, values);
  return load_values(values);
}
inline Lanes load_some(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#else
  Lanes v{};
  for (int64_t l = 0; l < count; ++l) {
    v[l] = p[l];
  }
  return v;
#endif
}

// Lane l from p[l * step]: kUnit for neighbouring values.
template <bool kUnit, class T>
inline Lanes load_channels(const T* p, int64_t step, int64_t count) {
  if constexpr (kUnit) {
    return count >= kLanes ? load_values(p) : load_some(p, count);
  } else {
    Lanes v{};
    for (int64_t l = 0; l < std::min<int64_t>(count, kLanes); ++l) {
      v[l] = widen(p[l * step]);
    }
    return v;
  }
}

template <class T>
void store_channels(T* p, int64_t step, int64_t count, Lanes v) {
  if constexpr (std::is_same_v<T, float>) {
    if (step == 1 && count >= kLanes) {
      store_lanes(p, v);
      return;
    }
  }
  float values[kLanes];
  store_lanes(values, v);
  T narrowed[kLanes];
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) {
    narrowed[l] = narrow<T>(values[l]);
  }
  for (int64_t l = 0; l < std::min<int64_t>(count, kLanes); ++l) {
    p[l * step] = narrowed[l];
  }
}

// Calls body.template operator()<registers>(first channel) for chunks of up to kMostBlocks registers of
// channels.
template <class Body>
inline void for_each_chunk(int64_t channels, Body&& body) {
  for (int64_t c = 0; c < channels; c += kMostBlocks * kLanes) {
    switch (std::min<int64_t>(ceil_div(channels - c, kLanes), kMostBlocks)) {
      case 1:
        body.template operator()<1>(c);
        break;
      case 2:
        body.template operator()<2>(c);
        break;
      case 3:
        body.template operator()<3>(c);
        break;
      default:
        body.template operator()<kMostBlocks>(c);
    }
  }
}

int64_t multiplier(const Conv3dParams& p) { return p.c_out / p.c_in; }

// packed[j][tap][channel] of output channel * multiplier + j, channels padded to whole registers.
template <class T>
void pack(const Conv3dParams& p, const T* weight, float* packed) {
  const int64_t taps = p.taps();
  const int64_t m = multiplier(p);
  const int64_t pitch = round_up_to_lanes(p.c_in);
  std::fill_n(packed, m * taps * pitch, 0.0f);
  for (int64_t k = 0; k < p.c_out; ++k) {
    for (int64_t t = 0; t < taps; ++t) {
      packed[(k % m * taps + t) * pitch + k / m] = widen(weight[k * taps + t]);
    }
  }
}

// A line of the source and the weights that it meets.
template <class T>
struct SourceLine {
  const T* values;
  const float* weights;
};

// What of the source a target voxel adds up: lines met through depth and height, positions met along the
// line.
template <class T>
struct Sum {
  const SourceLine<T>* lines;
  int64_t line_count;
  const Meeting* begin;
  const Meeting* end;
  int64_t step;      // from channel to channel of the source
  int64_t channels;  // c_in

  template <int kBlocks, bool kUnit>
  void add(int64_t offset, int64_t weight_offset, int64_t channel, Lanes (&sums)[kBlocks]) const {
    const int64_t last = channels - channel - (kBlocks - 1) * kLanes;  // channels in the last register
    for (int64_t r = 0; r < line_count; ++r) {
      for (const Meeting* meeting = begin; meeting != end; ++meeting) {
        const T* values = lines[r].values + meeting->source + offset + channel * step;
        const float* weights = lines[r].weights + meeting->tap + weight_offset + channel;
        for (int b = 0; b < kBlocks; ++b) {
          sums[b] = fma_lanes(
              load_channels<kUnit>(values + b * kLanes * step, step, b + 1 < kBlocks ? kLanes : last),
              load_lanes(weights + b * kLanes), sums[b]);
        }
      }
    }
  }
};

template <int kBlocks>
void start(const float* bias, int64_t step, int64_t channels, int64_t channel, Lanes (&sums)[kBlocks]) {
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t first = channel + b * kLanes;
    sums[b] = bias != nullptr ? load_channels<false>(bias + first * step, step, channels - first) : Lanes{};
  }
}

// Calls body(target voxel's memory, Sum) for each voxel of the target.
template <class T, class Body>
void for_each_target(const Conv3dParams& p, bool backward, const T* source, const float* packed, T* target,
                     Body&& body) {
  const int64_t m = multiplier(p);
  const int64_t weight_pitch = round_up_to_lanes(p.c_in);
  const std::array inputs{p.d, p.h, p.w};
  const std::array outputs{p.out_d(), p.out_h(), p.out_w()};
  const auto& from = backward ? outputs : inputs;
  const auto& to = backward ? inputs : outputs;
  const int64_t from_pitch = backward ? p.c_out : p.c_in;
  const int64_t to_pitch = backward ? p.c_in : p.c_out;
  const Axis deep =
      make_axis(p, 0, backward, from[1] * from[2] * from_pitch, p.kernel[1] * p.kernel[2] * weight_pitch);
  const Axis high = make_axis(p, 1, backward, from[2] * from_pitch, p.kernel[2] * weight_pitch);
  const Axis wide = make_axis(p, 2, backward, from_pitch, weight_pitch);
  const int64_t work = std::max<int64_t>(to[2] * p.c_out * p.taps(), 1);
  parallel_for(p.n * to[0] * to[1], ceil_div(32768, work), [&](int64_t first, int64_t last) {
    SourceLine<T> lines[49];
    for (int64_t line = first; line < last; ++line) {
      const int64_t h = line % to[1];
      const int64_t d = line / to[1] % to[0];
      const T* volume = source + line / (to[1] * to[0]) * from[0] * from[1] * from[2] * from_pitch;
      int64_t count = 0;
      for (const Meeting* a = deep.begin(d); a != deep.end(d); ++a) {
        for (const Meeting* b = high.begin(h); b != high.end(h); ++b) {
          lines[count++] = {volume + a->source + b->source, packed + a->tap + b->tap};
        }
      }
      for (int64_t w = 0; w < to[2]; ++w) {
        body(target + (line * to[2] + w) * to_pitch,
             Sum<T>{lines, count, wide.begin(w), wide.end(w), backward ? m : 1, p.c_in});
      }
    }
  });
}

// Parts of the weight gradient's sum, from the sizes only.
int64_t slab_count(const Conv3dParams& p) {
  return std::clamp<int64_t>(p.n * p.out_d() * p.out_h() * p.out_w() / 2048, 1, 32);
}
int64_t packed_count(const Conv3dParams& p) { return multiplier(p) * p.taps() * round_up_to_lanes(p.c_in); }

// sums += dy * x over the positions q of a line, which meet x at positions stride apart.
template <bool kUnit, class T>
void add_line(const Conv3dParams& p, const T* x, const T* dy, int64_t count, float* sums) {
  const int64_t m = multiplier(p);
  const int64_t x_step = p.stride[2] * p.c_in;
  for_each_chunk(p.c_in, [&]<int kBlocks>(int64_t channel) {
    Lanes chunk[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
      chunk[b] = load_lanes(sums + channel + b * kLanes);
    }
    const int64_t last = p.c_in - channel - (kBlocks - 1) * kLanes;
    for (int64_t q = 0; q < count; ++q) {
      const T* values = x + q * x_step + channel;
      const T* gradients = dy + q * p.c_out + channel * m;
      for (int b = 0; b < kBlocks; ++b) {
        const int64_t lanes = b + 1 < kBlocks ? kLanes : last;
        chunk[b] = fma_lanes(load_channels<kUnit>(gradients + b * kLanes * m, m, lanes),
                             load_channels<true>(values + b * kLanes, 1, lanes), chunk[b]);
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      store_lanes(sums + channel + b * kLanes, chunk[b]);
    }
  });
}

}  // namespace

bool is_depthwise(const Conv3dParams& p) { return p.groups > 1 && p.groups == p.c_in; }

size_t depthwise_workspace_bytes(const Conv3dParams& p, ConvPass pass) {
  return static_cast<size_t>((pass == ConvPass::backward_weight ? slab_count(p) : 1) * packed_count(p)) *
         sizeof(float);
}

template <class T>
void depthwise_forward(const Conv3dParams& p, const T* x, const T* weight, const float* bias, T* y,
                       float* workspace) {
  pack(p, weight, workspace);
  const int64_t m = multiplier(p);
  for_each_target(p, false, x, workspace, y, [&](T* target, const Sum<T>& sum) {
    for (int64_t j = 0; j < m; ++j) {
      for_each_chunk(p.c_in, [&]<int kBlocks>(int64_t channel) {
        Lanes sums[kBlocks];
        start(bias != nullptr ? bias + j : nullptr, m, p.c_in, channel, sums);
        sum.template add<kBlocks, true>(0, j * p.taps() * round_up_to_lanes(p.c_in), channel, sums);
        for (int b = 0; b < kBlocks; ++b) {
          const int64_t first = channel + b * kLanes;
          store_channels(target + first * m + j, m, p.c_in - first, sums[b]);
        }
      });
    }
  });
}

template <class T>
void depthwise_adjoint(const Conv3dParams& p, const T* dy, const T* weight, const float* bias, T* dx,
                       float* workspace) {
  pack(p, weight, workspace);
  const int64_t m = multiplier(p);
  for_each_target(p, true, dy, workspace, dx, [&](T* target, const Sum<T>& sum) {
    for_each_chunk(p.c_in, [&]<int kBlocks>(int64_t channel) {
      Lanes sums[kBlocks];
      start(bias, 1, p.c_in, channel, sums);
      if (m == 1) {
        sum.template add<kBlocks, true>(0, 0, channel, sums);
      } else {
        for (int64_t j = 0; j < m; ++j) {
          sum.template add<kBlocks, false>(j, j * p.taps() * round_up_to_lanes(p.c_in), channel, sums);
        }
      }
      for (int b = 0; b < kBlocks; ++b) {
        const int64_t first = channel + b * kLanes;
        store_channels(target + first, 1, p.c_in - first, sums[b]);
      }
    });
  });
}

template <class T>
void depthwise_backward_weight(const Conv3dParams& p, const T* x, const T* dy, float* dweight, GradMode mode,
                               float* workspace) {
  const int64_t m = multiplier(p);
  const int64_t taps = p.taps();
  const int64_t pitch = round_up_to_lanes(p.c_in);
  const int64_t slabs = slab_count(p);
  const int64_t lines = p.n * p.out_d() * p.out_h();
  const Axis deep = make_axis(p, 0, false, p.h * p.w * p.c_in, p.kernel[1] * p.kernel[2]);
  const Axis high = make_axis(p, 1, false, p.w * p.c_in, p.kernel[2]);
  parallel_for(slabs, 1, [&](int64_t first_slab, int64_t last_slab) {
    for (int64_t slab = first_slab; slab < last_slab; ++slab) {
      float* partial = workspace + slab * packed_count(p);
      std::fill_n(partial, packed_count(p), 0.0f);
      for (int64_t line = lines * slab / slabs; line < lines * (slab + 1) / slabs; ++line) {
        const int64_t h = line % p.out_h();
        const int64_t d = line / p.out_h() % p.out_d();
        const T* volume = x + line / (p.out_h() * p.out_d()) * p.d * p.h * p.w * p.c_in;
        for (const Meeting* a = deep.begin(d); a != deep.end(d); ++a) {
          for (const Meeting* b = high.begin(h); b != high.end(h); ++b) {
            const T* source = volume + a->source + b->source;
            for (int64_t c = 0; c < p.kernel[2]; ++c) {
              const int64_t shift = c * p.dilation[2] - p.padding[2];
              const int64_t stride = p.stride[2];
              // The outputs q with 0 <= q * stride + shift < w.
              const int64_t begin = shift < 0 ? ceil_div(-shift, stride) : 0;
              const int64_t end = shift < p.w ? std::min(p.out_w(), (p.w - 1 - shift) / stride + 1) : 0;
              if (begin >= end) {
                continue;
              }
              const T* values = source + (begin * stride + shift) * p.c_in;
              const T* gradients = dy + (line * p.out_w() + begin) * p.c_out;
              float* sums = partial + (a->tap + b->tap + c) * pitch;
              if (m == 1) {
                add_line<true>(p, values, gradients, end - begin, sums);
                continue;
              }
              for (int64_t j = 0; j < m; ++j) {
                add_line<false>(p, values, gradients + j, end - begin, sums + j * taps * pitch);
              }
            }
          }
        }
      }
    }
  });
  for (int64_t k = 0; k < p.c_out; ++k) {
    for (int64_t t = 0; t < taps; ++t) {
      float sum = 0.0f;
      for (int64_t slab = 0; slab < slabs; ++slab) {
        sum += workspace[slab * packed_count(p) + (k % m * taps + t) * pitch + k / m];
      }
      float& target = dweight[k * taps + t];
      target = mode == GradMode::accumulate ? target + sum : sum;
    }
  }
}

#define VESAL_DEPTHWISE(T)                                                                            \
  template void depthwise_forward(const Conv3dParams&, const T*, const T*, const float*, T*, float*); \
  template void depthwise_adjoint(const Conv3dParams&, const T*, const T*, const float*, T*, float*); \
  template void depthwise_backward_weight(const Conv3dParams&, const T*, const T*, float*, GradMode, float*);
VESAL_DEPTHWISE(float)
VESAL_DEPTHWISE(bf16)
VESAL_DEPTHWISE(f16)
#undef VESAL_DEPTHWISE

}  // namespace vesal::kernels::cpu
