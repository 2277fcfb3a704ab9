// gemm on every device against the reference, with its gradients.
#include "kernels/gemm/gemm.hpp"

#include <algorithm>
#include <array>

#include "kernels/gemm/gemm_cases.hpp"
#include "kernels/gemm/gemm_ref.hpp"
#include "tests/kernels/shape_error.hpp"
#include "tests/kernels/storage_harness.hpp"

namespace vesal::kernels::testing {
namespace {

// Elements from the first to the last that the matrices of an operand hold.
int64_t extent(const GemmParams& p, const GemmLayout& l, int64_t rows, int64_t columns) {
  return p.products() == 0 || rows == 0 || columns == 0
             ? 0
             : (p.outer - 1) * l.outer_stride + (p.inner - 1) * l.inner_stride + (rows - 1) * l.row_stride +
                   columns;
}
int64_t extent_a(const GemmParams& p) {
  return extent(p, p.a, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k);
}
int64_t extent_b(const GemmParams& p) {
  return extent(p, p.b, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n);
}
int64_t extent_c(const GemmParams& p) { return extent(p, p.c, p.m, p.n); }

struct Inputs {
  std::vector<float> a, b, c, dc, da, db;  // c, da, db: what is there before
};

Inputs random_inputs(const GemmParams& p) {
  return {random_normal(extent_a(p), 1), random_normal(extent_b(p), 2), random_normal(extent_c(p), 3),
          random_normal(extent_c(p), 4), random_normal(extent_a(p), 5), random_normal(extent_b(p), 6)};
}

Inputs integer_inputs(const GemmParams& p) {
  return {random_integers(extent_a(p), 1), random_integers(extent_b(p), 2), random_integers(extent_c(p), 3),
          random_integers(extent_c(p), 4), random_integers(extent_a(p), 5), random_integers(extent_b(p), 6)};
}

template <class T>
struct Results {
  std::vector<T> c, da, db;
};

Results<float> run(Context& context, const GemmParams& p, const Inputs& in) {
  const Device device = context.device();
  const DeviceArray<float> a(device, in.a), b(device, in.b), c(device, in.c), dc(device, in.dc),
      da(device, in.da), db(device, in.db);
  const auto workspace = [&](GemmPass pass) {
    return std::make_unique<DeviceWorkspace>(device, gemm_workspace_bytes(context, p, pass));
  };
  gemm(context, p, a.get(), b.get(), c.get(), *workspace(GemmPass::forward));
  gemm_backward_a(context, p, dc.get(), b.get(), da.get(), GradMode::accumulate,
                  *workspace(GemmPass::backward_a));
  gemm_backward_b(context, p, a.get(), dc.get(), db.get(), GradMode::accumulate,
                  *workspace(GemmPass::backward_b));
  return {c.host(), da.host(), db.host()};
}

template <class T>
Results<T> reference_run(const GemmParams& p, const Inputs& in) {
  const std::vector<T> a(in.a.begin(), in.a.end()), b(in.b.begin(), in.b.end()),
      dc(in.dc.begin(), in.dc.end());
  Results<T> r{{in.c.begin(), in.c.end()}, {in.da.begin(), in.da.end()}, {in.db.begin(), in.db.end()}};
  reference::gemm(p, a.data(), b.data(), r.c.data());
  reference::gemm_backward(p, a.data(), b.data(), dc.data(), r.da.data(), r.db.data());
  return r;
}

void expect_matches(const std::string& where, const Results<float>& out, const Results<double>& exact,
                    const Results<float>& naive) {
  expect_close(where + "c", out.c, exact.c, naive.c);
  expect_close(where + "da", out.da, exact.da, naive.da);
  expect_close(where + "db", out.db, exact.db, naive.db);
}

void expect_exact(const std::string& where, const Results<float>& out, const Results<double>& exact) {
  expect_equal(where + "c", out.c, exact.c);
  expect_equal(where + "da", out.da, exact.da);
  expect_equal(where + "db", out.db, exact.db);
}

TEST(Gemm, MatchesTheReference) {
  for (const GemmCase& c : kGemmCases) {
    const Inputs in = random_inputs(c.params);
    const Results<double> exact = reference_run<double>(c.params, in);
    const Results<float> naive = reference_run<float>(c.params, in);
    for (const Device device : test_devices()) {
      Context context(device);
      expect_matches(concat(c.name, " on ", to_string(device), ": "), run(context, c.params, in), exact,
                     naive);
    }
  }
}

// Half of them with numbers that float32 adds exactly: there a wrong index cannot hide behind rounding.
TEST(Gemm, RandomCases) {
  for_each_random_case([](RandomStream& random) {
    const GemmParams p = draw_gemm(random);
    const bool integers = random.bernoulli(0.5f);
    const Inputs in = integers ? integer_inputs(p) : random_inputs(p);
    const Results<double> exact = reference_run<double>(p, in);
    const Results<float> naive = reference_run<float>(p, in);
    for (const Device device : test_devices()) {
      Context context(device);
      const std::string where = concat(to_string(device), ": ");
      if (integers) {
        expect_exact(where, run(context, p, in), exact);
      } else {
        expect_matches(where, run(context, p, in), exact, naive);
      }
    }
  });
}

TEST(Gemm, IsExactForIntegersAndLeavesGapsAlone) {
  for (const GemmCase& c : kGemmCases) {
    const Inputs in = integer_inputs(c.params);
    const Results<double> exact = reference_run<double>(c.params, in);
    for (const Device device : test_devices()) {
      Context context(device);
      expect_exact(concat(c.name, " on ", to_string(device), ": "), run(context, c.params, in), exact);
    }
  }
}

// With beta 0 and GradMode::overwrite the poison in the outputs must not reach the results.
TEST(Gemm, DoesNotReadWhatItOverwrites) {
  for (const GemmCase& c : kGemmCases) {
    GemmParams p = dense_gemm(c.params.outer, c.params.inner, c.params.m, c.params.n, c.params.k,
                              c.params.transpose_a, c.params.transpose_b);
    Inputs in = integer_inputs(p);
    for (std::vector<float>* before : {&in.da, &in.db}) {
      std::fill(before->begin(), before->end(), 0.0f);
    }
    const Results<double> exact = reference_run<double>(p, in);
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceArray<float> a(device, in.a), b(device, in.b), dc(device, in.dc);
      const DeviceArray<float> result(device, extent_c(p)), da(device, extent_a(p)), db(device, extent_b(p));
      const auto workspace = [&](GemmPass pass) {
        return std::make_unique<DeviceWorkspace>(device, gemm_workspace_bytes(context, p, pass));
      };
      gemm(context, p, a.get(), b.get(), result.get(), *workspace(GemmPass::forward));
      gemm_backward_a(context, p, dc.get(), b.get(), da.get(), GradMode::overwrite,
                      *workspace(GemmPass::backward_a));
      gemm_backward_b(context, p, a.get(), dc.get(), db.get(), GradMode::overwrite,
                      *workspace(GemmPass::backward_b));
      expect_exact(concat(c.name, " on ", to_string(device), ": "), {result.host(), da.host(), db.host()},
                   exact);
    }
  }
}

// One matrix for all products, on either side.
TEST(Gemm, SharesAMatrix) {
  for (const bool share_a : {false, true}) {
    GemmParams p = dense_gemm(3, 2, 5, 4, 6);
    GemmLayout& shared = share_a ? p.a : p.b;
    shared.outer_stride = shared.inner_stride = 0;
    const Inputs in = integer_inputs(p);
    std::vector<double> exact = widen(in.c);
    reference::gemm(p, widen(in.a).data(), widen(in.b).data(), exact.data());
    for (const Device device : test_devices()) {
      Context context(device);
      const DeviceArray<float> a(device, in.a), b(device, in.b), c(device, extent_c(p));
      const DeviceWorkspace workspace(device, gemm_workspace_bytes(context, p, GemmPass::forward));
      gemm(context, p, a.get(), b.get(), c.get(), workspace);
      expect_equal(to_string(device), c.host(), exact);
      EXPECT_THROW(
          share_a ? gemm_backward_a(context, p, c.get(), b.get(), a.get(), GradMode::overwrite, workspace)
                  : gemm_backward_b(context, p, a.get(), c.get(), b.get(), GradMode::overwrite, workspace),
          ShapeError);
    }
  }
}

// More products than a launch takes.
TEST(Gemm, TakesMoreProductsThanAGrid) {
  const GemmParams p = dense_gemm(3, 22000, 1, 1, 1);
  const Inputs in = integer_inputs(p);
  std::vector<double> exact = widen(in.a);
  for (size_t i = 0; i < exact.size(); ++i) {
    exact[i] *= static_cast<double>(in.b[i]);
  }
  for (const Device device : test_devices()) {
    if (device.type == DeviceType::simt && accesses_are_checked()) {
      continue;  // minutes there, for launches that differ in nothing but their first product
    }
    Context context(device);
    const DeviceArray<float> a(device, in.a), b(device, in.b), c(device, extent_c(p));
    gemm(context, p, a.get(), b.get(), c.get(), {});
    expect_equal(to_string(device), c.host(), exact);
  }
}

TEST(Gemm, RepeatsBitForBit) {
  for (const GemmCase& c : kGemmCases) {
    const Inputs in = random_inputs(c.params);
    for (const Device device : test_devices()) {
      Context context(device);
      expect_same_bits(concat(c.name, " on ", to_string(device)), device, [&] {
        Results<float> r = run(context, c.params, in);
        for (const std::vector<float>* part : {&r.da, &r.db}) {
          r.c.insert(r.c.end(), part->begin(), part->end());
        }
        return r.c;
      });
    }
  }
}

// The three products, into stored matrices and into float32 ones.
void run_stored(Call& c, const GemmParams& p, const Inputs& in) {
  const auto workspace = [&](GemmPass pass) {
    return c.workspace(gemm_workspace_bytes(c.context(), p, pass));
  };
  for (const bool wide : {false, true}) {
    const auto target = [&](const std::vector<float>& before) {
      return wide ? c.in_out_float(before) : c.in_out(before);
    };
    gemm(c.context(), p, c.in(in.a), c.in(in.b), target(in.c), workspace(GemmPass::forward));
    gemm_backward_a(c.context(), p, c.in(in.dc), c.in(in.b), target(in.da), GradMode::accumulate,
                    workspace(GemmPass::backward_a));
    gemm_backward_b(c.context(), p, c.in(in.a), c.in(in.dc), target(in.db), GradMode::accumulate,
                    workspace(GemmPass::backward_b));
  }
}

std::vector<Expected> stored_reference(DType dtype, const GemmParams& p, const Inputs& in) {
  const Inputs held{rounded(dtype, in.a),  rounded(dtype, in.b),  rounded(dtype, in.c),
                    rounded(dtype, in.dc), rounded(dtype, in.da), rounded(dtype, in.db)};
  const Results<double> exact = reference_run<double>(p, held);
  const Results<float> naive = reference_run<float>(p, held);
  return {{exact.c, naive.c}, {exact.da, naive.da}, {exact.db, naive.db},
          {exact.c, naive.c}, {exact.da, naive.da}, {exact.db, naive.db}};
}

// On the CPU oneDNN's sums may run in another order for matrices without gaps.
TEST(Gemm, Storage) {
  for (const GemmCase& c : kGemmCases) {
    const Inputs in = random_inputs(c.params);
    const auto run_case = [&](Call& call) { run_stored(call, c.params, in); };
    expect_rounded_float32(c.name, run_case, test_devices_where_cpu_is(false));
    expect_close_when_stored(
        c.name, run_case, [&](DType dtype) { return stored_reference(dtype, c.params, in); },
        test_devices_where_cpu_is(true));
  }
}

// With beta 0 the poison in a stored or float32 result must not reach it.
TEST(Gemm, StorageIsNotReadWhereItIsOverwritten) {
  const GemmParams p = dense_gemm(2, 1, 5, 4, 6);
  const Inputs in = integer_inputs(p);
  std::vector<double> exact(in.c.size());
  reference::gemm(p, widen(in.a).data(), widen(in.b).data(), exact.data());
  for (const Device device : test_devices()) {
    for (const DType dtype : half_types()) {
      Call call(device, dtype, dtype);
      gemm(call.context(), p, call.in(in.a), call.in(in.b), call.out(extent_c(p)), {});
      gemm(call.context(), p, call.in(in.a), call.in(in.b), call.out_float(extent_c(p)), {});
      for (const Call::Result& result : call.results()) {
        expect_equal(concat(to_string(device), " in ", name_of(dtype)), result.values, exact);
      }
    }
  }
}

TEST(Gemm, ReferenceGradientsMatchNumericDifferences) {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      const GemmParams p = scaled(dense_gemm(2, 1, 3, 4, 2, transpose_a, transpose_b), 1.5f, 0.0f);
      Inputs in = random_inputs(p);
      for (std::vector<float>* before : {&in.da, &in.db}) {
        std::fill(before->begin(), before->end(), 0.0f);
      }
      const Results<double> analytic = reference_run<double>(p, in);
      const std::vector<double> a = widen(in.a), b = widen(in.b), dc = widen(in.dc);
      const auto loss = [&](const std::vector<double>& left, const std::vector<double>& right) {
        std::vector<double> c(dc.size());
        reference::gemm(p, left.data(), right.data(), c.data());
        double sum = 0;
        for (size_t i = 0; i < c.size(); ++i) {
          sum += c[i] * dc[i];
        }
        return sum;
      };
      expect_gradient("da", a, analytic.da, [&](const std::vector<double>& v) { return loss(v, b); });
      expect_gradient("db", b, analytic.db, [&](const std::vector<double>& v) { return loss(a, v); });
    }
  }
}

