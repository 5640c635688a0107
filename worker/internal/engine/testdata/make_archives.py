#!/usr/bin/env python3
"""Writes the TorchScript archives of the engine tests into torch/, with seeded weights.

Each is a few kilobytes. They are written with an old LibTorch on purpose (Debian's 1.13): newer
ones read older archives, not the other way round. Needs python3-torch.
"""
import json
import os

import torch
from torch import nn

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch")


class Affine(nn.Module):
    def forward(self, x):
        return x * 2 + 1


class Mixed(nn.Module):
    """Two inputs of different dtypes, three outputs of different dtypes and ranks."""

    def forward(self, a, b):
        return a + 0.5 * b.float() + 1, a.sum(1), b * 2


class Copy(nn.Module):
    """Returns its input itself: the output is the caller's own memory unless an engine copies."""

    def forward(self, x):
        return x


class InPlace(nn.Module):
    """Writes into its input."""

    def forward(self, x):
        return x.mul_(2).add_(1)


class Guard(nn.Module):
    """Fails on some inputs."""

    def forward(self, x):
        if bool(x.max() > 100):
            raise ValueError("an element is above 100")
        return x * 2 + 1


class Fixed(nn.Module):
    """Runs only with its batch of 4, as a careless trace does."""

    def forward(self, x):
        return x.view(4, 3) * 2 + 1


class HostSync(nn.Module):
    """Looks at a value on the host, which cannot be captured in a CUDA graph."""

    def forward(self, x):
        if float(x.sum()) > 1e30:
            return x
        return x * 2 + 1


class Greedy(nn.Module):
    """Allocates as many elements as its input says."""

    def forward(self, x):
        n = int(x.max())
        return x + torch.zeros([n + 1], device=x.device)[0]


class Nested(nn.Module):
    """Returns tensors in dictionaries, tuples and lists."""

    def forward(self, x):
        parts = [x * 3, x * 4]
        return {"a": (x + 1, x + 2), "b": (parts[0], parts[1])}


class Convnet(nn.Module):
    """The layers of an image model, small."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.down(x)).mean((2, 3))
        return torch.softmax(self.head(x), 1)


def convnet():
    torch.manual_seed(1)
    m = Convnet().eval()
    m.norm.running_mean.normal_(std=0.1)
    m.norm.running_var.uniform_(0.5, 2)
    return m


def save(name, module):
    module.save(os.path.join(OUT, name + ".pt"))


def main():
    os.makedirs(OUT, exist_ok=True)
    for cls in (Affine, Mixed, Copy, InPlace, Guard, Fixed, HostSync, Greedy):
        save(cls.__name__.lower(), torch.jit.script(cls()))
    x = torch.zeros(1, 3)
    save("nested", torch.jit.trace(Nested(), x, strict=False))

    model = convnet()
    image = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        save("convnet", torch.jit.trace(model, image[:1]))
        reference = {"input": image.flatten().tolist(), "output": model(image).flatten().tolist()}
    with open(os.path.join(OUT, "convnet.json"), "w") as f:
        json.dump(reference, f)
        f.write("\n")


if __name__ == "__main__":
    main()
