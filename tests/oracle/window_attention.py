"""Window attention once more, in PyTorch and double precision, written from the maths: pad, roll, partition, dense mask,
softmax, reverse, with autograd for the gradients.

Reads the vectors that window_attention_test wrote (VESAL_ORACLE_FOLDER) and compares output and gradients of every
case. Exits with 1 on a difference.

    window_attention.py FOLDER
"""

import itertools
import math
import sys

import numpy as np
import torch

torch.set_num_threads(1)


def attention(qkv, qkv_bias, table, window, shift, table_window, masked, scale):
    """qkv [n, d, h, w, 3, heads, dim], qkv_bias [3, heads, dim], table [rows, heads] -> out [n, d, h, w, heads, dim]."""
    n, *extent, _, heads, dim = qkv.shape
    padded = [math.ceil(e / w) * w for e, w in zip(extent, window)]
    real = torch.zeros(padded, dtype=torch.bool)
    real[: extent[0], : extent[1], : extent[2]] = True
    x = qkv_bias.expand(n, *padded, 3, heads, dim).clone()
    x[:, : extent[0], : extent[1], : extent[2]] = qkv

    # 27 labels by three slices an axis on the rolled grid.
    label = torch.zeros(padded, dtype=torch.long)
    slices = []
    for p, w, s in zip(padded, window, shift):
        slices.append([slice(0, p)] if s == 0 else [slice(0, p - w), slice(p - w, p - s), slice(p - s, p)])
    for number, region in enumerate(itertools.product(*slices)):
        label[region] = number

    def partition(t):
        """[n, D, H, W, ...] -> [n, windows, tokens, ...]."""
        grid = []
        for p, w in zip(padded, window):
            grid += [p // w, w]
        t = t.reshape(t.shape[0], *grid, *t.shape[4:])
        t = t.permute(0, 1, 3, 5, 2, 4, 6, *range(7, t.dim()))
        return t.reshape(t.shape[0], -1, math.prod(window), *t.shape[7:])

    back = [-s for s in shift]
    cells = partition(torch.roll(x, back, (1, 2, 3)))
    label = partition(label[None])[0]
    seen = partition(torch.roll(real, back, (0, 1, 2))[None])[0]
    allowed = label[:, :, None] == label[:, None, :]
    if masked:
        # Rows of padding are cropped away below; letting them see all keeps their softmax defined.
        allowed = (allowed & seen[:, None, :]) | ~seen[:, :, None]

    # The index of all pairs of the table's own window, as the original modules keep it; of a clipped window its
    # leading block.
    place = torch.tensor(list(itertools.product(*(range(w) for w in table_window))))[: math.prod(window)]
    step = place[:, None, :] - place[None, :, :] + torch.tensor(table_window) - 1
    row = (step[..., 0] * (2 * table_window[1] - 1) + step[..., 1]) * (2 * table_window[2] - 1) + step[..., 2]
    bias = table[row].permute(2, 0, 1)

    q, k, v = cells.unbind(3)
    scores = scale * torch.einsum("bwimc,bwjmc->bwmij", q, k) + bias
    scores = scores.masked_fill(~allowed[None, :, None], -math.inf)
    out = torch.einsum("bwmij,bwjmc->bwimc", torch.softmax(scores, -1), v)

    counts = [p // w for p, w in zip(padded, window)]
    out = out.reshape(n, *counts, *window, heads, dim).permute(0, 1, 4, 2, 5, 3, 6, 7, 8)
    out = torch.roll(out.reshape(n, *padded, heads, dim), shift, (1, 2, 3))
    return out[:, : extent[0], : extent[1], : extent[2]]


def main(folder):
    failures = 0
    count = 0
    for number, line in enumerate(open(f"{folder}/index.txt")):
        fields = line.split(maxsplit=18)
        n, d, h, w, heads, dim, *rest = map(int, fields[:16])
        window, shift, table_window, masked = rest[:3], rest[3:6], rest[6:9], rest[9]
        scale, with_bias, name = float(fields[16]), int(fields[17]), fields[18].strip()
        data = np.fromfile(f"{folder}/{number}.f32", np.float32)
        position = 0

        def take(*shape):
            nonlocal position
            size = math.prod(shape)
            values = torch.from_numpy(data[position : position + size].astype(np.float64)).reshape(shape)
            position += size
            return values

        rows = math.prod(2 * w - 1 for w in table_window)
        bias_shape = (3, heads, dim) if with_bias else (0,)
        qkv = take(n, d, h, w, 3, heads, dim).requires_grad_()
        given_bias = take(*bias_shape)
        qkv_bias = (given_bias if with_bias else torch.zeros(3, heads, dim, dtype=torch.float64)).requires_grad_()
        table = take(rows, heads).requires_grad_()
        dout = take(n, d, h, w, heads, dim)
        # A float prints to six digits in the index; the program computed with the float itself.
        out = attention(qkv, qkv_bias, table, window, shift, table_window, masked, float(np.float32(scale)))
        out.backward(dout)
        expected = {"out": out, "dqkv": qkv.grad, "dqkv_bias": qkv_bias.grad, "dbias_table": table.grad}
        for part, reference in expected.items():
            actual = take(*(bias_shape if part == "dqkv_bias" else reference.shape))
            if actual.numel() == 0:
                continue
            count += 1
            # A wrong index or sign changes numbers by their own size; rounding of sums of up to 500 float32 products
            # stays below 1e-5 of the largest.
            error = (actual - reference).abs().max().item()
            limit = 1e-5 * max(1.0, reference.abs().max().item())
            if not error <= limit:
                failures += 1
                print(f"{name}: {part} differs by {error:.3g}, allowed are {limit:.3g}")
        if position != data.size:
            failures += 1
            print(f"{name}: the file holds {data.size} numbers, {position} were expected")
    print(f"window attention: {count} tensors compared, {failures} differ")
    return 1 if failures or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
