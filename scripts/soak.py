#!/usr/bin/env python3
"""Draws what make soak wrote, and says whether it is flat: soak.py soak.csv docs/soak.svg

Standard library only. A series is flat when the straight line through its second half rises by less
than 5 % of its mean, or by less than its floor below, over that half. Gpu-lets are replaced at every
change of the plan: theirs are by host, the highest of those that run there at a time.
"""
import csv
import sys

# column of the CSV: title, and a rise over half the run that is noise whatever the mean is
SERIES = {
    "rss_mib": ("resident memory, MiB", 2.0),
    "goroutines": ("goroutines", 5.0),
    "fds": ("open files", 2.0),
    "jetstream_memory_mib": ("JetStream, memory, MiB", 0.5),
    "jetstream_file_mib": ("JetStream, disk, MiB", 2.0),
}
WIDTH, HEIGHT, LEFT, TOP = 230, 110, 110, 40
STYLE = """text{font:11px sans-serif;fill:#333}.h{font-weight:bold}.a{stroke:#bbb;fill:none}
.l{stroke:#1668b8;fill:none;stroke-width:1.3}
@media(prefers-color-scheme:dark){svg{background:#161b22}text{fill:#ddd}.a{stroke:#555}.l{stroke:#6cb2ff}}"""


def read(path):
    """series by program and column: lists of (hours, value), in order"""
    found = {}
    with open(path, newline="") as f:
        for row in csv.DictReader(f):
            for column in SERIES:
                if row[column]:
                    points = found.setdefault(row["program"], {}).setdefault(column, {})
                    at = float(row["seconds"]) / 3600
                    points[at] = max(points.get(at, 0), float(row[column]))
    return {p: {c: sorted(v.items()) for c, v in columns.items()} for p, columns in found.items()}


def slope(points):
    """least squares, per hour"""
    n = len(points)
    mx, my = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mx) ** 2 for x, _ in points)
    return sum((x - mx) * (y - my) for x, y in points) / spread if spread else 0.0


def judge(points, floor):
    """slope per hour over the second half, and whether that is flat"""
    middle = (points[0][0] + points[-1][0]) / 2
    half = [p for p in points if p[0] >= middle]
    per_hour, mean = slope(half), sum(y for _, y in half) / len(half)
    return per_hour, per_hour * (half[-1][0] - half[0][0]) < max(0.05 * mean, floor)


def panel(points, x, y, end):
    """one curve between 0 and a little above its highest value"""
    top = 1.15 * max(v for _, v in points) or 1
    line = " ".join(f"{x + WIDTH * at / end:.1f},{y + HEIGHT - HEIGHT * v / top:.1f}" for at, v in points)
    return (f'<path class="a" d="M{x},{y}V{y + HEIGHT}H{x + WIDTH}"/><polyline class="l" points="{line}"/>'
            f'<text x="{x + 3}" y="{y + 9}">{top / 1.15:.4g}</text><text x="{x + WIDTH}" y="{y + HEIGHT + 12}" text-anchor="end">{60 * end:.0f} min</text>')


def draw(found, path):
    columns = [c for c in SERIES if any(c in v for v in found.values())]
    end = max(points[-1][0] for v in found.values() for points in v.values())
    parts = [f'<text class="h" x="{LEFT + i * (WIDTH + 30)}" y="20">{SERIES[c][0]}</text>' for i, c in enumerate(columns)]
    for j, program in enumerate(sorted(found)):
        y = TOP + j * (HEIGHT + 30)
        parts.append(f'<text class="h" x="5" y="{y + HEIGHT / 2}">{program}</text>')
        parts += [panel(found[program][c], LEFT + i * (WIDTH + 30), y, end) for i, c in enumerate(columns) if c in found[program]]
    w, h = LEFT + len(columns) * (WIDTH + 30), TOP + len(found) * (HEIGHT + 30)
    with open(path, "w") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}"><style>{STYLE}</style>\n'
                + "\n".join(parts) + "\n</svg>\n")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = read(sys.argv[1])
    if not found:
        sys.exit(f"{sys.argv[1]}: no rows: expected the CSV of make soak")
    draw(found, sys.argv[2])
    print("| program | series | first | last | per hour, second half | flat |\n|---|---|---|---|---|---|")
    for program in sorted(found):
        for column, points in found[program].items():
            per_hour, flat = judge(points, SERIES[column][1])
            print(f"| {program} | {SERIES[column][0]} | {points[0][1]:.4g} | {points[-1][1]:.4g} | {per_hour:+.3g} | {'yes' if flat else 'NO'} |")


main()
