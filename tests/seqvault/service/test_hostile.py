"""Clients that hang, send too much or send rubbish, and a service that dies: others are served, nothing is lost."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
import zstandard

from laser.seqvault import Field, SeqVault
from laser.seqvault.layout import Layout
from laser.seqvault.service import RemoteVault, protocol
from laser.seqvault.service.authorization import Tokens
from laser.seqvault.service.limits import Busy, Gate, Limits
from laser.seqvault.service.server import VaultServer
from tests.seqvault.conftest import FIELDS, make_events
from tests.seqvault.service.conftest import READER, WRITER, Served, Start

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How an HTTP/2 client begins: the preface and empty settings."""
SMALL = ("--limits.request_bytes", 1 << 20, "--limits.call_seconds", 4, "--limits.idle_seconds", 2)
AUTHORIZED = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {WRITER}".encode())], timeout=60)


def closed(opened: socket.socket, seconds: float) -> bool:
    """Whether the other side closes the connection within so many seconds."""
    end = time.monotonic() + seconds
    opened.settimeout(0.2)
    while time.monotonic() < end:
        try:
            if not opened.recv(1 << 16):
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_requests_of_any_size_are_cut_off(filled: Path, start: Start) -> None:
    served = start(filled, *SMALL, "--limits.answer_bytes", 4096)
    with served.connect() as remote:
        remote.stats()
        before = served.memory()
        with pytest.raises(ValueError, match="more than 1048576; send it in parts"):
            remote.append(np.zeros(30_000, np.uint64), make_events(np.random.default_rng(), 30_000))
        with pytest.raises(ValueError, match="more than 4096; ask for fewer"):
            remote.read(np.arange(40))
        with served.connect(None) as stranger:  # who has no token must not fill the memory either
            huge = flight.Action("append", bytes(300_000_000))
            with pytest.raises((flight.FlightError, pa.ArrowException, OSError)):
                list(stranger._client.do_action(huge, flight.FlightCallOptions(timeout=60)))
        assert served.memory() - before < 250_000_000
        bomb = zstandard.ZstdCompressor().compress(bytes(200_000_000))
        with pytest.raises(flight.FlightServerError, match="unpacks to 200000000 bytes"):
            list(remote._client.do_action(flight.Action("append", bomb), AUTHORIZED))
        assert remote.stats()["events"] == 6000
        assert 'connections_closed_total{reason="request_bytes"} 1' in remote.metrics()


def test_clients_that_hang_are_dropped_and_others_served(path: Path, start: Start) -> None:
    with SeqVault.create(path, [Field("time", "int64"), Field("items", "int64", 60)]) as vault:
        times = np.arange(140_000)
        vault.append(times % 3, {"time": times, "items": np.tile(times[:, None], 60)})
    served = start(path, *SMALL)
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(3)]
    silent[1].sendall(PREFACE)
    silent[2].sendall(PREFACE + bytes([0, 0x40, 0, 0, 0, 0, 0, 0, 1]) + b"x" * 99)  # half a frame
    with served.connect() as stuck, served.connect() as remote:
        ticket = flight.Ticket(protocol.encode_read(np.arange(3)))
        taken = stuck._client.do_get(ticket, AUTHORIZED)  # 68 MB, more than buffers on the way hold; never read
        assert len(remote.read([1], last_n=9)["time"]) == 9
        assert all(closed(each, 30) for each in silent)
        deadline = time.monotonic() + 60
        while 'connections_closed_total{reason="call_seconds"}' not in (told := remote.metrics()):
            assert time.monotonic() < deadline, told
            time.sleep(0.1)
        with pytest.raises((flight.FlightError, pa.ArrowException)):
            taken.read_all()
        assert len(remote.read([1], last_n=9)["time"]) == 9
        while "laser_vault_open_answer_bytes 0\n" not in (told := remote.metrics()):
            assert time.monotonic() < deadline, told
            time.sleep(0.1)


