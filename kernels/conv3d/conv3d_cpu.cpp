// conv3d on the CPU through oneDNN: channels-last activations as they are, weights packed on every call (a
// packed copy kept between calls would be stale after an optimiser step, and packing costs little beside the
// convolution).
//
// Three detours, measured faster than oneDNN's own way: 1x1x1 convolutions are plain matrix products
// (gemm_cpu.hpp), the data gradient of fewer than 16 channels at stride 1 is a forward convolution with
// mirrored weights, and depthwise convolutions have a loop of their own (conv3d_depthwise_cpu.hpp).
//
// bf16 and f16 tensors are widened to float32 in the workspace. oneDNN's own bf16 convolutions (2.6.3) do not
// serve: with avx512_bf16 but without AMX, one thread, 3x3x3 on 64^3, they took 48 ms against 26 with the
// widening (forward, 12 -> 12 channels), 143 against 97 (24 -> 24), 36 against 29 and 137 against 110 (data
// gradient); and their weight gradient, faster for 12 -> 12 (37 ms against 54), left elements unwritten in
// some of conv_transpose3d's test cases (kernel_4_wide, kernel_5, two_groups).
#include <algorithm>
#include <array>
#include <dnnl.hpp>
#include <map>
#include <type_traits>

#include "kernels/conv3d/conv3d.hpp"
#include "kernels/conv3d/conv3d_depthwise_cpu.hpp"
#include "kernels/conv3d/conv3d_internal.hpp"
#include "kernels/linear/gemm_cpu.hpp"

