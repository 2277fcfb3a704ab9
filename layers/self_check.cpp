// One small case for each op family against double-precision loops.
#include "layers/self_check.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>

#include "base/philox.hpp"
#include "kernels/attention/attention_ref.hpp"
#include "kernels/batch_norm/batch_norm_ref.hpp"
#include "kernels/conv3d/conv3d_ref.hpp"
#include "kernels/conv_transpose3d/conv_transpose3d.hpp"
#include "kernels/cross_entropy/cross_entropy_ref.hpp"
#include "kernels/elementwise/elementwise_ref.hpp"
#include "kernels/gemm/gemm_ref.hpp"
#include "kernels/graph/graph_ref.hpp"
#include "kernels/group_norm/group_norm_ref.hpp"
#include "kernels/instance_norm/instance_norm_ref.hpp"
#include "kernels/layer_norm/layer_norm_ref.hpp"
#include "kernels/linear/linear_ref.hpp"
#include "kernels/losses/losses_ref.hpp"
#include "kernels/optimizer/optimizer_ref.hpp"
#include "kernels/overlap_loss/overlap_loss_ref.hpp"
#include "kernels/pointwise_loss/pointwise_loss_ref.hpp"
#include "kernels/pooling/pooling_ref.hpp"
#include "kernels/rearrange/rearrange_ref.hpp"
#include "kernels/reduce/reduce.hpp"
#include "kernels/reduce/reduce_ref.hpp"
#include "kernels/region_pool/region_pool_ref.hpp"
#include "kernels/relative_position/relative_position_ref.hpp"
#include "kernels/resize/resize_ref.hpp"
#include "kernels/rotary/rotary_ref.hpp"
#include "kernels/shifted_patch/shifted_patch.hpp"
#include "kernels/sobel/sobel.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/softmax/softmax_ref.hpp"
#include "kernels/window_attention/window_attention_ref.hpp"
#include "runtime/tensor.hpp"

namespace vesal::layers {
namespace {

using namespace vesal::kernels;
namespace ref = vesal::kernels::reference;
using Values = std::vector<double>;

// Sums here have at most about a thousand terms of order 1, each rounded to 6e-8 of itself: 1e-5 of the
// largest value is reached by unlucky orders of summation, a wrong index or a missing barrier is off by 1e-2
// and more.
constexpr double kTolerance = 2e-5;

class Checker {
 public:
  explicit Checker(DeviceContext& context) : context_(context) {}

  // Normal numbers that float32 holds exactly, so that the loops see what the device sees.
  Values random(int64_t count) {
    Values values(static_cast<size_t>(count));
    for (double& value : values) {
      value = static_cast<double>(random_.normal());
    }
    return values;
  }
  std::vector<uint8_t> random_labels(int64_t count, int64_t classes) {
    std::vector<uint8_t> labels(static_cast<size_t>(count));
    for (uint8_t& label : labels) {
      label = static_cast<uint8_t>(random_.below(classes));
    }
    return labels;
  }

  Tensor put(const Values& values) {
    const std::vector<float> narrow(values.begin(), values.end());
    return Tensor::from_host(context_, narrow, {static_cast<int64_t>(narrow.size())});
  }
  template <class T>
  Tensor put(const std::vector<T>& values) {
    return Tensor::from_host(context_, values, {static_cast<int64_t>(values.size())});
  }
  // An output: full of NaN, so that an element that is not written shows.
  Tensor out(int64_t count) {
    return put(std::vector<float>(static_cast<size_t>(count), std::numeric_limits<float>::quiet_NaN()));
  }
  Tensor out_bytes(int64_t count) { return put(std::vector<uint8_t>(static_cast<size_t>(count), 0xee)); }
  Scratch scratch(size_t bytes) { return context_.scratch(bytes); }
  kernels::Context& k() { return context_.kernels(); }

  void same(const Tensor& got, const Values& want) {
    const std::vector<float> values = got.to_host<float>(context_);
    double largest = 1e-3;
    for (const double value : want) {
      largest = std::max(largest, std::abs(value));
    }
    for (size_t i = 0; i < want.size(); ++i) {
      const double error = std::abs(static_cast<double>(values[i]) - want[i]) / largest;
      if (!(error <= error_)) {
        error_ = error;
      }
      if (std::isnan(error)) {
        error_ = std::numeric_limits<double>::infinity();
      }
    }
  }
  template <class T>
  void identical(const Tensor& got, const std::vector<T>& want) {
    const std::vector<T> values = got.to_host<T>(context_);
    if (!std::equal(want.begin(), want.end(), values.begin())) {
      error_ = std::numeric_limits<double>::infinity();
    }
  }
  double error() const { return error_; }

 private:
  DeviceContext& context_;
  RandomStream random_{1543, 0, 0};
  double error_ = 0;
};

void check_conv3d_of(Checker& c, const Conv3dParams& p) {
  const Values x = c.random(p.input_count());
  const Values weight = c.random(p.weight_count());
  const Values bias = c.random(p.c_out);
  const Values dy = c.random(p.output_count());
  Values y(dy.size());
  Values dx(x.size());
  Values dweight(weight.size());
  Values dbias(bias.size());
  ref::conv3d_forward(p, x.data(), weight.data(), bias.data(), y.data());
  ref::conv3d_backward_data(p, dy.data(), weight.data(), dx.data());
  ref::conv3d_backward_weight(p, x.data(), dy.data(), dweight.data(), dbias.data());
  const Tensor tx = c.put(x), tw = c.put(weight), tb = c.put(bias), tdy = c.put(dy);
  const Tensor ty = c.out(p.output_count()), tdx = c.out(p.input_count());
  const Tensor tdw = c.out(p.weight_count()), tdb = c.out(p.c_out);
  conv3d_forward(c.k(), p, tx, tw, tb, ty, c.scratch(conv3d_workspace_bytes(c.k(), p, ConvPass::forward)));
  conv3d_backward_data(c.k(), p, tdy, tw, tdx,
                       c.scratch(conv3d_workspace_bytes(c.k(), p, ConvPass::backward_data)));
  conv3d_backward_weight(c.k(), p, tx, tdy, tdw, tdb, GradMode::overwrite,
                         c.scratch(conv3d_workspace_bytes(c.k(), p, ConvPass::backward_weight)));
  c.same(ty, y);
  c.same(tdx, dx);
  c.same(tdw, dweight);
  c.same(tdb, dbias);
}

// One for each way that a device has: dense, groups that are matrix products, depthwise.
void check_conv3d(Checker& c) {
  check_conv3d_of(c, {.d = 5, .h = 4, .w = 7, .c_in = 5, .c_out = 6, .stride = {1, 2, 1}});
  check_conv3d_of(c, {.d = 5,
                      .h = 4,
                      .w = 6,
                      .c_in = 18,
                      .c_out = 16,
                      .padding = {2, 1, 1},
                      .dilation = {2, 1, 2},
                      .groups = 2,
                      .padding_end = std::array{1, 0, 2}});
  check_conv3d_of(c, {.d = 4, .h = 5, .w = 3, .c_in = 19, .c_out = 19, .stride = {1, 2, 1}, .groups = 19});
}

// The transposed convolution is the convolution's gradient with respect to its input, with input and output
// swapped.
void check_conv_transpose3d(Checker& c) {
  ConvTranspose3dParams p{.n = 1, .d = 3, .h = 2, .w = 4, .c_in = 5, .c_out = 3};
  Conv3dParams back{.n = 1,
                    .d = p.out_d(),
                    .h = p.out_h(),
                    .w = p.out_w(),
                    .c_in = p.c_out,
                    .c_out = p.c_in,
                    .kernel = p.kernel,
                    .stride = p.stride,
                    .padding = p.padding};
  const Values x = c.random(p.input_count());
  const Values weight = c.random(p.weight_count());
  const Values bias = c.random(p.c_out);
  const Values dy = c.random(p.output_count());
  Values y(dy.size());
  Values dx(x.size());
  Values dweight(weight.size());
  Values unused(static_cast<size_t>(p.c_in));
  Values dbias(bias.size(), 0.0);
  ref::conv3d_backward_data(back, x.data(), weight.data(), y.data());
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] += bias[i % bias.size()];
    dbias[i % bias.size()] += dy[i];
  }
  ref::conv3d_forward<double>(back, dy.data(), weight.data(), nullptr, dx.data());
  ref::conv3d_backward_weight(back, dy.data(), x.data(), dweight.data(), unused.data());
  const Tensor tx = c.put(x), tw = c.put(weight), tb = c.put(bias), tdy = c.put(dy);
  const Tensor ty = c.out(p.output_count()), tdx = c.out(p.input_count());
  const Tensor tdw = c.out(p.weight_count()), tdb = c.out(p.c_out);
  const auto scratch = [&](ConvPass pass) {
    return c.scratch(conv_transpose3d_workspace_bytes(c.k(), p, pass));
  };
  conv_transpose3d_forward(c.k(), p, tx, tw, tb, ty, scratch(ConvPass::forward));
  conv_transpose3d_backward_data(c.k(), p, tdy, tw, tdx, scratch(ConvPass::backward_data));
  conv_transpose3d_backward_weight(c.k(), p, tx, tdy, tdw, tdb, GradMode::overwrite,
                                   scratch(ConvPass::backward_weight));
  c.same(ty, y);
  c.same(tdx, dx);
  c.same(tdw, dweight);
  c.same(tdb, dbias);
}

