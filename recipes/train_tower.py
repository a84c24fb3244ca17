"""The tower of the vision starter, trained alone: to tell of each patch what it belongs to.

    python -m recipes.scenes --out vision --codec vision/mask_codec.npz
    python -m recipes.train_tower recipes/pretrain_vision.yaml --pictures vision --out vision-tower

PaliGemma begins with a SigLIP that has seen billions of pictures. Ours sees these: of each patch, its token for the
decoder has to tell the shape there, its colour and its box, by one linear layer that is thrown away at the end. What
comes out is the model of the configuration, with this tower and a decoder that knows nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from gemmary.batch import patches
from gemmary.checkpoints import open_checkpoint
from gemmary.engines.torch_ops import StepCache, TorchOps, Visible
from gemmary.model.vision import Pictures
from gemmary.tune.model import TuneModel, build
from gemmary.tune.optim import learning_rate, make_optimizer, update
from gemmary.tune.pretrain_settings import PretrainSettings
from gemmary.tune.start import UNTRAINED, prepare
from gemmary.vision.preprocess import as_pixels
from recipes.scenes import CELLS, SIZE
from recipes.shapes import COLOURS, SHAPES

BATCH = 32
RATE, WARMUP, DECAY = 1e-3, 100, 0.05
BOX_WEIGHT = 10.0
"""Of the mean distance between edges told and true, as a share of the picture's side, beside the entropies in nats."""
OUTPUTS = (1 + len(SHAPES), 1 + len(COLOURS), 4)

UInt8 = npt.NDArray[np.uint8]


class Seen:
    """Pictures and what is in their patches."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("train", "single")) -> None:
        from PIL import Image

        cells = np.load(folder / "cells.npz")
        shapes, colours = (np.concatenate([cells[f"{n}_{part}"] for n in names]) for part in ("shapes", "colours"))
        boxes = np.concatenate([cells[f"{n}_boxes"] for n in names])
        self.shapes, self.colours = shapes.reshape(-1, CELLS, CELLS), colours.reshape(-1, CELLS, CELLS)
        self.boxes = boxes.reshape(-1, CELLS, CELLS, 4)
        self.pictures: UInt8 = np.empty((len(shapes), SIZE, SIZE, 3), dtype=np.uint8)
        paths = (folder / "pictures" / n / f"{i:05d}.png" for n in names for i in range(len(cells[f"{n}_shapes"])))
        for i, path in enumerate(paths):
            self.pictures[i] = np.asarray(Image.open(path))

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(
        self, rows: npt.NDArray[np.int64], turned: int = 0
    ) -> tuple[UInt8, UInt8, UInt8, npt.NDArray[np.float32]]:
        """Pictures [B, SIZE, SIZE, 3], shapes and colours [B * cells], boxes [B * cells, 4] as shares of the side.

        turned: from 0 to 7, which of the ways to lay a square onto itself.
        """
        pictures, shapes, colours = self.pictures[rows], self.shapes[rows], self.colours[rows]
        boxes = self.boxes[rows].astype(np.float32) / SIZE
        if turned & 1:
            pictures, shapes, colours, boxes = (each[:, :, ::-1] for each in (pictures, shapes, colours, boxes))
            boxes = np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], axis=-1)
        if turned & 2:
            pictures, shapes, colours, boxes = (each[:, ::-1] for each in (pictures, shapes, colours, boxes))
            boxes = np.stack([boxes[..., 0], 1 - boxes[..., 3], boxes[..., 2], 1 - boxes[..., 1]], axis=-1)
        if turned & 4:
            pictures, shapes, colours, boxes = (each.swapaxes(1, 2) for each in (pictures, shapes, colours, boxes))
            boxes = boxes[..., [1, 0, 3, 2]]
        return pictures, shapes.reshape(-1), colours.reshape(-1), boxes.reshape(-1, 4)


def tokens_of(model: TuneModel, pictures: UInt8) -> torch.Tensor:
    """[B * patches, D]"""
    fed, rows = patches(model.config, as_pixels(pictures))
    seen = Pictures(
        torch.from_numpy(fed.patches),
        torch.from_numpy(fed.positions).long(),
        Visible.of(fed.visible, rows, model.device),
    )
    return model.see(TorchOps(torch.float32), seen, StepCache([None] * len(rows), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", type=Path, help="of `gemmary pretrain`: the model's shape, and its rows")
    parser.add_argument("--pictures", type=Path, default=Path("vision"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("vision-tower"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=12_000, help="of 32 pictures (default: %(default)s)")
    arguments = parser.parse_args()
    settings = PretrainSettings.read(arguments.configuration, out=str(arguments.out))
    start, _ = prepare(settings)
    untrained = open_checkpoint(start / UNTRAINED)
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    model = build(untrained, settings.tuning(start / UNTRAINED, arguments.pictures), torch.device("cpu"), torch.float32)
    teach(model, Seen(arguments.pictures), arguments.steps, settings.seed)
    model.save(arguments.out / "model")


def teach(model: TuneModel, seen: Seen, steps: int, seed: int = 0) -> None:
    told = nn.Linear(model.config.hidden_size, sum(OUTPUTS))
    tower = {name: weight for name, weight in model.trained().items() if "layers" not in name or "vision" in name}
    optimizer = make_optimizer("muon", {**tower, **dict(told.named_parameters())}, DECAY)
    random = np.random.default_rng(seed)
    means = np.zeros(4)
    for step in range(steps):
        rows = random.integers(0, len(seen), BATCH)
        pictures, shapes, colours, boxes = seen.batch(rows, int(random.integers(8)))
        shape, colour, box = told(tokens_of(model, pictures)).split(OUTPUTS, dim=1)
        there = torch.from_numpy(shapes > 0)
        losses = (
            functional.cross_entropy(shape, torch.from_numpy(shapes).long()),
            functional.cross_entropy(colour, torch.from_numpy(colours).long()),
            BOX_WEIGHT * (box - torch.from_numpy(boxes))[there].abs().mean(),
        )
        torch.stack(losses).sum().backward()
        update(optimizer, learning_rate("cosine", step, peak=RATE, steps=steps, warmup=WARMUP), 1.0)
        right = (shape.argmax(1) == torch.from_numpy(shapes))[there].float().mean()
        means += [*(loss.item() for loss in losses), right.item()]
        if step % 100 == 99:
            print(
                f"step {step + 1}  shape {means[0]:.1f}  colour {means[1]:.1f}  box {means[2]:.1f}  "
                f"right {means[3]:.1f} %",
                flush=True,
            )  # of 100 steps: hundredths of nats
            means[:] = 0


if __name__ == "__main__":
    main()
