// Evaluates the dense MFIB in both layouts, pooling by regions, and attention over the node sets of a masked
// graph, with all gradients, and writes what went in and what came out for graph.py to compute again:
// graph_oracle DEVICE FOLDER. A line of index.txt is one case, KIND followed by KEY=VALUE; its tensors lie
// one after the other as float32 in NUMBER.f32, in the order that graph.py reads.
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "base/philox.hpp"
#include "layers/dense_graph_reasoning.hpp"

namespace {

using namespace vesal;
using namespace vesal::layers;

class Oracle {
 public:
  Oracle(const char* device, std::filesystem::path folder)
      : context_(parse_device(device)), folder_(std::move(folder)), index_(folder_ / "index.txt") {}

  void run() {
    for (const MfibLayout layout : {MfibLayout::fixed, MfibLayout::original}) {
      mfib(layout, {2, 1, 6, 5, 12});  // as in 2D
      mfib(layout, {2, 3, 4, 5, 8});
    }
    regions();
    attention();
    check<IoError>(index_.flush().good(), folder_.string(), ": cannot write index.txt");
  }

 private:
  template <class... Parts>
  void begin(const Parts&... parts) {
    index_ << concat(parts...) << '\n';
    data_ = std::ofstream(folder_ / concat(number_++, ".f32"), std::ios::binary);
  }
  void add(const std::vector<float>& values) {
    data_.write(reinterpret_cast<const char*>(values.data()),
                static_cast<std::streamsize>(values.size() * sizeof(float)));
    check<IoError>(data_.flush().good(), folder_.string(), ": cannot write a case");
  }
  void add(const Tensor& tensor) { add(tensor.to_host<float>(context_)); }

  Tensor normal(Shape shape, float scale = 1.0f) {
    std::vector<float> values(static_cast<size_t>(element_count(shape)));
    for (float& value : values) {
      value = scale * random_.normal();
    }
    return Tensor::from_host(context_, values, std::move(shape));
  }
  // Whole numbers from low to high.
  Tensor labels(Shape shape, int64_t low, int64_t high) {
    std::vector<int32_t> values(static_cast<size_t>(element_count(shape)));
    for (int32_t& value : values) {
      value = static_cast<int32_t>(low + random_.below(high - low + 1));
    }
    add(std::vector<float>(values.begin(), values.end()));
    return Tensor::from_host(context_, values, std::move(shape));
  }

  void mfib(MfibLayout layout, const Shape& shape) {
    begin("mfib original=", layout == MfibLayout::original ? 1 : 0, " n=", shape[0], " d=", shape[1],
          " h=", shape[2], " w=", shape[3], " c=", shape[4]);
    ParameterStore store;
    const ParameterBuilder builder(context_, store, 7);
    const DenseGraphReasoning block(builder.scope("reason"), {.channels = shape[4], .layout = layout});
    const Variable semantic = Variable::leaf(normal(shape)), edges = Variable::leaf(normal(shape));
    const Tensor da = normal(shape), db = normal(shape);
    add(semantic.value());
    add(edges.value());
    for (const auto& parameter : store.all()) {
      add(parameter->value);
    }
    add(da);
    add(db);
    Tape tape;
    std::pair<Variable, Variable> result;
    {
      const TapeScope scope(context_, &tape);
      result = block(context_, semantic, edges);
    }
    result.first.add_gradient(context_, da);
    result.second.add_gradient(context_, db);
    tape.backward(context_);
    add(result.first.value());
    add(result.second.value());
    add(semantic.gradient());
    add(edges.gradient());
    for (const auto& parameter : store.all()) {
      add(parameter->gradient);
    }
  }

  void regions() {
    const Shape extent{2, 3, 4, 5};
    begin("regions n=2 d=3 h=4 w=5 c=6 regions=9");
    // Region 8 has no voxel.
    const Regions regions = build_regions(context_, labels(extent, -1, 7), 9);
    const Variable x = Variable::leaf(normal({2, 3, 4, 5, 6}));
    const Tensor dy = normal({2, 3, 4, 5, 6});
    add(x.value());
    add(dy);
    Tape tape;
    Variable means, y;
    {
      const TapeScope scope(context_, &tape);
      means = region_mean(context_, x, regions);
      y = region_gather(context_, means, regions);
    }
    y.add_gradient(context_, dy);
    tape.backward(context_);
    add(means.value());
    add(y.value());
    add(x.gradient());
  }

  // Both kinds of edge weights over two branches and three modalities on a grid, without nearest neighbours
  // (whose choice fusion.py covers).
  void attention() {
    begin("attention n=3 d=2 h=2 w=3 branches=2 modalities=3 f=4");
    const int64_t nodes = 3 * 6 * 12;
    // The second sample has one set only; two others have no neighbour that is there.
    const std::vector<uint8_t> mask = {1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1};
    add(std::vector<float>(mask.begin(), mask.end()));
    const NodeSets sets{
        .branches = 2, .modalities = 3, .available = Tensor::from_host(context_, mask, {3, 6})};
    ParameterStore store;
    const ParameterBuilder builder(context_, store, 8);
    Parameter* theta = builder.uniform("theta", {kernels::kEdgeTypes}, 1.0f, false);
    Parameter* u = builder.uniform("u", {1, 4}, 1.0f, true);
    Parameter* v = builder.uniform("v", {1, 4}, 1.0f, true);
    const Variable x = Variable::leaf(normal({nodes, 4}));
    const Tensor dy = normal({nodes, 8});
    for (const Tensor& tensor : {x.value(), theta->value, u->value, v->value, dy}) {
      add(tensor);
    }
    const SparseGraph graph = build_graph(context_, x.value().reshape({3, 6, 2, 2, 3, 4}), 0, sets);
    Tape tape;
    Variable y;
    {
      const TapeScope scope(context_, &tape);
      const Variable z = mask_nodes(context_, graph, x);
      y = concat_channels(
          context_, propagate(context_, graph, attention_edge_weights(context_, graph, z, u, v, theta), z),
          propagate(context_, graph, symmetric_edge_weights(context_, graph, theta), z));
    }
    y.add_gradient(context_, dy);
    tape.backward(context_);
    for (const Tensor& tensor : {y.value(), x.gradient(), theta->gradient, u->gradient, v->gradient}) {
      add(tensor);
    }
  }

  DeviceContext context_;
  std::filesystem::path folder_;
  std::ofstream index_, data_;
  int number_ = 0;
  RandomStream random_{41, 0, 0};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: graph_oracle cpu|simt|cuda FOLDER\n");
    return 2;
  }
  try {
    Oracle(argv[1], argv[2]).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "graph_oracle: %s\n", error.what());
    return 1;
  }
  return 0;
}
