"""`gemmary chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.checkpoints import starter
from gemmary.cli import console, loading, parser
from gemmary.cli.run import CHAT_TOKENS, ending, room
from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from gemmary.api import Model

HELP = """\
/help           this
/reset          forget the conversation (the system message stays)
/system TEXT    set the system message and start again; without TEXT, none
/undo           take back the last question and its answer
/save FILE      write the conversation as JSON
/exit           leave, as Ctrl-D does
A line that ends in \\ goes on in the next. Ctrl-C stops an answer."""
PROMPT, CONTINUED = "> ", ". "


def add(commands: Any) -> None:
    details = "/help inside it lists its commands. Ctrl-C stops an answer, Ctrl-D leaves."
    command = parser.command(commands, "chat", run, "talk with a model", details)
    parser.add_model(command)
    parser.add_draft(command)
    parser.add_adapter(command)
    command.add_argument(
        "--no-adapter", action="store_true", help="`starter` as it is, without the chat adapter for it"
    )
    command.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_sampling(command)


def run(arguments: argparse.Namespace) -> None:
    options = parser.sampling_options(arguments)
    if arguments.no_adapter and arguments.adapter:
        raise GemmaryError("--adapter and --no-adapter contradict each other: give one of them")
    shipped = arguments.model == starter.NAME and not arguments.no_adapter and not arguments.adapter
    if shipped:
        arguments.adapter = starter.chat_adapter()
    model = loading.load_model(arguments)
    console.note(loading.describe(model))
    for notice in model.notices:
        console.note(f"note: {notice}")
    if shipped:
        console.note(f"note: what the adapter can do: {arguments.adapter / 'README.md'}; --no-adapter does without")
    if not model.instruction_tuned and not model.adapters:
        console.note(
            f"note: {model.name} is a base model, not instruction-tuned: it continues text, it does not answer"
        )
    if sys.stdin.isatty():
        console.note("/help lists the commands")
    Chat(model, options, arguments.system).loop()
    loading.keep_packed(model)


class Chat:
    """The conversation so far, and what a line that was typed does to it."""

    def __init__(self, model: Model, options: dict[str, Any], system: str | None = None) -> None:
        self.model = model
        self.options = options
        self.system = system
        self.messages: list[dict[str, str]] = []
        self._told: set[str] = set()

    def loop(self) -> None:
        """Reads lines until /exit or the end of stdin."""
        interactive = sys.stdin.isatty()
        history = _History() if interactive else None
        try:
            while True:
                try:
                    line = _read(interactive)
                except KeyboardInterrupt:
                    console.note("\n(Ctrl-D or /exit leaves)")
                    continue
                if line is None or not self.take(line):
                    break
        finally:
            if history:
                history.save()
                print()

    def take(self, line: str) -> bool:
        """Does what a line says; False when it says to leave. A mistake is told and the conversation goes on."""
        line = line.strip()
        try:
            if line.startswith("/"):
                return self.command(*line[1:].split(maxsplit=1))
            if line:
                self.answer(line)
        except GemmaryError as error:
            console.note(f"error: {error}")
        return True

    def command(self, name: str = "", argument: str = "") -> bool:
        if name in ("exit", "quit", "bye"):
            return False
        if name == "help":
            console.note(HELP)
        elif name == "reset":
            self.messages.clear()
            console.note("(a new conversation)")
        elif name == "system":
            self.system = argument or None
            self.messages.clear()
            console.note(f"(a new conversation {'with' if self.system else 'without'} a system message)")
        elif name == "undo":
            console.note("(the last question is taken back)" if self.messages else "(there is nothing to take back)")
            del self.messages[-2:]
        elif name == "save":
            self.save(argument)
        else:
            raise GemmaryError(f"there is no command /{name}: /help lists them")
        return True

    def answer(self, text: str) -> None:
        """Asks, writes the answer as it comes and keeps both. Ctrl-C keeps what came until then."""
        asked = {"role": "user", "content": text}
        prompt = self.model.chat_prompt([*self._opening(), *self.messages, asked])
        options = {"max_tokens": room(self.model, prompt, CHAT_TOKENS), **self.options}
        with self.model.stream(prompt, **options) as stream:
            for notice in stream.notices:
                if notice not in self._told and "instruction-tuned" not in notice:
                    console.note(f"note: {notice}")
                self._told.add(notice)
            with suppress(KeyboardInterrupt):
                for piece in stream:
                    console.write(piece.text)
        console.write("\n")
        completion = stream.completion
        if completion.text.strip():
            self.messages += [asked, {"role": "assistant", "content": completion.text}]
        console.note(f"({loading.speed(completion.stats)}{ending(completion)})")

    def save(self, name: str) -> None:
        from gemmary.files import atomic_file

        if not name:
            raise GemmaryError("say where: /save FILE")
        messages = [*self._opening(), *self.messages]
        with atomic_file(Path(name).expanduser()) as file:
            file.write(json.dumps(messages, ensure_ascii=False, indent=2).encode())
        console.note(f"saved {len(messages)} message{'s' if len(messages) != 1 else ''} in {name}")

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system is not None else []


def _read(interactive: bool) -> str | None:
    """A line, with those that it goes on in; None at the end."""
    text = ""
    while True:
        if interactive:
            try:
                line = input(CONTINUED if text else PROMPT)
            except EOFError:
                return None
        else:
            line = sys.stdin.readline()
            if not line:
                return text or None
            line = line.removesuffix("\n")
        if not line.endswith("\\"):
            return text + line
        text += line[:-1] + "\n"


class _History:
    """What was typed, also in earlier chats, where the terminal library is there."""

    def __init__(self) -> None:
        self._path = starter.cache_folder() / "chat-history"
        with suppress(ImportError, OSError):
            import readline

            readline.set_history_length(1000)
            readline.read_history_file(self._path)

    def save(self) -> None:
        with suppress(ImportError, OSError):
            import readline

            self._path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(self._path)
            self._path.chmod(0o600)
