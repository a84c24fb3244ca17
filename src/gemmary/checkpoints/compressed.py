"""compressed-tensors' "pack-quantized" weights, which transformers loads: integers of a group times its scale.

In place of `X.weight` [R, C] a file has `X.weight_packed` (int32 [R, C * bits / 32]: the integers plus 2^(bits - 1),
the lowest bits of a word first), `X.weight_scale` [R, C / group] and `X.weight_shape` (int64 [2]: R, C); what groups
there are, of which modules, stands in config.json. Source: the package compressed_tensors 0.20,
`compressors/pack_quantized`.

Groups of 32 without a zero point are our Q4_0 and Q8_0 with the very same integers and scales; larger groups are
several blocks of one scale. Nothing is rounded either way, and what would have to be is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.fields import show
from gemmary.checkpoints.safetensors import DTYPES, SafetensorsFile
from gemmary.checkpoints.tensors import Tensor
from gemmary.errors import GemmaryError
from gemmary.quantize import blocks
from gemmary.quantize.blocks import row_bytes
from gemmary.quantize.leaves import Leaf, let_go, slices
from gemmary.quantize.pieces import piece

METHOD = "compressed-tensors"
BITS = {"Q4_0": 4, "Q8_0": 8}
GROUP = 32
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
_LEFT_ALONE = ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"]

Bytes = npt.NDArray[np.uint8]


def parts_of(stored_name: str) -> tuple[str, str, str]:
    """The names that stand in a file in place of `X.weight`."""
    stem = stored_name.removesuffix("weight")
    return stem + PACKED, stem + SCALE, stem + SHAPE


def is_packed(tensor: Tensor) -> bool:
    """Whether a weight can be stored so: the matrices of the decoder's layers."""
    return tensor.name.startswith("layers.") and not tensor.is_norm


# Writing ------------------------------------------------------------------------------------------------------------


def quantization_config(formats: Mapping[str, str]) -> dict[str, Any]:
    """What config.json says of a model whose layers' weights (`layers.0.mlp.up_proj.weight`, …) are in these formats,
    keys of `BITS`: a group of modules for each, named where there are several."""
    kinds = sorted(set(formats.values()))

    def group(format: str) -> dict[str, Any]:
        weights = {
            "dynamic": False,
            "group_size": GROUP,
            "num_bits": BITS[format],
            "strategy": "group",
            "symmetric": True,
            "type": "int",
        }
        targets = _targets(formats, format) if len(kinds) > 1 else ["Linear"]
        activations = {"input_activations": None, "output_activations": None}
        return {"targets": targets, "weights": weights, **activations, "format": "pack-quantized"}

    return {
        "config_groups": {f"group_{i}": group(format) for i, format in enumerate(kinds)},
        "format": "pack-quantized",
        "ignore": _LEFT_ALONE,
        "kv_cache_scheme": None,
        "quant_method": METHOD,
        "quantization_status": "compressed",
    }


def _targets(formats: Mapping[str, str], format: str) -> list[str]:
    """Patterns of the modules in one format: a kind of matrix a line, of all its layers or of some."""
    layers: dict[str, list[str]] = {}
    everywhere: Counter[str] = Counter()
    for name, found in formats.items():
        _, layer, module = name.removesuffix(".weight").split(".", 2)
        everywhere[module] += 1
        if found == format:
            layers.setdefault(module, []).append(layer)
    return [
        r"re:.*layers\.{}\.{}$".format(
            r"\d+" if len(some) == everywhere[module] else f"({'|'.join(some)})", module.replace(".", r"\.")
        )
        for module, some in layers.items()
    ]


def words(leaf: Leaf, format: str) -> Iterator[Bytes]:
    """A leaf's integers as `weight_packed` has them."""
    for block_32 in _blocks(leaf, format):
        codes = block_32[:, 2:]
        if format == "Q8_0":
            yield codes ^ np.uint8(0x80)
            continue
        first, last = codes & np.uint8(15), codes >> np.uint8(4)  # weights 0 to 15, and 16 to 31
        pairs = np.concatenate([first, last], axis=1).reshape(-1, 16, 2)
        yield pairs[..., 0] | pairs[..., 1] << np.uint8(4)


def scales(leaf: Leaf, format: str) -> Iterator[Bytes]:
    """A leaf's scales: float16, as blocks have them."""
    for block_32 in _blocks(leaf, format):
        yield block_32[:, :2]


def _blocks(leaf: Leaf, format: str) -> Iterator[Bytes]:
    """uint8 [blocks, bytes of a block], a bounded number at a time."""
    for start, stop in slices(leaf):
        yield piece(leaf, start, stop, format).reshape(-1, row_bytes(format, GROUP))
        leaf.release(start, stop)


# Reading ------------------------------------------------------------------------------------------------------------


