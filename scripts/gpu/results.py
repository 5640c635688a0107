#!/usr/bin/env python3
"""Write docs/results.md from the JSON in docs/results/, which scripts/gpu/evaluate.sh measured on a GPU.

Every figure of the page is in one of those files; what is not measured yet is said to be missing.
Figures of a simulated GPU or of a CPU are refused: they belong nowhere near this page.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
ARMS = {
    "sbp": "time-sharing (`sbp`)", "mps": "MPS without shares", "streams": "one process, streams",
    "uncapped": "`gpulet`'s plans without shares", "even": "halves (`even`)", "elastic": "`elastic`", "gpulet": "**`gpulet`**",
}
MIXES = ("game", "traffic", "scen1", "scen2", "scen3", "scen4", "scen5", "all9")
HEAD = """# Results

Measured on real GPUs with `scripts/gpu/evaluate.sh`, and written from [the JSON](results) by
`scripts/gpu/results.py`; a test holds the page to it. What a section lacks has not been measured yet.
The rules of the experiments: Poisson load on the whole system on one GPU and one host, clients included;
fp16; a model's SLO is twice the latency of a batch of 32 alone on the whole GPU, and never under 5 ms;
the goodput of a mix is the rate of samples answered within their SLO at the highest rate tried at which
at most 1 % of all samples missed theirs and no request was lost.
"""
Json = Dict[str, Any]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is not what would be written")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of the JSON")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="page to write")
    args = parser.parse_args(argv)
    try:
        text = page(args.results)
    except (ValueError, KeyError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    if not args.check:
        args.page.write_text(text)
        return 0
    if not args.page.exists() or args.page.read_text() != text:
        print(f"error: {args.page} is not what {args.results} makes of it: run scripts/gpu/results.py", file=sys.stderr)
        return 1
    return 0


def page(folder: Path) -> str:
    sections = [HEAD, goodput(cells_of(folder / "goodput"))]
    sections += [earlier(cells_of(f)) for f in sorted(folder.glob("goodput-*"))]
    for name, section in SECTIONS.items():
        path = folder / f"{name}.json"
        sections.append(section(read(path) if path.exists() else None))
    notes = folder / "notes.md"
    if notes.exists():
        sections.append("## Notes\n\n" + notes.read_text().strip() + "\n")
    return "\n".join(sections)


def cells_of(folder: Path) -> List[Json]:
    return [read(p) for p in sorted(folder.glob("*.json"))] if folder.is_dir() else []


def read(path: Path) -> Json:
    try:
        doc = json.loads(path.read_text())
    except json.JSONDecodeError as err:
        raise ValueError(f"{path}: {err}") from err
    if doc.get("about", {}).get("sim"):
        raise ValueError(f"{path}: of {doc['about'].get('device')}: expected figures of a real GPU")
    return doc


# --- text -----------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def where(doc: Json) -> str:
    """A line on where and how a part was measured."""
    about = doc["about"]
    gpu = about.get("gpu") or about["device"]
    driver = f", driver {about['driver']}" if about.get("driver") else ""
    return f"{about['date']}, {gpu}{driver}, {about['cores']} cores, {about.get('version', 'unknown version')}: `{about['command']}`"


def missing(title: str, what: str) -> str:
    return f"## {title}\n\nNot measured yet: {what}.\n"


def mark(met: bool) -> str:
    return "met" if met else "**not met**"


def percent(share: Optional[float]) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


# --- goodput --------------------------------------------------------------------------------------------


def goodput(cells: List[Json]) -> str:
    if not cells:
        return missing("Goodput", "the highest rate of every arm on every mix")
    by = {(c["mix"], c["arm"]): c for c in cells}
    mixes = mixes_of(cells)
    parts = ["## Goodput\n", "Samples/s within their SLO, and, in parentheses, what the planner promised.\n",
             goodput_table(by, mixes),
             goodput_verdict(by, mixes), goodput_notes(cells), "### Predicted and measured violations\n",
             "Of every rate that was tried: what `planner simulate` says of its plan, with the part of each SLO that plans\nkeep for the way through the queue taken off, and what was measured.\n",
             table(["mix", "arm", "samples/s", "predicted", "measured", "worst model", "its p99 (SLO)", "GPU busy", "cores busy"],
                   [try_row(c, t) for mix in mixes for arm in ARMS if (c := by.get((mix, arm))) for t in c["tries"] or []]),
             "### Runs\n", "\n".join(sorted({f"- {where(c)}" for c in cells})) + "\n"]
    return "\n".join(parts)


def earlier(cells: List[Json]) -> str:
    """What was measured on another GPU, in short."""
    by = {(c["mix"], c["arm"]): c for c in cells}
    mixes = mixes_of(cells)
    gpus = sorted({c["about"]["gpu"] for c in cells})
    return "\n".join([f"### Earlier: {', '.join(gpus)}\n", goodput_table(by, mixes), goodput_verdict(by, mixes),
                      "\n".join(sorted({f"- {where(c)}" for c in cells})) + "\n"])


def mixes_of(cells: List[Json]) -> List[str]:
    return sorted({c["mix"] for c in cells}, key=lambda m: (MIXES.index(m) if m in MIXES else len(MIXES), m))


def goodput_table(by: Dict, mixes: Sequence[str]) -> str:
    return table(["mix", *ARMS.values(), "`gpulet` / `sbp`"], [goodput_row(by, mix) for mix in mixes])


def measured(cell: Optional[Json]) -> Optional[float]:
    return cell["goodput_rps"] if cell and not cell.get("skipped") else None


def goodput_row(by: Dict, mix: str) -> List[str]:
    row = [mix]
    for arm in ARMS:
        cell = by.get((mix, arm))
        value = measured(cell)
        if value is None:
            row.append("–")
        else:
            row.append(f"{value:.0f}" + (f" ({cell['expected_rps']:.0f})" if cell["expected_rps"] else ""))
    gain = ratio(by, mix)
    return row + ["–" if gain is None else f"{gain:.2f}"]


def ratio(by: Dict, mix: str) -> Optional[float]:
    ours, theirs = measured(by.get((mix, "gpulet"))), measured(by.get((mix, "sbp")))
    return ours / theirs if ours is not None and theirs else None


def goodput_verdict(by: Dict, mixes: Sequence[str]) -> str:
    gains = [g for g in (ratio(by, m) for m in mixes) if g is not None]
    lines = []
    if gains:
        mean = sum(gains) / len(gains)
        some = "" if len(gains) == len(mixes) else f", those of {len(mixes)} on which `sbp` had any goodput"
        lines.append(f"- Target: `gpulet` at least 1.6 times `sbp` on average. It is {mean:.2f} times over {len(gains)} mixes{some}: {mark(mean >= 1.6)}.")
    behind = []
    for mix in mixes:
        ours = measured(by.get((mix, "gpulet")))
        for arm in ARMS:
            other = measured(by.get((mix, arm)))
            if arm != "gpulet" and ours is not None and other is not None and other > ours:
                behind.append(f"{arm} on {mix} ({other:.0f} against {ours:.0f})")
    lines.append(f"- Target: `gpulet` at least as good as every other arm on every mix: {mark(not behind)}"
                 + (f", behind {', '.join(behind)}." if behind else "."))
    return "\n".join(lines) + "\n"


def goodput_notes(cells: Sequence[Json]) -> str:
    """What limits the figures: cells that were left out, requests of several samples, busy CPUs, no border found."""
    lines = []
    for c in cells:
        name = f"{c['mix']}, {c['arm']}"
        if c.get("skipped"):
            lines.append(f"- {name}: not measured: {c['skipped']}")
            continue
        lines += [f"- {name}: {note}" for note in c.get("notes") or []]
        if not c["goodput_rps"]:
            lines.append(f"- {name}: no rate that was tried was good; the lowest was {min(t['rate_rps'] for t in c['tries']):.0f} samples/s")
        elif not c["too_high_rps"]:
            lines.append(f"- {name}: no rate that was tried was too high")
    for mix in sorted({c["mix"] for c in cells}):
        several = {m: n for c in cells if c["mix"] == mix for m, n in (c.get("samples") or {}).items() if n > 1}
        if several:
            lines.append(f"- {mix}: so that neither CPU nor queue binds before the GPU, a request carries "
                         + ", ".join(f"{n} samples of {m}" for m, n in sorted(several.items())))
    bodies = sorted({c.get("body") or "tensors" for c in cells})
    steps = sorted({c["step_s"] for c in cells})
    lines.append(f"- Requests are {', '.join(bodies)}; each rate was measured for {', '.join(f'{s:g} s' for s in steps)}, "
                 "once: two rates that are within a few percent of each other are the same.")
    return "\n".join(lines) + "\n"


def try_row(c: Json, t: Json) -> List[str]:
    worst = t["models"].get(t["worst_model"], {})
    busy = t.get("gpu_utilisation_percent")
    return [c["mix"], c["arm"], f"{t['rate_rps']:.0f}", percent(t.get("predicted_violations")), percent(t["violations"]),
            f"{t['worst_model']} {percent(t['worst_violations'])}",
            f"{worst.get('p99_ms', 0):.1f} ms ({c['slos_ms'].get(t['worst_model'], 0):.1f})",
            "" if busy is None else f"{busy:.0f} %", f"{sum(t['cores'].values()):.1f}"]


# --- the other parts ------------------------------------------------------------------------------------


def start(doc: Optional[Json]) -> str:
    title = "A new gpu-let"
    if doc is None:
        return missing(title, "the time from a change of plan to a new gpu-let's first answer")
    stages = ("noticed_s", "process_s", "engine_s", "connect_s", "load_s", "first_s")
    rows = [[s["model"], f"{s['share']} %", *(f"{s[k]:.2f}" for k in ("answer_s", *stages))] for s in doc["starts"]]
    return (f"## {title}\n\nFrom the publishing of a plan to the first answer of its new gpu-let, with a warm file cache, in seconds: until\n"
            "the agent starts it, the process runs, the engine is open, NATS is connected, the model is loaded\n"
            "(context, weights, warm-up, capture), and the first request is answered.\n\n"
            + table(["model", "share", "all", "noticed", "process", "engine", "connect", "load", "first"], rows)
            + f"\nTarget: a median of at most 1.5 s. It is {doc['median_s']:.2f} s over {len(rows)}: {mark(doc['median_s'] <= 1.5)}.\n\n{where(doc)}\n")


def harm(title: str, what: str, targets: Callable[[Json], str]) -> Callable[[Optional[Json]], str]:
    def section(doc: Optional[Json]) -> str:
        if doc is None:
            return missing(title, what)
        rows = [[t["happened"], f"{t['noticed_s']:.2f} s", f"{t['whole_s']:.2f} s", f"{t['neighbours_p99_ratio']:.2f}",
                 neighbours(t, doc["victim"], "before"), neighbours(t, doc["victim"], "during"), neighbours(t, doc["victim"], "after"),
                 str(t["lost"])] for t in doc["times"]]
        return (f"## {title}\n\nThe victim serves {doc['victim']} on {doc['share']} %; its neighbours have as much each, and load:\n"
                f"{', '.join(f'{m} {r:.0f}/s' for m, r in sorted(doc['rates_rps'].items()))}.\n\n"
                + table(["what happened", "seen after", "whole after", "neighbours' p99, x", "neighbours' worst p99 before", "during", "after", "lost"], rows)
                + f"\n{targets(doc)}\n\n{where(doc)}\n")

    return section


def neighbours(t: Json, victim: str, phase: str) -> str:
    p99 = [m["p99_ms"] for name, m in t[phase].items() if name != victim]
    return f"{max(p99):.1f} ms" if p99 else ""


def kill_targets(doc: Json) -> str:
    p99, whole = max(t["neighbours_p99_ratio"] for t in doc["times"]), max(t["whole_s"] for t in doc["times"])
    return (f"Targets: the neighbours' p99 within 1.5 times, it is {p99:.2f}: {mark(p99 <= 1.5)}; "
            f"whole within 3 s, it is {whole:.2f} s: {mark(whole <= 3)}.")


def fault_targets(doc: Json) -> str:
    recovered = all(t["restarts"] > 0 for t in doc["times"])
    return f"Target: all of the GPU's gpu-lets recover without help: {mark(recovered)}."


def shares(doc: Optional[Json]) -> str:
    title = "Shares"
    if doc is None:
        return missing(title, "the SMs that a process sees at each share")
    rows = doc["shares"]
    return (f"## {title}\n\nSMs that a process sees on its share, under MPS.\n\n"
            + table([f"{r['share']} %" for r in rows], [[str(r["sms"]) for r in rows]]) + f"\n{where(doc)}\n")


def graphs(doc: Optional[Json]) -> str:
    title = "CUDA graphs"
    if doc is None:
        return missing(title, "graphs against eager execution at batch 1")
    rows = doc["rows"]
    least = min(r["eager_ms"] / r["graph_ms"] for r in rows)
    return (f"## {title}\n\nA batch of one, medians.\n\n"
            + table(["model", "share", "eager", "graph", "x", "load eager", "load with one graph"],
                    [[r["model"], f"{r['share']} %", f"{r['eager_ms']:.3f} ms", f"{r['graph_ms']:.3f} ms", f"{r['eager_ms'] / r['graph_ms']:.2f}",
                      f"{r['eager_load_ms']:.0f} ms", f"{r['graph_load_ms']:.0f} ms"] for r in sorted(rows, key=lambda r: (r["model"], r["share"]))])
            + f"\nTarget: at least 2 times at every share. The least is {least:.2f}: {mark(least >= 2)}.\n\n{where(doc)}\n")


def splits(doc: Optional[Json]) -> str:
    title = "Equal gpu-lets against the whole GPU"
    if doc is None:
        return missing(title, "engine-level throughput of equal gpu-lets that fill the GPU")
    whole = {r["model"]: r["samples_per_s"] for r in doc["rows"] if r["gpulets"] == 1}
    rows = [[r["model"], f"{r['slo_ms']:.1f} ms", f"{r['gpulets']} x {r['share']} %", str(r["batch"]), f"{r['samples_per_s']:.0f}",
             f"{r['samples_per_s'] / whole[r['model']]:.2f}" if whole.get(r["model"]) else "", f"{r['p50_ms']:.2f} ms"] for r in doc["rows"]]
    return (f"## {title}\n\nBatches back to back, without queue, each split at the batch with the most throughput of which two fit the SLO.\n\n"
            + table(["model", "SLO", "gpu-lets", "batch", "samples/s", "x of the whole", "slowest p50"], rows) + f"\n{where(doc)}\n")


def judged(doc: Optional[Json]) -> str:
    title = "Interference"
    if doc is None:
        return missing(title, "the slowdown beside neighbours at full load, against the prediction")
    rows = [[f"{r['self']['model']} {r['self']['share']} % b{r['self']['batch']}",
             ", ".join(f"{o['model']} {o['share']} % b{o['batch']}" for o in r["others"]), f"{r['slowdown']:.3f}", f"{r['predicted']:.3f}",
             f"{100 * (r['predicted'] / r['slowdown'] - 1):+.1f} %"] for r in doc["runs"]]
    p90 = doc["error"]["p90"]
    base = "their own alone, measured just before" if all("alone_ms" in r for r in doc["runs"]) else "the profiled medians"
    return (f"## {title}\n\nMedians of gpu-lets at full load beside neighbours at full load, in combinations that the model was not fitted to,\n"
            f"over {base}; predicted without the margin that plans add.\n\n"
            + table(["gpu-let", "beside", "measured", "predicted", "off by"], rows)
            + f"\nTarget: a p90 error of at most 10 %. It is {100 * p90:.1f} % over {doc['error']['pairs']} ({doc['kind']} model, median "
              f"{100 * doc['error']['p50']:.1f} %, at most {100 * doc['error']['max']:.1f} %): {mark(p90 <= 0.1)}. "
              f"{doc['above']} of {len(rows)} were slower than predicted with the margin, x{doc['margin']:.3f}.\n\n{where(doc)}\n")


SECTIONS: Dict[str, Callable[[Optional[Json]], str]] = {
    "start": start,
    "kill": harm("A gpu-let is killed", "what SIGKILL of a gpu-let does to its neighbours", kill_targets),
    "fault": harm("A device fault", "how a GPU's gpu-lets recover from an illegal access in one of them", fault_targets),
    "shares": shares, "graphs": graphs, "splits": splits, "judged": judged,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
