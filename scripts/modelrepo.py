"""Writing and reading a gpulet model repository from Python.

One model is a folder: <root>/<name>/model.yaml, <root>/<name>/<version>/model.pt (TorchScript) and
<root>/<name>/samples.msgpack (inputs with the outputs that this Python computed for them). The
format is the server's; nothing here imports torchvision or knows an architecture.
"""
from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional, Sequence, Tuple

import msgpack
import numpy as np
import torch

#: Element types by the names the open inference protocol gives them.
DTYPES = {
    torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float64: "FP64",
    torch.uint8: "UINT8", torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32",
    torch.int64: "INT64", torch.bool: "BOOL",
}
NUMPY = {
    "FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "UINT8": "u1", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "BOOL": "?",
}

Tensors = Tuple[torch.Tensor, ...]


@dataclass
class Entry:
    """One model as it stands in a repository. Shapes come from the samples, without the batch dimension."""

    name: str
    slo: str                      #: a Go duration: "64ms"
    max_batch: int
    inputs: Sequence[str]         #: names, in the order of the module's arguments
    outputs: Sequence[str]        #: names, in the order of what the module returns
    about: str = ""               #: a line for the head of model.yaml
    precision: str = "stored"
    version: int = 1
    timeout: str = ""             #: a Go duration; empty: twice the SLO
    preprocess: str = ""          #: how the first input may come in another type: what follows its name
    ranked: int = 0               #: how many outputs, the last ones, are in an order that hangs on rounding: no
                                  #: right answer can be kept for them


@dataclass
class Samples:
    """Inputs (first dimension: samples), what Python answered to them, and labels where there are any."""

    inputs: Tensors
    outputs: Tensors = ()
    labels: Sequence[int] = field(default_factory=tuple)


def as_tuple(x) -> Tensors:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def run(module: Callable, inputs: Tensors, batch: int = 0) -> Tensors:
    """What module answers to inputs, without gradients, in pieces of at most batch samples (0: at once)."""
    step = batch or inputs[0].shape[0]
    with torch.no_grad():
        parts = [as_tuple(module(*(t[i:i + step] for t in inputs))) for i in range(0, inputs[0].shape[0], step)]
    return tuple(torch.cat(p) for p in zip(*parts))


