"""Resizing and pooling once more, by PyTorch itself in double precision, with autograd for the gradients.

Reads the vectors that resize_test or pooling_test wrote (VESAL_ORACLE_FOLDER) and compares output and gradient of every
case. Exits with 1 on a difference.

    resampling.py FOLDER
"""

import os
import sys

import torch
import torch.nn.functional as F

from vectors import Comparison, Reader

torch.set_num_threads(1)

MODES = {
    "trilinear": ("trilinear", False),
    "trilinear_corners": ("trilinear", True),
    "nearest": ("nearest", None),
    "nearest_exact": ("nearest-exact", None),
    "tricubic": ("bicubic", False),
    "tricubic_corners": ("bicubic", True),
}


def check_resize(folder, result):
    for number, line in enumerate(open(f"{folder}/resize.txt")):
        fields = line.split()
        n, d, h, w, out_d, out_h, out_w, c = map(int, fields[:8])
        scales = tuple(map(float, fields[8:11]))
        mode, corners = MODES[fields[11]]
        name = f"{fields[11]} {fields[12]}"
        file = Reader(f"{folder}/resize{number}.f32")
        x = file.take(n, d, h, w, c).requires_grad_()
        dy = file.take(n, out_d, out_h, out_w, c)
        volume = x.permute(0, 4, 1, 2, 3)
        size = (out_d, out_h, out_w)
        if mode == "bicubic":  # of the slices
            volume = x.permute(0, 1, 4, 2, 3).reshape(n * d, c, h, w)
            size, scales = size[1:], scales[1:]
        given = {"scale_factor": scales, "recompute_scale_factor": False} if any(scales) else {"size": size}
        y = F.interpolate(volume, mode=mode, align_corners=corners, **given)
        if mode == "bicubic":
            y = y.reshape(n, d, c, out_h, out_w).permute(0, 1, 3, 4, 2)
        else:
            y = y.permute(0, 2, 3, 4, 1)
        y.backward(dy)
        result.compare(name + " y", file.take(n, out_d, out_h, out_w, c), y)
        result.compare(name + " dx", file.take(n, d, h, w, c), x.grad)
        assert file.done(), name


def check_pooling(folder, result):
    for number, line in enumerate(open(f"{folder}/pooling.txt")):
        *fields, name = line.split()
        n, d, h, w, c, *rest = map(int, fields)
        out, kernel, stride, padding = (tuple(rest[i : i + 3]) for i in range(0, 12, 3))
        ceil_mode, count_include_pad, adaptive = map(bool, rest[12:])
        file = Reader(f"{folder}/pooling{number}.f32")
        x = file.take(n, d, h, w, c).requires_grad_()
        dy = file.take(n, *out, c)
        volume = x.permute(0, 4, 1, 2, 3)
        pooled = {}
        if adaptive:
            pooled["max"] = F.adaptive_max_pool3d(volume, out)
            pooled["average"] = F.adaptive_avg_pool3d(volume, out)
        else:
            pooled["max"] = F.max_pool3d(volume, kernel, stride, padding, ceil_mode=ceil_mode)
            if all(extent >= size for extent, size in zip((d, h, w), kernel)):  # it refuses others
                pooled["average"] = F.avg_pool3d(volume, kernel, stride, padding, ceil_mode, count_include_pad)
        for kind in ("max", "average"):
            actual, actual_dx = file.take(n, *out, c), file.take(n, d, h, w, c)
            if kind not in pooled:
                continue
            y = pooled[kind].permute(0, 2, 3, 4, 1)
            (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
            result.compare(f"{kind} pooling {name} y", actual, y)
            result.compare(f"{kind} pooling {name} dx", actual_dx, dx)
        assert file.done(), name


def main(folder):
    result = Comparison()
    for check, vectors in ((check_resize, "resize.txt"), (check_pooling, "pooling.txt")):
        if os.path.exists(f"{folder}/{vectors}"):
            check(folder, result)
    return result.report("resampling")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
