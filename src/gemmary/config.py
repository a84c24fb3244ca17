"""The shape of a model: one frozen dataclass, and what follows from it (parameters, bytes, FLOPs).

Nothing here names an engine. Every number of the family stands in `zoo.py`; this file only says what the numbers mean.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import Literal

LayerType = Literal["global", "local"]
Family = Literal["gemma", "gemma2", "gemma3", "embeddinggemma", "paligemma", "paligemma2"]


@dataclass(frozen=True)
class VisionConfig:
    """The tower that reads pictures (SigLIP) and what brings its output to the decoder. Sizes are counts of elements.

    The defaults are those of So400m/14, the tower of every released model (spec 3.1).
    """

    image_size: int
    """Rows and columns of pixels; a picture of another size is squeezed into this square."""
    num_layers: int = 27
    hidden_size: int = 1152
    num_heads: int = 16
    intermediate_size: int = 4304
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    pool: int = 1
    """The mean of so many patches a side becomes one token of the decoder."""
    soft_norm: bool = False
    """The tokens are normalised before their projection to the decoder, which has no bias then (Gemma 3)."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"the tower's width {self.hidden_size} does not divide into {self.num_heads} heads")
        if self.image_size % self.patch_size:
            raise ValueError(f"pictures of {self.image_size} pixels do not divide into patches of {self.patch_size}")
        if self.side % self.pool:
            raise ValueError(f"{self.side} patches a side do not divide into groups of {self.pool}")

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.side**2

    @property
    def num_tokens(self) -> int:
        """What the decoder gets of a picture."""
        return (self.side // self.pool) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers of a patch: three channels."""
        return 3 * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def attention_scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def parameters(self) -> int:
        """Patches, positions, layers, final norm; the projection to the decoder is counted apart."""
        d, f = self.hidden_size, self.intermediate_size
        layer = 4 * d * d + 2 * d * f + (4 + 1) * d + f + 4 * d
        return (self.patch_values + 1) * d + self.num_patches * d + self.num_layers * layer + 2 * d


@dataclass(frozen=True)
class Config:
    """A Gemma text decoder (or encoder). Field names are the field's; sizes are counts of elements."""

    family: Family
    """Which checkpoint layouts the model is stored in. The decoder never reads it."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    """Rows of the embedding table that are tokens; padding rows of a stored table are cut when it is read."""
    context_length: int
    layer_types: tuple[LayerType, ...]
    query_pre_attn_scalar: float
    """Attention scores are multiplied by this to the power -0.5. Not always head_dim (Gemma 2 and 3 27B)."""
    sliding_window: int | None = None
    """Keys that a local layer's query sees, itself included. Bidirectional models see half of it on each side."""
    rope_theta: float = 10_000.0
    rope_theta_local: float = 10_000.0
    rope_scaling_factor: float = 1.0
    """Global layers divide their RoPE angles by it (linear position interpolation)."""
    attn_logit_softcap: float | None = None
    final_logit_softcap: float | None = None
    post_norms: bool = False
    """Gemma 2 and later normalise after attention and after the MLP as well as before."""
    qk_norm: bool = False
    bidirectional: bool = False
    rms_norm_eps: float = 1e-6
    exact_embedding_scale: bool = False
    """False: sqrt(hidden_size) is rounded to bfloat16, as in training (DeepMind's and Hugging Face's code)."""
    pooled_dense: tuple[int, ...] = ()
    """Output widths of the bias-free dense layers after mean pooling (EmbeddingGemma); empty for a decoder."""
    vision: VisionConfig | None = None
    prefix_lm: bool = False
    """A prompt, pictures and text, sees itself whole; what follows is causal (PaliGemma)."""

    def __post_init__(self) -> None:
        if len(self.layer_types) != self.num_layers:
            raise ValueError(f"{len(self.layer_types)} layer types for {self.num_layers} layers")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads do not divide into {self.num_kv_heads} key heads")
        if "local" in self.layer_types and not self.sliding_window:
            raise ValueError("local layers need a sliding_window")
        if self.head_dim % 2:
            raise ValueError("RoPE needs an even head_dim")

    # What the decoder reads ------------------------------------------------------------------------------------

    @property
    def attention_scale(self) -> float:
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def embedding_scale(self) -> float:
        scale = math.sqrt(self.hidden_size)
        return scale if self.exact_embedding_scale else round_to_bfloat16(scale)

    def window(self, layer_type: LayerType) -> int | None:
        return self.sliding_window if layer_type == "local" else None

    def rope_frequencies(self, layer_type: LayerType) -> tuple[float, ...]:
        """Radians per position of each of the head_dim/2 rotated pairs (i, i + head_dim/2)."""
        theta = self.rope_theta if layer_type == "global" else self.rope_theta_local
        factor = self.rope_scaling_factor if layer_type == "global" else 1.0
        return tuple(theta ** (-2 * i / self.head_dim) / factor for i in range(self.head_dim // 2))

    @property
    def image_token_id(self) -> int:
        """The placeholder of a picture's token: the first id that is no row of the table (spec 2.3, 2.8)."""
        return self.vocab_size

    @property
    def picture_blocks(self) -> bool:
        """Tokens of a picture see each other, all else is causal (Gemma 3)."""
        return self.vision is not None and not self.prefix_lm

    @property
    def kinds(self) -> tuple[LayerType, ...]:
        """The layer types that occur, each once."""
        return tuple(dict.fromkeys(self.layer_types))

    # What it costs ---------------------------------------------------------------------------------------------

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def layer_parameters(self) -> int:
        d = self.hidden_size
        matrices = 2 * d * self.query_size + 2 * d * self.kv_size + 3 * d * self.intermediate_size
        return matrices + self._norm_parameters

    @property
    def dense_parameters(self) -> int:
        widths = (self.hidden_size, *self.pooled_dense)
        return sum(a * b for a, b in itertools.pairwise(widths))

    @property
    def parameters(self) -> int:
        """Embedding (counted once: the head is tied), layers, final norm. Pooled dense layers and the tower are counted
        apart."""
        return self.embedding_parameters + self.num_layers * self.layer_parameters + self.hidden_size

    @property
    def vision_parameters(self) -> int:
        """The tower and its projection to the decoder; 0 where the model sees no pictures."""
        if self.vision is None:
            return 0
        width = self.vision.hidden_size
        return (
            self.vision.parameters + width * self.hidden_size + (width if self.vision.soft_norm else self.hidden_size)
        )

    @property
    def total_parameters(self) -> int:
        return self.parameters + self.dense_parameters + self.vision_parameters

    def weight_bytes(self, bits: float = 16) -> int:
        return int((self.parameters + self.vision_parameters) * bits / 8)

    def kv_bytes_per_token(self, element_bytes: int = 2) -> int:
        """Bytes that one more token takes in all layers if no layer is windowed."""
        return 2 * self.kv_size * self.num_layers * element_bytes

    def kv_growth_per_token(self, element_bytes: int = 2) -> int:
        """Bytes that one more token takes past the window: the global layers' share."""
        return 2 * self.kv_size * self.layer_types.count("global") * element_bytes

    def kv_window_bytes(self, element_bytes: int = 2) -> int:
        """Bytes of the local layers' windows, which do not grow with the context."""
        window = self.sliding_window or 0
        return 2 * self.kv_size * self.layer_types.count("local") * window * element_bytes

    def kv_cache_bytes(self, tokens: int, element_bytes: int = 2) -> int:
        """Bytes of keys and values for `tokens` of context, local layers keeping only their window."""
        per_layer = 2 * self.kv_size * element_bytes
        windows = [self.window(kind) for kind in self.layer_types]
        return sum(per_layer * (min(tokens, w) if w else tokens) for w in windows)

    def flops_per_token(self, context: int = 0) -> int:
        """Multiplications and additions of one token: 2 a weight (the tied head included, the look-up not), and 4 a
        query element for each key that it sees."""
        weights = self.num_layers * (self.layer_parameters - self._norm_parameters) + self.embedding_parameters
        keys = sum(min(context, self.window(kind) or context) for kind in self.layer_types)
        return 2 * weights + 4 * self.query_size * keys

    @property
    def _norm_parameters(self) -> int:
        return (4 if self.post_norms else 2) * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)


def round_to_bfloat16(value: float) -> float:
    """The nearest bfloat16 (ties to even) of a finite float, as a float."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    bits += 0x7FFF + (bits >> 16 & 1)
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0])
