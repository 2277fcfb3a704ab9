"""Weights leave PyTorch, pass through vesal convert, and come back: a network in every form that PyTorch saves, converted,
read with a few lines of Python, and loaded strictly into a new network of the same architecture.

    conversion.py VESAL FOLDER
"""

import json
import os
import struct
import subprocess
import sys
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
VESAL, FOLDER = sys.argv[1:]


class MeshNet(nn.Module):
    """meshnet-gw: nine dilated convolutions, each with a ReLU, and the head."""

    def __init__(self):
        super().__init__()
        layers = []
        for i, dilation in enumerate([1, 2, 4, 8, 16, 8, 4, 2, 1]):
            layers += [nn.Conv3d(1 if i == 0 else 5, 5, 3, padding=dilation, dilation=dilation), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Conv3d(5, 3, 1))

    def forward(self, x):
        return self.model(x)


def read(path):
    """Tensors and metadata of a safetensors file."""
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    dtypes = {"F32": torch.float32, "I64": torch.int64}
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def convert(source):
    out = source + ".safetensors"
    command = [VESAL, "convert", "--from", source, "--model", "meshnet-gw", "--out", out, "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def check(source, net, form):
    tensors, metadata = read(convert(source))
    assert metadata["vesal.source_format"] == form, metadata["vesal.source_format"]
    assert metadata["preset"] == "meshnet-gw" and metadata["vesal.axes"] == "ijk"
    loaded = MeshNet()
    loaded.load_state_dict(tensors, strict=True)
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), f"{source}: {name} differs"
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.equal(loaded(x), net(x)), f"{source}: another result"
    print(os.path.basename(source), form, len(tensors), "tensors")


torch.manual_seed(5)
net = MeshNet()
# Strides that are not those of a new tensor.
net.model[2].weight.data = net.model[2].weight.data.to(memory_format=torch.channels_last_3d)
parallel = {"module." + name: value for name, value in net.state_dict().items()}
optimizer = torch.optim.Adam(net.parameters())
net(torch.randn(1, 1, 6, 6, 6)).sum().backward()
optimizer.step()

path = lambda name: os.path.join(FOLDER, name)
torch.save({"epoch": 3, "state_dict": parallel, "optim_dict": optimizer.state_dict()}, path("zip.pth"))
check(path("zip.pth"), net, "PyTorch (zip)")
torch.save(net.state_dict(), path("legacy.pth"), _use_new_zipfile_serialization=False)
check(path("legacy.pth"), net, "PyTorch (legacy)")
torch.jit.save(torch.jit.script(net), path("script.pt"))
check(path("script.pt"), net, "TorchScript")
os.replace(path("zip.pth.safetensors"), path("misnamed.pth"))
check(path("misnamed.pth"), net, "safetensors")

half = {name: value.half() for name, value in net.state_dict().items()}
torch.save(half, path("half.pth"))
rounded = MeshNet()
rounded.load_state_dict({name: value.float() for name, value in half.items()})
check(path("half.pth"), rounded, "PyTorch (zip)")
