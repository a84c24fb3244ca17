"""How each side of tuning.py makes a training step: Gemmary, and transformers with peft. Imported in the child."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = {"gemmary": ("gemmary", "torch"), "transformers": ("peft", "transformers", "torch")}
RANK, ALPHA = 16, 32
"""Of the adapters, which are on every linear layer of every block."""


class Gemmary:
    def __init__(self, path: str, dtype: str, method: str, checkpointing: bool) -> None:
        import torch

        from gemmary import __version__
        from gemmary.checkpoints import open_checkpoint
        from gemmary.tune.device import choose_dtype
        from gemmary.tune.model import build
        from gemmary.tune.settings import Settings

        settings = Settings(
            model=path, data="-", out="-", method=method, lora_rank=RANK, lora_alpha=ALPHA,
            gradient_checkpointing="on" if checkpointing else "off",
        )  # fmt: skip
        device = torch.device("cpu")
        kind = choose_dtype(dtype, device)
        checkpoint = open_checkpoint(Path(path))
        self.model = build(checkpoint, settings, device, kind)
        self.vocabulary, self.formats = checkpoint.config.vocab_size, checkpoint.lookup("layers.0.gate").format
        self.optimizer = torch.optim.AdamW(self.model.trained().values(), lr=1e-4)
        self.name = f"Gemmary {__version__} ({str(kind).removeprefix('torch.')}, base {self.formats})"

    def step(self, documents: Sequence[Sequence[int]]) -> float:
        import numpy as np

        from gemmary.batch import Batch, Chunk
        from gemmary.tune.packing import MicroBatch

        whole = Batch.of(self.model.config, [Chunk(tokens) for tokens in documents])
        rows = np.concatenate([np.arange(part.start, part.stop - 1, dtype=np.int32) for part in whole.sequences])
        batch = Batch(whole.tokens, whole.positions, whole.visible, rows, whole.sequences)
        targets = np.concatenate([np.array(tokens[1:], np.int64) for tokens in documents])
        self.optimizer.zero_grad()
        loss = self.model.loss(MicroBatch(batch, targets)) / len(targets)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class Transformers:
    """transformers with peft; for qlora the base in bitsandbytes' NF4, prepared as peft's documentation has it."""

    def __init__(self, path: str, dtype: str, method: str, checkpointing: bool) -> None:
        import torch
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        kind = getattr(torch, dtype)
        options: dict[str, Any] = {"dtype": kind}
        if method == "qlora":
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=kind
            )
            options["device_map"] = "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(path, **options)
        recompute = {"use_reentrant": False}
        if method == "qlora":
            model = prepare_model_for_kbit_training(
                model, use_gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs=recompute
            )
        elif checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=recompute)
        model.config.use_cache = False
        settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        self.model = get_peft_model(model, settings).train()
        self.vocabulary = model.config.vocab_size
        self.optimizer = torch.optim.AdamW((p for p in self.model.parameters() if p.requires_grad), lr=1e-4)
        base = f"NF4 of bitsandbytes {version('bitsandbytes')}" if method == "qlora" else dtype
        self.name = f"transformers {version('transformers')}, peft {version('peft')} ({dtype}, base {base})"

    def step(self, documents: Sequence[Sequence[int]]) -> float:
        import torch

        ids = torch.tensor(documents)
        self.optimizer.zero_grad()
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


RUNNERS: dict[str, Callable[[str, str, str, bool], Any]] = {"gemmary": Gemmary, "transformers": Transformers}
