"""Gemmary: the Gemma series on your own machine.

    import gemmary

    model = gemmary.load("starter")
    print(model.generate("The capital of France is", max_tokens=32).text)

Names are imported when they are used, so that `import gemmary` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; importing `typing` would cost more than this whole package
if TYPE_CHECKING:
    from typing import Any

    from gemmary.api import GemmaryWarning, Model, load, random_model, save
    from gemmary.errors import GemmaryError
    from gemmary.generate import Completion, Piece, SamplingParams, Stats, Stream, TokenLogprob
    from gemmary.seeing import PictureCompletion
    from gemmary.vision.boxes import Box, Mask

__version__ = "0.1.0"

__all__ = [
    "Box",
    "Completion",
    "GemmaryError",
    "GemmaryWarning",
    "Mask",
    "Model",
    "PictureCompletion",
    "Piece",
    "SamplingParams",
    "Stats",
    "Stream",
    "TokenLogprob",
    "__version__",
    "load",
    "random_model",
    "save",
]

_MODULES = {
    "Box": "gemmary.vision.boxes",
    "GemmaryError": "gemmary.errors",
    "GemmaryWarning": "gemmary.api",
    "Mask": "gemmary.vision.boxes",
    "Model": "gemmary.api",
    "PictureCompletion": "gemmary.seeing",
    "load": "gemmary.api",
    "random_model": "gemmary.api",
    "save": "gemmary.api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gemmary' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES.get(name, "gemmary.generate")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
