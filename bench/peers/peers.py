#!/usr/bin/env python3
"""What the kernels' benchmarks measure, once more in PyTorch.

    peers.py --threads N

Reads one request a line from standard input and answers each with one line of JSON:
    {"operation": "conv3d_forward", "parameters": {...}, "device": "cpu", "min_time": 0.3}
    {"milliseconds": {"channels_last": 1.9, "contiguous": 2.4}}
with a time for every way in which PyTorch can do it, or {"missing": true} for an operation that has no peer here.

A peer is a function below under @peer(OPERATION, ...): it gets the benchmark's parameters and yields Ways. A Way holds the
tensors that gradients flow to, and the function of them. OPERATION_forward is timed without recording;
OPERATION_backward is the gradient of all inputs of the way; OPERATION_backward_NAME that of the inputs which the way
lists under NAME.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
import time
import warnings
from typing import Callable

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    sys.exit(f"peers.py: {error}")

PEERS = {}


def peer(*operations):
    def register(function):
        for operation in operations:
            PEERS[operation] = function
        return function

    return register


@dataclasses.dataclass
class Way:
    name: str
    inputs: dict  # name: tensor
    function: Callable  # of the inputs, in their order
    parts: dict = dataclasses.field(default_factory=dict)  # NAME of a backward pass: the inputs it is about


class Maker:
    """Tensors on the request's device."""

    def __init__(self, device):
        self.device = device

    def normal(self, *shape):
        return torch.randn(*shape, device=self.device)

    def labels(self, below, *shape):
        return torch.randint(below, shape, device=self.device)


# Volumes [n, c, d, h, w] in memory as the kernels have them, and as PyTorch does by default.
VOLUMES = {"channels_last": torch.channels_last_3d, "contiguous": torch.contiguous_format}


def activation(name):
    return {
        "none": lambda x: x,
        "relu": F.relu,
        "leaky_relu": F.leaky_relu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "hardswish": F.hardswish,
        "elu": F.elu,
        "sigmoid": torch.sigmoid,
    }[name]


@peer("conv3d_forward", "conv3d_backward_data", "conv3d_backward_weight")
def conv3d(p, make):
    shape = p["n"], p["c_in"], p["d"], p["h"], p["w"]
    weights = p["c_out"], p["c_in"] // p["groups"], *p["kernel"]
    settings = {name: p[name] for name in ("stride", "padding", "dilation", "groups")}
    for name, layout in VOLUMES.items():
        yield Way(
            name,
            {
                "x": make.normal(*shape).contiguous(memory_format=layout),
                "weight": make.normal(*weights).contiguous(memory_format=layout),
                "bias": make.normal(p["c_out"]),
            },
            lambda x, weight, bias: F.conv3d(x, weight, bias, **settings),
            {"data": ["x"], "weight": ["weight", "bias"]},
        )


@peer("conv_transpose3d_forward", "conv_transpose3d_backward_data", "conv_transpose3d_backward_weight")
def conv_transpose3d(p, make):
    shape = p["n"], p["c_in"], p["d"], p["h"], p["w"]
    weights = p["c_in"], p["c_out"] // p["groups"], *p["kernel"]
    settings = {name: p[name] for name in ("stride", "padding", "output_padding", "dilation", "groups")}
    for name, layout in VOLUMES.items():
        yield Way(
            name,
            {
                "x": make.normal(*shape).contiguous(memory_format=layout),
                "weight": make.normal(*weights).contiguous(memory_format=layout),
                "bias": make.normal(p["c_out"]),
            },
            lambda x, weight, bias: F.conv_transpose3d(x, weight, bias, **settings),
            {"data": ["x"], "weight": ["weight", "bias"]},
        )


@peer("gemm", "gemm_backward_a", "gemm_backward_b")
def gemm(p, make):
    def operand(layout, rows, columns, transposed):
        outer_stride, inner_stride, row_stride = layout
        if transposed:
            rows, columns = columns, rows
        extent = ((p["outer"] - 1) * outer_stride + (p["inner"] - 1) * inner_stride + (rows - 1) * row_stride + columns)
        strides = outer_stride, inner_stride, row_stride, 1
        view = make.normal(extent).as_strided((p["outer"], p["inner"], rows, columns), strides)
        return view.transpose(2, 3) if transposed else view

    a = operand(p["a"], p["m"], p["k"], p["transpose_a"])
    b = operand(p["b"], p["k"], p["n"], p["transpose_b"])
    alpha, parts = p["alpha"], {"a": ["a"], "b": ["b"]}
    if p["outer"] * p["inner"] == 1:
        a, b = a[0, 0], b[0, 0]
    else:
        none = make.normal(1)

        def batched(a, b):
            return torch.baddbmm(none, a.flatten(0, 1), b.flatten(0, 1), beta=0, alpha=alpha)

        yield Way("baddbmm", {"a": a, "b": b}, batched, parts)
    yield Way("matmul", {"a": a, "b": b}, lambda a, b: a @ b if alpha == 1 else (a @ b).mul_(alpha), parts)


