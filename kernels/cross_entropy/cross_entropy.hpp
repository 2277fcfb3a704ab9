// Losses on the softmax of each row of logits: cross entropy with integer labels (class weights, label
// smoothing, a label to ignore, and the softmax form of the focal loss), and the divergence from a teacher's
// softened softmax. A loss is written to device memory (one float32) so that nothing waits for it; its
// backward pass takes a host-side weight.
// Logits, those of a student and a teacher too, and their gradients are stored as float32, bf16 or f16
// (kernels/context/storage.hpp); losses and weights are float32.
#pragma once

#include <cstdint>

#include "kernels/context/context.hpp"

namespace vesal::kernels {

struct CrossEntropyParams {
  int64_t rows = 1;              // voxels of the whole batch
  int64_t classes = 2;           // 1 to 256
  int ignore_label = -1;         // rows with this label are left out, their logits may be anything; -1: none
  float label_smoothing = 0.0f;  // in [0, 1]
  float focal_gamma = 0.0f;      // 0 or more; 0: plain cross entropy
};

size_t cross_entropy_workspace_bytes(Context& context, const CrossEntropyParams& params);
// With p = softmax(row), y its label, w the class weights (1 where class_weights is null), e =
// label_smoothing and g = focal_gamma, a row that is not ignored costs
//   - (1 - e) w[y] (1 - p[y])^g log p[y] - e / classes * sum over c of w[c] log p[c]
// and the loss is the sum of the costs divided by the sum W of the rows' w[y],
// which for focal_gamma 0 is torch.nn.CrossEntropyLoss with its mean. 0 where W is 0. A label that is neither
// below `classes` nor ignore_label makes the loss and its gradients NaN, so that it does not pass unseen.
// logits [rows, classes], labels [rows], class_weights [classes]; loss [1]; total_weight [1] = W, for the
// backward pass. Throws ShapeError on a size or parameter out of range, a null tensor or too small a
// workspace.
void cross_entropy_forward(Context& context, const CrossEntropyParams& params, ConstData logits,
                           const uint8_t* labels, const float* class_weights, Data loss, float* total_weight,
                           Workspace workspace);
// dlogits = weight * d loss / d logits, overwritten; 0 in ignored rows.
void cross_entropy_backward(Context& context, const CrossEntropyParams& params, ConstData logits,
                            const uint8_t* labels, const float* class_weights, const float* total_weight,
                            float weight, Data dlogits);

struct DistillationParams {
  int64_t rows = 1;
  int64_t classes = 2;
  float temperature = 1.0f;  // more than 0
};

size_t distillation_workspace_bytes(Context& context, const DistillationParams& params);
// loss = T^2 mean over rows of KL(t || s), t = softmax(teacher / T), s = softmax(student / T): Hinton et al.
// 2015, whose factor T^2 keeps the gradients' size; T^2 times torch.nn.KLDivLoss with "batchmean". 0 without
// rows. student, teacher [rows, classes], finite; loss [1]. Throws ShapeError as above.
void distillation_forward(Context& context, const DistillationParams& params, ConstData student,
                          ConstData teacher, Data loss, Workspace workspace);
// dstudent = weight * d loss / d student = weight T / rows * (s - t), overwritten. The teacher is a constant.
void distillation_backward(Context& context, const DistillationParams& params, ConstData student,
                           ConstData teacher, float weight, Data dstudent);

}  // namespace vesal::kernels
