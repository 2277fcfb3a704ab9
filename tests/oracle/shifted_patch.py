"""Shifted patch tokenization once more, in PyTorch and double precision, written from the maths: shifts by padding and
slicing, stacking on channels, space-to-depth, LayerNorm and a linear layer per group, with autograd for the gradients.

Reads the vectors that shifted_patch_test wrote (VESAL_ORACLE_FOLDER) and compares output and gradients of every case.
Exits with 1 on a difference.

    shifted_patch.py FOLDER
"""

import itertools
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)

LEFT_RIGHT_UP_DOWN = [(0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0)]
FOUR_CORNERS = [(0, y, x) for y in (-1, 1) for x in (-1, 1)]
# In the order of kernels::ShiftSet; the volume itself comes first in each.
SHIFT_SETS = [
    list(itertools.product((-1, 1), repeat=3)),
    [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)],
    [(-1, -1, -1), (1, -1, 1), (1, 1, -1), (-1, 1, 1)],
    FOUR_CORNERS,
    LEFT_RIGHT_UP_DOWN,
    LEFT_RIGHT_UP_DOWN + FOUR_CORNERS,
]


def patch_features(x, patch, shift, directions):
    """x [n, d, h, w, c] -> [n, D, H, W, patch voxels x copies x c]."""
    n, *extent, c = x.shape
    padded = F.pad(x, (0, 0, shift[2], shift[2], shift[1], shift[1], shift[0], shift[0]))
    copies = []
    for direction in [(0, 0, 0)] + directions:
        window = [slice(s + s * step, s + s * step + e) for s, step, e in zip(shift, direction, extent)]
        copies.append(padded[(slice(None), *window)])
    stacked = torch.cat(copies, -1)
    fill = [-e % p for e, p in zip(extent, patch)]
    stacked = F.pad(stacked, (0, 0, 0, fill[2], 0, fill[1], 0, fill[0]))
    cells = [(e + f) // p for e, f, p in zip(extent, fill, patch)]
    blocks = stacked.reshape(n, cells[0], patch[0], cells[1], patch[1], cells[2], patch[2], len(copies) * c)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(n, *cells, -1)


def tokenize(x, mask, gamma, beta, weight, bias, patch, shift, directions, missing=None):
    """x [n, d, h, w, groups, c], mask [n, groups] or None -> [n, D, H, W, out], and for each sample and present group
    the normalised features with the reciprocal of their deviation."""
    n, groups = x.shape[0], x.shape[4]
    eps = float(np.float32(1e-5))
    samples = []
    norms = []
    for sample in range(n):
        present = [k for k in range(groups) if mask is None or mask[sample, k] != 0]
        total = 0
        for k in range(groups):
            if k in present:
                features = patch_features(x[sample : sample + 1, ..., k, :], patch, shift, directions)
                normal = F.layer_norm(features, features.shape[-1:], eps=eps)
                normal.retain_grad()
                norms.append((normal, (features.detach().var(-1, unbiased=False, keepdim=True) + eps).rsqrt()))
                total = total + groups / len(present) * F.linear(normal * gamma[k] + beta[k], weight[k], bias[k])
            else:
                total = total + missing[k]
        samples.append(total)
    return torch.cat(samples), norms


def main(folder):
    failures = 0
    count = 0
    for number, line in enumerate(open(f"{folder}/index.txt")):
        fields = line.split(maxsplit=15)
        n, d, h, w, groups, channels, out, *rest = map(int, fields[:15])
        patch, shift, directions, masked = rest[:3], rest[3:6], SHIFT_SETS[rest[6]], rest[7]
        name = fields[15].strip()
        data = np.fromfile(f"{folder}/{number}.f32", np.float32)
        position = 0

        def take(*shape):
            nonlocal position
            size = math.prod(shape)
            values = torch.from_numpy(data[position : position + size].astype(np.float64)).reshape(shape)
            position += size
            return values

        features = math.prod(patch) * (1 + len(directions)) * channels
        mask = take(n, groups) if masked else None
        parameters = {
            "x": take(n, d, h, w, groups, channels),
            "gamma": take(groups, features),
            "beta": take(groups, features),
            "weight": take(groups, out, features),
            "bias": take(groups, out),
        }
        if masked:
            parameters["missing"] = take(groups, out)
        for parameter in parameters.values():
            parameter.requires_grad_()
        y, norms = tokenize(mask=mask, patch=patch, shift=shift, directions=directions, **parameters)
        y.backward(take(*y.shape))
        expected = {"y": y.detach()}
        for part, parameter in parameters.items():
            # Where no group is absent nothing depends on the missing-tokens.
            expected["d" + part] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        # dx is what remains of these when their mean and their part along the features are taken off; of a lone voxel
        # next to nothing remains.
        terms = max((rstd * normal.grad).abs().max().item() for normal, rstd in norms)
        for part, reference in expected.items():
            actual = take(*reference.shape)
            count += 1
            # A wrong index, sign or factor changes numbers by their own size; rounding of float32 sums of up to 2000
            # products stays below 1e-5 of the largest.
            error = (actual - reference).abs().max().item()
            limit = 1e-5 * max(1.0, reference.abs().max().item(), terms if part == "dx" else 0.0)
            if not error <= limit:
                failures += 1
                print(f"{name}: {part} differs by {error:.3g}, allowed are {limit:.3g}")
        if position != data.size:
            failures += 1
            print(f"{name}: the file holds {data.size} numbers, {position} were expected")
    print(f"shifted patch: {count} tensors compared, {failures} differ")
    return 1 if failures or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
