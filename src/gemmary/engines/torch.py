"""The PyTorch engine: float32 or bfloat16, on a CPU or a CUDA device by the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from gemmary.batch import Batch, Pixels, adapted_rows, patches
from gemmary.checkpoints.tensors import Tensor, tensors
from gemmary.config import Config
from gemmary.engines import EngineInfo, Logits
from gemmary.engines.torch_modules import Model, module_of
from gemmary.engines.torch_ops import KeyValues, StepCache, TorchOps, Visible
from gemmary.errors import GemmaryError
from gemmary.model import decoder
from gemmary.model.leaves import Leaves
from gemmary.model.vision import Pictures
from gemmary.quantize.leaves import Leaf

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchEngine:
    """`gemmary.engines.Engine` on PyTorch.

    `model` is the tree of modules with the Hugging Face names, `dense` the layers behind an embedding model's pooling.
    Weights that are stored as blocks or in float16 are widened when they are read; `info.formats` says from what.
    """

    def __init__(
        self,
        config: Config,
        lookup: Callable[[str], Leaf],
        *,
        dtype: str | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """dtype: "float32", "bfloat16", or None: bfloat16 where the embedding table is stored in it, else float32.
        threads: of the whole process, as PyTorch has it. device: None takes a CUDA device if there is one.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.config = config
        self.device = find_device(device)
        self.dtype = _dtype(dtype, lookup("embed"))
        dtype_name = str(self.dtype).removeprefix("torch.")
        formats: dict[str, int] = {}

        def counted(name: str) -> Leaf:
            leaf = lookup(name)
            held = "BF16" if self.dtype == torch.bfloat16 else "F32"
            label = held if leaf.format == held else f"{held} from {leaf.format}"
            formats[label] = formats.get(label, 0) + prod(leaf.shape) * self.dtype.itemsize
            return leaf

        def make(tensor: Tensor) -> nn.Module:
            return module_of(tensor, counted, self.dtype, self.device)

        self.model = Model(config, make).eval()
        self.dense = nn.ModuleList(make(tensor) for tensor in tensors(config) if tensor.is_pooled_dense).eval()
        self.info = EngineInfo("torch", str(self.device), dtype_name, formats, torch.get_num_threads())

    def new_cache(self, capacity: int) -> KeyValues:
        return KeyValues(self.config, capacity, self.dtype, self.device)

    def cache_bytes(self, capacity: int) -> int:
        """See `Engine.cache_bytes`. Windows save work here, not memory: every key of every layer is kept."""
        return self.config.kv_bytes_per_token(self.dtype.itemsize) * capacity

    def can_truncate(self, cache: KeyValues, length: int) -> bool:
        """See `Engine.can_truncate`. Every key is kept."""
        return True

    def fork(self, cache: KeyValues, length: int, capacity: int) -> KeyValues:
        """See `Engine.fork`."""
        forked = self.new_cache(capacity)
        forked.copy(cache, length)
        return forked

    def step(self, batch: Batch, caches: Sequence[KeyValues], taps: dict[str, Logits] | None = None) -> Logits:
        if self.config.pooled_dense:
            raise GemmaryError("an embedding model has no next-token scores: use its embeddings")
        for cache, rows in zip(caches, batch.sequences, strict=True):
            start, count = int(batch.positions[rows.start]), rows.stop - rows.start
            if start != cache.length or start + count > cache.capacity:
                raise ValueError(f"{count} tokens at {start}, cache has {cache.length} of {cache.capacity}")
        with torch.inference_mode():
            logits = self.model(self._ops(batch, taps), self._step(batch), StepCache(caches, batch.sequences))
        for cache, rows in zip(caches, batch.sequences, strict=True):
            cache.length += rows.stop - rows.start
        result: Logits = logits.cpu().numpy()
        return result

    def see(self, pixels: Pixels, taps: dict[str, Logits] | None = None, adapter: int = 0) -> Logits:
        fed, rows = patches(self.config, pixels)
        pictures = Pictures(
            torch.from_numpy(fed.patches).to(self.device, self.dtype),
            torch.from_numpy(fed.positions).to(self.device, torch.int64),
            Visible.of(fed.visible, rows, self.device),
        )
        with torch.inference_mode():
            ops = TorchOps(self.dtype, taps, adapted_rows([adapter] * len(rows), rows))
            seen = self.model.see(ops, pictures, StepCache([None] * len(rows), rows))
        result: Logits = seen.float().cpu().numpy()
        return result

    def embed(self, batch: Batch, taps: dict[str, Logits] | None = None) -> Logits:
        ops = self._ops(batch, taps)
        cache = StepCache([None] * len(batch.sequences), batch.sequences)
        with torch.inference_mode():
            hidden = self.model(ops, self._step(batch), cache, hidden_only=True)
            dense = Leaves(lambda name: self.dense[int(name.removeprefix("dense."))])
            vectors = decoder.sentence_embedding(ops, self.config, dense, batch.sequences, hidden)
        result: Logits = vectors.cpu().numpy()
        return result

    def _ops(self, batch: Batch, taps: dict[str, Logits] | None) -> TorchOps:
        return TorchOps(self.dtype, taps, batch.adapted())

    def _step(self, batch: Batch) -> decoder.Step:
        def tensor(array: Any) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device, torch.int64)

        visible = {kind: Visible.of(spans, batch.sequences, self.device) for kind, spans in batch.visible.items()}
        pictures = None
        if batch.pictures is not None:
            rows, values = batch.pictures
            pictures = tensor(rows), torch.from_numpy(values).to(self.device)
        tokens, positions, outputs = tensor(batch.tokens), tensor(batch.positions), tensor(batch.outputs)
        return decoder.Step(tokens, positions, dict(visible), outputs, pictures)


def _dtype(name: str | None, table: Leaf) -> torch.dtype:
    if name is None:
        return torch.bfloat16 if table.format == "BF16" else torch.float32
    if name in ("float16", "fp16", "half"):
        raise GemmaryError(
            f"no {name}: activations of Gemma pass its largest number, 65504; choose float32 or bfloat16"
        )
    if name not in DTYPES:
        raise GemmaryError(f"the torch engine does not compute in {name!r}: choose {' or '.join(DTYPES)}")
    return DTYPES[name]


def find_device(name: str | None) -> torch.device:
    """A device of PyTorch's; None: a CUDA device if there is one, else the CPU. Raises GemmaryError."""
    if name is None:
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise GemmaryError(f"PyTorch cannot use device {name!r}: {str(error).splitlines()[0]}") from error
    return device
