"""The command `msm4sr`. Each command reads its options, calls what does the work, and shows what came out."""

from __future__ import annotations

import resource
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from msm4sr.errors import InputError

if TYPE_CHECKING:  # what is heavy is imported by the command that needs it, so that --help answers at once
    from torch import nn

    from msm4sr.data.dataset import Dataset
    from msm4sr.experiments.run import Run
    from msm4sr.training.loop import EpochRecord

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    help="Recommend the next items from what people took, and from what the items' texts and pictures show.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
prepare = typer.Typer(
    help="Make a prepared folder (interactions.parquet, items.parquet, images/).", no_args_is_help=True
)
app.add_typer(prepare, name="prepare")
console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Data = Annotated[Path, typer.Argument(help="A prepared folder.", metavar="DATA", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="The run folder to make.", show_default=False)]
Preset = Annotated[str, typer.Option("--preset", help="seed, released or best.")]
Model = Annotated[str, typer.Option("--model", help="msm4sr, sasrec or popularity.")]
Changes = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change any setting, e.g. finetune.learning_rate=1e-4."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of every random draw; 0 unless the preset says else.")]
FeaturesFolder = Annotated[
    Path | None, typer.Option("--features", help="Keep extracted features here, to share them between runs.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that stands in --out.")]


def main() -> None:
    """The entry point of the command."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|sentence_transformers)")
    app()


@contextmanager
def told(interrupted: str = "interrupted") -> Iterator[None]:
    """What goes wrong, in one line and an exit code: 2 for wrong input, 130 for Ctrl-C."""
    try:
        yield
    except InputError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(2) from None
    except FloatingPointError as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        errors.print(f"[red]error:[/red] {escape(where + (error.strerror or str(error)))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print(f"\n[yellow]{escape(interrupted)}[/yellow]")
        raise typer.Exit(INTERRUPTED) from None


def _next(*words: str | Path) -> None:
    """The command that comes next, to be copied as it is."""
    console.print("next: msm4sr", shlex.join(str(word) for word in words), markup=False)


# -- the main job and its stages ---------------------------------------------------------------------------------------


@app.command()
def run(
    data: Data,
    out: Out,
    preset: Preset = "best",
    model: Model = "msm4sr",
    changes: Changes = [],  # noqa: B006  # typer reads it, nobody changes it
    seed: Seed = None,
    features: FeaturesFolder = None,
    overwrite: Overwrite = False,
) -> None:
    """Extract features, pre-train, fine-tune, evaluate: from a prepared folder to recommendations."""
    with told(f"interrupted; what was done is kept in {out}"):
        started, dataset, network = _start(data, out, preset, model, changes, seed, features, overwrite)
        _pretrain(started, dataset, network)
        _finetune(started, dataset, network)
        _evaluate(started, dataset, network)


@app.command()
def extract(
    data: Data,
    out: Out,
    preset: Preset = "best",
    model: Model = "msm4sr",
    changes: Changes = [],  # noqa: B006
    seed: Seed = None,
    features: FeaturesFolder = None,
    overwrite: Overwrite = False,
) -> None:
    """The first stage alone: make the run folder and read texts and pictures. Next: pretrain RUN."""
    with told(f"interrupted; finished parts are kept in {out}, and the same command goes on"):
        _start(data, out, preset, model, changes, seed, features, overwrite)
        _next("pretrain", out)


@app.command()
def pretrain(folder: RunFolder) -> None:
    """The second stage alone: pre-train on content. Starts anew from the extracted features. Next: finetune RUN."""
    with told(f"interrupted; the best validated epoch is kept: msm4sr finetune {folder} goes on from it"):
        started = _open(folder)
        dataset, network = _load(started)
        _pretrain(started, dataset, network)
        _next("finetune", folder)


@app.command()
def finetune(folder: RunFolder) -> None:
    """The third stage alone: fine-tune with item IDs, from the pre-trained weights. Next: evaluate RUN."""
    with told(f"interrupted; the best validated epoch is kept: msm4sr evaluate {folder} measures it"):
        from msm4sr.experiments.run import restore_last

        started = _open(folder)
        dataset, network = _load(started)
        restore_last(started, network, before="finetune")
        _finetune(started, dataset, network)
        _next("evaluate", folder)


@app.command()
def evaluate(folder: RunFolder) -> None:
    """The last stage alone: rank all items for every user, write metrics.json, the model folder and report.html."""
    with told():
        from msm4sr.experiments.run import restore_last

        started = _open(folder)
        dataset, network = _load(started)
        restore_last(started, network)
        _evaluate(started, dataset, network)


def _start(
    data: Path,
    out: Path,
    preset: str,
    model: str,
    changes: list[str],
    seed: int | None,
    features: Path | None,
    overwrite: bool,
) -> tuple[Run, Dataset, nn.Module]:
    from msm4sr.data.dataset import load_dataset
    from msm4sr.experiments.run import begin_run, describe_data, plan_run, tidy
    from msm4sr.experiments.settings import resolve_settings

    settings = resolve_settings(preset, model, changes, seed)
    dataset = load_dataset(data, settings.dataset)  # wrong data is told before anything is made
    if features is not None and (features / "config.yaml").exists():
        features = features / "features"  # another run's
    started = plan_run(data, out, settings, preset, features, overwrite)
    describe_data(dataset, console.print)
    try:
        network = _extract(started, dataset)
        begin_run(started)
    except (InputError, OSError):
        tidy(started)
        raise
    return started, dataset, network


def _open(folder: Path) -> Run:
    from msm4sr.experiments.run import open_run

    return open_run(folder)


def _load(run: Run) -> tuple[Dataset, nn.Module]:
    from msm4sr.experiments.run import load_run_data

    dataset = load_run_data(run, console.print)
    return dataset, _extract(run, dataset)


def _extract(run: Run, dataset: Dataset) -> nn.Module:
    from msm4sr.experiments.run import build_model, extract_stage

    with _bar() as progress:
        features = extract_stage(run, dataset, progress, progress.console.print)
    return build_model(run.settings, dataset, features)


def _pretrain(run: Run, dataset: Dataset, network: nn.Module) -> None:
    from msm4sr.experiments.run import pretrain_stage

    with _bar() as progress:
        pretrain_stage(run, dataset, network, TrainingProgress(progress), progress.console.print)


def _finetune(run: Run, dataset: Dataset, network: nn.Module) -> None:
    from msm4sr.experiments.run import finetune_stage

    with _bar() as progress:
        finetune_stage(run, dataset, network, TrainingProgress(progress))


def _evaluate(run: Run, dataset: Dataset, network: nn.Module) -> None:
    from msm4sr.experiments.run import evaluate_stage
    from msm4sr.serving.report import write_run_report

    with _bar() as progress:
        task = progress.add_task("evaluate", total=2 * dataset.n_users)
        metrics = evaluate_stage(run, dataset, network, lambda users: progress.advance(task, users))
    report = write_run_report(run, dataset, network, metrics)
    _summary(metrics)
    console.print(f"report: {report}", markup=False)
    _next("recommend", run.folder, "--user", dataset.user_ids[0])


def _summary(metrics: dict[str, Any]) -> None:
    about = metrics["run"]
    console.print(f"{about['model']} on {about['data']}: {about['protocol']}", markup=False)
    table = Table()  # without a title, which would be wrapped at the table's width
    table.add_column("metric")
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")
    for name, value in metrics["test"].items():
        table.add_row(name, f"{metrics['validation'][name]:.4f}", f"{value:.4f}")
    console.print(table)
    seconds = about["training_seconds"]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024)
    console.print(
        f"{about['parameters']:,} weights; pre-training {seconds['pretrain']:.0f} s, "
        f"fine-tuning {seconds['finetune']:.0f} s (validation apart); peak memory {memory / 1024:.2f} GiB"
    )


# -- recommendations --------------------------------------------------------------------------------------------------


@app.command()
def recommend(
    folder: RunFolder,
    more: Annotated[list[str] | None, typer.Argument(metavar="ID", help="More of --history.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user of the data: the whole history is used.")] = None,
    history: Annotated[
        list[str] | None, typer.Option("--history", metavar="ID [ID]...", help="Item ids, oldest first.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    include_history: Annotated[bool, typer.Option("--include-history", help="Items of the history too.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with pictures here.")] = None,
) -> None:
    """The next items for a user of the data or for any history."""
    with told():
        if (user is None) == (history is None):
            raise InputError("name either a user (--user U) or a history (--history ID ID ...)")
        if more and history is None:
            raise InputError(f"unexpected {' '.join(more)!r}; item ids come after --history")
        _recommend(folder, user, [*(history or []), *(more or [])], k, include_history, html)


def _recommend(
    folder: Path, user: str | None, history: list[str], k: int, include_history: bool, html: Path | None
) -> None:
    from msm4sr.experiments.run import check_items, load_run_data
    from msm4sr.models.registry import from_pretrained
    from msm4sr.serving.pages import HistoryAndRecommendations, recommendation_page, write_page
    from msm4sr.serving.recommender import ItemTable, user_history
    from msm4sr.serving.recommender import recommend as rank

    opened = _open(folder)
    network = from_pretrained(folder / "model")
    dataset = load_run_data(opened)
    check_items(opened, dataset)
    items = ItemTable.from_dataset(dataset)
    if user is not None:
        history = user_history(dataset, user)
    chosen = rank(network, items, history, k, exclude_history=not include_history)  # type: ignore[arg-type]
    who = f"user {user}" if user is not None else "this history"
    shown = [items.titles[items.rows[item]] for item in history[-5:]]
    latest = f"the latest of {len(history)}" if len(history) > len(shown) else f"all {len(history)}"
    console.print(f"{who}, {latest}: {' · '.join(shown)}", markup=False)
    table = Table()
    table.add_column("", justify="right")
    table.add_column("item")
    table.add_column("title")
    table.add_column("score", justify="right")
    for item in chosen:
        table.add_row(str(item.rank), escape(item.item_id), escape(item.title), f"{item.score:.3f}")
    console.print(table)
    if html is not None:
        rows = [items.rows[item] for item in history]
        title = f"Recommendations for {who}"
        write_page(
            html,
            recommendation_page(title, [HistoryAndRecommendations(who[0].upper() + who[1:], rows, chosen, items)]),
        )
        console.print(f"page: {html}", markup=False)


# -- preparing data ---------------------------------------------------------------------------------------------------


@prepare.command("csv")
def prepare_csv(
    interactions: Annotated[
        Path, typer.Argument(help="The log: CSV, TSV or Parquet.", metavar="INTERACTIONS", show_default=False)
    ],
    items: Annotated[
        Path, typer.Argument(help="The catalogue: CSV, TSV or Parquet.", metavar="ITEMS", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT", show_default=False)],
    images: Annotated[Path | None, typer.Option("--images", help="A folder of pictures.")] = None,
    user: Annotated[str, typer.Option(help="Column of the log: who.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of the log: what.")] = "item_id",
    time: Annotated[str, typer.Option(help="Column of the log: when; '' if its rows are in order.")] = "timestamp",
    time_unit: Annotated[Literal["auto", "s", "ms", "iso"], typer.Option(help="How times are written.")] = "auto",
    rating: Annotated[str, typer.Option(help="Column of the log: how much it was liked.")] = "rating",
    min_rating: Annotated[float | None, typer.Option(help="Interactions rated lower are left out.")] = None,
    item_id: Annotated[str, typer.Option(help="Column of the catalogue: the item's id.")] = "item_id",
    title: Annotated[str, typer.Option(help="Column of the catalogue.")] = "title",
    text: Annotated[list[str], typer.Option(help="Column of the catalogue; several are joined.")] = ["text"],  # noqa: B006
    categories: Annotated[str, typer.Option(help="Column of the catalogue.")] = "categories",
    separator: Annotated[str, typer.Option(help="Between categories.")] = "|",
    delimiter: Annotated[str | None, typer.Option(help="Between fields, where it is not a comma (.tsv: tab).")] = None,
    image: Annotated[str, typer.Option(help="Column of the catalogue: picture files under --images.")] = "image",
) -> None:
    """From tables and a folder of pictures to a prepared folder; says what it kept and dropped, and why."""
    from pydantic import ValidationError

    from msm4sr.data.sources import csv

    with told("interrupted; nothing was written"):
        named = {
            "user": user,
            "item": item,
            "time": time,
            "time_unit": time_unit,
            "rating": rating,
            "min_rating": min_rating,
            "item_id": item_id,
            "title": title,
            "text": tuple(text),
            "categories": categories,
            "separator": separator,
            "delimiter": delimiter,
            "image": image,
        }
        # A column that the user names must be there; one that keeps its default name may be missing.
        changed = {key: value for key, value in named.items() if value != csv.CsvColumns.model_fields[key].default}
        try:
            columns = csv.CsvColumns.model_validate(changed)
        except ValidationError as error:
            problem = error.errors()[0]
            option = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"])
            raise InputError(option + problem["msg"].removeprefix("Value error, ")) from None
        report = csv.prepare_csv(interactions, items, images, out, columns)
        for line in report.lines():
            console.print(escape(line))
        _next("run", out, "--out", "RUN")


@prepare.command("toyshop")
def prepare_toyshop(
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT", show_default=False)],
    users: Annotated[int, typer.Option(min=10)] = 3000,
    items: Annotated[int, typer.Option(min=40)] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Generate a catalogue with drawn pictures and a log whose taste shows in pictures, in texts and in order."""
    from msm4sr.data.toyshop import generate_toyshop

    with told("interrupted"):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(f"{out}: exists already; name a new or an empty folder")
        generate_toyshop(out, users=users, items=items, seed=seed)
        console.print(f"toyshop: {out}", markup=False)
        _next("run", out, "--out", "RUN")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where to put it all; made anew.")] = Path("demo"),
    users: Annotated[int, typer.Option(min=10)] = 3000,
    items: Annotated[int, typer.Option(min=40)] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """The main job on a generated toy shop: popularity, texts alone, pictures alone, and both, side by side."""
    from msm4sr.experiments.demo import run_demo
    from msm4sr.serving.report import write_run_report

    with told(f"interrupted; what was done is kept in {out}"):
        with _bar() as progress:
            done = run_demo(
                out,
                users,
                items,
                seed,
                progress=progress,
                monitor=lambda: TrainingProgress(progress),
                note=progress.console.print,
            )
        comparison = [(name, metrics["test"]) for name, metrics in done.metrics.items()]
        report = write_run_report(done.run, done.dataset, done.model, done.metrics["MSM4SR"], comparison)
        shown = ("recall@5", "recall@10", "recall@20", "ndcg@10", "mrr")
        table = Table(title=f"test, {done.dataset.n_users:,} users, all {done.dataset.n_items} items ranked")
        table.add_column("system")
        for name in shown:
            table.add_column(name, justify="right")
        best = {name: max(values[name] for _, values in comparison) for name in shown}
        for system, values in comparison:
            cells = (f"[bold]{values[n]:.4f}[/bold]" if values[n] == best[n] else f"{values[n]:.4f}" for n in shown)
            table.add_row(system, *cells)
        console.print(table)
        console.print(f"look at it: {report.absolute()}", markup=False)


