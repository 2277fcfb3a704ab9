// Sizes that the graph kernels are tested with. Tiles to be one short of, equal to and one beyond: 64
// candidates and 32 words' bits (cpu and CUDA), 4 and 32 queries, 32 features of a chunk, 32 neighbours of a
// pass (CUDA); features of the products: 16 and 64 (cpu), 8 lanes (CUDA).
#pragma once

#include <string>
#include <vector>

#include "kernels/graph/graph.hpp"

namespace vesal::kernels {

struct GraphCase {
  std::string name;
  GraphParams params;
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
};

}  // namespace vesal::kernels