void check_gemm(Checker& c) {
  GemmParams p = dense_gemm(2, 3, 21, 19, 40, false, true);
  p.alpha = 0.5f;
  const Values a = c.random(2 * 3 * p.m * p.k);
  const Values b = c.random(2 * 3 * p.n * p.k);
  const Values dc = c.random(2 * 3 * p.m * p.n);
  Values result(dc.size());
  Values da(a.size(), 0.0);
  Values db(b.size(), 0.0);
  ref::gemm(p, a.data(), b.data(), result.data());
  ref::gemm_backward(p, a.data(), b.data(), dc.data(), da.data(), db.data());
  const Tensor ta = c.put(a), tb = c.put(b), tdc = c.put(dc);
  const Tensor tc = c.out(tdc.count()), tda = c.out(ta.count()), tdb = c.out(tb.count());
  const auto scratch = [&](GemmPass pass) { return c.scratch(gemm_workspace_bytes(c.k(), p, pass)); };
  gemm(c.k(), p, ta, tb, tc, scratch(GemmPass::forward));
  gemm_backward_a(c.k(), p, tdc, tb, tda, GradMode::overwrite, scratch(GemmPass::backward_a));
  gemm_backward_b(c.k(), p, ta, tdc, tdb, GradMode::overwrite, scratch(GemmPass::backward_b));
  c.same(tc, result);
  c.same(tda, da);
  c.same(tdb, db);
}

void check_linear(Checker& c) {
  LinearParams p{.rows = 37, .in = 19, .out = 23, .activation = Activation::gelu};
  const Values x = c.random(p.rows * p.in);
  const Values weight = c.random(p.out * p.in);
  const Values bias = c.random(p.out);
  const Values dy = c.random(p.rows * p.out);
  Values y(dy.size());
  Values before(dy.size());
  Values dx(x.size());
  Values dweight(weight.size());
  Values dbias(bias.size());
  ref::linear_forward(p, x.data(), weight.data(), bias.data(), y.data(), before.data());
  ref::linear_backward_data(p, dy.data(), weight.data(), dx.data());
  ref::linear_backward_weight(p, x.data(), dy.data(), dweight.data(), dbias.data());
  const Tensor tx = c.put(x), tw = c.put(weight), tb = c.put(bias), tdy = c.put(dy);
  const Tensor ty = c.out(p.rows * p.out), tbefore = c.out(p.rows * p.out), tdx = c.out(p.rows * p.in);
  const Tensor tdw = c.out(p.out * p.in), tdb = c.out(p.out);
  const auto scratch = [&](LinearPass pass) { return c.scratch(linear_workspace_bytes(c.k(), p, pass)); };
  linear_forward(c.k(), p, tx, tw, tb, ty, tbefore, scratch(LinearPass::forward));
  linear_backward_data(c.k(), p, tdy, tw, tdx, scratch(LinearPass::backward_data));
  linear_backward_weight(c.k(), p, tx, tdy, tdw, tdb, GradMode::overwrite,
                         scratch(LinearPass::backward_weight));
  c.same(ty, y);
  c.same(tbefore, before);
  c.same(tdx, dx);
  c.same(tdw, dweight);
  c.same(tdb, dbias);
}

void check_layer_norm(Checker& c) {
  LayerNormParams p{.rows = 33, .channels = 21, .activation = Activation::gelu};
  const int64_t count = p.rows * p.channels;
  const Values x = c.random(count);
  const Values gamma = c.random(p.channels);
  const Values beta = c.random(p.channels);
  const Values dy = c.random(count);
  Values y(x.size());
  Values mean(static_cast<size_t>(p.rows));
  Values rstd(mean.size());
  Values dx(x.size());
  Values dgamma(gamma.size());
  Values dbeta(beta.size());
  ref::layer_norm_forward(p, x.data(), gamma.data(), beta.data(), y.data(), mean.data(), rstd.data());
  ref::layer_norm_backward(p, x.data(), gamma.data(), beta.data(), mean.data(), rstd.data(), dy.data(),
                           dx.data(), dgamma.data(), dbeta.data());
  const Tensor tx = c.put(x), tg = c.put(gamma), tb = c.put(beta), tdy = c.put(dy);
  const Tensor ty = c.out(count), tm = c.out(p.rows), tr = c.out(p.rows), tdx = c.out(count);
  const Tensor tdg = c.out(p.channels), tdb = c.out(p.channels);
  layer_norm_forward(c.k(), p, tx, tg, tb, ty, tm.data<float>(), tr.data<float>());
  layer_norm_backward(c.k(), p, tx, tg, tb, tm.data<float>(), tr.data<float>(), tdy, tdx, tdg, tdb,
                      GradMode::overwrite, c.scratch(layer_norm_backward_workspace_bytes(c.k(), p)));
  c.same(ty, y);
  c.same(tdx, dx);
  c.same(tdg, dgamma);
  c.same(tdb, dbeta);
}

