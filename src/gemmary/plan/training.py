"""What tuning takes of memory, from the shape alone (`tune/room.py` decides by the same numbers)."""

from __future__ import annotations

from dataclasses import dataclass

from gemmary.config import Config

ADAPTED = ("lora", "qlora")
FULL_BYTES = {"adamw": 16, "adafactor": 8, "muon": 16}
"""Bytes for each weight that is trained: itself, its gradient, and what the optimizer keeps of it. (Muon keeps half as
much of the layers, which need not be most of a model.)"""
MARGIN = 1.25
"""For what comes and goes within a layer, and the head."""
RANK = 16
"""Of an adapter on every linear layer: the default of `tune/settings.py`."""


@dataclass(frozen=True)
class TrainingBytes:
    """What a training run holds, in bytes."""

    weights: int
    optimizer: int
    activations: int
    checkpointed: int
    """Activations where each layer's are computed twice."""


def training_bytes(config: Config, base: int, tokens: int, width: int, *, full: bool) -> TrainingBytes:
    """base: bytes of the frozen weights. tokens: of a step. width: bytes of a number that is computed with. full: every
    weight is trained, with AdamW, and not an adapter beside frozen ones."""
    trained = config.total_parameters if full else adapter_parameters(config)
    kept = activation_bytes_per_token(config, width, full=full)
    stream = config.num_layers * config.hidden_size * width
    return TrainingBytes(
        weights=(0 if full else base) + 4 * trained,
        optimizer=(FULL_BYTES["adamw"] - 4) * trained,
        activations=int(MARGIN * kept * tokens),
        checkpointed=int(MARGIN * (stream + kept // config.num_layers) * tokens),
    )


def adapter_parameters(config: Config, rank: int = RANK) -> int:
    """Of matrices A and B on every linear layer."""
    d, ffn = config.hidden_size, config.intermediate_size
    edges = 2 * (d + config.query_size) + 2 * (d + config.kv_size) + 3 * (d + ffn)
    return config.num_layers * rank * edges


def activation_bytes_per_token(config: Config, itemsize: int, *, full: bool = False, tower: bool = False) -> int:
    """What the backward pass needs of each token, if no layer is computed twice: what enters the norms, GeGLU and
    attention in all layers, those of the tower among them where it is trained.

    full: the inputs of products are kept, too. Beside an adapter alone what comes out of norms and GeGLU is made again
    (`engines/torch_sources.py`), as is what enters the second norm of layers whose branches end with one.
    """
    inputs = 2 * full
    stream = ((3 if config.post_norms else 2) + inputs) * config.hidden_size
    heads = (3 if config.qk_norm else 2) * (config.query_size + config.kv_size)
    kept = config.num_layers * (stream + heads + (2 + full) * config.intermediate_size)
    if tower and config.vision is not None:  # where every token is a patch, as nearly all are
        vision = config.vision
        kept += vision.num_layers * ((6 + inputs) * vision.hidden_size + (1 + full) * vision.intermediate_size)
    return kept * itemsize
