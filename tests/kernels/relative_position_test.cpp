// The decomposed relative position on every device against double-precision loops, and its gradients against
// numeric differences.
#include "kernels/relative_position/relative_position.hpp"

#include <cstdlib>
#include <fstream>
#include <memory>
#include <numeric>

#include "base/parallel.hpp"
#include "kernels/relative_position/relative_position_cases.hpp"
#include "kernels/relative_position/relative_position_ref.hpp"
#include "tests/kernels/harness.hpp"
#include "tests/kernels/naive_error.hpp"
#include "tests/kernels/oracle_vectors.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

template <class T>
struct Inputs {
  std::vector<T> q;
  std::array<std::vector<T>, 3> tables;  // empty: none
  std::vector<T> daxial_bias;
};

template <class T>
struct Outputs {
  std::vector<T> axial_bias, dq;
  std::array<std::vector<T>, 3> dtables;
};

int64_t stride_of(const RelativePositionParams& p) { return p.q_stride == 0 ? p.channels() : p.q_stride; }

Inputs<float> make_inputs(const RelativePositionCase& c, uint64_t seed) {
  const RelativePositionParams& p = c.params;
  Inputs<float> r;
  r.q = random_normal(p.n * p.queries() * stride_of(p), seed);
  for (size_t axis = 0; axis < 3; ++axis) {
    if (c.tables[axis]) {
      r.tables[axis] = random_normal(p.table_rows(static_cast<int>(axis)) * p.head_dim, seed + 1 + axis);
    }
  }
  r.daxial_bias = random_normal(p.n * p.queries() * p.heads * p.axial_size(), seed + 4);
  return r;
}

// dq and the tables' gradients start as `before`, in the gaps of a strided dq too.
template <class T>
Outputs<T> run_reference(const RelativePositionCase& c, const Inputs<float>& inputs, float before) {
  const RelativePositionParams& p = c.params;
  const std::vector<T> q(inputs.q.begin(), inputs.q.end());
  const std::vector<T> daxial_bias(inputs.daxial_bias.begin(), inputs.daxial_bias.end());
  Outputs<T> r;
  r.axial_bias.resize(daxial_bias.size());
  r.dq.assign(q.size(), T(before));
  std::array<std::vector<T>, 3> tables;
  std::array<const T*, 3> pointers{};
  std::array<T*, 3> gradients{};
  for (size_t axis = 0; axis < 3; ++axis) {
    tables[axis].assign(inputs.tables[axis].begin(), inputs.tables[axis].end());
    r.dtables[axis].assign(tables[axis].size(), T(before));
    pointers[axis] = c.tables[axis] ? tables[axis].data() : nullptr;
    gradients[axis] = r.dtables[axis].data();
  }
  reference::relative_position_forward<T>(p, q.data(), pointers, r.axial_bias.data());
  reference::relative_position_backward<T>(p, q.data(), pointers, daxial_bias.data(), r.dq.data(), gradients);
  return r;
}

// In accumulate mode all gradients start as `before`, in overwrite mode they are poisoned where dq has no
// gaps.
Outputs<float> run_device(Device device, const RelativePositionCase& c, const Inputs<float>& inputs,
                          GradMode mode, float before = 0.0f) {
  Context context(device);
  const RelativePositionParams& p = c.params;
  const auto gradient = [&](const std::vector<float>& like, bool start) {
    return start ? std::make_unique<DeviceArray<float>>(device, std::vector<float>(like.size(), before))
                 : std::make_unique<DeviceArray<float>>(device, static_cast<int64_t>(like.size()));
  };
  const bool accumulate = mode == GradMode::accumulate;
  const DeviceArray<float> q(device, inputs.q), daxial_bias(device, inputs.daxial_bias);
  const DeviceArray<float> axial_bias(device, daxial_bias.size());
  const auto dq = gradient(inputs.q, accumulate || stride_of(p) != p.channels());
  RelativePositionTables tables{};
  RelativePositionTableGradients dtables{};
  std::array<std::unique_ptr<DeviceArray<float>>, 3> table_arrays, dtable_arrays;
  for (size_t axis = 0; axis < 3; ++axis) {
    table_arrays[axis] = std::make_unique<DeviceArray<float>>(device, inputs.tables[axis]);
    dtable_arrays[axis] = gradient(inputs.tables[axis], accumulate);
    if (c.tables[axis]) {
      tables[axis] = table_arrays[axis]->get();
      dtables[axis] = dtable_arrays[axis]->get();
    }
  }
  relative_position_forward(context, p, q.get(), tables, axial_bias.get());
  const DeviceWorkspace workspace(device, relative_position_backward_workspace_bytes(context, p));
  relative_position_backward(context, p, q.get(), tables, daxial_bias.get(), dq->get(), mode, dtables, mode,
                             workspace);
  return {axial_bias.host(),
          dq->host(),
          {dtable_arrays[0]->host(), dtable_arrays[1]->host(), dtable_arrays[2]->host()}};
}

