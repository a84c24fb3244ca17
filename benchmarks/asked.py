"""A process that answers: a line of JSON when it is ready, and one for each line that it is asked."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from gemmary.errors import GemmaryError


class Asked:
    """One such process. `ready` is what it said first. Raises GemmaryError, with its name, where it ends instead."""

    def __init__(self, name: str, command: list[str]) -> None:
        self._name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> None:
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise GemmaryError(f"{self._name} ended without an answer: what it printed stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer
