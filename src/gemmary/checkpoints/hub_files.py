"""Which files of a hub repository are fetched for a model."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from gemmary.checkpoints import hub
from gemmary.checkpoints.hub import HubName
from gemmary.checkpoints.hub_layouts import choose_orbax, keras_files, orbax_files, orbax_folders
from gemmary.errors import GemmaryError

_SIDE_FILES = re.compile(
    r"(config|generation_config|special_tokens_map|added_tokens|preprocessor_config|processor_config|modules"
    r"|config_sentence_transformers|sentence_bert_config|model\.safetensors\.index)\.json"
    r"|tokenizer.*|chat_template.*|LICENSE.*|NOTICE.*|\d_(Pooling|Dense|Normalize)/[^/]+\.(json|safetensors)"
)


def select_files(files: dict[str, int], hub_name: HubName) -> list[str]:
    """Which files of a repository (name to bytes) a model needs: its weights in one format, config and tokenizer. Of
    several formats the first of safetensors, GGUF, KerasHub's, Orbax's."""
    weights = [f for f in files if PurePosixPath(f).suffix == ".safetensors" and "/" not in f]
    if not weights or hub_name.file is not None:
        if any(f.endswith(".gguf") for f in files):
            return [hub.choose_gguf(files, hub_name.file, hub_name.repo)]
        weights = keras_files(files)
        if not weights and (folders := orbax_folders(files)):
            weights = orbax_files(files, choose_orbax(folders, hub_name.file, hub_name.repo))
        if not weights:
            raise GemmaryError(f"{hub_name.repo} holds no safetensors, GGUF, KerasHub or Orbax weights to use")
    return sorted({*weights, *(f for f in files if _SIDE_FILES.fullmatch(f))})
