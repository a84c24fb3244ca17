"""docs/hardware.md: what each size needs, on whatever machine the page is made."""

from __future__ import annotations

from gemmary.plan.devices import CPU
from gemmary.plan.make import DEFAULT_CONTEXT, make_plan
from gemmary.plan.plan import Plan
from gemmary.plan.series import sizes
from gemmary.plan.subject import Subject

FORMATS = ("bfloat16", "int8", "int4")
HEAD = """\
# What each size needs

Made by `gemmary plan --markdown > docs/hardware.md` from the exact numbers of parameters: change the planner, not this
page. GB are powers of ten. `gemmary plan` without a model compares this with the machine that it runs on, and `gemmary
plan MODEL` tells one model's needs, at another context, for several sequences at once, or for tuning.

**Weights** are what the native engine holds: packed in panels, norms and biases in float32, and the tower that sees
pictures in int8 where the decoder is in int4. **With 8k context** is the most memory of the whole process: weights,
keys and values of 8,192 tokens (or as many as the model has) in bfloat16, the activations of the largest step, and the
interpreter with its tokenizer. Windowed layers keep little more than their window.

"""


def page() -> str:
    """The whole page."""
    header = ("model", "parameters", "weights: bfloat16", *FORMATS[1:], "with 8k context: bfloat16", *FORMATS[1:])
    cells = (*header, "of these keys and values")
    lines = [f"| {' | '.join(cells)} |\n", "|---" * len(cells) + "|\n"]
    lines += [_row(model) for model in sizes()]
    return HEAD + "".join(lines)


def _row(model: Subject) -> str:
    context = min(model.config.context_length, DEFAULT_CONTEXT)
    plans: list[Plan] = [make_plan(model, quant=quant, context=context, device=CPU) for quant in FORMATS]
    cells = [model.name, f"{model.config.total_parameters:,}"]
    cells += [_gigabytes(plan.weights_bytes) for plan in plans]
    cells += [_gigabytes(plan.total_bytes) for plan in plans]
    cells.append(_gigabytes(plans[0].kv_bytes))
    return f"| {' | '.join(cells)} |\n"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.{1 if count >= 10e9 else 2}f} GB"