def test_only_so_many_run_and_wait() -> None:
    gate = Gate(Limits(running=1, waiting=1, wait_seconds=0.2, open_answer_bytes=100))
    refused: list[str] = []

    def enter() -> None:
        try:
            with gate.entered():
                pass
        except Busy as error:
            refused.append(str(error))

    with gate.entered():
        threads = [threading.Thread(target=enter) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(refused) == ["1 requests wait already; try again later"] * 2 + [
        "no turn within 0.2 s; try again later"
    ]
    enter()
    assert len(refused) == 3
    gate.open_answer(500)
    with pytest.raises(Busy, match="have not been taken"):
        gate.open_answer(1)
    gate.close_answer(500)
    gate.open_answer(1)


def mutated(rng: np.random.Generator, body: bytes) -> bytes:
    """A request with some of its bytes changed, cut off, doubled or made up."""
    kind, data = rng.integers(6), bytearray(body)
    if kind == 0:
        return rng.bytes(int(rng.integers(0, 400)))
    if kind == 1:
        return bytes(data[: rng.integers(len(data))])
    if kind == 2:
        return bytes(data) + bytes(data)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(len(data)))
        data[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)]))
    return zstandard.ZstdCompressor().compress(bytes(data)) if kind == 5 else bytes(data)


def test_fuzzed_requests_are_refused_or_valid(rng: np.random.Generator) -> None:
    layout = Layout(FIELDS)
    events = make_events(rng, 20)
    read = protocol.encode_read(np.arange(20), before=np.arange(20), last_n=5, fields=["item"], where={"delta": [1]})
    append = protocol.encode_append(layout, np.arange(20), events, zstd=False)
    refused = 0
    for _ in range(3000):
        try:
            users, found = protocol.decode_append(mutated(rng, append), layout, 1 << 20)
            assert all(len(values) == len(users) for values in found.values())
        except ValueError:
            refused += 1
        try:
            protocol.decode_read(mutated(rng, read), 1 << 20)
        except ValueError:
            refused += 1
    assert refused > 2000


def test_compressed_or_dictionary_columns_are_refused() -> None:
    batch = pa.record_batch({"user": pa.array([1] * 1000, pa.uint64())})
    for packed, expected in (
        (ipc(batch, pa.ipc.IpcWriteOptions(compression="zstd")), "compressed buffers"),
        (ipc(pa.record_batch({"user": batch.column(0).dictionary_encode()})), "something else|dictionaries"),
        (ipc(pa.record_batch({"user": pa.array([None], pa.uint64())})), "missing values"),
        (ipc(pa.record_batch({"user": pa.array([[1]])})), "fixed size"),
        (ipc(pa.record_batch({"who": pa.array([1])})), "has the columns who: int64; expected user: uint64"),
        (ipc(batch.replace_schema_metadata({protocol.OPTIONS: b"[" * 10**5})), "not JSON"),
        (ipc(batch.replace_schema_metadata({protocol.OPTIONS: b'{"last_n": true}'})), "right type"),
        (ipc(batch.replace_schema_metadata({protocol.OPTIONS: b'{"where": {"a": 1}}'})), "list of values"),
        (b"", "ends before|no Arrow stream"),
    ):
        with pytest.raises(ValueError, match=expected):
            protocol.decode_read(packed, 1 << 20)


def ipc(batch: pa.RecordBatch, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_a_fuzzed_service_lives(served: Served, rng: np.random.Generator) -> None:
    append = protocol.encode_append(Layout(FIELDS), np.arange(20), make_events(rng, 20), zstd=False)
    read = protocol.encode_read(np.arange(20), last_n=5)
    with served.connect() as remote:
        for _ in range(150):
            for call in (
                lambda: list(remote._client.do_action(flight.Action("append", mutated(rng, append)), AUTHORIZED)),
                lambda: remote._client.do_get(flight.Ticket(mutated(rng, read)), AUTHORIZED).read_all(),
            ):
                with contextlib.suppress(flight.FlightError, pa.ArrowException):
                    call()
        assert remote.health()["status"] == "serving"
        assert 'status="failed"' not in remote.metrics()
    assert served.process.poll() is None


def keep_appending(location: str, writer: int, acknowledged: list[int], ended: threading.Event) -> None:
    """Append events of one user one after the other, each until it is acknowledged."""
    number = 0
    with RemoteVault(location, WRITER, timeout=30) as remote:
        while not ended.is_set():
            try:
                remote.append([writer], {"time": [number], "item": [number]})
            except (OSError, ValueError):
                time.sleep(0.05)
                continue
            acknowledged[writer] = number = number + 1


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])])
def test_killed_under_traffic_nothing_acknowledged_is_lost(path: Path, start: Start, rounds: int) -> None:
    SeqVault.create(path, [Field("time", "int64"), Field("item", "int64")], duplicates="drop").close()
    served = start(path)
    ended, acknowledged = threading.Event(), [0, 0, 0]
    threads = [
        threading.Thread(target=keep_appending, args=(served.location, writer, acknowledged, ended))
        for writer in range(3)
    ]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(rounds):
            seen = sum(acknowledged)
            deadline = time.monotonic() + 60
            while sum(acknowledged) < seen + 30:
                assert time.monotonic() < deadline, acknowledged
                time.sleep(0.05)
            assert served.stop(signal.SIGKILL if round_ % 2 == 0 else signal.SIGTERM) == (-9 if round_ % 2 == 0 else 0)
            known = list(acknowledged)
            with SeqVault.open(path) as vault:
                for writer, count in enumerate(known):
                    assert len(vault.read([writer])["time"]) >= count
            served = start(path, port=served.port)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert served.stop() == 0
    with SeqVault.open(path) as vault:
        for writer, count in enumerate(acknowledged):
            assert vault.read([writer])["time"].tolist() == list(range(count))
        assert vault.check() == []


