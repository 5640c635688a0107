#!/usr/bin/env python3
"""Train the LeNet-5 that ships with gpulet, on real handwritten digits.

Data: "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository, Alpaydin & Kaynak 1998,
CC BY 4.0), the 1,797 images of 8x8 that scikit-learn carries, so nothing is downloaded. They are
upsampled to 28x28 grey bytes, LeNet's own input. A stratified sixth is held out, never trained on and never
used to choose anything; the held-out digits become the model's samples, with their labels.

Same seed, same machine, same archive. Takes about a minute on one core.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import modelrepo
from zoo import LeNet

EXAMPLES = """examples:
  scripts/python.sh scripts/train_digits.py                    train and write models/lenet
  scripts/python.sh scripts/train_digits.py --out /tmp/models  write elsewhere
"""

HELD_OUT = 290  # of 1,797: with these, archive and samples stay under 0.5 MB in the repository


def digits(seed: int):
    """(train x, train y, held-out x, held-out y): x UINT8 [N, 1, 28, 28], y INT64 [N]."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)  # 0..16
    large = F.interpolate(small, size=28, mode="bilinear", align_corners=False) * (255 / 16)
    images = large.round().clamp(0, 255).to(torch.uint8)
    train, held = train_test_split(np.arange(len(images)), test_size=HELD_OUT, stratify=data.target, random_state=seed)
    y = torch.tensor(data.target)
    return images[train], y[train], images[held], y[held]


def augment(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Turn, shear, scale and shift each image a little, as hands do."""
    n = x.shape[0]

    def spread(width: float) -> torch.Tensor:
        return (torch.rand(n, generator=rng) * 2 - 1) * width

    angle, shear, scale = spread(0.20), spread(0.15), 1 + spread(0.12)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([torch.stack([cos, -sin + shear, spread(0.14)], 1),
                         torch.stack([sin, cos, spread(0.14)], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, align_corners=False)


def train(x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int) -> LeNet:
    """A fixed schedule: nothing is chosen by looking at the held-out digits."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model, batch = LeNet(), 64
    steps = epochs * ((len(x) + batch - 1) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order, total = torch.randperm(len(x), generator=rng), 0.0
        for pick in order.split(batch):
            loss = F.cross_entropy(model(augment(x[pick], rng)), y[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(pick)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}/{epochs}  loss {total / len(x):.4f}", flush=True)
    return model.eval()


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=root / "models", metavar="DIR", help="model repository to write into (default models/)")
    parser.add_argument("--epochs", type=int, default=120, metavar="N", help="passes over the training digits (default 120)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of split, weights and augmentation (default 1)")
    parser.add_argument("--slo", default="50ms", metavar="DURATION", help="SLO in model.yaml (default 50ms, which a laptop's CPU keeps)")
    parser.add_argument("--timeout", default="5s", metavar="DURATION", help="timeout in model.yaml (default 5s, which outlives the restart of a gpu-let)")
    args = parser.parse_args()

    torch.set_num_threads(1)  # the order of sums, and so the archive, must not depend on the machine's cores
    torch.use_deterministic_algorithms(True)
    started = time.monotonic()
    x, y, held_x, held_y = digits(args.seed)
    print(f"{len(x)} digits to train on, {len(held_x)} held out")
    model = train(x, y, args.epochs, args.seed)

    samples = modelrepo.Samples((held_x,), (), held_y.tolist())
    module = modelrepo.trace(model, samples.inputs)
    samples.outputs = modelrepo.run(module, samples.inputs, batch=1)
    entry = modelrepo.Entry("lenet", args.slo, 32, ["input"], ["output"],
                            about="LeNet-5 on handwritten digits; made by scripts/train_digits.py", timeout=args.timeout)
    right = (samples.outputs[0].argmax(1) == held_y).sum().item()
    accuracy = right / len(held_y)
    print(f"held out: {right} of {len(held_y)} right ({accuracy:.2%}) after {time.monotonic() - started:.0f} s")
    if accuracy < 0.97:
        print("error: accuracy below 97 %: expected at least that; nothing written", file=sys.stderr)
        return 1
    folder = modelrepo.save(args.out, entry, module, samples)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"wrote {folder} ({size / 1e3:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