namespace vesal::kernels::cpu {
namespace {

using Tag = dnnl::memory::format_tag;
using Desc = dnnl::memory::desc;

// One compiled oneDNN convolution and the reorders of its weights.
struct Convolution {
  dnnl::primitive primitive;
  Desc source, target, packed, plain, bias;
  dnnl::reorder pack;                // plain -> packed, before forward and backward_data
  dnnl::reorder unpack, unpack_add;  // packed -> plain, after backward_weight
  Desc scratchpad, reorder_scratchpad;
};

struct OneDnn {
  // The sizes, the pass, and the number of threads, which the compiled code has built in.
  using Key = std::array<int64_t, 24>;
  static constexpr size_t kMostConvolutions = 1024;  // a stream of ever new shapes must not fill the memory

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Convolution> convolutions;
};

// oneDNN's exceptions as ours.
template <class Body>
auto guarded(const char* op, Body&& body) {
  try {
    return body();
  } catch (const dnnl::error& error) {
    throw DeviceError(concat(op, ": oneDNN: ", error.what()));
  }
}

Convolution compile(OneDnn& library, const Conv3dParams& p, ConvPass pass) {
  const dnnl::memory::dims kernel{p.kernel[0], p.kernel[1], p.kernel[2]};
  const dnnl::memory::dims stride{p.stride[0], p.stride[1], p.stride[2]};
  const dnnl::memory::dims padding{p.padding[0], p.padding[1], p.padding[2]};
  // On the far side oneDNN wants exactly what the last window reaches; less than nothing where a stride
  // leaves a rest. Its dilation counts the voxels between two taps.
  dnnl::memory::dims far_padding, dilation;
  const int64_t extents[] = {p.d, p.h, p.w};
  const int64_t outputs[] = {p.out_d(), p.out_h(), p.out_w()};
  for (size_t axis = 0; axis < 3; ++axis) {
    far_padding.push_back((outputs[axis] - 1) * stride[axis] + p.reach(axis) - extents[axis] - padding[axis]);
    dilation.push_back(p.dilation[axis] - 1);
  }
  const auto f32 = dnnl::memory::data_type::f32;
  dnnl::memory::dims weight_dims{p.group_out(), p.group_in(), kernel[0], kernel[1], kernel[2]};
  if (p.groups > 1) {
    weight_dims.insert(weight_dims.begin(), p.groups);
  }
  const Desc any_weight(weight_dims, f32, Tag::any);

  Convolution c;
  c.source = Desc({p.n, p.c_in, p.d, p.h, p.w}, f32, Tag::ndhwc);
  c.target = Desc({p.n, p.c_out, outputs[0], outputs[1], outputs[2]}, f32, Tag::ndhwc);
  c.plain = Desc(weight_dims, f32, p.groups > 1 ? Tag::godhwi : Tag::odhwi);
  c.bias = Desc({p.c_out}, f32, Tag::x);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attributes.set_fpmath_mode(dnnl::fpmath_mode::strict);

  const auto direct = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(
      {dnnl::prop_kind::forward_training, direct, c.source, any_weight, c.bias, c.target, stride, dilation,
       padding, far_padding},
      attributes, library.engine);
  if (pass == ConvPass::forward) {
    c.primitive = dnnl::convolution_forward(forward);
    c.packed = forward.weights_desc();
    c.scratchpad = forward.scratchpad_desc();
  } else if (pass == ConvPass::backward_data) {
    const dnnl::convolution_backward_data::primitive_desc backward(
        {direct, c.source, any_weight, c.target, stride, dilation, padding, far_padding}, attributes,
        library.engine, forward);
    c.primitive = dnnl::convolution_backward_data(backward);
    c.packed = backward.weights_desc();
    c.scratchpad = backward.scratchpad_desc();
  } else {
    const dnnl::convolution_backward_weights::primitive_desc backward(
        {direct, c.source, any_weight, c.bias, c.target, stride, dilation, padding, far_padding}, attributes,
        library.engine, forward);
    c.primitive = dnnl::convolution_backward_weights(backward);
    c.packed = backward.diff_weights_desc();
    c.scratchpad = backward.scratchpad_desc();
  }
  const auto reorder = [&](const Desc& from, const Desc& to, bool add) {
    dnnl::primitive_attr reorder_attributes = attributes;
    if (add) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      reorder_attributes.set_post_ops(sum);
    }
    const dnnl::reorder::primitive_desc description(library.engine, from, library.engine, to,
                                                    reorder_attributes);
    if (description.scratchpad_desc().get_size() > c.reorder_scratchpad.get_size()) {
      c.reorder_scratchpad = description.scratchpad_desc();
    }
    return dnnl::reorder(description);
  };
  if (pass == ConvPass::backward_weight) {
    c.unpack = reorder(c.packed, c.plain, false);
    c.unpack_add = reorder(c.packed, c.plain, true);
  } else {
    c.pack = reorder(c.plain, c.packed, false);
  }
  return c;
}

const Convolution& find_convolution(OneDnn& library, const Conv3dParams& p, ConvPass pass) {
  set_onednn_threads();
  // Padding behind the volume is told by the output's size.
  OneDnn::Key key{p.n,       p.d,       p.h,       p.w,      p.c_in,         p.c_out,
                  p.out_d(), p.out_h(), p.out_w(), p.groups, thread_count(), static_cast<int64_t>(pass)};
  size_t place = 12;
  for (const auto& triple : {p.kernel, p.stride, p.padding, p.dilation}) {
    for (const int value : triple) {
      key[place++] = value;
    }
  }
  const auto found = library.convolutions.find(key);
  if (found != library.convolutions.end()) {
    return found->second;
  }
  if (library.convolutions.size() >= OneDnn::kMostConvolutions) {
    library.convolutions.clear();
  }
  return library.convolutions.emplace(key, compile(library, p, pass)).first->second;
}

// Cuts a workspace into slices, or only counts their bytes where there is none.
class Slices {
 public:
  explicit Slices(void* base) : base_(static_cast<char*>(base)) {}