def check_config(data: dict[str, Any]) -> bool:
    """Whether a config.json says that weights are stored so.

    Raises GemmaryError where it speaks of any other quantization, or of one that our blocks cannot hold.
    """
    said = data.get("quantization_config")
    if said is None:
        return False
    if not isinstance(said, dict) or said.get("quant_method") != METHOD:
        method = said.get("quant_method") if isinstance(said, dict) else said
        raise _unreadable(f"quant_method is {show(method)}, and {METHOD} is read only")
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise _unreadable("config_groups is no table of groups")
    for group in groups.values():
        format, weights = group.get("format") or said.get("format"), group.get("weights")
        if format != "pack-quantized" or not isinstance(weights, dict):
            raise _unreadable(f"format is {show(format)}, and pack-quantized is read only")
        if group.get("input_activations") is not None or group.get("output_activations") is not None:
            raise _unreadable("activations are quantized as well")
        if weights.get("type", "int") != "int" or weights.get("symmetric", True) is not True:
            raise _unreadable("weights are not integers around zero")
        if weights.get("num_bits", 8) not in BITS.values():
            raise _unreadable(f"weights have {show(weights.get('num_bits'))} bits, and 4 and 8 are read only")
    if said.get("kv_cache_scheme") is not None:
        raise _unreadable("keys and values are quantized as well")
    return True


def _unreadable(why: str) -> GemmaryError:
    return GemmaryError(f"config.json: this quantization cannot be read: {why}")


def open_leaf(path: Path, stored: Mapping[str, SafetensorsFile], stored_name: str, tensor: Tensor) -> PackQuantized:
    """The leaf of what stands in place of `stored_name`; `stored` has the file of each name.

    Raises GemmaryError where that is not the matrix of `tensor` in groups that are blocks.
    """
    names = parts_of(stored_name)
    packed, scale, stated = (stored[name].entries[name] for name in names)
    rows, columns = shape = tensor.shape
    widths = {columns * bits // 32: format for format, bits in BITS.items()}
    format = widths.get(packed.shape[-1]) if packed.shape else None
    if (packed.dtype, packed.shape[:-1]) != ("I32", (rows,)) or columns % GROUP or format is None:
        raise GemmaryError(
            f"{path}: {show(names[0])} is {packed.dtype} {packed.shape}, and config.json means {shape} of 4 or 8 bits"
        )
    groups = scale.shape[1] if len(scale.shape) == 2 and scale.shape[0] == rows else 0
    if scale.dtype not in DTYPES or not groups or columns % groups or columns // groups % GROUP:
        raise GemmaryError(
            f"{path}: {show(names[1])} is {scale.dtype} {scale.shape}: no scales of groups of {GROUP} weights or more"
        )
    if (
        stated.dtype != "I64"
        or stated.shape != (2,)
        or stored[names[2]].data(names[2]).tobytes() != pack("<2q", *shape)
    ):
        raise GemmaryError(f"{path}: {show(names[2])} is not {shape}, which config.json means")
    codes = stored[names[0]].data(names[0]).reshape(rows, -1)
    return PackQuantized(format, (rows, columns), codes, stored[names[1]].array(names[1]), names[1])


@dataclass(frozen=True)
class PackQuantized:
    """`gemmary.quantize.leaves.Leaf`: a matrix that lies in a file like this and is read as rows of blocks."""

    format: str
    shape: tuple[int, int]
    words: Bytes
    """[R, bytes of a row]"""
    scales: npt.NDArray[Any]
    """[R, groups] of a dtype of `DTYPES`"""
    name: str
    """Of the scales, in the file."""

    @property
    def nbytes(self) -> int:
        return self.shape[0] * row_bytes(self.format, self.shape[1])

    def dequantize(self) -> npt.NDArray[np.float32]:
        return self.rows(np.arange(self.shape[0]))

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        found = blocks.dequantize(self.format, self._taken(index.reshape(-1)))
        return found.reshape(*index.shape, -1)

    def stored(self, start: int, stop: int) -> Bytes:
        return self._taken(slice(start, stop)).reshape(-1)

    def release(self, start: int, stop: int) -> None:
        let_go(self.words[start:stop])
        let_go(self.scales[start:stop])

    def _taken(self, which: Any) -> Bytes:
        """Some rows as GGUF has them: uint8 [n, bytes a row]."""
        groups = self.scales[which].astype(np.float32)
        with np.errstate(over="ignore"):
            half = groups.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), groups):
            raise GemmaryError(
                f"{show(self.name)} holds scales that float16, and so our blocks, cannot: none is rounded"
            )
        count = self.shape[1] // GROUP
        each = np.repeat(half.reshape(-1), count // groups.shape[1]).reshape(-1, 1).view(np.uint8)
        codes = self.words[which].reshape(len(each), -1)
        if self.format == "Q8_0":
            made = codes ^ np.uint8(0x80)
        else:
            code = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1).reshape(-1, GROUP)
            made = code[:, :16] | code[:, 16:] << np.uint8(4)
        return np.concatenate([each, made], axis=1).reshape(len(groups), -1)
