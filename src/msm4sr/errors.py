"""The one error that a user is meant to read."""

from __future__ import annotations


class InputError(Exception):
    """What the user gave is wrong.

    The message names the file, the row or the option, says what was wrong and what would be right.
    The command line prints it without a traceback and exits with code 2.
    """
