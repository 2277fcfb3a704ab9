// Arrays for the PyTorch scripts of tests/oracle, which name the folder that they read in
// VESAL_ORACLE_FOLDER.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <initializer_list>
#include <string>
#include <vector>

namespace vesal::kernels::testing {

// One file of float32 numbers: the arrays, one after another.
inline void write_arrays(const std::string& path, std::initializer_list<const std::vector<float>*> arrays) {
  std::ofstream file(path, std::ios::binary);
  for (const std::vector<float>* array : arrays) {
    file.write(reinterpret_cast<const char*>(array->data()),
               static_cast<std::streamsize>(array->size() * sizeof(float)));
  }
  ASSERT_TRUE(file.good()) << path;
}

}  // namespace vesal::kernels::testing
