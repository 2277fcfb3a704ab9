"""Checkpoints as PyTorch writes them, and beside each what a reader should find in it.

Writes pairs NAME.pt and NAME.safetensors; the latter holds the same tensors, contiguous, under the expected names, and
as metadata the expected format, dictionary, prefix and skipped names. checkpoints_oracle compares the two.

    checkpoints.py FOLDER
"""

import argparse
import collections
import copy
import json
import os
import random
import struct
import sys
import warnings

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64", torch.complex128: "C128",
}
FOLDER = sys.argv[1]


def to_bytes(tensor):
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def expect(name, tensors, form, dictionary=".", prefix="", skipped=()):
    header = {"__metadata__": {"format": form, "dictionary": dictionary, "prefix": prefix, "skipped": ",".join(skipped)}}
    data = b""
    for key, tensor in tensors.items():
        part = to_bytes(tensor)
        header[key] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    with open(os.path.join(FOLDER, name + ".safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def save(name, value, tensors, **expectations):
    """The value in every container that torch.save knows."""
    for form, suffix, options in [
        ("PyTorch (zip)", "zip", {}),
        ("PyTorch (zip)", "zip4", {"pickle_protocol": 4}),
        ("PyTorch (legacy)", "legacy", {"_use_new_zipfile_serialization": False}),
        ("PyTorch (legacy)", "legacy4", {"_use_new_zipfile_serialization": False, "pickle_protocol": 4}),
    ]:
        torch.save(value, os.path.join(FOLDER, f"{name}_{suffix}.pt"), **options)
        expect(f"{name}_{suffix}", tensors, form, **expectations)


def dtypes():
    values = {}
    for dtype, name in NAMES.items():
        numbers = torch.arange(-7, 17).reshape(2, 3, 4)
        values[f"some.{name}"] = numbers.remainder(2).bool() if dtype == torch.bool else numbers.to(dtype)
        values[f"empty.{name}"] = torch.empty(3, 0, 2, dtype=dtype)
        values[f"none.{name}"] = torch.empty(0, dtype=dtype)
        values[f"scalar.{name}"] = torch.tensor(1, dtype=dtype)
    values["special"] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45])
    values["name with spaces, \u00fcml\u00e4uts and \u4f60"] = torch.ones(1)
    save("dtypes", collections.OrderedDict(values), values)


def views():
    base = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).reshape(2, 3, 5, 7)
    values = {
        "whole": base, "again": base, "slice": base[1:, 1:, 2:4, 3:], "step": base[:, ::2, ::3, 1::2],
        "transposed": base.transpose(1, 3), "permuted": base.permute(3, 0, 2, 1), "select": base[1, :, 2],
        "number": base[1, 2, 3, 4], "diagonal": base[0, 0, :5, :5].diagonal(), "expanded": base[:1, :, :1, :1].expand(4, 3, 2, 6),
        "all_expanded": base[1, 2, 4, 6].expand(3, 4), "last": base[-1, -1, -1, -1:], "empty": base[:, :0],
        "unsqueezed": base[:, None, :, None].transpose(0, 2), "conv": torch.randn(4, 5, 3, 3, 3).to(memory_format=torch.channels_last_3d),
        "tail": torch.arange(100, dtype=torch.int64)[90:], "bytes": torch.arange(200, dtype=torch.uint8)[3::7].flip(0)[::2],
        "large": torch.arange(1 << 20, dtype=torch.float32).reshape(1024, 1024).t(),
        "wide": torch.arange(1 << 20, dtype=torch.float32).reshape(4, 1 << 18)[:, ::200000],
    }
    random.seed(1)
    source = torch.arange(4 * 5 * 6 * 7, dtype=torch.float64).reshape(4, 5, 6, 7)
    for i in range(60):
        view = source
        for _ in range(random.randint(1, 4)):
            axis = random.randrange(view.dim())
            size = view.shape[axis]
            kind = random.randrange(5)
            if kind == 0:
                view = view.permute(random.sample(range(view.dim()), view.dim()))
            elif kind == 1 and size > 0:
                start = random.randrange(size)
                view = view.narrow(axis, start, random.randint(0 if random.random() < 0.1 else 1, size - start))
            elif kind == 2:
                view = view[(slice(None),) * axis + (slice(random.randint(0, 2), None, random.randint(1, 3)),)]
            elif kind == 3 and view.dim() > 1 and size > 0:
                view = view.select(axis, random.randrange(size))
            elif view.dim() < 7:
                view = view.unsqueeze(axis).expand(*view.shape[:axis], 3, *view.shape[axis:])
        values[f"random.{i}"] = view
    save("views", values, values)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, 4, 3, bias=False), nn.BatchNorm3d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2)
        self.tied.weight = self.head.weight
        self.scale: float = 0.5
        self.register_buffer("grid", torch.arange(6).reshape(2, 3).t())
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_parameter("absent", None)

    def forward(self, x):
        # Long enough that torch.jit.save compresses it.
        x = self.stem(x)
        if x.sum() > 0:
            x = x.mean([2, 3, 4]) * self.scale + x.amax([2, 3, 4]) - x.amin([2, 3, 4]) * 0.25 + 0.125
        else:
            x = x.mean([2, 3, 4]) / self.scale + x.amin([2, 3, 4]) - x.amax([2, 3, 4]) * 0.75 - 0.375
        return self.head(x) + self.tied(x) + self.grid.sum() + self.scratch


