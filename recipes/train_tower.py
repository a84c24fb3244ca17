"""The tower of the vision starter, trained alone: to tell of each patch what it belongs to.

    python -m recipes.scenes --out vision --codec vision/mask_codec.npz
    python -m recipes.train_tower recipes/vision_starter.yaml --pictures vision --out vision-tower

PaliGemma begins with a SigLIP that has seen billions of pictures. Ours sees these. First, of each patch, its token for
the decoder has to tell the shape there, its colour and about its box, by one linear layer. Then it has to tell them as
the decoder will: the box's edges as vectors like those of locations, which only need to be copied, and the codes of the
mask. What comes out is the model of the configuration, with this tower and a decoder that knows nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from gemmary.batch import patches
from gemmary.checkpoints import Checkpoint, open_checkpoint
from gemmary.engines.torch_ops import StepCache, TorchOps, Visible
from gemmary.model.vision import Pictures
from gemmary.tune.model import TuneModel, build
from gemmary.tune.optim import learning_rate, make_optimizer, update
from gemmary.tune.pretrain_settings import PretrainSettings
from gemmary.tune.start import UNTRAINED, prepare
from gemmary.vision.masks import GRID, NUM_CODES
from gemmary.vision.objects import LOCATIONS
from gemmary.vision.preprocess import as_pixels
from recipes.scenes import CELLS, SIZE
from recipes.shapes import COLOURS, SHAPES

BATCH = 32
RATE, RATE_EXACT, WARMUP, DECAY = 1e-3, 5e-4, 100, 0.05
BOX_WEIGHT = 10.0
"""Of the mean distance between edges told and true, as a share of the picture's side, beside the entropies in nats."""
MASK_TOKENS = GRID * GRID
WHAT = (1 + len(SHAPES), 1 + len(COLOURS))
"""How many answers there are to which shape, and which colour."""

SPREAD = 4.0
"""Of the logits of edges at the start: about 2."""
UNTURNED = 0.5
"""Of the batches in the second part: only of pictures as they are drawn are the codes of masks known."""

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """Of all patches of a batch, in a row."""

    shapes: UInt8
    """[patches] 0 where there is nothing, or 1 + the index of a shape."""
    colours: UInt8
    """[patches] the same of its colour."""
    boxes: npt.NDArray[np.float32]
    """[patches, 4] left, top, right and bottom as shares of the side."""
    codes: npt.NDArray[np.int16]
    """[patches, 16], or -1 where they are not known."""


class Seen:
    """Pictures and what is in their patches."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("train", "single")) -> None:
        from PIL import Image

        cells = np.load(folder / "cells.npz")
        shapes, colours = (np.concatenate([cells[f"{n}_{part}"] for n in names]) for part in ("shapes", "colours"))
        boxes = np.concatenate([cells[f"{n}_boxes"] for n in names])
        self.shapes, self.colours = shapes.reshape(-1, CELLS, CELLS), colours.reshape(-1, CELLS, CELLS)
        self.boxes = boxes.reshape(-1, CELLS, CELLS, 4)
        self.codes = mask_codes(folder / "train.jsonl", self.boxes)
        self.pictures: UInt8 = np.empty((len(shapes), SIZE, SIZE, 3), dtype=np.uint8)
        paths = (folder / "pictures" / n / f"{i:05d}.png" for n in names for i in range(len(cells[f"{n}_shapes"])))
        for i, path in enumerate(paths):
            self.pictures[i] = np.asarray(Image.open(path))

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: npt.NDArray[np.int64], turned: int = 0) -> tuple[UInt8, Truth]:
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
        codes = np.full_like(self.codes[rows], -1) if turned else self.codes[rows]
        truth = Truth(shapes.reshape(-1), colours.reshape(-1), boxes.reshape(-1, 4), codes.reshape(-1, MASK_TOKENS))
        return pictures, truth


def mask_codes(rows: Path, boxes: UInt8) -> npt.NDArray[np.int16]:
    """[pictures, CELLS, CELLS, 16] the codes of what is in a patch, of the things whose masks a row tells; else -1."""
    codes = np.full((*boxes.shape[:3], MASK_TOKENS), -1, dtype=np.int16)
    with rows.open(encoding="utf-8") as lines:
        for row in (json.loads(line) for line in lines if '"prefix": "segment' in line):
            picture = int(Path(row["image"]).stem)
            for each in row["objects"]:
                codes[picture, (boxes[picture] == each["box"]).all(axis=2)] = each["mask"]
    return codes


class Told(nn.Module):
    """What a token tells."""

    def __init__(self, width: int, locations: torch.Tensor) -> None:
        """locations: [SIZE + 1, width] the decoder's vectors of the numbers of edges."""
        super().__init__()
        self.what = nn.Linear(width, sum(WHAT))
        self.box = nn.Linear(width, 4)
        self.edges = nn.Linear(width, 4 * width)
        self.codes = nn.Linear(width, MASK_TOKENS * NUM_CODES)
        self.register_buffer("locations", locations)

    def losses(self, tokens: torch.Tensor, truth: Truth, is_exact: bool) -> list[torch.Tensor]:
        """Mean nats of shape and colour; then of the box, or if `is_exact` of its edges (the sum of four) and of the
        codes."""
        shape, colour = self.what(tokens).split(WHAT, dim=1)
        there = torch.from_numpy(np.flatnonzero(truth.shapes))
        boxes = torch.from_numpy(truth.boxes)[there]
        losses = [functional.cross_entropy(shape, torch.from_numpy(truth.shapes).long())]
        losses.append(functional.cross_entropy(colour, torch.from_numpy(truth.colours).long()))
        if not is_exact:
            return [*losses, BOX_WEIGHT * (self.box(tokens[there]) - boxes).abs().mean()]
        near = self.edges(tokens[there]).view(-1, self.locations.shape[1]) @ self.locations.T
        losses.append(4 * functional.cross_entropy(near, (boxes * SIZE).round().long().flatten()))
        known = torch.from_numpy(np.flatnonzero(truth.codes[:, 0] >= 0))
        if len(known):
            codes = torch.from_numpy(truth.codes)[known].long().flatten()
            losses.append(functional.cross_entropy(self.codes(tokens[known]).view(-1, NUM_CODES), codes))
        return losses


