"""The store and its peers behind one face: build from blocks, read the newest events of a batch, append one event.

Every engine returns the six columns of ``READ`` packed one user after the other, so that all do the same work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from workload import FIELDS, LAST_N, READ, Events, Workload

from laser.seqvault import SeqVault

DTYPES = {field.name: np.dtype(field.dtype) for field in FIELDS}
ROW_BYTES = sum(dtype.itemsize for dtype in DTYPES.values())


def pack_blob(events: Events) -> bytes:
    """Columns, timestamps as steps, zstd level 3: the encoding that a careful team would choose for a value."""
    first = events["time"][:1]
    steps = np.diff(events["time"], prepend=first)
    raw = b"".join([first.tobytes(), steps.tobytes(), *(events[name].tobytes() for name in list(DTYPES)[1:])])
    return zstandard.ZstdCompressor(3).compress(raw)


class Unpacker:
    """Inverse of ``pack_blob``."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()

    def __call__(self, blob: bytes) -> Events:
        raw = self.decompressor.decompress(blob)
        count = (len(raw) - 8) // ROW_BYTES
        events, at = {}, 8
        for name, dtype in DTYPES.items():
            events[name] = np.frombuffer(raw, dtype, count, at)
            at += count * dtype.itemsize
        events["time"] = np.cumsum(events["time"]) + np.frombuffer(raw, np.int64, 1)
        return events


def joined(parts: list[Events]) -> Events:
    return {name: np.concatenate([part[name] for part in parts]) for name in READ}


def newest(events: Events) -> Events:
    return {name: events[name][-LAST_N:] for name in READ}


class SeqVaultEngine:
    """The store as it comes: dictionaries where they pay, raw ids out."""

    name = "SeqVault"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, workload: Workload) -> None:
        with SeqVault.create(self.folder, FIELDS) as vault:
            for users, lengths, events in workload.blocks():
                vault.append(np.repeat(users, lengths), events)

    def open(self) -> None:
        self.vault = SeqVault.open(self.folder, "a", sync="none")

    def read(self, users: np.ndarray) -> Events:
        return self.vault.read(users, last_n=LAST_N, fields=READ).fields

    def append(self, user: int, event: Events) -> None:
        self.vault.append_one(user, {name: values[0] for name, values in event.items()})

    def close(self) -> None:
        self.vault.close()


class DerivedEngine(SeqVaultEngine):
    """Author and category kept once for each item instead of with each event."""

    name = "SeqVault, derived"

    def build(self, workload: Workload) -> None:
        derived = {"author": "item", "category": "item"}
        catalogue = workload.catalogue()
        with SeqVault.create(self.folder, FIELDS, derived=derived) as vault:
            for users, lengths, events in workload.blocks():
                stored = {name: values for name, values in events.items() if name not in derived}
                vault.append(np.repeat(users, lengths), stored)
            vault.set_derived("author", catalogue.items, catalogue.authors)
            vault.set_derived("category", catalogue.items, catalogue.categories)

    append = None


class ViewEngine(SeqVaultEngine):
    """The files of ``SeqVaultEngine``, read in another way: as codes, or through a cache of decoded chunks."""

    append = None

    def __init__(self, folder: Path, name: str, *, ids: str = "raw", cache_bytes: int = 0) -> None:
        super().__init__(folder)
        self.name, self.ids, self.cache_bytes = name, ids, cache_bytes

    def build(self, workload: Workload) -> None:
        pass

    def open(self) -> None:
        self.vault = SeqVault.open(self.folder, cache_bytes=self.cache_bytes)

    def read(self, users: np.ndarray) -> Events:
        return self.vault.read(users, last_n=LAST_N, fields=READ, ids=self.ids).fields


class CompactedEngine(SeqVaultEngine):
    """After ``compact``: older chunks are compressed with zstd."""

    name = "SeqVault, compacted"
    append = None

    def build(self, workload: Workload) -> None:
        shutil.copytree(self.folder.parent / "seqvault", self.folder)
        with SeqVault.open(self.folder, "a") as vault:
            vault.compact()


class KeyValueEngine:
    """What RocksDB, LMDB and Redis share: one blob per user, or chunks of at most ``LAST_N`` events, newest apart."""

    def __init__(self, folder: Path, chunked: bool) -> None:
        self.folder, self.chunked, self.unpack = folder, chunked, Unpacker()

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        raise NotImplementedError

    def put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        raise NotImplementedError

    def build(self, workload: Workload) -> None:
        self.open()
        for users, lengths, events in workload.blocks():
            pairs, stop = [], 0
            for user, length in zip(users, lengths):
                start, stop = stop, stop + length
                cuts = [start, *range(stop - LAST_N, start, -LAST_N)[::-1], stop] if self.chunked else [start, stop]
                for number, (low, high) in enumerate(pairwise(cuts)):
                    newest_first = len(cuts) - 2 - number
                    own = {name: values[low:high] for name, values in events.items()}
                    pairs.append((key(user, newest_first), pack_blob(own)))
            self.put(pairs)
        self.close()

    def read(self, users: np.ndarray) -> Events:
        return joined([newest(self.unpack(blob)) for blob in self.get([key(user, 0) for user in users]) if blob])

    def append(self, user: int, event: Events) -> None:
        """Read, add, write: what an application does whose value is the history."""
        (blob,) = self.get([key(np.uint64(user), 0)])
        old = self.unpack(blob) if blob else {name: values[:0] for name, values in event.items()}
        self.put([(key(np.uint64(user), 0), pack_blob({n: np.concatenate([old[n], event[n]]) for n in DTYPES}))])