# -- progress ---------------------------------------------------------------------------------------------------------


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        StatusColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # in a file or a pipe the lines of the epochs are enough
    )


class StatusColumn(ProgressColumn):
    """What a task says of itself beside its bar, if it does."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("status", ""))


class TrainingProgress:
    """A bar over all steps with the current loss, and a line an epoch."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._epochs, self._steps = 0, 0

    def start(self, stage: str, epochs: int, steps: int) -> None:
        self._epochs, self._steps = epochs, steps
        self._task = self._progress.add_task(stage, total=epochs * steps, status="")

    def step(self, stage: str, epoch: int, loss: float, steps: int) -> None:
        assert self._task is not None
        self._progress.update(
            self._task,
            advance=steps,
            description=f"{stage} {epoch}/{self._epochs}",
            status=f"loss {loss:.3f}",
        )

    def epoch(self, record: EpochRecord, best: bool) -> None:
        assert self._task is not None
        self._progress.update(
            self._task,
            completed=record.epoch * self._steps,
            description=f"{record.stage} {record.epoch}/{self._epochs}",
            status=f"loss {record.loss:.3f}",
        )
        found = " ".join(
            f"{name} {record.validation[name]:.4f}" for name in ("recall@10", "ndcg@10") if record.validation
        )
        self._progress.console.print(
            f"{record.stage} {record.epoch:>3}/{self._epochs}  loss {record.loss:.4f}  "
            f"{record.pairs_per_second:.0f} pairs/s  {found}{'  [green]best so far[/green]' if best else ''}"
        )

    def finish(self, stage: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)


if __name__ == "__main__":
    main()