void check_instance_norm(Checker& c) {
  InstanceNormParams p{.n = 2, .spatial = 65, .channels = 7, .activation = Activation::leaky_relu};
  const int64_t count = p.n * p.spatial * p.channels;
  const Values x = c.random(count);
  const Values gamma = c.random(p.channels);
  const Values beta = c.random(p.channels);
  const Values dy = c.random(count);
  Values y(x.size());
  Values mean(static_cast<size_t>(p.n * p.channels));
  Values rstd(mean.size());
  Values dx(x.size());
  Values dgamma(gamma.size());
  Values dbeta(beta.size());
  ref::instance_norm_forward(p, x.data(), gamma.data(), beta.data(), y.data(), mean.data(), rstd.data());
  ref::instance_norm_backward(p, x.data(), gamma.data(), beta.data(), mean.data(), rstd.data(), dy.data(),
                              dx.data(), dgamma.data(), dbeta.data());
  const Tensor tx = c.put(x), tg = c.put(gamma), tb = c.put(beta), tdy = c.put(dy);
  const Tensor ty = c.out(count), tm = c.out(p.n * p.channels), tr = c.out(p.n * p.channels),
               tdx = c.out(count);
  const Tensor tdg = c.out(p.channels), tdb = c.out(p.channels);
  instance_norm_forward(c.k(), p, tx, tg, tb, ty, tm.data<float>(), tr.data<float>(),
                        c.scratch(instance_norm_workspace_bytes(c.k(), p)));
  instance_norm_backward(c.k(), p, tx, tg, tb, tm.data<float>(), tr.data<float>(), tdy, tdx, tdg, tdb,
                         GradMode::overwrite, c.scratch(instance_norm_workspace_bytes(c.k(), p)));
  c.same(ty, y);
  c.same(tdx, dx);
  c.same(tdg, dgamma);
  c.same(tdb, dbeta);
}

// In training, then in evaluation with the running statistics that it left.
void check_batch_norm(Checker& c) {
  BatchNormParams p{.n = 2, .spatial = 65, .channels = 7, .activation = Activation::silu};
  const int64_t count = p.rows() * p.channels;
  const Values x = c.random(count);
  const Values gamma = c.random(p.channels);
  const Values beta = c.random(p.channels);
  const Values dy = c.random(count);
  Values running_mean(gamma.size(), 0.0);
  Values running_var(gamma.size(), 1.0);
  const Tensor tx = c.put(x), tg = c.put(gamma), tb = c.put(beta), tdy = c.put(dy);
  const Tensor trm = c.put(running_mean), trv = c.put(running_var);
  for (const bool training : {true, false}) {
    p.training = training;
    Values y(x.size());
    Values mean(gamma.size());
    Values rstd(gamma.size());
    Values dx(x.size());
    Values dgamma(gamma.size());
    Values dbeta(beta.size());
    ref::batch_norm_forward(p, x.data(), gamma.data(), beta.data(), running_mean.data(), running_var.data(),
                            y.data(), mean.data(), rstd.data());
    ref::batch_norm_backward(p, x.data(), gamma.data(), beta.data(), mean.data(), rstd.data(), dy.data(),
                             dx.data(), dgamma.data(), dbeta.data());
    const Tensor ty = c.out(count), tm = c.out(p.channels), tr = c.out(p.channels), tdx = c.out(count);
    const Tensor tdg = c.out(p.channels), tdb = c.out(p.channels);
    batch_norm_forward(c.k(), p, tx, tg, tb, trm.data<float>(), trv.data<float>(), ty, tm.data<float>(),
                       tr.data<float>(), c.scratch(batch_norm_workspace_bytes(c.k(), p)));
    batch_norm_backward(c.k(), p, tx, tg, tb, tm.data<float>(), tr.data<float>(), tdy, tdx, tdg, tdb,
                        GradMode::overwrite, c.scratch(batch_norm_workspace_bytes(c.k(), p)));
    c.same(ty, y);
    c.same(trm, running_mean);
    c.same(trv, running_var);
    c.same(tdx, dx);
    c.same(tdg, dgamma);
    c.same(tdb, dbeta);
  }
}

void check_group_norm(Checker& c) {
  GroupNormParams p{.n = 2, .spatial = 65, .channels = 12, .groups = 3, .activation = Activation::gelu};
  const int64_t count = p.n * p.spatial * p.channels;
  const int64_t statistics = p.n * p.groups;
  const Values x = c.random(count);
  const Values gamma = c.random(p.channels);
  const Values beta = c.random(p.channels);
  const Values dy = c.random(count);
  Values y(x.size());
  Values mean(static_cast<size_t>(statistics));
  Values rstd(mean.size());
  Values dx(x.size());
  Values dgamma(gamma.size());
  Values dbeta(beta.size());
  ref::group_norm_forward(p, x.data(), gamma.data(), beta.data(), y.data(), mean.data(), rstd.data());
  ref::group_norm_backward(p, x.data(), gamma.data(), beta.data(), mean.data(), rstd.data(), dy.data(),
                           dx.data(), dgamma.data(), dbeta.data());
  const Tensor tx = c.put(x), tg = c.put(gamma), tb = c.put(beta), tdy = c.put(dy);
  const Tensor ty = c.out(count), tm = c.out(statistics), tr = c.out(statistics), tdx = c.out(count);
  const Tensor tdg = c.out(p.channels), tdb = c.out(p.channels);
  group_norm_forward(c.k(), p, tx, tg, tb, ty, tm.data<float>(), tr.data<float>(),
                     c.scratch(group_norm_workspace_bytes(c.k(), p)));
  group_norm_backward(c.k(), p, tx, tg, tb, tm.data<float>(), tr.data<float>(), tdy, tdx, tdg, tdb,
                      GradMode::overwrite, c.scratch(group_norm_workspace_bytes(c.k(), p)));
  c.same(ty, y);
  c.same(tdx, dx);
  c.same(tdg, dgamma);
  c.same(tdb, dbeta);
}

void check_attention(Checker& c) {
  const AttentionParams p{
      .n = 2, .queries = 5, .keys = 12, .heads = 2, .head_dim = 7, .scale = 0.4f, .key_grid = {2, 2, 3}};
  const int64_t queries = p.n * p.queries * p.channels();
  const int64_t keys = p.n * p.keys * p.channels();
  const int64_t rows = p.n * p.queries * p.heads;
  const Values q = c.random(queries), k = c.random(keys), v = c.random(keys), dout = c.random(queries);
  const Values axial = c.random(rows * p.axial_size());
  Values out(q.size()), lse(static_cast<size_t>(rows)), dq(q.size()), dk(k.size()), dv(v.size()),
      daxial(axial.size());
  const ref::Attention<double> a{p, q.data(), k.data(), v.data(), nullptr, nullptr, axial.data()};
  ref::attention_forward(a, out.data(), lse.data());
  ref::attention_backward(a, out.data(), lse.data(), dout.data(), dq.data(), dk.data(), dv.data(),
                          daxial.data());
  const Tensor tq = c.put(q), tk = c.put(k), tv = c.put(v), taxial = c.put(axial), tdout = c.put(dout);
  const Tensor tout = c.out(queries), tlse = c.out(rows), tdq = c.out(queries), tdk = c.out(keys),
               tdv = c.out(keys);
  const Tensor tdaxial = c.out(rows * p.axial_size());
  const AttentionInputs inputs{tq, tk, tv, nullptr, nullptr, taxial};
  attention_forward(c.k(), p, inputs, tout, tlse.data<float>(),
                    c.scratch(attention_forward_workspace_bytes(c.k(), p)));
  attention_backward(c.k(), p, inputs, tout, tlse.data<float>(), tdout, {tdq, tdk, tdv, tdaxial},
                     c.scratch(attention_backward_workspace_bytes(c.k(), p)));
  c.same(tout, out);
  c.same(tdq, dq);
  c.same(tdk, dk);
  c.same(tdv, dv);
  c.same(tdaxial, daxial);
}

