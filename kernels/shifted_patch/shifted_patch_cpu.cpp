// Shifted patch tokenization on the CPU. Tokens are gathered and normalised in blocks of 32 that stay in the
// cache, then multiplied with the projection, packed once a call with gamma folded in, by a register-blocked
// product.
//
// The backward pass gathers again. With X the normalised features before gamma and beta, D the scaled dy and
// A = D^T X, B = column sums of D, the parameters' gradients are
//   dweight = gamma A + beta B,  dgamma = sum over outputs of weight A,  dbeta = sum over outputs of weight
//   B,
// so one product over the tokens serves all three. It is shared out over features, each thread adding all
// tokens in order; the gradient of x is collected per voxel, for a sample in float32 scratch where it is
// stored in 16 bits. So no result depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "base/parallel.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"
#include "kernels/shifted_patch/shifted_patch.hpp"
#include "kernels/vector_lanes.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(shifted_patch_workspace_bytes)
VESAL_DECLARE_BACKENDS(shifted_patch_forward)
VESAL_DECLARE_BACKENDS(shifted_patch_backward)

namespace cpu {
namespace {

constexpr int kRows = kLanes == 16 ? 8 : 4;  // rows of a register block
constexpr int kDepth = 256;                  // terms added before a sum goes back to memory
constexpr int64_t kTokenBlock = 32;          // tokens gathered and multiplied at once
constexpr int64_t kSliceFloats = int64_t{1}
                                 << 19;  // aim; numbers of the slice of tokens that is held at once

// One voxel of a token's features: where it is read from, relative to the token's first voxel.
struct Tap {
  int offset[3];    // inside the patch: must be in the volume
  int source[3];    // offset + shift * direction: must be in the volume
  int64_t element;  // of the source, in elements of x
};

// Sizes, and where the parts of the workspace lie (each aligned to 64 bytes).
struct Plan {
  int64_t features, padded_features, outs, padded_outs, taps;
  int64_t tokens;  // of one sample
  int64_t slice;   // tokens held at once
  int64_t row;     // numbers of a token: groups x padded_features
  int reach[3];    // voxels that copies move along an axis
  Tap* tap = nullptr;
  float* weight =
      nullptr;  // forward [groups][padded_features][padded_outs], backward [groups][outs][padded_features]
  float* constant = nullptr;   // [groups][padded_outs]: bias + weight beta
  float* base = nullptr;       // [padded_outs]: a sample's sum of constants
  float* x = nullptr;          // [slice][groups][padded_features], normalised
  float* dx = nullptr;         // the same, gradients
  float* y = nullptr;          // [slice][padded_outs]; backward: scaled dy
  float* a = nullptr;          // [groups][outs][padded_features]
  double* sums = nullptr;      // [n][padded_outs]: dy summed over tokens
  float* b = nullptr;          // [groups][padded_outs]
  float* collected = nullptr;  // a sample's dx, where that is not stored as float32
  size_t bytes = 0;