@peer("linear_forward", "linear_backward_data", "linear_backward_weight")
def linear(p, make):
    act = activation(p["activation"])
    yield Way(
        "linear",
        {
            "x": make.normal(p["rows"], p["in"]),
            "weight": make.normal(p["out"], p["in"]),
            "bias": make.normal(p["out"]),
        },
        lambda x, weight, bias: act(F.linear(x, weight, bias)),
        {"data": ["x"], "weight": ["weight", "bias"]},
    )


@peer("layer_norm_forward", "layer_norm_backward")
def layer_norm(p, make):
    c = p["channels"]
    yield Way(
        "layer_norm",
        {"x": make.normal(p["rows"], c), "gamma": make.normal(c), "beta": make.normal(c)},
        lambda x, gamma, beta: F.layer_norm(x, (c,), gamma, beta),
    )


def volume(p):
    """[n, channels, d, h, w] for a case that knows its number of voxels only."""
    side = round(p["spatial"] ** (1 / 3))
    grid = (side, side, side) if side**3 == p["spatial"] else (p["spatial"], 1, 1)
    return p["n"], p["channels"], *grid


def norm_ways(p, make, function):
    act = activation(p["activation"])
    for name, layout in VOLUMES.items():
        inputs = {"x": make.normal(*volume(p)).contiguous(memory_format=layout)}
        if p["affine"]:
            inputs |= {"gamma": make.normal(p["channels"]), "beta": make.normal(p["channels"])}
        yield Way(name, inputs, lambda x, gamma=None, beta=None: act(function(x, gamma, beta)))


@peer("instance_norm_forward", "instance_norm_backward")
def instance_norm(p, make):
    return norm_ways(p, make, lambda x, gamma, beta: F.instance_norm(x, weight=gamma, bias=beta))


@peer("group_norm_forward", "group_norm_backward")
def group_norm(p, make):
    return norm_ways(p, make, lambda x, gamma, beta: F.group_norm(x, p["groups"], gamma, beta))


@peer("batch_norm_forward", "batch_norm_backward")
def batch_norm(p, make):
    mean = torch.zeros(p["channels"], device=make.device)
    var = torch.ones(p["channels"], device=make.device)
    return norm_ways(
        p, make, lambda x, gamma, beta: F.batch_norm(x, mean, var, gamma, beta, training=p["training"])
    )


@peer("unary_forward", "unary_backward")
def unary(p, make):
    yield Way("unary", {"x": make.normal(p["n"], p["spatial"], p["channels"])}, activation(p["activation"]))


@peer("fill")
def fill(p, make):
    y = make.normal(p["n"], p["spatial"], p["channels"])
    yield Way("fill_", {}, lambda: y.fill_(1))


@peer("add", "multiply", "scale_add")
def binary(p, make, operation):
    shape = p["n"], p["spatial"], p["channels"]
    a, b, y = make.normal(*shape), make.normal(*shape), make.normal(*shape)
    yield Way(
        operation,
        {},
        {
            "add": lambda: torch.add(a, b, out=y),
            "multiply": lambda: torch.mul(a, b, out=y),
            "scale_add": lambda: y.mul_(0.5).add_(a, alpha=0.5),
        }[operation],
    )


@peer("scaled_add_forward", "scaled_add_backward")
def scaled_add(p, make, operation):
    shape = p["n"], p["spatial"], p["channels"]
    a = make.normal(*shape)
    yield Way(
        "eager",
        {"b": make.normal(*shape), "scale": make.normal(1)},
        lambda b, scale: torch.addcmul(a, scale, b),
    )


@peer("dropout")
def dropout(p, make):
    x = make.normal(p["n"], p["spatial"], p["channels"])
    yield Way("dropout", {}, lambda: F.dropout(x, 0.1, training=True))


@peer("dropout_channels")
def dropout_channels(p, make):
    for name, layout in VOLUMES.items():
        x = make.normal(*volume(p)).contiguous(memory_format=layout)
        yield Way(name, {}, lambda x=x: F.dropout3d(x, 0.1, training=True))


@peer("add_sample_vector")
def add_sample_vector(p, make):
    x, v = make.normal(p["n"], p["spatial"], p["channels"]), make.normal(p["n"], 1, p["channels"])
    yield Way("add", {}, lambda: x + v)