  float* take(size_t bytes) {
    const size_t offset = used_;
    used_ += (bytes + 255) / 256 * 256;
    return base_ == nullptr ? nullptr : reinterpret_cast<float*>(base_ + offset);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

struct ConvolutionMemory {
  float* packed;
  float* bias;
  float* scratchpad;

  ConvolutionMemory(Slices& slices, const Convolution& c)
      : packed(slices.take(c.packed.get_size())),
        bias(slices.take(c.bias.get_size())),
        scratchpad(slices.take(std::max(c.scratchpad.get_size(), c.reorder_scratchpad.get_size()))) {}
};

void run_reorder(OneDnn& library, const Convolution& c, const dnnl::reorder& reorder, const Desc& from_desc,
                 void* from, const Desc& to_desc, void* to, float* scratchpad) {
  dnnl::reorder(reorder).execute(
      library.stream,
      {{DNNL_ARG_FROM, dnnl::memory(from_desc, library.engine, from)},
       {DNNL_ARG_TO, dnnl::memory(to_desc, library.engine, to)},
       {DNNL_ARG_SCRATCHPAD, dnnl::memory(c.reorder_scratchpad, library.engine, scratchpad)}});
}

// oneDNN takes the pointers of inputs without const.
void* input(const float* pointer) { return const_cast<float*>(pointer); }

// forward (x -> y, bias may be null) and backward_data (y -> x).
void run_convolution(OneDnn& library, const Conv3dParams& params, ConvPass pass, const float* x,
                     const float* weight, const float* bias, float* y, Slices& slices) {
  const Convolution& c = find_convolution(library, params, pass);
  const ConvolutionMemory memory(slices, c);
  run_reorder(library, c, c.pack, c.plain, input(weight), c.packed, memory.packed, memory.scratchpad);
  const dnnl::memory packed(c.packed, library.engine, memory.packed);
  const dnnl::memory scratchpad(c.scratchpad, library.engine, memory.scratchpad);
  if (pass == ConvPass::backward_data) {
    c.primitive.execute(library.stream,
                        {{DNNL_ARG_DIFF_DST, dnnl::memory(c.target, library.engine, input(x))},
                         {DNNL_ARG_WEIGHTS, packed},
                         {DNNL_ARG_DIFF_SRC, dnnl::memory(c.source, library.engine, y)},
                         {DNNL_ARG_SCRATCHPAD, scratchpad}});
  } else {
    if (bias == nullptr) {
      std::fill_n(memory.bias, params.c_out, 0.0f);
      bias = memory.bias;
    }
    c.primitive.execute(library.stream, {{DNNL_ARG_SRC, dnnl::memory(c.source, library.engine, input(x))},
                                         {DNNL_ARG_WEIGHTS, packed},
                                         {DNNL_ARG_BIAS, dnnl::memory(c.bias, library.engine, input(bias))},
                                         {DNNL_ARG_DST, dnnl::memory(c.target, library.engine, y)},
                                         {DNNL_ARG_SCRATCHPAD, scratchpad}});
  }
  library.stream.wait();
}

bool is_pointwise(const Conv3dParams& p) {
  return p.taps() == 1 && p.groups == 1 && p.stride == std::array{1, 1, 1} &&
         p.padding == std::array{0, 0, 0} && p.far_padding() == p.padding;
}

int64_t voxels(const Conv3dParams& p) { return p.n * p.d * p.h * p.w; }
int64_t output_voxels(const Conv3dParams& p) { return p.n * p.out_d() * p.out_h() * p.out_w(); }

bool prefers_mirrored(const Conv3dParams& p) {
  bool possible = p.c_in < 16 && p.groups == 1 && p.stride == std::array{1, 1, 1};
  for (size_t axis = 0; axis < 3; ++axis) {
    possible = possible && std::max(p.padding[axis], p.far_padding()[axis]) < p.reach(axis);
  }
  return possible;
}

// The convolution from dy to dx whose forward pass is the data gradient of `p` (stride 1).
Conv3dParams mirrored(const Conv3dParams& p) {
  Conv3dParams m{.n = p.n, .d = p.out_d(), .h = p.out_h(), .w = p.out_w(), .c_in = p.c_out, .c_out = p.c_in};
  m.kernel = p.kernel;
  m.dilation = p.dilation;
  m.padding_end = m.padding;
  for (size_t axis = 0; axis < 3; ++axis) {
    m.padding[axis] = static_cast<int>(p.reach(axis)) - 1 - p.padding[axis];
    (*m.padding_end)[axis] = static_cast<int>(p.reach(axis)) - 1 - p.far_padding()[axis];
  }
  return m;
}

template <class T>
constexpr bool kIsFloat = std::is_same_v<T, float>;

float* take_floats(Slices& slices, int64_t count) {
  return slices.take(static_cast<size_t>(count) * sizeof(float));
}

// A stored tensor in float32, in the workspace where it is not float32 already.
template <class T>
const float* widened(Slices& slices, const T* tensor, int64_t count) {
  if constexpr (kIsFloat<T>) {
    return tensor;
  } else {
    float* wide = take_floats(slices, count);
    widen_tensor(tensor, count, wide);
    return wide;
  }
}

// run_convolution of stored tensors; backward_data adds the bias too.
template <class T>
void convolve(Context& context, const Conv3dParams& p, ConvPass pass, const T* x, const T* weight,
              const float* bias, T* y, Slices& slices) {
  const bool backward = pass == ConvPass::backward_data;
  const int64_t count = backward ? p.input_count() : p.output_count();
  const float* wide_x = widened(slices, x, backward ? p.output_count() : p.input_count());
  const float* wide_weight = widened(slices, weight, p.weight_count());
  float* wide_y = nullptr;
  if constexpr (kIsFloat<T>) {
    wide_y = y;
  } else {
    wide_y = take_floats(slices, count);
  }
  run_convolution(context.cache<OneDnn>(), p, pass, wide_x, wide_weight, bias, wide_y, slices);
  if (backward) {
    add_bias(voxels(p), p.c_in, bias, wide_y);
  }
  if constexpr (!kIsFloat<T>) {
    narrow_tensor(wide_y, count, y);
  }
}

template <class T>
void forward(Context& context, const Conv3dParams& params, const T* x, const T* weight, const float* bias,
             T* y, Workspace workspace) {
  if (is_pointwise(params)) {
    product_forward(voxels(params), params.c_in, params.c_out, x, weight, bias, Activation::none, y,
                    static_cast<T*>(nullptr));
    return;
  }
  if (is_depthwise(params)) {
    depthwise_forward(params, x, weight, bias, y, static_cast<float*>(workspace.data));
    return;
  }
  guarded("conv3d_forward", [&] {
    Slices slices(workspace.data);
    convolve(context, params, ConvPass::forward, x, weight, bias, y, slices);
  });
}

template <class T>
void adjoint(Context& context, const Conv3dParams& params, const T* dy, const T* weight, const float* bias,
             T* dx, Workspace workspace) {
  if (is_depthwise(params)) {
    depthwise_adjoint(params, dy, weight, bias, dx, static_cast<float*>(workspace.data));
    return;
  }
  if (is_pointwise(params)) {
    product_backward_data(voxels(params), params.c_in, params.c_out, dy, weight, bias, dx);
    return;
  }
  guarded("conv3d_backward_data", [&] {
    Slices slices(workspace.data);
    if (!prefers_mirrored(params)) {
      convolve(context, params, ConvPass::backward_data, dy, weight, bias, dx, slices);
      return;
    }
    T* flipped = reinterpret_cast<T*>(slices.take(static_cast<size_t>(params.weight_count()) * sizeof(T)));
    const int64_t taps = params.taps();
    for (int64_t i = 0; i < params.c_in; ++i) {
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t o = 0; o < params.c_out; ++o) {
          flipped[(i * taps + t) * params.c_out + o] = weight[(o * taps + taps - 1 - t) * params.c_in + i];
        }
      }
    }
    convolve(context, mirrored(params), ConvPass::forward, dy, flipped, bias, dx, slices);
  });
}

template <class T>
void backward_weight(Context& context, const Conv3dParams& params, const T* x, const T* dy, float* dweight,
                     float* dbias, GradMode mode, Workspace workspace) {
  if (is_pointwise(params) || is_depthwise(params)) {
    auto* scratch = static_cast<float*>(workspace.data);
    if (is_pointwise(params)) {
      product_backward_weight(voxels(params), params.c_in, params.c_out, x, dy, dweight, mode);
    } else {
      depthwise_backward_weight(params, x, dy, dweight, mode, scratch);
    }
    if (dbias != nullptr) {
      add_up_columns(output_voxels(params), params.c_out, dy, dbias, mode, scratch);
    }
    return;
  }
  guarded("conv3d_backward_weight", [&] {
    OneDnn& library = context.cache<OneDnn>();
    const Convolution& c = find_convolution(library, params, ConvPass::backward_weight);
    Slices slices(workspace.data);
    const float* wide_x = widened(slices, x, params.input_count());
    const float* wide_dy = widened(slices, dy, params.output_count());
    const ConvolutionMemory memory(slices, c);
    c.primitive.execute(
        library.stream,
        {{DNNL_ARG_SRC, dnnl::memory(c.source, library.engine, input(wide_x))},
         {DNNL_ARG_DIFF_DST, dnnl::memory(c.target, library.engine, input(wide_dy))},
         {DNNL_ARG_DIFF_WEIGHTS, dnnl::memory(c.packed, library.engine, memory.packed)},
         {DNNL_ARG_DIFF_BIAS, dnnl::memory(c.bias, library.engine, memory.bias)},
         {DNNL_ARG_SCRATCHPAD, dnnl::memory(c.scratchpad, library.engine, memory.scratchpad)}});
    run_reorder(library, c, mode == GradMode::accumulate ? c.unpack_add : c.unpack, c.packed, memory.packed,
                c.plain, dweight, memory.scratchpad);
    library.stream.wait();
    for (int64_t o = 0; dbias != nullptr && o < params.c_out; ++o) {
      dbias[o] = mode == GradMode::accumulate ? dbias[o] + memory.bias[o] : memory.bias[o];
    }
  });
}

}  // namespace

