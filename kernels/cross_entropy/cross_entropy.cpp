// Argument checks, workspace sizes and dispatch of the losses on softmax.
#include "kernels/cross_entropy/cross_entropy.hpp"

#include "base/size.hpp"
#include "kernels/context/dispatch.hpp"
#include "kernels/context/slabs.hpp"

namespace vesal::kernels {

VESAL_DECLARE_BACKENDS(cross_entropy_forward)
VESAL_DECLARE_BACKENDS(cross_entropy_backward)
VESAL_DECLARE_BACKENDS(distillation_forward)
VESAL_DECLARE_BACKENDS(distillation_backward)

namespace {

void check_params(const char* what, const CrossEntropyParams& p) {
  check<ShapeError>(p.rows >= 0 && p.classes >= 1 && p.classes <= 256, what, ": [", p.rows, ", ", p.classes,
                    "], expected 0 rows or more and 1 to 256 classes");
  checked_mul(p.rows, p.classes);
  check<ShapeError>(p.ignore_label >= -1 && p.ignore_label <= 255, what, ": ignore_label ", p.ignore_label,
                    ", expected -1 to 255");
  check<ShapeError>(p.label_smoothing >= 0 && p.label_smoothing <= 1, what, ": label_smoothing ",
                    p.label_smoothing, ", expected 0 to 1");
  check<ShapeError>(p.focal_gamma >= 0, what, ": focal_gamma ", p.focal_gamma, ", expected 0 or more");
}

void check_params(const char* what, const DistillationParams& p) {
  check<ShapeError>(p.rows >= 0 && p.classes >= 1, what, ": [", p.rows, ", ", p.classes,
                    "], expected 0 rows or more and at least 1 class");
  checked_mul(p.rows, p.classes);
  check<ShapeError>(p.temperature > 0, what, ": temperature ", p.temperature, ", expected more than 0");
}

}  // namespace

size_t cross_entropy_workspace_bytes(Context&, const CrossEntropyParams& params) {
  return column_partials_bytes(1, params.rows, 1, 2);
}

void cross_entropy_forward(Context& context, const CrossEntropyParams& params, ConstData logits,
                           const uint8_t* labels, const float* class_weights, Data loss, float* total_weight,
                           Workspace workspace) {
  check_params("cross_entropy_forward", params);
  check<ShapeError>(params.rows == 0 || (logits && labels != nullptr),
                    "cross_entropy_forward: a tensor is null");
  check<ShapeError>(loss && total_weight != nullptr, "cross_entropy_forward: loss or total_weight is null");
  workspace.require(cross_entropy_workspace_bytes(context, params), "cross_entropy_forward");
  VESAL_DISPATCH(context, cross_entropy_forward(context, params, logits, labels, class_weights, loss,
                                                total_weight, workspace));
}

void cross_entropy_backward(Context& context, const CrossEntropyParams& params, ConstData logits,
                            const uint8_t* labels, const float* class_weights, const float* total_weight,
                            float weight, Data dlogits) {
  check_params("cross_entropy_backward", params);
  check<ShapeError>(params.rows == 0 || (logits && labels != nullptr && total_weight != nullptr && dlogits),
                    "cross_entropy_backward: a tensor is null");
  VESAL_DISPATCH(context, cross_entropy_backward(context, params, logits, labels, class_weights, total_weight,
                                                 weight, dlogits));
}

size_t distillation_workspace_bytes(Context&, const DistillationParams& params) {
  return column_partials_bytes(1, params.rows, 1, 1);
}

void distillation_forward(Context& context, const DistillationParams& params, ConstData student,
                          ConstData teacher, Data loss, Workspace workspace) {
  check_params("distillation_forward", params);
  check<ShapeError>(params.rows == 0 || (student && teacher), "distillation_forward: a tensor is null");
  check<ShapeError>(static_cast<bool>(loss), "distillation_forward: loss is null");
  workspace.require(distillation_workspace_bytes(context, params), "distillation_forward");
  VESAL_DISPATCH(context, distillation_forward(context, params, student, teacher, loss, workspace));
}

void distillation_backward(Context& context, const DistillationParams& params, ConstData student,
                           ConstData teacher, float weight, Data dstudent) {
  check_params("distillation_backward", params);
  check<ShapeError>(params.rows == 0 || (student && teacher && dstudent),
                    "distillation_backward: a tensor is null");
  VESAL_DISPATCH(context, distillation_backward(context, params, student, teacher, weight, dstudent));
}

}  // namespace vesal::kernels
