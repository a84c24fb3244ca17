"""The flags are frozen, their page is current, their defaults are the library's, and starting stays cheap."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gemmary
from docs.make_cli import PAGE, page
from gemmary import embedding
from gemmary.cli.embed import PROMPTS
from gemmary.cli.parser import build_parser
from gemmary.generate import SamplingParams
from tests.cli.conftest import Gemmary

SOURCE = Path(gemmary.__path__[0]).parent
LOADING = "--engine --threads --dtype --quant --kv-dtype --context"
SAMPLING = "--temperature --top-k --top-p --min-p --repetition-penalty --seed --max-tokens --stop --stop-id"
TRAINING = (
    "--accumulation {pictures}--learning-rate --schedule --warmup-steps --weight-decay --label-smoothing --clip "
    "--optimizer {adapter}--seed --dtype --device --gradient-checkpointing {parallel}--threads {rows}--evaluate-every "
    "--patience --checkpoint-every --keep-checkpoints --resume"
)
ADAPTER = "--lora-rank --lora-alpha --lora-dropout --lora-targets --rslora --dora --train-tower --augment --mask-codec "
SHAPE = (
    "--vocab-size --num-layers --hidden-size --num-heads --num-kv-heads --head-dim --intermediate-size "
    "--context-length --sliding-window"
)
LENGTHS = "--steps --epochs --batch-size --sequence-length"
PICTURES = "--image --images --out --every --save --merge-iou --resize"
FLAGS = {
    "run": f"MODEL {LOADING} --draft --adapter PROMPT --raw --system --json {PICTURES} {SAMPLING} --logprobs",
    "chat": f"MODEL {LOADING} --draft --adapter --no-adapter --system {SAMPLING}",
    "pull": "MODEL",
    "list": "--all --json",
    "rm": "MODEL --packed --yes",
    "show": "MODEL --json",
    "plan": "MODEL --quant --context --batch --task --devices --json --markdown",
    "verify": "MODEL --against --adapter --engine --text --tokens --taps --json "
    "--threads --dtype --quant --kv-dtype --isa",
    "bench": f"MODEL {LOADING} --isa --draft --adapter --prefill --decode --repeat --profile --roofline --json",
    "embed": "MODEL --engine --threads --dtype --quant --kv-dtype TEXT --prompt --title --dimensions",
    "convert": "SRC DST --format --dtype --allow-pickle --image-size",
    "quantize": "MODEL --out --format --to --embed --bits --method --text --threads",
    "tune": f"-c MODEL DATA --out --method {LENGTHS} "
    + TRAINING.format(pictures="", adapter=ADAPTER, parallel="--tensor-parallel ", rows="--validation --test ")
    + " --chat-style --json --preview",
    "pretrain": f"CONFIG --out --text --data --held-out --validation {SHAPE} --vision {LENGTHS} "
    f"{TRAINING.format(pictures='--augment --mask-codec ', adapter='', parallel='', rows='')} --json",
    "merge": "MODEL ADAPTER --out --format --quant --method --text --dtype --threads",
}


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def test_the_flags_are_frozen() -> None:
    found = {
        name: " ".join(
            action.option_strings[0] if action.option_strings else str(action.metavar)
            for action in parser._actions
            if not isinstance(action, argparse._HelpAction)
        )
        for name, parser in commands().items()
    }
    assert found == FLAGS


def test_the_page_of_the_commands_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python docs/make_cli.py`"


def test_the_defaults_told_are_the_librarys() -> None:
    helps = {action.dest: str(action.help) for action in commands()["run"]._actions}
    defaults = SamplingParams()
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        told = helps[name].rsplit("(default: ", 1)[1].rstrip(")")
        assert float(told) == getattr(defaults, name), name


def test_the_embedding_prompts_are_the_librarys() -> None:
    assert (*embedding.PROMPTS, "none") == PROMPTS


def test_version(gemmary_command: Gemmary) -> None:
    assert gemmary_command("--version").out == f"gemmary {gemmary.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "run M P --max-tokens 9",
        "run M --max-tokens 9 P",
        "run --max-tokens 9 M P",
        "run --max-tokens 9 M -- P",
        "run M --max-tokens 9 -- P",
    ],
)
def test_flags_may_stand_anywhere(arguments: str) -> None:
    found = build_parser().parse_args(arguments.split())
    assert (found.model, found.prompt, found.max_tokens) == ("M", "P", 9)


def test_a_prompt_may_begin_with_a_dash_after_two() -> None:
    assert build_parser().parse_args(["run", "M", "--", "-x --y"]).prompt == "-x --y"


def test_no_command_and_an_unknown_one_are_one_line(gemmary_command: Gemmary) -> None:
    assert "COMMAND" in gemmary_command().error
    assert "invalid choice: 'dance'" in gemmary_command("dance").error


@pytest.mark.parametrize("command", [[], *[[name] for name in FLAGS]])
def test_every_command_explains_itself(gemmary_command: Gemmary, command: list[str]) -> None:
    done = gemmary_command(*command, "--help")
    assert done.code == 0
    assert "usage: gemmary" in done.out


def test_running_a_model_imports_nothing_heavy_and_python_m_works(base_model: Path) -> None:
    code = "import sys; from gemmary.cli import main; main(sys.argv[1:]); print(sorted(sys.modules), file=sys.stderr)"
    arguments = ["run", str(base_model), "abc", "--engine", "reference", "--max-tokens", "1"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(eval(done.stderr.splitlines()[-1]))
    assert not loaded & {
        "torch",
        "transformers",
        "huggingface_hub",
        "rich",
        "jax",
        "tqdm",
        "httpx",
        "requests",
        "jinja2",
    }
    command = [sys.executable, "-m", "gemmary", "--version"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout.startswith("gemmary ")
