// Attention on the CPU. A task is one head of one sample and a tile of queries (or, for dk and dv, of keys).
// It gathers q, k and v into small contiguous tiles on its stack and works through them eight query rows at a
// time, vectorised over the keys (scores) and over the head dimension (outputs). Every number of a result is
// computed by one task in an order of its own, so nothing depends on the number of threads. Tiles are
// float32, whatever q, k and v are stored as.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.hpp"
#include "kernels/attention/attention.hpp"
#include "kernels/context/attention_tiles_cpu.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/storage.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(attention_forward_workspace_bytes)
VESAL_DECLARE_BACKENDS(attention_forward)
VESAL_DECLARE_BACKENDS(attention_backward_workspace_bytes)
VESAL_DECLARE_BACKENDS(attention_backward)

namespace cpu {
namespace {

constexpr int kMaxTile = 512;      // tokens of a tile
constexpr int kTileFloats = 8192;  // numbers of a tile: tokens x padded head_dim
constexpr int kMaxPaddedDim = 256;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// What is added to the scores; each may be null.
struct Biases {
  const uint8_t* key_mask;
  const float* bias;
  const float* axial_bias;
};

template <class T>
struct Arrays {
  Input<T> q, k, v;
  Biases biases;
};

// The params with what follows from them.
struct Shape {
  AttentionParams p;
  int padded_dim;  // head_dim rounded up to whole registers
  int tile;        // tokens of a tile, a multiple of kKeyStep and kRows

  int64_t query_tiles() const { return ceil_div(p.queries, tile); }
  int64_t key_tiles() const { return ceil_div(p.keys, tile); }
  int64_t column(int head) const { return int64_t{head} * p.head_dim; }
  int64_t row(int64_t sample, int head, int64_t query) const {
    return (sample * p.queries + query) * p.heads + head;
  }
  int64_t bias_row(int64_t sample, int head, int64_t query) const {
    const int64_t s = p.bias_samples == 1 ? 0 : sample;
    const int64_t m = p.bias_heads == 1 ? 0 : head;
    return ((s * p.bias_heads + m) * p.queries + query) * p.keys;
  }
};

Shape shape_of(const AttentionParams& params) {
  constexpr int kStep = 32;
  static_assert(kStep % kKeyStep == 0 && kStep % kRows == 0);
  Shape s{params, static_cast<int>(round_up_to_lanes(params.head_dim)), 0};
  s.tile = std::min(kMaxTile, kTileFloats / s.padded_dim / kStep * kStep);
  return s;
}

// A tile of keys: which they are, and -infinity for each that is hidden or beyond the end.
struct KeyTile {
  int64_t sample;
  int64_t first;
  int count;
  int length;  // count rounded up to kKeyStep
  bool all_visible;
  alignas(64) float hide[kMaxTile];

  bool visible(int j) const { return hide[j] == 0.0f; }
};

void enter_keys(const Shape& s, const Biases& biases, int64_t sample, int64_t first, KeyTile& keys) {
  keys.sample = sample;
  keys.first = first;
  keys.count = static_cast<int>(std::min<int64_t>(s.tile, s.p.keys - first));
  keys.length = (keys.count + kKeyStep - 1) / kKeyStep * kKeyStep;
  keys.all_visible = keys.count == keys.length;
  for (int j = 0; j < keys.length; ++j) {
    const bool visible =
        j < keys.count && (biases.key_mask == nullptr || biases.key_mask[sample * s.p.keys + first + j] != 0);
    keys.hide[j] = visible ? 0.0f : kNegativeInfinity;
    keys.all_visible = keys.all_visible && visible;
  }
}

// k or v of each key: as rows [length][padded_dim] and, or, transposed [head_dim][length]. What is hidden is
// not read.
template <class In>
void gather_keys(const Shape& s, In source, int64_t stride, int head, const KeyTile& keys, float* rows,
                 float* transposed) {
  alignas(64) float block[kLanes * kMaxPaddedDim];
  for (int first = 0; first < keys.length; first += kLanes) {
    float* entered = rows != nullptr ? rows + int64_t{first} * s.padded_dim : block;
    for (int j = 0; j < kLanes; ++j) {
      float* row = entered + int64_t{j} * s.padded_dim;
      int c = 0;
      if (keys.visible(first + j)) {
        const In from =
            source + ((keys.sample * s.p.keys + keys.first + first + j) * stride + s.column(head));
        for (; c < s.p.head_dim; ++c) {
          row[c] = from[c];
        }
      }
      std::fill(row + c, row + s.padded_dim, 0.0f);
    }
    for (int c = 0; transposed != nullptr && c < s.p.head_dim; c += kLanes) {
      Lanes square[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        square[j] = load_lanes(entered + int64_t{j} * s.padded_dim + c);
      }
      transpose_lanes(square);
      const int count = std::min(kLanes, s.p.head_dim - c);
      for (int l = 0; l < count; ++l) {
        store_lanes(transposed + int64_t{c + l} * keys.length + first, square[l]);
      }
    }
  }
}

// A tile of queries.
struct QueryTile {
  int64_t sample;
  int64_t first;
  int count;
  int length;  // count rounded up to kRows

