// Tensors with more than 2^31 elements: the far end of each is computed, and read, where it lies. The
// emulator's sparse memory holds them (zeros that cost nothing until they are touched) and a few blocks of
// each launch run, the last one among them. An index that wraps at 32 bits lands outside the memory, or
// leaves the far end unwritten.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/conv3d/conv3d.hpp"
#include "kernels/elementwise/elementwise.hpp"
#include "kernels/instance_norm/instance_norm.hpp"
#include "kernels/layer_norm/layer_norm.hpp"
#include "kernels/linear/linear.hpp"
#include "kernels/pooling/pooling.hpp"
#include "kernels/rearrange/rearrange.hpp"
#include "kernels/reduce/reduce.hpp"
#include "kernels/simt/memory.hpp"
#include "kernels/simt/schedule.hpp"
#include "kernels/softmax/softmax.hpp"
#include "kernels/window_attention/window_attention.hpp"

namespace vesal::kernels {
namespace {

constexpr int64_t kTooMany = int64_t{1} << 31;

template <class T>
class Sparse {
 public:
  explicit Sparse(int64_t count)
      : count_(count),
        data_(static_cast<T*>(simt::allocate_sparse(static_cast<size_t>(count) * sizeof(T)))) {}
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  ~Sparse() { simt::deallocate(data_); }

  T* get() const { return data_; }
  int64_t count() const { return count_; }
  // From the end.
  T& last(int64_t before = 0) const { return data_[count_ - 1 - before]; }
  void fill(T value) const { std::fill_n(data_, count_, value); }

 private:
  int64_t count_;
  T* data_;
};

class Offsets : public ::testing::Test {
 protected:
  void SetUp() override { simt::set_block_sample(4); }
  void TearDown() override { simt::set_block_sample(0); }

  Workspace workspace(size_t bytes) {
    scratch_ = std::make_unique<Sparse<unsigned char>>(static_cast<int64_t>(bytes) + 1);
    return {scratch_->get(), bytes};
  }

  Context context_{Device{DeviceType::simt}};

