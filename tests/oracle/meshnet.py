"""MeshNet once more, in PyTorch, from the maths alone: a pass forward and backward that meshnet_oracle wrote, compared with
the same in float64. For every tensor the norm of the error over the norm of the tensor may be 1e-4, or twice what PyTorch's
own float32 reaches where that is more; gradients that are zero by construction (a bias before a normalisation would be) do
not occur here. The network is built of PyTorch's modules, nested as the trained files are, and takes the parameters by their
names, strictly. Exits with 1 on a difference.

    meshnet.py DUMP.safetensors
"""

import json
import struct
import sys

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)


def read_safetensors(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = file.read()
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = torch.from_numpy(np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"]).copy())
    return tensors, metadata


class Network(nn.Module):
    def __init__(self, config):
        super().__init__()
        activation = {"relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU}[config["activation"]]
        channels = int(config["channels"])
        blocks, previous = [], int(config["in_channels"])
        for dilation in map(int, config["dilations"].split(",")):
            block = [nn.Conv3d(previous, channels, 3, padding=dilation, dilation=dilation, bias=config["bias"] == "1")]
            if config["norm"] == "channel":
                block.append(nn.GroupNorm(channels, channels, affine=False))
            block.append(activation())
            blocks += [nn.Sequential(*block)] if config["naming"] == "blocks" else block
            previous = channels
        self.model = nn.Sequential(*blocks, nn.Conv3d(channels, int(config["classes"]), 1))

    def forward(self, x):
        return self.model(x)


def run(tensors, config, dtype):
    network = Network(config).to(dtype)
    network.load_state_dict({name[6:]: value.to(dtype) for name, value in tensors.items() if name.startswith("param.")})
    logits = network(tensors["volume"].to(dtype).movedim(-1, 1))
    logits.backward(tensors["upstream"].to(dtype).movedim(-1, 1))
    results = {"grad." + name: parameter.grad for name, parameter in network.named_parameters()}
    results["logits"] = logits.detach().movedim(1, -1)
    return {name: value.double() for name, value in results.items()}


def main():
    tensors, config = read_safetensors(sys.argv[1])
    exact = run(tensors, config, torch.float64)
    single = run(tensors, config, torch.float32)
    worst = 0.0
    failures = []
    for name, expected in exact.items():
        size = expected.norm().item()
        error = (tensors[name].double() - expected).norm().item() / size
        limit = max(1e-4, 2 * (single[name] - expected).norm().item() / size)
        worst = max(worst, error)
        if not error <= limit or size == 0:
            failures.append(f"{name}: error {error:.2e}, limit {limit:.2e}")
    print(f"{config['preset']}: {len(exact)} tensors, largest error {worst:.2e}")
    for failure in failures:
        print("differs:", failure)
    sys.exit(1 if failures or worst != worst else 0)


main()