  template <class T>
  void place(T*& part, void* base_address, int64_t count) {
    if (base_address != nullptr) {
      part = reinterpret_cast<T*>(static_cast<char*>(base_address) + bytes);
    }
    bytes += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }
};

int64_t sample_values(const ShiftedPatchParams& p) { return p.d * p.h * p.w * p.groups * p.channels; }

Plan make_plan(const ShiftedPatchParams& p, ShiftedPatchPass pass, void* base) {
  Plan plan{};
  plan.features = p.features();
  plan.padded_features = round_up_to_lanes(plan.features);
  plan.outs = p.out;
  plan.padded_outs = round_up_to_lanes(p.out);
  plan.taps = plan.features / p.channels;
  plan.tokens = p.tokens() / p.n;
  plan.row = p.groups * plan.padded_features;
  for (int copy = 0; copy < p.copies(); ++copy) {
    const std::array<int, 3> direction = shift_direction(p.shifts, copy);
    for (size_t axis = 0; axis < 3; ++axis) {
      plan.reach[axis] = std::max(plan.reach[axis], p.shift[axis] * std::abs(direction[axis]));
    }
  }
  plan.slice = std::min(round_up_to_lanes(plan.tokens),
                        std::max<int64_t>(1, kSliceFloats / plan.row / kTokenBlock) * kTokenBlock);
  plan.place(plan.tap, base, plan.taps);
  plan.place(plan.x, base, plan.slice * plan.row);
  plan.place(plan.y, base, plan.slice * plan.padded_outs);
  if (pass == ShiftedPatchPass::forward) {
    plan.place(plan.weight, base, p.groups * plan.padded_features * plan.padded_outs);
    plan.place(plan.constant, base, p.groups * plan.padded_outs);
    plan.place(plan.base, base, plan.padded_outs);
  } else {
    plan.place(plan.weight, base, p.groups * plan.outs * plan.padded_features);
    plan.place(plan.dx, base, plan.slice * plan.row);
    plan.place(plan.a, base, p.groups * plan.outs * plan.padded_features);
    plan.place(plan.sums, base, p.n * plan.padded_outs);
    plan.place(plan.b, base, p.groups * plan.padded_outs);
    if (p.storage != DType::f32) {
      plan.place(plan.collected, base, sample_values(p));
    }
  }
  return plan;
}

void fill_taps(const ShiftedPatchParams& p, Tap* tap) {
  for (int pd = 0; pd < p.patch[0]; ++pd) {
    for (int ph = 0; ph < p.patch[1]; ++ph) {
      for (int pw = 0; pw < p.patch[2]; ++pw) {
        for (int copy = 0; copy < p.copies(); ++copy) {
          const std::array<int, 3> direction = shift_direction(p.shifts, copy);
          const int inside[3] = {pd, ph, pw};
          for (size_t axis = 0; axis < 3; ++axis) {
            tap->offset[axis] = inside[axis];
            tap->source[axis] = inside[axis] + p.shift[axis] * direction[axis];
          }
          tap->element =
              ((tap->source[0] * p.h + tap->source[1]) * p.w + tap->source[2]) * p.groups * p.channels;
          ++tap;
        }
      }
    }
  }
}

bool is_present(const ShiftedPatchParams& p, const uint8_t* mask, int64_t sample, int64_t group) {
  return mask == nullptr || mask[sample * p.groups + group] != 0;
}

float scale_of(const ShiftedPatchParams& p, const uint8_t* mask, int64_t sample) {
  int64_t present = 0;
  for (int64_t group = 0; group < p.groups; ++group) {
    present += is_present(p, mask, sample, group) ? 1 : 0;
  }
  return present == 0 ? 0.0f : static_cast<float>(p.groups) / static_cast<float>(present);
}

// ---- Products ----

// c[m][n] (+)= sum over k of a(m, k) b[k][n] for kHeight rows and kWidth registers of columns; a(m, k) is at
// a[m * row_step + k * depth_step].
template <int kHeight, int kWidth>
void multiply_tile(int64_t depth, const float* a, int64_t row_step, int64_t depth_step, const float* b,
                   int64_t ldb, float* c, int64_t ldc, bool add) {
  Lanes sum[kHeight][kWidth];
#pragma GCC unroll 8
  for (int m = 0; m < kHeight; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kWidth; ++v) {
      sum[m][v] = add ? load_lanes(c + m * ldc + v * kLanes) : Lanes{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Lanes column[kWidth];
#pragma GCC unroll 4
    for (int v = 0; v < kWidth; ++v) {
      column[v] = load_lanes(b + k * ldb + v * kLanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kHeight; ++m) {
      const Lanes factor = all_lanes(a[m * row_step + k * depth_step]);
#pragma GCC unroll 4
      for (int v = 0; v < kWidth; ++v) {
        sum[m][v] = fma_lanes(factor, column[v], sum[m][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kHeight; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kWidth; ++v) {
      store_lanes(c + m * ldc + v * kLanes, sum[m][v]);
    }
  }
}

template <int kWidth>
void multiply_panel(int64_t rows, int64_t depth, const float* a, int64_t row_step, int64_t depth_step,
                    const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows) {
    multiply_tile<kRows, kWidth>(depth, a + m * row_step, row_step, depth_step, b, ldb, c + m * ldc, ldc,
                                 add);
  }
  for (; m + 2 <= rows; m += 2) {
    multiply_tile<2, kWidth>(depth, a + m * row_step, row_step, depth_step, b, ldb, c + m * ldc, ldc, add);
  }
  if (m < rows) {
    multiply_tile<1, kWidth>(depth, a + m * row_step, row_step, depth_step, b, ldb, c + m * ldc, ldc, add);
  }
}

// c (+)= a b for `rows` rows and `columns` columns, a multiple of kLanes.
void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t row_step,
              int64_t depth_step, const float* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t part = std::min<int64_t>(kDepth, depth - k);
    const float* a_part = a + k * depth_step;
    const float* b_part = b + k * ldb;
    const bool add_part = add || k > 0;
    for (int64_t n = 0; n < columns;) {
      const int64_t left = (columns - n) / kLanes;
      if (left == 3 || left >= 5) {
        multiply_panel<3>(rows, part, a_part, row_step, depth_step, b_part + n, ldb, c + n, ldc, add_part);
        n += 3 * kLanes;
      } else if (left >= 2) {
        multiply_panel<2>(rows, part, a_part, row_step, depth_step, b_part + n, ldb, c + n, ldc, add_part);
        n += 2 * kLanes;
      } else {
        multiply_panel<1>(rows, part, a_part, row_step, depth_step, b_part + n, ldb, c + n, ldc, add_part);
        n += kLanes;
      }
    }
  }
}

// ---- Gathering ----

// A token's features of one group; `row` is padded with zeros.
template <class Values>
void gather(const ShiftedPatchParams& p, const Plan& plan, Values x, int64_t sample, int64_t token,
            int64_t group, float* row) {
  const int64_t first[3] = {token / (p.out_w() * p.out_h()) * p.patch[0],
                            token / p.out_w() % p.out_h() * p.patch[1], token % p.out_w() * p.patch[2]};
  const int64_t extent[3] = {p.d, p.h, p.w};
  bool interior = true;
  for (size_t axis = 0; axis < 3; ++axis) {
    interior = interior && first[axis] >= plan.reach[axis] &&
               first[axis] + p.patch[axis] + plan.reach[axis] <= extent[axis];
  }
  const auto start =
      x + ((((sample * p.d + first[0]) * p.h + first[1]) * p.w + first[2]) * p.groups + group) * p.channels;
  const Tap* tap = plan.tap;
  const int64_t channels = p.channels;
  if (interior && channels == 1) {
    for (int64_t t = 0; t < plan.taps; ++t) {
      row[t] = start[tap[t].element];
    }
  } else {
    for (int64_t t = 0; t < plan.taps; ++t) {
      bool inside = interior;
      if (!interior) {
        inside = true;
        for (int axis = 0; axis < 3; ++axis) {
          const int64_t source = first[axis] + tap[t].source[axis];
          inside = inside && first[axis] + tap[t].offset[axis] < extent[axis] && source >= 0 &&
                   source < extent[axis];
        }
      }
      float* target = row + t * channels;
      if (inside) {
        const auto source = start + tap[t].element;
        for (int64_t c = 0; c < channels; ++c) {
          target[c] = source[c];
        }
      } else {
        std::fill_n(target, channels, 0.0f);
      }
    }
  }
  std::fill(row + plan.features, row + plan.padded_features, 0.0f);
}

float sum_row(const float* row, int64_t padded) {
  Lanes sum{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    sum += load_lanes(row + i);
  }
  return sum_of_lanes(sum);
}

// sum of (row - mean)^2; the padding's share, mean^2 each, is left out.
float squares_of_row(const float* row, int64_t count, float mean) {
  Lanes sum{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes d = load_lanes(row + i) - mean;
    sum = fma_lanes(d, d, sum);
  }
  float total = sum_of_lanes(sum);
  for (; i < count; ++i) {
    const float d = row[i] - mean;
    total += d * d;
  }
  return total;
}

void normalise(float* row, int64_t count, float mean, float rstd) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = (row[i] - mean) * rstd;
  }
}

// ---- Forward ----

// weight[k][f][o] = W[k][o][f] gamma[k][f], padded with zeros; constant[k][o] = bias + sum over f of
// W[k][o][f] beta[k][f].
template <class Values>
void pack_forward(const ShiftedPatchParams& p, const Plan& plan, const float* gamma, const float* beta,
                  Values weight, const float* bias) {
  const int64_t blocks = plan.padded_outs / kLanes;
  parallel_for(p.groups * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task / blocks;
      const int64_t first = task % blocks * kLanes;
      const int64_t count = std::min<int64_t>(kLanes, plan.outs - first);
      const auto source = weight + (k * plan.outs + first) * plan.features;
      float* target = plan.weight + k * plan.padded_features * plan.padded_outs + first;
      float sum[kLanes] = {};
      for (int64_t f = 0; f < plan.padded_features; ++f) {
        float* row = target + f * plan.padded_outs;
        for (int64_t o = 0; o < kLanes; ++o) {
          const bool real = o < count && f < plan.features;
          const float w = real ? source[o * plan.features + f] : 0.0f;
          row[o] = real ? w * gamma[k * plan.features + f] : 0.0f;
          sum[o] += real ? w * beta[k * plan.features + f] : 0.0f;
        }
      }
      for (int64_t o = 0; o < kLanes; ++o) {
        plan.constant[k * plan.padded_outs + first + o] =
            o < count ? sum[o] + bias[k * plan.outs + first + o] : 0.0f;
      }
    }
  });
}

