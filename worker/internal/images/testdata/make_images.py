#!/usr/bin/env python3
"""Makes the pictures of this folder with Pillow, an implementation that shares nothing with ours.

usage: scripts/python.sh worker/internal/images/testdata/make_images.py   (needs python3-pil)

picture.png is a smooth colour picture of odd size; picture-WxH.png is what Pillow's BILINEAR, which
counts every source pixel where it shrinks, makes of it. The JPEGs are the same picture.
"""
import math
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SIZE = (61, 47)


def colour(x: int, y: int) -> tuple:
    u, v = x / SIZE[0], y / SIZE[1]
    return tuple(round(127.5 + 90 * math.sin(5 * u + k) * math.cos(4 * v - 2 * k) + 30 * u) for k in range(3))


picture = Image.new("RGB", SIZE)
picture.putdata([tuple(min(255, max(0, c)) for c in colour(x, y)) for y in range(SIZE[1]) for x in range(SIZE[0])])
picture.save(HERE / "picture.png", optimize=True)
for size in ((23, 19), (61, 12), (100, 90), (7, 47)):
    picture.resize(size, Image.BILINEAR).save(HERE / f"picture-{size[0]}x{size[1]}.png", optimize=True)
for name, options in {
    "baseline-444": dict(subsampling=0),
    "baseline-422": dict(subsampling=1),
    "baseline-420": dict(subsampling=2),
    "progressive": dict(subsampling=2, progressive=True),
}.items():
    picture.save(HERE / f"{name}.jpg", quality=92, **options)
picture.convert("L").save(HERE / "grey.jpg", quality=92)
picture.convert("CMYK").save(HERE / "cmyk.jpg", quality=92)
