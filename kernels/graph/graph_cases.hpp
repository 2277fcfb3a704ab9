// Sizes that the graph kernels are tested with. Tiles to be one short of, equal to and one beyond: 64
// candidates and 32 words' bits (cpu and CUDA), 4 and 32 queries, 32 features of a chunk, 32 neighbours of a
// pass (CUDA); features of the products: 16 and 64 (cpu), 8 lanes (CUDA).
#pragma once

#include <string>
#include <vector>

#include "base/philox.hpp"
#include "kernels/context/work.hpp"
#include "kernels/graph/graph.hpp"

namespace vesal::kernels {

struct GraphCase {
  std::string name;
  GraphParams params;
  bool masked = false;  // some of the sets are absent
};

inline const std::vector<GraphCase> kGraphCases = {
    {"one_node", {1, 1, 1, 1, 8, 3}},
    {"one_node_of_three_samples", {3, 1, 1, 1, 0, 1}},
    {"isolated_spatially", {1, 1, 1, 2, 0, 2}},
    {"two_nodes", {2, 1, 2, 1, 5, 1}},
    {"only_spatial", {2, 3, 4, 5, 0, 4}},
    {"nodes_31", {1, 1, 1, 31, 3, 7}},
    {"nodes_32", {2, 2, 4, 4, 3, 8}},
    {"nodes_33", {1, 3, 1, 11, 3, 9}},
    {"nodes_63", {1, 7, 3, 3, 8, 15}},
    {"nodes_64", {2, 4, 4, 4, 8, 16}},
    {"nodes_65", {2, 5, 13, 1, 8, 17}},
    {"features_31", {1, 2, 3, 4, 2, 31}},
    {"features_32", {1, 2, 3, 4, 2, 32}},
    {"features_33", {2, 2, 3, 4, 2, 33}},
    {"features_65", {1, 2, 3, 4, 2, 65}},
    {"neighbours_31", {1, 4, 5, 4, 31, 2}},
    {"neighbours_32", {1, 4, 5, 4, 32, 2}},
    {"neighbours_33", {2, 4, 5, 4, 33, 2}},
    {"neighbours_65", {1, 4, 5, 4, 65, 2}},
    {"complete", {2, 3, 3, 4, 35, 3}},
    {"more_than_there_are", {1, 2, 2, 3, 99, 3}},
    {"branches", {2, 2, 3, 3, 3, 4, 2, 1}},
    {"modalities", {1, 3, 2, 2, 2, 3, 1, 4}},
    {"branches_and_modalities", {2, 2, 2, 3, 3, 2, 2, 3}},
    {"one_node_of_six_sets", {2, 1, 1, 1, 4, 2, 2, 3}},
    {"one_region", {2, 2, 3, 3, 4, 2, 1, 1, 1}},
    {"regions_31", {1, 5, 6, 7, 3, 4, 1, 1, 31}},
    {"regions_32", {2, 5, 6, 7, 0, 4, 1, 1, 32}},
    {"regions_33", {2, 7, 6, 5, 5, 4, 1, 1, 33}},
    {"regions_of_sets", {2, 4, 5, 6, 3, 3, 2, 2, 20}},
    {"more_regions_than_voxels", {1, 2, 2, 2, 2, 3, 1, 1, 40}},
    {"masked", {3, 2, 2, 3, 3, 4, 1, 1}, true},
    {"masked_modalities", {3, 2, 3, 3, 4, 3, 1, 4}, true},
    {"masked_branches_and_modalities", {2, 2, 2, 3, 3, 2, 2, 3}, true},
    {"masked_regions", {2, 4, 5, 6, 3, 3, 2, 2, 20}, true},
};

// For benchmarks: graph reasoning pools every level to at most 16 nodes an axis.
inline const std::vector<GraphCase> kGraphBenchmarkCases = {
    {"nodes_16_features_24", {1, 16, 16, 16, 8, 24}},
    {"nodes_16_features_96", {1, 16, 16, 16, 8, 96}},
    {"nodes_8_features_192", {2, 8, 8, 8, 8, 192}},
};

// The distances of all pairs, of which each is needed once.
inline Work graph_build_work(const GraphParams& p) {
  const auto nodes = static_cast<double>(p.nodes_per_sample());
  return {.flops = 3.0 * static_cast<double>(p.n) * nodes * nodes / 2 * static_cast<double>(p.features),
          .bytes = 4.0 * static_cast<double>(p.nodes() * p.features) +
                   9.0 * static_cast<double>(p.edge_capacity())};
}
// A product with `edges` edges: a multiplication and an addition for each edge and feature.
inline Work graph_product_work(const GraphParams& p, int64_t edges) {
  return {.flops = 2.0 * static_cast<double>(edges * p.features),
          .bytes = 4.0 * static_cast<double>(2 * p.nodes() * p.features + 2 * edges)};
}

// [n, sets]: about half of the sets are there.
inline std::vector<uint8_t> random_mask(const GraphParams& p, uint64_t seed) {
  RandomStream random(seed, 1, 0);
  std::vector<uint8_t> mask(static_cast<size_t>(p.n * p.sets()));
  for (uint8_t& value : mask) {
    value = static_cast<uint8_t>(random.below(2));
  }
  return mask;
}

}  // namespace vesal::kernels