// ---- Backward ----

// D = dy * scale, padded; X = normalised features; then, where dx is wanted, the gradients of the gathered
// features.
template <class Values>
void backward_tokens(const ShiftedPatchParams& p, const Plan& plan, Values x, const uint8_t* mask,
                     int64_t sample, int64_t slice_begin, int64_t begin, int64_t end, float scale,
                     const float* mean, const float* rstd, Values dy, bool want_dx) {
  for (int64_t first = begin; first < end; first += kTokenBlock) {
    const int64_t count = std::min(kTokenBlock, end - first);
    float* d = plan.y + first * plan.padded_outs;
    for (int64_t t = 0; t < count; ++t) {
      const auto source = dy + (sample * plan.tokens + slice_begin + first + t) * plan.outs;
      for (int64_t o = 0; o < plan.padded_outs; ++o) {
        d[t * plan.padded_outs + o] = o < plan.outs ? scale * source[o] : 0.0f;
      }
    }
    for (int64_t k = 0; k < p.groups; ++k) {
      if (!is_present(p, mask, sample, k)) {
        continue;
      }
      float* block = plan.x + first * plan.row + k * plan.padded_features;
      const int64_t statistics = (k * p.n + sample) * plan.tokens + slice_begin + first;
      for (int64_t t = 0; t < count; ++t) {
        gather(p, plan, x, sample, slice_begin + first + t, k, block + t * plan.row);
        normalise(block + t * plan.row, plan.features, mean[statistics + t], rstd[statistics + t]);
      }
      if (!want_dx) {
        continue;
      }
      float* gradient = plan.dx + first * plan.row + k * plan.padded_features;
      multiply(count, plan.padded_features, plan.outs, d, plan.padded_outs, 1,
               plan.weight + k * plan.outs * plan.padded_features, plan.padded_features, gradient, plan.row,
               false);
      const float features = static_cast<float>(plan.features);
      for (int64_t t = 0; t < count; ++t) {
        const float* normal = block + t * plan.row;
        float* g = gradient + t * plan.row;
        Lanes sum{};
        Lanes product{};
        for (int64_t i = 0; i < plan.padded_features; i += kLanes) {
          sum += load_lanes(g + i);
          product = fma_lanes(load_lanes(g + i), load_lanes(normal + i), product);
        }
        const float shift = sum_of_lanes(sum) / features;
        const float slope = sum_of_lanes(product) / features;
        const float factor = rstd[statistics + t];
        for (int64_t i = 0; i < plan.features; ++i) {
          g[i] = factor * (g[i] - shift - normal[i] * slope);
        }
      }
    }
  }
}

