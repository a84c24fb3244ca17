"""THE tensor table: one row for each tensor of the models. A loader or a writer of a format is a reader of it.

    our name     axes (named after Config)          Hugging Face, after the prefix of §4.1        GGUF

Norms: Hugging Face stores the zero-centred weight w as it was trained, GGUF stores 1 + w. Leaves are zero-centred
float32. Taking 1 off again is exact for a w that was born in bfloat16 (unless |w| < 2^-16, where 1 + w had already lost
its last bits in GGUF). Linear weights are [out, in] in both formats, and neither permutes rows of q or k.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

from gemmary.config import Config, Family


@dataclass(frozen=True)
class Row:
    """One row. `{i}` stands for the number of a layer, `needs` for the Config property that brings the tensor."""

    name: str
    axes: tuple[str, ...]
    hugging_face: str
    gguf: str
    needs: str = ""
    bias: bool = False
    """Beside the weight there is a bias, of the same name but for its ending, one number an output."""
    transposed: bool = False
    """Files hold it as [in, out]."""

    @property
    def is_norm(self) -> bool:
        return len(self.axes) == 1


_D, _Q, _K, _F, _H = "hidden_size", "query_size", "kv_size", "intermediate_size", "head_dim"
_L, _B = "layers.{i}.", "blk.{i}."

TABLE: tuple[Row, ...] = (
    Row("embed", ("vocab_size", _D), "embed_tokens.weight", "token_embd.weight"),
    Row(_L + "attn_norm", (_D,), _L + "input_layernorm.weight", _B + "attn_norm.weight"),
    Row(_L + "q", (_Q, _D), _L + "self_attn.q_proj.weight", _B + "attn_q.weight"),
    Row(_L + "k", (_K, _D), _L + "self_attn.k_proj.weight", _B + "attn_k.weight"),
    Row(_L + "v", (_K, _D), _L + "self_attn.v_proj.weight", _B + "attn_v.weight"),
    Row(_L + "o", (_D, _Q), _L + "self_attn.o_proj.weight", _B + "attn_output.weight"),
    Row(_L + "q_norm", (_H,), _L + "self_attn.q_norm.weight", _B + "attn_q_norm.weight", "qk_norm"),
    Row(_L + "k_norm", (_H,), _L + "self_attn.k_norm.weight", _B + "attn_k_norm.weight", "qk_norm"),
    Row(
        _L + "post_attn_norm",
        (_D,),
        _L + "post_attention_layernorm.weight",
        _B + "post_attention_norm.weight",
        "post_norms",
    ),
    Row(_L + "ffn_norm", (_D,), _L + "pre_feedforward_layernorm.weight", _B + "ffn_norm.weight"),
    Row(_L + "gate", (_F, _D), _L + "mlp.gate_proj.weight", _B + "ffn_gate.weight"),
    Row(_L + "up", (_F, _D), _L + "mlp.up_proj.weight", _B + "ffn_up.weight"),
    Row(_L + "down", (_D, _F), _L + "mlp.down_proj.weight", _B + "ffn_down.weight"),
    Row(
        _L + "post_ffn_norm",
        (_D,),
        _L + "post_feedforward_layernorm.weight",
        _B + "post_ffw_norm.weight",
        "post_norms",
    ),
    Row("final_norm", (_D,), "norm.weight", "output_norm.weight"),
)

_VD, _VF = "vision.hidden_size", "vision.intermediate_size"
_VP, _VN = "vision.patch_values", "vision.num_patches"
_V, _VL = "vision.", "vision.layers.{i}."
_BLOCK = "encoder.layers.{i}."

VISION_TABLE: tuple[Row, ...] = (
    Row(_V + "patch", (_VD, _VP), "embeddings.patch_embedding.weight", "v.patch_embd.weight", bias=True),
    Row(_V + "position", (_VN, _VD), "embeddings.position_embedding.weight", "v.position_embd.weight"),
    Row(_VL + "attn_norm", (_VD,), _BLOCK + "layer_norm1.weight", "v.blk.{i}.ln1.weight", bias=True),
    Row(_VL + "q", (_VD, _VD), _BLOCK + "self_attn.q_proj.weight", "v.blk.{i}.attn_q.weight", bias=True),
    Row(_VL + "k", (_VD, _VD), _BLOCK + "self_attn.k_proj.weight", "v.blk.{i}.attn_k.weight", bias=True),
    Row(_VL + "v", (_VD, _VD), _BLOCK + "self_attn.v_proj.weight", "v.blk.{i}.attn_v.weight", bias=True),
    Row(_VL + "o", (_VD, _VD), _BLOCK + "self_attn.out_proj.weight", "v.blk.{i}.attn_out.weight", bias=True),
    Row(_VL + "ffn_norm", (_VD,), _BLOCK + "layer_norm2.weight", "v.blk.{i}.ln2.weight", bias=True),
    Row(_VL + "up", (_VF, _VD), _BLOCK + "mlp.fc1.weight", "v.blk.{i}.ffn_up.weight", bias=True),
    Row(_VL + "down", (_VD, _VF), _BLOCK + "mlp.fc2.weight", "v.blk.{i}.ffn_down.weight", bias=True),
    Row(_V + "final_norm", (_VD,), "post_layernorm.weight", "v.post_ln.weight", bias=True),
)
"""The tower. Patches are embedded by a convolution [D, 3, rows, columns] in files; flattened it is our matrix."""

_MM = "multi_modal_projector."
_MATRIX, _GGUF_MATRIX = _MM + "mm_input_projection_weight", "mm.input_projection.weight"

PROJECTOR_TABLES: dict[bool, tuple[Row, ...]] = {
    False: (Row(_V + "projector", (_D, _VD), _MM + "linear.weight", "mm.0.weight", bias=True),),
    True: (
        Row(_V + "soft_norm", (_VD,), _MM + "mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight"),
        Row(_V + "projector", (_D, _VD), _MATRIX, _GGUF_MATRIX, transposed=True),
    ),
}
"""What brings the tower's output to the decoder, without and with `VisionConfig.soft_norm`."""