def tokens_of(model: TuneModel, pictures: UInt8) -> torch.Tensor:
    """[B * patches, D]"""
    fed, rows = patches(model.config, as_pixels(pictures))
    visible = Visible.of(fed.visible, rows, model.device)
    seen = Pictures(torch.from_numpy(fed.patches), torch.from_numpy(fed.positions).long(), visible)
    return model.see(TorchOps(torch.float32), seen, StepCache([None] * len(rows), rows))


def _locations(model: Checkpoint) -> npt.NDArray[np.float32]:
    """[SIZE + 1, D] the rows of the table for the pixels at which a box can end."""
    first = model.tokenizer.id("<loc0000>")
    numbers = np.rint(np.arange(SIZE + 1) * ((LOCATIONS - 1) / SIZE)).astype(int)
    rows: npt.NDArray[np.float32] = model.lookup("embed").dequantize()[first + numbers] * np.float32(SPREAD)
    return rows


def teach(model: TuneModel, told: Told, seen: Seen, steps: int, *, is_exact: bool, seed: int) -> None:
    tower = {name: weight for name, weight in model.trained().items() if "language_model" not in name}
    optimizer = make_optimizer("muon", {**tower, **dict(told.named_parameters())}, DECAY)
    random = np.random.default_rng([seed, is_exact])
    peak = RATE_EXACT if is_exact else RATE
    names = ("shape", "colour", "edges", "codes") if is_exact else ("shape", "colour", "box")
    seen_losses: dict[str, list[float]] = {name: [] for name in names}
    for step in range(steps):
        rows = random.integers(0, len(seen), BATCH)
        turned = 0 if is_exact and random.random() < UNTURNED else int(random.integers(8))
        pictures, truth = seen.batch(rows, turned)
        losses = told.losses(tokens_of(model, pictures), truth, is_exact)
        torch.stack(losses).sum().backward()
        update(optimizer, learning_rate("cosine", step, peak=peak, steps=steps, warmup=WARMUP), 1.0)
        for name, loss in zip(names, losses, strict=False):  # codes are not known in every batch
            seen_losses[name].append(loss.item())
        if step % 100 == 99:
            said = "  ".join(f"{name} {np.mean(some):.3f}" for name, some in seen_losses.items() if some)
            print(f"step {step + 1:,} of {steps:,}  {said}", flush=True)
            for some in seen_losses.values():
                some.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configuration", type=Path, help="of `gemmary pretrain`: the model's shape, and its rows")
    parser.add_argument("--pictures", type=Path, default=Path("vision"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("vision-tower"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, nargs=2, default=(8000, 2500), help="of 32 pictures (default: 8000 2500)")
    arguments = parser.parse_args()
    if not (arguments.pictures / "cells.npz").is_file():
        parser.error(f"{arguments.pictures} has no cells.npz: make it with recipes.scenes")
    settings = PretrainSettings.read(arguments.configuration, out=str(arguments.out))
    start, _ = prepare(settings)
    untrained = open_checkpoint(start / UNTRAINED)
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    model = build(untrained, settings.tuning(start / UNTRAINED, arguments.pictures), torch.device("cpu"), torch.float32)
    told = Told(model.config.hidden_size, torch.from_numpy(_locations(untrained)))
    seen = Seen(arguments.pictures)
    for is_exact, steps in enumerate(arguments.steps):
        teach(model, told, seen, steps, is_exact=bool(is_exact), seed=settings.seed)
    model.save(arguments.out / "model")


if __name__ == "__main__":
    main()
