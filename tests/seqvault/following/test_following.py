"""Every event of a stream is in the vault once, whenever the follower, the vault or the source dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from laser.cli import main as program
from laser.seqvault import Field, Ragged, SeqVault
from laser.seqvault.following import Follower
from laser.seqvault.following.folder import ArrowFolder
from laser.seqvault.marks import MARK_USER
from tests.seqvault.cluster.conftest import free_ports, require_redis, wait_until
from tests.seqvault.service.conftest import WRITER, Start, start, tokens  # noqa: F401

FIELDS = (Field("time", "int64"), Field("item", "uint32"), Field("pair", "int16", 2))
USERS = 5


def table(first: int, count: int) -> pa.Table:
    """Events numbered from ``first`` on."""
    numbers = np.arange(first, first + count)
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers % 100, 2).astype(np.int16)), 2)
    return pa.table({"who": numbers % USERS, "time": numbers, "item": numbers.astype(np.uint32), "pair": pairs})


def put(folder: Path, name: str, content: pa.Table) -> None:
    """A file that appears whole."""
    temporary = folder / f".{name}"
    if name.endswith(".parquet"):
        parquet.write_table(content, temporary, row_group_size=70)
    else:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, content.schema) as writer:
            writer.write_table(content, max_chunksize=33)
    temporary.rename(folder / name)


def assert_once(vault: Any, count: int) -> None:
    """The vault has the events 0 ... count - 1, each once."""
    found = vault.read(np.arange(USERS))
    for user in range(USERS):
        expected = np.arange(user, count, USERS)
        np.testing.assert_array_equal(found.of(user)["time"], expected)
        np.testing.assert_array_equal(found.of(user)["item"], expected)
        np.testing.assert_array_equal(found.of(user)["pair"][:, 1], expected % 100)


@pytest.fixture
def arriving(tmp_path: Path) -> Path:
    (tmp_path / "arriving").mkdir()
    return tmp_path / "arriving"


def follow(vault: Any, arriving: Path, state: Path, **options: Any) -> int:
    source = ArrowFolder(arriving, user="who")
    return Follower(vault, source, state, batch_events=50, **options).run(until_idle=True)


def test_files_are_followed_in_order(path: Path, arriving: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with SeqVault.create(path, FIELDS) as vault:
        assert follow(vault, arriving, state) == 0
        put(arriving, "0001.parquet", table(0, 130))
        put(arriving, "0002.arrow", table(130, 80))
        (arriving / "_SUCCESS").touch()
        assert follow(vault, arriving, state) == 210
        assert_once(vault, 210)
        assert follow(vault, arriving, state) == 0
        put(arriving, "0003.parquet", table(210, 0))
        put(arriving, "0004.parquet", table(210, 1))
        assert follow(vault, arriving, state) == 1
        vault.compact(keep_since=0)  # does not forget where the follower is
        assert follow(vault, arriving, state) == 0
        assert_once(vault, 211)
        with pytest.raises(ValueError, match="knows nothing"):
            follow(vault, arriving, tmp_path / "other.json")


def test_marks_are_no_users_and_no_events(path: Path, arriving: Path, tmp_path: Path) -> None:
    put(arriving, "1.parquet", table(0, 130))
    with SeqVault.create(path, FIELDS) as vault:
        follow(vault, arriving, tmp_path / "state.json")
        for step in (lambda: None, vault.checkpoint, lambda: vault.compact(keep_last=1000)):
            step()
            assert vault.users().tolist() == list(range(USERS))
            found = vault.stats()
            assert (found["users"], found["events"], found["marks"]) == (USERS, 130, 3)
        put(arriving, "2.parquet", table(130, 10))
        follow(vault, arriving, tmp_path / "state.json")
        found = vault.stats()
        assert (found["users"], found["events"], found["marks"]) == (USERS, 140, 4)
        assert vault.lengths([MARK_USER]).tolist() == [4]
        vault.delete_user(MARK_USER)
        assert vault.users().tolist() == list(range(USERS))
        assert vault.stats()["marks"] == 0
        vault.append([MARK_USER], {"time": [5], "item": [1], "pair": [[0, 0]]})  # somebody after all
        assert vault.users().tolist() == [*range(USERS), MARK_USER]
        assert vault.stats()["users"] == USERS + 1


class Failing:
    """A vault that stops working at the ``at``-th append, before or after it has stored the events."""

    def __init__(self, vault: SeqVault, at: int, stores: bool) -> None:
        self._vault, self._left, self._stores = vault, at, stores
        self.layout = vault.layout

    def read(self, users: Any, **options: Any) -> Ragged:
        return self._vault.read(users, **options)

    def append(self, users: Any, events: Mapping[str, Any]) -> int:
        self._left -= 1
        if self._left == 0 and not self._stores:
            raise KeyboardInterrupt
        stored = self._vault.append(users, events)
        if self._left == 0:
            raise KeyboardInterrupt
        return stored


@pytest.mark.parametrize("stores", [False, True])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_interrupted_append_is_settled_by_its_mark(
    path: Path, arriving: Path, tmp_path: Path, at: int, stores: bool
) -> None:
    put(arriving, "1.parquet", table(0, 180))
    with SeqVault.create(path, FIELDS) as vault:
        with pytest.raises(KeyboardInterrupt):
            follow(Failing(vault, at, stores), arriving, tmp_path / "state.json")
        put(arriving, "2.parquet", table(180, 20))  # the batch that follows need not be the one that was intended
        follow(vault, arriving, tmp_path / "state.json")
        assert_once(vault, 200)
        assert len(vault.read([MARK_USER])["time"]) >= 4


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])])
def test_killed_followers_store_every_event_once(
    path: Path, arriving: Path, kills: int, rng: np.random.Generator
) -> None:
    SeqVault.create(path, FIELDS).close()
    count = 0
    command = [sys.executable, "-m", "laser.cli", "vault", "follow", str(path), str(arriving), "--user", "who"]
    for kill in range(kills + 1):
        put(arriving, f"{kill:04d}.parquet", table(count, 300))
        count += 300
        options = ["--batch_events", "7"] + (["--until_idle", "true"] if kill == kills else [])
        process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b'{"following"')
        if kill < kills:
            time.sleep(float(rng.uniform(0, 0.3)))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
        assert errors == b""
    with SeqVault.open(path) as vault:
        assert_once(vault, count)
        assert vault.check() == []


def test_into_a_service_that_is_killed(path: Path, arriving: Path, tmp_path: Path, start: Start) -> None:  # noqa: F811
    SeqVault.create(path, FIELDS).close()
    put(arriving, "1.parquet", table(0, 400))
    served = start(path)
    with served.connect(WRITER, timeout=5) as remote:
        follower = Follower(remote, ArrowFolder(arriving, user="who"), tmp_path / "state.json", batch_events=3)
        running = threading.Thread(target=follower.run, daemon=True)
        running.start()
        for _ in range(2):
            seen = follower.metrics.value("batches_total")
            wait_until(lambda seen=seen: follower.metrics.value("batches_total") > seen + 10, "it does not follow")
            served.stop(signal.SIGKILL)
            served = start(path, port=served.port)
        wait_until(lambda: follower.metrics.value("failures_total") > 0, "it did not notice")
        wait_until(lambda: len(remote.read([4])["time"]) == 80, "it does not finish")
        follower.stop()
        running.join(60)
        assert_once(remote, 400)


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    require_redis()
    import redis

    (port,) = free_ports(1)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until(lambda: redis.Redis(port=port).ping(), "redis-server did not start")
    yield port
    process.kill()
    process.wait()


def test_a_redis_stream(path: Path, redis_port: int, tmp_path: Path) -> None:
    import redis

    from laser.seqvault.following.redis_stream import RedisStream

    client, url = redis.Redis(port=redis_port), f"redis://127.0.0.1:{redis_port}/0"

    def add(number: int, **changed: Any) -> None:
        entry = {"user": number % USERS, "time": number, "thing": number, "pair": json.dumps([0, number % 100])}
        client.xadd("events", entry | changed)

    with SeqVault.create(path, FIELDS) as vault:
        state = tmp_path / "state.json"
        source = RedisStream(url, "events", columns={"item": "thing"})
        follower = Follower(vault, source, state, batch_events=40)
        running = threading.Thread(target=follower.run, daemon=True)
        running.start()
        for number in range(100):
            add(number)
            if number % 9 == 0:
                add(7, **{"thing": ("x", -1, 2**32, "")[number // 9 % 4]})
        add(8, pair="[1, 2, 3]")
        client.xadd("events", {"user": 1})
        wait_until(lambda: follower.metrics.value("events_total") == 100, "it does not follow")
        assert_once(vault, 100)
        rejected = [json.loads(line) for line in (tmp_path / "state.json.rejected.jsonl").read_text().splitlines()]
        assert len(rejected) == 14
        assert rejected[-1]["reason"] == "it has no field b'time'"
        add(100)
        add(101)
        seen = time.monotonic()
        wait_until(lambda: follower.metrics.value("events_total") == 102, "it does not follow")
        assert time.monotonic() - seen < 30
        follower.stop()
        running.join(60)
        assert 'laser_follow_seconds_count{step="produced_to_visible"}' in follower.metrics.text()
        add(102)
        add(103)
        client.xtrim("events", maxlen=1, approximate=False)
        with pytest.raises(ValueError, match="has lost 1 entries that were never read: it was trimmed"):
            Follower(vault, RedisStream(url, "events", columns={"item": "thing"}), state).run(until_idle=True)


def test_the_users_mistakes(path: Path, arriving: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SeqVault.create(path, FIELDS).close()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    put(arriving, "1.parquet", table(0, 3))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.arrow").write_bytes(b"ARROW1 and then nothing")
    (tmp_path / "state.json").write_text("[]")
    mistakes = {
        "no vault at": (tmp_path / "none", arriving),
        "is no folder": (path, tmp_path / "nothing"),
        "has no column 'user'": (path, arriving, "--until_idle", "true"),
        "cannot be read": (path, tmp_path / "bad", "--until_idle", "true"),
        "names no stream": (path, "redis://127.0.0.1:1/0"),
        "is no state of a follower": (path, arriving, "--state", tmp_path / "state.json"),
        "there is no folder": (path, arriving, "--state", tmp_path / "no" / "state.json"),
        "needs --state": ("grpc://127.0.0.1:1", arriving),
        "batch_events is 0": (path, arriving, "--batch_events", 0),
    }
    try:
        for expected, arguments in mistakes.items():
            assert program(["vault", "follow", *map(str, arguments)]) == 2, expected
            told = capsys.readouterr().err
            assert expected in told
            assert len(told.splitlines()) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_figures_while_it_follows(path: Path, arriving: Path) -> None:
    SeqVault.create(path, FIELDS).close()
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "laser.cli", "vault", "follow", str(path), str(arriving), "--user", "who"]
    process = subprocess.Popen([*command, "--metrics_port", str(port)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    put(arriving, "1.parquet", table(0, 30))
    at = f"http://127.0.0.1:{port}/metrics"
    wait_until(lambda: "laser_follow_events_total 30" in _get(at), "it does not follow")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(output.splitlines()[-1]) == {"stored": 30}


def _get(address: str) -> str:
    return urllib.request.urlopen(address, timeout=5).read().decode()