std::vector<float> joined(const Outputs<float>& r) {
  std::vector<float> all;
  for (const auto* part : {&r.axial_bias, &r.dq, &r.dtables[0], &r.dtables[1], &r.dtables[2]}) {
    all.insert(all.end(), part->begin(), part->end());
  }
  return all;
}

// What a naive float32 evaluation reaches (naive_error.hpp).
Outputs<float> run_naive(const RelativePositionCase& c, const Inputs<float>& inputs,
                         const Outputs<double>& exact, float before) {
  Outputs<float> worst = run_reference<float>(c, inputs, before);
  RandomStream random(5, 0, 0);
  for (int evaluation = 1; evaluation < 8; ++evaluation) {
    Inputs<float> moved = inputs;
    moved.q = moved_by_one_ulp(inputs.q, random);
    moved.daxial_bias = moved_by_one_ulp(inputs.daxial_bias, random);
    const Outputs<float> r = run_reference<float>(c, moved, before);
    keep_worse(worst.axial_bias, r.axial_bias, exact.axial_bias);
    keep_worse(worst.dq, r.dq, exact.dq);
    for (size_t axis = 0; axis < 3; ++axis) {
      keep_worse(worst.dtables[axis], r.dtables[axis], exact.dtables[axis]);
    }
  }
  return worst;
}

void check_case(const RelativePositionCase& c, uint64_t seed, GradMode mode, const std::string& name) {
  const Inputs<float> inputs = make_inputs(c, seed);
  const float before = mode == GradMode::accumulate ? 3.0f : 0.0f;
  const Outputs<double> exact = run_reference<double>(c, inputs, before);
  const Outputs<float> naive = run_naive(c, inputs, exact, before);
  for (const Device device : test_devices()) {
    const std::string where = name + " on " + to_string(device);
    const Outputs<float> actual = run_device(device, c, inputs, mode, before);
    expect_close(where + ": axial_bias", actual.axial_bias, exact.axial_bias, naive.axial_bias);
    expect_close(where + ": dq", actual.dq, exact.dq, naive.dq);
    for (size_t axis = 0; axis < 3; ++axis) {
      expect_close(concat(where, ": table ", axis), actual.dtables[axis], exact.dtables[axis],
                   naive.dtables[axis]);
    }
  }
}

TEST(RelativePosition, MatchesReference) {
  uint64_t seed = 100;
  for (const RelativePositionCase& c : kRelativePositionCases) {
    check_case(c, seed += 10, GradMode::overwrite, c.name);
  }
}

TEST(RelativePosition, AccumulatesWhereAsked) {
  uint64_t seed = 1000;
  for (const RelativePositionCase& c : kRelativePositionCases) {
    check_case(c, seed += 10, GradMode::accumulate, c.name + ", accumulated");
  }
}

TEST(RelativePosition, MatchesReferenceOnRandomShapes) {
  for_each_random_case([](RandomStream& random) {
    RelativePositionCase c;
    RelativePositionParams& p = c.params;
    p.n = 1 + random.below(3);
    p.heads = static_cast<int>(1 + random.below(3));
    p.head_dim = static_cast<int>(1 + random.below(40));
    p.q_stride = random.below(2) == 0 ? 0 : p.channels() + random.below(20);
    for (size_t axis = 0; axis < 3; ++axis) {
      const int small = static_cast<int>(1 + random.below(4));
      const int large = small * static_cast<int>(1 + random.below(3));
      const int64_t which = random.below(3);
      p.query_grid[axis] = which == 0 ? large : small;
      p.key_grid[axis] = which == 1 ? large : small;
      c.tables[axis] = random.below(4) != 0;
    }
    check_case(c, static_cast<uint64_t>(random.below(1 << 30)), GradMode::overwrite, "random");
  });
}