// Adds to the sample's dx what its tokens [begin, end) read from each voxel of row (z, y).
void collect_row(const ShiftedPatchParams& p, const Plan& plan, const uint8_t* mask, int64_t sample,
                 int64_t begin, int64_t end, int64_t z, int64_t y, float* dx) {
  const int copies = p.copies();
  float* target_row = dx + (z * p.h + y) * p.w * p.groups * p.channels;
  for (int copy = 0; copy < copies; ++copy) {
    const std::array<int, 3> direction = shift_direction(p.shifts, copy);
    const int64_t uz = z - int64_t{p.shift[0]} * direction[0];
    const int64_t uy = y - int64_t{p.shift[1]} * direction[1];
    if (uz < 0 || uz >= p.d || uy < 0 || uy >= p.h) {
      continue;
    }
    const int64_t row_token = (uz / p.patch[0] * p.out_h() + uy / p.patch[1]) * p.out_w();
    const int64_t first = std::max(begin, row_token);
    const int64_t last = std::min(end, row_token + p.out_w());
    for (int64_t token = first; token < last; ++token) {
      for (int pw = 0; pw < p.patch[2]; ++pw) {
        const int64_t ux = (token - row_token) * p.patch[2] + pw;
        const int64_t vx = ux + int64_t{p.shift[2]} * direction[2];
        if (ux >= p.w || vx < 0 || vx >= p.w) {
          continue;
        }
        const int64_t tap =
            ((uz % p.patch[0] * p.patch[1] + uy % p.patch[1]) * p.patch[2] + pw) * copies + copy;
        for (int64_t k = 0; k < p.groups; ++k) {
          if (!is_present(p, mask, sample, k)) {
            continue;
          }
          const float* source =
              plan.dx + (token - begin) * plan.row + k * plan.padded_features + tap * p.channels;
          float* target = target_row + (vx * p.groups + k) * p.channels;
          for (int64_t c = 0; c < p.channels; ++c) {
            target[c] += source[c];
          }
        }
      }
    }
  }
}

