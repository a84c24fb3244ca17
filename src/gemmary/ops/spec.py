"""What each op means. Every engine implements this Protocol; nothing here is left to an engine's default.

An "array" is the engine's own (numpy, torch, or the name of a buffer in a traced program). Shapes use the letters of
`model/decoder.py`. "float32 inside" means: inputs are widened, everything up to the result is float32, and the result
is rounded once to the engine's activation dtype. A leaf is a typed weight: the op looks at its type, the model never.
"""

from __future__ import annotations

from typing import Any, Protocol


class Ops(Protocol):
    """About a dozen coarse operations. Names of intermediates go through `tap`."""

    def embed(self, table: Any, tokens: Any, scale: float) -> Any:
        """[T] ids -> [T, D]: rows of the table [V, D], dequantized if need be, times `scale`.

        The product is formed in float32 and rounded once to the activation dtype.
        """
        ...

    def linear(self, x: Any, weight: Any) -> Any:
        """[T, I] times the transpose of weight [O, I] -> [T, O], plus the bias where the leaf has one.

        Products are summed in float32 (integers exactly, where both sides are integers). The logits of a bfloat16
        engine are left in float32.

        A leaf with adapters: rows of a sequence that has one become (y + scale · B·(A·x)) · gain, float32 inside,
        where gain is DoRA's magnitude / ‖W + scale·B·A‖ and else 1. The others stay what they are. The bias comes last.
        """
        ...

    def rms_norm(self, x: Any, weight: Any, eps: float) -> Any:
        """[..., D]: x / sqrt(mean(x²) + eps) * (1 + weight) over the last axis, float32 inside.

        `weight` is zero-centred, as trained; formats that store 1 + weight are converted when they are read.
        """
        ...

    def layer_norm(self, x: Any, weight: Any, eps: float) -> Any:
        """[T, D]: (x - mean) / sqrt(variance + eps) * scale + shift over the last axis, float32 inside; the leaf has
        both. The variance is that of the D values (divided by D)."""
        ...

    def split_heads(self, x: Any, heads: int) -> Any:
        """[T, heads * H] -> [T, heads, H], head-major: head h owns the columns h*H … (h+1)*H - 1."""
        ...

    def rope_angles(self, positions: Any, frequencies: tuple[float, ...]) -> Any:
        """[T] integer positions, H/2 radians per position -> the engine's table of cos and sin, [T, H/2] each.

        position * frequency is a float32 product of the integer position and the frequency rounded to float32.
        """
        ...

    def rope(self, x: Any, angles: Any) -> Any:
        """[T, N, H]: rotates the pair (x[i], x[i + H/2]) by angle i, over the whole head, float32 inside."""
        ...

    def attention(
        self,
        q: Any,
        k: Any,
        v: Any,
        cache: Any,
        layer: int,
        visible: Any,
        scale: float,
        softcap: float | None,
    ) -> tuple[Any, Any]:
        """Stores k and v [T, K, H] in the cache of each token's sequence, then attends: q [T, N, H] -> [T, N*H].

        Query head n reads key head n // (N / K). A query sees the keys of its own sequence whose positions lie in
        visible[t] = (first, last), both included; they may be older than this step or, for bidirectional prefixes,
        later in it. score = scale * (q · k); then, if `softcap` c: c * tanh(score / c); then the mask; softmax; sum
        of v. float32 inside. Returns the output and the cache (engines without mutable arrays need that).
        """
        ...

    def geglu(self, gate: Any, up: Any) -> Any:
        """[T, F]: gelu(gate) * up, with gelu(x) = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x³))), float32 inside.

        Always the tanh form, whatever a checkpoint's `hidden_act` says: no Gemma was trained with another.
        """
        ...

    def gelu(self, x: Any) -> Any:
        """[T, F]: gelu(x) in the tanh form, as in `geglu`, float32 inside."""
        ...

    def place(self, x: Any, rows: Any, values: Any) -> Any:
        """[T, D] with the rows [M] of it replaced by values [M, D], rounded once to the activation dtype."""
        ...

    def pool(self, x: Any, count: int) -> Any:
        """[M * count, D] -> [M, D]: the mean of each `count` rows that follow one another, float32 inside."""
        ...

    def add(self, x: Any, y: Any) -> Any:
        """Elementwise sum, rounded once to the activation dtype."""
        ...

    def take(self, x: Any, rows: Any) -> Any:
        """[T, D], [R] row numbers -> [R, D]."""
        ...

    def softcap(self, x: Any, cap: float) -> Any:
        """cap * tanh(x / cap), float32 inside."""
        ...

    def mean_pool(self, x: Any, sequences: Any) -> Any:
        """[T, D] -> [S, D]: mean over each sequence's tokens, float32. sequences[s]: first row, one past the last."""
        ...

    def l2_normalize(self, x: Any) -> Any:
        """[S, D]: each row divided by max(its Euclidean norm, 1e-12), float32."""
        ...

    def tap(self, name: str, x: Any) -> Any:
        """Names an intermediate, so that two engines can be compared at it; returns x."""
        ...
