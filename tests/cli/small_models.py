"""Tiny checkpoints on disk, with a tokenizer of a few hundred pieces, that the command line can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gemmary.checkpoints import save_checkpoint
from gemmary.config import Config
from gemmary.quantize.leaves import Leaf
from gemmary.tokenizer import Tokenizer
from tests.tiny import TINY, random_leaves
from tests.tokenizer.small import PIECES, build

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\\n' + m['content'] | trim + "
    "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@dataclass
class _Source:
    config: Config
    lookup: Callable[[str], Leaf]
    tokenizer: Tokenizer
    chat_template: str | None
    name: str = "small"
    mask_codec_file: Path | None = None


def write_small(folder: Path, kind: str = "gemma3", *, chat: bool = False, seed: int = 0) -> Path:
    """A Hugging Face folder of a random model; `chat` gives it a chat template, so that it counts as tuned."""
    config = replace(TINY[kind], vocab_size=len(PIECES), context_length=4096)
    template = CHAT_TEMPLATE if chat else None
    save_checkpoint(_Source(config, random_leaves(config, seed), build(), template), folder)
    return folder
