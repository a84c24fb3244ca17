"""`gemmary show`: what a model is and what it costs, without loading it."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemmary import zoo
from gemmary.calibrate import quality
from gemmary.checkpoints import hub, starter
from gemmary.cli import console, parser
from gemmary.config import Config, VisionConfig
from gemmary.memory import size

KINDS = {
    "safetensors": "Hugging Face folder",
    "gguf": "GGUF file",
    "big_vision": "big_vision's .npz file",
    "orbax": "DeepMind's Orbax checkpoint",
    "keras_hub": "KerasHub preset",
    "packed": "folder packed for the native engine, which maps it as it is",
}

MOST_FILES = 64
"""Those of a folder that holds more (Orbax's) are counted, not listed."""


def add(commands: Any) -> None:
    details = "Its sizes, costs, formats, files and terms. A model of the series need not be on this machine."
    command = parser.command(commands, "show", run, "tell what a model is", details)
    command.add_argument("model", metavar="MODEL", help=parser.MODEL_HELP)
    command.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> None:
    name = arguments.model
    row = zoo.find(starter.HUB_ID if name == starter.NAME else name)
    path = locate(name)
    found: dict[str, Any] = {"name": name, "path": str(path) if path else None}
    if path is None and row is not None:
        config = row.config
        found["note"] = f"not on this machine: `gemmary pull {name}` fetches it"
    else:
        from gemmary.checkpoints import open_checkpoint

        checkpoint = open_checkpoint(path or hub.resolve(name))
        config = checkpoint.config
        found["title"] = checkpoint.name
        found["format"] = checkpoint.format
        found["files"] = {file.name: file.stat().st_size for file in files_of(checkpoint.path)}
        found["formats"] = formats_of(checkpoint)
        found["chat_template"] = checkpoint.chat_template is not None
        found["notices"] = checkpoint.notices
        if (stated := quality.read(checkpoint.path)) is not None:
            found["quality"] = stated
    if row is not None:
        found["hub_id"], found["tuning"] = row.hub_id, row.tuning
    found["terms"] = terms_of(name)
    found["costs"] = costs_of(config)
    found["config"] = asdict(config)
    if arguments.json:
        console.write_json(found)
    else:
        write(found, config)


def locate(name: str) -> Path | None:
    """Where the model lies; None for a row of the zoo that was not fetched."""
    hub_name = hub.parse(name)
    if zoo.find(name) is not None and hub_name is not None and hub.snapshot_of(hub_name) is None:
        return None
    return hub.resolve(name)


def files_of(path: Path) -> list[Path]:
    """The files of a model; none of random weights."""
    return sorted(file for file in (path, *path.rglob("*")) if file.is_file())


def formats_of(checkpoint: Any) -> dict[str, int]:
    """Bytes of weights by the format that they are stored in."""
    held: Counter[str] = Counter()
    for name in checkpoint.names():
        leaf = checkpoint.lookup(name)
        held[leaf.format] += leaf.nbytes
    return dict(held.most_common())


def terms_of(name: str) -> str:
    """Where the terms of the weights are to be read."""
    if name == starter.NAME and (path := starter.terms_path()):
        return f"Gemma terms of use, in {path}"
    if hub.is_random(name):
        return "none: random numbers are no one's"
    hub_name = hub.parse(name)
    if hub_name is not None:
        return f"those on the page of {hub_name.repo} on the hub"
    return "those that the weights came with"


def costs_of(config: Config) -> dict[str, int]:
    """Counts, bytes and FLOPs that follow from the config."""
    return {
        "parameters": config.total_parameters,
        "embedding_parameters": config.embedding_parameters,
        "bfloat16_bytes": config.weight_bytes(16),
        "int8_bytes": config.weight_bytes(8.5),
        "int4_bytes": config.weight_bytes(4.5),
        "kv_bytes_per_token": config.kv_bytes_per_token(),
        "kv_growth_per_token": config.kv_growth_per_token(),
        "kv_bytes_of_full_context": config.kv_cache_bytes(config.context_length),
        "flops_per_token": config.flops_per_token(),
    }


def pictures_of(config: Config, vision: VisionConfig) -> list[tuple[str, str]]:
    """What there is to know of a model that sees: its tower, and the conventions where published code differs."""
    side = vision.image_size
    if config.prefix_lm:
        whose, said = (
            "as big_vision has it",
            ["a prompt sees itself whole", "no sliding window", "no cap of the logits"],
        )
    else:
        whose, said = "as in training", ["a picture sees itself whole", "text is causal"]
    said = ["a picture's tokens enter unscaled", *said]
    return [
        ("pictures", f"{side:,} x {side:,} pixels, {vision.num_tokens:,} tokens each"),
        ("tower", f"{vision.num_layers} layers, {vision.hidden_size:,} wide, {config.vision_parameters:,} parameters"),
        (whose, ", ".join(said)),
    ]


def write(found: dict[str, Any], config: Config) -> None:
    costs = found["costs"]
    window = f", window {config.sliding_window:,}" if config.sliding_window else ""
    local = config.layer_types.count("local")
    caps = f"{config.attn_logit_softcap or 'none'} / {config.final_logit_softcap or 'none'}"
    rows = [("name", found["name"])]
    if found.get("title") and found["title"] != found["name"]:
        rows.append(("called", found["title"]))
    if "hub_id" in found:
        rows.append(("released as", f"{found['hub_id']} ({found['tuning']})"))
    rows += [
        ("where", found["path"] or found["note"]),
        ("family", config.family),
        ("parameters", f"{costs['parameters']:,} ({costs['embedding_parameters']:,} in the embedding)"),
        ("layers", f"{config.num_layers} ({config.num_layers - local} global, {local} local{window})"),
        ("width", f"{config.hidden_size:,}, feed-forward {config.intermediate_size:,}"),
        ("heads", f"{config.num_heads} of {config.head_dim}, {config.num_kv_heads} for keys and values"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("context", f"{config.context_length:,} tokens"),
        ("softcaps", f"{caps} (attention / logits)"),
        (
            "weights take",
            f"{size(costs['bfloat16_bytes'])} in bfloat16, {size(costs['int8_bytes'])} in int8, "
            f"{size(costs['int4_bytes'])} in int4",
        ),
        (
            "a token takes",
            f"{costs['kv_bytes_per_token']:,} bytes of bfloat16 keys and values "
            f"({costs['kv_growth_per_token']:,} beyond the window), {costs['flops_per_token']:,} FLOPs",
        ),
        ("full context", f"{size(costs['kv_bytes_of_full_context'])} of keys and values"),
    ]
    if config.vision:
        rows += pictures_of(config, config.vision)
    if "formats" in found:
        rows.append(("kind", KINDS[found["format"]]))
        rows.append(("stored as", ", ".join(f"{name} {size(held)}" for name, held in found["formats"].items())))
        rows.append(("chat template", "yes" if found["chat_template"] else "none"))
        if "quality" in found:
            rows += quality.lines(found["quality"])
        files = found["files"]
        if len(files) <= MOST_FILES:
            rows += [("file", f"{name} ({size(held)})") for name, held in files.items()]
        else:
            rows.append(("files", f"{len(files):,} ({size(sum(files.values()))})"))
        rows += [("note", notice) for notice in found["notices"]]
    rows.append(("terms", found["terms"]))
    console.facts(rows)
