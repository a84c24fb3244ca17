"""The rules of the house, read from the source: what the model may say, who may know whom, what an import brings in."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import gemmary

SOURCE = Path(gemmary.__file__).parent
MODEL_FILES = sorted((SOURCE / "model").glob("*.py"))
MODULES = sorted(SOURCE.rglob("*.py"))


def test_type_checkers_take_the_annotations() -> None:
    assert (SOURCE / "py.typed").is_file()


# Rule 1: the model is written on no engine --------------------------------------------------------------------------

STANDARD = {"__future__", "collections.abc", "dataclasses", "typing"}
ENGINE_WORDS = r"torch|jax|numpy|native|cuda|tpu|mlx|ggml|onnx|avx|gpu|cpu"
CASTS = {"astype", "to", "float", "half", "double", "bfloat16", "float32", "dtype", "cast", "view", "asarray"}
MASK_FIELDS = {"sliding_window", "window", "prefix", "bidirectional"}

each_model_file = pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.name)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_there_is_a_model() -> None:
    assert {path.name for path in MODEL_FILES} >= {"decoder.py", "masks.py", "leaves.py"}


@each_model_file
def test_the_model_names_no_engine(path: Path) -> None:
    assert re.findall(rf"\b({ENGINE_WORDS})\b", path.read_text(), re.IGNORECASE) == []


@each_model_file
def test_the_model_casts_nothing(path: Path) -> None:
    """No dtype in it: which precision is whose business stands in `ops/spec.py`."""
    used = {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    called = {node.func.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call) and _is_name(node.func)}
    assert (used | called) & CASTS == set()


@each_model_file
def test_the_model_never_asks_for_a_name(path: Path) -> None:
    """No branch on a family, a model's name or any other string; what differs is a field of the config."""
    for node in ast.walk(tree_of(path)):
        assert not (isinstance(node, ast.Attribute) and node.attr in ("family", "name", "tuning", "hub_id"))
        tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert) else []
        tests += [node] if isinstance(node, ast.Compare) else []
        for part in (part for test in tests for part in ast.walk(test)):
            assert not (isinstance(part, ast.Constant) and isinstance(part.value, str)), ast.unparse(part)


def test_mask_arithmetic_stands_in_masks() -> None:
    for path in MODEL_FILES:
        used = {node.attr for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
        assert path.name == "masks.py" or used & MASK_FIELDS == set()


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name)


# Who may know whom --------------------------------------------------------------------------------------------------

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "files": {"errors"},
    "memory": {"errors"},
    "zoo": {"config", "errors"},
    "quantize": {"_core", "errors"},
    "ops": {"quantize.leaves", "quantize.lora"},
    "model": {"config", "ops.spec"},
    "batch": {"config", "model.masks", "model.vision"},
    "tokenizer": {"_core", "errors", "files"},
    "chat": {"errors", "tokenizer"},
    "checkpoints": {"_core", "config", "errors", "files", "memory", "quantize", "tokenizer", "zoo"},
    "engines": {"_core", "batch", "checkpoints.tensors", "config", "errors", "memory", "model", "ops", "quantize"},
    "generate": {"batch", "config", "engines", "errors", "memory"},
    "vision": {"chat", "checkpoints", "config", "errors", "files", "generate", "tokenizer"},
}
"""For each room, the modules (with what is below them) that it may import besides itself."""
TOOLS = {
    "adapters",
    "bench",
    "calibrate",
    "cli",
    "conversion",
    "drafting",
    "embedding",
    "scores",
    "seeing",
    "serve",
    "taps",
    "tune",
    "verify",
}
ABOVE = {"__init__", "__main__", "api", "loaded", "plan"} | TOOLS
"""What ties the rooms together: may import any of them, and none of them imports it."""
PROTOCOL = {"Engine", "EngineInfo", "Logits"}
"""All that `generate` knows of an engine."""


@dataclass(frozen=True)
class Import:
    """`module` below gemmary ("" is gemmary itself), imported by `room` in the file `path`."""

    path: Path
    room: str
    module: str
    names: tuple[str, ...]


