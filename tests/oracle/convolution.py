"""Convolutions and transposed convolutions once more, in PyTorch and double precision, with autograd for the gradients.

Reads the vectors that conv3d_test or conv_transpose3d_test wrote (VESAL_ORACLE_FOLDER) and compares output and gradients
of every case. Exits with 1 on a difference.

    convolution.py FOLDER
"""

import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)


def channels_first(t):
    """[..., d, h, w, c] -> [..., c, d, h, w], for volumes and weights alike."""
    return t.permute(0, 4, 1, 2, 3)


def main(folder):
    failures = 0
    count = 0
    for number, line in enumerate(open(f"{folder}/index.txt")):
        op, *fields, name = line.split()
        n, d, h, w, c_in, c_out, groups, *rest = map(int, fields)
        kernel, stride, padding, dilation, last = (rest[i : i + 3] for i in range(0, 15, 3))
        data = torch.from_numpy(np.fromfile(f"{folder}/{number}.f32", np.float32).astype(np.float64))
        position = 0

        def take(*shape):
            nonlocal position
            size = math.prod(shape)
            values = data[position : position + size].reshape(shape)
            position += size
            return values

        x = take(n, d, h, w, c_in).requires_grad_()
        if op == "conv3d":
            weight = take(c_out, *kernel, c_in // groups).requires_grad_()
        else:
            weight = take(c_in, *kernel, c_out // groups).requires_grad_()
        bias = take(c_out).requires_grad_()
        volume, filters = channels_first(x), channels_first(weight)
        if op == "conv3d":
            # F.pad counts from the last axis.
            around = [side for axis in (2, 1, 0) for side in (padding[axis], last[axis])]
            y = F.conv3d(F.pad(volume, around), filters, bias, stride, 0, dilation, groups)
        else:
            y = F.conv_transpose3d(volume, filters, bias, stride, padding, last, groups, dilation)
        y = y.permute(0, 2, 3, 4, 1)
        y.backward(take(*y.shape))
        for part, reference in {"y": y, "dx": x.grad, "dweight": weight.grad, "dbias": bias.grad}.items():
            actual = take(*reference.shape)
            count += 1
            # A wrong index or sign changes numbers by their own size; rounding of sums of up to 5000 float32 products
            # stays below 1e-5 of the largest.
            error = (actual - reference).abs().max().item()
            limit = 1e-5 * max(1.0, reference.abs().max().item())
            if not error <= limit:
                failures += 1
                print(f"{op} {name}: {part} differs by {error:.3g}, allowed are {limit:.3g}")
        if position != data.numel():
            failures += 1
            print(f"{op} {name}: the file holds {data.numel()} numbers, {position} were expected")
    print(f"convolution: {count} tensors compared, {failures} differ")
    return 1 if failures or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
