// The loops of elementwise kernels over packs of four elements, in the portable kernel dialect; for .cu
// files. A functor in plain data maps numbers to a number; the loop reads and writes. Every thread asks for
// all that it reads before it needs the first of it: y may be an input, so that the compiler may not do this
// by itself.
#pragma once

#include <type_traits>

#include "base/size.hpp"
#include "kernels/context/packs.hpp"

namespace vesal::kernels::VESAL_BACKEND {

inline constexpr int kPackThreads = 256;
inline constexpr int kPacksPerThread = 2;
inline constexpr int kPackBlock = kPackThreads * kPacksPerThread * kPack;
inline constexpr int kPackRows = 8;

// f, or where it differs from sample to sample f.of(sample).
template <class F>
VESAL_DEVICE auto function_of(const F& f, int64_t sample) {
  if constexpr (requires { f.of(sample); }) {
    return f.of(sample);
  } else {
    return f;
  }
}

// How many inputs a function reads: all of G::kInputs, or where that depends on its numbers g.inputs().
template <class G>
VESAL_DEVICE int inputs_of(const G& g) {
  if constexpr (requires { g.inputs(); }) {
    return g.inputs();
  } else {
    return G::kInputs;
  }
}

// y[i] = g(a[i], b[i]) for the samples of `inner` elements, g = function_of(f, sample); zeros for what g does
// not read. Block (part of the sample, -, sample). packed: every sample begins where a pack may.
template <class F, class From, class To>
VESAL_KERNEL void pack_map_kernel(int64_t inner, bool packed, F f, const From* a, const From* b, To* y) {
  const int64_t sample = blockIdx.z;
  const auto g = function_of(f, sample);
  using G = std::remove_cv_t<decltype(g)>;
  const int inputs = inputs_of(g);
  const bool first = G::kInputs >= 1 && inputs >= 1;
  const bool second = G::kInputs >= 2 && inputs >= 2;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPackBlock;
  const int64_t base = sample * inner + begin;
  const int length = inner - begin < kPackBlock ? static_cast<int>(inner - begin) : kPackBlock;
  const int in_packs = packed ? length - length % kPack : 0;
  Floats<kPack> left[kPacksPerThread] = {}, right[kPacksPerThread] = {};
  VESAL_UNROLL
  for (int k = 0; k < kPacksPerThread; ++k) {
    const int i = (k * kPackThreads + thread) * kPack;
    if (first && i < in_packs) {
      left[k] = load_floats<kPack>(a + base + i);
    }
    if (second && i < in_packs) {
      right[k] = load_floats<kPack>(b + base + i);
    }
  }
  VESAL_UNROLL
  for (int k = 0; k < kPacksPerThread; ++k) {
    const int i = (k * kPackThreads + thread) * kPack;
    if (i < in_packs) {
      Floats<kPack> out;
      VESAL_UNROLL
      for (int j = 0; j < kPack; ++j) {
        out[j] = g(left[k][j], right[k][j]);
      }
      store_floats<kPack>(y + base + i, out);
    }
  }
  for (int i = in_packs + thread; i < length; i += kPackThreads) {
    y[base + i] = narrow<To>(g(first ? widen(a[base + i]) : 0.0f, second ? widen(b[base + i]) : 0.0f));
  }
}

template <class F, class From, class To>
void launch_pack_map(StreamHandle stream, int64_t n, int64_t inner, const F& f, To* y, const From* a,
                     const std::type_identity_t<From>* b = nullptr) {
  const bool packed = can_pack(a, b, y) && (n == 1 || inner % kPack == 0);
  launch(stream, {.grid = {ceil_div(inner, kPackBlock), 1, n}, .block = {kPackThreads, 1, 1}},
         pack_map_kernel<F, From, To>, inner, packed, f, a, b, y);
}

// [n, rows, channels], channels in packs: y = f(x, state) with f.states(sample, column) of the four channels
// from `column`. Block (rows, tile of 2^shift packs, sample); kPackRows rows a thread, which share the
// states.
template <class F, class T>
VESAL_KERNEL void pack_columns_kernel(int64_t rows, int64_t channels, int shift, F f, const T* x, T* y) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t sample = blockIdx.z;
  const int64_t column =
      ((static_cast<int64_t>(blockIdx.y) << shift) + (thread & ((1 << shift) - 1))) * kPack;
  if (column >= channels) {
    return;
  }
  const int step = kPackThreads >> shift;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (step * kPackRows) + (thread >> shift);
  const int64_t base = (sample * rows + row) * channels + column;
  const int64_t stride = step * channels;
  Floats<kPack> values[kPackRows] = {};
  VESAL_UNROLL
  for (int k = 0; k < kPackRows; ++k) {
    if (row + k * step < rows) {
      values[k] = load_floats<kPack>(x + base + k * stride);
    }
  }
  const Floats<kPack> states = f.states(sample, column);
  VESAL_UNROLL
  for (int k = 0; k < kPackRows; ++k) {
    if (row + k * step < rows) {
      VESAL_UNROLL
      for (int j = 0; j < kPack; ++j) {
        values[k][j] = f(values[k][j], states[j]);
      }
      store_floats<kPack>(y + base + k * stride, values[k]);
    }
  }
}

// channels % kPack is 0 and can_pack(x, y).
template <class F, class T>
void launch_pack_columns(StreamHandle stream, int64_t n, int64_t rows, int64_t channels, const F& f,
                         const T* x, T* y) {
  const int64_t packs = channels / kPack;
  int shift = 0;
  while (shift < 5 && (1 << shift) < packs) {
    ++shift;
  }
  launch(stream,
         {.grid = {ceil_div(rows, (kPackThreads >> shift) * kPackRows), ceil_div(packs, 1 << shift), n},
          .block = {kPackThreads, 1, 1}},
         pack_columns_kernel<F, T>, rows, channels, shift, f, x, y);
}

}  // namespace vesal::kernels::VESAL_BACKEND