void check_relative_position(Checker& c) {
  const RelativePositionParams p{
      .n = 2, .heads = 2, .head_dim = 5, .query_grid = {1, 3, 4}, .key_grid = {1, 3, 2}};
  const int64_t queries = p.n * p.queries() * p.channels();
  const int64_t bias = p.n * p.queries() * p.heads * p.axial_size();
  const Values q = c.random(queries), h = c.random(p.table_rows(1) * p.head_dim),
               w = c.random(p.table_rows(2) * p.head_dim), daxial = c.random(bias);
  Values axial(daxial.size()), dq(q.size()), dh(h.size()), dw(w.size());
  ref::relative_position_forward<double>(p, q.data(), {nullptr, h.data(), w.data()}, axial.data());
  ref::relative_position_backward<double>(p, q.data(), {nullptr, h.data(), w.data()}, daxial.data(),
                                          dq.data(), {nullptr, dh.data(), dw.data()});
  const Tensor tq = c.put(q), th = c.put(h), tw = c.put(w), tdaxial = c.put(daxial);
  const Tensor taxial = c.out(bias), tdq = c.out(queries), tdh = c.out(p.table_rows(1) * p.head_dim),
               tdw = c.out(p.table_rows(2) * p.head_dim);
  relative_position_forward(c.k(), p, tq, {ConstData(), th, tw}, taxial);
  relative_position_backward(c.k(), p, tq, {ConstData(), th, tw}, tdaxial, tdq, GradMode::overwrite,
                             {Data(), tdh, tdw}, GradMode::overwrite,
                             c.scratch(relative_position_backward_workspace_bytes(c.k(), p)));
  c.same(taxial, axial);
  c.same(tdq, dq);
  c.same(tdh, dh);
  c.same(tdw, dw);
}

void check_rotary(Checker& c) {
  const RotaryParams p{
      .n = 2, .tokens = 13, .heads = 2, .head_dim = 14, .axes = 3, .grid = {1, 2, 3}, .excluded = 1};
  const int64_t count = p.n * p.tokens * p.channels();
  const Values x = c.random(count), dy = c.random(count);
  Values y(x.size()), dx(x.size());
  ref::rotary(p, x.data(), y.data(), 1);
  ref::rotary(p, dy.data(), dx.data(), -1);
  const Tensor tx = c.put(x), tdy = c.put(dy), ty = c.out(count), tdx = c.out(count);
  rotary_forward(c.k(), p, tx, ty);
  rotary_backward(c.k(), p, tdy, tdx);
  c.same(ty, y);
  c.same(tdx, dx);
}

void check_window_attention(Checker& c) {
  WindowAttentionParams p{.n = 1,
                          .d = 5,
                          .h = 3,
                          .w = 6,
                          .heads = 2,
                          .head_dim = 8,
                          .window = {3, 2, 3},
                          .shift = {1, 1, 0},
                          .padding = PaddingMode::attend,
                          .scale = 0.35f};
  const int64_t width = 3 * p.channels();
  const Values qkv = c.random(p.tokens() * width);
  const Values qkv_bias = c.random(width);
  const Values table = c.random(p.bias_rows() * p.heads);
  const Values dout = c.random(p.tokens() * p.channels());
  Values out(dout.size());
  Values lse(static_cast<size_t>(p.tokens() * p.heads));
  Values dqkv(qkv.size());
  Values dqkv_bias(qkv_bias.size());
  Values dtable(table.size());
  ref::window_attention_forward(p, qkv.data(), qkv_bias.data(), table.data(), out.data(), lse.data());
  ref::window_attention_backward(p, qkv.data(), qkv_bias.data(), table.data(), out.data(), lse.data(),
                                 dout.data(), dqkv.data(), dqkv_bias.data(), dtable.data());
  const Tensor tq = c.put(qkv), tqb = c.put(qkv_bias), tt = c.put(table), tdo = c.put(dout);
  const Tensor to = c.out(p.tokens() * p.channels()), tl = c.out(p.tokens() * p.heads);
  const Tensor tdq = c.out(p.tokens() * width), tdqb = c.out(width), tdt = c.out(p.bias_rows() * p.heads);
  window_attention_forward(c.k(), p, tq, tqb, tt, to, tl.data<float>());
  window_attention_backward(c.k(), p, tq, tqb, tt, to, tl.data<float>(), tdo, tdq, tdqb, tdt,
                            GradMode::overwrite,
                            c.scratch(window_attention_backward_workspace_bytes(c.k(), p)));
  c.same(to, out);
  c.same(tdq, dqkv);
  c.same(tdqb, dqkv_bias);
  c.same(tdt, dtable);
}

// One group is absent and full of NaN: it must leave no trace. The gradient is checked along one direction of
// the weights, in which the op is linear: <dy, y(dW)> = <dweight, dW>.
void check_shifted_patch(Checker& c) {
  ShiftedPatchParams p{.n = 1, .d = 3, .h = 5, .w = 4, .groups = 2, .channels = 2, .out = 7};
  const int64_t lanes = p.groups * p.channels;
  Values x = c.random(p.d * p.h * p.w * lanes);
  for (size_t i = 0; i < x.size(); ++i) {
    if (static_cast<int64_t>(i) % lanes >= p.channels) {
      x[i] = std::numeric_limits<double>::quiet_NaN();
    }
  }
  const std::vector<uint8_t> mask{1, 0};
  const int64_t features = p.features();
  const Values gamma = c.random(p.groups * features);
  const Values beta = c.random(p.groups * features);
  const Values weight = c.random(p.groups * p.out * features);
  const Values bias = c.random(p.groups * p.out);
  const Values missing = c.random(p.groups * p.out);
  const Values dy = c.random(p.tokens() * p.out);
  Values y(dy.size());
  Values dweight(weight.size(), 0.0);
  int64_t token = 0;
  for (int64_t z = 0; z < p.out_d(); ++z) {
    for (int64_t row = 0; row < p.out_h(); ++row) {
      for (int64_t column = 0; column < p.out_w(); ++column, ++token) {
        Values f;
        for (int offset = 0; offset < p.patch[0] * p.patch[1] * p.patch[2]; ++offset) {
          for (int copy = 0; copy < p.copies(); ++copy) {
            const std::array<int, 3> direction = shift_direction(p.shifts, copy);
            const int64_t at[3] = {
                z * p.patch[0] + offset / (p.patch[1] * p.patch[2]) + p.shift[0] * direction[0],
                row * p.patch[1] + offset / p.patch[2] % p.patch[1] + p.shift[1] * direction[1],
                column * p.patch[2] + offset % p.patch[2] + p.shift[2] * direction[2]};
            // A voxel that exists only by padding is 0 as well, whatever the shift.
            const bool inside = at[0] >= 0 && at[0] < p.d && at[1] >= 0 && at[1] < p.h && at[2] >= 0 &&
                                at[2] < p.w && at[0] - p.shift[0] * direction[0] < p.d &&
                                at[1] - p.shift[1] * direction[1] < p.h &&
                                at[2] - p.shift[2] * direction[2] < p.w;
            for (int64_t channel = 0; channel < p.channels; ++channel) {
              f.push_back(
                  inside ? x[static_cast<size_t>(((at[0] * p.h + at[1]) * p.w + at[2]) * lanes + channel)]
                         : 0.0);
            }
          }
        }
        double mean = 0;
        double variance = 0;
        for (const double value : f) {
          mean += value / static_cast<double>(features);
        }
        for (const double value : f) {
          variance += (value - mean) * (value - mean) / static_cast<double>(features);
        }
        for (int64_t i = 0; i < features; ++i) {
          const size_t at = static_cast<size_t>(i);
          f[at] = (f[at] - mean) / std::sqrt(variance + static_cast<double>(p.eps)) * gamma[at] + beta[at];
        }
        for (int64_t o = 0; o < p.out; ++o) {
          double sum = bias[static_cast<size_t>(o)];
          for (int64_t i = 0; i < features; ++i) {
            sum += weight[static_cast<size_t>(o * features + i)] * f[static_cast<size_t>(i)];
            dweight[static_cast<size_t>(o * features + i)] +=
                2 * dy[static_cast<size_t>(token * p.out + o)] * f[static_cast<size_t>(i)];
          }
          // Two groups, one present: its projection counts twice.
          y[static_cast<size_t>(token * p.out + o)] = 2 * sum + missing[static_cast<size_t>(p.out + o)];
        }
      }
    }
  }
  const Tensor tx = c.put(x), tmask = c.put(mask), tg = c.put(gamma), tb = c.put(beta), tw = c.put(weight);
  const Tensor tbias = c.put(bias), tmissing = c.put(missing), tdy = c.put(dy);
  const Tensor ty = c.out(p.tokens() * p.out), tm = c.out(p.groups * p.tokens()),
               tr = c.out(p.groups * p.tokens());
  shifted_patch_forward(c.k(), p, tx, tmask.data<uint8_t>(), tg, tb, tw, tbias, tmissing, ty,
                        tm.data<float>(), tr.data<float>(),
                        c.scratch(shifted_patch_workspace_bytes(c.k(), p, ShiftedPatchPass::forward)));
  c.same(ty, y);
  const Tensor tdx = c.out(p.d * p.h * p.w * lanes), tdg = c.out(p.groups * features),
               tdb = c.out(p.groups * features);
  const Tensor tdw = c.out(p.groups * p.out * features), tdbias = c.out(p.groups * p.out);
  const Tensor tdmissing = c.out(p.groups * p.out);
  shifted_patch_backward(c.k(), p, tx, tmask.data<uint8_t>(), tg, tb, tw, tm.data<float>(), tr.data<float>(),
                         tdy, tdx, tdg, tdb, tdw, tdbias, tdmissing, GradMode::overwrite,
                         c.scratch(shifted_patch_workspace_bytes(c.k(), p, ShiftedPatchPass::backward)));
  c.same(tdw, dweight);
}

