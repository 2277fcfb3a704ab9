"""The losses and optimisers once more, in PyTorch and double precision: its own losses and torch.optim where it has
them, otherwise written from the papers' formulas, with autograd for the gradients.

Reads what losses_oracle wrote and compares every case. Exits with 1 on a difference.

    losses.py FOLDER
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F

from vectors import Case, check_index

torch.set_num_threads(1)

SHAPE = (2, 3, 4, 5, 4)
CHANNELS = SHAPE[-1]
WEIGHT = float(np.float32(0.6))


class LossCase(Case):
    def same_loss(self, loss, x):
        (gradient,) = torch.autograd.grad(WEIGHT * loss, x)
        self.same("loss", loss.detach().reshape(1))
        self.same("gradient", gradient)


def cross_entropy(case):
    logits = case.take(*SHAPE).requires_grad_()
    labels = case.take(*SHAPE[:-1]).long()
    weights = case.take(CHANNELS) if case.flag("weighted") else torch.ones(CHANNELS, dtype=torch.float64)
    ignore = case.integer("ignore")
    smoothing = case.number("smoothing")
    gamma = case.number("gamma")
    x, y = logits.reshape(-1, CHANNELS), labels.reshape(-1)
    if gamma == 0:
        loss = F.cross_entropy(x, y, weights, ignore_index=ignore, label_smoothing=smoothing)
    else:
        x, y = x[y != ignore], y[y != ignore]
        log_p = torch.log_softmax(x, -1)
        log_py = log_p.gather(1, y[:, None])[:, 0]
        hard = -(weights[y] * (1 - log_py.exp()) ** gamma * log_py).sum()
        loss = ((1 - smoothing) * hard - smoothing / CHANNELS * (log_p * weights).sum()) / weights[y].sum()
    case.same_loss(loss, logits)


def overlap(case):
    logits = case.take(*SHAPE).requires_grad_()
    ignore = case.integer("ignore")
    if case.flag("softmax"):
        labels = case.take(*SHAPE[:-1]).long()
        counts = (labels != ignore)[..., None].double().expand(SHAPE)
        target = F.one_hot(torch.where(labels == ignore, torch.zeros_like(labels), labels), CHANNELS).double()
        p = torch.softmax(logits, -1)
    else:
        masks = case.take(*SHAPE)
        counts = (masks != ignore).double()
        target = torch.where(masks == ignore, torch.zeros_like(masks), masks)
        p = torch.sigmoid(logits)
    # nnU-Net's soft Dice from true and false positives and false negatives.
    axes = (0, 1, 2, 3) if case.flag("batch") else (1, 2, 3)
    tp = (p * target * counts).sum(axes)
    fp = (p * (1 - target) * counts).sum(axes)
    fn = ((1 - p) * target * counts).sum(axes)
    smooth = case.number("smooth")
    if case.flag("iou"):
        ratio = (tp + smooth) / (tp + fp + fn + smooth)
    else:
        ratio = (2 * tp + smooth) / (2 * tp + fp + fn + smooth)
    case.same_loss((1 - ratio[..., case.integer("first") :]).mean(), logits)


def distillation(case):
    student = case.take(*SHAPE).requires_grad_()
    teacher = case.take(*SHAPE)
    t = case.number("temperature")
    s, p = torch.log_softmax(student / t, -1), torch.softmax(teacher / t, -1)
    loss = t * t * F.kl_div(s.reshape(-1, CHANNELS), p.reshape(-1, CHANNELS), reduction="batchmean")
    case.same_loss(loss, student)


def pointwise(case):
    x = case.take(*SHAPE).requires_grad_()
    target = case.take(*SHAPE)
    kind = case.settings["kind"]
    weights = torch.ones(SHAPE, dtype=torch.float64)
    positive = torch.ones(CHANNELS, dtype=torch.float64)
    if case.flag("weighted"):
        weights = case.take(*SHAPE) * case.take(CHANNELS)
        if kind == "bce":
            positive = case.take(CHANNELS)
    if kind == "l1":
        loss = (weights * F.l1_loss(x, target, reduction="none")).mean()
    elif kind == "smooth_l1":
        loss = (weights * F.smooth_l1_loss(x, target, beta=case.number("beta"), reduction="none")).mean()
    elif kind == "l2":
        loss = (weights * F.mse_loss(x, target, reduction="none")).mean()
    else:
        # Focal loss: binary cross entropy times (1 - p_t)^gamma, p_t the probability of the target, and alpha_t.
        gamma, alpha = case.number("gamma"), case.number("alpha")
        p = torch.sigmoid(x)
        rest = p * (1 - target) + (1 - p) * target
        alpha_t = alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else 1
        entropy = F.binary_cross_entropy_with_logits(x, target, pos_weight=positive, reduction="none")
        loss = (weights * alpha_t * rest**gamma * entropy).mean()
    case.same_loss(loss, x)


def optimizer(case):
    parameter = torch.nn.Parameter(case.take(37))
    average = parameter.detach().clone()
    ema_decay = float(np.float32(0.8))
    rule = case.settings["rule"]
    lr, decay = float(np.float32(0.01)), case.number("decay")
    if rule == "sgd":
        momentum = case.number("momentum")
        torch_rule = torch.optim.SGD(
            [parameter], lr, momentum=momentum, weight_decay=decay, nesterov=case.flag("nesterov")
        )
    else:
        make = torch.optim.Adam if rule == "adam" else torch.optim.AdamW
        betas = (float(np.float32(0.9)), float(np.float32(0.999)))
        torch_rule = make(
            [parameter], lr, betas=betas, eps=float(np.float32(1e-8)), weight_decay=decay, amsgrad=case.flag("amsgrad")
        )
    for step in range(10):
        parameter.grad = case.take(37)
        if case.number("max_norm") > 0:
            torch.nn.utils.clip_grad_norm_([parameter], case.number("max_norm"))
        torch_rule.step()
        average = ema_decay * average + (1 - ema_decay) * parameter.detach()
        case.same(f"parameters after step {step + 1}", parameter.detach())
        case.same(f"average after step {step + 1}", average)


def main(folder):
    kinds = {f.__name__: f for f in (cross_entropy, overlap, distillation, pointwise, optimizer)}
    return check_index(folder, kinds, "losses and optimisers", LossCase)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
