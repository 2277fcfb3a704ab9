"""Attention, the decomposed relative position and the axial rotary embedding once more, in PyTorch and double precision,
with autograd for the gradients.

Reads the vectors that attention_test, relative_position_test and rotary_test wrote (VESAL_ORACLE_FOLDER) and compares
outputs and gradients of every case. Exits with 1 on a difference.

    attention.py FOLDER
"""

import math
import sys

import numpy as np
import torch

from vectors import Comparison, Reader

torch.set_num_threads(1)


def attend(q, k, v, scale, added):
    """q, k, v [n, tokens, heads, dim]; added, to the scores [n, heads, queries, keys]; rows of -infinity give zeros."""
    scores = scale * torch.einsum("nqhc,nkhc->nhqk", q, k) + added
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    probability = torch.softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
    return torch.einsum("nhqk,nkhc->nqhc", probability, v)


def check_attention(folder, result):
    for number, line in enumerate(open(f"{folder}/attention.txt")):
        fields = line.split(maxsplit=12)
        n, queries, keys, heads, dim, masked, bias_samples, bias_heads, depth, height, width = map(int, fields[:11])
        scale, name = float(np.float32(fields[11])), "attention " + fields[12].strip()
        file = Reader(f"{folder}/attention{number}.f32")
        q = file.take(n, queries, heads, dim).requires_grad_()
        k, v = (file.take(n, keys, heads, dim).requires_grad_() for _ in range(2))
        added = torch.zeros(n, heads, queries, keys, dtype=torch.float64)
        if masked:
            added = added.masked_fill(file.take(n, 1, 1, keys) == 0, -math.inf)
        if bias_samples > 0:
            added = added + file.take(bias_samples, bias_heads, queries, keys)
        axial = file.take(n, queries, heads, depth + height + width).requires_grad_()
        if depth > 0:
            planes, lines, columns = axial.permute(0, 2, 1, 3).split([depth, height, width], -1)
            grid = planes[..., :, None, None] + lines[..., None, :, None] + columns[..., None, None, :]
            added = added + grid.flatten(3)
        dout = file.take(n, queries, heads, dim)
        out = attend(q, k, v, scale, added)
        out.backward(dout)
        result.compare(name + " out", file.take(*out.shape), out)
        result.compare(name + " dq", file.take(*q.shape), q.grad)
        result.compare(name + " dk", file.take(*k.shape), k.grad)
        result.compare(name + " dv", file.take(*v.shape), v.grad)
        daxial = file.take(*axial.shape)
        if depth > 0:
            result.compare(name + " daxial_bias", daxial, axial.grad)
        assert file.done(), name


def table_rows(table, queries, keys):
    """[queries, keys, dim]: the row of the table for each distance, the coarser of the two grids stretched."""
    places = torch.arange(queries, dtype=torch.float64)[:, None] * max(keys / queries, 1.0)
    others = torch.arange(keys, dtype=torch.float64)[None, :] * max(queries / keys, 1.0)
    return table[(places - others + (keys - 1) * max(queries / keys, 1.0)).long()]


def check_relative_position(folder, result):
    for number, line in enumerate(open(f"{folder}/relative.txt")):
        fields = line.split(maxsplit=12)
        n, heads, dim = map(int, fields[:3])
        axes = [tuple(map(int, fields[i : i + 3])) for i in (3, 6, 9)]
        name = "relative position " + fields[12].strip()
        grid = [queries for queries, _, _ in axes]
        file = Reader(f"{folder}/relative{number}.f32")
        q = file.take(n, *grid, heads, dim).requires_grad_()
        tables = [file.take(present * (2 * max(a, b) - 1), dim).requires_grad_() for a, b, present in axes]
        daxial = file.take(n, *grid, heads, sum(keys for _, keys, _ in axes))
        parts = []
        for (queries, keys, present), table, letter in zip(axes, tables, "zyx"):
            if present:
                parts.append(torch.einsum(f"nzyxhc,{letter}kc->nzyxhk", q, table_rows(table, queries, keys)))
            else:
                parts.append(0.0 * q.sum(-1, keepdim=True).expand(*q.shape[:-1], keys))
        axial = torch.cat(parts, -1)
        axial.backward(daxial)
        result.compare(name + " axial_bias", file.take(*axial.shape), axial)
        result.compare(name + " dq", file.take(*q.shape), q.grad)
        for axis, (table, (_, _, present)) in enumerate(zip(tables, axes)):
            gradient = file.take(*table.shape)
            if present:
                result.compare(f"{name} table {axis}", gradient, table.grad)
        assert file.done(), name


def rotated(x, axes, grid, excluded, theta):
    """x [n, tokens, heads, dim]: pairs of channels as complex numbers, multiplied by unit ones."""
    pairs = x.shape[-1] // (2 * axes)
    frequency = theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    z, y, x_place = torch.meshgrid(*(torch.arange(extent, dtype=torch.float64) for extent in grid), indexing="ij")
    angle = torch.cat([place.flatten()[:, None] * frequency for place in (x_place, y, z)[:axes]], -1)
    turned = x[:, : x.shape[1] - excluded, :, : 2 * axes * pairs]
    angle = angle.repeat(turned.shape[1] // angle.shape[0], 1)[:, None]
    numbers = torch.view_as_complex(turned.reshape(*turned.shape[:-1], axes * pairs, 2).contiguous())
    turned = torch.view_as_real(numbers * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    turned = torch.cat([turned, x[:, : turned.shape[1], :, 2 * axes * pairs :]], -1)
    return torch.cat([turned, x[:, turned.shape[1] :]], 1)


def check_rotary(folder, result):
    for number, line in enumerate(open(f"{folder}/rotary.txt")):
        fields = line.split(maxsplit=10)
        n, tokens, heads, dim, axes = map(int, fields[:5])
        grid, excluded, theta = list(map(int, fields[5:8])), int(fields[8]), float(fields[9])
        name = "rotary " + fields[10].strip()
        file = Reader(f"{folder}/rotary{number}.f32")
        x = file.take(n, tokens, heads, dim).requires_grad_()
        dy = file.take(n, tokens, heads, dim)
        y = rotated(x, axes, grid, excluded, theta)
        y.backward(dy)
        result.compare(name + " y", file.take(*y.shape), y)
        result.compare(name + " dx", file.take(*x.shape), x.grad)
        assert file.done(), name


def main(folder):
    result = Comparison()
    check_attention(folder, result)
    check_relative_position(folder, result)
    check_rotary(folder, result)
    return result.report("attention")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
