"""Do two models that should be the same say the same? For engines, quantizations, conversions, merges, upgrades.

    report = gemmary.verify.verify(model, against)        # `against` is the one that is trusted
    report.passed, report.exit_code, report.to_json()

Over a real text the next-token distributions are compared at every position, and over its beginning the named
intermediates, so that a failure names the layer where it begins. Of models that see, also what their towers make of a
picture of colours that come and go in waves. Rows of logits are taken a few at a time: no array of
the whole text and vocabulary exists.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Chunk
from gemmary.errors import GemmaryError
from gemmary.generate.scheduler import STEP_TOKENS
from gemmary.taps import TAP_TOKENS, FirstDifference, compare_taps, first_difference, noise_of

if TYPE_CHECKING:
    from gemmary.api import Model

Floats = npt.NDArray[Any]

_ROW_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """What may differ. mean_kl in nats; top1: share of positions with the same likeliest token; nll: relative;
    cosine: the least similarity of two embeddings of one text (embedding models, which are held to nothing else), or of
    what two towers make of a picture."""

    name: str
    mean_kl: float
    top1: float
    nll: float
    cosine: float


SAME = Limits("same weights", mean_kl=2e-3, top1=0.98, nll=0.005, cosine=0.999)
INT8 = Limits("8-bit weights against others", mean_kl=0.02, top1=0.95, nll=0.01, cosine=0.995)
INT4 = Limits("weights of 6 bits or fewer against others", mean_kl=0.5, top1=0.60, nll=0.15, cosine=0.95)
"""The smallest model is the most sensitive: the 270M starter, rounded to Q4_0, has a mean KL of 0.68 and fails; by GPTQ
it has 0.30 (docs/quantization.md)."""


@dataclass(frozen=True)
class WorstToken:
    """The position with the largest divergence: what stood before it, what came, and what each model expected."""

    position: int
    kl: float
    context: str
    actual: str
    model: str
    against: str


@dataclass(frozen=True)
class Report:
    """What was measured, what was allowed, and the verdict. Likelihoods and divergences are in nats."""

    model: str
    against: str
    tokens: int
    limits: Limits
    failures: tuple[str, ...]
    mean_kl: float | None = None
    """KL(against ‖ model), mean over the positions."""
    max_kl: float | None = None
    top1_agreement: float | None = None
    nll_model: float | None = None
    nll_against: float | None = None
    nll_difference: float | None = None
    """Relative to `against`; positive: the model is worse."""
    worst: WorstToken | None = None
    cosine: float | None = None
    first_difference: FirstDifference | None = None
    taps: tuple[tuple[str, float], ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def exit_code(self) -> int:
        """0: passed. 1: failed."""
        return 0 if self.passed else 1

    def to_json(self) -> str:
        """Every field; null for numbers that are not finite."""
        return json.dumps(_finite({"passed": self.passed, **asdict(self)}), ensure_ascii=False, indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def builtin_text() -> str:
    """About 10 KB (2,600 tokens) of prose, code, tables and fifteen languages, written for this purpose."""
    return files("gemmary").joinpath("data/verify.txt").read_text(encoding="utf-8")


def verify(
    model: Model,
    against: Model,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Compares `model` with `against` over `ids`, or `text` (None: the built-in one, cut to the shorter context).

    limits: None chooses by the formats of the two models' weights. progress is called with tokens done and in all.
    Raises GemmaryError where the two cannot be compared: other shapes, or a text that does not fit.
    """
    if (model.config.vocab_size, model.config.num_layers, model.config.hidden_size) != (
        against.config.vocab_size,
        against.config.num_layers,
        against.config.hidden_size,
    ):
        raise GemmaryError(f"{model.name} and {against.name} are models of different shapes: nothing can be compared")
    failures: list[str] = []
    context = min(model.context, against.context)
    source = builtin_text() if text is None else text
    if ids is not None:
        source = against.tokenizer.decode(ids)
    encoded = against.tokenizer.encode(source, bos=True)
    if model.tokenizer.encode(source, bos=True) != encoded:
        failures.append("the two tokenizers give different ids for the text")
    if ids is None:
        ids = encoded[:context] if text is None else encoded
    if not 2 <= len(ids) <= context:
        raise GemmaryError(f"the text has {len(ids):,} tokens; verify needs at least 2 and at most {context:,}")
    limits = limits or _limits(model.weight_format, against.weight_format)
    if model.config.bidirectional:
        found = _compare_embeddings(model, against, ids, limits, failures)
    else:
        found = _compare_logits(model, against, ids, limits, failures, progress)
    if model.config.vision is not None and model.config.vision == against.config.vision:
        found["cosine"] = _compare_towers(model, against, limits, failures)
    taps = compare_taps(model, against, ids[:TAP_TOKENS])
    return Report(
        model=model.description,
        against=against.description,
        tokens=len(ids),
        limits=limits,
        failures=tuple(failures),
        first_difference=first_difference(taps, noise_of(model.info, against.info), failed=bool(failures)),
        taps=tuple(taps),
        **found,
    )


