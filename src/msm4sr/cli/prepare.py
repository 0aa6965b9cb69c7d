"""`msm4sr prepare`: one command per source; each creates a prepared folder."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.markup import escape
from typer.core import TyperGroup

from msm4sr.cli.console import NOTHING_WRITTEN, console, handle_errors, say_next
from msm4sr.errors import InputError
from msm4sr.files import atomic_folder

if TYPE_CHECKING:
    from msm4sr.data.preparation.source import Source

Settings = TypeVar("Settings", bound=BaseModel)
Out = Annotated[Path, typer.Argument(help="The folder to create.", metavar="OUT", show_default=False)]
PAPER = "The paper's rules: --user-core 5 --repeats last --unseen-items drop."
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Memory to use, such as 4GB, whatever the size of the data.",
        show_default="half of the free memory",
    ),
]
LikePaper = Annotated[bool, typer.Option("--like-paper", help=PAPER, rich_help_panel="Rules")]


class SourceCommands(TyperGroup):
    """Adds a command for each registered source. Sources are imported only when `prepare` is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._add_sources()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        self._add_sources()
        return super().get_command(ctx, cmd_name)

    def _add_sources(self) -> None:
        from msm4sr.data.preparation.source import SOURCES

        with handle_errors():
            for name, source in SOURCES.items():
                self.commands.setdefault(name, source_command(name, source))


prepare = typer.Typer(
    cls=SourceCommands,
    help="Create a prepared folder (interactions.parquet, items.parquet, images/).",
    no_args_is_help=True,
)


def source_command(name: str, source: type[Source]) -> Any:
    """A command with the required fields of a source as arguments, and its other fields and the rules as options."""

    fields = source.model_fields.items()
    parameters = [
        _parameter("ctx", typer.Context),
        *(_from_field(name, field) for name, field in fields if field.is_required()),
        _parameter("out", Out),
        *(_from_field(name, field) for name, field in fields if not field.is_required()),
        _parameter("memory", Memory, None),
        _parameter("like_paper", LikePaper, False),
        *(_from_field(name, field, source.rules) for name, field in type(source.rules).model_fields.items()),
    ]
    command: Any = partial(prepare_source, source)
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False)
    app.command(name, help=inspect.getdoc(source))(command)
    return typer.main.get_command(app)


def prepare_source(
    source: type[Source], ctx: typer.Context, out: Path, memory: str | None, like_paper: bool, **options: Any
) -> None:
    """Run the command of a source."""
    from msm4sr.data.database import parse_memory
    from msm4sr.data.preparation.pipeline import prepare
    from msm4sr.data.preparation.source import LIKE_PAPER

    # Pass on only the given options: a column that the user names must exist, even if it has the default name.
    given = {name: options[name] for name in options if "DEFAULT" not in str(ctx.get_parameter_source(name))}
    rules = source.rules.model_dump() | (dict(LIKE_PAPER) if like_paper else {})
    with handle_errors(NOTHING_WRITTEN):
        chosen = _validate(type(source.rules), rules | {name: given.pop(name) for name in rules if name in given})
        limit = None if memory is None else parse_memory(memory)
        report = prepare(_validate(source, given), out, chosen, limit)
        for line in report.lines():
            console.print(escape(line))
        if report.with_urls:
            say_next("fetch-images", out)
        say_next("run", out, "--out", "RUN")


def _from_field(name: str, field: FieldInfo, settings: BaseModel | None = None) -> inspect.Parameter:
    """A field as an argument, or as an option with its default or its value in `settings`."""
    kind = list[str] if get_origin(field.annotation) is tuple else field.annotation
    if field.is_required():
        info = typer.Argument(help=field.description, metavar=name.upper(), show_default=False)
        return _parameter(name, Annotated[kind, info])
    option = typer.Option(
        help=field.description,
        rich_help_panel="Options" if settings is None else "Rules",
        show_default="a space" if field.default == " " else True,
    )
    return _parameter(name, Annotated[kind, option], field.default if settings is None else getattr(settings, name))


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _validate(settings: type[Settings], values: dict[str, Any]) -> Settings:
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"])
        raise InputError(f"{option}{problem['msg'].removeprefix('Value error, ')}, not {problem['input']!r}") from None


@prepare.command("toyshop")
def prepare_toyshop(
    out: Out,
    users: Annotated[int, typer.Option(min=10, help="Number of users.")] = 3000,
    items: Annotated[int, typer.Option(min=40, help="Number of items.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another shop.")] = 0,
    csv: Annotated[bool, typer.Option("--csv", help="Write log.csv, items.csv and photos/ for `prepare csv`.")] = False,
) -> None:
    """Generate a small shop with drawn images, whose interactions depend on images, texts and order."""
    from msm4sr.data.toyshop import generate_toyshop, write_toyshop_csv

    with handle_errors(NOTHING_WRITTEN):
        with atomic_folder(out) as folder:
            (write_toyshop_csv if csv else generate_toyshop)(folder, users=users, items=items, seed=seed)
        console.print(f"toyshop: {out}", markup=False)
        if csv:
            columns = ("--images", out / "photos", "--user", "customer", "--item", "sku", "--time", "date")
            say_next("prepare", "csv", out / "log.csv", out / "items.csv", "DATA", *columns)
        else:
            say_next("run", out, "--out", "RUN")
