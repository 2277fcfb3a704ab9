// Argument checks and dispatch of the elementwise functions.
#include "kernels/elementwise/elementwise.hpp"

#include "base/size.hpp"
#include "kernels/context/activations.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(unary_forward)
VESAL_DECLARE_BACKENDS(unary_backward)
VESAL_DECLARE_BACKENDS(convert)
VESAL_DECLARE_BACKENDS(fill)
VESAL_DECLARE_BACKENDS(add)
VESAL_DECLARE_BACKENDS(scale_add)
VESAL_DECLARE_BACKENDS(multiply)
VESAL_DECLARE_BACKENDS(scaled_add_forward)
VESAL_DECLARE_BACKENDS(scaled_add_backward)
VESAL_DECLARE_BACKENDS(gate_samples)
VESAL_DECLARE_BACKENDS(add_sample_vector)
VESAL_DECLARE_BACKENDS(dropout)
VESAL_DECLARE_BACKENDS(dropout_channels)

namespace {

void check_count(const char* what, int64_t count) {
  check<ShapeError>(count >= 0, what, ": count ", count, " is negative");
}

void check_present(const char* what, int64_t count, bool all_given) {
  check<ShapeError>(count == 0 || all_given, what, ": a tensor is null");
}

void check_kind(const char* what, Unary kind) {
  check<ShapeError>(AllActivations::contain(kind), what, ": kind ", static_cast<int>(kind),
                    ", expected an activation other than none");
}

// `drawn` is how many numbers are drawn.
void check_dropout(const char* what, float probability, const DropoutKey& key, int64_t drawn) {
  check<ShapeError>(probability >= 0.0f && probability <= 1.0f, what, ": probability ", probability,
                    ", expected 0 to 1");
  check<ShapeError>(key.op < uint64_t{1} << 32, what, ": op ", key.op, ", expected below 2^32");
  check<ShapeError>(drawn <= int64_t{1} << 34, what, ": ", drawn,
                    " random numbers, expected at most 2^34: a stream has no more");
}

}  // namespace

void unary_forward(Context& context, Unary kind, int64_t count, ConstData x, Data y, float slope) {
  check_kind("unary_forward", kind);
  check_count("unary_forward", count);
  check_present("unary_forward", count, x && y);
  VESAL_DISPATCH(context, unary_forward(context, kind, count, x, y, slope));
}

void unary_backward(Context& context, Unary kind, int64_t count, ConstData x, ConstData dy, Data dx,
                    float slope) {
  check_kind("unary_backward", kind);
  check_count("unary_backward", count);
  check_present("unary_backward", count, x && dy && dx);
  VESAL_DISPATCH(context, unary_backward(context, kind, count, x, dy, dx, slope));
}

void convert(Context& context, int64_t count, ConstData x, Data y) {
  check_count("convert", count);
  check_present("convert", count, x && y);
  VESAL_DISPATCH(context, convert(context, count, x, y));
}

void fill(Context& context, int64_t count, float value, Data y) {
  check_count("fill", count);
  check_present("fill", count, static_cast<bool>(y));
  VESAL_DISPATCH(context, fill(context, count, value, y));
}

void add(Context& context, int64_t count, ConstData a, ConstData b, Data y) {
  check_count("add", count);
  check_present("add", count, a && b && y);
  VESAL_DISPATCH(context, add(context, count, a, b, y));
}

void scale_add(Context& context, int64_t count, float alpha, ConstData x, float beta, Data y) {
  check_count("scale_add", count);
  check_present("scale_add", count, x && y);
  VESAL_DISPATCH(context, scale_add(context, count, alpha, x, beta, y));
}

void multiply(Context& context, int64_t count, ConstData a, ConstData b, Data y) {
  check_count("multiply", count);
  check_present("multiply", count, a && b && y);
  VESAL_DISPATCH(context, multiply(context, count, a, b, y));
}

void scaled_add_forward(Context& context, int64_t n, int64_t inner, ConstData a, ConstData b, ConstData scale,
                        ConstData gate, Data y) {
  check_present("scaled_add_forward", checked_mul(n, inner), a && b && scale && y);
  VESAL_DISPATCH(context, scaled_add_forward(context, n, inner, a, b, scale, gate, y));
}

size_t scaled_add_backward_workspace_bytes(Context&, int64_t n, int64_t inner) {
  return column_partials_bytes(n, inner, 1, 1) + static_cast<size_t>(n) * sizeof(double);
}

void scaled_add_backward(Context& context, int64_t n, int64_t inner, ConstData b, ConstData scale,
                         ConstData gate, ConstData dy, Data db, Data dscale, GradMode mode,
                         Workspace workspace) {
  check_present("scaled_add_backward", checked_mul(n, inner), b && scale && dy && db);
  check<ShapeError>(static_cast<bool>(dscale), "scaled_add_backward: dscale is null");
  workspace.require(scaled_add_backward_workspace_bytes(context, n, inner), "scaled_add_backward");
  VESAL_DISPATCH(context,
                 scaled_add_backward(context, n, inner, b, scale, gate, dy, db, dscale, mode, workspace));
}

void gate_samples(Context& context, int64_t n, int64_t inner, ConstData gate, ConstData x, Data y) {
  check_present("gate_samples", checked_mul(n, inner), gate && x && y);
  VESAL_DISPATCH(context, gate_samples(context, n, inner, gate, x, y));
}

void add_sample_vector(Context& context, int64_t n, int64_t spatial, int64_t channels, ConstData x,
                       ConstData v, Data y) {
  const int64_t count = checked_mul(checked_mul(n, spatial), channels);
  check_present("add_sample_vector", count, x && v && y);
  if (count == 0) {
    return;
  }
  VESAL_DISPATCH(context, add_sample_vector(context, n, spatial, channels, x, v, y));
}

void dropout(Context& context, int64_t count, float probability, const DropoutKey& key, ConstData x, Data y) {
  check_count("dropout", count);
  check_present("dropout", count, x && y);
  check_dropout("dropout", probability, key, count);
  VESAL_DISPATCH(context, dropout(context, count, probability, key, x, y));
}

void dropout_channels(Context& context, int64_t n, int64_t spatial, int64_t channels, float probability,
                      const DropoutKey& key, ConstData x, Data y) {
  check<ShapeError>(n >= 0 && spatial >= 0 && channels >= 0, "dropout_channels: [", n, ", ", spatial, ", ",
                    channels, "], expected no negative extent");
  check_present("dropout_channels", checked_mul(checked_mul(n, spatial), channels), x && y);
  check_dropout("dropout_channels", probability, key, checked_mul(n, channels));
  VESAL_DISPATCH(context, dropout_channels(context, n, spatial, channels, probability, key, x, y));
}

}  // namespace vesal::kernels
