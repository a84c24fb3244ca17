"""The command line: parse, call, print. Nothing heavy is imported before a command needs it.

Exit codes: 0 done; 1 a comparison failed (`verify`); 2 a mistake or a failure, told in one line; 130 Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from gemmary.errors import GemmaryError

BROKEN_PIPE = 141
"""128 + SIGPIPE: whoever read the output has left."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code of the process."""
    _prepare_streams()
    try:
        from gemmary.cli.parser import build_parser

        arguments = build_parser().parse_args(argv)
        code = int(arguments.run(arguments) or 0)
        sys.stdout.flush()
        return code
    except GemmaryError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return BROKEN_PIPE
    except UnicodeDecodeError:
        return _fail("stdin is not UTF-8 text")
    except OSError as error:  # files of ours tell their own errors: what is left is the output, on a full disk
        _drop_stdout()
        return _fail(f"{error.filename or 'cannot write the output'}: {error.strerror or error}")
    except MemoryError:
        return _fail("out of memory: choose a smaller model, --quant int4 or a shorter --context")


def _prepare_streams() -> None:
    """UTF-8 in, strictly, and whatever can be shown out. A stream that the caller closed reads and writes nothing."""
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _drop_stdout() -> None:
    """The interpreter flushes stdout once more at exit: let that go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    from gemmary.cli.console import note

    note(f"error: {' '.join(message.split())}")
    return 2
