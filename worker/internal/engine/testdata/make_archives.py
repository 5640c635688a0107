#!/usr/bin/env python3
"""Writes the TorchScript archives of the engine tests into torch/, with seeded weights.

Each is a few kilobytes. They are written with an old LibTorch on purpose (Debian's 1.13): newer
ones read older archives, not the other way round. Needs python3-torch.
"""
import json
import os
from typing import List

import torch
from torch import nn

# Messages and what kind of error they are. The first ones are what cudaGetErrorString says, behind
# what LibTorch puts in front; the rest look like them.
FAULTS = [
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "unspecified launch failure",
    "an illegal instruction was encountered",
    "misaligned address",
    "hardware stack error",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "the launch timed out and was terminated",
    "context is destroyed",
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error detected during the execution",
    "Invalid access of peer GPU memory over nvlink or a hardware error",
    "tensor memory not completely freed",
    "MPS client failed to connect to the MPS control daemon or the MPS server",
    "the remote procedural call between the MPS server and the MPS client failed",
    "MPS server is not ready to accept new MPS client requests",
    "the hardware resources required to create MPS client have been exhausted",
    "the hardware resources required to support device connections have been exhausted",
    "the MPS client has been terminated by the server",
    "an async error has occured in external entity outside of CUDA",
    "unknown error",
    "driver shutting down",
]
MESSAGES = [{"text": "CUDA error: " + text, "kind": "device"} for text in FAULTS] + [
    {"text": "CUDA driver error: unknown error", "kind": "device"},
    {"text": "Triton Error [CUDA]: an illegal memory access was encountered", "kind": "device"},
    {"text": "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 79 GiB", "kind": "memory"},
    {"text": "CUDA error: out of memory", "kind": "memory"},
    {"text": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate", "kind": "memory"},
    {"text": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "kind": "memory"},
    {"text": "CUDA error: invalid argument", "kind": "run"},
    {"text": "CUDA error: too many resources requested for launch", "kind": "run"},
    {"text": "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling cublasSgemm", "kind": "run"},
    {"text": "a misaligned address in my own table", "kind": "run"},
    {"text": "unknown error", "kind": "run"},
]

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


class Raises(nn.Module):
    """Fails with the message that its input names, 0 being none."""

    def __init__(self, messages: List[str]):
        super().__init__()
        self.messages = messages

    def forward(self, x):
        n = int(x.max())
        if n > 0:
            raise RuntimeError(self.messages[n - 1])
        return x


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
    save("raises", torch.jit.script(Raises([m["text"] for m in MESSAGES])))
    with open(os.path.join(OUT, "raises.json"), "w") as f:
        json.dump(MESSAGES, f, indent=1)
        f.write("\n")
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
