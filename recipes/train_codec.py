"""Trains a small mask codec: a VQ-VAE from masks cut to their boxes to 16 codes and back, a tenth of PaliGemma's size.

    python -m recipes.train_codec --out vision/mask_codec.npz

Half of the masks are shapes of scenes, half blobs of any form, so that it holds more than what scenes are made of.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemmary.files import atomic_file
from gemmary.vision.masks import NUM_CODES, MaskCodec, cut, shapes_of
from recipes.scenes import SEEDS, scene
from recipes.shapes import NEW, SHAPES

if TYPE_CHECKING:
    import torch

CHANNELS = (8, 16, 32, 48, 32, 48, 48, 32, 16, 8, 1)
"""What each layer writes; the fifth is the size of a code."""
BATCH = 64
COMMITMENT = 0.25
"""Weight of the distance between what is encoded and its code (van den Oord 2017)."""
STALE = 100
"""Steps between two looks at which codes were not used: these begin anew at something encoded just now."""

Float32 = npt.NDArray[np.float32]


def masks_of(seed: int, count: int) -> Float32:
    """[count, 64, 64] from 0 to 1: by turns of scenes and blobs."""
    found: list[Float32] = []
    random = np.random.default_rng([seed, 2])
    while len(found) < count:
        for thing in scene(seed, shapes={**SHAPES, **NEW}).things:
            found += [cut(thing.mask, thing.box), _blob(random)]
        seed += 1
    return np.stack(found[:count])


def _blob(random: np.random.Generator) -> Float32:
    """The inside of a closed curve whose radius is a few random waves, cut to its box."""
    from PIL import Image, ImageDraw

    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    waves = np.arange(1, 6)
    sizes = random.normal(0, 0.45, (2, 5)) / waves
    radii = np.exp(sizes[0] @ np.cos(waves[:, None] * angles) + sizes[1] @ np.sin(waves[:, None] * angles))
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0) * random.uniform(24, 90, 2)
    fine = Image.new("1", (96, 96))
    ImageDraw.Draw(fine).polygon([tuple(point) for point in points], fill=1)
    mask = np.asarray(fine)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return cut(mask, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def train(masks: Float32, steps: int, seed: int) -> dict[str, npt.NDArray[np.float16]]:
    """The arrays of a codec. The same masks, steps and seed give the same bytes on one kind of machine."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    random = np.random.default_rng([seed, 3])
    weights = {}
    for name, shape in shapes_of(CHANNELS).items():
        fan = float(np.prod(shape[1:])) if len(shape) == 4 else 1.0
        spread = (2 / fan) ** 0.5 if len(shape) == 4 else 0.0
        weights[name] = torch.nn.Parameter(torch.randn(shape) * spread)
    book = weights["_vq_vae._embedding"]
    optimizer = torch.optim.AdamW(weights.values(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    used = torch.zeros(NUM_CODES)
    for step in range(steps):
        mask = torch.from_numpy(masks[random.integers(0, len(masks), BATCH)])[:, None]
        encoded = encode(weights, 2 * (mask - 0.5))
        if step == 0 or (step % STALE == 0 and step < 0.7 * steps):
            with torch.no_grad():
                rows = encoded.movedim(1, -1).reshape(-1, encoded.shape[1])
                stale = used < 0.1 * used.mean() if step else torch.ones(NUM_CODES, dtype=torch.bool)
                book[stale] = rows[torch.randperm(len(rows))[: int(stale.sum())]]
                used.zero_()
        rows = encoded.movedim(1, -1)
        codes = torch.cdist(rows.detach().flatten(0, 2), book.detach()).argmin(dim=1)
        used += torch.bincount(codes, minlength=NUM_CODES)
        chosen = functional.embedding(codes, book).view(rows.shape)
        quantized = (rows + (chosen - rows).detach()).movedim(-1, 1)
        decoded = decode(weights, quantized)
        missed = functional.mse_loss(decoded, 2 * (mask - 0.5))
        apart = functional.mse_loss(chosen, rows.detach()) + COMMITMENT * functional.mse_loss(rows, chosen.detach())
        optimizer.zero_grad()
        (missed + apart).backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            print(
                f"step {step + 1}: {missed.item():.4f}, codes {apart.item():.4f}, {int((used > 0).sum())} used",
                flush=True,
            )
    return {name: weight.detach().numpy().astype(np.float16) for name, weight in weights.items()}


def encode(weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """[n, 1, 64, 64] -> [n, code size, 4, 4]: what `MaskCodec.encode` compares with its codes."""
    from torch.nn import functional

    for name in ("encoder.0", "encoder.2", "encoder.4", "encoder.6"):
        x = functional.relu(functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 2, 1))
    for name in ("encoder.8", "encoder.9"):
        x = _residual(weights, x, name)
    return functional.conv2d(x, weights["encoder.10.weight"], weights["encoder.10.bias"])


def decode(weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The way back."""
    from torch.nn import functional

    x = functional.relu(functional.conv2d(x, weights["decoder.0.weight"], weights["decoder.0.bias"]))
    for name in ("decoder.2", "decoder.3"):
        x = _residual(weights, x, name)
    for name in ("decoder.4", "decoder.6", "decoder.8", "decoder.10"):
        x = functional.relu(functional.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 2, 1))
    return functional.conv2d(x, weights["decoder.12.weight"], weights["decoder.12.bias"])


def _residual(weights: Mapping[str, torch.Tensor], x: torch.Tensor, name: str) -> torch.Tensor:
    from torch.nn import functional

    def layer(x: torch.Tensor, i: int, padding: int) -> torch.Tensor:
        return functional.conv2d(x, weights[f"{name}.net.{i}.weight"], weights[f"{name}.net.{i}.bias"], 1, padding)

    return x + layer(functional.relu(layer(functional.relu(layer(x, 0, 1)), 2, 1)), 4, 0)


def overlap(codec: MaskCodec, masks: Float32) -> Float32:
    """[count]: intersection over union of each mask and what is left of it after its codes."""
    found = [(codec.decode(codec.encode(mask)) > 0, mask > 0.5) for mask in masks]
    return np.array([(a & b).sum() / (a | b).sum() for a, b in found], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("vision/mask_codec.npz"), metavar="FILE")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--masks", type=int, default=16_000, help="to train on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arrays = train(masks_of(SEEDS["train"] + (1 << 30), arguments.masks), arguments.steps, arguments.seed)
    assert all(np.isfinite(array).all() for array in arrays.values())
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    with atomic_file(arguments.out) as file:
        file.write(packed.getvalue())
    left = overlap(MaskCodec.open(arguments.out), masks_of(SEEDS["test"] + (1 << 30), 600))
    shares = f"{left[::2].mean():.3f} of shapes, {left[1::2].mean():.3f} of blobs"
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes; held-out masks keep an IoU of {shares}")


if __name__ == "__main__":
    main()
