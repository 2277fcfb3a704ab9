"""Resizing once more, by PyTorch itself in double precision, with autograd for the gradients.

Reads the vectors that resize_test wrote (VESAL_ORACLE_FOLDER) and compares output and gradient of every case. Exits with
1 on a difference.

    resampling.py FOLDER
"""

import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)

MODES = {
    "trilinear": ("trilinear", False),
    "trilinear_corners": ("trilinear", True),
    "nearest": ("nearest", None),
    "nearest_exact": ("nearest-exact", None),
    "tricubic": ("bicubic", False),
    "tricubic_corners": ("bicubic", True),
}


class Reader:
    def __init__(self, path):
        self.data = np.fromfile(path, np.float32).astype(np.float64)
        self.position = 0

    def take(self, *shape):
        size = math.prod(shape)
        values = torch.from_numpy(self.data[self.position : self.position + size].copy()).reshape(shape)
        self.position += size
        return values

    def done(self):
        return self.position == self.data.size


class Comparison:
    def __init__(self):
        self.count = 0
        self.failures = 0

    def compare(self, name, actual, reference):
        self.count += 1
        # A wrong voxel or weight changes numbers by their own size; float32 positions and sums stay below 1e-5 of the
        # largest.
        error = (actual - reference.detach()).abs().max().item()
        limit = 1e-5 * max(1.0, reference.abs().max().item())
        if not error <= limit:
            self.failures += 1
            print(f"{name} differs by {error:.3g}, allowed are {limit:.3g}")


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


def main(folder):
    result = Comparison()
    check_resize(folder, result)
    print(f"resampling: {result.count} tensors compared, {result.failures} differ")
    return 1 if result.failures or result.count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
