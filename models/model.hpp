// What all networks have in common for those who build, fill, convert and save them. How a network is run is
// its own class's matter.
#pragma once

#include <map>
#include <string>

#include "layers/parameters.hpp"

namespace vesal::models {

// A configuration as the string map that weights carry. "model" names the network's kind ("fusion",
// "meshnet"), "preset" the name that the catalogue knows it by ("fusion-tiny"); the other fields are the
// kind's own.
using ModelMetadata = std::map<std::string, std::string>;

class Model {
 public:
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  virtual ~Model() = default;

  virtual ModelMetadata metadata() const = 0;

  layers::ParameterStore& parameters() { return store_; }
  const layers::ParameterStore& parameters() const { return store_; }

 protected:
  Model() = default;

  layers::ParameterStore store_;
};

}  // namespace vesal::models