def key(user: np.uint64, chunk: int) -> bytes:
    return int(user).to_bytes(8, "big") + chunk.to_bytes(2, "big")


class RocksEngine(KeyValueEngine):
    def __init__(self, folder: Path, chunked: bool) -> None:
        super().__init__(folder, chunked)
        self.name = f"RocksDB {'chunked' if chunked else 'whole value'}"

    def open(self) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(rocksdict.DBCompressionType.none())  # the values are compressed already
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(rocksdict.Cache(256 << 20))
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        # Reopening ignores the options unless the column family is named too.
        families = {"default": options} if self.folder.exists() else None
        self.db: Any = rocksdict.Rdict(str(self.folder), options, column_families=families)

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        return self.db[keys]

    def put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        import rocksdict

        if len(pairs) == 1:
            self.db[pairs[0][0]] = pairs[0][1]
            return
        batch = rocksdict.WriteBatch(raw_mode=True)
        for name, value in pairs:
            batch.put(name, value)
        self.db.write(batch)

    def close(self) -> None:
        self.db.flush()
        self.db.close()


class LmdbEngine(KeyValueEngine):
    name = "LMDB chunked"

    def open(self) -> None:
        import lmdb

        self.db: Any = lmdb.open(str(self.folder), map_size=1 << 37, sync=False, readahead=False)

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        with self.db.begin(buffers=True) as transaction:
            return [bytes(value) if (value := transaction.get(name)) else None for name in keys]

    def put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self.db.begin(write=True) as transaction:
            for name, value in pairs:
                transaction.put(name, value)

    def close(self) -> None:
        self.db.close()


class RedisEngine(KeyValueEngine):
    name = "Redis whole value"

    def open(self) -> None:
        import redis

        self.folder.mkdir(parents=True, exist_ok=True)
        socket = self.folder / "socket"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(self.folder), "--appendonly", "yes"]
        command = ["redis-server", *options, "--save", "", "--loglevel", "warning"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self.db: Any = redis.Redis(unix_socket_path=str(socket))
        for _ in range(600):
            try:
                self.db.ping()
                return
            except redis.exceptions.RedisError:
                time.sleep(0.1)
        raise RuntimeError("redis-server did not answer within a minute")

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        return self.db.mget(keys)

    def put(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self.db.mset(dict(pairs))

    def close(self) -> None:
        self.db.close()
        self.process.terminate()
        self.process.wait()


class MemmapEngine:
    """Raw columns and offsets: no compression, no append."""

    name = "numpy memmap"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, workload: Workload) -> None:
        self.folder.mkdir(parents=True)
        files = {name: (self.folder / name).open("wb") for name in DTYPES}
        for _, _, events in workload.blocks():
            for name, file in files.items():
                file.write(events[name].tobytes())
        for file in files.values():
            file.close()
        self.index = (workload.users, np.cumsum(workload.lengths))
        np.save(self.folder / "offsets.npy", np.stack([workload.users, self.index[1].astype(np.uint64)]))

    def open(self) -> None:
        users, stops = np.load(self.folder / "offsets.npy")
        order = np.argsort(users)
        self.users, self.stops = users[order], stops[order].astype(np.int64)
        starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)
        self.starts = starts[order]
        self.columns = {name: np.memmap(self.folder / name, DTYPES[name], "r") for name in READ}

    def read(self, users: np.ndarray) -> Events:
        at = np.searchsorted(self.users, users)
        stops = self.stops[at]
        starts = np.maximum(self.starts[at], stops - LAST_N)
        spans = list(zip(starts.tolist(), stops.tolist()))
        return {name: np.concatenate([column[a:b] for a, b in spans]) for name, column in self.columns.items()}

    append = None

    def close(self) -> None:
        del self.columns


def engines(folder: Path) -> list[Any]:
    """All engines that this machine can run, and a line for each that it cannot."""
    own = folder / "seqvault"
    found: list[Any] = [
        SeqVaultEngine(own),
        ViewEngine(own, "SeqVault, codes", ids="codes"),
        ViewEngine(own, "SeqVault, 256 MB cache", cache_bytes=256 << 20),
        DerivedEngine(folder / "derived"),
        CompactedEngine(folder / "compacted"),
        MemmapEngine(folder / "memmap"),
    ]
    for module, makers in (
        (
            "rocksdict",
            [lambda: RocksEngine(folder / "rocks", False), lambda: RocksEngine(folder / "rocks_chunked", True)],
        ),
        ("lmdb", [lambda: LmdbEngine(folder / "lmdb", True)]),
        ("redis", [lambda: RedisEngine(folder / "redis", False)]),
    ):
        try:
            __import__(module)
        except ImportError:
            print(f"not run: {module} is not installed (pip install -r benchmarks/seqvault/requirements.txt)")
            continue
        if module == "redis" and shutil.which("redis-server") is None:
            print("not run: redis-server is not on PATH")
            continue
        found += [make() for make in makers]
    return found


def bytes_on_disk(folder: Path) -> int:
    """Bytes allocated: LMDB's file is sparse."""
    return sum(os.stat(path).st_blocks * 512 for path in folder.rglob("*") if path.is_file())