TEST(Gemm, RefusesWrongArguments) {
  const GemmParams good = dense_gemm(2, 3, 4, 5, 6);
  for (const Device device : test_devices()) {
    Context context(device);
    const DeviceArray<float> value(device, random_normal(256, 9)), result(device, 256);
    const DeviceArray<bf16> half(device, 256);
    const DeviceWorkspace workspace(device, gemm_workspace_bytes(context, good, GemmPass::forward));
    for (const auto change : std::vector<void (*)(GemmParams&)>{
             [](GemmParams& p) { p.outer = -1; }, [](GemmParams& p) { p.m = -1; },
             [](GemmParams& p) { p.k = -2; }, [](GemmParams& p) { p.a.row_stride = 5; },
             [](GemmParams& p) { p.b.row_stride = 4; }, [](GemmParams& p) { p.c.row_stride = 4; },
             [](GemmParams& p) { p.a.outer_stride = -1; }, [](GemmParams& p) { p.c.inner_stride = 0; },
             [](GemmParams& p) { p.c.inner_stride = 19; }, [](GemmParams& p) { p.c.outer_stride = 59; },
             [](GemmParams& p) { p.c.outer_stride = 0; },
             [](GemmParams& p) {
               p.c = {14, 100, 5};
             }}) {
      GemmParams bad = good;
      change(bad);
      EXPECT_THROW(gemm(context, bad, value.get(), value.get(), value.get(), workspace), ShapeError);
    }
    // Inner matrices side by side; both levels; the outer level within the rows of the inner one.
    for (const GemmLayout& layout : {GemmLayout{15, 60, 5}, GemmLayout{30, 15, 5}, GemmLayout{10, 5, 40}}) {
      GemmParams wide = good;
      wide.c = layout;
      EXPECT_NO_THROW(gemm(context, wide, value.get(), value.get(), result.get(), workspace));
    }
    EXPECT_THROW(gemm(context, good, value.get(), nullptr, value.get(), workspace), ShapeError);
    for (const auto& [a, b, c] : {std::array<Data, 3>{half.get(), value.get(), value.get()},
                                  std::array<Data, 3>{value.get(), value.get(), half.get()}}) {
      const std::string message = shape_error([&] { gemm(context, good, a, b, c, workspace); });
      EXPECT_TRUE(message.ends_with("expected one type")) << message;
    }
    const GemmParams long_sum = dense_gemm(1, 1, 2, 2, 1000);
    if (gemm_workspace_bytes(context, long_sum, GemmPass::forward) > 0) {
      const DeviceArray<float> more(device, 2000);
      EXPECT_THROW(gemm(context, long_sum, more.get(), more.get(), more.get(), {}), ShapeError);
    }
  }
}

}  // namespace
}  // namespace vesal::kernels::testing