void assign(float& target, float value, GradMode mode) {
  target = mode == GradMode::accumulate ? target + value : value;
}

}  // namespace

size_t shifted_patch_workspace_bytes(Context&, const ShiftedPatchParams& params, ShiftedPatchPass pass) {
  return make_plan(params, pass, nullptr).bytes;
}

void shifted_patch_forward(Context&, const ShiftedPatchParams& p, ConstData x_, const uint8_t* mask,
                           ConstData gamma_, ConstData beta_, ConstData weight_, ConstData bias_,
                           ConstData missing_, Data y_, float* mean, float* rstd, Workspace workspace) {
  with_storage("shifted_patch_forward", {x_, weight_, y_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "shifted_patch_forward: x");
    const float* missing = missing_.as<float>("shifted_patch_forward: missing");
    const auto y = output<T>(y_, "shifted_patch_forward: y");
    const Plan plan = make_plan(p, ShiftedPatchPass::forward, workspace.data);
    fill_taps(p, plan.tap);
    pack_forward(p, plan, gamma_.as<float>("shifted_patch_forward: gamma"),
                 beta_.as<float>("shifted_patch_forward: beta"),
                 input<T>(weight_, "shifted_patch_forward: weight"),
                 bias_.as<float>("shifted_patch_forward: bias"));
    for (int64_t sample = 0; sample < p.n; ++sample) {
      const float scale = scale_of(p, mask, sample);
      for (int64_t o = 0; o < plan.outs; ++o) {
        float sum = 0.0f;
        for (int64_t k = 0; k < p.groups; ++k) {
          sum += is_present(p, mask, sample, k) ? scale * plan.constant[k * plan.padded_outs + o]
                                                : missing[k * plan.outs + o];
        }
        plan.base[o] = sum;
      }
      for (int64_t slice = 0; slice < plan.tokens; slice += plan.slice) {
        parallel_for(std::min(plan.slice, plan.tokens - slice), kTokenBlock, [&](int64_t begin, int64_t end) {
          for (int64_t first = begin; first < end; first += kTokenBlock) {
            const int64_t count = std::min(kTokenBlock, end - first);
            float* product = plan.y + first * plan.padded_outs;
            bool add = false;
            for (int64_t k = 0; k < p.groups; ++k) {
              if (!is_present(p, mask, sample, k)) {
                continue;
              }
              float* block = plan.x + first * plan.row + k * plan.padded_features;
              for (int64_t t = 0; t < count; ++t) {
                float* row = block + t * plan.row;
                gather(p, plan, x, sample, slice + first + t, k, row);
                const float features = static_cast<float>(plan.features);
                const float m = sum_row(row, plan.padded_features) / features;
                const float r = 1.0f / std::sqrt(squares_of_row(row, plan.features, m) / features + p.eps);
                normalise(row, plan.features, m, r);
                if (mean != nullptr) {
                  const int64_t at = (k * p.n + sample) * plan.tokens + slice + first + t;
                  mean[at] = m;
                  rstd[at] = r;
                }
              }
              multiply(count, plan.padded_outs, plan.padded_features, block, plan.row, 1,
                       plan.weight + k * plan.padded_features * plan.padded_outs, plan.padded_outs, product,
                       plan.padded_outs, add);
              add = true;
            }
            for (int64_t t = 0; t < count; ++t) {
              const auto target = y + (sample * plan.tokens + slice + first + t) * plan.outs;
              const float* source = product + t * plan.padded_outs;
              for (int64_t o = 0; o < plan.outs; ++o) {
                target[o] = scale * source[o] + plan.base[o];
              }
            }
          }
        });
      }
    }
  });
}