  // The query of row i; rows beyond the last repeat it.
  int64_t query(int i) const { return first + std::min(i, count - 1); }
};

QueryTile enter_queries(const Shape& s, int64_t sample, int64_t first) {
  const int count = static_cast<int>(std::min<int64_t>(s.tile, s.p.queries - first));
  return {sample, first, count, (count + kRows - 1) / kRows * kRows};
}

// Rows [length][padded_dim] of q or dout, times `factor`; zero beyond count.
template <class In>
void gather_rows(const Shape& s, In source, int64_t stride, int head, float factor, const QueryTile& queries,
                 float* rows) {
  for (int i = 0; i < queries.length; ++i) {
    const In from = source + ((queries.sample * s.p.queries + queries.query(i)) * stride + s.column(head));
    const int count = i < queries.count ? s.p.head_dim : 0;
    float* row = rows + int64_t{i} * s.padded_dim;
    for (int c = 0; c < s.padded_dim; ++c) {
      row[c] = c < count ? factor * from[c] : 0.0f;
    }
  }
}

// Calls visit(begin, end, z, y, x) for the runs of keys [begin, end) of the tile that lie in one row of the
// key grid, in order; x is the first one's column.
template <class Visit>
void for_each_grid_run(const Shape& s, const KeyTile& keys, Visit&& visit) {
  const auto& [d, h, w] = s.p.key_grid;
  int64_t x = keys.first % w;
  int64_t y = keys.first / w % h;
  int64_t z = keys.first / w / h;
  for (int begin = 0; begin < keys.count;) {
    const int end = static_cast<int>(std::min<int64_t>(keys.count, begin + w - x));
    visit(begin, end, z, y, x);
    begin = end;
    x = 0;
    if (++y == h) {
      y = 0;
      ++z;
    }
  }
}

// Adds the biases to eight rows of scores, from row i of the tile on, and hides what is hidden.
void bias_and_mask(const Shape& s, const Biases& biases, int head, const QueryTile& queries, int i,
                   const KeyTile& keys, float* scores) {
  for (int r = 0; r < kRows; ++r) {
    float* row = scores + int64_t{r} * kMaxTile;
    const int64_t query = queries.query(i + r);
    if (biases.axial_bias != nullptr) {
      const float* plane = biases.axial_bias + s.row(queries.sample, head, query) * s.p.axial_size();
      const float* line = plane + s.p.key_grid[0];
      const float* column = line + s.p.key_grid[1];
      for_each_grid_run(s, keys, [&](int begin, int end, int64_t z, int64_t y, int64_t x) {
        const float both = plane[z] + line[y];
        for (int j = begin; j < end; ++j) {
          row[j] += both + column[x + j - begin];
        }
      });
    }
    if (biases.bias != nullptr) {
      const float* bias = biases.bias + s.bias_row(queries.sample, head, query) + keys.first;
      for (int j = 0; j < keys.count; ++j) {
        row[j] += bias[j];
      }
    }
    if (!keys.all_visible) {
      for (int j = 0; j < keys.length; j += kLanes) {
        store_lanes(row + j, load_lanes(row + j) + load_lanes(keys.hide + j));
      }
    }
  }
}

struct ForwardScratch {
  alignas(64) float keys[kTileFloats];
  alignas(64) float values[kTileFloats];
  alignas(64) float queries[kTileFloats];
  alignas(64) float out[kTileFloats];
  alignas(64) float scores[kRows * kMaxTile];
  float largest[kMaxTile];
  float sum[kMaxTile];
  KeyTile key_tile;
};

template <class T>
void forward_task(const Shape& s, const Arrays<T>& arrays, Output<T> out, float* lse, int64_t sample,
                  int head, int64_t query_tile) {
  ForwardScratch scratch;
  KeyTile& keys = scratch.key_tile;
  const QueryTile queries = enter_queries(s, sample, query_tile * s.tile);
  gather_rows(s, arrays.q, s.p.q_stride, head, s.p.scale, queries, scratch.queries);
  std::fill_n(scratch.out, int64_t{queries.length} * s.padded_dim, 0.0f);
  std::fill_n(scratch.largest, queries.length, kNegativeInfinity);
  std::fill_n(scratch.sum, queries.length, 0.0f);
  for (int64_t first = 0; first < s.p.keys; first += s.tile) {
    enter_keys(s, arrays.biases, sample, first, keys);
    gather_keys(s, arrays.k, s.p.k_stride, head, keys, nullptr, scratch.keys);
    gather_keys(s, arrays.v, s.p.v_stride, head, keys, scratch.values, nullptr);
    for (int i = 0; i < queries.length; i += kRows) {
      multiply_rows(scratch.queries + int64_t{i} * s.padded_dim, s.padded_dim, scratch.keys, keys.length,
                    s.p.head_dim, keys.length, scratch.scores, kMaxTile);
      bias_and_mask(s, arrays.biases, head, queries, i, keys, scratch.scores);
      float factor[kRows];
      softmax_step(scratch.scores, kMaxTile, keys.length, scratch.largest + i, scratch.sum + i, factor);
      combine(scratch.scores, kMaxTile, scratch.values, s.padded_dim, keys.count, factor,
              scratch.out + int64_t{i} * s.padded_dim);
    }
  }
  for (int i = 0; i < queries.count; ++i) {
    const int64_t row = s.row(sample, head, queries.first + i);
    const bool attended = scratch.largest[i] != kNegativeInfinity;
    const float inverse = attended ? 1.0f / scratch.sum[i] : 0.0f;
    const float* from = scratch.out + int64_t{i} * s.padded_dim;
    const Output<T> target = out + row * s.p.head_dim;
    for (int c = 0; c < s.p.head_dim; ++c) {
      target[c] = from[c] * inverse;
    }
    if (lse != nullptr) {
      lse[row] = attended ? scratch.largest[i] + std::log(scratch.sum[i]) : 0.0f;
    }
  }
}

template <class T>
struct BackwardData {
  Arrays<T> arrays;
  const float* lse;
  Input<T> out, dout;
  Output<T> dq, dk, dv;
  float* daxial_bias;
  float* delta;  // [n, queries, heads]: dout_i . out_i
};

struct BackwardScratch {
  alignas(64) float keys[kTileFloats];
  alignas(64) float keys_transposed[kTileFloats];
  alignas(64) float values_transposed[kTileFloats];
  alignas(64) float queries[kTileFloats];
  alignas(64) float dout[kTileFloats];
  alignas(64) float sums[kTileFloats];        // dq, or dk
  alignas(64) float value_sums[kTileFloats];  // dv
  alignas(64) float probability[kRows * kMaxTile];
  alignas(64) float dscores[kRows * kMaxTile];
  KeyTile key_tile;
};

template <class T>
void gather_query_rows(const Shape& s, const BackwardData<T>& data, int head, const QueryTile& queries,
                       BackwardScratch& scratch) {
  gather_rows(s, data.arrays.q, s.p.q_stride, head, s.p.scale, queries, scratch.queries);
  gather_rows(s, data.dout, s.p.channels(), head, 1.0f, queries, scratch.dout);
}

// Probabilities and ds of eight queries, from row i of the tile on, and a tile of keys.
template <class T>
void recompute(const Shape& s, const BackwardData<T>& data, int head, const QueryTile& queries, int i,
               BackwardScratch& scratch) {
  const KeyTile& keys = scratch.key_tile;
  multiply_rows(scratch.queries + int64_t{i} * s.padded_dim, s.padded_dim, scratch.keys_transposed,
                keys.length, s.p.head_dim, keys.length, scratch.probability, kMaxTile);
  multiply_rows(scratch.dout + int64_t{i} * s.padded_dim, s.padded_dim, scratch.values_transposed,
                keys.length, s.p.head_dim, keys.length, scratch.dscores, kMaxTile);
  bias_and_mask(s, data.arrays.biases, head, queries, i, keys, scratch.probability);
  float lse[kRows];
  float delta[kRows];
  for (int r = 0; r < kRows; ++r) {
    const bool real = i + r < queries.count;
    const int64_t row = s.row(queries.sample, head, queries.query(i + r));
    lse[r] = real ? data.lse[row] : std::numeric_limits<float>::infinity();  // makes all probabilities 0
    delta[r] = real ? data.delta[row] : 0.0f;
  }
  softmax_backward(scratch.probability, scratch.dscores, kMaxTile, keys.length, lse, delta);
}

// dq, delta and daxial_bias of a tile of queries.
template <class T>
void query_gradients_task(const Shape& s, const BackwardData<T>& data, int64_t sample, int head,
                          int64_t query_tile) {
  BackwardScratch scratch;
  KeyTile& keys = scratch.key_tile;
  const QueryTile queries = enter_queries(s, sample, query_tile * s.tile);
  gather_query_rows(s, data, head, queries, scratch);
  std::fill_n(scratch.sums, int64_t{queries.length} * s.padded_dim, 0.0f);
  for (int i = 0; i < queries.count; ++i) {
    const int64_t row = s.row(sample, head, queries.first + i);
    const float* dout_row = scratch.dout + int64_t{i} * s.padded_dim;
    float sum = 0.0f;
    for (int c = 0; c < s.p.head_dim; ++c) {  // in multiply_rows' order: a lone key's dp - delta is exactly 0
      sum = __builtin_fmaf(dout_row[c], data.out[row * s.p.head_dim + c], sum);
    }
    data.delta[row] = sum;
    if (data.daxial_bias != nullptr) {
      std::fill_n(data.daxial_bias + row * s.p.axial_size(), s.p.axial_size(), 0.0f);
    }
  }
  for (int64_t first = 0; first < s.p.keys; first += s.tile) {
    enter_keys(s, data.arrays.biases, sample, first, keys);
    gather_keys(s, data.arrays.k, s.p.k_stride, head, keys, scratch.keys, scratch.keys_transposed);
    gather_keys(s, data.arrays.v, s.p.v_stride, head, keys, nullptr, scratch.values_transposed);
    for (int i = 0; i < queries.length; i += kRows) {
      recompute(s, data, head, queries, i, scratch);
      const float factor[kRows] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
      combine(scratch.dscores, kMaxTile, scratch.keys, s.padded_dim, keys.count, factor,
              scratch.sums + int64_t{i} * s.padded_dim);
      for (int r = 0; data.daxial_bias != nullptr && r < kRows && i + r < queries.count; ++r) {
        const float* row = scratch.dscores + int64_t{r} * kMaxTile;
        float* plane = data.daxial_bias + s.row(sample, head, queries.first + i + r) * s.p.axial_size();
        float* line = plane + s.p.key_grid[0];
        float* column = line + s.p.key_grid[1];
        for_each_grid_run(s, keys, [&](int begin, int end, int64_t z, int64_t y, int64_t x) {
          float sum = 0.0f;
          for (int j = begin; j < end; ++j) {
            sum += row[j];
            column[x + j - begin] += row[j];
          }
          plane[z] += sum;
          line[y] += sum;
        });
      }
    }
  }
  for (int i = 0; i < queries.count; ++i) {
    const float* row = scratch.sums + int64_t{i} * s.padded_dim;
    const Output<T> target =
        data.dq + ((sample * s.p.queries + queries.first + i) * s.p.q_stride + s.column(head));
    for (int c = 0; c < s.p.head_dim; ++c) {
      target[c] = s.p.scale * row[c];
    }
  }
}

// dk and dv of a tile of keys.
template <class T>
void key_gradients_task(const Shape& s, const BackwardData<T>& data, int64_t sample, int head,
                        int64_t key_tile) {
  BackwardScratch scratch;
  KeyTile& keys = scratch.key_tile;
  enter_keys(s, data.arrays.biases, sample, key_tile * s.tile, keys);
  gather_keys(s, data.arrays.k, s.p.k_stride, head, keys, nullptr, scratch.keys_transposed);
  gather_keys(s, data.arrays.v, s.p.v_stride, head, keys, nullptr, scratch.values_transposed);
  std::fill_n(scratch.sums, int64_t{keys.length} * s.padded_dim, 0.0f);
  std::fill_n(scratch.value_sums, int64_t{keys.length} * s.padded_dim, 0.0f);
  for (int64_t first = 0; first < s.p.queries; first += s.tile) {
    const QueryTile queries = enter_queries(s, sample, first);
    gather_query_rows(s, data, head, queries, scratch);
    for (int i = 0; i < queries.length; i += kRows) {
      recompute(s, data, head, queries, i, scratch);
      spread(scratch.probability, kMaxTile, scratch.dout + int64_t{i} * s.padded_dim, s.padded_dim,
             keys.count, scratch.value_sums);
      spread(scratch.dscores, kMaxTile, scratch.queries + int64_t{i} * s.padded_dim, s.padded_dim, keys.count,
             scratch.sums);
    }
  }
  for (int j = 0; j < keys.count; ++j) {
    const int64_t token = sample * s.p.keys + keys.first + j;
    const Output<T> dk = data.dk + (token * s.p.k_stride + s.column(head));
    const Output<T> dv = data.dv + (token * s.p.v_stride + s.column(head));
    for (int c = 0; c < s.p.head_dim; ++c) {
      dk[c] = scratch.sums[int64_t{j} * s.padded_dim + c];
      dv[c] = scratch.value_sums[int64_t{j} * s.padded_dim + c];
    }
  }
}

// Calls body(sample, head, tile) for all of them; the tiles of a head are neighbours, since they share its
// keys.
template <class Body>
void for_each_task(const Shape& s, int64_t tiles, Body&& body) {
  parallel_for(s.p.n * s.p.heads * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      body(task / tiles / s.p.heads, static_cast<int>(task / tiles % s.p.heads), task % tiles);
    }
  });
}

}  // namespace

