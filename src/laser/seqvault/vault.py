"""The store of user histories: append events, read the newest before a moment, as one array per field.

    with SeqVault.create("vault", schema) as vault:
        vault.append(users, {"timestamp": ..., "item": ..., "rating": ...})
        histories = vault.read([7, 9, 7], before=1_700_000_000, last_n=1000)
        histories["item"], histories.offsets

Writes go to a log and to memory, from there in packed chunks to segments. One process writes; any number read beside.

Legend of shape suffixes: N events of an append; I ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from laser.schema import Feature, Schema
from laser.seqvault.admission import Admission, Policy
from laser.seqvault.dictionary import DictionaryEntry, coded_fields
from laser.seqvault.layout import Field, Layout
from laser.seqvault.maintenance import LOW_WATER
from laser.seqvault.manifest import NAME, Manifest
from laser.seqvault.opened import OpenVault
from laser.seqvault.recovery import remove_shards
from laser.seqvault.syncing import Sync

if TYPE_CHECKING:
    from laser.seqvault.shards import Receipt

TAIL_BYTES = 64 << 20


class SeqVault(OpenVault):
    """A store of user histories in one folder; open it with ``create`` or ``open``.

    Safe to share between threads; reads overlap.
    """

    @classmethod
    def create(
        cls,
        path: Path | str,
        schema: Schema | Iterable[Feature | Field],
        *,
        late: Policy = "keep",
        duplicates: Policy = "keep",
        dictionaries: Iterable[str] | None = None,
        derived: Mapping[str, str] | None = None,
        sync: Sync = "interval",
        tail_bytes: int = TAIL_BYTES,
        maintenance_rate: float | None = None,
        low_water: float = LOW_WATER,
        cache_bytes: int = 0,
    ) -> SeqVault:
        """Make an empty vault and open it for writing.

        Args:
            path: its folder; made if missing.
            schema: whose ``event`` fields to store; or these fields, the timestamp first.
            late: what to do with events older than one their user already has: ``"keep"`` sorts them in, ``"drop"``
                leaves them out, ``"error"`` refuses the append.
            duplicates: the same for events equal in all fields to one their user already has. Anything but ``"keep"``
                reads the histories of the users concerned at each append.
            dictionaries: id fields whose values are kept once for the whole vault, as codes in each event; ``None``
                chooses them where they pay, by the events of the first segment and of each compaction.
            derived: fields that are not stored with events because they follow from an id, each with its id field:
                ``{"author": "item"}``. ``set_derived`` gives them values, which all reads have from then on. What must
                be as it was at the time of the event stays an ordinary field.
            sync: see ``open``.
            tail_bytes: see ``open``.
            maintenance_rate: see ``open``.
            low_water: see ``open``.
            cache_bytes: see ``open``.

        Raises:
            ValueError: when there is a vault already, or the fields cannot be stored.
        """
        folder, layout = Path(path), Layout.of(schema, derived)
        coded = dict.fromkeys([*(dictionaries or ()), *(field.key for field in layout.derived)])
        entries = tuple(DictionaryEntry(f.name, 0, 0) for f in coded_fields(layout, coded))
        policies = Admission(late, duplicates)
        manifest = Manifest(layout, policies, dictionaries=entries, choose_dictionaries=dictionaries is None)
        if (folder / NAME).exists():
            raise ValueError(f"there is a vault at {folder} already; open it, or remove the folder to start again")
        folder.mkdir(parents=True, exist_ok=True)
        manifest.save(folder)
        return cls(folder, "a", sync, tail_bytes, maintenance_rate, low_water, cache_bytes)

    @classmethod
    def open(
        cls,
        path: Path | str,
        mode: Literal["r", "a"] = "r",
        *,
        sync: Sync = "interval",
        tail_bytes: int = TAIL_BYTES,
        maintenance_rate: float | None = None,
        low_water: float = LOW_WATER,
        cache_bytes: int = 0,
    ) -> SeqVault:
        """Open a vault.

        Args:
            path: its folder.
            mode: ``"r"`` to read, beside any other process; ``"a"`` to append as well, one process at a time.
            sync: when appends become durable. ``"always"``: before ``append`` returns, nothing acknowledged is lost.
                ``"interval"``: within 10 ms, a power failure loses what was appended since; ``"none"``: when the
                operating system writes it. A killed process loses nothing in any of them.
            tail_bytes: memory for events not yet in a segment. There may be twice as many while these are written;
                appends that come faster than the disk takes them wait.
            maintenance_rate: bytes a second that the background may copy to reclaim room and keep files few; ``None``
                for no limit, 0 for no work in the background: checkpoints then happen within appends.
            low_water: share of live bytes below which a segment is rewritten.
            cache_bytes: memory for decoded histories of users that are read often; 0 for none. Reads that filter or
                want derived fields do without it.

        Raises:
            ValueError: when there is no vault, it is damaged or newer than this release, or another process writes.
        """
        if mode not in ("r", "a"):
            raise ValueError(f"mode is {mode!r}; expected 'r' to read or 'a' to append")
        return cls(path, mode, sync, tail_bytes, maintenance_rate, low_water, cache_bytes)

    def set_derived(self, field: str, ids: Any, values: Any) -> None:
        """Give a derived field its values for I ids, durably; other ids keep theirs, an id without any has 0.

        Args:
            field: its name.
            ids: ids [I] of the field that it follows from; of an id given twice the last value counts.
            values: a value for each id.

        Raises:
            ValueError: when the field is not derived, ids or values do not fit, or the vault is open for reading only.
            OSError: when they cannot be stored; everything stays as it was.
        """
        self._writing().set_derived(field, ids, values)

    def append(self, users: Any, events: Mapping[str, Any]) -> int:
        """Add N events; they can be read at once, by this object, and by others after their ``refresh``.

        All of them are stored, or none if the call raises.

        Returns:
            Events stored: N less those that the vault's policies for late and duplicate events left out.

        Args:
            users: integer ids [N], 0 ... 2**64 - 1, in any order.
            events: per field N values.

        Raises:
            ValueError: when users or events do not fit the vault's fields, or it is open for reading only.
            OSError: when they cannot be stored, for example because the disk is full.
        """
        return self._writing().append(users, events)

    def append_one(self, user: int, event: Mapping[str, Any]) -> int:
        """``append`` for one event of scalars, several times as fast.

        Args:
            user: integer id.
            event: one value per field.

        Raises:
            ValueError: as ``append``.
            OSError: as ``append``.
        """
        return self._writing().append_one(user, event)

    def load(
        self,
        source: Any,
        *,
        user: str = "user",
        columns: Mapping[str, str] | None = None,
        memory_bytes: int = 1 << 30,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Add the rows of Parquet files or of Arrow data, in any order, all of them or none.

        Rows that need more than ``memory_bytes`` while they are sorted go through temporary files in its folder.
        Under the vault's policies they count as having arrived in order of time.

        Args:
            source: a Parquet file, a folder of such, a list of both; or an Arrow table, data set or reader, or record
                batches.
            user: its column of users.
            columns: its columns of fields that are not named like them.
            memory_bytes: for events while they are sorted; the longest history must fit.
            progress: called with a number of rows read or stored; these add up to twice those of the source.

        Returns:
            Events stored.

        Raises:
            ValueError: when a file cannot be read, a column is missing or a value does not fit; names file, row group,
                row and column.
            OSError: when there is no room on the disk.
        """
        from laser.seqvault.exchange import ColumnNames, open_source
        from laser.seqvault.loading import by_time, parts_of

        writer, names = self._writing(), ColumnNames.matching(self.layout, user, columns)
        opened = open_source(source, names)
        parts = parts_of(opened, self.layout, names, memory_bytes, self.path, progress or (lambda rows: None))
        return writer.append_parts(by_time(parts, self.layout.names[0]) if self._catalog.selective else parts)

    def adopt(self, receipts: Iterable[Receipt]) -> int:
        """Make shards that other processes wrote part of the vault, all of them or none; see ``shards.write_shard``.

        Raises:
            ValueError: when shards share a user, a user has events in the vault already, or a file is not what its
                receipt says.
            OSError: when there is no room on the disk; the shards stay for another attempt.

        Returns:
            Events added.
        """
        from laser.seqvault.shards import Shards

        writer, known = self._writing(), list(receipts)
        writer.adopt(Shards(self.path, self.layout, known))
        remove_shards(self.path)
        return sum(receipt.events for receipt in known)

    def delete_user(self, user: int) -> bool:
        """Forget a user at once; the bytes leave the disk with the next ``compact``. Whether there were events."""
        return self._writing().delete_user(user)

    def checkpoint(self) -> None:
        """Move recent events from log and memory into a segment.

        Raises:
            OSError: when it cannot be written; everything stays as it was.
        """
        self._writing().checkpoint()

    def compact(self, *, keep_last: int | None = None, keep_since: int | None = None) -> None:
        """Rewrite all segments without what was deleted or superseded, chunks cut anew from the newest event.

        Args:
            keep_last: retention by count: of each user only this many events, the newest, stay.
            keep_since: retention by age: only events with at least this timestamp stay.

        Raises:
            ValueError: when the vault is open for reading, or ``keep_last`` is negative.
            OSError: when there is no room for the new segments beside the old; everything stays as it was.
        """
        if keep_last is not None and keep_last < 0:
            raise ValueError(f"keep_last is {keep_last}; expected a number of events of at least 0, or None for all")
        self._writing().compact(keep_last, keep_since)

    def sync(self) -> None:
        """Make everything appended so far durable, whatever the policy.

        Raises:
            OSError: when the system cannot.
        """
        self._writing().sync()