// Labels of regions, and some of none.
std::vector<int32_t> random_regions(Checker& c, int64_t voxels, int64_t regions) {
  std::vector<int32_t> labels;
  for (const uint8_t label : c.random_labels(voxels, regions)) {
    labels.push_back(label % 4 == 3 ? -1 : label);
  }
  return labels;
}

void check_graph(Checker& c) {
  // Regions of 4 x 3 x 4 voxels, some of them empty, in four node sets, one of which is absent in the second
  // sample.
  GraphParams p{.n = 2,
                .d = 4,
                .h = 3,
                .w = 4,
                .neighbours = 3,
                .features = 5,
                .branches = 2,
                .modalities = 2,
                .regions = 12};
  const std::vector<int32_t> labels = random_regions(c, p.n * p.d * p.h * p.w, p.regions);
  const std::vector<uint8_t> mask = {1, 1, 1, 1, 1, 0, 1, 1};
  const Values features = c.random(p.nodes() * p.features);
  const Values theta = c.random(p.type_count());
  const Values dy = c.random(p.nodes() * p.features);
  const std::vector<float> narrow(features.begin(), features.end());
  const ref::HostGraph want = ref::graph_build(p, narrow.data(), labels.data(), mask);
  const size_t edges = static_cast<size_t>(want.edges());

  const Tensor tf = c.put(features), tt = c.put(theta), tdy = c.put(dy);
  const std::vector<int32_t> poison(static_cast<size_t>(p.edge_capacity()), -1);
  const Tensor rows = c.put(std::vector<int32_t>(static_cast<size_t>(p.nodes() + 1), -1));
  const Tensor columns = c.put(poison), transpose = c.put(poison), types = c.out_bytes(p.edge_capacity());
  const Tensor tlabels = c.put(labels), tmask = c.put(mask);
  const Graph graph{p.nodes(),
                    rows.data<int32_t>(),
                    columns.data<int32_t>(),
                    types.data<uint8_t>(),
                    transpose.data<int32_t>(),
                    p.type_count(),
                    tmask.data<uint8_t>(),
                    p.nodes_per_set()};
  graph_build(c.k(), p, tf, tlabels.data<int32_t>(), graph, c.scratch(graph_build_workspace_bytes(c.k(), p)));
  c.identical(rows, want.row_offsets);
  c.identical(columns, want.columns);
  c.identical(types, want.types);
  c.identical(transpose, want.transpose);

  Values weights(edges);
  Values y(features.size());
  Values dvalues(edges);
  Values dtheta(theta.size());
  ref::graph_symmetric_weights_forward(want, theta.data(), weights.data());
  ref::graph_spmm(want, p.features, weights.data(), features.data(), false, y.data());
  ref::graph_sddmm(want, p.features, dy.data(), features.data(), dvalues.data());
  ref::graph_symmetric_weights_backward(want, theta.data(), dvalues.data(), dtheta.data());
  const Tensor tw = c.out(p.edge_capacity()), ty = c.out(p.nodes() * p.features),
               tdv = c.out(p.edge_capacity());
  const Tensor tdt = c.out(p.type_count());
  graph_symmetric_weights_forward(c.k(), graph, tt, tw,
                                  c.scratch(graph_symmetric_weights_workspace_bytes(c.k(), graph)));
  graph_spmm(c.k(), graph, p.features, tw, tf, false, ty, GradMode::overwrite);
  graph_sddmm(c.k(), graph, p.features, tdy, tf, tdv);
  graph_symmetric_weights_backward(c.k(), graph, tt, tw, tdv, tdt, GradMode::overwrite,
                                   c.scratch(graph_symmetric_weights_workspace_bytes(c.k(), graph)));
  c.same(tw, weights);
  c.same(ty, y);
  c.same(tdv, dvalues);
  c.same(tdt, dtheta);

  const Values scores = c.random(p.edge_capacity());
  Values softmax(edges);
  ref::graph_segment_softmax_forward(want, scores.data(), softmax.data());
  const Tensor ts = c.put(scores), tsm = c.out(p.edge_capacity());
  graph_segment_softmax_forward(c.k(), graph, ts, tsm);
  c.same(tsm, softmax);
}

void check_region_pool(Checker& c) {
  const RegionParams p{.n = 2, .voxels = 300, .regions = 12};
  constexpr int64_t kChannels = 5;
  const std::vector<int32_t> labels = random_regions(c, p.n * p.voxels, p.regions);
  const Values x = c.random(p.n * p.voxels * kChannels);
  const Values r = c.random(p.n * p.regions * kChannels);
  const Tensor tlabels = c.put(labels), tx = c.put(x), tr = c.put(r);
  const Tensor offsets = c.put(std::vector<int32_t>(static_cast<size_t>(p.index_offsets()), -1));
  const Tensor voxels = c.put(std::vector<int32_t>(static_cast<size_t>(p.n * p.voxels), -1));
  const RegionIndex index{offsets.data<int32_t>(), voxels.data<int32_t>()};
  region_index(c.k(), p, tlabels.data<int32_t>(), index, c.scratch(region_index_workspace_bytes(c.k(), p)));

  Values means(r.size()), dx(x.size()), y(x.size()), dr(r.size());
  ref::region_mean_forward(p, kChannels, labels.data(), x.data(), means.data());
  ref::region_mean_backward(p, kChannels, labels.data(), r.data(), dx.data());
  ref::region_gather_forward(p, kChannels, labels.data(), r.data(), y.data());
  ref::region_gather_backward(p, kChannels, labels.data(), x.data(), dr.data());
  const int64_t region_values = p.n * p.regions * kChannels, voxel_values = p.n * p.voxels * kChannels;
  const Tensor tmeans = c.out(region_values), tdx = c.out(voxel_values), ty = c.out(voxel_values),
               tdr = c.out(region_values);
  region_mean_forward(c.k(), p, kChannels, index, tx, tmeans);
  region_mean_backward(c.k(), p, kChannels, tlabels.data<int32_t>(), index, tr, tdx);
  region_gather_forward(c.k(), p, kChannels, tlabels.data<int32_t>(), tr, ty);
  region_gather_backward(c.k(), p, kChannels, index, tx, tdr);
  c.same(tmeans, means);
  c.same(tdx, dx);
  c.same(ty, y);
  c.same(tdr, dr);
}