size_t attention_forward_workspace_bytes(Context&, const AttentionParams&) { return 0; }

void attention_forward(Context&, const AttentionParams& params, const AttentionInputs& inputs, Data out_,
                       float* lse, Workspace) {
  const Biases biases{inputs.key_mask, inputs.bias.as<float>("attention_forward: bias"),
                      inputs.axial_bias.as<float>("attention_forward: axial_bias")};
  const Shape s = shape_of(params);
  with_storage("attention_forward", {inputs.q, inputs.k, inputs.v, out_}, [&]<class T>(T) {
    const Arrays<T> arrays{input<T>(inputs.q, "attention_forward: q"),
                           input<T>(inputs.k, "attention_forward: k"),
                           input<T>(inputs.v, "attention_forward: v"), biases};
    const auto out = output<T>(out_, "attention_forward: out");
    for_each_task(s, s.query_tiles(), [&](int64_t sample, int head, int64_t tile) {
      forward_task<T>(s, arrays, out, lse, sample, head, tile);
    });
  });
}

size_t attention_backward_workspace_bytes(Context&, const AttentionParams& params) {
  return static_cast<size_t>(params.n * params.queries * params.heads) * sizeof(float);
}

void attention_backward(Context&, const AttentionParams& params, const AttentionInputs& inputs, ConstData out,
                        const float* lse, ConstData dout, const AttentionGradients& gradients,
                        Workspace workspace) {
  const Biases biases{inputs.key_mask, inputs.bias.as<float>("attention_backward: bias"),
                      inputs.axial_bias.as<float>("attention_backward: axial_bias")};
  const Shape s = shape_of(params);
  with_storage(
      "attention_backward",
      {inputs.q, inputs.k, inputs.v, out, dout, gradients.dq, gradients.dk, gradients.dv}, [&]<class T>(T) {
        const BackwardData<T> data{
            {input<T>(inputs.q, "attention_backward: q"), input<T>(inputs.k, "attention_backward: k"),
             input<T>(inputs.v, "attention_backward: v"), biases},
            lse,
            input<T>(out, "attention_backward: out"),
            input<T>(dout, "attention_backward: dout"),
            output<T>(gradients.dq, "attention_backward: dq"),
            output<T>(gradients.dk, "attention_backward: dk"),
            output<T>(gradients.dv, "attention_backward: dv"),
            gradients.daxial_bias.as<float>("attention_backward: daxial_bias"),
            static_cast<float*>(workspace.data)};
        for_each_task(s, s.query_tiles(), [&](int64_t sample, int head, int64_t tile) {
          query_gradients_task(s, data, sample, head, tile);
        });
        for_each_task(s, s.key_tiles(), [&](int64_t sample, int head, int64_t tile) {
          key_gradients_task(s, data, sample, head, tile);
        });
      });
}

}  // namespace cpu
}  // namespace vesal::kernels
