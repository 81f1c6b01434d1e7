"""Where a row stands: its number in a source -> file and line, or file, row group and row."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from data_prep.file_checks import PIECE, find_files, format_of, open_text
from data_prep.recipe_sources import Source


def place_in(source: Source, raw: Path, row: int) -> str:
    """Place of a row of a source, counted from 0, in words.

    Lines are those of the text: a quoted cell that spans several counts as several.
    """
    files = find_files(source, raw)
    for path in files:
        if format_of(source, files[0]) == "parquet":
            with pq.ParquetFile(path) as file:
                groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            if row < sum(groups):
                return _in_row_groups(path, groups, row)
            row -= sum(groups)
        else:
            header = int(source.columns is None and format_of(source, files[0]) != "jsonl")
            if row < (rows := _lines(path) - header):
                return f"{path} line {row + header + 1}"
            row -= rows
    return f"row {row} after the end of {files[-1]}"


def _in_row_groups(path: Path, groups: list[int], row: int) -> str:
    within, group = row, 0
    while within >= groups[group]:
        within -= groups[group]
        group += 1
    return f"{path} row group {group}, row {within}"


def _lines(path: Path) -> int:
    """Lines of a text, the last one also when nothing ends it."""
    count, last = 0, b"\n"
    with open_text(path) as file:
        while piece := file.read(PIECE):
            count += piece.count(b"\n")
            last = piece[-1:]
    return count + (last != b"\n")
