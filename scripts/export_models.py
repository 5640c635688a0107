#!/usr/bin/env python3
"""Export models to a gpulet model repository: TorchScript, model.yaml, and samples with expected outputs.

The models are the nine of the gpu-lets paper (Choi et al., USENIX ATC 2022) and bert_tiny. Weights are
seeded, so that nothing is downloaded and two machines get the same answers; they are scaled so that
every layer's output has about unit variance, so that half precision neither underflows nor overflows
and different inputs get different answers. --weights takes torchvision's pretrained weights instead where
there are any (it downloads them). lenet is the trained one from this repository.

Each archive is checked before it is kept: its batch dimension is free (batches of 1 and 3 agree with eager
execution), and rounding every weight and activation to half precision changes the outputs little.
"""
from __future__ import annotations

import argparse
import multiprocessing
import re
import shutil
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

import modelrepo
import zoo

EXAMPLES = """examples:
  scripts/python.sh scripts/export_models.py models mobilenet_v2 bert_tiny
  scripts/python.sh scripts/export_models.py models --slo mobilenet_v2=500ms --slo bert_tiny=50ms
  scripts/python.sh scripts/export_models.py models resnet50 --weights
  scripts/python.sh scripts/export_models.py models --precision fp16 --jobs 9
  scripts/python.sh scripts/export_models.py --verify models
  scripts/python.sh scripts/export_models.py --list

exit status: 0 done, 1 a model could not be exported or verified, 2 usage
"""

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 4          # sample inputs of a model: enough to tell a wrong answer, small enough to read
CALIBRATION = 16     # inputs from which the scales of seeded weights are taken
HALF_TOLERANCE = 0.02  # largest change of outputs by half precision, as a share of their magnitude


@dataclass(frozen=True)
class Recipe:
    """How one model is made. SLOs are those of the paper (on an RTX 2080 Ti), lenet's one that a CPU can keep."""

    about: str
    slo: str
    build: Optional[Callable[[bool], nn.Module]] = None  # called with "pretrained?"; None: copied, not built
    make_inputs: Optional[Callable[[int, torch.Generator], modelrepo.Tensors]] = None
    inputs: Sequence[str] = ("input",)
    outputs: Sequence[str] = ("output",)
    pretrained: bool = False                        # does torchvision have weights?
    max_batch: int = 32
    preprocess: str = ""                            # of the first input, as in model.yaml
    ranked: int = 0                                 # outputs, the last ones, whose order hangs on rounding


# What torchvision's classifiers were trained with: bytes to 0..1, then each channel about zero mean and unit
# variance over ImageNet. The archives take the result; with this, models take bytes and images too.
IMAGENET = "{accept: [UINT8], scale: 0.00392156862745098, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"


def vision(name: str, **options) -> Callable[[bool], nn.Module]:
    def build(pretrained: bool) -> nn.Module:
        import torchvision.models

        if pretrained:
            return getattr(torchvision.models, name)(weights="DEFAULT")
        return getattr(torchvision.models, name)(weights=None, **options)

    return build


def images(size: int) -> Callable[[int, torch.Generator], modelrepo.Tensors]:
    """Smooth random images, normalised as ImageNet's are (about zero mean, unit variance): unlike white
    noise they differ in colour, contrast and shape, so that a model has something to tell apart."""

    def make(n: int, rng: torch.Generator) -> modelrepo.Tensors:
        x = torch.zeros(n, 3, size, size)
        for cells in (2, 5, 12, 40):
            coarse = torch.randn(n, 3, cells, cells, generator=rng)
            x = x + F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
        contrast = 0.3 + torch.rand(n, 1, 1, 1, generator=rng)
        return (x * contrast + 0.5 * torch.randn(n, 3, 1, 1, generator=rng),)

    return make


