"""The one error whose message is written for the user."""

from __future__ import annotations


class InputError(Exception):
    """A file, an option or a setting that the user gave is wrong.

    The message names the file, the row or the option, says what is wrong and how to fix it. The command line prints it
    without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
