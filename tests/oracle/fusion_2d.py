"""The original 2D fusion network (Zhu et al., Information Fusion 91, 2023) in PyTorch, written from the maths alone: the
witness that models/fusion_2d computes what a published checkpoint means.

    fusion_2d.py blocks PROGRAM [--device cpu]            every block, in evaluation and in training
    fusion_2d.py network PROGRAM [--device cpu] [--only MODE,...] [--size 32] [--batch N] [--seed N] [--runs 1]
    fusion_2d.py checkpoints PROGRAM FOLDER               strict import and export, through files in FOLDER
    fusion_2d.py margins --only MODE [--size 32] [--batch N] [--seed FIRST] [--count 1]

PROGRAM is fusion_2d_oracle (fusion_2d_oracle.cpp). It is told the range of every tensor and computes the case on a device;
this script computes the same case in float64, and in float32 to see what PyTorch itself reaches. For every tensor (outputs,
running statistics, gradients of inputs and of every parameter) the error |ours - f64| / |f64|, in Euclidean norms, must be
at most max(1e-4, twice PyTorch's own error in float32). Gradients that are zero by construction (a bias whose sum over
voxels a normalisation subtracts again, a parameter that nothing reads) have no relative error: their norm is compared with
that of their layer's weight gradient in place of their own. `--size 160` is the size that the authors trained with;
`--runs N` repeats float32 with other summation orders and takes the worst error as PyTorch's own; with
`--runs 0` PyTorch computes in float64 only, and 1e-4 is the limit. MODE: evaluation,
training, fixed.

Numbers. Weights and inputs are never stored. Element i (row-major, in PyTorch's layout) of the tensor called NAME is
    key  = FNV-1a of NAME, 64 bits; of "SEED/NAME" for inputs, so that a seed chooses images for the same network
    h    = splitmix64's finaliser of (key + (i + 1) * 0x9E3779B97F4A7C15), all modulo 2^64
    u    = (h >> 40) / 2^23 - 1, one of 2^24 numbers in [-1, 1)
    x    = offset + scale * u, computed in float64, where nothing but the last sum rounds, then rounded to float32
in both languages, bit for bit: also the tensors that a fresh network starts as zeros and ones, the frozen Sobel kernels
and the running statistics. Two refinements:
    pair   elements that are `pair` apart along the input channels of a convolution form pairs: the second takes
           -0.9 times the first one's u plus 0.1 times its own. What a ReLU leaves has a large mean, which sums to a large
           constant per channel; in evaluation, where no batch statistics remove it, deep layers would see constants only.
           In pairs the means cancel.
    negate neighbouring elements 2 j, 2 j + 1 change their sign together, where the h of element j under the key of
           "NAME/negate" is a multiple of 8.

Choices. A ReLU whose argument is a rounding error away from 0, and a maximum whose two best differ by as little, are decided
by rounding: one such decision moves gradients by 1 / sqrt(activations of the layer), far more than 1e-4, in PyTorch's
float32 as in ours. In whole networks, batch norms before ReLUs therefore have |beta| of about 4 gamma (one channel in eight
is off), which leaves a thousandth of the arguments' density at 0; images are small; and their seeds were picked, by
`margins`, for a closest decision far from rounding. (Channels that are 0 but for one small number would be as bad: the next batch
norm in training divides by their deviation, and multiplies their error.) Blocks are small enough to use gamma near 1 and
beta near 0.
The node softmax of MFIB saturates at PyTorch's own initial values (its logits grow with the number of voxels), so that
nothing behind it would be tested: conv_v and conv_w are scaled for logits of order 1. In whole networks MFIB's messages
stay away from their ReLU's kink likewise: a bias of 20 / F per node, and rows of Wg that sum to 1.
"""

import argparse
import json
import math
import os
import re
import struct
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(2)


# ---- numbers

