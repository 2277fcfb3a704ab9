"""The dense MFIB, pooling by regions, and edge weights over the node sets of a masked graph once more, in PyTorch and
double precision, written from the maths alone, with autograd for the gradients.

Reads what graph_oracle wrote and compares every case. Exits with 1 on a difference.

    graph.py FOLDER
"""

import math
import sys

import torch
import torch.nn.functional as F

from vectors import check_index

torch.set_num_threads(1)


def mfib(case):
    """As published: channels first, convolutions of kernel 1, V N x L and W F x L."""
    n, d, h, w, c = (case.integer(key) for key in "ndhwc")
    nodes, features, length = c // 4, c // 2, d * h * w
    semantic, edges = case.leaf(n, d, h, w, c), case.leaf(n, d, h, w, c)
    adjacency, adjacency_bias = case.leaf(nodes, nodes, 1), case.leaf(nodes)
    message = case.leaf(features, features, 1)
    v_weight, v_bias = case.leaf(nodes, c, 1, 1, 1), case.leaf(nodes)
    w_weight, w_bias = case.leaf(features, c, 1, 1, 1), case.leaf(features)
    back_weight, back_bias = case.leaf(c, features, 1, 1, 1), case.leaf(c)
    parameters = [adjacency, adjacency_bias, message, v_weight, v_bias, w_weight, w_bias, back_weight, back_bias]
    gradients = [case.take(n, d, h, w, c) for _ in range(2)]
    original = case.flag("original")

    branches = []
    for x in (semantic, edges):
        x = x.movedim(-1, 1)
        v = F.conv3d(x, v_weight, v_bias).flatten(2)
        projected = F.conv3d(x, w_weight, w_bias).flatten(2)
        logits = v @ projected.transpose(1, 2)
        branches.append((v, (logits if original else logits / math.sqrt(length)).softmax(-1)))
    z = branches[0][1] + branches[1][1]
    h_message = F.conv1d(z, adjacency, adjacency_bias) - z
    h_message = F.relu(F.conv1d(h_message.transpose(1, 2), message).transpose(1, 2))
    outputs = []
    for v, g in branches:
        r = v.transpose(1, 2) @ (g + h_message)  # L x F
        volume = r.reshape(n, features, d, h, w) if original else r.transpose(1, 2).reshape(n, features, d, h, w)
        outputs.append(F.conv3d(volume, back_weight, back_bias).movedim(1, -1))
    found = torch.autograd.grad(outputs, [semantic, edges, *parameters], gradients)
    for name, output in zip(("semantic", "edges"), outputs):
        case.same(name, output.detach())
    for i, gradient in enumerate(found):
        case.same(f"gradient {i}", gradient)


def regions(case):
    n, d, h, w, c = (case.integer(key) for key in "ndhwc")
    count = case.integer("regions")
    labels = case.take(n, d * h * w).long()
    x, dy = case.leaf(n, d, h, w, c), case.take(n, d, h, w, c)
    inside = labels >= 0
    index = (labels + count * torch.arange(n)[:, None])[inside]
    rows = x.reshape(n, -1, c)[inside]
    sums = torch.zeros(n * count, c, dtype=x.dtype).index_add(0, index, rows)
    sizes = torch.zeros(n * count, dtype=x.dtype).index_add(0, index, torch.ones(len(index), dtype=x.dtype))
    means = sums / sizes.clamp(min=1)[:, None]
    y = torch.zeros(n * d * h * w, c, dtype=x.dtype).index_put((inside.flatten().nonzero()[:, 0],), means[index])
    y = y.reshape(dy.shape)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert (sizes == 0).any()
    case.same("means", means.detach().reshape(n, count, c))
    case.same("y", y.detach())
    case.same("dx", dx)


def attention(case):
    n, d, h, w, f = (case.integer(key) for key in "ndhwf")
    branches, modalities = case.integer("branches"), case.integer("modalities")
    sets, points = branches * modalities, d * h * w
    available = case.take(n, sets) > 0
    x, theta = case.leaf(n * sets * points, f), case.leaf(5)
    u, v = case.leaf(1, f), case.leaf(1, f)
    dy = case.take(n * sets * points, 2 * f)

    node = torch.arange(n * sets * points)
    sample, own = node // (sets * points), node // points % sets
    branch, modality, point = own // modalities, own % modalities, node % points
    place = torch.stack((point // (h * w), point // w % h, point % w), -1)
    steps = (place[:, None] - place[None]).abs().sum(-1)

    def equal(a):
        return a[:, None] == a[None]

    types = torch.full((len(node), len(node)), -1)
    types[equal(own) & (steps == 0)] = 0
    types[equal(own) & (steps == 1)] = 1
    types[~equal(branch) & equal(modality) & equal(point)] = 3
    types[equal(branch) & ~equal(modality) & equal(point)] = 4
    present = available.flatten()[node // points]
    types[~equal(sample) | ~present[None]] = -1
    edges = types >= 0
    assert (~edges.any(1)).any() and present.any() and not present.all()

    z = torch.where(present[:, None], x, torch.zeros_like(x))
    scores = F.leaky_relu(z @ u.t() + (z @ v.t()).t() + theta[types.clamp(min=0)], 0.2)
    fed = edges.any(1, keepdim=True)
    weights = torch.where(fed, scores.masked_fill(~edges & fed, -float("inf")), torch.zeros_like(scores)).softmax(1)
    weights = weights * fed
    strength = torch.exp(theta)[types.clamp(min=0)] * edges
    degree = strength.sum(1)
    degree = torch.where(degree > 0, degree, torch.ones_like(degree))
    symmetric = strength / torch.sqrt(degree[:, None] * degree[None])
    y = torch.cat((weights @ z, symmetric @ z), 1)
    found = torch.autograd.grad(y, [x, theta, u, v], dy)
    case.same("y", y.detach())
    for name, gradient in zip(("dx", "dtheta", "du", "dv"), found):
        case.same(name, gradient)


def main(folder):
    return check_index(folder, {"mfib": mfib, "regions": regions, "attention": attention}, "graph")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