FAMILY_NAMES: dict[Family, dict[str, str]] = {
    # Gemma 1 has no norm after its branches; Hugging Face calls the one before the MLP "post attention" (trap T16).
    "gemma": {_L + "ffn_norm": _L + "post_attention_layernorm.weight"},
    "paligemma": {_L + "ffn_norm": _L + "post_attention_layernorm.weight"},
}
"""Hugging Face names where a family differs from the table."""

PREFIXES: tuple[str, ...] = ("model.", "", "language_model.model.", "model.language_model.")
"""What may stand before the table's Hugging Face names: decoders; EmbeddingGemma; the text part of a multimodal Gemma 3
on the Hub; the same, saved again by transformers >= 4.52."""


@dataclass(frozen=True)
class Layout:
    """What stands before the table's Hugging Face names in the modules of a class of transformers."""

    decoder: str
    tower: str = ""
    projector: str = ""

    def start(self, name: str) -> str:
        """Before the name of one tensor of the table."""
        if not name.startswith("vision."):
            return self.decoder
        return self.projector if name in PROJECTOR_NAMES else self.tower


LAYOUTS: tuple[Layout, ...] = (
    Layout("model."),
    Layout(""),
    Layout("model.language_model.", "model.vision_tower.", "model."),
    Layout("model.language_model.", "model.vision_tower.vision_model.", "model."),
    Layout("language_model.model.", "vision_tower.vision_model."),
)
"""Of a decoder; of EmbeddingGemma; of what sees pictures in transformers 5, from 4.52 on, and before."""

PROJECTOR_NAMES: tuple[str, ...] = ("vision.soft_norm", "vision.projector")
"""Ours of what stands between the tower and the decoder."""

TOWERS: tuple[str, ...] = ("vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.")
"""What may stand before the names of the tower: on the Hub; saved by transformers 5; saved by transformers >= 4.52."""

HEADS: tuple[str, ...] = ("lm_head.weight", "language_model.lm_head.weight")
"""A tied head that was stored all the same: it must equal the embedding table."""