void shifted_patch_backward(Context&, const ShiftedPatchParams& p, ConstData x_, const uint8_t* mask,
                            ConstData gamma_, ConstData beta_, ConstData weight_, const float* mean,
                            const float* rstd, ConstData dy_, Data dx_, Data dgamma_, Data dbeta_,
                            Data dweight_, Data dbias_, Data dmissing_, GradMode mode, Workspace workspace) {
  with_storage("shifted_patch_backward", {x_, weight_, dy_, dx_}, [&]<class T>(T) {
    const auto x = input<T>(x_, "shifted_patch_backward: x");
    const float* gamma = gamma_.as<float>("shifted_patch_backward: gamma");
    const float* beta = beta_.as<float>("shifted_patch_backward: beta");
    const auto weight = input<T>(weight_, "shifted_patch_backward: weight");
    const auto dy = input<T>(dy_, "shifted_patch_backward: dy");
    const auto dx = output<T>(dx_, "shifted_patch_backward: dx");
    const bool want_dx = static_cast<bool>(dx);
    float* dgamma = dgamma_.as<float>("shifted_patch_backward: dgamma");
    float* dbeta = dbeta_.as<float>("shifted_patch_backward: dbeta");
    float* dweight = dweight_.as<float>("shifted_patch_backward: dweight");
    float* dbias = dbias_.as<float>("shifted_patch_backward: dbias");
    float* dmissing = dmissing_.as<float>("shifted_patch_backward: dmissing");
    const Plan plan = make_plan(p, ShiftedPatchPass::backward, workspace.data);
    fill_taps(p, plan.tap);
    if (want_dx) {
      parallel_for(p.groups * plan.outs, 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const float* factor = gamma + row / plan.outs * plan.features;
          float* target = plan.weight + row * plan.padded_features;
          for (int64_t f = 0; f < plan.features; ++f) {
            target[f] = weight[row * plan.features + f] * factor[f];
          }
          std::fill(target + plan.features, target + plan.padded_features, 0.0f);
        }
      });
    }
    std::fill_n(plan.a, p.groups * plan.outs * plan.padded_features, 0.0f);
    std::fill_n(plan.sums, p.n * plan.padded_outs, 0.0);
    constexpr int64_t kPanel = 3 * kLanes;
    const int64_t panels = ceil_div(plan.padded_features, kPanel);
    const int64_t values = sample_values(p);
    for (int64_t sample = 0; sample < p.n; ++sample) {
      const float scale = scale_of(p, mask, sample);
      float* collected = nullptr;
      if constexpr (std::is_same_v<T, float>) {
        collected = want_dx ? dx + sample * values : nullptr;
      } else {
        collected = plan.collected;
      }
      parallel_for(want_dx ? values : 0, 16384,
                   [&](int64_t begin, int64_t end) { std::fill(collected + begin, collected + end, 0.0f); });
      for (int64_t slice = 0; slice < plan.tokens; slice += plan.slice) {
        const int64_t count = std::min(plan.slice, plan.tokens - slice);
        parallel_for(count, kTokenBlock, [&](int64_t begin, int64_t end) {
          backward_tokens(p, plan, x, mask, sample, slice, begin, end, scale, mean, rstd, dy, want_dx);
        });
        // Task (group, panel of features): A += D^T X; and one more: the sums of dy, in double, for they are
        // long.
        parallel_for(p.groups * panels + 1, 1, [&](int64_t begin, int64_t end) {
          for (int64_t task = begin; task < end; ++task) {
            if (task == p.groups * panels) {
              double* sums = plan.sums + sample * plan.padded_outs;
              for (int64_t t = 0; t < count; ++t) {
                const auto row = dy + (sample * plan.tokens + slice + t) * plan.outs;
                for (int64_t o = 0; o < plan.outs; ++o) {
                  sums[o] += static_cast<double>(row[o]);
                }
              }
              continue;
            }
            const int64_t k = task / panels;
            const int64_t first = task % panels * kPanel;
            if (is_present(p, mask, sample, k)) {
              multiply(plan.outs, std::min(kPanel, plan.padded_features - first), count, plan.y, 1,
                       plan.padded_outs, plan.x + k * plan.padded_features + first, plan.row,
                       plan.a + k * plan.outs * plan.padded_features + first, plan.padded_features, true);
            }
          }
        });
        if (want_dx) {
          const int64_t plane = p.out_w() * p.out_h();
          const int64_t from = std::max<int64_t>(0, slice / plane * p.patch[0] - plan.reach[0]);
          const int64_t to = std::min(p.d, ((slice + count - 1) / plane + 1) * p.patch[0] + plan.reach[0]);
          parallel_for((to - from) * p.h, 4, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
              collect_row(p, plan, mask, sample, slice, slice + count, from + row / p.h, row % p.h,
                          collected);
            }
          });
        }
      }
      if constexpr (!std::is_same_v<T, float>) {
        parallel_for(want_dx ? values : 0, 16384, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            dx[sample * values + i] = collected[i];
          }
        });
      }
    }
    for (int64_t k = 0; k < p.groups; ++k) {
      for (int64_t o = 0; o < plan.outs; ++o) {
        double present = 0;
        double absent = 0;
        for (int64_t sample = 0; sample < p.n; ++sample) {
          const double sum = plan.sums[sample * plan.padded_outs + o];
          if (is_present(p, mask, sample, k)) {
            present += static_cast<double>(scale_of(p, mask, sample)) * sum;
          } else {
            absent += sum;
          }
        }
        plan.b[k * plan.padded_outs + o] = static_cast<float>(present);
        assign(dbias[k * plan.outs + o], static_cast<float>(present), mode);
        if (dmissing != nullptr) {
          assign(dmissing[k * plan.outs + o], static_cast<float>(absent), mode);
        }
      }
    }
    constexpr int64_t kStrip = 256;
    const int64_t strips = ceil_div(plan.features, kStrip);
    parallel_for(p.groups * strips, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t k = task / strips;
        const int64_t first = task % strips * kStrip;
        const int64_t count = std::min(kStrip, plan.features - first);
        const float* g = gamma + k * plan.features + first;
        const float* h = beta + k * plan.features + first;
        float sum_gamma[kStrip] = {};
        float sum_beta[kStrip] = {};
        for (int64_t o = 0; o < plan.outs; ++o) {
          const float b = plan.b[k * plan.padded_outs + o];
          const float* a = plan.a + (k * plan.outs + o) * plan.padded_features + first;
          const auto w = weight + (k * plan.outs + o) * plan.features + first;
          float* dw = dweight + (k * plan.outs + o) * plan.features + first;
          for (int64_t f = 0; f < count; ++f) {
            sum_gamma[f] += w[f] * a[f];
            sum_beta[f] += w[f] * b;
            const float value = g[f] * a[f] + h[f] * b;
            dw[f] = mode == GradMode::accumulate ? dw[f] + value : value;
          }
        }
        for (int64_t f = 0; f < count; ++f) {
          assign(dgamma[k * plan.features + first + f], sum_gamma[f], mode);
          assign(dbeta[k * plan.features + first + f], sum_beta[f], mode);
        }
      }
    });
  });
}

}  // namespace cpu
}  // namespace vesal::kernels