TEST(RelativePosition, AnalyticGradientsMatchNumericOnes) {
  const RelativePositionCase c{
      "", {.n = 2, .heads = 2, .head_dim = 3, .query_grid = {2, 1, 4}, .key_grid = {2, 3, 2}}};
  const Inputs<float> inputs = make_inputs(c, 7);
  const Outputs<double> analytic = run_reference<double>(c, inputs, 0.0f);
  std::array<std::vector<double>, 3> tables;
  for (size_t axis = 0; axis < 3; ++axis) {
    tables[axis] = widen(inputs.tables[axis]);
  }
  const std::vector<double> q = widen(inputs.q);
  const auto loss = [&](const std::vector<double>& x, const std::array<std::vector<double>, 3>& t) {
    std::vector<double> out(inputs.daxial_bias.size());
    reference::relative_position_forward<double>(c.params, x.data(), {t[0].data(), t[1].data(), t[2].data()},
                                                 out.data());
    return std::inner_product(out.begin(), out.end(), inputs.daxial_bias.begin(), 0.0);
  };
  expect_gradient("q", q, analytic.dq, [&](const std::vector<double>& x) { return loss(x, tables); });
  for (size_t axis = 0; axis < 3; ++axis) {
    expect_gradient(concat("table ", axis), tables[axis], analytic.dtables[axis],
                    [&](const std::vector<double>& x) {
                      std::array<std::vector<double>, 3> moved = tables;
                      moved[axis] = x;
                      return loss(q, moved);
                    });
  }
}

// The rows that SAM's image encoder reads, written out for 2 queries over 4 keys and for 4 over 2.
TEST(RelativePosition, ReadsTheRowsOfSam) {
  const auto axes = relative_position_axes({.query_grid = {2, 4, 3}, .key_grid = {4, 2, 3}});
  const std::array<std::vector<int>, 3> rows{
      {{3, 2, 1, 0, 5, 4, 3, 2}, {2, 0, 3, 1, 4, 2, 5, 3}, {2, 1, 0, 3, 2, 1, 4, 3, 2}}};
  for (size_t axis = 0; axis < 3; ++axis) {
    size_t at = 0;
    for (int place = 0; place < axes[axis].queries; ++place) {
      for (int key = 0; key < axes[axis].keys; ++key) {
        EXPECT_EQ(axes[axis].row(place, key), rows[axis][at]) << "axis " << axis << ", entry " << at;
        EXPECT_EQ(axes[axis].key(place, rows[axis][at++]), key);
      }
    }
  }
  EXPECT_EQ(axes[1].key(0, 1), -1) << "an odd row is between the keys of an even place";
  EXPECT_EQ(axes[2].key(0, 3), -1);
}

TEST(RelativePosition, GivesTheSameBitsEachTime) {
  for (const RelativePositionCase& c : kRelativePositionCases) {
    const Inputs<float> inputs = make_inputs(c, 21);
    for (const Device device : test_devices()) {
      expect_same_bits(c.name + " on " + to_string(device), device,
                       [&] { return joined(run_device(device, c, inputs, GradMode::overwrite)); });
    }
  }
}

TEST(RelativePosition, DoesNotDependOnTheNumberOfThreads) {
  const RelativePositionCase& c = kRelativePositionCases[1];
  const Inputs<float> inputs = make_inputs(c, 22);
  const Device cpu{DeviceType::cpu, 0};
  const int threads = thread_count();
  set_thread_count(1);
  const std::vector<float> one = joined(run_device(cpu, c, inputs, GradMode::overwrite));
  set_thread_count(3);
  const std::vector<float> three = joined(run_device(cpu, c, inputs, GradMode::overwrite));
  set_thread_count(threads);
  expect_equal("one thread and three", three, one);
}

