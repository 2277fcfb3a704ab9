// Multi-head attention of queries over keys and values (Vaswani et al. 2017, section 3.2), self or cross,
// with what the networks of the SAM family add to the scores.
//
// For sample s, head m, query i, key j, with q_i, k_j, v_j of head_dim numbers each:
//   score[i, j] = scale * q_i . k_j + bias[s, m, i, j]
//                 + axial[i, z_j] + axial[i, D + y_j] + axial[i, D + H + x_j]
//   out_i = sum over j of p_ij v_j,   p_ij = softmax over the j that the key mask admits
//
// (z, y, x)_j is key j's place in the key grid D x H x W, x fastest. `axial` is a number for each query, head
// and plane, row and column of keys: the decomposed relative position of ViTDet and SAM (Li et al. 2022,
// section 3), which kernels/relative_position computes from q and tables.
//
// A query that has nothing to attend, because the mask hides all keys or bias is -infinity for all of them,
// gives out = 0, lse = 0 and no gradients. What the mask hides is never read.
//
// The scores are never stored: a running softmax goes over tiles of keys (Milakov and Gimelshein 2018; Dao et
// al. 2022), the forward pass keeps lse only, and the backward pass computes them again, once for dq and once
// for dk and dv, so that every gradient has one owner, or parts whose number depends on the shape alone and
// that are added in order: no result depends on the number of threads.
//
// q, k, v, out, dout, dq, dk and dv are stored as float32, bf16 or f16 (kernels/context/storage.hpp); all
// else is float32, the axial bias and its gradient too: one is added to scores, the other summed over keys.
#pragma once

#include <array>
#include <cstdint>

#include "base/size.hpp"
#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct AttentionParams {
  int64_t n = 1;
  int64_t queries = 1, keys = 1;
  int heads = 1;
  int head_dim = 16;   // 1 to 256
  float scale = 1.0f;  // usually 1 / sqrt(head_dim)
  // Numbers from one token to the next of q and dq, k and dk, v and dv; 0 for channels(). A sample follows
  // the one before without a gap. In a fused qkv [n, tokens, 3, heads, head_dim] all three are 3 *
  // channels(), q starts at qkv, k at qkv + channels(), v at qkv + 2 * channels().
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;
  std::array<int, 3> key_grid{0, 0, 0};      // D, H, W of the keys; read only with an axial bias
  int64_t bias_samples = 1, bias_heads = 1;  // each 1 (the same for all) or n and heads

  int64_t channels() const { return int64_t{heads} * head_dim; }
  int64_t axial_size() const { return int64_t{key_grid[0]} + key_grid[1] + key_grid[2]; }
};

// q [n, queries, heads, head_dim], k and v [n, keys, heads, head_dim] with the strides of the params. The
// rest may be null: key_mask [n, keys], 0 for a hidden key; bias [bias_samples, bias_heads, queries, keys],
// finite or -infinity, a constant (it gets no gradient); axial_bias [n, queries, heads, axial_size()].
struct AttentionInputs {
  ConstData q, k, v;
  const uint8_t* key_mask = nullptr;
  ConstData bias = {};
  ConstData axial_bias = {};
};

// As the inputs of the same names; all are overwritten. daxial_bias is null when axial_bias is.
struct AttentionGradients {
  Data dq, dk, dv;
  Data daxial_bias = {};
};

size_t attention_forward_workspace_bytes(Context& context, const AttentionParams& params);

// out [n, queries, heads, head_dim], packed. lse [n, queries, heads]: log of the sum of exp(score), for the
// backward pass; may be null. Throws ShapeError for sizes that do not fit and for null q, k, v or out.
void attention_forward(Context& context, const AttentionParams& params, const AttentionInputs& inputs,
                       Data out, float* lse, Workspace workspace);

size_t attention_backward_workspace_bytes(Context& context, const AttentionParams& params);

// out and lse are the forward pass's, dout as out. With strides that leave room between tokens, what lies
// between them is not written.
void attention_backward(Context& context, const AttentionParams& params, const AttentionInputs& inputs,
                        ConstData out, const float* lse, ConstData dout, const AttentionGradients& gradients,
                        Workspace workspace);

}  // namespace vesal::kernels