def imports() -> Iterator[Import]:
    for path in MODULES:
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names = tuple(alias.name for alias in node.names)
                if node.module == "gemmary":
                    yield from (Import(path, room, name, ()) for name in names)
                elif node.module and node.module.startswith("gemmary."):
                    yield Import(path, room, node.module.removeprefix("gemmary."), names)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "gemmary":
                        yield Import(path, room, alias.name.removeprefix("gemmary").removeprefix("."), ())


def below(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


def test_imports_point_down() -> None:
    for found in imports():
        if found.room in ABOVE:
            continue
        assert found.room in ALLOWED, f"{found.room} is a new room: say in ALLOWED what it may know"
        ours = found.module.split(".")[0] == found.room
        assert ours or below(found.module, ALLOWED[found.room]), f"{found.path} imports {found.module}"


def test_nothing_imports_the_command_line() -> None:
    for found in imports():
        assert found.module.split(".")[0] != "cli" or found.room in ("cli", "__main__"), found


def test_generation_knows_an_engine_by_its_protocol() -> None:
    known = [found for found in imports() if found.room == "generate" and found.module.startswith("engines")]
    assert known
    for found in known:
        assert found.module == "engines", found
        assert set(found.names) <= PROTOCOL, found


def test_the_model_imports_the_standard_library_and_the_specification() -> None:
    for path in MODEL_FILES:
        for node in ast.walk(tree_of(path)):
            assert not isinstance(node, ast.Import), f"{path} imports {ast.unparse(node)}"
            if isinstance(node, ast.ImportFrom):
                outside = node.module in STANDARD
                assert outside or below(str(node.module), {"gemmary.model", "gemmary.config", "gemmary.ops.spec"})


# What an import brings in -------------------------------------------------------------------------------------------

HEAVY = {"torch", "jax", "jaxlib", "tensorflow", "transformers", "tokenizers", "peft", "gguf", "scipy", "pandas"}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def modules_after(statement: str) -> set[str]:
    """Names of all modules in a fresh interpreter once the statement has run."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    paths = [p for p in sys.path if p]
    start = f"import sys; sys.path[:0] = {paths!r}\n"
    done = subprocess.run([sys.executable, "-S", "-c", start + code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_brings_in_nothing() -> None:
    brought = modules_after("import gemmary")
    assert brought & (HEAVY | {"pickle", "numpy", "rich", "huggingface_hub", "gemmary.api"}) == set()


def test_the_base_install_needs_no_framework() -> None:
    """The whole command line and everything below it, but for the engines that are frameworks, imported."""
    names = [".".join(["gemmary", *path.relative_to(SOURCE).with_suffix("").parts]) for path in MODULES]
    heavy = ("gemmary.engines.torch", "gemmary.engines.native", "gemmary.engines.trace", "gemmary.__main__")
    heavy += tuple(
        f"gemmary.tune.{name}"
        for name in (
            "device",
            "fit",
            "loop",
            "lora",
            "losses",
            "model",
            "muon",
            "optim",
            "parallel",
            "room",
            "state",
            "tensor_parallel",
        )
    )
    wanted = sorted(name.removesuffix(".__init__") for name in names if not name.startswith(heavy))
    assert {"gemmary.cli", "gemmary.api", "gemmary.generate.scheduler", "gemmary.checkpoints.gguf"} <= set(wanted)
    have_core = "import importlib.util\nif importlib.util.find_spec('gemmary._core') is None:\n"
    without = "    import types; sys.modules['gemmary._core'] = types.ModuleType('gemmary._core')\n"
    brought = modules_after("import sys\n" + have_core + without + "import " + ", ".join(wanted))
    assert {name.split(".")[0] for name in brought} & HEAVY == set()


def test_nothing_of_ours_unpickles() -> None:
    """A checkpoint is data. (numpy imports pickle for itself, so this reads the source.)"""
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert {name.split(".")[0] for name in names} & UNSAFE == set(), path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.unparse(node.value) == "False", path
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
                assert path.name == "unpickle.py", path  # a process of its own, where that was asked for
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                assert "allow_pickle" in {keyword.arg for keyword in node.keywords}, path


# The public names ---------------------------------------------------------------------------------------------------

PUBLIC = [
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


def test_public_names_are_frozen_and_exist() -> None:
    """A name added or taken away is a change of the interface: change this list with it, and the documentation."""
    assert sorted(gemmary.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(gemmary, name) is not None
    assert not hasattr(gemmary, "no_such_name")
