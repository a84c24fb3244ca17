"""`gemmary run`: what goes to stdout and to stderr, templates, errors, Ctrl-C and closed pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gemmary
from gemmary.generate import SamplingParams
from tests.cli.conftest import Gemmary
from tests.runs import why_absent

SOURCE = Path(gemmary.__path__[0]).parent
QUICK = ("--engine", "reference", "--max-tokens", 8, "--seed", 7)


def expected(path: Path, prompt: str, *, templated: bool = False, **options: object) -> gemmary.Completion:
    """What the Python face gives for the same request."""
    model = gemmary.load(path, engine="reference")
    return model.generate(model.chat_prompt(prompt) if templated else prompt, max_tokens=8, seed=7, **options)  # type: ignore[arg-type]


def test_text_goes_to_stdout_and_all_else_to_stderr(gemmary_command: Gemmary, base_model: Path) -> None:
    done = gemmary_command("run", base_model, "abc", *QUICK)
    assert done.code == 0
    assert done.out == expected(base_model, "abc").text + "\n"
    first, *_, last = done.err.splitlines()
    assert "reference engine" in first
    assert "float32, weights F32" in first
    assert "context 4,096" in first
    assert "thread" in first
    assert "8 tokens at" in last
    assert "seed 7" in last
    assert "stopped at --max-tokens" in last


def test_the_prompt_may_come_through_stdin(gemmary_command: Gemmary, base_model: Path) -> None:
    given = gemmary_command("run", base_model, "ab\nc", *QUICK)
    assert gemmary_command("run", base_model, *QUICK, stdin="ab\nc\n").out == given.out
    assert gemmary_command("run", base_model, "-", *QUICK, stdin="ab\nc\n").out == given.out


def test_a_tuned_model_gets_its_template_unless_raw(gemmary_command: Gemmary, chat_model: Path) -> None:
    def tokens(*flags: str) -> list[int]:
        found = json.loads(gemmary_command("run", chat_model, "abc", *QUICK, "--json", *flags).out)
        return list(found["tokens"])

    templated = list(expected(chat_model, "abc", templated=True).tokens)
    raw = list(expected(chat_model, "abc").tokens)
    assert templated != raw
    assert tokens() == templated
    assert tokens("--raw") == raw
    done = gemmary_command("run", chat_model, "abc", *QUICK, "--json", "--system", "tutu")
    model = gemmary.load(chat_model, engine="reference")
    conversation = [{"role": "system", "content": "tutu"}, {"role": "user", "content": "abc"}]
    assert json.loads(done.out)["stats"]["prompt_tokens"] == len(model.chat_prompt(conversation).ids)
    assert "--system needs" in gemmary_command("run", chat_model, "abc", *QUICK, "--raw", "--system", "x").error


def test_json_holds_everything(gemmary_command: Gemmary, base_model: Path) -> None:
    done = gemmary_command("run", base_model, "abc", *QUICK, "--json", "--logprobs", 2)
    found = json.loads(done.out)
    completion = expected(base_model, "abc", logprobs=2)
    assert completion.logprobs is not None
    assert found["text"] == completion.text
    assert found["tokens"] == list(completion.tokens)
    assert found["finish_reason"] == "length"
    assert [each["logprob"] for each in found["logprobs"]] == [each.logprob for each in completion.logprobs]
    assert {"prompt_tokens", "decode_tokens_per_s", "first_token_s", "seed"} <= set(found["stats"])
    table = gemmary_command("run", base_model, "abc", *QUICK, "--logprobs", 1).out
    assert f"{completion.logprobs[0].logprob:.4f}" in table


def test_every_sampling_flag_arrives(
    gemmary_command: Gemmary, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}
    of = SamplingParams.of

    def record(options: gemmary.generate.SamplingOptions) -> SamplingParams:
        seen.update(options)
        return of(options)

    monkeypatch.setattr(SamplingParams, "of", staticmethod(record))
    flags = "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --stop a --stop b --stop-id 9"
    gemmary_command("run", base_model, "abc", *QUICK, "--logprobs", 0, *flags.split())
    assert seen == {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 7,
        "max_tokens": 8, "stop": ["a", "b", 9], "logprobs": 0,
    }  # fmt: skip


def test_greedy_names_no_seed(gemmary_command: Gemmary, base_model: Path) -> None:
    assert "seed" not in gemmary_command("run", base_model, "abc", *QUICK, "--temperature", 0).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gemma-2-2b-itt", "x"], "did you mean gemma-2-2b-it"),
        (["gemma-2-2b-it", "x"], "`gemmary pull gemma-2-2b-it` fetches it"),
        (["nowhere.gguf", "x"], "no such file or folder: nowhere.gguf"),
        (["MODEL", "", "--temperature", "-1"], "temperature must be"),
        (["MODEL", "x", "--top-p", "2"], "top_p must be"),
        (["MODEL", "x", "--max-tokens", "5000"], "5000 do not fit the context"),
        (["MODEL", "a" * 9000], "the context holds 4,096"),
        (["MODEL", "a b c e f h t u", "--context", "5"], "the context holds 5"),
        (["MODEL", "x", "--max-tokens", "0"], "argument --max-tokens: '0' is not a whole number of at least 1"),
        (["MODEL", "x", "--engine", "steam"], "invalid choice: 'steam'"),
        (["MODEL", "x", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["MODEL", "x", "--stop-id", "99999"], "stop id 99999 is outside the vocabulary"),
        (["", "x"], "no model is called ''"),
        ([".", "x"], "holds neither config.json nor a .gguf file"),
        (["MODEL"], "there is no prompt"),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_mistakes_are_one_line(gemmary_command: Gemmary, base_model: Path, arguments: list[str], message: str) -> None:
    given = [str(base_model) if argument == "MODEL" else argument for argument in arguments]
    engine = [] if "--engine" in given else ["--engine", "reference"]
    assert message in gemmary_command("run", *given, *engine).error.replace("max_tokens=5,000", "5000")


def test_no_prompt_on_a_terminal_is_told(
    gemmary_command: Gemmary, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemmary.cli.run import read_prompt

    monkeypatch.setattr(sys, "stdin", _Terminal())
    with pytest.raises(gemmary.GemmaryError, match="there is no prompt"):
        read_prompt(None)


class _Terminal:
    def isatty(self) -> bool:
        return True


def test_bad_options_are_told_before_the_model_is_loaded(
    gemmary_command: Gemmary, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemmary, "load", None, raising=False)
    assert "min_p must be" in gemmary_command("run", base_model, "abc", "--min-p", 2).error


@pytest.mark.parametrize("command", ["run", "chat", "embed"])
def test_stdin_that_is_no_text_is_one_line(base_model: Path, command: str) -> None:
    done = _finish(command, base_model, "--engine", "reference", stdin=b"ab\xff", locale="C")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.splitlines()[-1] == b"error: stdin is not UTF-8 text"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_a_disk_refuses_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = _finish("list", "--all", stdout=full)
    assert done.returncode == 2
    assert done.stderr == b"error: cannot write the output: No space left on device\n"


def _finish(*arguments: object, stdin: bytes = b"", locale: str = "C.UTF-8", stdout: Any = subprocess.PIPE) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "LC_ALL": locale}
    command = [sys.executable, "-m", "gemmary", *map(str, arguments)]
    return subprocess.run(command, input=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment, check=False)


def test_a_corrupt_checkpoint_is_one_line(gemmary_command: Gemmary, base_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in base_model.iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    assert gemmary_command("run", broken, "abc", *QUICK).error


def test_memory_that_is_not_there_is_foreseen(
    gemmary_command: Gemmary, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmary.memory.available_bytes", lambda: 1000)
    assert "are available" in gemmary_command("run", base_model, "abc", *QUICK).error


def test_python_running_out_of_memory_is_one_line(
    gemmary_command: Gemmary, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(gemmary, "load", load, raising=False)
    assert "out of memory" in gemmary_command("run", base_model, "abc").error


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gemmary", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell makes what it starts in the background ignore Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


ENDLESS = ("--engine", "reference", "--max-tokens", 4000, "--seed", 1, "--top-k", 0)


def test_ctrl_c_leaves_cleanly(base_model: Path) -> None:
    with _start("run", base_model, "abc", *ENDLESS) as child:
        assert child.stdout is not None
        assert child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate()
    assert child.returncode == 130
    assert b"Traceback" not in err
    assert err.endswith(b"\n")


def test_a_reader_that_leaves_is_no_error(base_model: Path) -> None:
    with _start("run", base_model, "abc", *ENDLESS) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(1)
        child.stdout.close()
        err = child.stderr.read()
        child.wait()
    assert child.returncode == 141
    assert b"Traceback" not in err
    assert b"Error" not in err
    assert b"Exception" not in err


def test_a_draft_model_changes_no_text_and_is_told(gemmary_command: Gemmary, base_model: Path) -> None:
    if reason := why_absent("native"):
        pytest.skip(reason)
    sampled = ("--max-tokens", 30, "--seed", 7)
    plain = gemmary_command("run", base_model, "abc", *sampled)
    drafted = gemmary_command("run", base_model, "abc", *sampled, "--draft", base_model)
    assert (drafted.code, drafted.out) == (0, plain.out)
    assert drafted.err.splitlines()[0].endswith(f"draft {base_model.name}")
    refused = gemmary_command("run", base_model, "abc", *QUICK, "--draft", base_model)
    assert "the reference engine cannot check guesses" in refused.error
