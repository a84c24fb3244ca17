"""Low-rank adapters (LoRA, rsLoRA, DoRA) in place of the model's linear layers, with the semantics of PEFT.

Axes: T tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn import functional

from gemmary.checkpoints.peft import linear_names
from gemmary.engines.torch_modules import Model
from gemmary.engines.torch_sources import keep, kept
from gemmary.errors import GemmaryError
from gemmary.tune.settings import Settings

if TYPE_CHECKING:
    from gemmary.engines.torch_quantized import QuantizedLinear

Base: TypeAlias = "nn.Linear | QuantizedLinear"


class LoraLinear(nn.Module):
    """y = base(x) + scale * B(A(dropout(x))), where scale is alpha / r, or alpha / sqrt(r) for rsLoRA.

    With DoRA each output is then multiplied by magnitude / ||row of W + scale * B A||, a norm that no gradient enters
    (https://arxiv.org/abs/2402.09353, section 4.3). A, B and the magnitude are float32; the products are in x's dtype.
    The base's bias, where it has one, is taken from it and added last.
    """

    row_squares: Tensor
    bias: Tensor | None

    def __init__(
        self,
        base: Base,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        dora: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """base: an `nn.Linear` or a `QuantizedLinear`; its sizes are `in_features` and `out_features`.

        B starts at zero, and A where PEFT starts it, uniform as in an `nn.Linear`: drawn on the CPU from `generator`.
        """
        super().__init__()
        inputs, outputs, device = base.in_features, base.out_features, _place(base).device
        self.base: Base = base.requires_grad_(False)
        self.register_buffer("bias", None if base.bias is None else base.bias.detach(), persistent=False)
        base.bias = None
        self.scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.dropout = dropout
        self.lora_A = nn.Linear(inputs, rank, bias=False, device="meta")
        self.lora_B = nn.Linear(rank, outputs, bias=False, device="meta")
        start = nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5), generator=generator)
        self.lora_A.weight = nn.Parameter(start.to(device))
        self.lora_B.weight = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.magnitude: nn.Parameter | None = None
        if dora:
            squares = _row_squares(base)
            self.register_buffer("row_squares", squares, persistent=False)
            self.magnitude = nn.Parameter(squares.sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        y = self._adapted(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _adapted(self, x: Tensor) -> Tensor:
        """Without the bias."""
        drops = self.training and self.dropout > 0
        a, b = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        if self.magnitude is None and not drops and not isinstance(x, DTensor):
            result: Tensor = _Adapted.apply(x, self.base, a, b, self.scale)  # type: ignore[no-untyped-call]
            return result
        y: Tensor = self.base(x)
        dropped = functional.dropout(x, self.dropout) if drops else x
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


class _Adapted(torch.autograd.Function):
    """x W^T + scale * x A^T B^T where W stands still: each sum is made in the place of its larger part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Base, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low_Tr = x @ a.t()
        keep(ctx, x, a, b, low_Tr)
        ctx.base, ctx.scale = base, scale
        y = x @ base.weight.t() if isinstance(base, nn.Linear) else base.matrix.product(x)
        return y.addmm_(low_Tr, b.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x, a, b, low_Tr = kept(ctx)
        (grad,) = gradients
        base: Base = ctx.base
        grad_Tr = grad @ b * ctx.scale
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = grad @ base.weight if isinstance(base, nn.Linear) else base.matrix.product_back(grad)
            x_grad.addmm_(grad_Tr, a)
        return x_grad, None, grad_Tr.t() @ x, (low_Tr.t() @ grad).t() * ctx.scale, None


def attach(model: Model, settings: Settings) -> dict[str, LoraLinear]:
    """Puts a `LoraLinear` in place of every linear layer that `settings.lora_targets` names, with `trains_tower` also
    of the tower and its projection: name in the tensor table -> layer, in the table's order. The first values come
    from `settings.seed` alone.

    Raises GemmaryError where none is named, or none of a tower that is to be trained, or where there is no such tower.
    """
    if settings.trains_tower and not model.config.prefix_lm:
        raise GemmaryError("only PaliGemma's vision tower is tuned: leave --train-tower out")
    generator = torch.Generator().manual_seed(settings.seed)
    options = (settings.lora_rank, settings.lora_alpha, settings.lora_dropout, settings.rslora, settings.dora)
    found: dict[str, LoraLinear] = {}
    linears = {tensor.name for tensor in linear_names(model.config).values()}
    for name, path in model.paths.items():
        if name in linears and _is_wanted(name, settings):
            owner, _, last = path.rpartition(".")
            base: Any = model.get_submodule(path)
            found[name] = LoraLinear(base, *options, generator)
            setattr(model.get_submodule(owner), last, found[name])
    if not found or (settings.trains_tower and not any(name.startswith("vision.") for name in found)):
        where = "of a vision tower" if found else "of the model"
        raise GemmaryError(f"--lora-targets {','.join(settings.lora_targets)} names no layer {where}: name others")
    return found


def _is_wanted(name: str, settings: Settings) -> bool:
    part, _, last = name.rpartition(".")
    if not part.startswith("vision"):
        return last in settings.lora_targets
    return settings.trains_tower and not {last, f"vision.{last}"}.isdisjoint(settings.lora_targets)


def _row_squares(base: Base) -> Tensor:
    """Sums of squares of the rows of a linear layer's weight [O], float32."""
    if isinstance(base, nn.Linear):
        return base.weight.detach().float().square().sum(dim=1)
    return base.row_squares()


def _place(base: Base) -> Tensor:
    """A tensor on the device of a layer, in its dtype of computing."""
    if isinstance(base, nn.Linear):
        return base.weight
    return base.place