@peer("softmax_forward", "softmax_backward")
def softmax(p, make):
    yield Way("softmax", {"x": make.normal(p["rows"], p["channels"])}, lambda x: F.softmax(x, -1))


@peer("window_attention_forward", "window_attention_backward")
def window_attention(p, make):
    grid, window, shift, heads, dim = (p["d"], p["h"], p["w"]), p["window"], p["shift"], p["heads"], p["head_dim"]
    n, tokens = p["n"], math.prod(window)
    padded = [-(-extent // size) * size for extent, size in zip(grid, window)]
    counts = [extent // size for extent, size in zip(padded, window)]
    offsets = torch.stack(torch.meshgrid(*[torch.arange(size) for size in window], indexing="ij"), -1).view(-1, 3)
    relative = offsets[:, None] - offsets[None] + torch.tensor(window) - 1
    index = ((relative[..., 0] * (2 * window[1] - 1) + relative[..., 1]) * (2 * window[2] - 1) + relative[..., 2])
    index = index.flatten().to(make.device)

    def windows_of(volume):
        """[b, padded..., c] to [b * windows, tokens, c]."""
        b, c = volume.shape[0], volume.shape[-1]
        volume = volume.view(b, counts[0], window[0], counts[1], window[1], counts[2], window[2], c)
        return volume.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, tokens, c)

    # Tokens of one window see each other within a region of the rolled grid; padding is a region of its own.
    region = torch.zeros(1, *padded, 1)
    parts = []
    for size, w, s in zip(padded, window, shift):
        parts.append([slice(0, size - w), slice(size - w, size - s), slice(size - s, size)] if s else [slice(0, size)])
    for number, (d, h, w) in enumerate(itertools.product(*parts)):
        region[:, d, h, w] = number
    if p["masked"]:
        real = torch.zeros(1, *padded, 1)
        real[:, : grid[0], : grid[1], : grid[2]] = 1
        real = real.roll([-s for s in shift], (1, 2, 3))
        region = torch.where(real > 0, region, torch.full_like(region, -1))
    region = windows_of(region).squeeze(-1)
    mask = None
    if region.unique().numel() > 1:
        mask = torch.where(region[:, :, None] == region[:, None], 0.0, -math.inf).to(make.device)
        mask = mask.repeat(n, 1, 1).unsqueeze(1)
    table = make.normal(math.prod(2 * size - 1 for size in window), heads)
    qkv = make.normal(n, *grid, 3 * heads * dim)
    padding = [extent for pair in zip(reversed(padded), reversed(grid)) for extent in (0, pair[0] - pair[1])]

    def attention(core):
        def function(qkv, table):
            if any(padding):
                qkv = F.pad(qkv, [0, 0, *padding])
            if any(shift):
                qkv = qkv.roll([-s for s in shift], (1, 2, 3))
            q, k, v = windows_of(qkv).view(-1, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
            bias = table[index].view(tokens, tokens, heads).permute(2, 0, 1).unsqueeze(0)
            if mask is not None:
                bias = bias + mask
            out = core(q, k, v, bias).transpose(1, 2).reshape(n, *counts, *window, heads * dim)
            out = out.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(n, *padded, heads * dim)
            if any(shift):
                out = out.roll(shift, (1, 2, 3))
            return out[:, : grid[0], : grid[1], : grid[2]].contiguous()

        return function

    def composed(q, k, v, bias):
        return F.softmax((q * p["scale"]) @ k.transpose(-2, -1) + bias, -1) @ v

    yield Way("composed", {"qkv": qkv, "table": table}, attention(composed))
    # Its `scale` came with 2.1; where the scale is the usual one, none is needed.
    if hasattr(F, "scaled_dot_product_attention"):
        factor = p["scale"] * math.sqrt(dim)

        def fused(q, k, v, bias):
            return F.scaled_dot_product_attention(q * factor if abs(factor - 1) > 1e-3 else q, k, v, bias)

        yield Way("sdpa", {"qkv": qkv, "table": table}, attention(fused))


@peer("attention_forward", "attention_backward")
def attention(p, make):
    n, queries, keys, heads, dim = p["n"], p["queries"], p["keys"], p["heads"], p["head_dim"]
    if p["fused"]:
        inputs = {"qkv": make.normal(n, queries, 3, heads, dim)}
    else:
        inputs = {name: make.normal(n, count, heads, dim) for name, count in (("q", queries), ("k", keys), ("v", keys))}
    if p["axial"]:
        inputs["axial"] = make.normal(n, queries, heads, sum(p["key_grid"]))

    def attention(core):
        def function(*tensors):
            q, k, v = tensors[0].unbind(2) if p["fused"] else tensors[:3]
            bias = None
            if p["axial"]:
                planes, lines, columns = tensors[-1].transpose(1, 2).split(p["key_grid"], -1)
                bias = planes[..., :, None, None] + lines[..., None, :, None] + columns[..., None, None, :]
                bias = bias.flatten(-3)
            out = core(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias)
            return out.transpose(1, 2).contiguous()

        return function

    def composed(q, k, v, bias):
        scores = (q * p["scale"]) @ k.transpose(-2, -1)
        return F.softmax(scores if bias is None else scores + bias, -1) @ v

    yield Way("composed", inputs, attention(composed))
    if hasattr(F, "scaled_dot_product_attention"):  # the cases' scale is its default
        yield Way("sdpa", inputs, attention(F.scaled_dot_product_attention))


@peer("relative_position_forward", "relative_position_backward")
def relative_position(p, make):
    n, heads, dim, grid = p["n"], p["heads"], p["head_dim"], p["query_grid"]
    inputs = {"q": make.normal(n, *grid, heads, dim)}
    axes = []
    for letter, places, keys, present in zip("zyx", grid, p["key_grid"], p["tables"]):
        forth, back = max(keys // places, 1), max(places // keys, 1)
        rows = torch.arange(places)[:, None] * forth + (keys - 1 - torch.arange(keys)) * back
        axes.append((letter, keys, rows.to(make.device) if present else None))
        if present:
            inputs[letter] = make.normal(2 * max(places, keys) - 1, dim)

    def function(q, *tables):
        tables, parts = list(tables), []
        for letter, keys, rows in axes:
            if rows is None:
                parts.append(q.new_zeros(n, *grid, heads, keys))
            else:
                parts.append(torch.einsum(f"nzyxhc,{letter}kc->nzyxhk", q, tables.pop(0)[rows]))
        return torch.cat(parts, -1)

    yield Way("einsum", inputs, function)


@peer("rotary_forward", "rotary_backward")
def rotary(p, make):
    n, tokens, heads, dim, axes = p["n"], p["tokens"], p["heads"], p["head_dim"], p["axes"]
    pairs, excluded = dim // (2 * axes), p["excluded"]
    frequency = p["theta"] ** (-torch.arange(pairs) / pairs)
    places = torch.meshgrid(*(torch.arange(extent) for extent in p["grid"]), indexing="ij")[::-1]
    angle = torch.cat([place.flatten()[:, None] * frequency for place in places[:axes]], -1).to(make.device)
    angle = angle.repeat((tokens - excluded) // angle.shape[0], 1)[:, None]
    turn, cosine, sine = torch.polar(torch.ones_like(angle), angle), angle.cos(), angle.sin()

    def turned(x, core):
        # The benchmarks' heads have no channels beside the pairs.
        result = core(x[:, : tokens - excluded].unflatten(-1, (axes * pairs, 2))).flatten(-2)
        return torch.cat([result, x[:, tokens - excluded :]], 1) if excluded else result

    def composed(x):
        first, second = x.unbind(-1)
        return torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1)

    x = {"x": make.normal(n, tokens, heads, dim)}
    yield Way("complex", x, lambda x: turned(x, lambda x: torch.view_as_real(torch.view_as_complex(x) * turn)))
    yield Way("composed", x, lambda x: turned(x, composed))


@peer("shifted_patch_forward", "shifted_patch_backward")
def shifted_patch(p, make):
    n, groups, c, size = p["n"], p["groups"], p["channels"], p["patch"]
    grid = p["d"], p["h"], p["w"]
    features = len(p["directions"]) * math.prod(size) * c
    reach = p["shift"]
    margins = [reach[axis] for axis in (2, 2, 1, 1, 0, 0)]

    def function(x, gamma, beta, weight, bias):
        border = F.pad(x, [0, 0, 0, 0, *margins])
        copies = []
        for direction in p["directions"]:
            begin = [r + r * step for r, step in zip(reach, direction)]
            d, h, w = (slice(b, b + extent) for b, extent in zip(begin, grid))
            copies.append(border[:, d, h, w])
        stacked = torch.stack(copies, -2)  # n, d, h, w, groups, copies, c
        cells = [part for extent, s in zip(grid, size) for part in (extent // s, s)]
        blocks = stacked.view(n, *cells, groups, -1)
        tokens = blocks.permute(7, 0, 1, 3, 5, 2, 4, 6, 8).reshape(groups, -1, features)
        normal = F.layer_norm(tokens, (features,)) * gamma.unsqueeze(1) + beta.unsqueeze(1)
        return torch.baddbmm(bias.unsqueeze(1), normal, weight.transpose(1, 2)).sum(0)

    yield Way(
        "composed",
        {
            "x": make.normal(n, *grid, groups, c),
            "gamma": make.normal(groups, features),
            "beta": make.normal(groups, features),
            "weight": make.normal(groups, p["out"], features),
            "bias": make.normal(groups, p["out"]),
        },
        function,
    )


def grid_graph(p, make):
    """The graph that graph_build makes of these features, as a sorted COO index [2, edges]."""
    grid, per_sample, edges = (p["d"], p["h"], p["w"]), p["d"] * p["h"] * p["w"], []
    numbers = torch.arange(per_sample).view(grid)
    for sample in range(p["n"]):
        nodes = make.normal(per_sample, p["features"])
        pairs = [torch.stack([numbers.flatten(), numbers.flatten()])]
        for axis in range(3):
            low = numbers.narrow(axis, 0, grid[axis] - 1).flatten()
            high = numbers.narrow(axis, 1, grid[axis] - 1).flatten()
            pairs += [torch.stack([low, high]), torch.stack([high, low])]
        nearest = torch.cdist(nodes, nodes).topk(p["neighbours"] + 1, largest=False).indices[:, 1:].cpu()
        mine = torch.stack([numbers.flatten().repeat_interleave(p["neighbours"]), nearest.flatten()])
        pairs += [mine, mine.flip(0)]
        edges.append(torch.cat(pairs, 1) + sample * per_sample)
    return torch.cat(edges, 1).unique(dim=1).to(make.device)


@peer("graph_build")
def graph_build(p, make):
    features = make.normal(p["n"], p["d"] * p["h"] * p["w"], p["features"])
    # The search alone; what follows (symmetry, neighbours in the grid, sorted rows) PyTorch has no kernel for.
    yield Way(
        "cdist_topk", {}, lambda: torch.cdist(features, features).topk(p["neighbours"] + 1, largest=False).indices
    )


@peer(
    "graph_symmetric_weights_forward",
    "graph_attention_scores_forward",
    "graph_segment_softmax_forward",
    "graph_segment_softmax_backward",
)
def graph_edges(p, make, operation):
    index = grid_graph(p, make)
    rows, columns = index
    nodes, edges = int(rows.max()) + 1, rows.numel()
    types = make.labels(3, edges)
    values = make.normal(edges)

    def symmetric(theta):
        weights = theta.exp()[types]
        degrees = torch.zeros(nodes, device=make.device).index_add(0, rows, weights).rsqrt()
        return weights * degrees[rows] * degrees[columns]

    def scores(a, b, theta):
        return F.leaky_relu(a[rows] + b[columns] + theta[types], 0.2)

    def segment_softmax(values):
        return torch.sparse.softmax(torch.sparse_coo_tensor(index, values, (nodes, nodes)).coalesce(), 1)

    def gathered_softmax(values):
        largest = torch.full((nodes,), -math.inf, device=make.device).scatter_reduce(0, rows, values.detach(), "amax")
        weights = (values - largest[rows]).exp()
        return weights / torch.zeros(nodes, device=make.device).index_add(0, rows, weights)[rows]

    if operation == "graph_symmetric_weights_forward":
        yield Way("gather", {"theta": make.normal(3)}, symmetric)
    elif operation == "graph_attention_scores_forward":
        yield Way("gather", {"a": make.normal(nodes), "b": make.normal(nodes), "theta": make.normal(3)}, scores)
    else:
        yield Way("gather", {"values": values}, gathered_softmax)
        if operation.endswith("forward"):
            yield Way("sparse", {"values": values}, segment_softmax)


@peer("graph_spmm", "graph_spmm_transposed", "graph_sddmm")
def graph_products(p, make, operation):
    index = grid_graph(p, make)
    nodes = int(index[0].max()) + 1
    dense = make.normal(nodes, p["features"])
    matrix = torch.sparse_coo_tensor(index, make.normal(index.shape[1]), (nodes, nodes)).coalesce()
    if operation == "graph_spmm_transposed":
        matrix = matrix.t().coalesce()
    csr = matrix.to_sparse_csr()
    if operation == "graph_sddmm":
        other = make.normal(nodes, p["features"])
        yield Way("gather", {}, lambda: (dense[index[0]] * other[index[1]]).sum(-1))
        # On the CPU only in builds with MKL.
        yield Way("sampled_addmm", {}, lambda: torch.sparse.sampled_addmm(csr, dense, other.t(), beta=0.0))
    else:
        yield Way("csr", {}, lambda: csr @ dense)
        yield Way("coo", {}, lambda: torch.sparse.mm(matrix, dense))


@peer("max_pool3d_forward", "max_pool3d_backward", "avg_pool3d_forward", "avg_pool3d_backward")
def pooling(p, make, operation):
    function = F.max_pool3d if operation.startswith("max") else F.avg_pool3d
    for name, layout in VOLUMES.items():
        x = make.normal(p["n"], p["c"], p["d"], p["h"], p["w"]).contiguous(memory_format=layout)
        yield Way(name, {"x": x}, lambda x: function(x, p["kernel"], p["stride"], ceil_mode=p["ceil_mode"]))


@peer("pad_crop_forward", "pad_crop_backward")
def pad_crop(p, make):
    sizes = zip((p["d"], p["h"], p["w"]), (p["out_d"], p["out_h"], p["out_w"]), p["low"])
    padding = [side for size, out, low in reversed(list(sizes)) for side in (low, out - size - low)]
    for name, layout in VOLUMES.items():
        x = make.normal(p["n"], p["c"], p["d"], p["h"], p["w"]).contiguous(memory_format=layout)
        yield Way(name, {"x": x}, lambda x: F.pad(x, padding))


@peer("copy_channels")
def copy_channels(p, make):
    source = make.normal(p["rows"], p["source_channels"]).narrow(1, p["source_offset"], p["count"])
    target = make.normal(p["rows"], p["target_channels"]).narrow(1, p["target_offset"], p["count"])
    if p["accumulate"]:
        yield Way("add_", {}, lambda: target.add_(source))
    else:
        yield Way("copy_", {}, lambda: target.copy_(source))


@peer("route_channels")
def route_channels(p, make):
    x, source = make.normal(p["voxels"], p["channels"]), torch.tensor(p["source"], device=make.device)
    yield Way("index_select", {}, lambda: x.index_select(1, source))


# The gradient of a sum over channels is a view in PyTorch: nothing to time.
@peer("sum", "sum_squares", "max_abs", "channel_sum_forward", "sum_spatial")
def reduce(p, make, operation):
    x = make.normal(p["n"], p["spatial"], p["channels"])
    yield Way(
        "eager",
        {},
        {
            "sum": lambda: x.sum(),
            "sum_squares": lambda: torch.dot(x.flatten(), x.flatten()),
            "max_abs": lambda: torch.linalg.vector_norm(x, math.inf),
            "channel_sum_forward": lambda: x.sum(-1),
            "sum_spatial": lambda: x.mean(1),
        }[operation],
    )


@peer(
    "sobel_gradient_forward",
    "sobel_gradient_backward",
    "sobel_magnitude_forward",
    "sobel_magnitude_backward",
)
def sobel(p, make, operation):
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, -1.0])
    axes = [[slope if along == axis else smooth for along in range(3)] for axis in range(3)]
    weight = torch.stack([torch.einsum("a,b,c->abc", *factors) for factors in axes]).unsqueeze(1).to(make.device)

    def function(x):
        gradient = F.conv3d(x, weight, padding=1)
        return gradient if "gradient" in operation else (gradient.square().sum(1) + p["eps"]).sqrt()

    yield Way("conv3d", {"x": make.normal(p["n"], 1, p["d"], p["h"], p["w"])}, function)


@peer("edge_gate_forward", "edge_gate_backward")
def edge_gate(p, make):
    yield Way(
        "eager",
        {"gradient": make.normal(p["voxels"], 3), "x": make.normal(p["voxels"], p["channels"])},
        lambda gradient, x: torch.sigmoid((gradient.square().sum(1, keepdim=True) + p["eps"]).sqrt()) * x,
    )


@peer(
    "region_index",
    "region_mean_forward",
    "region_mean_backward",
    "region_gather_forward",
    "region_gather_backward",
)
def region_pool(p, make, operation):
    blocks, channels = p["extent"] // p["block"], p["channels"]
    along = torch.arange(p["extent"]) // p["block"]
    labels = (along[:, None, None] * blocks + along[:, None]) * blocks + along
    labels = labels.flatten().to(make.device)
    if operation == "region_index":
        yield Way("sort", {}, lambda: (labels.sort(stable=True), labels.bincount(minlength=blocks**3).cumsum(0)))
    elif operation.startswith("region_mean"):
        sizes = labels.bincount(minlength=blocks**3).unsqueeze(1)

        def mean(x):
            return torch.zeros(blocks**3, channels, device=make.device).index_add(0, labels, x) / sizes

        yield Way("index_add", {"x": make.normal(labels.numel(), channels)}, mean)
    else:
        x = make.normal(blocks**3, channels)
        yield Way("index", {"x": x}, lambda x: x[labels])
        yield Way("index_select", {"x": x}, lambda x: x.index_select(0, labels))


@peer("resize_forward", "resize_backward")
def resize(p, make):
    size = p["out_d"], p["out_h"], p["out_w"]
    settings = {"mode": p["mode"]} | ({"align_corners": False} if p["mode"] == "trilinear" else {})
    for name, layout in VOLUMES.items():
        x = make.normal(p["n"], p["c"], p["d"], p["h"], p["w"]).contiguous(memory_format=layout)
        yield Way(name, {"x": x}, lambda x: F.interpolate(x, size, **settings))


@peer("overlap_loss_forward", "overlap_loss_backward")
def overlap_loss(p, make):
    n, c = p["n"], p["channels"]
    for name, axis in (("channels_last", 2), ("contiguous", 1)):
        shape = (n, p["voxels"], c) if axis == 2 else (n, c, p["voxels"])
        over = (0, 3 - axis) if p["batch"] else (3 - axis,)
        if p["softmax"]:
            labels = make.labels(c, n, p["voxels"])
        else:
            masks = make.labels(2, *shape).float()

        def function(x, axis=axis, over=over, labels=labels if p["softmax"] else None,
                     masks=None if p["softmax"] else masks):
            if labels is not None:
                probability = F.softmax(x, axis)
                target = torch.zeros_like(x).scatter_(axis, labels.unsqueeze(axis), 1.0)
            else:
                probability, target = torch.sigmoid(x), masks
            both = (probability * target).sum(over)
            sums = probability.sum(over) + target.sum(over)
            if p["iou"]:
                ratio = (both + p["smooth"]) / (sums - both + p["smooth"])
            else:
                ratio = (2 * both + p["smooth"]) / (sums + p["smooth"])
            return 1 - ratio[..., p["first_channel"]:].mean()

        yield Way(name, {"x": make.normal(*shape)}, function)


@peer("pointwise_loss_forward", "pointwise_loss_backward")
def pointwise_loss(p, make):
    shape = p["rows"], p["channels"]
    bce = p["kind"] == "bce"
    target = make.labels(2, *shape).float() if bce else make.normal(*shape)
    weight = make.normal(*shape) if p["weighted"] else None
    positive = torch.full((p["channels"],), 0.5, device=make.device) if p["positive"] else None

    def focal(x):
        cost = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        q = torch.sigmoid(x)
        miss = q + target - 2 * q * target
        return (cost * miss ** p["gamma"] * (1 - p["alpha"] + (2 * p["alpha"] - 1) * target)).mean()

    def function(x):
        if bce:
            return F.binary_cross_entropy_with_logits(x, target, weight, pos_weight=positive)
        if weight is None:
            if p["kind"] == "smooth_l1":
                return F.smooth_l1_loss(x, target, beta=p["beta"])
            return (F.l1_loss if p["kind"] == "l1" else F.mse_loss)(x, target)
        return (weight * F.mse_loss(x, target, reduction="none")).mean()

    x = make.normal(*shape)
    yield Way("composed", {"x": x}, focal) if p["gamma"] > 0 else Way("loss", {"x": x}, function)


def tumour_labels(p, make):
    return make.labels(4, p["n"], 1, p["d"], p["h"], p["w"]).to(torch.uint8)


@peer("region_targets")
def region_targets(p, make):
    labels = tumour_labels(p, make).squeeze(1)
    for name, axis in (("channels_last", -1), ("contiguous", 1)):

        def function(axis=axis):
            regions = [labels > 0, (labels == 1) | (labels == 3), labels == 3]
            return torch.stack(regions, axis).to(torch.uint8)

        yield Way(name, {}, function)


@peer("edge_targets")
def edge_targets(p, make):
    labels = tumour_labels(p, make)

    def function():
        volume = labels.float()
        return (F.max_pool3d(volume, 3, 1, 1) != -F.max_pool3d(-volume, 3, 1, 1)).to(torch.uint8)

    yield Way("max_pool3d", {}, function)


@peer("region_loss_forward", "region_loss_backward")
def region_loss(p, make):
    for name, axis in (("channels_last", 1), ("contiguous", 2)):
        shape = (p["n"], p["voxels"], p["regions"]) if axis == 1 else (p["n"], p["regions"], p["voxels"])
        target = make.labels(2, *shape).float()

        def function(x, target=target, over=(0, axis) if p["batch"] else (axis,)):
            q = torch.sigmoid(x)
            dice = (2 * (q * target).sum(over) + p["smooth"]) / (q.sum(over) + target.sum(over) + p["smooth"])
            bce = F.binary_cross_entropy_with_logits(x, target)
            return p["bce_weight"] * bce + p["dice_weight"] * (1 - dice).mean()

        yield Way(name, {"x": make.normal(*shape)}, function)


@peer("edge_loss_forward", "edge_loss_backward")
def edge_loss(p, make):
    labels = make.labels(3, p["voxels"])

    def function(x):
        edge, other = (labels == 1).float(), (labels == 0).float()
        positive, negative = edge.sum(), other.sum()
        total = positive + negative
        weight = (edge * negative + p["negative_factor"] * other * positive) / total
        return F.binary_cross_entropy_with_logits(x, edge, weight, reduction="sum") / total

    yield Way("bce", {"x": make.normal(p["voxels"])}, function)


@peer("cross_entropy_forward", "cross_entropy_backward")
def cross_entropy(p, make):
    rows, classes = p["rows"], p["classes"]
    settings = {
        "weight": torch.full((classes,), 0.5, device=make.device) if p["weighted"] else None,
        "ignore_index": p["ignore_label"] if p["ignore_label"] >= 0 else -100,
        "label_smoothing": p["label_smoothing"],
    }
    labels = make.labels(classes, rows)
    yield Way("rows", {"x": make.normal(rows, classes)}, lambda x: F.cross_entropy(x, labels, **settings))
    volume = labels.unsqueeze(0)
    yield Way("contiguous", {"x": make.normal(1, classes, rows)}, lambda x: F.cross_entropy(x, volume, **settings))


@peer("distillation_forward", "distillation_backward")
def distillation(p, make):
    teacher, t = make.normal(p["rows"], p["classes"]), p["temperature"]

    def function(student):
        target = F.softmax(teacher / t, -1)
        return t * t * F.kl_div(F.log_softmax(student / t, -1), target, reduction="batchmean")

    yield Way("kl_div", {"student": make.normal(p["rows"], p["classes"])}, function)


@peer("gradient_norm", "adamw_step", "sgd_step", "ema_step")
def optimizer(p, make, operation):
    tensors = [torch.nn.Parameter(make.normal(count)) for count in p["counts"]]
    for tensor in tensors:
        tensor.grad = 0.01 * torch.randn_like(tensor)
    if operation == "gradient_norm":
        yield Way("clip_grad_norm_", {}, lambda: torch.nn.utils.clip_grad_norm_(tensors, math.inf))
        return
    if operation == "ema_step":
        values, averages = [t.detach() for t in tensors], [torch.zeros_like(t) for t in tensors]
        yield Way("lerp", {}, lambda: torch._foreach_lerp_(averages, values, 0.001))
        return
    for name in ("foreach", "fused", "plain"):
        flags = {name: True} if name != "plain" else {"foreach": False}
        try:
            if operation == "adamw_step":
                step = torch.optim.AdamW(tensors, lr=1e-4, weight_decay=0.01, **flags).step
            else:
                step = torch.optim.SGD(tensors, lr=1e-4, momentum=0.99, nesterov=True, weight_decay=0.01, **flags).step
            step()
        except (TypeError, RuntimeError):  # older versions know fewer ways
            continue
        yield Way(name, {}, step)


def timed_call(operation, way):
    """What is timed: the function, or the gradient of its result."""
    backward = "_backward" in operation and operation.split("_backward")[1].lstrip("_")
    if backward is False:
        return lambda: way.function(*way.inputs.values())
    wanted = way.parts[backward] if backward else list(way.inputs)
    for name in wanted:
        way.inputs[name] = way.inputs[name].detach().requires_grad_()
    with torch.enable_grad():
        output = way.function(*way.inputs.values())
    gradient, leaves = torch.randn_like(output), [way.inputs[name] for name in wanted]
    return lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True)


def milliseconds(call, device, min_time):
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    batch = 16 if device.startswith("cuda") else 1
    call()
    synchronise()
    calls, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < min_time or calls == 0:
        for _ in range(batch):
            call()
        synchronise()
        calls += batch
    return 1000 * elapsed / calls


def answer(request):
    operation = request["operation"]
    if operation not in PEERS:
        return {"missing": True}
    function, make = PEERS[operation], Maker(request["device"])
    wants_operation = "operation" in function.__code__.co_varnames[: function.__code__.co_argcount]
    ways = function(request["parameters"], make, *([operation] if wants_operation else []))
    found, failed = {}, {}
    with torch.no_grad():
        for way in ways:
            try:
                found[way.name] = milliseconds(timed_call(operation, way), request["device"], request["min_time"])
            except (RuntimeError, NotImplementedError, AttributeError) as error:
                failed[way.name] = str(error).splitlines()[0]
    return {"milliseconds": found, "failed": failed}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, required=True)
    threads = parser.parse_args().threads
    warnings.filterwarnings("ignore")  # that the sparse tensors are in beta
    torch.set_num_threads(threads)
    # The kernels compute in float32 throughout.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(1)
    hello = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