void check_sobel(Checker& c) {
  SobelParams p{.n = 1, .d = 3, .h = 4, .w = 5, .spacing = {2.0f, 1.0f, 0.5f}};
  const int64_t voxels = p.d * p.h * p.w;
  const Values x = c.random(voxels);
  const Values dgradient = c.random(voxels * 3);
  Values gradient(dgradient.size(), 0.0);
  Values dx(x.size(), 0.0);
  constexpr double kDifference[3] = {1, 0, -1};
  constexpr double kSmooth[3] = {1, 2, 1};
  for (int64_t v = 0; v < voxels; ++v) {
    const int64_t at[3] = {v / (p.h * p.w), v / p.w % p.h, v % p.w};
    for (int axis = 0; axis < 3; ++axis) {
      for (int tap = 0; tap < 27; ++tap) {
        const int offset[3] = {tap / 9, tap / 3 % 3, tap % 3};
        const int64_t z = at[0] + offset[0] - 1;
        const int64_t row = at[1] + offset[1] - 1;
        const int64_t column = at[2] + offset[2] - 1;
        if (z < 0 || z >= p.d || row < 0 || row >= p.h || column < 0 || column >= p.w) {
          continue;
        }
        double factor = 1.0 / static_cast<double>(p.spacing[static_cast<size_t>(axis)]);
        for (int other = 0; other < 3; ++other) {
          factor *= other == axis ? kDifference[offset[other]] : kSmooth[offset[other]];
        }
        const size_t there = static_cast<size_t>((z * p.h + row) * p.w + column);
        const size_t here = static_cast<size_t>(v * 3 + axis);
        gradient[here] += factor * x[there];
        dx[there] += factor * dgradient[here];
      }
    }
  }
  const Tensor tx = c.put(x), tdg = c.put(dgradient), tg = c.out(voxels * 3), tdx = c.out(voxels);
  sobel_gradient_forward(c.k(), p, tx, tg);
  sobel_gradient_backward(c.k(), p, tdg, tdx);
  c.same(tg, gradient);
  c.same(tdx, dx);
}

void check_pooling(Checker& c) {
  PoolParams p{.n = 1, .d = 5, .h = 4, .w = 7, .c = 3, .ceil_mode = true};
  const int64_t in = p.d * p.h * p.w * p.c;
  const int64_t out = p.out_d() * p.out_h() * p.out_w() * p.c;
  const Values x = c.random(in);
  const Values dy = c.random(out);
  Values largest(dy.size());
  Values average(dy.size());
  Values dlargest(x.size());
  Values daverage(x.size());
  std::vector<uint8_t> index(dy.size());
  ref::max_pool3d_forward(p, x.data(), largest.data(), index.data());
  ref::max_pool3d_backward(p, dy.data(), index.data(), dlargest.data());
  ref::avg_pool3d_forward(p, x.data(), average.data());
  ref::avg_pool3d_backward(p, dy.data(), daverage.data());
  const Tensor tx = c.put(x), tdy = c.put(dy), tl = c.out(out), ta = c.out(out), tdl = c.out(in),
               tda = c.out(in);
  const Tensor ti = c.out_bytes(out);
  max_pool3d_forward(c.k(), p, tx, tl, ti.data<uint8_t>());
  max_pool3d_backward(c.k(), p, tdy, ti.data<uint8_t>(), tdl);
  avg_pool3d_forward(c.k(), p, tx, ta);
  avg_pool3d_backward(c.k(), p, tdy, tda);
  c.same(tl, largest);
  c.same(tdl, dlargest);
  c.same(ta, average);
  c.same(tda, daverage);
}

void check_resize(Checker& c) {
  ResizeParams p{.n = 1, .d = 3, .h = 4, .w = 5, .out_d = 6, .out_h = 3, .out_w = 7, .c = 3};
  const int64_t in = p.d * p.h * p.w * p.c;
  const int64_t out = p.out_d * p.out_h * p.out_w * p.c;
  const Values x = c.random(in);
  const Values dy = c.random(out);
  Values y(dy.size());
  Values dx(x.size());
  ref::resize_forward(p, x.data(), y.data());
  ref::resize_backward(p, dy.data(), dx.data());
  const Tensor tx = c.put(x), tdy = c.put(dy), ty = c.out(out), tdx = c.out(in);
  resize_forward(c.k(), p, tx, ty);
  resize_backward(c.k(), p, tdy, tdx);
  c.same(ty, y);
  c.same(tdx, dx);
}

void check_rearrange(Checker& c) {
  PadCropParams p{
      .n = 1, .d = 3, .h = 4, .w = 5, .out_d = 5, .out_h = 3, .out_w = 6, .c = 3, .low = {1, -1, 0}};
  const int64_t in = p.d * p.h * p.w * p.c;
  const int64_t out = p.out_d * p.out_h * p.out_w * p.c;
  const Values x = c.random(in);
  const Values dy = c.random(out);
  Values y(dy.size());
  Values dx(x.size());
  ref::pad_crop_forward(p, x.data(), y.data());
  ref::pad_crop_backward(p, dy.data(), dx.data());
  const Tensor tx = c.put(x), tdy = c.put(dy), ty = c.out(out), tdx = c.out(in);
  pad_crop_forward(c.k(), p, tx, ty);
  pad_crop_backward(c.k(), p, tdy, tdx);
  c.same(ty, y);
  c.same(tdx, dx);

  const std::vector<int32_t> source{2, -1, 0, 1};
  Values routed(static_cast<size_t>(p.d * p.h * p.w * 4));
  ref::route_channels(1, p.d * p.h * p.w, p.c, 4, x.data(), source.data(), routed.data());
  const Tensor tsource = c.put(source), trouted = c.out(p.d * p.h * p.w * 4);
  route_channels(c.k(), 1, p.d * p.h * p.w, p.c, 4, tx, tsource.data<int32_t>(), trouted);
  c.same(trouted, routed);
}

void check_elementwise(Checker& c) {
  constexpr int64_t kCount = 1027;
  const Values x = c.random(kCount);
  const Values dy = c.random(kCount);
  for (const Unary kind : {Unary::relu, Unary::leaky_relu, Unary::gelu, Unary::gelu_tanh, Unary::silu,
                           Unary::hardswish, Unary::elu, Unary::sigmoid}) {
    Values y(x.size());
    Values dx(x.size());
    ref::unary_forward(kind, kCount, x.data(), y.data(), 0.01);
    ref::unary_backward(kind, kCount, x.data(), dy.data(), dx.data(), 0.01);
    const Tensor tx = c.put(x), tdy = c.put(dy), ty = c.out(kCount), tdx = c.out(kCount);
    unary_forward(c.k(), kind, kCount, tx, ty);
    unary_backward(c.k(), kind, kCount, tx, tdy, tdx);
    c.same(ty, y);
    c.same(tdx, dx);
  }
  const DropoutKey key{3, 1, 4};
  Values kept(x.size());
  const Tensor tx = c.put(x), tkept = c.out(kCount), tchannels = c.out(kCount);
  ref::dropout(kCount, 0.3f, key, x.data(), kept.data());
  dropout(c.k(), kCount, 0.3f, key, tx, tkept);
  c.same(tkept, kept);
  ref::dropout_channels(1, kCount / 13, 13, 0.3f, key, x.data(), kept.data());  // 1027 = 79 * 13
  dropout_channels(c.k(), 1, kCount / 13, 13, 0.3f, key, tx, tchannels);
  c.same(tchannels, kept);
}