 private:
  std::unique_ptr<Sparse<unsigned char>> scratch_;
};

TEST_F(Offsets, MapsOverElements) {
  const int64_t count = kTooMany + 1025;
  const Sparse<float> x(count), y(count);
  x.last() = 2.0f;
  x.get()[0] = 3.0f;
  scale_add(context_, count, 1.5f, x.get(), 0.0f, y.get());
  EXPECT_EQ(y.last(), 3.0f);
  EXPECT_EQ(y.get()[0], 4.5f);
  const Sparse<bf16> narrow(count);
  convert(context_, count, x.get(), narrow.get());
  EXPECT_EQ(static_cast<float>(narrow.last()), 2.0f);
  dropout(context_, count, 0.0f, {1, 2, 3}, x.get(), y.get());
  EXPECT_EQ(y.last(), 2.0f);
}

TEST_F(Offsets, MapsOverColumns) {
  const int64_t n = 2, spatial = (int64_t{1} << 25) + 3, channels = 33;
  const Sparse<float> x(n * spatial * channels), v(n * channels), y(n * spatial * channels);
  ASSERT_GT(y.count(), kTooMany);
  x.last() = 2.0f;
  v.last() = 0.25f;
  add_sample_vector(context_, n, spatial, channels, x.get(), v.get(), y.get());
  EXPECT_EQ(y.last(), 2.25f);
  EXPECT_EQ(y.last(channels), 0.25f);
}

TEST_F(Offsets, Rearranges) {
  const CopyChannelsParams p{.rows = int64_t{1} << 26,
                             .source_channels = 33,
                             .source_offset = 1,
                             .target_channels = 35,
                             .target_offset = 3,
                             .count = 32};
  const Sparse<float> source(p.rows * p.source_channels), target(p.rows * p.target_channels);
  source.last() = 7.0f;
  copy_channels(context_, p, source.get(), target.get(), GradMode::overwrite);
  EXPECT_EQ(target.last(), 7.0f);

  const PadCropParams pad{.d = 1300,
                          .h = 1300,
                          .w = 1300,
                          .out_d = 1301,
                          .out_h = 1301,
                          .out_w = 1301,
                          .c = 1,
                          .low = {1, 1, 1},
                          .value = 5.0f};
  const Sparse<float> small(pad.d * pad.h * pad.w), large(pad.out_d * pad.out_h * pad.out_w);
  ASSERT_GT(small.count(), kTooMany);
  small.last() = 9.0f;
  pad_crop_forward(context_, pad, small.get(), large.get());
  EXPECT_EQ(large.last(), 9.0f);
  EXPECT_EQ(large.last(1300), 5.0f);  // the first of the last row
  EXPECT_EQ(large.get()[0], 5.0f);
}

TEST_F(Offsets, Reduces) {
  const int64_t count = kTooMany + 77;
  const Sparse<float> x(count), out(1);
  x.get()[0] = 2.0f;
  x.last() = -3.0f;
  const size_t bytes = reduce_workspace_bytes(context_, count);
  sum(context_, count, x.get(), out.get(), workspace(bytes));
  EXPECT_EQ(out.last(), -1.0f);
  sum_squares(context_, count, x.get(), out.get(), workspace(bytes));
  EXPECT_EQ(out.last(), 13.0f);
  max_abs(context_, count, x.get(), out.get(), workspace(bytes));
  EXPECT_EQ(out.last(), 3.0f);
}

TEST_F(Offsets, Norms) {
  {
    const InstanceNormParams p{.spatial = (int64_t{1} << 28) + 5, .channels = 8};
    const Sparse<float> x(p.spatial * p.channels), y(p.spatial * p.channels), mean(p.channels),
        rstd(p.channels);
    ASSERT_GT(x.count(), kTooMany);
    x.last() = 4.0f;
    instance_norm_forward(context_, p, x.get(), nullptr, nullptr, y.get(), mean.get(), rstd.get(),
                          workspace(instance_norm_workspace_bytes(context_, p)));
    // The sum is right although few blocks ran: the others' share is zero.
    EXPECT_NEAR(mean.last(), 4.0 / static_cast<double>(p.spatial), 1e-12);
    EXPECT_FLOAT_EQ(y.last(), (4.0f - mean.last()) * rstd.last());
  }
  const LayerNormParams p{.rows = (int64_t{1} << 26) + 1, .channels = 33};
  const Sparse<float> x(p.rows * p.channels), y(p.rows * p.channels), gamma(p.channels), beta(p.channels);
  const Sparse<float> mean(p.rows), rstd(p.rows);
  ASSERT_GT(x.count(), kTooMany);
  gamma.fill(1.0f);
  x.last() = 33.0f;
  layer_norm_forward(context_, p, x.get(), gamma.get(), beta.get(), y.get(), mean.get(), rstd.get());
  EXPECT_FLOAT_EQ(mean.last(), 1.0f);
  EXPECT_FLOAT_EQ(y.last(), 32.0f * rstd.last());
  softmax_forward(context_, p.rows, p.channels, x.get(), y.get());
  EXPECT_FLOAT_EQ(y.last(), 1.0f);
}

TEST_F(Offsets, Products) {
  const LinearParams p{.rows = (int64_t{1} << 26) + 3, .in = 33, .out = 2};
  const Sparse<float> x(p.rows * p.in), weight(p.out * p.in), y(p.rows * p.out), dweight(p.out * p.in);
  ASSERT_GT(x.count(), kTooMany);
  x.last() = 2.0f;
  weight.last() = 3.0f;
  linear_forward(context_, p, x.get(), weight.get(), nullptr, y.get(), nullptr,
                 workspace(linear_workspace_bytes(context_, p, LinearPass::forward)));
  EXPECT_EQ(y.last(), 6.0f);
  linear_backward_data(context_, p, y.get(), weight.get(), x.get(),
                       workspace(linear_workspace_bytes(context_, p, LinearPass::backward_data)));
  EXPECT_EQ(x.last(), 18.0f);
  linear_backward_weight(context_, p, x.get(), y.get(), dweight.get(), nullptr, GradMode::overwrite,
                         workspace(linear_workspace_bytes(context_, p, LinearPass::backward_weight)));
  EXPECT_EQ(dweight.last(), 108.0f);
}

TEST_F(Offsets, Convolutions) {
  const Conv3dParams p{.d = 512, .h = 512, .w = 260, .c_in = 33, .c_out = 1};
  const Sparse<float> x(p.input_count()), weight(p.weight_count()), bias(1), y(p.output_count());
  ASSERT_GT(x.count(), kTooMany);
  x.last() = 2.0f;
  bias.last() = 0.5f;
  weight.get()[13 * p.c_in + p.c_in - 1] = 3.0f;  // the tap in the middle, last channel
  conv3d_forward(context_, p, x.get(), weight.get(), bias.get(), y.get(),
                 workspace(conv3d_workspace_bytes(context_, p, ConvPass::forward)));
  EXPECT_EQ(y.last(), 6.5f);
  conv3d_backward_data(context_, p, y.get(), weight.get(), x.get(),
                       workspace(conv3d_workspace_bytes(context_, p, ConvPass::backward_data)));
  EXPECT_EQ(x.last(), 19.5f);
}

TEST_F(Offsets, Pools) {
  const PoolParams p{.d = 1300, .h = 1300, .w = 1300, .c = 1};
  const Sparse<float> x(p.d * p.h * p.w), y(p.out_d() * p.out_h() * p.out_w());
  const Sparse<uint8_t> index(y.count());
  ASSERT_GT(x.count(), kTooMany);
  x.last() = 8.0f;
  max_pool3d_forward(context_, p, x.get(), y.get(), index.get());
  EXPECT_EQ(y.last(), 8.0f);
  EXPECT_EQ(index.last(), 7);
  const Sparse<float> dx(x.count());
  max_pool3d_backward(context_, p, y.get(), index.get(), dx.get());
  EXPECT_EQ(dx.last(), 8.0f);
  avg_pool3d_forward(context_, p, x.get(), y.get());
  EXPECT_EQ(y.last(), 1.0f);
}

TEST_F(Offsets, WindowAttention) {
  const WindowAttentionParams p{
      .d = 312, .h = 312, .w = 312, .heads = 2, .head_dim = 12, .window = {4, 4, 4}};
  const Sparse<float> qkv(p.tokens() * 3 * p.channels()), table(p.bias_rows() * p.heads),
      out(p.tokens() * p.channels());
  ASSERT_GT(qkv.count(), kTooMany);
  qkv.last() = 64.0f;  // of v; all scores are 0
  window_attention_forward(context_, p, qkv.get(), nullptr, table.get(), out.get(), nullptr);
  EXPECT_FLOAT_EQ(out.last(), 1.0f);
  EXPECT_EQ(out.last(1), 0.0f);
}

}  // namespace
}  // namespace vesal::kernels
