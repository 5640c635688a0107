#!/usr/bin/env python3
"""Set the SLOs of a model repository from measured profiles, by the rule of the experiments:
twice the latency of a batch of 32 alone on the whole GPU, as in the gpu-lets paper (Choi et al.,
USENIX ATC 2022), and never under 5 ms.

They go into each model.yaml, the one place where planner, frontend and load generator find them. A
timeout there is taken away, so that it is the default again: twice the SLO.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Sequence

BATCH, FACTOR, LEAST_MS = 32, 2, 5.0


def solo_ms(profile: Path) -> float:
    """The profiled median of a batch of 32 at 100 %, between its neighbours where it was not measured."""
    whole = {p["batch"]: p["p50_ms"] for p in json.loads(profile.read_text())["points"] if p["share"] == 100}
    below = max((b for b in whole if b <= BATCH), default=None)
    above = min((b for b in whole if b >= BATCH), default=None)
    if below is None or above is None:
        raise ValueError(f"{profile}: batches {sorted(whole)} at share 100: expected some around {BATCH}")
    if below == above:
        return whole[BATCH]
    return whole[below] + (whole[above] - whole[below]) * (BATCH - below) / (above - below)


def set_slo(config: Path, slo: str) -> None:
    """Write the SLO into a model.yaml, which a reader sees whole or not at all."""
    text = re.sub(r"(?m)^timeout: .*\n", "", config.read_text())
    text, found = re.subn(r"(?m)^slo: .*$", f"slo: {slo}", text)
    if found != 1:
        raise ValueError(f"{config}: {found} lines with slo: expected one")
    tmp = config.with_name(config.name + ".tmp")
    tmp.write_text(text)
    os.replace(tmp, config)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="example: scripts/gpu/slos.py profiles/h100 build/gpu/models")
    parser.add_argument("profiles", type=Path, help="folder of one GPU type's profiles")
    parser.add_argument("models", type=Path, help="model repository")
    args = parser.parse_args(argv)
    configs = sorted(args.models.glob("*/model.yaml"))
    if not configs:
        parser.error(f"{args.models}: no */model.yaml in it: expected a model repository")
    failed = 0
    for config in configs:
        name = config.parent.name
        profile = args.profiles / f"{name}.json"
        if not profile.exists():
            print(f"{name}: no profile, its SLO stays")
            continue
        try:
            slo = max(LEAST_MS, FACTOR * solo_ms(profile))
            set_slo(config, f"{slo:.3f}ms")
            print(f"{name}: {slo:.3f} ms")
        except (ValueError, OSError, KeyError) as err:
            failed += 1
            print(f"error: {name}: {err}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
