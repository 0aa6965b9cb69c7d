"""The one error whose message is written for the user."""

from __future__ import annotations

import shlex


class InputError(Exception):
    """A file, an option or a setting that the user gave is wrong.

    The message names the file, the row or the option, says what is wrong and how to fix it. The command line prints it
    without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters, or the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def command(*words: object) -> str:
    """`msm4sr ...` for a message, with quotes where a shell needs them."""
    return f"`{shlex.join(['msm4sr', *map(str, words)])}`"


def reason_of(error: Exception) -> str:
    """Why a run failed, in one line: the message of an InputError, else the type of the error too."""
    message = " ".join(str(error).split())
    return message if isinstance(error, InputError) else f"{type(error).__name__}: {message}"


def excerpt(value: object, length: int = 60) -> str:
    """A value as it is quoted in a message, cut after `length` characters."""
    written = repr(value)
    return written if len(written) <= length else f"{written[:length]}...{written[-1]}"
