"""One side of pictures.py in a process of its own: loads, says so, then answers each line of stdin with one of stdout.

python pictures_child.py KIND MODEL HOW THREADS
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from peers_child import peak_bytes, seconds

WORDS = 16
"""Tokens of the prompt behind the picture."""


class Runner(Protocol):
    """One model loaded. `see` runs the tower alone; `start` reads a picture and a prompt; `write` appends a token."""

    name: str
    size: int

    def see(self, pixels: Any) -> None: ...

    def start(self, pixels: Any, words: list[int]) -> None: ...

    def write(self, token: int) -> None: ...


class Gemmary:
    def __init__(self, model: str, how: str, threads: int) -> None:
        from gemmary import __version__
        from gemmary.checkpoints import open_checkpoint
        from gemmary.engines import open_engine

        quant = "" if how == "bfloat16" else f":{how}"
        checkpoint = open_checkpoint(f"random:{model}{quant}")
        self.config = checkpoint.config
        assert self.config.vision is not None
        self.size = self.config.vision.image_size
        self.engine: Any = open_engine("native", checkpoint.config, checkpoint.lookup, threads=threads)
        self.name = f"Gemmary {__version__} {how}, {self.engine.info.device}"

    def see(self, pixels: Any) -> None:
        self.engine.see(pixels)

    def start(self, pixels: Any, words: list[int]) -> None:
        from gemmary.batch import Batch, Chunk

        assert self.config.vision is not None
        ids = [self.config.image_token_id] * self.config.vision.num_patches + words
        self.cache, self.length = self.engine.new_cache(len(ids) + 64), len(ids)
        chunk = Chunk(ids, prefix=len(ids), pictures=self.engine.see(pixels))
        self.engine.step(Batch.of(self.config, [chunk]), [self.cache])

    def write(self, token: int) -> None:
        from gemmary.batch import Batch, Chunk

        self.engine.step(Batch.of(self.config, [Chunk([token], start=self.length)]), [self.cache])
        self.length += 1


class Transformers:
    def __init__(self, model: str, how: str, threads: int) -> None:
        import torch
        import transformers

        from gemmary import zoo
        from gemmary.checkpoints.config_json import write_config

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = zoo.get(model).config
        assert config.vision is not None
        self.size, self.places, self.image_token = config.vision.image_size, config.vision.num_patches, 257_152
        described = transformers.AutoConfig.for_model(**write_config(config, how, [1]))
        kind = getattr(torch, how)
        torch.set_default_dtype(kind)
        with torch.device("meta"):
            self.model: Any = transformers.PaliGemmaForConditionalGeneration(described)
        self.model = self.model.to_empty(device="cpu").eval()
        with torch.no_grad():
            for weight in self.model.parameters():
                if weight.ndim > 1:
                    weight.uniform_(-(weight[0].numel() ** -0.5), weight[0].numel() ** -0.5)
                else:
                    weight.fill_(1.0 if weight.ndim else 0.0)
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    buffer.fill_(1.0)
        torch.set_default_dtype(torch.float32)
        self.kind = kind
        self.name = f"transformers {transformers.__version__}, torch {torch.__version__}, {how}"

    def see(self, pixels: Any) -> None:
        import torch

        with torch.inference_mode():
            self.model.get_image_features(self._pixels(pixels))

    def start(self, pixels: Any, words: list[int]) -> None:
        import torch

        ids = torch.tensor([[self.image_token] * self.places + words])
        kinds = torch.zeros_like(ids)
        with torch.inference_mode():
            out = self.model(
                input_ids=ids, pixel_values=self._pixels(pixels), token_type_ids=kinds, use_cache=True,
                attention_mask=torch.ones_like(ids), logits_to_keep=1,
            )  # fmt: skip
        self.cache, self.length = out.past_key_values, ids.shape[1]

    def write(self, token: int) -> None:
        import torch

        self.length += 1
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([[token]]), past_key_values=self.cache, use_cache=True,
                attention_mask=torch.ones(1, self.length, dtype=torch.long),
            )  # fmt: skip
        self.cache = out.past_key_values

    def _pixels(self, pixels: Any) -> Any:
        import torch

        return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(self.kind)


RUNNERS: dict[str, Callable[[str, str, int], Runner]] = {"gemmary": Gemmary, "transformers": Transformers}


def main() -> None:
    kind, model, how, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print; answers have a channel of their own
    runner = RUNNERS[kind](model, how, int(threads))
    print(json.dumps({"name": runner.name, "peak_bytes": peak_bytes()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        random = np.random.default_rng(request["seed"])
        pixels = random.uniform(-1, 1, (1, runner.size, runner.size, 3)).astype(np.float32)
        words = [2, *random.integers(1000, 200_000, WORDS - 1).tolist()]
        tokens = random.integers(1000, 200_000, request["decoded"]).tolist()
        answer = {}
        answer["tower_s"] = seconds(lambda pixels=pixels: runner.see(pixels))
        answer["first_s"] = seconds(lambda pixels=pixels, words=words: runner.start(pixels, words))
        answer["decode_s"] = seconds(lambda tokens=tokens: [runner.write(token) for token in tokens])
        print(json.dumps({**answer, "peak_bytes": peak_bytes()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
