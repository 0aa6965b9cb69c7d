"""The URL of a PostgreSQL database, and what to connect with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from msm4sr.errors import InputError

HOST = r"(\[[0-9a-fA-F:.%]+\]|[^][:,]*)(:\d+)?"  # with its port


class Database(NamedTuple):
    """What a URL says."""

    name: str  # for messages: the URL without user, password and parameters
    settings: dict[str, Any]  # to connect with: `psycopg.connect(**settings)`
    own: dict[str, str]  # the parameters that are not PostgreSQL's


def read_url(url: str, option: str, own: Mapping[str, str] = {}) -> Database:
    """Read postgresql://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETER=VALUE, with several hosts if there are any.

    Args:
        url: given by the user.
        option: its command-line option, for messages.
        own: parameters that are not PostgreSQL's, with their defaults.

    Raises:
        InputError: the URL is wrong. The message does not show it, since part of a password may be anywhere in it.
    """
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        if url.count("@") > ("@" in parts.netloc) or "#" in url or not re.fullmatch(f"{HOST}(,{HOST})*", hosts):
            raise ValueError  # part of a password would be the host, the path or the database
        options = dict(parse_qsl(parts.query))
        found = {name: options.pop(name, default) for name, default in own.items()}
        settings = conninfo_to_dict(parts._replace(query=urlencode(options, quote_via=quote)).geturl())
        return Database(f"postgresql://{hosts}{parts.path}", settings, found)
    except (ValueError, psycopg.Error):
        raise InputError(
            f"{option}: not the URL of a PostgreSQL database; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, "
            "with other characters of the password than letters and digits as %XX"
        ) from None