size_t conv3d_workspace_bytes(Context& context, const Conv3dParams& params, ConvPass pass) {
  return guarded("conv3d_workspace_bytes", [&] {
    if (is_pointwise(params)) {
      return pass == ConvPass::backward_weight ? column_sum_bytes(voxels(params), params.c_out) : size_t{0};
    }
    if (is_depthwise(params)) {
      return pass == ConvPass::backward_weight
                 ? std::max(depthwise_workspace_bytes(params, pass),
                            column_sum_bytes(output_voxels(params), params.c_out))
                 : depthwise_workspace_bytes(params, pass);
    }
    Slices slices(nullptr);
    if (params.storage != DType::f32) {
      take_floats(slices, params.input_count());
      take_floats(slices, params.output_count());
      if (pass != ConvPass::backward_weight) {
        take_floats(slices, params.weight_count());
      }
    }
    OneDnn& library = context.cache<OneDnn>();
    if (pass == ConvPass::backward_data && prefers_mirrored(params)) {
      slices.take(static_cast<size_t>(params.weight_count()) * size_of(params.storage));
      ConvolutionMemory(slices, find_convolution(library, mirrored(params), ConvPass::forward));
    } else {
      ConvolutionMemory(slices, find_convolution(library, params, pass));
    }
    return slices.used();
  });
}

