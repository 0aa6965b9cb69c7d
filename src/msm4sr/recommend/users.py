"""The histories of the users of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock

from msm4sr.data.dataset import Dataset
from msm4sr.data.items import LONGEST_ID
from msm4sr.errors import InputError
from msm4sr.ragged import Ragged
from msm4sr.recommend.catalogue import closest_names

RETRY_SECONDS = 10.0  # after which a data set that could not be read is tried again


class UnknownUser(InputError):
    """The data set of the run has no user with that id."""


class UsersUnavailable(InputError):
    """The data set of the run is not there, or its items are no longer those of the run."""


class UserHistories:
    """The history of each user, from the data set of a run, which is read at the first use. Thread-safe.

    Later changes of the data set are not seen. The arrays are mapped files that processes share
    (`msm4sr.data.histories`).

    Args:
        load: reads the data set. Raises InputError if it is not there.
        item_ids: the items of the run, in the order of its model.
    """

    def __init__(self, load: Callable[[], Dataset], item_ids: Sequence[str]) -> None:
        self._load, self._item_ids = load, item_ids
        self._users: tuple[dict[str, int], Ragged] | None = None  # id to row, and the histories
        self._failed, self._retry_at = "", 0.0
        self._reading = Lock()

    @property
    def are_read(self) -> bool:
        """Whether the data set was read, so that a history is found at once."""
        return self._users is not None

    def history(self, user_id: str, strict: bool = False) -> list[str]:
        """The ids of the items that a user interacted with, oldest first.

        Args:
            strict: an error for an unknown user names the closest ids.

        Raises:
            UnknownUser: the data set has no such user.
            UsersUnavailable: the data set is not there, or its items are no longer those of the run.
        """
        rows, histories = self._users or self._read()
        row = rows.get(user_id)
        if row is None:
            near = closest_names(user_id, list(rows)) if strict else []
            hint = f": did you mean {', '.join(map(repr, near))}?" if near else ""
            raise UnknownUser(f"no user {user_id[:LONGEST_ID]!r} among the {len(rows):,} users of the run's data{hint}")
        return [self._item_ids[item] for item in histories[row]]

    def _read(self) -> tuple[dict[str, int], Ragged]:
        with self._reading:
            if self._users is not None:
                return self._users
            if self._failed and time.monotonic() < self._retry_at:
                raise UsersUnavailable(self._failed)
            try:
                dataset = self._load()
                if dataset.item_ids != list(self._item_ids):
                    raise InputError(
                        f"{dataset.folder}: the items are no longer those that the model was trained on "
                        f"({len(self._item_ids):,} then, {dataset.n_items:,} now, or in another order); train again"
                    )
            except (InputError, OSError) as error:
                self._failed = f"the history of a user needs the data of the run: {error}"
                self._retry_at = time.monotonic() + RETRY_SECONDS
                raise UsersUnavailable(self._failed) from None
            self._users = {user_id: row for row, user_id in enumerate(dataset.user_ids)}, dataset.histories
            return self._users
