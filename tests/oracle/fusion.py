"""The fusion network once more, in PyTorch and double precision, written from the maths alone.

Reads a safetensors file that the test program fusion_oracle wrote (parameters in PyTorch's layouts, inputs, outputs,
losses and gradients of one training step on a device) and compares everything. Exits with 1 on a difference.

    fusion.py DUMP.safetensors
"""

import json
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
DTYPES = {"F32": np.float32, "U8": np.uint8, "I32": np.int32, "I64": np.int64}


def read_safetensors(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = file.read()
    tensors = {}
    metadata = header.pop("__metadata__", {})
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
    return tensors, metadata


class Reference:
    """Channels first inside, as PyTorch likes it: [N, C, D, H, W]."""

    def __init__(self, parameters, config):
        self.p = parameters
        self.config = config
        # The smallest relative gap between a chosen neighbour and the next one that was not. Below about 1e-6 float32 may
        # choose differently; the seed in fusion_oracle.cpp was picked for a wide gap.
        self.closest_choice = float("inf")

    # ---- building blocks
    def conv(self, name, x, stride=1):
        w = self.p[name + ".weight"]
        return F.conv3d(x, w, self.p[name + ".bias"], stride=stride, padding=w.shape[2] // 2)

    def norm_relu(self, name, x):
        return F.relu(F.instance_norm(x, weight=self.p[name + ".weight"], bias=self.p[name + ".bias"], eps=1e-5))

    def linear(self, name, x, bias=True):
        """Over the channel axis of [N, C, D, H, W]."""
        y = x.movedim(1, -1) @ self.p[name + ".weight"].t()
        if bias:
            y = y + self.p[name + ".bias"]
        return y.movedim(-1, 1)

    def conv_norm_relu(self, conv, norm, x, stride=1):
        return self.norm_relu(norm, self.conv(conv, x, stride))

    # ---- shifted patch tokenization
    @staticmethod
    def directions(kind):
        if kind == "corner8":
            return [(z, y, x) for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)]
        if kind == "face6":
            return [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]
        return [(-1, -1, -1), (1, -1, 1), (1, 1, -1), (-1, 1, 1)]

    def patch_features(self, x, kind):
        """[N, C, D, H, W] to [N, d, h, w, features], feature order (pd, ph, pw, copy, c)."""
        d, h, w = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1, 1, 1))
        copies = [x] + [padded[:, :, 1 + z:1 + z + d, 1 + y:1 + y + h, 1 + v:1 + v + w]
                        for z, y, v in self.directions(kind)]
        stacked = torch.stack(copies, 1)  # [N, copy, C, D, H, W]
        stacked = F.pad(stacked.flatten(1, 2), (0, w % 2, 0, h % 2, 0, d % 2)).unflatten(1, stacked.shape[1:3])
        n, k, c, d, h, w = stacked.shape
        blocks = stacked.reshape(n, k, c, d // 2, 2, h // 2, 2, w // 2, 2)
        return blocks.permute(0, 3, 5, 7, 4, 6, 8, 1, 2).reshape(n, d // 2, h // 2, w // 2, -1)

    def project(self, name, features, group):
        gamma, beta = self.p[name + ".norm.weight"][group], self.p[name + ".norm.bias"][group]
        normed = F.layer_norm(features, features.shape[-1:], gamma, beta, 1e-5)
        return normed @ self.p[name + ".projection.weight"][group].t() + self.p[name + ".projection.bias"][group]

    def stem(self, volume, mask):
        outputs = []
        for sample in range(volume.shape[0]):
            total = 0
            for k in range(4):
                if mask[sample, k]:
                    features = self.patch_features(volume[sample:sample + 1, k:k + 1], self.config["embed_shifts"])
                    total = total + 4.0 / mask[sample].sum() * self.project("transformer.patch_embed", features, k)
                else:
                    total = total + self.p["transformer.patch_embed.missing"][k]
            outputs.append(total)
        return torch.cat(outputs, 0).movedim(-1, 1)

    def merge(self, name, x):
        return self.project(name, self.patch_features(x, self.config["merge_shifts"]), 0).movedim(-1, 1)

    # ---- windowed attention, by brute force over all pairs of tokens of a sample
    def attention(self, name, x, heads, window, shifted):
        n, c, d, h, w = x.shape
        head_dim = c // heads
        shift = [window // 2 if shifted and size > window else 0 for size in (d, h, w)]
        padded = [-(-size // window) * window for size in (d, h, w)]
        table = self.p[name + ".relative_position_bias_table"]
        # For each real token: the window it falls into after rolling, its place in it, and its region.
        coords = torch.stack(torch.meshgrid(*(torch.arange(s) for s in (d, h, w)), indexing="ij"), -1).reshape(-1, 3)
        size = torch.tensor(padded)
        rolled = (coords - torch.tensor(shift)) % size
        cell, place = rolled // window, rolled % window
        region = torch.zeros_like(rolled)
        for axis in range(3):
            if shift[axis]:
                region[:, axis] = (rolled[:, axis] >= padded[axis] - window).long() + \
                    (rolled[:, axis] >= padded[axis] - shift[axis]).long()
        same = ((cell[:, None] == cell[None]) & (region[:, None] == region[None])).all(-1)
        delta = place[:, None] - place[None] + window - 1
        side = 2 * window - 1
        index = ((delta[..., 0] * side + delta[..., 1]) * side + delta[..., 2]).clamp(0, side ** 3 - 1)
        bias = table[index]  # [T, T, heads]
        qkv = x.flatten(2).movedim(1, -1) @ self.p[name + ".qkv.weight"].t() + self.p[name + ".qkv.bias"]
        q, k, v = qkv.unflatten(-1, (3, heads, head_dim)).unbind(2)
        scores = torch.einsum("nihc,njhc->nijh", q, k) / head_dim ** 0.5 + bias
        scores = scores.masked_fill(~same[None, :, :, None], -float("inf"))
        out = torch.einsum("nijh,njhc->nihc", scores.softmax(2), v).flatten(2)
        out = out @ self.p[name + ".proj.weight"].t() + self.p[name + ".proj.bias"]
        return out.movedim(-1, 1).reshape(x.shape)

    def layer_norm(self, name, x):
        y = F.layer_norm(x.movedim(1, -1), x.shape[1:2], self.p[name + ".weight"], self.p[name + ".bias"], 1e-5)
        return y.movedim(-1, 1)

    def stage(self, name, x, level):
        for i in range(self.config["depths"][level]):
            b = f"{name}.blocks.{i}"
            x = x + self.attention(b + ".attn", self.layer_norm(b + ".norm1", x), self.config["heads"][level],
                                   self.config["window"], i % 2 == 1)
            hidden = F.gelu(self.linear(b + ".mlp.fc1", self.layer_norm(b + ".norm2", x)))
            x = x + self.linear(b + ".mlp.fc2", hidden)
        return x

    # ---- graph reasoning, with a dense matrix in place of the sparse one
    def adjacency(self, z, extent):
        """Edge types of one sample: -1 none, 0 self, 1 spatial, 2 semantic. z [M, F]."""
        m = z.shape[0]
        k = min(self.config["neighbours"], m - 1)
        types = torch.full((m, m), -1)
        if k > 0:
            distance = ((z[:, None] - z[None]) ** 2).sum(-1)
            distance.fill_diagonal_(float("inf"))
            ordered = distance.sort(dim=1, stable=True)
            nearest = ordered.indices[:, :k]
            if k < m - 1:
                last, next_one = ordered.values[:, k - 1], ordered.values[:, k]
                self.closest_choice = min(self.closest_choice, ((next_one - last) / next_one).min().item())
            types.scatter_(1, nearest, 2)
            types = torch.maximum(types, types.t())
        coords = torch.stack(torch.meshgrid(*(torch.arange(s) for s in extent), indexing="ij"), -1).reshape(-1, 3)
        spatial = (coords[:, None] - coords[None]).abs().sum(-1) == 1
        types[spatial] = 1
        types.fill_diagonal_(0)
        return types

    def reason(self, name, s, e):
        n, c = s.shape[:2]
        extent = s.shape[2:]
        stride = -(-max(extent) // 16)

        def pool(x):
            return F.avg_pool3d(x, stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else x

        xs, xe = self.linear(name + ".project", pool(s)), self.linear(name + ".project", pool(e))
        z = xs + self.p[name + ".edge_scale"] * xe
        grid = z.shape[2:]
        tokens = z.flatten(2).movedim(1, -1)  # [N, M, F]
        messages = []
        for sample in range(n):
            types = self.adjacency(tokens[sample].detach(), grid)
            theta = self.p[name + ".edge_type"][types.clamp(min=0)]
            if self.config["edge_weights"] == "symmetric":
                strength = torch.exp(theta) * (types >= 0)
                degree = strength.sum(1)
                weights = strength / torch.sqrt(degree[:, None] * degree[None])
            else:
                source = tokens[sample] @ self.p[name + ".attention_source"].t()
                target = tokens[sample] @ self.p[name + ".attention_target"].t()
                scores = F.leaky_relu(source + target.t() + theta, 0.2)
                weights = scores.masked_fill(types < 0, -float("inf")).softmax(1)
            messages.append(weights @ tokens[sample] - tokens[sample])
        h = F.relu(torch.stack(messages) @ self.p[name + ".message.weight"].t())
        h = h.movedim(-1, 1).reshape(z.shape)

        def back(x, features):
            y = self.linear(name + ".back", features + h)
            y = F.interpolate(y, size=extent, mode="trilinear", align_corners=False)
            return x + self.norm_relu(name + ".norm", y)

        return back(s, xs), back(e, xe)

    def fuse(self, level, s, e):
        s, e = self.reason(f"fusion{level + 1}.reason", s, e)
        stride = 2 if level < 3 else 1
        down = f"fusion{level + 1}.down"
        return [self.conv_norm_relu(down + ".conv", down + ".norm", x, stride) for x in (s, e)]

    # ---- edge attention
    def edge_head(self, name, x):
        total = x.sum(1, keepdim=True)
        derivative = torch.tensor([1.0, 0.0, -1.0], dtype=x.dtype)
        smooth = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
        kernels = []
        for axis in range(3):
            a, b, c = (derivative if axis == i else smooth for i in range(3))
            kernels.append(a[:, None, None] * b[None, :, None] * c[None, None, :])
        g = F.conv3d(total, torch.stack(kernels)[:, None], padding=1)
        g = F.instance_norm(g, weight=self.p[name + ".sobel_norm.weight"], bias=self.p[name + ".sobel_norm.bias"],
                            eps=1e-5)
        gate = torch.sigmoid(torch.sqrt((g ** 2).sum(1, keepdim=True) + 1e-12))
        y = F.relu(self.linear(name + ".reduce", self.norm_relu(name + ".norm", gate * x)))
        y = self.linear(name + ".expand", F.relu(self.conv(name + ".conv", y)))
        return self.linear(name + ".head", x + y)

    def up(self, name, x, skip):
        x = F.conv_transpose3d(x, self.p[name + ".transconv.weight"], self.p[name + ".transconv.bias"], stride=2, padding=1)
        return self.conv_norm_relu(name + ".conv", name + ".norm", torch.cat([x, skip], 1))

    # ---- the network
    def forward(self, volume, mask):
        """volume [N, D, H, W, 4], mask [N, 4]."""
        n = volume.shape[0]
        extent = volume.shape[1:4]
        x = volume.movedim(-1, 1)
        edge_input = torch.zeros(n, 2, *extent, dtype=x.dtype)
        source = torch.zeros(n, 4, dtype=x.dtype)
        for i in range(n):
            for channel, choices in enumerate(((3, 2), (1, 0))):
                for k in choices:
                    if mask[i, k]:
                        edge_input[i, channel] = x[i, k]
                        source[i, k] = 1
                        break
        first = self.conv("edge.down0.conv1", edge_input)
        first = first + (source @ self.p["edge.source.weight"].t())[:, :, None, None, None]
        e = [self.conv_norm_relu("edge.down0.conv2", "edge.down0.norm2", self.norm_relu("edge.down0.norm1", first))]
        for level in (1, 2, 3):
            y = F.max_pool3d(e[-1], 2)
            for part in ("1", "2"):
                y = self.conv_norm_relu(f"edge.down{level}.conv{part}", f"edge.down{level}.norm{part}", y)
            e.append(y)
        e.append(self.conv_norm_relu("edge.conv", "edge.norm", F.max_pool3d(e[-1], 2)))

        s = []
        y = self.stem(x, mask)
        for level in range(4):
            if level:
                y = self.merge(f"transformer.layers.{level - 1}.downsample", y)
            y = self.stage(f"transformer.layers.{level}", y, level)
            s.append(self.layer_norm(f"transformer.norm{level}", y))

        a, b = None, []
        for level in range(4):
            semantic = s[0] if level == 0 else a + s[level]
            edges = e[1] if level == 0 else b[-1] + e[level + 1]
            a, fused = self.fuse(level, semantic, edges)
            b.append(fused)

        d3 = self.up("decoder.up1", a, s[2])
        d2 = self.up("decoder.up2", d3, s[1])
        d1 = self.up("decoder.up3", d2, s[0])
        d0 = self.up("decoder.up4", d1, e[0])

        def full(y):
            return F.interpolate(y, size=extent, mode="trilinear", align_corners=False)

        edges = sum(full(self.edge_head(f"edge_head{i}", y))
                    for i, y in ((1, b[3]), (1, b[2]), (2, b[1]), (3, b[0]), (4, e[1])))
        deep = [self.linear(f"deep_head{i + 1}", y) for i, y in enumerate((d1, d2, d3))]
        return self.linear("head", d0), edges, deep, full


def region_loss(logits, targets):
    p = torch.sigmoid(logits)
    axes = (2, 3, 4)
    dice = (2 * (p * targets).sum(axes) + 1e-5) / (p.sum(axes) + targets.sum(axes) + 1e-5)
    return 0.5 * F.binary_cross_entropy_with_logits(logits, targets) + (1 - dice).mean()


def edge_targets(targets):
    grown = F.max_pool3d(targets, 3, 1, 1)
    shrunk = -F.max_pool3d(-targets, 3, 1, 1)
    return ((grown - shrunk) > 0).any(1, keepdim=True).to(targets.dtype)


def edge_loss(logits, targets):
    positives, count = targets.sum(), targets.numel()
    negatives = count - positives
    weights = torch.where(targets > 0, negatives / count, 1.1 * positives / count)
    return F.binary_cross_entropy_with_logits(logits, targets, weights)


def main():
    tensors, metadata = read_safetensors(sys.argv[1])
    config = {key: metadata[key] for key in ("embed_shifts", "merge_shifts", "edge_weights")}
    config.update({key: int(metadata[key]) for key in ("window", "neighbours")})
    config.update({key: [int(v) for v in metadata[key].split(",")] for key in ("depths", "heads")})
    parameters = {name[6:]: torch.tensor(value, dtype=torch.float64, requires_grad=True)
                  for name, value in tensors.items() if name.startswith("param.")}
    mask = tensors["input.mask"]
    volume = torch.tensor(tensors["input.volume"], dtype=torch.float64)
    labels = torch.tensor(tensors["input.labels"].astype(np.int64))

    reference = Reference(parameters, config)
    segmentation, edges, deep, full = reference.forward(volume, mask)
    targets = torch.stack([labels > 0, (labels == 1) | (labels == 3), labels == 3], 1).double()
    losses = {"segmentation": region_loss(segmentation, targets), "edge": edge_loss(edges, edge_targets(targets))}
    total = losses["segmentation"] + 0.1 * losses["edge"]
    for i, logits in enumerate(deep):
        losses[f"deep.{i}"] = region_loss(full(logits), targets)
        total = total + 0.5 ** (i + 1) * losses[f"deep.{i}"]
    total.backward()

    outputs = {"segmentation": segmentation, "edges": edges, **{f"deep.{i}": y for i, y in enumerate(deep)}}
    worst = 0.0
    failures = []

    def compare(name, actual, expected, scale=None):
        nonlocal worst
        expected = expected.detach().numpy()
        scale = scale or max(np.abs(expected).max(), 1e-30)
        error = np.abs(actual.astype(np.float64) - expected).max() / scale
        worst = max(worst, error) if error == error else float("nan")
        if not error <= 1e-3:
            failures.append(f"{name}: relative error {error:.2e}")

    for name, value in outputs.items():
        compare("output." + name, tensors["output." + name], value.movedim(1, -1))
    for name, value in losses.items():
        compare("loss." + name, tensors["loss." + name], value.reshape(1))
    # Small gradients are compared on the scale of 1e-4 of the largest one: with the limit 1e-3 that is one float32
    # epsilon of the largest. Those that are zero in exact arithmetic (a bias before an instance norm, a sum over tens of
    # thousands of voxels that cancels) are rounding noise alone: ten epsilons.
    largest = max(p.grad.abs().max().item() for p in parameters.values() if p.grad is not None)
    for name, parameter in parameters.items():
        expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        size = expected.abs().max().item()
        floor = 1e-4 if size > 1e-9 * largest else 1e-3
        compare("grad." + name, tensors["grad." + name], expected, max(size, floor * largest))
    print(f"{len(parameters)} parameters, largest relative error {worst:.2e}, "
          f"closest choice of a neighbour {reference.closest_choice:.1e}")
    for failure in failures[:20]:
        print("differs:", failure)
    sys.exit(1 if failures or worst != worst else 0)


main()