void check_softmax(Checker& c) {
  constexpr int64_t kRows = 17;
  constexpr int64_t kChannels = 35;
  const Values x = c.random(kRows * kChannels);
  const Values dy = c.random(kRows * kChannels);
  Values y(x.size());
  Values dx(x.size());
  ref::softmax_forward(kRows, kChannels, x.data(), y.data());
  ref::softmax_backward(kRows, kChannels, y.data(), dy.data(), dx.data());
  const Tensor tx = c.put(x), tdy = c.put(dy), ty = c.out(kRows * kChannels), tdx = c.out(kRows * kChannels);
  softmax_forward(c.k(), kRows, kChannels, tx, ty);
  softmax_backward(c.k(), kRows, kChannels, ty, tdy, tdx);
  c.same(ty, y);
  c.same(tdx, dx);
}

void check_reduce(Checker& c) {
  constexpr int64_t kCount = 2051;
  const Values x = c.random(kCount);
  const Tensor tx = c.put(x);
  const Tensor ts = c.out(1), tq = c.out(1), tm = c.out(1);
  sum(c.k(), kCount, tx, ts, c.scratch(reduce_workspace_bytes(c.k(), kCount)));
  sum_squares(c.k(), kCount, tx, tq, c.scratch(reduce_workspace_bytes(c.k(), kCount)));
  max_abs(c.k(), kCount, tx, tm, c.scratch(reduce_workspace_bytes(c.k(), kCount)));
  c.same(ts, {ref::sum(kCount, x.data())});
  c.same(tq, {ref::sum_squares(kCount, x.data())});
  c.same(tm, {ref::max_abs(kCount, x.data())});
}

void check_losses(Checker& c) {
  constexpr int64_t kSide = 6;
  constexpr int64_t kVoxels = kSide * kSide * kSide;
  const std::vector<uint8_t> labels = c.random_labels(kVoxels, 4);
  std::vector<uint8_t> targets(labels.size() * 3);
  std::vector<uint8_t> edges(labels.size());
  ref::region_targets(kVoxels, labels.data(), targets.data());
  ref::edge_targets(1, kSide, kSide, kSide, labels.data(), edges.data());
  const Tensor tlabels = c.put(labels), ttargets = c.out_bytes(kVoxels * 3), tedges = c.out_bytes(kVoxels);
  region_targets(c.k(), kVoxels, tlabels.data<uint8_t>(), ttargets.data<uint8_t>());
  edge_targets(c.k(), 1, kSide, kSide, kSide, tlabels.data<uint8_t>(), tedges.data<uint8_t>());
  c.identical(ttargets, targets);
  c.identical(tedges, edges);

  RegionLossParams region{.n = 1, .voxels = kVoxels};
  const Values logits = c.random(kVoxels * 3);
  Values dice(6);
  Values dlogits(logits.size());
  const double loss = ref::region_loss_forward(region, logits.data(), targets.data(), dice.data());
  ref::region_loss_backward(region, logits.data(), targets.data(), dice.data(), 1.0, dlogits.data());
  const Tensor tlogits = c.put(logits), tloss = c.out(1), tdice = c.out(6), tdlogits = c.out(kVoxels * 3);
  region_loss_forward(c.k(), region, tlogits, ttargets.data<uint8_t>(), tloss, tdice.data<float>(),
                      c.scratch(region_loss_workspace_bytes(c.k(), region)));
  region_loss_backward(c.k(), region, tlogits, ttargets.data<uint8_t>(), tdice.data<float>(), 1.0f, tdlogits);
  c.same(tloss, {loss});
  c.same(tdlogits, dlogits);

  // Random labels make nearly every voxel an edge; a cube in the middle makes half of them so.
  std::vector<uint8_t> cube(labels.size(), 0);
  for (size_t i = cube.size() / 2; i < cube.size(); ++i) {
    cube[i] = 1;
  }
  EdgeLossParams edge{.voxels = kVoxels};
  const Values edge_logits = c.random(kVoxels);
  double counts[2];
  Values dedge(edge_logits.size());
  ref::edge_counts(edge, cube.data(), counts);
  const double edge_value = ref::edge_loss_forward(edge, edge_logits.data(), cube.data(), counts);
  ref::edge_loss_backward(edge, edge_logits.data(), cube.data(), counts, 1.0, dedge.data());
  const Tensor tcube = c.put(cube), tedge = c.put(edge_logits), tvalue = c.out(1), tcounts = c.out(2),
               tdedge = c.out(kVoxels);
  edge_loss_forward(c.k(), edge, tedge, tcube.data<uint8_t>(), tvalue, tcounts.data<float>(),
                    c.scratch(edge_loss_workspace_bytes(c.k(), edge)));
  edge_loss_backward(c.k(), edge, tedge, tcube.data<uint8_t>(), tcounts.data<float>(), 1.0f, tdedge);
  c.same(tvalue, {edge_value});
  c.same(tdedge, dedge);
}

void check_pointwise_loss(Checker& c) {
  constexpr int64_t kRows = 301;
  constexpr int64_t kChannels = 3;
  const Values x = c.random(kRows * kChannels);
  Values target = c.random(kRows * kChannels);
  const Tensor tx = c.put(x), tloss = c.out(1), tdx = c.out(kRows * kChannels);
  for (const PointwiseLoss kind :
       {PointwiseLoss::l1, PointwiseLoss::smooth_l1, PointwiseLoss::l2, PointwiseLoss::bce}) {
    PointwiseLossParams p{.kind = kind, .rows = kRows, .channels = kChannels};
    if (kind == PointwiseLoss::bce) {
      p.gamma = 2.0f;
      p.alpha = 0.25f;
      for (double& value : target) {
        value = value > 0 ? 1 : 0;
      }
    }
    Values dx(x.size());
    const double loss = ref::pointwise_loss_forward(p, x.data(), target.data(), {});
    ref::pointwise_loss_backward(p, x.data(), target.data(), {}, 1.0, dx.data());
    const Tensor ttarget = c.put(target);
    pointwise_loss_forward(c.k(), p, tx, ttarget, {}, tloss,
                           c.scratch(pointwise_loss_workspace_bytes(c.k(), p)));
    pointwise_loss_backward(c.k(), p, tx, ttarget, {}, 1.0f, tdx);
    c.same(tloss, {loss});
    c.same(tdx, dx);
  }
}