def trace(module: torch.nn.Module, inputs: Tensors) -> torch.jit.ScriptModule:
    """Trace module and prove that the batch dimension stayed free: batches of 1 and 3 must agree with
    eager execution within 1e-5 of the output's magnitude. Raises ValueError otherwise."""
    module.eval()
    with torch.no_grad():
        traced = torch.jit.trace(module, tuple(t[:2] for t in inputs), check_trace=False)
    for n in (1, 3):
        x = tuple(torch.cat([t] * (n // t.shape[0] + 1))[:n] for t in inputs)
        for want, got in zip(run(module, x), run(traced, x)):
            if want.shape != got.shape:
                raise ValueError(f"traced with a fixed batch: batch {n} gave {tuple(got.shape)}, eager {tuple(want.shape)}")
            off = (want - got).abs().max().item()
            if off > 1e-5 * max(1.0, want.abs().max().item()):
                raise ValueError(f"trace disagrees with eager at batch {n}: off by {off:g}")
    return traced


def save(root: Path, entry: Entry, module: torch.jit.ScriptModule, samples: Samples) -> Path:
    """Write the model's folder. model.yaml is written last, so that a server scanning the repository
    meanwhile never sees a model whose archive is still being written."""
    folder = Path(root) / entry.name
    (folder / str(entry.version)).mkdir(parents=True, exist_ok=True)
    save_archive(module, folder / str(entry.version) / "model.pt")
    save_samples(folder / "samples.msgpack", entry, samples)
    replace(folder / "model.yaml", model_yaml(entry, samples).encode())
    return folder


def save_archive(module: torch.jit.ScriptModule, path: Path) -> None:
    """Save without the debug records: they hold absolute paths of the machine that traced, and would
    make the archive differ from one checkout to the next."""
    with tempfile.TemporaryDirectory(dir=path.parent) as tmp:
        full, lean = str(Path(tmp) / "full.pt"), str(Path(tmp) / "model.pt")
        torch.jit.save(module, full)
        reader, writer = torch._C.PyTorchFileReader(full), torch._C.PyTorchFileWriter(lean)
        for name in reader.get_all_records():
            if name.endswith(".debug_pkl") or name in ("version", "byteorder") or name.startswith(".data/"):
                continue  # the writer adds the last three itself
            data = reader.get_record(name)
            writer.write_record(name, data, len(data))
        writer.write_end_of_file()
        os.replace(lean, path)


def spec(name: str, t: torch.Tensor) -> str:
    return f"{{name: {name}, dtype: {DTYPES[t.dtype]}, shape: [{', '.join(map(str, t.shape[1:]))}]}}"


def model_yaml(entry: Entry, samples: Samples) -> str:
    head = f"# {entry.about}\n" if entry.about else ""
    lines = [f"name: {entry.name}", f"slo: {entry.slo}"]
    if entry.timeout:
        lines.append(f"timeout: {entry.timeout}")
    lines.append(f"max_batch: {entry.max_batch}")
    if entry.precision != "stored":
        lines.append(f"precision: {entry.precision}")
    for key, names, tensors in (("inputs", entry.inputs, samples.inputs), ("outputs", entry.outputs, samples.outputs)):
        lines.append(f"{key}:")
        lines += [f"  - {spec(n, t)}" for n, t in zip(names, tensors)]
    if entry.preprocess:
        lines.append(preprocess_line(entry.inputs[0], entry.preprocess))
    return head + "\n".join(lines) + "\n"


def preprocess_line(name: str, preprocess: str) -> str:
    return f"preprocess: {{{name}: {preprocess}}}"


def add_preprocess(config: Path, name: str, preprocess: str) -> str:
    """Let an input of a model.yaml that has no preprocess come in other types, too; returns what was added, for
    a line on what was done."""
    text = config.read_text()
    if not preprocess or re.search(r"(?m)^preprocess:", text):
        return ""
    replace(config, (text.rstrip("\n") + "\n" + preprocess_line(name, preprocess) + "\n").encode())
    return ", preprocess added"


def set_durations(config: Path, slo: Optional[str], timeout: Optional[str]) -> str:
    """Bring the durations of a model.yaml up to date; returns what was set, for a line on what was done. A timeout
    that was chosen for another SLO goes with it: it may be shorter than the new one."""
    text = config.read_text()
    if slo or timeout:
        text = re.sub(r"(?m)^timeout: .*\n", "", text)
    if slo:
        text = re.sub(r"(?m)^slo: .*$", f"slo: {slo}", text)
    if timeout:
        text = re.sub(r"(?m)^slo: .*$", lambda line: f"{line.group()}\ntimeout: {timeout}", text)
    replace(config, text.encode())
    return "".join(f", {key} {value}" for key, value in (("slo", slo), ("timeout", timeout)) if value)


def set_precision(config: Path, precision: str) -> str:
    """Bring the precision of a model.yaml up to date; returns what was set, for a line on what was done."""
    text = re.sub(r"(?m)^precision: .*\n", "", config.read_text())
    if precision != "stored":
        text = re.sub(r"(?m)^max_batch: .*$", lambda line: f"{line.group()}\nprecision: {precision}", text)
    replace(config, text.encode())
    return f", precision {precision}"


def save_samples(path: Path, entry: Entry, samples: Samples) -> None:
    def wire(names, tensors):
        return [{"name": n, "dtype": DTYPES[t.dtype], "shape": list(t.shape), "data": t.contiguous().numpy().tobytes()}
                for n, t in zip(names, tensors)]

    kept = len(entry.outputs) - entry.ranked
    doc = {"inputs": wire(entry.inputs, samples.inputs), "outputs": wire(entry.outputs[:kept], samples.outputs)}
    if len(samples.labels):
        doc["labels"] = [int(v) for v in samples.labels]
    replace(path, msgpack.packb(doc, use_bin_type=True))


def load_samples(path: Path) -> Samples:
    doc = msgpack.unpackb(Path(path).read_bytes(), raw=False)

    def tensors(key):
        return tuple(torch.from_numpy(np.frombuffer(t["data"], NUMPY[t["dtype"]]).reshape(t["shape"]).copy())
                     for t in doc.get(key, []))

    return Samples(tensors("inputs"), tensors("outputs"), doc.get("labels", []))


def verify(folder: Path, tolerance: float = 1e-4) -> Tuple[int, float, Optional[float]]:
    """Reload the newest archive of folder and run its samples one by one and in a batch.
    Returns (samples, largest deviation, accuracy or None); raises ValueError beyond the tolerance."""
    versions = sorted((int(p.name) for p in Path(folder).iterdir() if p.name.isdigit()), reverse=True)
    if not versions:
        raise ValueError(f"{folder}: no version folder: expected {folder}/1/model.pt")
    module = torch.jit.load(str(Path(folder) / str(versions[0]) / "model.pt")).eval()
    samples = load_samples(Path(folder) / "samples.msgpack")
    worst = 0.0
    for batch in (1, 0):
        got = run(module, samples.inputs, batch)
        if len(got) < len(samples.outputs):
            raise ValueError(f"{folder}: archive answers {len(got)} tensors: samples expect {len(samples.outputs)}")
        for g, want in zip(got, samples.outputs):
            if g.shape != want.shape or not torch.isfinite(g).all():
                raise ValueError(f"{folder}: shape {tuple(g.shape)}, finite {bool(torch.isfinite(g).all())}: expected {tuple(want.shape)}, finite")
            worst = max(worst, (g.double() - want.double()).abs().max().item())
    if worst > tolerance:
        raise ValueError(f"{folder}: samples are off by {worst:g}: expected at most {tolerance:g}")
    accuracy = None
    if len(samples.labels):
        accuracy = (got[0].argmax(1) == torch.tensor(samples.labels)).double().mean().item()
    return samples.inputs[0].shape[0], worst, accuracy


def replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees either the old or the new contents."""
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_bytes(data)
    os.replace(tmp, path)
