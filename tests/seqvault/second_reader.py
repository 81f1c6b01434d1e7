"""A reader of vaults written from docs/seqvault_format.md alone: plain Python, slow, and nothing of laser in it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import zstandard

CODES = {"int8": "b", "int16": "h", "int32": "i", "int64": "q", "float32": "f", "float64": "d"}
CODES |= {"uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q"}
ALL = 2**64 - 1


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def area_checksum(area: bytes) -> int:
    words = [area[at : at + 8] for at in range(0, len(area), 8)]
    return crc32c(struct.pack("<4I", *(crc32c(b"".join(words[j::4])) for j in range(4))))


def unpacked(data: bytes, at: int, count: int, width: int) -> tuple[list[int], int]:
    """``count`` values of ``width`` bits from byte ``at``, and where the next list begins."""
    size = (count * width + 63) // 64 * 8
    bits = int.from_bytes(data[at : at + size], "little")
    return [bits >> i * width & (1 << width) - 1 for i in range(count)], at + size


def column(data: bytes, at: int, descriptor: int, events: int) -> tuple[list[int], int]:
    """Values of a column whose area begins at byte ``at``, and where the next area begins."""
    codec, width, second = descriptor & 7, descriptor >> 3 & 127, descriptor >> 10 & 127
    count, start, base = descriptor >> 17 & 1023, at, 0
    if descriptor >> 27 & 1:
        base, at = int.from_bytes(data[at : at + 8], "little"), at + 8
    if codec in (0, 1):
        values, at = unpacked(data, at, events, width)
        positions, at = unpacked(data, at, count, (events - 1).bit_length())
        listed, at = unpacked(data, at, count, second)
        for position, value in zip(positions, listed):
            values[position] = value
    elif codec == 2:
        entries, at = unpacked(data, at, count, second)
        codes, at = unpacked(data, at, events, width)
        values = [entries[code] for code in codes]
    else:
        planes, at = zstandard.ZstdDecompressor().decompress(data[at : at + 8 * count]), at + 8 * count
        values = [sum(planes[p * events + i] << 8 * p for p in range(width // 8)) for i in range(events)]
    assert area_checksum(data[start:at]) == descriptor >> 32
    if codec in (1, 4):
        for i in range(1, events):
            values[i] += values[i - 1]
    return [base + value & ALL for value in values], at


def chunk(data: bytes, at: int) -> tuple[int, list[list[int]]]:
    """User and columns of the chunk at byte ``at``."""
    head, user = struct.unpack_from("<QQ", data, at)
    events, columns = head >> 8 & 1023, head >> 18 & 0x3FFF
    assert head & 0xFF == 0xC7
    header = (head & 0xFFFFFFFF).to_bytes(8, "little") + data[at + 8 : at + 16 + 8 * columns]
    assert crc32c(header) == head >> 32
    descriptors = struct.unpack_from(f"<{columns}Q", data, at + 16)
    place, found = at + 16 + 8 * columns, []
    for descriptor in descriptors:
        values, place = column(data, place, descriptor, events)
        found.append(values)
    return user, found


def of_type(bits: int, dtype: str) -> Any:
    """A value of a column or of an id from its 64 bits."""
    code = CODES[dtype]
    return struct.unpack("<" + code, bits.to_bytes(8, "little")[: struct.calcsize(code)])[0]


def read_ids(path: Path, size: int, end: int) -> list[int]:
    data, at, ids = path.read_bytes()[:end], 64, []
    while at < end:
        magic, checksum, first, count = struct.unpack_from("<IIQQ", data, at)
        stop = at + 24 + count * size
        assert (magic, first, checksum) == (0x4B4C4249, len(ids), crc32c(data[at + 8 : stop]))
        ids += [int.from_bytes(data[place : place + size], "little") for place in range(at + 24, stop, size)]
        at = stop
    return ids


def read_table(path: Path, dtype: str, length: int) -> dict[int, tuple]:
    data = path.read_bytes()
    magic, version, checksum, rows, row_bytes = struct.unpack_from("<8sIIQQ", data)
    assert (magic, version, checksum) == (b"LASERTAB", 1, crc32c(data[16:]))
    ids = struct.unpack_from(f"<{rows}Q", data, 64)
    form = f"<{length}{CODES[dtype]}"
    return {user: struct.unpack_from(form, data, 64 + 8 * rows + row_bytes * i) for i, user in enumerate(ids)}


class Vault:
    """All of a vault in memory: ``histories`` is a list of events (tuples of fields' values) per user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        line, _, body = (folder / "MANIFEST").read_bytes().partition(b"\n")
        magic, version, checksum = line.split()
        assert (magic, version, int(checksum, 16)) == (b"LASERVAULT", b"3", crc32c(body))
        self.state = json.loads(body)
        self.layout = self.state["layout"]
        self.histories: dict[int, list[list[dict]]] = {}  # chunks of events, oldest first
        self.ids = {}
        names = [field["name"] for field in self.layout]
        for entry in self.state["dictionaries"]:
            position = names.index(entry["field"])
            size = struct.calcsize(CODES[self.layout[position]["dtype"]])
            path = folder / f"ids-{position:04d}.ids"
            self.ids[entry["field"]] = read_ids(path, size, entry["bytes"]) if entry["bytes"] else []
        for entry in self.state["segments"]:
            self._segment((folder / f"segment-{entry['number']:08d}.seg").read_bytes())
        self._logs()

    def _segment(self, data: bytes) -> None:
        magic, _, version, offset, entries, checksum = struct.unpack_from("<8sIIQQI", data, len(data) - 64)
        directory = data[offset : offset + 40 * entries]
        assert (data[:8], magic, version, checksum) == (b"LASERSEG", b"LASEREND", 2, crc32c(directory))
        for at in range(0, len(directory), 40):
            user, first, last, place, _, count, keep = struct.unpack_from("<QqqIIII", directory, at)
            chunks = self.histories.setdefault(user, [])
            del chunks[keep:]
            if count:
                owner, columns = chunk(data, 8 * place)
                events = [self._event(values) for values in zip(*columns)]
                assert (owner, len(events), events[0]["time"], events[-1]["time"]) == (user, count, first, last)
                chunks.append(events)

    def _event(self, values: tuple[int, ...]) -> dict:
        event, at = {}, 0
        for field in self.layout:
            name, bits = field["name"], values[at : at + field["length"]]
            if name in self.ids:
                bits = [self.ids[name][code] for code in bits]
            event[name] = tuple(of_type(value, field["dtype"]) for value in bits)
            at += field["length"]
        return event | {"time": event["time"][0]}

    def _logs(self) -> None:
        number, expected = self.state["first_log"], self.state["first_sequence"]
        while (path := self.folder / f"log-{number:08d}.wal").exists():
            data, at = path.read_bytes(), 64
            while at + 32 <= len(data):
                magic, checksum, sequence, events, kind, size = struct.unpack_from("<IIQIIQ", data, at)
                payload = data[at + 32 : at + 32 + size]
                if magic != 0x44524352 or sequence != expected or checksum != crc32c(data[at + 8 : at + 32 + size]):
                    break
                self._record(kind & 0xFFFF, events, payload)
                at, expected = at + 32 + size, expected + 1
            number += 1

    def _record(self, kind: int, count: int, payload: bytes) -> None:
        users, at = struct.unpack_from(f"<{count}Q", payload), 8 * count
        if kind == 2:
            for user in users:
                self.histories.pop(user, None)
            return
        events: list[dict] = [{} for _ in users]
        for field in self.layout:
            form = f"<{field['length']}{CODES[field['dtype']]}"
            for event in events:
                event[field["name"]] = struct.unpack_from(form, payload, at)
                at += struct.calcsize(form)
        for user, event in zip(users, events):
            self.histories.setdefault(user, []).append([event | {"time": event["time"][0]}])

    def read(self, user: int) -> list[dict]:
        """Events of a user, oldest first; of equal time, the earlier arrival first."""
        events = [event for part in self.histories.get(user, []) for event in part]
        return sorted(events, key=lambda event: event["time"])
