"""A journal as tables for other tools: Parquet, CSV, or TensorBoard's event files.

Tables are long: one row per phase (or report) and source, so that any number of sources has the same columns. Reading
and writing stream, 50,000 rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mixer.analysis.explain import PARTS
from mixer.journal.header import read_header
from mixer.journal.lookup import history
from mixer.journal.phases import PhaseLines
from mixer.journal.tables import read_tables
from mixer.loggers import summary_writer

CHUNK_ROWS = 50_000

PHASES = pa.schema(
    [
        *((name, pa.int64()) for name in ("phase", "start", "length")),
        ("kind", pa.string()),
        ("regime", pa.string()),
        ("probability_random", pa.float64()),
        ("source", pa.string()),
        *((name, pa.float64()) for name in ("weight", "before", "vertex", *PARTS)),
        *((name, pa.int64()) for name in ("rows_before", "rows")),
    ]
)
FEEDBACK = pa.schema(
    [
        *((name, pa.int64()) for name in ("step", "rank")),
        ("source", pa.string()),
        *((name, pa.int64()) for name in ("rows", "tokens")),
        *((name, pa.float64()) for name in ("loss_sum", "square_sum", "mean_loss")),
    ]
)


def export_tables(journal: str | Path, folder: str | Path, kind: str) -> list[Path]:
    """Write ``phases``, ``feedback`` and, of a run with probes, ``probes`` as ``parquet`` or ``csv``; return the files.

    Files appear whole or not at all. CSV has every digit of a float64; an index of +inf (a source with too few
    observations) is empty.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"phases": PHASES, "feedback": FEEDBACK}
    if read_header(journal)["curriculum"].get("probes"):
        tables["probes"] = FEEDBACK
    finals = {name: folder / f"{name}.{kind}" for name in tables}
    partials = {name: folder / f".{name}.{kind}.partial" for name in tables}
    open_writer = pyarrow.parquet.ParquetWriter if kind == "parquet" else pyarrow.csv.CSVWriter
    writers = {name: open_writer(str(partials[name]), schema) for name, schema in tables.items()}
    try:
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tables}
        for name, row in _rows(journal):
            rows[name].append(row)
            if len(rows[name]) >= CHUNK_ROWS:
                writers[name].write_table(pa.Table.from_pylist(rows[name], schema=tables[name]))
                rows[name] = []
        for name, rest in rows.items():
            writers[name].write_table(pa.Table.from_pylist(rest, schema=tables[name]))
            writers[name].close()
            partials[name].replace(finals[name])
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return list(finals.values())


def _rows(journal: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (table, row) in the order of the journal."""
    header, records = history(journal)
    names = [source["name"] for source in header["curriculum"]["sources"]]
    probed = [*names, *(target["name"] for target in header["curriculum"].get("targets", ()))]
    waiting = PhaseLines(header["curriculum"], keep=1)  # the newest phase: a pivot may still cut it
    for record in records:
        if record["type"] == "feedback":
            yield from (("feedback", row) for row in _feedback_rows(record, names))
        elif record["type"] == "probe":
            yield from (("probes", row) for row in _feedback_rows(record, probed))
        elif record["type"] == "phase":
            yield from (("phases", row) for phase in waiting.records for row in _phase_rows(phase, names))
            waiting.add(record)
        elif record["type"] == "pivot":
            waiting.cut(record)
    yield from (("phases", row) for phase in waiting.records for row in _phase_rows(phase, names))


def _phase_rows(phase: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    facts = {key: phase[key] for key in ("start", "length", "kind", "regime", "probability_random")}
    for i, name in enumerate(names):
        parts = {part: phase["parts"][part][i] for part in PARTS if part in phase["parts"]}
        yield {
            "phase": phase["index"],
            **facts,
            "source": name,
            "weight": phase["weights"][i],
            "before": phase["before"][i],
            "vertex": None if phase["vertex"] is None else phase["vertex"][i],
            **parts,
            "rows_before": phase["drawn"][i],
            "rows": phase["counts"][i],
        }


def _feedback_rows(report: dict[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    columns = (report[key] for key in ("sources", "rows", "tokens", "loss_sums", "square_sums"))
    for i, rows, tokens, loss_sum, square_sum in zip(*columns, strict=True):
        yield {
            "step": report["step"],
            "rank": report["rank"],
            "source": names[i],
            "rows": rows,
            "tokens": tokens,
            "loss_sum": loss_sum,
            "square_sum": square_sum,
            "mean_loss": loss_sum / tokens if tokens else None,
        }


def export_tensorboard(journal: str | Path, folder: str | Path) -> Path:
    """Write weights, losses and indices of each phase as event files at the phase's first step.

    A journal has no clock, so TensorBoard's "relative" and "wall" axes show when the export ran.
    """
    story = read_tables(journal)
    writer = summary_writer(folder)
    tables = {"weight": story.weights(), "loss": story.phase_losses(), "index": story.parts("index")}
    for p, phase in enumerate(story.phases):
        for table, values in tables.items():
            for name, value in zip(story.names, values[p], strict=True):
                if np.isfinite(value):
                    writer.add_scalar(f"{table}/{name}", float(value), phase["start"])
        writer.add_scalar("phase/is_random", float(phase["kind"] == "random"), phase["start"])
    writer.close()
    return Path(folder)
