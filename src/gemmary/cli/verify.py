"""`gemmary verify`: do two models that should be the same say the same?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.cli import console, loading, parser
from gemmary.engines import ENGINES
from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from gemmary.verify import Report


def add(commands: Any) -> None:
    details = (
        "MODEL on the native engine is held against OTHER (a conversion, another quantization), or against itself on "
        "another engine. Exit code 0: the same within the stated limits; 1: not."
    )
    command = parser.command(commands, "verify", run, "compare two models that should be the same", details)
    command.add_argument("model", metavar="MODEL", help=parser.MODEL_HELP)
    command.add_argument("--against", metavar="OTHER", help="the model that is trusted (default: MODEL itself)")
    parser.add_adapter(command)
    command.add_argument("--engine", choices=ENGINES, help="the engine of the trusted side (default: native)")
    command.add_argument("--text", metavar="FILE", help="compare over this text (default: a built-in one)")
    command.add_argument("--tokens", type=parser.count, metavar="N", help="only the first N tokens of the text")
    command.add_argument("--taps", action="store_true", help="also the error of every named intermediate")
    command.add_argument("--json", action="store_true", help="for programs")
    group = command.add_argument_group("loading of MODEL")
    parser.add_weights(group)
    parser.add_isa(group)


def run(arguments: argparse.Namespace) -> int:
    from gemmary.verify import builtin_text, verify

    as_stored = (
        arguments.quant is None
        and arguments.dtype is None
        and arguments.isa is None
        and arguments.kv_dtype in (None, "auto")
    )
    if arguments.against is None and arguments.engine in (None, "native") and as_stored:
        raise GemmaryError(
            "say what to compare with: --against OTHER, --engine torch, or --quant int4 (--dtype, --isa) against as "
            "stored"
        )
    text = read_text(arguments.text) if arguments.text else builtin_text()
    # Where only the engine differs, the trusted side computes in full precision on the same weights.
    exact = "float32" if arguments.engine in ("torch", "reference") else None
    model = loading.load_model(arguments, engine="native")
    console.note(loading.describe(model))
    against = loading.load_model(
        # What was merged is held against base and adapter; anything else against itself, adapter and all.
        argparse.Namespace(threads=arguments.threads, adapter=None if arguments.against else arguments.adapter),
        arguments.against or arguments.model,
        engine=arguments.engine or "native",
        dtype=exact,
        packed_copy=False,
    )
    console.note(f"against {loading.describe(against)}")
    ids = against.tokenizer.encode(text, bos=True)[: min(model.context, against.context)]
    if arguments.tokens:
        ids = ids[: arguments.tokens]
    with console.bar() as bar:
        report = verify(model, against, ids=ids, progress=lambda done, total: bar("comparing tokens", done, total))
    if arguments.json:
        print(report.to_json())
    else:
        write(report, taps=arguments.taps)
    return report.exit_code


def read_text(name: str) -> str:
    """A file of UTF-8 text. Raises GemmaryError where it cannot be read, or is none."""
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise GemmaryError(f"{name} is not UTF-8 text") from None
    except OSError as error:
        raise GemmaryError(f"cannot read {name}: {error.strerror or error}") from None


def write(report: Report, *, taps: bool) -> None:
    """The figures beside their limits, where it begins to differ, and the verdict."""
    limits = report.limits
    rows = [("model", report.model), ("against", report.against), ("tokens", f"{report.tokens:,}")]
    if report.mean_kl is not None and report.nll_model is not None and report.worst is not None:
        worst = report.worst
        expected = repr(worst.model) + (
            f" instead of {worst.against!r}" if worst.model != worst.against else " by both"
        )
        rows += [
            ("mean KL", f"{report.mean_kl:.3e} nats (at most {limits.mean_kl:.0e})"),
            ("largest KL", f"{report.max_kl:.3e} nats at position {worst.position}, after {worst.context!r}"),
            ("expected there", f"{expected}; the text has {worst.actual!r}"),
            ("top-1 agreement", f"{report.top1_agreement:.2%} (at least {limits.top1:.0%})"),
            ("mean NLL", f"{report.nll_model:.4f} and {report.nll_against:.4f} nats"),
            ("NLL difference", f"{report.nll_difference:+.3%} (at most {limits.nll:.1%})"),
        ]
    if report.cosine is not None:
        rows.append(("least cosine", f"{report.cosine:.5f} (at least {limits.cosine})"))
    if (first := report.first_difference) is not None:
        rows.append(("first difference", f"{first.tap}: error {first.error:.1e}, {first.error_before:.1e} before it"))
    if taps:
        rows += [(name, f"{error:.2e}") for name, error in report.taps]
    rows.append(("limits", limits.name))
    rows += [("failed", failure) for failure in report.failures]
    rows.append(("verdict", "the same" if report.passed else "NOT the same"))
    console.facts(rows)