def sentences(length: int) -> Callable[[int, torch.Generator], modelrepo.Tensors]:
    """Pairs of random sentences of different lengths, padded: ids, mask, segments."""

    def make(n: int, rng: torch.Generator) -> modelrepo.Tensors:
        place = torch.arange(length)[None]
        used = torch.randint(length // 2, length + 1, (n, 1), generator=rng)
        mask = (place < used).long()
        ids = torch.randint(1, 30522, (n, length), generator=rng) * mask
        segment = (place >= used // 2).long() * mask
        return ids, mask, segment

    return make


CLASSIFIER = dict(pretrained=True, preprocess=IMAGENET)
TEXT = dict(inputs=("ids", "mask", "seg"), outputs=("logits", "pooled"))
ZOO: Dict[str, Recipe] = {
    "googlenet": Recipe("GoogLeNet", "66ms", vision("googlenet", aux_logits=False, init_weights=False), images(224), **CLASSIFIER),
    "lenet": Recipe("LeNet-5 of this repository, trained on handwritten digits (the paper's SLO: 5ms)", "50ms"),
    "resnet50": Recipe("ResNet-50", "108ms", vision("resnet50"), images(224), **CLASSIFIER),
    "ssd-mobilenetv1": Recipe("SSD on MobileNet-v1 at 300x300: all boxes and scores, and the best 100", "202ms",
                              lambda _: zoo.SSDMobileNetV1(), images(300), outputs=("boxes", "scores", "best"), ranked=1,
                              preprocess=IMAGENET),
    "vgg16": Recipe("VGG-16", "142ms", vision("vgg16"), images(224), **CLASSIFIER),
    "mnasnet1_0": Recipe("MNASNet 1.0", "62ms", vision("mnasnet1_0"), images(224), **CLASSIFIER),
    "mobilenet_v2": Recipe("MobileNet-v2", "64ms", vision("mobilenet_v2"), images(224), **CLASSIFIER),
    "densenet161": Recipe("DenseNet-161", "202ms", vision("densenet161"), images(224), **CLASSIFIER),
    "bert": Recipe("BERT base, 128 tokens", "22ms", lambda _: zoo.Bert(), sentences(128), **TEXT),
    "bert_tiny": Recipe("BERT tiny (2 layers of 128), 32 tokens", "20ms",
                        lambda _: zoo.Bert(d=128, layers=2, heads=2, ff=512), sentences(32), **TEXT),
}


# --- seeded weights -------------------------------------------------------------------------------------


def seed_weights(model: nn.Module, seed: int) -> None:
    """Draw all weights from one seeded stream, with the variance that keeps signals at unit scale
    (He et al. 2015 before a rectifier; Glorot & Bengio 2010 elsewhere).

    Batch norms get a bias of one, so that most units of the rectifier behind them are in its linear part.
    At zero a deep random net is chaotic: it blows rounding up from layer to layer (half precision changed
    ssd-mobilenetv1's outputs by 29 % of their magnitude, with the bias by 1.2 %).
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(t: torch.Tensor, std: float) -> None:
        t.copy_(torch.randn(t.shape, generator=rng) * std)

    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                normal(layer.weight, (2 / layer.weight[0].numel()) ** 0.5)
            elif isinstance(layer, nn.Linear):
                normal(layer.weight, layer.in_features ** -0.5)
            elif isinstance(layer, nn.Embedding):
                normal(layer.weight, 1.0)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.bias.fill_(1.0)
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                normal(layer.bias, 0.05)


def calibrate(model: nn.Module, inputs: modelrepo.Tensors) -> None:
    """Make every layer's output about unit scale on real activations, front to back, as training would have:
    batch norms take their statistics from the inputs, layers that no norm follows (VGG's, all heads)
    are divided by the standard deviation of what they put out."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # average over all batches seen, instead of a moving average
        norm.reset_running_stats()
        norm.train()
    normed = followed_by_norm(model)

    def rescale(layer, _, out):
        std = out.std().item()
        if layer in normed or not std > 1e-6:
            return None
        layer.weight.div_(std)
        if layer.bias is not None:
            layer.bias.div_(std)
        return out / std

    hooks = [m.register_forward_hook(rescale) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    model.eval()


def followed_by_norm(model: nn.Module) -> set:
    """The convolutions whose output goes straight into a batch norm: registered just before it."""
    found, previous = set(), None
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d) and previous is not None:
            found.add(previous)
        if not list(layer.children()):
            previous = layer if isinstance(layer, nn.Conv2d) else None
    return found


# --- checks ---------------------------------------------------------------------------------------------


def half_error(model: nn.Module, inputs: modelrepo.Tensors, want: modelrepo.Tensors) -> float:
    """How much rounding all weights and each layer's output to half precision changes the answers, as a
    share of their magnitude. PyTorch on a CPU cannot run half convolutions, so the rounding is emulated:
    what would overflow becomes infinite here too, what would underflow becomes zero."""

    def to_half(t):
        return t.half().float() if torch.is_tensor(t) and t.is_floating_point() else t

    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda _m, _i, out: to_half(out)) for m in leaves]
    stored = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    kept = [t.detach().clone() for t in stored]
    with torch.no_grad():
        for t in stored:
            t.copy_(to_half(t))
        got = modelrepo.run(model, tuple(to_half(t) for t in inputs))
        for t, full in zip(stored, kept):
            t.copy_(full)
    for hook in hooks:
        hook.remove()
    if not all(torch.isfinite(t).all() for t in got):
        return float("inf")
    return max(((g - w).abs().max() / w.abs().max().clamp_min(1e-9)).item() for g, w in zip(got, want))


def check_outputs(outputs: modelrepo.Tensors) -> None:
    """Outputs must be finite, of a sane magnitude, and different for different inputs."""
    for t in outputs:
        if not torch.isfinite(t).all():
            raise ValueError("an output is not finite")
        spread, scale = t.std(0).mean().item(), t.abs().mean().item()
        if not 1e-2 < scale < 1e3:
            raise ValueError(f"outputs have magnitude {scale:g}: expected 0.01 to 1000")
        if spread < 1e-2 * scale:
            raise ValueError(f"all inputs get the same answer (spread {spread:g}, magnitude {scale:g})")


# --- the command ----------------------------------------------------------------------------------------


def export(root: Path, name: str, slo: str, timeout: str, weights: bool) -> str:
    """Build, check and write one model; returns a line on what was made."""
    recipe, started = ZOO[name], time.monotonic()
    pretrained = weights and recipe.pretrained
    model = recipe.build(pretrained).eval()
    rng = torch.Generator().manual_seed(7)
    if not pretrained:
        seed_weights(model, seed=1)
        calibrate(model, recipe.make_inputs(CALIBRATION, rng))
    samples = modelrepo.Samples(recipe.make_inputs(SAMPLES, rng))
    module = modelrepo.trace(model, samples.inputs)
    samples.outputs = modelrepo.run(module, samples.inputs, batch=1)
    compared = samples.outputs[:len(recipe.outputs) - recipe.ranked]
    check_outputs(compared)
    half = half_error(model, samples.inputs, compared)
    if not half <= HALF_TOLERANCE:
        raise ValueError(f"half precision changes the outputs by {half:.1%}: expected at most {HALF_TOLERANCE:.0%}")
    kind = "pretrained weights" if pretrained else "seeded weights"
    entry = modelrepo.Entry(name, slo, recipe.max_batch, recipe.inputs, recipe.outputs,
                            about=f"{recipe.about}; {kind}; made by scripts/export_models.py", timeout=timeout,
                            preprocess=recipe.preprocess, ranked=recipe.ranked)
    folder = modelrepo.save(root, entry, module, samples)
    size = (folder / "1" / "model.pt").stat().st_size
    return f"{kind}, {size / 1e6:.1f} MB, half precision within {half:.2%}, {time.monotonic() - started:.1f} s"


def copy_trained(root: Path, name: str) -> str:
    """Copy a model that this repository ships trained; its model.yaml last, as in modelrepo.save."""
    source, target = ROOT / "models" / name, root / name
    if not (source / "1" / "model.pt").exists():
        raise ValueError(f"{source} is missing: run scripts/python.sh scripts/train_digits.py")
    if source.resolve() == target.resolve():
        return "the trained one, kept"
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.yaml"))
    modelrepo.replace(target / "model.yaml", (source / "model.yaml").read_bytes())
    return "the trained one, copied"


def provide(root: Path, name: str, slo: Optional[str], timeout: Optional[str], precision: Optional[str], weights: bool,
            force: bool) -> str:
    """Bring one model into the repository, or only what is set of it up to date; returns a line on what was done."""
    config = root / name / "model.yaml"
    if config.exists() and not force:
        done = "already there" + modelrepo.add_preprocess(config, ZOO[name].inputs[0], ZOO[name].preprocess)
    elif ZOO[name].build is None:
        done = copy_trained(root, name)
    else:
        done = export(root, name, slo or ZOO[name].slo, timeout or "", weights)
        slo = timeout = None  # it has them
    if slo or timeout:
        done += modelrepo.set_durations(config, slo, timeout)
    if precision:
        done += modelrepo.set_precision(config, precision)
    return done


def durations(parser: argparse.ArgumentParser, flag: str, items: Sequence[str]) -> Dict[str, str]:
    """The NAME=DURATION values of a flag."""
    by_name = {}
    for item in items:
        name, _, value = item.partition("=")
        if name not in ZOO:
            parser.error(f"{flag} {item}: unknown model {name!r}: expected one of {', '.join(ZOO)}")
        if not re.fullmatch(r"(\d+(\.\d+)?(us|ms|s|m))+", value):
            parser.error(f"{flag} {item}: duration {value!r}: expected one like 64ms or 1.5s")
        by_name[name] = value
    return by_name


def processes(jobs: int):
    """Processes for one task each: TorchScript numbers classes of the same name through the life of a
    process, so an archive would depend on what was traced before it; and its memory is given back."""
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which then ends the children
    return multiprocessing.get_context("fork").Pool(jobs, signal.signal, ignore, maxtasksperchild=1)


def verify(root: Path, names: List[str]) -> int:
    names = names or sorted(p.parent.name for p in root.glob("*/model.yaml"))
    if not names:
        print(f"error: {root}: no */model.yaml in it: expected a model repository", file=sys.stderr)
        return 1
    failed = 0
    for name in names:
        try:
            n, worst, accuracy = modelrepo.verify(root / name)
            right = "" if accuracy is None else f", {accuracy:.2%} of labels right"
            print(f"{name}: {n} samples within {worst:.1e}{right}", flush=True)
        except (ValueError, OSError, RuntimeError) as err:
            failed += 1
            print(f"error: {name}: {str(err).splitlines()[0]}", file=sys.stderr)
    return 1 if failed else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", metavar="OUTDIR", help="model repository to write into")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to export (default: all)")
    parser.add_argument("--slo", action="append", default=[], metavar="NAME=DURATION", help="SLO in model.yaml instead of the paper's; may repeat")
    parser.add_argument("--timeout", action="append", default=[], metavar="NAME=DURATION", help="when a request is given up, instead of twice the SLO; may repeat")
    parser.add_argument("--precision", choices=("stored", "fp32", "fp16", "bf16"), help="precision to serve with (default: as stored)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="models to export at the same time, each with one thread (default 1)")
    parser.add_argument("--weights", action="store_true", help="pretrained weights from torchvision where it has them (downloads)")
    parser.add_argument("--force", action="store_true", help="export again what is already there")
    parser.add_argument("--verify", type=Path, metavar="DIR", help="reload the archives in DIR and check their samples; exports nothing")
    parser.add_argument("--list", action="store_true", help="list the models and their SLOs")
    args = parser.parse_args(argv)
    if args.verify:
        args.names = ([str(args.out)] if args.out else []) + args.names
    elif not args.list and not args.out:
        parser.error("OUTDIR is missing: name the model repository to write into, as in: export_models.py models")
    known = ", ".join(ZOO)
    if not args.verify:
        for name in args.names:
            if name not in ZOO:
                parser.error(f"unknown model {name!r}: expected one of {known}")
    if args.jobs < 1:
        parser.error(f"--jobs {args.jobs}: expected at least 1")
    args.slo = durations(parser, "--slo", args.slo)
    args.timeout = durations(parser, "--timeout", args.timeout)
    return args


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    if args.list:
        for name, recipe in ZOO.items():
            print(f"{name:16s} {recipe.slo:>6s}  {recipe.about}")
        return 0
    torch.set_num_threads(1)  # the order of sums must not depend on the machine
    if args.verify:
        return verify(args.verify, args.names)
    # torchvision in Debian warns about its image library, which nothing here uses.
    warnings.filterwarnings("ignore", category=UserWarning)
    failed = 0
    with processes(args.jobs) as pool:
        tasks = {name: pool.apply_async(provide, (args.out, name, args.slo.get(name), args.timeout.get(name),
                                                  args.precision, args.weights, args.force))
                 for name in args.names or list(ZOO)}
        for name, task in tasks.items():
            try:
                print(f"{name}: {task.get()}", flush=True)
            except ImportError as err:
                failed += 1
                print(f"error: {name}: {err}: run scripts/setup.sh --for demo", file=sys.stderr)
            except (ValueError, OSError) as err:
                failed += 1
                print(f"error: {name}: {err}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
