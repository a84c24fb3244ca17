"""Low-rank adapters (LoRA, rsLoRA, DoRA) in place of the model's linear layers, with the semantics of PEFT.

Axes: T tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from gemmary.engines.torch_modules import Model


class LoraSettings(Protocol):
    """What `attach` reads of a run's settings."""

    @property
    def lora_rank(self) -> int: ...
    @property
    def lora_alpha(self) -> float: ...
    @property
    def lora_dropout(self) -> float: ...
    @property
    def lora_targets(self) -> Sequence[str]:
        """Names of the tensor table without their layers: q, k, v, o, gate, up, down."""
        ...

    @property
    def rslora(self) -> bool: ...
    @property
    def dora(self) -> bool: ...
    @property
    def seed(self) -> int: ...


class LoraLinear(nn.Module):
    """y = base(x) + scale * B(A(dropout(x))), where scale is alpha / r, or alpha / sqrt(r) for rsLoRA.

    With DoRA each output is then multiplied by magnitude / ||row of W + scale * B A||, a norm that no gradient enters
    (https://arxiv.org/abs/2402.09353, section 4.3). A, B and the magnitude are float32; the products are in x's dtype.
    """

    row_squares: Tensor

    def __init__(
        self, base: Any, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False, dora: bool = False
    ) -> None:
        """base: an `nn.Linear` without bias, or a `QuantizedLinear`; its sizes are `in_features` and `out_features`.

        B starts at zero and A as PEFT has it, from PyTorch's generator.
        """
        super().__init__()
        inputs, outputs, device = base.in_features, base.out_features, _place(base).device
        self.base: nn.Module = base.requires_grad_(False)
        self.scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.dropout = dropout
        self.lora_A = nn.Linear(inputs, rank, bias=False, device="meta")
        self.lora_B = nn.Linear(rank, outputs, bias=False, device="meta")
        self.lora_A.weight = nn.Parameter(torch.empty(rank, inputs, device=device))
        self.lora_B.weight = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.magnitude: nn.Parameter | None = None
        self.reset()
        if dora:
            squares = _row_squares(base)
            self.register_buffer("row_squares", squares, persistent=False)
            self.magnitude = nn.Parameter(squares.sqrt())

    def reset(self, generator: torch.Generator | None = None) -> None:
        """A anew from the generator (https://arxiv.org/abs/2106.09685, as PEFT: the default of `nn.Linear`), B zero."""
        with torch.no_grad():
            values = torch.empty(self.lora_A.weight.shape)
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
            self.lora_A.weight.copy_(values)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        y: Tensor = self.base(x)
        drops = self.training and self.dropout > 0
        dropped = functional.dropout(x, self.dropout) if drops else x
        a, b = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        update = functional.linear(functional.linear(dropped, a), b * self.scale)
        if self.magnitude is None:
            return y + update
        stretch = (self.magnitude / self.row_norms()).to(x.dtype)
        if drops:  # as PEFT: what DoRA changes of the base's output sees the dropped input
            apart: Tensor = self.base(dropped)
            return y + (stretch - 1) * apart + stretch * update
        return stretch * (y + update)

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """||row of W + scale * B A|| [O], from W A^T and A A^T: the sum itself [O, I] is never formed."""
        a, b = self.lora_A.weight, self.lora_B.weight * self.scale
        crossed_Or = self.base(a.to(_place(self.base).dtype)).float().t()
        squares: Tensor = self.row_squares + (2 * crossed_Or * b).sum(dim=1) + ((b @ (a @ a.t())) * b).sum(dim=1)
        return torch.sqrt(squares)


def attach(model: Model, settings: LoraSettings) -> dict[str, LoraLinear]:
    """Puts a `LoraLinear` in place of every linear layer that `settings.lora_targets` names: name in the tensor table
    -> layer, in the table's order. The first values come from `settings.seed` alone."""
    generator = torch.Generator().manual_seed(settings.seed)
    options = (settings.lora_rank, settings.lora_alpha, settings.lora_dropout, settings.rslora, settings.dora)
    found: dict[str, LoraLinear] = {}
    for name, path in model.paths.items():
        if name.startswith("layers.") and name.rpartition(".")[2] in settings.lora_targets:
            owner, _, last = path.rpartition(".")
            found[name] = LoraLinear(model.get_submodule(path), *options)
            found[name].reset(generator)
            setattr(model.get_submodule(owner), last, found[name])
    return found


def _row_squares(base: Any) -> Tensor:
    """Sums of squares of the rows of a linear layer's weight [O], float32."""
    if isinstance(base, nn.Linear):
        return base.weight.detach().float().square().sum(dim=1)
    squares: Tensor = base.row_squares()
    return squares


def _place(base: Any) -> Tensor:
    """A tensor on the device of a layer, in its dtype of computing."""
    if isinstance(base, nn.Linear):
        return base.weight
    place: Tensor = base.place
    return place