MASK = (1 << 64) - 1


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def hashes(key, indices):
    """uint64 for each of the uint64 indices."""
    with np.errstate(over="ignore"):
        x = indices + np.uint64(1)
        x *= np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(key)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def units(key, indices):
    return (hashes(key, indices) >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0


class Range:
    """What one line tells fusion_2d_oracle of a tensor; offset and scale are float32 numbers."""

    def __init__(self, shape, offset, scale, pair=0, negate=False):
        self.shape, self.pair, self.negate = tuple(shape), pair, negate
        self.offset, self.scale = float(np.float32(offset)), float(np.float32(scale))

    def line(self, name):
        extents = ",".join(str(extent) for extent in self.shape)
        return f"{name} {self.offset.hex()} {self.scale.hex()} {self.pair} {int(self.negate)} [{extents}]\n"

    def values(self, seed, name):
        """float32, in PyTorch's layout."""
        count = math.prod(self.shape)
        result = np.empty(count, np.float32)
        key, negate_key = fnv1a(f"{seed}/{name}" if name.startswith("input.") else name), fnv1a(name + "/negate")
        # A whole number of pairs at a time, little enough to stay in the cache.
        unit = 2 * max(self.pair, 1)
        chunk = unit * max(1, (1 << 16) // unit)
        for begin in range(0, count, chunk):
            i = np.arange(begin, min(begin + chunk, count), dtype=np.uint64)
            u = units(key, i)
            if self.pair:
                whole = u[: u.size // unit * unit].reshape(-1, 2, self.pair)
                whole[:, 1] = -0.9 * whole[:, 0] + 0.1 * whole[:, 1]
                rest = u[u.size // unit * unit :]  # an odd number of channels: the last one may have a partner's part
                if rest.size > self.pair:
                    second = rest[self.pair :]
                    second[:] = -0.9 * rest[: second.size] + 0.1 * second
            x = self.offset + self.scale * u
            if self.negate:
                x[hashes(negate_key, i >> np.uint64(1)) % np.uint64(8) == 0] *= -1.0
            result[begin : begin + i.size] = x
        return result.reshape(self.shape)


# ---- the network

class Margins:
    """The closest decision of a run: how far a ReLU's argument, or the best of a maximum, is from changing the choice, as
    a part of the largest number of its tensor."""

    def __init__(self):
        self.active = False
        self.closest = math.inf

    def note(self, gap, scale):
        if self.active and gap.numel():
            self.closest = min(self.closest, (gap.min() / scale).item())


margins = Margins()


def relu(x):
    if margins.active:
        z = x.detach().abs()
        margins.note(z[z > 0], z.max())
    return F.relu(x)


def pool(x):
    if margins.active:
        z = x.detach()
        blocks = z.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
        best = blocks.topk(2, -1).values
        gap = (best[..., 0] - best[..., 1])
        margins.note(gap[best[..., 0] > 0], z.abs().max())
    return F.max_pool2d(x, 2)


class Esab(nn.Module):
    """[B, C, h, w] to [B, 1, h, w]."""

    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1)
        self.conv2 = nn.Conv2d(c, 1, 1)
        self.bn = nn.BatchNorm2d(c)
        self.ban = nn.BatchNorm2d(1)
        for name in ("sobel_x1", "sobel_y1"):
            gradient = nn.Conv2d(c, 1, 3, padding=1, bias=False)
            gradient.weight.requires_grad_(False)
            setattr(self, name, nn.Sequential(gradient, nn.BatchNorm2d(1)))

    def forward(self, x, fixed=False):
        gx, gy = self.sobel_x1(x), self.sobel_y1(x)
        magnitude = torch.sqrt(gx**2 + gy**2 + (1e-12 if fixed else 0.0))
        gated = torch.sigmoid(magnitude) * x
        y = x + self.conv1(relu(self.bn(gated)))
        y = self.ban(self.conv2(y))
        return y if fixed else relu(y)


class ConvPair(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b)

    def forward(self, x):
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class EdgeEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        for i, (a, b) in enumerate(((2, 64), (64, 128), (128, 256), (256, 512))):
            setattr(self, f"down{i + 1}", ConvPair(a, b))
        self.conv1, self.bn1 = nn.Conv2d(512, 1024, 3, padding=1), nn.BatchNorm2d(1024)
        for suffix, c in (("", 1), ("1", 128), ("2", 256), ("3", 512), ("4", 1024)):
            setattr(self, "up" + suffix, Esab(c))  # in checkpoints, but no output depends on them

    def forward(self, x):
        x = self.down1(x)
        e1 = self.down2(pool(x))
        e2 = self.down3(pool(e1))
        e3 = self.down4(pool(e2))
        return e1, e2, e3, relu(self.bn1(self.conv1(pool(e3))))


class ShiftedPatch(nn.Module):
    """[B, C, H, W] to [B, H/2, W/2, out]: five copies, space-to-depth, LayerNorm, Linear."""

    def __init__(self, c, out):
        super().__init__()
        self.merging = nn.Sequential(nn.Identity(), nn.LayerNorm(20 * c), nn.Linear(20 * c, out))

    def forward(self, x):
        b, c, h, w = x.shape
        padded = F.pad(x, (1, 1, 1, 1))
        copies = [padded[:, :, 1 + dr : 1 + dr + h, 1 + dc : 1 + dc + w]
                  for dr, dc in ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))]
        stacked = torch.stack(copies, 1).reshape(b, 5, c, h // 2, 2, w // 2, 2)
        return self.merging(stacked.permute(0, 3, 5, 4, 6, 1, 2).reshape(b, h // 2, w // 2, 20 * c))


class WindowAttention(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros(169, heads))
        rows, columns = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
        rows, columns = rows.flatten(), columns.flatten()
        self.register_buffer("relative_position_index", (rows[:, None] - rows[None] + 6) * 13
                             + columns[:, None] - columns[None] + 6)
        self.qkv = nn.Linear(c, 3 * c)
        self.proj = nn.Linear(c, c)

    def forward(self, x, mask):
        """x [B, windows, 49, C], mask [windows, 49, 49] or None."""
        b, windows, tokens, c = x.shape
        q, k, v = self.qkv(x).reshape(b, windows, tokens, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-1, -2) + bias.reshape(49, 49, -1).permute(2, 0, 1)
        if mask is not None:
            scores = scores + mask[:, None]
        return self.proj((scores.softmax(-1) @ v).transpose(2, 3).reshape(b, windows, tokens, c))


def to_windows(x):
    """[B, H, W, C] to [B, windows, 49, C]; H and W are multiples of 7."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 7, 7, w // 7, 7, c).transpose(2, 3).reshape(b, h * w // 49, 49, c)


def from_windows(x, h, w):
    b, _, _, c = x.shape
    return x.reshape(b, h // 7, w // 7, 7, 7, c).transpose(2, 3).reshape(b, h, w, c)


def shift_mask(h, w):
    """[windows, 49, 49]: -100 between tokens of different regions of the rolled grid."""
    def regions(extent):
        i = torch.arange(extent)
        return (i >= extent - 7).long() + (i >= extent - 3).long()

    label = to_windows((regions(h)[:, None] * 3 + regions(w)[None]).reshape(1, h, w, 1))[0, :, :, 0]
    return torch.where(label[:, :, None] != label[:, None, :], -100.0, 0.0)


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """On [B, H, W, C]. `side` of the grid at the constructor's image size 224 only sizes the unused attn_mask."""

    def __init__(self, c, heads, shifted, side):
        super().__init__()
        self.shifted = shifted
        if shifted:
            self.register_buffer("attn_mask", shift_mask(side, side))
        self.norm1 = nn.LayerNorm(c)
        self.attn = WindowAttention(c, heads)
        self.norm2 = nn.LayerNorm(c)
        self.mlp = Mlp(c)

    def forward(self, x):
        h, w = x.shape[1:3]
        y = F.pad(self.norm1(x), (0, 0, 0, -w % 7, 0, -h % 7))
        padded_h, padded_w = y.shape[1:3]
        mask = None
        if self.shifted:
            y = torch.roll(y, (-3, -3), (1, 2))
            mask = shift_mask(padded_h, padded_w).to(x.dtype)
        y = from_windows(self.attn(to_windows(y), mask), padded_h, padded_w)
        if self.shifted:
            y = torch.roll(y, (3, 3), (1, 2))
        x = x + y[:, :h, :w]
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    def __init__(self, c, heads, depth, side, merge):
        super().__init__()
        self.blocks = nn.ModuleList([SwinBlock(c, heads, j % 2 == 1, side) for j in range(depth)])
        if merge:
            self.downsample = ShiftedPatch(c, 2 * c)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = ShiftedPatch(3, 128)
        self.layers = nn.ModuleList([Stage(128 << i, 4 << i, depth, 112 >> i, i < 3)
                                     for i, depth in enumerate((2, 2, 6, 2))])
        self.norm = nn.LayerNorm(1024)  # in checkpoints, but no output depends on it
        for i in range(4):
            setattr(self, f"norm{i}", nn.LayerNorm(128 << i))

    def forward(self, image):
        x = self.patch_embed(image)
        maps = []
        for i, stage in enumerate(self.layers):
            if i:
                x = self.layers[i - 1].downsample(x.permute(0, 3, 1, 2))
            x = stage(x)
            maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2))
        return maps


class Gcn(nn.Module):
    def __init__(self, nodes, features):
        super().__init__()
        self.conv1 = nn.Conv1d(nodes, nodes, 1)
        self.conv2 = nn.Conv1d(features, features, 1, bias=False)

    def forward(self, z):
        """z [B, N, F]."""
        return relu(self.conv2((self.conv1(z) - z).transpose(1, 2)).transpose(1, 2))


class Bgcn(nn.Module):
    def __init__(self, nodes, features):
        super().__init__()
        self.gcn = Gcn(nodes, features)


class Reason(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.BGCN = Bgcn(c // 4, c // 2)
        self.conv_v, self.conv_w = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c, c // 2, 1)
        self.conv = nn.Conv2d(c // 2, c, 1)
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x, y, fixed):
        scale = 1.0 / math.sqrt(x.shape[2] * x.shape[3]) if fixed else 1.0
        v = [self.conv_v(t).flatten(2) for t in (x, y)]
        g = [(scale * v[i] @ self.conv_w(t).flatten(2).transpose(1, 2)).softmax(-1) for i, t in enumerate((x, y))]
        h = self.BGCN.gcn(g[0] + g[1])
        results = []
        for i, t in enumerate((x, y)):
            r = v[i].transpose(1, 2) @ (g[i] + h)  # [B, L, F]
            if fixed:
                r = r.transpose(1, 2)
            r = r.reshape(t.shape[0], -1, *t.shape[2:])
            results.append(t + relu(self.bn(self.conv(r))))
        return results


class DownConv(nn.Module):
    def __init__(self, c, out):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, out, 3, padding=1), nn.BatchNorm2d(out)
        self.pools = c != 1024

    def forward(self, x):
        y = relu(self.bn1(self.conv1(x)))
        return pool(y) if self.pools else y


class Fuse(nn.Module):
    def __init__(self, c, out):
        super().__init__()
        self.reason = Reason(c)
        self.down = DownConv(c, out)

    def forward(self, x, y, fixed=False):
        x, y = self.reason(x, y, fixed)
        return self.down(x), self.down(y)


class Up(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.transconv = nn.ConvTranspose2d(a, b, 4, 2, 1)
        self.conv, self.bn = nn.Conv2d(2 * b, b, 3, padding=1), nn.BatchNorm2d(b)

    def forward(self, x, skip, linear=False):
        y = self.bn(self.conv(torch.cat([self.transconv(x), skip], 1)))
        return y if linear else relu(y)


class Network(nn.Module):
    """The whole of it; its state_dict has the 617 entries of a published checkpoint, in their order."""

    def __init__(self, fixed=False):
        super().__init__()
        self.fixed = fixed
        self.cnn = EdgeEncoder()
        self.transformer = Swin()
        for i, (c, out) in enumerate(((128, 256), (256, 512), (512, 1024), (1024, 1024))):
            setattr(self, f"fusion{i + 1}", Fuse(c, out))
        for i, (a, b) in enumerate(((1024, 512), (512, 256), (256, 128), (128, 3))):
            setattr(self, f"ups{i + 1}", Up(a, b))
        for i, c in enumerate((1024, 512, 256, 128)):
            setattr(self, f"upe{i + 1}", Esab(c))

    def forward(self, semantic, edge):
        s = self.transformer(semantic)
        e = self.cnn(edge)
        a, b = self.fusion1(s[0], e[0], self.fixed)
        bs = [b]
        for i in (1, 2, 3):
            a, b = getattr(self, f"fusion{i + 1}")(a + s[i], b + e[i], self.fixed)
            bs.append(b)
        d = self.ups1(a, s[2])
        d = self.ups2(d, s[1])
        d = self.ups3(d, s[0])
        segmentation = self.ups4(d, semantic, linear=self.fixed)

        def head(esab, x, factor):
            return F.interpolate(esab(x, self.fixed), scale_factor=factor, mode="bilinear", align_corners=False)

        edges = (head(self.upe1, bs[3], 16) + head(self.upe1, bs[2], 16) + head(self.upe2, bs[1], 8)
                 + head(self.upe3, bs[0], 4) + head(self.upe4, e[0], 2))
        return segmentation, edges


# ---- which numbers

def ranges_of(module, whole, logit_scale):
    """A Range for every entry of a state_dict but the constants. `whole`: batch norms before ReLUs have far fewer
    arguments near 0 (see Choices). `logit_scale(name)`: the factor of conv_v and conv_w."""
    modules = dict(module.named_modules())
    result = {}
    for name, value in module.state_dict().items():
        owner_name, _, leaf = name.rpartition(".")
        owner, shape = modules[owner_name], value.shape
        if leaf in ("attn_mask", "relative_position_index"):
            continue
        if leaf == "relative_position_bias_table":
            result[name] = Range(shape, 0.0, 0.5)
        elif isinstance(owner, nn.LayerNorm):
            result[name] = Range(shape, 1.0, 0.3) if leaf == "weight" else Range(shape, 0.0, 0.2)
        elif isinstance(owner, nn.BatchNorm2d):
            single = shape != () and shape[0] <= 3
            if leaf == "weight":
                result[name] = Range(shape, 0.25, 0.05) if whole else Range(shape, 1.0, 0.3)
            elif leaf == "bias":
                result[name] = Range(shape, 1.0, 0.1, negate=not single) if whole else Range(shape, 0.2, 0.2)
            elif leaf == "running_mean":
                result[name] = Range(shape, 0.0, 0.1)
            elif leaf == "running_var":
                result[name] = Range(shape, 1.0, 0.3)
            else:
                result[name] = Range(shape, 500.0, 500.0)
        elif whole and owner_name.endswith("gcn.conv1") and leaf == "bias":
            result[name] = Range(shape, 10.0 / shape[0], 1.0 / shape[0], negate=True)
        elif whole and owner_name.endswith("gcn.conv2"):
            result[name] = Range(shape, 1.0 / shape[0], 0.2 * math.sqrt(3.0 / shape[0]))
        elif leaf == "bias":
            result[name] = Range(shape, 0.0, 0.1)
        else:
            # Uniform numbers within +-scale have the variance scale^2 / 3.
            transposed = isinstance(owner, nn.ConvTranspose2d)
            fan_in = shape[0] * 4 if transposed else math.prod(shape[1:])
            pair = 0
            if len(shape) == 4:
                pair = math.prod(shape[1:]) if transposed else math.prod(shape[2:])
            scale = math.sqrt(3.0 / fan_in)
            if owner_name.endswith((".conv_v", ".conv_w")):
                scale *= logit_scale(owner_name)
            result[name] = Range(shape, 0.0, scale, pair)
    return result


class Case:
    """A module with its inputs, and how fusion_2d_oracle is asked for the same."""

    def __init__(self, label, kind, module, inputs, call, training=False, settings=(), whole=False, logits=None, seed=0,
                 scope=""):
        self.label, self.kind, self.module, self.call = label, kind, module.double(), call
        self.training, self.settings, self.seed, self.scope = training, list(settings), seed, scope
        self.ranges = ranges_of(module, whole, logits or (lambda name: 1.0))
        self.inputs = {f"input.{name}": Range(shape, 0.0, math.sqrt(3.0)) for name, shape in inputs.items()}

    def values(self, name, range_):
        return torch.from_numpy(range_.values(self.seed, name))

    def load(self, buffers_only=False):
        state = self.module.state_dict()
        wanted = {n: r for n, r in self.ranges.items() if not buffers_only or re.search(r"\.(running_|num_batches)", n)}
        for name, range_ in wanted.items():
            state[name].copy_(self.values(name, range_))

    def calibrate(self, dtype=torch.float64):
        """In evaluation, batch norms divide by running statistics that have the size of what they see."""
        variances = {}

        def note(name):
            def hook(_, inputs):
                variances.setdefault(name, inputs[0].var((0, 2, 3)).mean().item())
            return hook

        handles = [m.register_forward_pre_hook(note(name)) for name, m in self.module.named_modules()
                   if isinstance(m, nn.BatchNorm2d)]
        self.module.train()
        with torch.no_grad():
            self.call(self.module, *[self.values(n, r).to(dtype) for n, r in self.inputs.items()])
        for handle in handles:
            handle.remove()
        for name, variance in variances.items():
            # A power of two: the last digits of a PyTorch version do not decide which numbers are tested.
            size = 2.0 ** round(math.log2(variance))
            for leaf, offset, scale in (("running_mean", 0.0, 0.1 * math.sqrt(size)), ("running_var", size, 0.3 * size)):
                self.ranges[f"{name}.{leaf}"] = Range(self.ranges[f"{name}.{leaf}"].shape, offset, scale)

    def prepare(self):
        """Everything but the images and the gradients of outputs."""
        self.load()
        if not self.training:
            self.calibrate()

    def run(self, dtype):
        """Everything that is compared, as arrays."""
        self.load(buffers_only=True)
        self.module.to(dtype)
        self.module.train(self.training)
        self.module.zero_grad(set_to_none=True)
        inputs = {n: self.values(n, r).to(dtype).requires_grad_() for n, r in self.inputs.items()}
        outputs = self.call(self.module, *inputs.values())
        self.cotangents = {f"cotangent.{i}": Range(y.shape, 0.25, math.sqrt(3.0)) for i, y in enumerate(outputs)}
        cotangents = [self.values(n, r).to(dtype) for n, r in self.cotangents.items()]
        torch.autograd.backward(outputs, cotangents)
        result = {f"output.{i}": y.detach().numpy() for i, y in enumerate(outputs)}
        result.update({f"grad.{n}": x.grad.numpy() for n, x in inputs.items()})
        for name, p in self.module.named_parameters():
            result[f"grad.{name}"] = (p.grad if p.grad is not None else torch.zeros_like(p)).detach().numpy()
            p.grad = None
        if self.training:
            for name, value in self.module.named_buffers():
                if not name.endswith(("attn_mask", "relative_position_index")):
                    result[f"after.{name}"] = value.numpy().copy()
        self.module.double()
        return result

    def ours(self, program, device):
        """The same from fusion_2d_oracle, tensor by tensor: name, array."""
        command = [program, device, self.kind, f"seed={self.seed}", f"training={int(self.training)}", *self.settings]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        lines = "".join(r.line(n) for n, r in {**self.ranges, **self.inputs, **self.cotangents}.items())
        process.stdin.write(lines.encode())
        process.stdin.close()
        while header := process.stdout.readline().decode().split():
            name, shape = header[0], [int(extent) for extent in header[1:]]
            data = process.stdout.read(4 * math.prod(shape))
            yield name, np.frombuffer(data, np.float32).reshape(shape)
        if process.wait() != 0:
            sys.exit(f"{self.label}: {' '.join(command)} failed")


# ---- comparison

# Gradients that are zero in exact arithmetic: in training a batch norm subtracts what a bias before it adds. Those of
# ESAB's conv1 are one constant more before its last norm. (In front of a 3x3 convolution, zero padding breaks this.)
BEFORE_BATCH_NORM = re.compile(
    r"(^|\.)(down[1-4]\.conv[12]|cnn\.conv1|reason\.conv|down\.conv1|ups[1-4]\.conv|upe[1-4]\.conv[12])\.bias$")


class Table:
    def __init__(self):
        self.rows = []
        self.failures = 0
        self.tensors = 0

    def add(self, case, program, device, runs):
        begin = time.time()
        case.prepare()
        margins.active, margins.closest = True, math.inf
        exact = case.run(torch.float64)
        margins.active = False
        peers = []
        for run in range(runs):
            with torch.backends.mkldnn.flags(enabled=run % 2 == 0):
                torch.set_num_threads(2 - run // 2 % 2)
                peers.append(case.run(torch.float32))
        torch.set_num_threads(2)
        peer_seconds = time.time() - begin
        worst = (-1.0, "", 0.0, 0.0, 0.0)
        absolute = (0.0, "")
        beyond = [0, 0]  # tensors of ours and of PyTorch's float32 that differ by more than 1e-4
        names = set()
        for name, value in case.ours(program, device):
            names.add(name)
            reference = exact[name].astype(np.float64)
            if value.shape != reference.shape:
                sys.exit(f"{case.label}: {name}: found shape {value.shape}, expected {reference.shape}")
            norm = np.linalg.norm(reference.ravel())
            error, *own = [np.linalg.norm((found.astype(np.float64) - reference).ravel())
                           for found in (value, *(peer[name] for peer in peers))]
            is_zero = self.is_zero(case, name)
            if is_zero or norm == 0.0:
                sibling = exact.get(re.sub(r"\.bias$", ".weight", name))
                norm = np.linalg.norm(sibling.ravel()) if is_zero and sibling is not None else 1.0
            error, own = error / norm, max(own, default=0.0) / norm
            limit = max(1e-4, 2.0 * own)
            self.tensors += 1
            if is_zero:
                absolute = max(absolute, (error, name))
            beyond[0] += not error <= 1e-4
            beyond[1] += own > 1e-4
            if not error <= limit:
                self.failures += 1
                print(f"{case.label}: {name} differs by {error:.2e}, PyTorch's float32 by {own:.2e}, allowed {limit:.2e}")
            if not is_zero and not error / limit <= worst[0]:
                worst = (error / limit, name, error, own, limit)
        missing = set(exact) - names
        if missing:
            self.failures += len(missing)
            print(f"{case.label}: no numbers for {sorted(missing)[:3]}")
        self.rows.append((case.label, len(names), worst, absolute, margins.closest))
        print(f"# {case.label}, seed {case.seed}: {len(names)} tensors, {beyond[0]} beyond 1e-4, of PyTorch's float32 "
              f"{beyond[1] if runs else '-'}; closest decision {margins.closest:.1e}, "
              f"{peer_seconds:.0f} s PyTorch, {time.time() - begin:.0f} s in all", flush=True)

    @staticmethod
    def is_zero(case, name):
        return case.training and name.startswith("grad.") and bool(BEFORE_BATCH_NORM.search(case.scope + name[5:]))

    def report(self):
        print("\n| case | tensors | worst tensor | ours | PyTorch f32 | limit | zero gradients | closest decision |")
        print("|---|---|---|---|---|---|---|---|")
        for label, count, (_, name, error, own, limit), absolute, closest in self.rows:
            zero = f"{absolute[0]:.1e}" if absolute[1] else "-"
            peer = f"{own:.1e}" if own > 0.0 else "-"
            print(f"| {label} | {count} | {name} | {error:.1e} | {peer} | {limit:.1e} | {zero} | {closest:.1e} |")
        print(f"\n{self.tensors} tensors compared, {self.failures} differ")
        return 1 if self.failures or self.tensors == 0 else 0


# ---- cases

def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


def block_cases():
    cases = []

    def add(label, kind, make, inputs, call, modes=(False, True), **more):
        for training in modes:
            suffix = (", training" if training else ", evaluation") if len(modes) > 1 else ""
            cases.append(Case(label + suffix, kind, make(), inputs, call, training, **more))

    add("SPT embedding", "shifted_patch", lambda: ShiftedPatch(3, 128), {"x": (2, 3, 14, 10)}, lambda m, x: (nchw(m(x)),),
        modes=(False,), settings=("in=3", "out=128"))
    add("SPT merging", "shifted_patch", lambda: ShiftedPatch(32, 64), {"x": (2, 32, 12, 8)}, lambda m, x: (nchw(m(x)),),
        modes=(False,), settings=("in=32", "out=64"))
    for shifted in (False, True):
        # 10 x 9 tokens are padded to 14 x 14: four windows, padding in three of them, and all nine regions of the mask.
        for side in ((10, 9), (4, 2)):
            add(f"Swin block on {side[0]} x {side[1]}{', shifted' if shifted else ''}", "swin_block",
                lambda shifted=shifted: SwinBlock(64, 2, shifted, 112), {"x": (2, 64, *side)},
                lambda m, x: (nchw(m(nhwc(x))),), modes=(False,),
                settings=("channels=64", "heads=2", f"shifted={int(shifted)}"))
    for training, seed in ((False, 17), (True, 3)):  # seeds for a wide closest decision
        add(f"edge encoder, {'training' if training else 'evaluation'}", "edge_encoder", EdgeEncoder, {"x": (2, 2, 32, 32)},
            lambda m, x: m(x), modes=(training,), whole=True, seed=seed, scope="cnn.")
    for head in ("relu", "linear"):
        add(f"ESAB, {head} head", "esab", lambda: Esab(32), {"x": (2, 32, 12, 10)},
            lambda m, x, head=head: (m(x, head == "linear"),), settings=("channels=32", f"head={head}"), scope="upe1.")
        add(f"Up, {head} head", "up", lambda: Up(32, 16), {"x": (2, 32, 6, 5), "skip": (2, 16, 12, 10)},
            lambda m, x, skip, head=head: (m(x, skip, head == "linear"),), settings=("in=32", "out=16", f"head={head}"),
            scope="ups1.")
    for layout in ("original", "fixed"):
        scale = 1.0 if layout == "fixed" else 120**-0.25
        add(f"MFIB, {layout} layout", "mfib", lambda: Fuse(64, 96), {"x": (2, 64, 10, 12), "y": (2, 64, 10, 12)},
            lambda m, x, y, layout=layout: m(x, y, layout == "fixed"),
            settings=("channels=64", "out=96", f"layout={layout}"), logits=lambda name, scale=scale: scale, scope="fusion1.")
    return cases


def network_case(mode, size, batch=None, seed=None):
    preset, training, usual_batch, usual_seed = MODES[mode]
    batch = usual_batch if batch is None else batch
    seed = usual_seed if seed is None else seed
    fixed = preset == "fusion-2d-fixed"

    def logits(name):
        level = int(name[len("fusion")])
        return 1.3 if fixed else 1.3 * (size >> level) ** -0.5

    return Case(f"{preset} at {size} x {size}, {'training' if training else 'evaluation'}", "network", Network(fixed),
                {"semantic": (batch, 3, size, size), "edge": (batch, 2, size, size)}, lambda m, x, y: m(x, y), training,
                settings=(f"preset={preset}",), whole=True, logits=logits, seed=seed)


# Preset, training, batch, and the seed of images whose closest decision is wide at 32 x 32 (`margins`).
MODES = {"evaluation": ("fusion-2d", False, 1, 5), "training": ("fusion-2d", True, 2, 1),
         "fixed": ("fusion-2d-fixed", True, 2, 10)}


def find_margins(size, batch, first, count, mode):
    """The closest decision for images of different seeds; in float32, which is exact enough to choose by."""
    case = network_case(mode, size, batch, first)
    case.load()
    case.module.float()
    for case.seed in range(first, first + count):
        if not case.training:
            case.calibrate(torch.float32)
        case.load(buffers_only=True)
        case.module.train(case.training)
        margins.active, margins.closest = True, math.inf
        with torch.no_grad():
            case.call(case.module, *[case.values(n, r) for n, r in case.inputs.items()])
        margins.active = False
        print(f"{mode} {case.seed}: {margins.closest:.1e}", flush=True)


# ---- files

def read_safetensors(path):
    """name to tensor; the format is a length, a JSON header, and the numbers."""
    types = {"F32": np.float32, "I64": np.int64}
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = np.frombuffer(data[begin:end], types[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = torch.from_numpy(numbers.copy())
    return tensors


def check_checkpoints(program, folder):
    """Checkpoints as the authors' code writes them load strictly into fusion-2d, and what it writes loads strictly here."""
    case = network_case("evaluation", 32, seed=0)
    case.load()
    state = case.module.float().state_dict()
    ranges = "".join(r.line(n) for n, r in case.ranges.items()).encode()
    failures = 0

    def expect(good, what):
        nonlocal failures
        if not good:
            failures += 1
            print("differs:", what)

    def run(*arguments):
        return subprocess.run([program, "cpu", *arguments, "seed=0"], input=ranges, capture_output=True)

    listed = run("entries").stdout.decode().splitlines()
    wanted = [" ".join([name, *map(str, value.shape)]) for name, value in state.items()]
    expect(listed == wanted, f"the {len(listed)} entries of the program are not the state_dict's {len(wanted)}, in order")

    optimizer = {"state": {0: {"step": 7, "exp_avg": torch.ones(64, 2, 3, 3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    wrapped = {"epoch": 99, "state_dict": {"module." + name: value for name, value in state.items()}, "optim_dict": optimizer}
    path, out = os.path.join(folder, "fusion_2d.pth"), os.path.join(folder, "fusion_2d.safetensors")
    for label, content in (("bare state_dict", state), ("2024 checkpoint", wrapped)):
        torch.save(content, path)
        result = run("import", path, out)
        print(f"{label}: {(result.stdout or result.stderr).decode().strip()}")
        expect(result.returncode == 0 and result.stdout == b"599 tensors equal, 18 constants, 129525884 parameters\n", label)
    exported = read_safetensors(out)
    other = Network()
    other.load_state_dict(exported, strict=True)
    for name, value in other.state_dict().items():
        expect(value.dtype == state[name].dtype and torch.equal(value, state[name]), f"{name} after the way back")
    print(f"way back: {len(exported)} tensors loaded strictly")

    def refused(label, change, *messages):
        changed = dict(state)
        change(changed)
        torch.save(changed, path)
        result = run("import", path, out)
        text = result.stderr.decode().strip()
        print(f"{label}: {text.replace(folder + os.sep, '')}")
        expect(result.returncode == 1 and text.count("\n") == 0 and all(m in text for m in messages), label)

    index = "transformer.layers.0.blocks.0.attn.relative_position_index"
    refused("without one tensor, with another", lambda s: s.update({"ups5.bn.bias": s.pop("ups4.bn.bias")}),
            "ups4.bn.bias", "ups5.bn.bias")
    refused("with another index", lambda s: s.update({index: s[index].flip(0)}), index)
    os.remove(path)
    os.remove(out)
    print(f"{failures} differences")
    return 1 if failures else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("blocks", "network", "checkpoints", "margins"))
    parser.add_argument("program", nargs="?")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--only", default=",".join(MODES))
    options = parser.parse_args()
    if options.what == "margins":
        return find_margins(options.size, options.batch, options.seed or 0, options.count, options.only)
    if options.what == "checkpoints":
        sys.exit(check_checkpoints(options.program, options.folder))
    table = Table()
    if options.what == "blocks":
        for case in block_cases():
            table.add(case, options.program, options.device, options.runs)
    else:
        for mode in options.only.split(","):
            case = network_case(mode, options.size, options.batch, options.seed)
            table.add(case, options.program, options.device, options.runs)
    sys.exit(table.report())


main()
