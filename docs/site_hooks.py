"""What the documentation site has besides the pages written by hand: settings, options, and files outside of ``docs``.

MkDocs calls these functions by their names (https://www.mkdocs.org/user-guide/plugins/#events).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = "repository"  # the folder of the site for files that lie outside of docs/
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and every file outside of ``docs`` that a page links to."""
    for name, text in (("settings.md", settings()), ("options.md", options()), ("decisions.md", decisions())):
        files.append(File.generated(config, name, content=text))
    pages = [ROOT / "docs" / file.src_uri for file in files.documentation_pages() if file.generated_by is None]
    for path in sorted({target for page in pages for target in _linked(page) if target.is_file()}):
        uri = _uri(path)
        if uri.startswith(f"{OUTSIDE}/") and files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead where their targets are in the site."""
    here = PurePosixPath(page.file.src_uri)
    source = _source(here)

    def moved(match: re.Match[str]) -> str:
        target, anchor = match.group(1), match.group(2) or ""
        path = (source.parent / target).resolve()
        if "://" in target or not path.is_relative_to(ROOT) or not path.exists():
            return match.group(0)
        uri = "decisions.md" if path == ROOT / "docs" / "adr" else _uri(path)
        return f"]({os.path.relpath(uri, here.parent)}{anchor})"

    return LINK.sub(moved, markdown)


def _source(uri: PurePosixPath) -> Path:
    parts = uri.parts
    return ROOT.joinpath(*parts[1:]) if parts[0] == OUTSIDE else ROOT / "docs" / uri


def _uri(path: Path) -> str:
    docs = ROOT / "docs"
    inside = path.is_relative_to(docs)
    return path.relative_to(docs).as_posix() if inside else f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"


def _linked(page: Path) -> Iterator[Path]:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        path = (page.parent / match.group(1)).resolve()
        if "://" not in match.group(1) and path.is_relative_to(ROOT):
            yield path


def decisions() -> str:
    """Return the page that lists the decision records."""
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    titles = [(path.name, path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")) for path in records]
    return "# Decisions\n\n" + "\n".join(f"- [{title}](adr/{name})" for name, title in titles) + "\n"


def settings() -> str:
    """Return the page of all settings of a curriculum, from the models that check them."""
    from mixer.config.curriculum import Curriculum

    lines = [
        "# Settings",
        "",
        "Every field of a curriculum, from the code that checks it. Unknown keys are errors.",
        "",
    ]
    seen: list[type[BaseModel]] = [Curriculum]
    for model in seen:  # grows as models name others
        title = "Curriculum" if model is Curriculum else _title(model)
        lines += [
            f"## {title}",
            "",
            _first_paragraph(model.__doc__),
            "",
            "| field | default | meaning |",
            "| --- | --- | --- |",
        ]
        for name, field in model.model_fields.items():
            lines.append(f"| `{name}` | {_default(field)} | {_cell(field.description or _kinds(field))} |")
            seen += [inner for inner in _models(field.annotation) if inner not in seen]
        lines.append("")
    return "\n".join(lines)


def options() -> str:
    """Return the page of every command's arguments and options, from the commands themselves."""
    import importlib.metadata

    from mixer.cli import app

    lines = ["# Options of commands", ""]
    command = typer.main.get_command(app)
    found = dict(command.commands)  # type: ignore[attr-defined]
    for entry in importlib.metadata.entry_points(group="mixer.commands"):
        loaded = entry.load()
        group = loaded if isinstance(loaded, typer.Typer) else None
        if group is None:
            group = typer.Typer()
            group.command(entry.name)(loaded)
        found[entry.name] = typer.main.get_command(group)
    for name in sorted(found):
        lines += _command(f"mixer {name}", found[name])
    return "\n".join(lines)


def _command(name: str, command: Any) -> list[str]:
    inner = getattr(command, "commands", None)
    if inner:
        return [line for key in sorted(inner) for line in _command(f"{name} {key}", inner[key])]
    lines = [f"## `{name}`", "", (command.help or "").strip(), "", "| | | |", "| --- | --- | --- |"]
    for parameter in command.params:
        spelled = (
            parameter.opts
            if parameter.param_type_name == "option"
            else [(parameter.metavar or parameter.name or "").upper()]
        )
        default = parameter.default
        shown = "" if default is None or default is False or callable(default) else f"`{default}`"
        text = _cell(getattr(parameter, "help", None) or "")
        lines.append(f"| {', '.join(f'`{each}`' for each in spelled)} | {shown} | {text} |")
    return [*lines, ""]


def _title(model: type[BaseModel]) -> str:
    field = model.model_fields.get("name")
    is_policy = field is not None and isinstance(field.default, str)
    return f"policy: {field.default}" if is_policy and field is not None else model.__name__.removesuffix("Config")


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return f"`{_cell(str(value))}`" if value is not None else "none"


def _kinds(field: FieldInfo) -> str:
    kind = field.annotation
    text = getattr(kind, "__name__", None) if not getattr(kind, "__args__", None) else str(kind)
    return f"`{_cell(re.sub(r'[a-z_.]+[.]', '', text or str(kind)))}`"


def _cell(text: str) -> str:
    return re.sub(r"([|\[\]])", r"\\\1", " ".join(text.split()))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)
