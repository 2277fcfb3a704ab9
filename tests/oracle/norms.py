"""Batch, group and layer normalisation and the activations once more, by PyTorch itself in double precision, with
autograd for the gradients.

Reads the vectors that batch_norm_test, group_norm_test, layer_norm_test and elementwise_test wrote
(VESAL_ORACLE_FOLDER) and compares outputs, gradients and running statistics of every case. Exits with 1 on a
difference.

    norms.py FOLDER
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F

from vectors import Comparison, Reader

torch.set_num_threads(1)

# In the order of kernels::Activation.
ACTIVATIONS = [
    lambda x, slope: x,
    lambda x, slope: F.relu(x),
    lambda x, slope: F.leaky_relu(x, slope),
    lambda x, slope: F.gelu(x),
    lambda x, slope: F.gelu(x, approximate="tanh"),
    lambda x, slope: F.silu(x),
    lambda x, slope: F.hardswish(x),
    lambda x, slope: F.elu(x),
    lambda x, slope: torch.sigmoid(x),
]


def channels_first(x):
    return x.permute(0, 2, 1)


def check_batch(folder, result):
    for number, line in enumerate(open(f"{folder}/batch.txt")):
        fields = line.split()
        n, spatial, channels, training = map(int, fields[:4])
        momentum, activation, affine, name = float(fields[4]), int(fields[5]), int(fields[6]), "batch " + fields[7]
        file = Reader(f"{folder}/batch{number}.f32")
        x = file.take(n, spatial, channels).requires_grad_()
        gamma, beta = (file.take(channels).requires_grad_() for _ in range(2))
        running_mean, running_var = file.take(channels), file.take(channels)
        dy = file.take(n, spatial, channels)
        norm = torch.nn.BatchNorm1d(channels, momentum=momentum, affine=False).double()
        norm.running_mean.copy_(running_mean)
        norm.running_var.copy_(running_var)
        norm.train(bool(training))
        if affine:
            norm.weight, norm.bias = torch.nn.Parameter(gamma.detach()), torch.nn.Parameter(beta.detach())
        y = ACTIVATIONS[activation](channels_first(norm(channels_first(x))), 0.01)
        y.backward(dy)
        norm(channels_first(dy))  # the same module once more: a second update
        result.compare(name + " y", file.take(n, spatial, channels), y)
        result.compare(name + " dx", file.take(n, spatial, channels), x.grad)
        dgamma, dbeta = file.take(channels), file.take(channels)
        if affine:
            result.compare(name + " dgamma", dgamma, norm.weight.grad)
            result.compare(name + " dbeta", dbeta, norm.bias.grad)
        result.compare(name + " running_mean", file.take(channels), norm.running_mean)
        result.compare(name + " running_var", file.take(channels), norm.running_var)
        assert file.done(), name


def check_group(folder, result):
    for number, line in enumerate(open(f"{folder}/group.txt")):
        fields = line.split()
        n, spatial, channels, groups, activation, affine = map(int, fields[:6])
        name = "group " + fields[6]
        file = Reader(f"{folder}/group{number}.f32")
        x = file.take(n, spatial, channels).requires_grad_()
        gamma, beta = (file.take(channels).requires_grad_() for _ in range(2))
        dy = file.take(n, spatial, channels)
        given = (gamma, beta) if affine else (None, None)
        # Not F.group_norm, which is the same but refuses groups of one value.
        y = ACTIVATIONS[activation](channels_first(torch.group_norm(channels_first(x), groups, *given)), 0.01)
        y.backward(dy)
        result.compare(name + " y", file.take(n, spatial, channels), y)
        result.compare(name + " dx", file.take(n, spatial, channels), x.grad)
        dgamma, dbeta = file.take(channels), file.take(channels)
        if affine:
            result.compare(name + " dgamma", dgamma, gamma.grad)
            result.compare(name + " dbeta", dbeta, beta.grad)
        assert file.done(), name


def check_layer(folder, result):
    for number, line in enumerate(open(f"{folder}/layer.txt")):
        fields = line.split()
        rows, channels, activation, affine = map(int, fields[:4])
        name = "layer " + fields[4]
        file = Reader(f"{folder}/layer{number}.f32")
        x = file.take(rows, channels).requires_grad_()
        gamma, beta = (file.take(channels).requires_grad_() for _ in range(2))
        dy = file.take(rows, channels)
        given = (gamma, beta) if affine else (None, None)
        y = ACTIVATIONS[activation](F.layer_norm(x, (channels,), *given), 0.01)
        y.backward(dy)
        result.compare(name + " y", file.take(rows, channels), y)
        result.compare(name + " dx", file.take(rows, channels), x.grad)
        dgamma, dbeta = file.take(channels), file.take(channels)
        if affine:
            result.compare(name + " dgamma", dgamma, gamma.grad)
            result.compare(name + " dbeta", dbeta, beta.grad)
        assert file.done(), name


def check_activations(folder, result):
    slope = float(np.float32(0.1))
    for kind in range(1, len(ACTIVATIONS)):
        file = Reader(f"{folder}/activation{kind}.f32")
        count = file.data.size // 4
        x = file.take(count).requires_grad_()
        dy = file.take(count)
        y = ACTIVATIONS[kind](x, slope)
        y.backward(dy)
        result.compare(f"activation {kind} y", file.take(count), y)
        # At 3, where hardswish has no derivative, PyTorch's scalar loop says 3/2 and its vectorised one 1.
        settled = x.detach() != 3 if kind == 6 else torch.ones(count, dtype=torch.bool)
        result.compare(f"activation {kind} dx", file.take(count)[settled], x.grad[settled])
        assert file.done(), kind


def main(folder):
    result = Comparison()
    check_batch(folder, result)
    check_group(folder, result)
    check_layer(folder, result)
    check_activations(folder, result)
    return result.report("norms and activations")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
