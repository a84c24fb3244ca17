"""A linear layer with adapters, in PyTorch: each applied to the rows of the sequences that have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gemmary.quantize.lora import LoRA


class AdaptedLinear(nn.Linear):
    """A linear layer [O, I], and float32 A [r, I] and B [O, r] of each adapter that changes it."""

    def __init__(self, weight: Tensor, leaf: LoRA, bias: Tensor | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.scales: dict[int, float] = {}
        for number, (lora, gain) in enumerate(zip(leaf.adapters, leaf.gains, strict=True), 1):
            if lora is not None:
                self.scales[number] = lora.scale
                for name, array in (("A", lora.a), ("B", lora.b), ("gain", gain)):
                    values = None if array is None else torch.tensor(array, device=weight.device)
                    self.register_buffer(f"{name}{number}", values, persistent=False)

    def forward(self, x: Tensor, adapted: Sequence[tuple[int, slice]] = ()) -> Tensor:
        """x [T, I] -> [T, O]; adapted: as `Batch.adapted`. float32 inside, rounded once."""
        y = functional.linear(x, self.weight, self.bias)
        for number, rows in adapted:
            if number in self.scales:
                a, b, gain = (self.get_buffer(f"{name}{number}") for name in ("A", "B", "gain"))
                change = functional.linear(functional.linear(x[rows].float(), a), b)
                whole = y[rows].float() + self.scales[number] * change
                if gain is not None:  # of all but the bias
                    bias = 0.0 if self.bias is None else self.bias.float()
                    whole = (whole - bias) * gain + bias
                y[rows] = whole.to(y.dtype)
        return y