void conv3d_forward(Context& context, const Conv3dParams& params, ConstData x, ConstData weight,
                    ConstData bias, Data y, Workspace workspace) {
  with_storage("conv3d_forward", {x, weight, y}, [&]<class T>(T) {
    forward(context, params, x.as<T>("conv3d_forward: x"), weight.as<T>("conv3d_forward: weight"),
            bias.as<float>("conv3d_forward: bias"), y.as<T>("conv3d_forward: y"), workspace);
  });
}

void conv3d_adjoint(Context& context, const Conv3dParams& params, ConstData dy, ConstData weight,
                    ConstData bias, Data dx, Workspace workspace) {
  with_storage("conv3d_backward_data", {dy, weight, dx}, [&]<class T>(T) {
    adjoint(context, params, dy.as<T>("conv3d_backward_data: dy"),
            weight.as<T>("conv3d_backward_data: weight"), bias.as<float>("conv3d_backward_data: bias"),
            dx.as<T>("conv3d_backward_data: dx"), workspace);
  });
}

void conv3d_backward_weight(Context& context, const Conv3dParams& params, ConstData x, ConstData dy,
                            Data dweight, Data dbias, GradMode mode, Workspace workspace) {
  with_storage("conv3d_backward_weight", {x, dy}, [&]<class T>(T) {
    backward_weight(context, params, x.as<T>("conv3d_backward_weight: x"),
                    dy.as<T>("conv3d_backward_weight: dy"),
                    dweight.as<float>("conv3d_backward_weight: dweight"),
                    dbias.as<float>("conv3d_backward_weight: dbias"), mode, workspace);
  });
}

size_t column_sum_workspace_bytes(Context&, int64_t rows, int64_t columns) {
  return column_sum_bytes(rows, columns);
}

void column_sum(Context&, int64_t rows, int64_t columns, ConstData x, Data sums, GradMode mode,
                Workspace workspace) {
  with_storage("column_sum", {x}, [&]<class T>(T) {
    add_up_columns(rows, columns, x.as<T>("column_sum: x"), sums.as<float>("column_sum: sums"), mode,
                   static_cast<float*>(workspace.data));
  });
}

}  // namespace vesal::kernels::cpu
