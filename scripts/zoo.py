"""The architectures that torchvision does not have, as plain modules that trace to portable TorchScript.

Rules that keep an archive servable at any precision, batch and device: no Python branch on a shape,
no dtype or device baked into the trace (type_as instead of .to(torch.float32)), no fused operator
that only one LibTorch version knows.
"""
from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) on 28x28 grey images of bytes; the scaling to 0..1 is part of the graph,
    so that a request is 784 bytes."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5, padding=2)
        self.c2 = nn.Conv2d(6, 16, 5)
        self.f1 = nn.Linear(400, 120)
        self.f2 = nn.Linear(120, 84)
        self.f3 = nn.Linear(84, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.type_as(self.c1.weight) * (1 / 255)
        x = F.max_pool2d(torch.tanh(self.c1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.c2(x)), 2)
        x = torch.tanh(self.f1(torch.flatten(x, 1)))
        return self.f3(torch.tanh(self.f2(x)))


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(cout), nn.ReLU6(inplace=True))


def separable(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution: MobileNet-v1's block."""
    return nn.Sequential(conv_bn(cin, cin, 3, stride, groups=cin), conv_bn(cin, cout, 1))


class SSDMobileNetV1(nn.Module):
    """SSD on a MobileNet-v1 backbone at 300x300: six feature maps (19, 10, 5, 3, 2, 1), 1,917 anchors.

    Returns raw box offsets [N, 1917, 4], class logits [N, 1917, classes], and what of it most clients want
    [N, 100, 6]: the anchors that are surest of an object, surest first, each with its class, the class's
    probability (sigmoid) and its box offsets. Non-maximum suppression has data-dependent shapes and belongs
    to the client or a later stage.
    """

    BEST = 100
    MAPS = ((512, 3), (1024, 6), (512, 6), (256, 6), (256, 6), (128, 6))  # (channels, anchors per cell)

    def __init__(self, classes: int = 91):
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(
            conv_bn(3, 32, 3, 2), separable(32, 64), separable(64, 128, 2), separable(128, 128),
            separable(128, 256, 2), separable(256, 256), separable(256, 512, 2),
            *(separable(512, 512) for _ in range(5)))
        self.extras = nn.ModuleList([
            nn.Sequential(separable(512, 1024, 2), separable(1024, 1024)),
            nn.Sequential(conv_bn(1024, 256, 1), conv_bn(256, 512, 3, 2)),
            nn.Sequential(conv_bn(512, 128, 1), conv_bn(128, 256, 3, 2)),
            nn.Sequential(conv_bn(256, 128, 1), conv_bn(128, 256, 3, 2)),
            nn.Sequential(conv_bn(256, 64, 1), conv_bn(64, 128, 3, 2)),
        ])
        self.boxes = nn.ModuleList(nn.Conv2d(c, 4 * a, 1) for c, a in self.MAPS)
        self.scores = nn.ModuleList(nn.Conv2d(c, classes * a, 1) for c, a in self.MAPS)

    def forward(self, x: torch.Tensor):
        x = self.stem(x)
        maps = [x]
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        boxes = [h(m).permute(0, 2, 3, 1).flatten(1) for h, m in zip(self.boxes, maps)]
        scores = [h(m).permute(0, 2, 3, 1).flatten(1) for h, m in zip(self.scores, maps)]
        all_boxes = torch.cat(boxes, 1).unflatten(1, (-1, 4))
        all_scores = torch.cat(scores, 1).unflatten(1, (-1, self.classes))
        return all_boxes, all_scores, self.best(all_boxes, all_scores)

    def best(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The most likely objects. Class 0 is the background."""
        surest, label = scores[..., 1:].max(-1)
        top, anchor = surest.topk(self.BEST, 1)
        return torch.cat((
            (label.gather(1, anchor) + 1).type_as(boxes).unsqueeze(-1),
            top.sigmoid().unsqueeze(-1),
            boxes.gather(1, anchor.unsqueeze(-1).expand(-1, -1, 4))), -1)


class EncoderLayer(nn.Module):
    """A post-norm transformer layer written out. nn.TransformerEncoderLayer would bake an operator into
    the trace that only its own version of LibTorch has."""

    def __init__(self, d: int, heads: int, ff: int):
        super().__init__()
        self.heads, self.scale = heads, (d // heads) ** -0.5
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, ff), nn.Linear(ff, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((q * self.scale) @ k.transpose(-1, -2) + bias).softmax(-1)
        x = self.norm1(x + self.out((attention @ v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """A BERT encoder (Devlin et al. 2018) with its pooler and a two-class head.

    Takes token ids, attention mask (1 = token, 0 = padding) and segment ids, all INT64 [N, L];
    returns logits [N, 2] and the pooled vector [N, d].
    """

    def __init__(self, vocab: int = 30522, d: int = 768, layers: int = 12, heads: int = 12, ff: int = 3072,
                 max_len: int = 512):
        super().__init__()
        self.tokens, self.positions, self.segments = nn.Embedding(vocab, d), nn.Embedding(max_len, d), nn.Embedding(2, d)
        self.norm = nn.LayerNorm(d)
        self.layers = nn.ModuleList(EncoderLayer(d, heads, ff) for _ in range(layers))
        self.pool, self.classify = nn.Linear(d, d), nn.Linear(d, 2)
        self.register_buffer("places", torch.arange(max_len), persistent=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, seg: torch.Tensor):
        x = self.norm(self.tokens(ids) + self.positions(self.places[:ids.size(1)])[None] + self.segments(seg))
        # -1e4, not -inf: it must survive half precision, and a fully masked row must not become NaN.
        bias = (mask[:, None, None, :] == 0).type_as(x) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        pooled = torch.tanh(self.pool(x[:, 0]))
        return self.classify(pooled), pooled