def test_a_lost_append_is_not_repeated_where_it_could_be_stored_twice(path: Path, start: Start) -> None:
    SeqVault.create(path, [Field("time", "int64")]).close()
    served = start(path)
    with served.connect(timeout=2) as remote:
        assert remote.append([1], {"time": [1]}) == 1
        served.stop(signal.SIGKILL)
        with pytest.raises(ConnectionError, match="is not known: read before"):
            remote.append([1], {"time": [2]})
        with pytest.raises(OSError, match="is not available"):
            remote.read([1])


def test_what_a_caller_has_given_up_is_not_done(path: Path, start: Start) -> None:
    SeqVault.create(path, [Field("time", "int64")]).close()
    served = start(path)
    with served.connect() as hasty, served.connect() as patient:
        assert hasty.append([1], {"time": [1]}) == 1
        hasty._timeout = 0.5  # from now on: the first calls take longer where the machine is busy
        served.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match=r"no answer within 0.5 s"):
                hasty.append([1], {"time": [2]})
        finally:
            served.process.send_signal(signal.SIGCONT)
        assert patient.append([1], {"time": [3]}) == 1
        assert patient.read([1])["time"].tolist() == [1, 3]


def test_who_gives_up_while_waiting_for_a_turn_is_not_served(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SeqVault.create(path, [Field("time", "int64")]) as vault:
        begun, go_on, read = threading.Event(), threading.Event(), vault.read

        def slow(*users: object, **options: object) -> object:
            begun.set()
            assert go_on.wait(60)
            return read(*users, **options)

        monkeypatch.setattr(vault, "read", slow)
        limits = Limits(running=1, wait_seconds=60)
        server = VaultServer(vault, "grpc://127.0.0.1:0", Tokens((), (), "write"), limits)
        location = f"grpc://127.0.0.1:{server.port}"
        try:
            with RemoteVault(location, timeout=60) as patient, RemoteVault(location, timeout=60) as hasty:
                assert hasty.append([1], {"time": [1]}) == 1
                hasty._timeout = 0.5
                busy = threading.Thread(target=patient.read, args=([1],))
                busy.start()
                assert begun.wait(60)
                with pytest.raises(TimeoutError, match=r"no answer within 0.5 s"):
                    hasty.append([1], {"time": [2]})
                time.sleep(1)  # until the service has heard of it, which takes longer where the machine is busy
                go_on.set()
                busy.join()
        finally:
            go_on.set()
            server.stop(5.0)
        assert read([1])["time"].tolist() == [1]


def test_a_stopping_service_finishes_what_runs(filled: Path, start: Start) -> None:
    served = start(filled, "--drain_seconds", 20)
    outcomes: list[str] = []

    def read() -> None:
        with served.connect(READER, timeout=0.5) as remote:
            while True:
                try:
                    remote.read(np.arange(40))
                    outcomes.append("read")
                except OSError as error:
                    outcomes.append(str(error))
                    return

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while outcomes.count("read") < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.stop(signal.SIGTERM) == 0
    for thread in threads:
        thread.join()
    assert all(told == "read" or "not available" in told for told in outcomes), set(outcomes)
    assert served.process.stdout is not None
    assert json.loads(served.process.stdout.read().splitlines()[-1]) == {"stopped": str(filled)}
