"""The manifest: which files make up a vault right now. Replaced as a whole, so every reader sees one state.

One line ``LASERVAULT <version> <CRC32C of the rest, 8 hexadecimal digits>``, then JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from laser.seqvault.admission import Admission
from laser.seqvault.checksum import crc32c
from laser.seqvault.dictionary import DictionaryEntry
from laser.seqvault.durable import replace_file
from laser.seqvault.layout import DerivedField, Field, Layout

FORMAT_VERSION = 3
NAME = "MANIFEST"
MAGIC = "LASERVAULT"


@dataclass(frozen=True)
class SegmentEntry:
    """A segment: its number (in its file name), its slot in the index, its size and contents."""

    number: int
    slot: int
    bytes: int
    events: int
    chunks: int


@dataclass(frozen=True)
class Manifest:
    """State of a vault at one moment."""

    layout: Layout
    admission: Admission
    generation: int = 1
    next_number: int = 1
    """Number of the next file of any kind."""
    first_log: int = 1
    """Logs from this number on hold what no segment has yet."""
    first_sequence: int = 1
    """Sequence number of the first record of that log."""
    segments: tuple[SegmentEntry, ...] = ()
    """In the order in which their directories apply."""
    snapshot: int = 0
    """Number of the index snapshot, which covers the first ``snapshot_segments``; 0: none."""
    snapshot_segments: int = 0
    dictionaries: tuple[DictionaryEntry, ...] = ()
    tables: dict[str, int] = field(default_factory=dict)
    """Numbers of the files with the values of derived fields; a field that has none yet is missing."""
    choose_dictionaries: bool = True
    """Whether fields get dictionaries where these pay; otherwise only those of the creation have one."""

    def successor(self, **changes: Any) -> Manifest:
        """The next generation."""
        return replace(self, generation=self.generation + 1, **changes)

    def save(self, path: Path) -> None:
        """Replace the manifest in folder ``path`` durably."""
        state = asdict(self)
        state["layout"] = [asdict(stored) for stored in self.layout.fields]
        state["derived"] = [asdict(derived) for derived in self.layout.derived]
        body = json.dumps(state, indent=1).encode()
        replace_file(path / NAME, f"{MAGIC} {FORMAT_VERSION} {crc32c(body):08x}\n".encode() + body)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read the manifest in folder ``path``.

        Raises:
            ValueError: when there is none, it is damaged, or of another format version.
        """
        where = path / NAME
        try:
            data = where.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(
                f"no vault at {path}: it has no {NAME} file; create one or give the vault's folder"
            ) from None
        line, _, body = data.partition(b"\n")
        words = line.decode("ascii", "replace").split()
        if len(words) != 3 or words[0] != MAGIC:
            raise ValueError(f"{where} is not a vault's manifest: it starts with {line[:20]!r}, expected {MAGIC!r}")
        if words[1] != str(FORMAT_VERSION):
            older = words[1].isdigit() and int(words[1]) < FORMAT_VERSION
            cure = "load the data into a new vault" if older else "update laser"
            raise ValueError(f"{where} has format version {words[1]}, this release reads {FORMAT_VERSION}; {cure}")
        if words[2] != f"{crc32c(body):08x}":
            raise ValueError(
                f"{where} is damaged at offset 0: checksum {crc32c(body):08x}, expected {words[2]}; restore it"
            )
        try:
            state = json.loads(body)
            derived = tuple(DerivedField(**found) for found in state.pop("derived"))
            state["layout"] = Layout(tuple(Field(**found) for found in state["layout"]), derived)
            state["admission"] = Admission(**state["admission"])
            state["segments"] = tuple(SegmentEntry(**entry) for entry in state["segments"])
            state["dictionaries"] = tuple(DictionaryEntry(**entry) for entry in state["dictionaries"])
            return cls(**state)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{where} was not written by a release of laser ({error}); create the vault anew"
            ) from None
