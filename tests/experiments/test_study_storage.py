"""Where a study is stored makes no difference to its trials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from postgresql import BIN, postgresql
from sqlalchemy.exc import OperationalError
from test_tune import KNN, SASREC, outcomes, tuning

from msm4sr.errors import InputError
from msm4sr.executors import LocalExecutor
from msm4sr.experiments import tune as module
from msm4sr.experiments.study_storage import check_storage
from msm4sr.experiments.tune import tune


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if not BIN:
        pytest.skip("PostgreSQL is not installed")
    with postgresql() as server:
        yield server.url


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str:
    return "journal" if request.param == "journal" else str(request.getfixturevalue("database"))


def test_the_trials_are_those_of_sqlite(storage: str, tmp_path: Path) -> None:
    expected = outcomes(tune(tuning(tmp_path / "sqlite", SASREC, 3)))
    task = replace(tuning(tmp_path / "other", SASREC, 3), storage=storage)
    assert outcomes(tune(replace(task, trials=2))) != expected
    assert outcomes(tune(task)) == expected, "continued"


def test_several_processes_report_to_it(storage: str, tmp_path: Path) -> None:
    task = replace(tuning(tmp_path, SASREC, 3), storage=storage)
    together, alone = tune(task, executor=LocalExecutor(2)), tune(tuning(tmp_path / "alone", SASREC, 3))
    # The first three do not depend on each other; which ones are pruned depends on the order in which they end.
    values = [{str(trial.values) for trial in trials} for trials in (together, alone)]
    assert values[0] == values[1]
    assert outcomes(together)[0] == outcomes(alone)[0]


def test_a_database_that_does_not_answer_is_named_by_its_option(tmp_path: Path) -> None:
    task = replace(tuning(tmp_path, KNN, 1), storage="postgresql://127.0.0.1:1/none")
    message = (
        r"--storage postgresql://127\.0\.0\.1:1/none: the database cannot be used \(.*correct its URL, or start it"
    )
    for use in (lambda: tune(task), lambda: check_storage(task.storage)):
        with pytest.raises(InputError, match=message):
            use()


def test_a_database_that_goes_away_is_reported(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: object, **options: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    monkeypatch.setattr(module, "open_storage", refuses)
    with pytest.raises(InputError, match=r"--storage: the database cannot be used \(server closed the connection\)"):
        tune(replace(tuning(tmp_path, KNN, 1), storage=database))


def test_a_study_in_a_database_is_run_by_one_machine(database: str, tmp_path: Path) -> None:
    task = replace(tuning(tmp_path, KNN, 1), storage=database)
    with psycopg.connect(database, autocommit=True) as other:  # as a process on another machine
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [str(task.folder)])
        with pytest.raises(InputError, match="another process runs this study"):
            tune(task)
    assert len(tune(task)) == 1


@pytest.mark.parametrize("url", ["postgresql://user:secret@host:abc/d", "postgresql://user:se@cret@host:1/d"])
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InputError, match="--storage: not the URL of a PostgreSQL database") as refused:
        check_storage(url)
    assert "cret" not in str(refused.value)


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    task = replace(tuning(tmp_path, KNN, 1), storage="journal")
    tune(task)
    journal = task.folder / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-20] + b"\n{}\n")
    with pytest.raises(InputError, match=r"study\.journal: cannot be used"):
        tune(replace(task, trials=2))


@pytest.mark.parametrize(("storage", "shown"), [("mysql://user:secret@host/database", "mysql://..."), ("sq", "sq")])
def test_another_storage_is_refused_without_its_password(storage: str, shown: str) -> None:
    with pytest.raises(InputError, match=rf"--storage {shown}: give sqlite, journal or postgresql://"):
        check_storage(storage)