PADDED_ROWS: dict[int, int] = {256_128: 256_000, 257_216: 257_152, 262_208: 262_144}
"""Stored rows of an embedding table -> the tokens among them (trap T17). The others were never trained."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of one model."""

    name: str
    shape: tuple[int, ...]
    is_norm: bool
    hugging_face: str
    """Without a prefix. For a pooled dense layer: its folder and the name inside, joined by a slash."""
    gguf: str
    bias: bool = False
    """The leaf is an `Affine` one."""
    transposed: bool = False
    """Files hold it as [in, out]."""

    @property
    def is_pooled_dense(self) -> bool:
        return self.name.startswith("dense.")

    @property
    def is_tower(self) -> bool:
        """Of the tower, whose Hugging Face names have a prefix of their own."""
        return self.name.startswith("vision.") and not self.is_projector

    @property
    def is_projector(self) -> bool:
        """Of what stands between the tower and the decoder."""
        return self.name in PROJECTOR_NAMES

    def blocks(self, block_type: str) -> str | None:
        """What this tensor is quantized to in a model of `block_type`; None: it stays as it is.

        The tower is small and sees everything first: its matrices are int8 in an int4 model too, and the two that
        patches meet (0.2 % of it, with 588 columns) stay dense.
        """
        if self.is_norm or self.name in ("vision.patch", "vision.position"):
            return None
        return "Q8_0" if self.name.startswith("vision.") else block_type


def hub_name(config: Config, tensor: Tensor) -> str:
    """The name that the official folders have for a tensor; of a pooled dense layer the one in its own file."""
    if tensor.is_pooled_dense:
        return tensor.hugging_face.partition("/")[2]
    if tensor.is_tower:
        return TOWERS[0] + tensor.hugging_face
    if tensor.is_projector:
        return tensor.hugging_face
    return PREFIXES[2 if config.vision else 1 if config.pooled_dense else 0] + tensor.hugging_face


def bias_name(stored_name: str) -> str:
    """The name of the bias that goes with a weight."""
    return stored_name.removesuffix(".weight") + ".bias"


def module_layout(config: Config) -> Layout:
    """That of transformers 5 for a model: of a decoder, an encoder, or one that sees pictures."""
    return LAYOUTS[2 if config.vision else 1 if config.pooled_dense else 0]


def module_name(config: Config, tensor: Tensor) -> str:
    """The name that transformers' module tree has for a tensor."""
    return module_layout(config).start(tensor.name) + tensor.hugging_face


@lru_cache(maxsize=64)
def tensors(config: Config) -> tuple[Tensor, ...]:
    """Every tensor of a model, in the order of its computation."""
    found: list[Tensor] = []
    if config.vision:
        table = VISION_TABLE + PROJECTOR_TABLES[config.vision.soft_norm]
        found += _expanded(config, table, config.vision.num_layers)
    found += _expanded(config, TABLE, config.num_layers)
    widths = (config.hidden_size, *config.pooled_dense)
    for i in range(len(config.pooled_dense)):
        shape = (widths[i + 1], widths[i])
        found.append(Tensor(f"dense.{i}", shape, False, f"{i + 2}_Dense/linear.weight", f"dense_{i + 2}.weight"))
    return tuple(found)


def _expanded(config: Config, table: tuple[Row, ...], layers: int) -> list[Tensor]:
    """The rows of a table, those of a layer once for each."""
    found: list[Tensor] = []
    layer_rows = [row for row in table if "{i}" in row.name]
    for row in table:
        if "{i}" not in row.name:
            found.append(_tensor(config, row, 0))
        elif row is layer_rows[0]:
            for i in range(layers):
                found += [_tensor(config, r, i) for r in layer_rows if not r.needs or getattr(config, r.needs)]
    return found


def _tensor(config: Config, row: Row, i: int) -> Tensor:
    hugging_face = FAMILY_NAMES.get(config.family, {}).get(row.name, row.hugging_face)
    shape = tuple(int(attrgetter(axis)(config)) for axis in row.axes)
    return Tensor(
        row.name.format(i=i),
        shape,
        row.is_norm,
        hugging_face.format(i=i),
        row.gguf.format(i=i),
        row.bias,
        row.transposed,
    )