void check_cross_entropy(Checker& c) {
  constexpr int64_t kRows = 301;
  constexpr int64_t kClasses = 5;
  const Values x = c.random(kRows * kClasses);
  const Values teacher = c.random(kRows * kClasses);
  const std::vector<uint8_t> labels = c.random_labels(kRows, kClasses);
  const std::vector<float> weights{0.5f, 1.0f, 2.0f, 0.25f, 1.5f};
  const Tensor tx = c.put(x), tteacher = c.put(teacher), tlabels = c.put(labels), tweights = c.put(weights),
               tloss = c.out(1), ttotal = c.out(1), td = c.out(kRows * kClasses);
  Values d(x.size());

  const CrossEntropyParams p{
      .rows = kRows, .classes = kClasses, .ignore_label = 4, .label_smoothing = 0.1f, .focal_gamma = 1.0f};
  const double total = ref::cross_entropy_total_weight<double>(p, labels.data(), weights.data());
  const double loss = ref::cross_entropy_forward(p, x.data(), labels.data(), weights.data(), total);
  ref::cross_entropy_backward(p, x.data(), labels.data(), weights.data(), total, 1.0, d.data());
  cross_entropy_forward(c.k(), p, tx, tlabels.data<uint8_t>(), tweights.data<float>(), tloss,
                        ttotal.data<float>(), c.scratch(cross_entropy_workspace_bytes(c.k(), p)));
  cross_entropy_backward(c.k(), p, tx, tlabels.data<uint8_t>(), tweights.data<float>(), ttotal.data<float>(),
                         1.0f, td);
  c.same(tloss, {loss});
  c.same(td, d);

  const DistillationParams q{.rows = kRows, .classes = kClasses, .temperature = 2.0f};
  const double divergence = ref::distillation_forward(q, x.data(), teacher.data());
  ref::distillation_backward(q, x.data(), teacher.data(), 1.0, d.data());
  distillation_forward(c.k(), q, tx, tteacher, tloss, c.scratch(distillation_workspace_bytes(c.k(), q)));
  distillation_backward(c.k(), q, tx, tteacher, 1.0f, td);
  c.same(tloss, {divergence});
  c.same(td, d);
}

void check_overlap_loss(Checker& c) {
  constexpr int64_t kVoxels = 301;
  constexpr int64_t kChannels = 4;
  const Values x = c.random(2 * kVoxels * kChannels);
  const Tensor tx = c.put(x), tloss = c.out(1), td = c.out(2 * kVoxels * kChannels);
  for (const bool softmax : {true, false}) {
    const OverlapLossParams p{.kind = softmax ? Overlap::dice : Overlap::iou,
                              .softmax = softmax,
                              .n = 2,
                              .voxels = kVoxels,
                              .channels = kChannels,
                              .first_channel = softmax ? 1 : 0};
    const std::vector<uint8_t> targets =
        c.random_labels(2 * kVoxels * (softmax ? 1 : kChannels), softmax ? kChannels : 2);
    Values slopes(static_cast<size_t>(p.groups() * kChannels * 2)), d(x.size());
    const double loss = ref::overlap_loss_forward(p, x.data(), targets.data(), slopes.data());
    ref::overlap_loss_backward(p, x.data(), targets.data(), slopes.data(), 1.0, d.data());
    const Tensor ttargets = c.put(targets), tslopes = c.out(static_cast<int64_t>(slopes.size()));
    overlap_loss_forward(c.k(), p, tx, ttargets.data<uint8_t>(), tloss, tslopes.data<float>(),
                         c.scratch(overlap_loss_workspace_bytes(c.k(), p)));
    overlap_loss_backward(c.k(), p, tx, ttargets.data<uint8_t>(), tslopes.data<float>(), 1.0f, td);
    c.same(tloss, {loss});
    c.same(td, d);
  }
}

void check_optimizer(Checker& c) {
  constexpr int64_t kCount = 4099;  // one chunk and a bit
  Values parameter = c.random(kCount);
  const Values gradient = c.random(kCount);
  Values m = c.random(kCount);  // mid-way through a training, both moments are there
  Values v = c.random(kCount);
  for (double& value : v) {
    value = std::abs(value);
  }
  Values average = c.random(kCount);
  const Tensor tp = c.put(parameter), tg = c.put(gradient), tm = c.put(m), tv = c.put(v), tnorm = c.out(1),
               taverage = c.put(average);
  const std::vector<OptimizerTensor> tensors{{.parameter = tp.data<float>(),
                                              .gradient = tg.data<float>(),
                                              .first_moment = tm.data<float>(),
                                              .second_moment = tv.data<float>(),
                                              .count = kCount,
                                              .weight_decay = 0.01f,
                                              .average = taverage.data<float>()}};
  const std::vector<OptimizerChunk> chunks = optimizer_chunks(tensors);
  // Tables of structs travel as bytes.
  const auto bytes = [&](const void* data, size_t count) {
    const uint8_t* begin = static_cast<const uint8_t*>(data);
    return c.put(std::vector<uint8_t>(begin, begin + count));
  };
  const Tensor ttensors = bytes(tensors.data(), tensors.size() * sizeof(OptimizerTensor));
  const Tensor tchunks = bytes(chunks.data(), chunks.size() * sizeof(OptimizerChunk));
  const OptimizerTables tables{static_cast<const OptimizerTensor*>(ttensors.data()), 1,
                               static_cast<const OptimizerChunk*>(tchunks.data()),
                               static_cast<int64_t>(chunks.size())};
  AdamWParams p{.learning_rate = 0.1f, .step = 5, .max_norm = 1.0f};
  gradient_norm(c.k(), tables, tnorm.data<float>(), c.scratch(gradient_norm_workspace_bytes(c.k(), tables)));
  adamw_step(c.k(), p, tables, tnorm.data<float>());
  const double norm = ref::gradient_norm(kCount, gradient.data());
  ref::adamw_step(p, norm, static_cast<double>(0.01f), kCount, parameter.data(), gradient.data(), m.data(),
                  v.data());
  c.same(tnorm, {norm});
  c.same(tp, parameter);
  c.same(tm, m);

  const SgdParams sgd{.learning_rate = 0.1f, .momentum = 0.9f, .nesterov = true, .max_norm = 1.0f};
  sgd_step(c.k(), sgd, tables, tnorm.data<float>());
  ref::sgd_step(sgd, norm, static_cast<double>(0.01f), kCount, parameter.data(), gradient.data(), m.data());
  ema_step(c.k(), 0.9f, tables, tnorm.data<float>());
  ref::ema_step(0.9f, kCount, parameter.data(), average.data());
  c.same(tp, parameter);
  c.same(tm, m);
  c.same(taverage, average);
}

}  // namespace

std::vector<SelfCheckResult> self_check(DeviceContext& context) {
  struct Entry {
    const char* family;
    void (*run)(Checker&);
  };
  static constexpr Entry kEntries[] = {{"conv3d", check_conv3d},
                                       {"conv_transpose3d", check_conv_transpose3d},
                                       {"linear", check_linear},
                                       {"gemm", check_gemm},
                                       {"layer_norm", check_layer_norm},
                                       {"instance_norm", check_instance_norm},
                                       {"batch_norm", check_batch_norm},
                                       {"group_norm", check_group_norm},
                                       {"window_attention", check_window_attention},
                                       {"attention", check_attention},
                                       {"relative_position", check_relative_position},
                                       {"rotary", check_rotary},
                                       {"shifted_patch", check_shifted_patch},
                                       {"graph", check_graph},
                                       {"region_pool", check_region_pool},
                                       {"sobel", check_sobel},
                                       {"pooling", check_pooling},
                                       {"resize", check_resize},
                                       {"rearrange", check_rearrange},
                                       {"elementwise", check_elementwise},
                                       {"softmax", check_softmax},
                                       {"reduce", check_reduce},
                                       {"losses", check_losses},
                                       {"pointwise_loss", check_pointwise_loss},
                                       {"cross_entropy", check_cross_entropy},
                                       {"overlap_loss", check_overlap_loss},
                                       {"optimizer", check_optimizer}};
  std::vector<SelfCheckResult> results;
  for (const Entry& entry : kEntries) {
    SelfCheckResult result;
    result.family = entry.family;
    result.tolerance = kTolerance;
    const auto start = std::chrono::steady_clock::now();
    try {
      Checker checker(context);
      entry.run(checker);
      result.error = checker.error();
    } catch (const std::exception& error) {
      result.failure = error.what();
    }
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace vesal::layers