def _limits(*formats: str) -> Limits:
    if len(set(formats)) == 1 or not set(formats) - {"F32", "BF16", "F16"}:
        return SAME
    return INT8 if set(formats) <= {"F32", "BF16", "F16", "Q8_0"} else INT4


def _compare_logits(
    model: Model,
    against: Model,
    ids: Sequence[int],
    limits: Limits,
    failures: list[str],
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    kl, same, nll, nll_against = [], [], [], []
    worst, worst_tops = -1.0, (0, 0)
    for position, (row, other) in enumerate(zip(_rows(model, ids), _rows(against, ids), strict=True)):
        log_p, log_q = _log_softmax(row), _log_softmax(other)
        divergence = float(np.dot(np.exp(log_q), log_q - log_p))
        tops = int(row.argmax()), int(other.argmax())
        if not (math.isnan(worst) or divergence <= worst):  # the first NaN is the worst, and stays it
            worst, worst_position, worst_tops = divergence, position, tops
        kl.append(0.0 if divergence < 0 else divergence)  # rounding; a NaN stays one
        same.append(tops[0] == tops[1])
        nll.append(-float(log_p[ids[position + 1]]))
        nll_against.append(-float(log_q[ids[position + 1]]))
        if progress is not None:
            progress(position + 1, len(ids) - 1)
    found: dict[str, Any] = {
        "mean_kl": float(np.mean(kl)),
        "max_kl": float(np.max(kl)),
        "top1_agreement": float(np.mean(same)),
        "nll_model": float(np.mean(nll)),
        "nll_against": float(np.mean(nll_against)),
        "nll_difference": float(np.mean(nll) / np.mean(nll_against) - 1),
    }
    show = against.tokenizer.decode
    found["worst"] = WorstToken(
        position=worst_position,
        kl=worst,
        context=show(ids[max(0, worst_position - 15) : worst_position + 1]),
        actual=show(ids[worst_position + 1 : worst_position + 2]),
        model=show(worst_tops[:1]),
        against=show(worst_tops[1:]),
    )
    if not found["mean_kl"] <= limits.mean_kl:
        failures.append(f"mean KL {found['mean_kl']:.2e} nats, {limits.mean_kl:.0e} allowed")
    if not found["top1_agreement"] >= limits.top1:
        failures.append(f"top-1 agreement {found['top1_agreement']:.2%}, {limits.top1:.0%} required")
    if not abs(found["nll_difference"]) <= limits.nll:
        failures.append(f"mean NLL differs by {found['nll_difference']:+.2%}, {limits.nll:.1%} allowed")
    return found


def _rows(model: Model, ids: Sequence[int]) -> Iterator[Floats]:
    """Logits [V] after each token but the last."""
    cache = model.engine.new_cache(len(ids))
    count = min(STEP_TOKENS, max(1, _ROW_BYTES // (4 * model.config.vocab_size)))
    for start in range(0, len(ids) - 1, count):
        piece = ids[start : min(start + count, len(ids) - 1)]
        chunk = Chunk(piece, start, outputs="all", adapter=model.adapter_number())
        with model.scheduler.lock:
            logits = model.engine.step(Batch.of(model.config, [chunk]), [cache])
        yield from logits


def _log_softmax(row: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # a broken model's logits come out as NaN, and fail
        row = row - row.max()
        return row - np.float32(np.log(np.exp(row).sum(dtype=np.float64)))


def _compare_embeddings(
    model: Model, against: Model, ids: Sequence[int], limits: Limits, failures: list[str]
) -> dict[str, Any]:
    """Of pieces of the text: the least cosine of the two models' vectors for one piece."""
    pieces = [ids[start : start + 96] for start in range(0, len(ids), 96)]
    vectors = []
    for each in (model, against):
        chunks = [Chunk(piece, outputs="none", adapter=each.adapter_number()) for piece in pieces]
        with each.scheduler.lock:
            vectors.append(each.engine.embed(Batch.of(each.config, chunks)))
    return {"cosine": _cosine(vectors[0], vectors[1], "embeddings", limits, failures)}


def _compare_towers(model: Model, against: Model, limits: Limits, failures: list[str]) -> float:
    """The least cosine of two tokens in the same place of a picture."""
    vision = model.config.vision
    assert vision is not None
    edge = np.linspace(0, 2 * np.pi, vision.image_size, dtype=np.float32)
    down, across = np.sin(3 * edge), np.cos(2 * edge)
    picture = np.stack([np.outer(down, across), np.outer(across, down), np.add.outer(down, across) / 2], axis=-1)
    tokens = []
    for each in (model, against):
        with each.scheduler.lock:
            tokens.append(each.engine.see(picture[None], adapter=each.adapter_number()))
    return _cosine(tokens[0], tokens[1], "picture's tokens", limits, failures)


def _cosine(mine: Floats, theirs: Floats, what: str, limits: Limits, failures: list[str]) -> float:
    """The least of the rows' cosines."""
    mine, theirs = (each / np.linalg.norm(each.astype(np.float64), axis=1, keepdims=True) for each in (mine, theirs))
    cosine = float(np.min(np.sum(mine * theirs, axis=1)))
    if not cosine >= limits.cosine:
        failures.append(f"cosine of the {what} down to {cosine:.4f}, {limits.cosine} required")
    return cosine
