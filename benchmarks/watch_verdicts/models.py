"""The small models that are trained for the rules of a watched run, of which every block can be found by its name."""

from __future__ import annotations

import torch
from torch import nn

from levada.study.data import king_james

__all__ = ["conv", "gated", "he", "mlp", "transformer"]


class Chain(nn.Module):
    """Blocks one after the other, with or without a skip; `cut` detaches a block."""

    def __init__(self, blocks, head, *, residual=False, stem=None, drop=0.0):
        super().__init__()
        self.stem = stem or nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.residual, self.cut, self.drop = residual, None, drop

    def forward(self, x):
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            if self.drop and self.training and float(torch.rand(())) < self.drop:
                continue
            out = block(x)
            out = out.detach() if self.cut == i else out
            x = x + out if self.residual else out
        return self.head(x)


class Block(nn.Module):
    """A linear map and its activation, or a convolution's, or an attention's."""

    def __init__(self, *parts, scale=None):
        super().__init__()
        self.parts = nn.Sequential(*parts)
        self.scale = None if scale is None else nn.Parameter(torch.full((), scale))

    def forward(self, x):
        out = self.parts(x)
        return out if self.scale is None else out * self.scale


class Attention(nn.Module):
    """A pre-norm transformer block's branch: causal attention, then two maps."""

    def __init__(self, dim, heads, dropout):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout, batch_first=True, norm_first=True)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layer(x, src_mask=mask, is_causal=True)


class Text(nn.Module):
    """Embedding with positions."""

    def __init__(self, characters, dim, length):
        super().__init__()
        self.token, self.place = nn.Embedding(characters, dim), nn.Parameter(torch.randn(length, dim) * 0.02)

    def forward(self, tokens):
        return self.token(tokens) + self.place


class Gate(nn.Module):
    """Lets a whole batch through, or nothing of it."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return x * (torch.rand(()) >= self.p) / (1 - self.p) if self.training else x


def he(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def gated(model, p):
    for block in model.blocks:
        block.parts.append(Gate(p))
    return model


def mlp(depth=6, width=64, activation=nn.ReLU, dropout=0.0, residual=False, scale=None, norm=False, **options):
    def block(inputs):
        parts = [nn.LayerNorm(inputs)] if norm else []
        parts += [nn.Linear(inputs, width), activation()]
        return Block(*parts, *([nn.Dropout(dropout)] if dropout else []), scale=scale)

    stem = nn.Linear(40, width)
    return Chain([block(width) for _ in range(depth)], nn.Linear(width, 10), residual=residual, stem=stem, **options)


def conv(depth=6, width=12):
    def block():
        return Block(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())

    stem = nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.MaxPool2d(2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return Chain([block() for _ in range(depth)], head, residual=True, stem=stem)


def transformer(dim=48, depth=2, dropout=0.1, length=32):
    text = king_james()
    head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(text.characters)))
    blocks = [Attention(dim, 4, dropout) for _ in range(depth)]
    return Chain(blocks, head, stem=Text(len(text.characters), dim, length))
