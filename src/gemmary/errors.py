"""The one exception that a user's mistake, a bad file or a missing thing raises."""

from __future__ import annotations


class GemmaryError(Exception):
    """One line that says what is wrong and what to do. The command line prints it and exits with a non-zero code."""