TEST(RelativePosition, RejectsWrongArguments) {
  Context context(Device{DeviceType::cpu, 0});
  std::vector<float> memory(256);
  float* x = memory.data();
  const auto forward = [&](const RelativePositionParams& p) {
    relative_position_forward(context, p, x, {x, x, x}, x + 128);
  };
  EXPECT_NO_THROW(forward({}));
  EXPECT_THROW(forward({.head_dim = 0}), ShapeError);
  EXPECT_THROW(forward({.q_stride = 15}), ShapeError);
  EXPECT_THROW(forward({.query_grid = {1, 0, 1}}), ShapeError);
  EXPECT_THROW(forward({.query_grid = {1, 2, 1}, .key_grid = {1, 3, 1}}), ShapeError);
  EXPECT_THROW(forward({.query_grid = {1 << 20, 1 << 20, 1}, .key_grid = {1, 1, 1}}), ShapeError);
  EXPECT_THROW(relative_position_forward(context, {}, nullptr, {x, x, x}, x), ShapeError);
  EXPECT_THROW(relative_position_forward(context, {}, x, {x, ConstData{x, DType::f16}, x}, x), ShapeError);
  EXPECT_THROW(relative_position_backward(context, {}, x, {x, x, x}, x, x, GradMode::overwrite,
                                          {x, x, nullptr}, GradMode::overwrite, {}),
               ShapeError);
  EXPECT_THROW(relative_position_backward(context, {}, x, {x, x, nullptr}, x, x, GradMode::overwrite,
                                          {x, x, x}, GradMode::overwrite, {}),
               ShapeError);
}

TEST(RelativePosition, Storage) {
  for (const RelativePositionCase& c : kRelativePositionCases) {
    const RelativePositionParams& p = c.params;
    const Inputs<float> inputs = make_inputs(c, 61);
    for (const GradMode mode : {GradMode::overwrite, GradMode::accumulate}) {
      expect_rounded_float32(c.name, [&](Call& call) {
        RelativePositionTables tables{};
        RelativePositionTableGradients dtables{};
        for (size_t axis = 0; axis < 3; ++axis) {
          if (c.tables[axis]) {
            tables[axis] = call.in_float(inputs.tables[axis]);
            dtables[axis] = call.in_out_float(inputs.tables[axis]);
          }
        }
        const Data q = call.in(inputs.q);
        relative_position_forward(call.context(), p, q, tables,
                                  call.out_float(static_cast<int64_t>(inputs.daxial_bias.size())));
        relative_position_backward(
            call.context(), p, q, tables, call.in_float(inputs.daxial_bias), call.in_out(inputs.q), mode,
            dtables, mode, call.workspace(relative_position_backward_workspace_bytes(call.context(), p)));
      });
    }
  }
}

TEST(RelativePosition, StorageTypesThatDifferAreOneLine) {
  Context context(Device{DeviceType::cpu, 0});
  std::vector<float> x(3);
  std::vector<uint16_t> half(1);
  std::vector<float> room(16);
  const Workspace workspace{room.data(), room.size() * sizeof(float)};
  EXPECT_EQ(shape_error([&] {
              relative_position_backward(context, {.head_dim = 1}, Data(half.data(), DType::bf16), {},
                                         x.data(), x.data(), GradMode::overwrite, {}, GradMode::overwrite,
                                         workspace);
            }),
            "relative_position_backward: tensors are stored as bf16 and f32, expected one type");
}

// Writes the cases with packed queries and the CPU's results where tests/oracle/attention.py asks for them.
TEST(RelativePosition, WritesVectorsForTheOracle) {
  const char* folder = std::getenv("VESAL_ORACLE_FOLDER");
  if (folder == nullptr) {
    GTEST_SKIP() << "VESAL_ORACLE_FOLDER is not set";
  }
  std::ofstream index(std::string(folder) + "/relative.txt");
  int number = 0;
  for (const RelativePositionCase& c : kRelativePositionCases) {
    const RelativePositionParams& p = c.params;
    if (stride_of(p) != p.channels()) {
      continue;
    }
    const Inputs<float> in = make_inputs(c, 4000 + static_cast<uint64_t>(number));
    const Outputs<float> r = run_device(Device{DeviceType::cpu, 0}, c, in, GradMode::overwrite);
    index << p.n << ' ' << p.heads << ' ' << p.head_dim;
    for (size_t axis = 0; axis < 3; ++axis) {
      index << ' ' << p.query_grid[axis] << ' ' << p.key_grid[axis] << ' ' << c.tables[axis];
    }
    index << ' ' << c.name << '\n';
    write_arrays(concat(folder, "/relative", number++, ".f32"),
                 {&in.q, &in.tables[0], &in.tables[1], &in.tables[2], &in.daxial_bias, &r.axial_bias, &r.dq,
                  &r.dtables[0], &r.dtables[1], &r.dtables[2]});
  }
  ASSERT_TRUE(index.good());
}

}  // namespace
}  // namespace vesal::kernels::testing