def trained():
    torch.manual_seed(7)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    net(torch.randn(2, 1, 5, 5, 5)).square().sum().backward()
    optimizer.step()
    scheduler.step()
    return net, optimizer, scheduler


def checkpoints():
    net, optimizer, scheduler = trained()
    state = net.state_dict()
    save("state", state, state)
    parallel = collections.OrderedDict((f"module.{key}", value) for key, value in state.items())
    args = argparse.Namespace(lr=1e-3, data="/data", sizes=[1, 2, 3], big=1 << 80, nested={"a": (1, 2.5, None, True)}, odd=object)
    save(
        "lightning",
        {"epoch": 3, "best": np.float64(0.5), "args": args, "state_dict": parallel, "optimizer": optimizer.state_dict(),
         "scheduler": scheduler.state_dict(), "rng": torch.get_rng_state(), "date": {1, 2}, "history": [0.5, float("inf")]},
        state, dictionary="state_dict", prefix="module.")
    compiled = {f"_orig_mod.module.{key}": value for key, value in state.items()}
    save("compiled", {"network_weights": compiled, "optimizer_state": optimizer.state_dict(), "grad_scaler_state": None,
                      "logging": {"train_losses": [np.float32(1.5)]}, "trainer_name": "nnUNetTrainer", "init_args": {"plans": {"x": 1}}},
         state, dictionary="network_weights", prefix="_orig_mod.module.")
    average = {key: value.double() * 0.5 for key, value in state.items()}
    save("ema", {"ema": {"state_dict": average}, "model": {"state_dict": state, "version": 1}}, state, dictionary="model.state_dict")
    mixed = dict(state, epoch=4, note="text", nothing=None)
    save("mixed", mixed, state, skipped=["epoch", "note", "nothing"])
    many = {f"layer.{i}.weight": torch.full((3,), float(i)) for i in range(700)}
    save("many", many, many)
    save("single", state["stem.0.weight"], {"tensor": state["stem.0.weight"]})
    marked = nn.Parameter(torch.randn(3, 2))
    marked.note = "an attribute"
    parameters = {"plain": nn.Parameter(torch.randn(2, 2).t()), "marked": marked, "frozen": nn.Parameter(torch.ones(2), requires_grad=False)}
    save("parameters", parameters, parameters)
    counted = collections.defaultdict(dict)
    counted["a"], counted["b"] = torch.ones(2), torch.zeros(1)
    save("defaultdict", counted, {"a": torch.ones(2), "b": torch.zeros(1)})

    module = copy.deepcopy(net)
    module.zero_grad()
    save("module", module, module.state_dict())
    save("module_in", {"epoch": 1, "model": module}, module.state_dict(), dictionary="model")


def scripts():
    net, _, _ = trained()
    # A script keeps buffers that a state_dict leaves out.
    state = dict(net.state_dict(), scratch=net.scratch)
    for name, script in [("scripted", torch.jit.script(net)), ("traced", torch.jit.trace(net.eval(), torch.ones(1, 1, 5, 5, 5), check_trace=False))]:
        torch.jit.save(script, os.path.join(FOLDER, name + ".pt"))
        expect(name, {key: value for key, value in state.items()}, "TorchScript")


dtypes()
views()
checkpoints()
scripts()
