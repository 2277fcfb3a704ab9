"""What the oracles share: the numbers that a test wrote, and the comparison with what PyTorch makes of them."""

import math

import numpy as np
import torch


class Reader:
    """The float32 numbers of a file, in order, as tensors of doubles."""

    def __init__(self, path):
        self.data = np.fromfile(path, np.float32).astype(np.float64)
        self.position = 0

    def take(self, *shape):
        size = math.prod(shape)
        values = torch.from_numpy(self.data[self.position : self.position + size].copy()).reshape(shape)
        self.position += size
        return values

    def leaf(self, *shape):
        return self.take(*shape).requires_grad_()

    def done(self):
        return self.position == self.data.size


class Comparison:
    """Counts tensors, and those that differ. A wrong index, sign or factor changes numbers by their own size; rounding of
    a chain of float32 sums of up to 1500 terms stays below 1e-5 of the largest. Numbers far below `floor` are compared
    with it instead: 1 where results are of that order and may cancel."""

    def __init__(self, floor=1.0):
        self.floor = floor
        self.count = 0
        self.failures = 0

    def compare(self, name, actual, reference):
        self.count += 1
        error = (actual - reference.detach()).abs().max().item()
        limit = 1e-5 * max(self.floor, reference.abs().max().item())
        if not error <= limit:
            self.failures += 1
            print(f"{name} differs by {error:.3g}, allowed are {limit:.3g}")

    def report(self, what):
        """Prints the counts; the exit status."""
        print(f"{what}: {self.count} tensors compared, {self.failures} differ")
        return 1 if self.failures or self.count == 0 else 0


class Case(Reader):
    """One line of an index file, KIND KEY=VALUE ..., and the file of its numbers."""

    def __init__(self, folder, number, line, result):
        super().__init__(f"{folder}/{number}.f32")
        self.name = line.strip()
        self.kind, *settings = line.split()
        self.settings = dict(item.split("=") for item in settings)
        self.result = result

    def integer(self, key):
        return int(self.settings[key])

    def number(self, key):
        # A float prints to a few digits; the program computed with the float itself.
        return float(np.float32(self.settings[key]))

    def flag(self, key):
        return self.settings[key] == "1"

    def same(self, part, reference):
        self.result.compare(f"{self.name}: {part}", self.take(*reference.shape), reference)


def check_index(folder, kinds, what, make_case=Case):
    """Runs kinds[KIND](case) for every line of FOLDER/index.txt; the exit status."""
    result = Comparison(floor=1e-7)
    for number, line in enumerate(open(f"{folder}/index.txt")):
        case = make_case(folder, number, line, result)
        kinds[case.kind](case)
        if not case.done():
            result.failures += 1
            print(f"{case.name}: the file holds {case.data.size} numbers, {case.position} were expected")
    return result.report(what)
