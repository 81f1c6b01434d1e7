"""A service answers as the vault itself does, to those who may ask."""

from __future__ import annotations

import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.flight as flight
import pytest

from laser.cli import main as program
from laser.seqvault import Ragged, SeqVault
from laser.seqvault.service import RemoteVault
from tests.seqvault.conftest import FIELDS, Model, make_events
from tests.seqvault.service.conftest import READER, Served, Start

READS: list[dict[str, Any]] = [
    {},
    {"last_n": 5},
    {"last_n": 0},
    {"before": 500_000, "last_n": 100},
    {"before": np.arange(45) * 30_000},
    {"fields": ["tags", "time"]},
    {"fields": "item"},
    {"where": {"category": [1, 3], "delta": range(-100, 100)}, "last_n": 7},
    {"where": {"item": np.array([2**64 - 1], np.uint64)}},
    {"ids": "codes", "fields": ["category", "time"]},
]


def assert_same(found: Ragged, expected: Ragged) -> None:
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    assert list(found.fields) == list(expected.fields)
    for name, values in expected.fields.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("zstd", [False, True])
def test_reads_equal_those_of_the_vault(standing: tuple[Path, Served], zstd: bool) -> None:
    users = np.arange(45)  # five of them unknown
    path, served = standing
    with served.connect(READER, zstd=zstd) as remote, SeqVault.open(path) as vault:
        assert remote.layout == vault.layout
        for options in READS:
            assert_same(remote.read(users, **options), vault.read(users, **options))
        assert_same(remote.read([]), vault.read([]))
        assert_same(remote.read([7, 7, 2**64 - 1]), vault.read([7, 7, 2**64 - 1]))
        assert remote.stats()["events"] == 6000


def test_appends_are_read_at_once_and_kept(path: Path, start: Start, rng: np.random.Generator) -> None:
    SeqVault.create(path, FIELDS).close()
    served, model = start(path), Model()
    with served.connect() as remote, served.connect(zstd=True) as packing:
        for size in (1, 0, 700, 3):
            users, events = rng.integers(0, 9, size), make_events(rng, size)
            assert (packing if size == 700 else remote).append(users, events) == size
            model.append(users, events)
            model.compare(remote, np.arange(10))
    assert served.stop() == 0
    with SeqVault.open(path) as vault:
        model.compare(vault, np.arange(10))
        assert vault.check() == []


def test_only_bearers_of_a_token_get_in(standing: tuple[Path, Served], rng: np.random.Generator) -> None:
    users, events, served = [1], make_events(rng, 1), standing[1]
    with served.connect(READER) as reader:
        assert len(reader.read([1], last_n=1)["time"]) == 1
        with pytest.raises(ValueError, match="may only read"):
            reader.append(users, events)
    for token in (None, "", READER[:-1], READER + "0", "x" * 5000):
        with served.connect(token) as stranger:
            for ask in (lambda: stranger.read([1]), lambda: stranger.append(users, events), stranger.health):
                with pytest.raises(ValueError, match="no valid token"):
                    ask()
    with pytest.raises(ValueError, match="printable ASCII"):
        served.connect("\u00e9" * 20)
    with served.connect(READER) as reader:
        assert reader.stats()["events"] == 6000
        assert "laser_vault_unauthenticated_total 15" in reader.metrics()


def test_anonymous_callers_may_do_what_the_operator_says(filled: Path, start: Start) -> None:
    served = start(filled, "--anonymous", "read")
    with served.connect(None) as anybody:
        assert len(anybody.read([1], last_n=1)["time"]) == 1
        with pytest.raises(ValueError, match="may only read"):
            anybody.append([1], make_events(np.random.default_rng(), 1))
    with served.connect("wrong-token-of-32-characters-000") as mistaken, pytest.raises(ValueError, match="no valid"):
        mistaken.health()


def certificate(folder: Path, name: str, authority: str | None = None) -> None:
    """``name``.pem and ``name``.key, signed by the authority or by itself."""
    key, out = folder / f"{name}.key", folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(key), "-out", str(out), "-days", "2", "-subj", f"/CN={name}"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    if authority:
        command += ["-CA", str(folder / f"{authority}.pem"), "-CAkey", str(folder / f"{authority}.key")]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True)


def test_tls_and_certificates_of_clients(filled: Path, start: Start, tmp_path: Path) -> None:
    for name, authority in (("authority", None), ("server", "authority"), ("client", "authority")):
        certificate(tmp_path, name, authority)
    options = ["--tls_certificate", tmp_path / "server.pem", "--tls_key", tmp_path / "server.key"]
    served = start(filled, *options, "--tls_client_authority", tmp_path / "authority.pem")
    assert served.location.startswith("grpc+tls://")
    known = ((tmp_path / "client.pem").read_bytes(), (tmp_path / "client.key").read_bytes())
    authority = tmp_path / "authority.pem"
    with served.connect(READER, tls=authority, client=known) as remote:
        assert remote.stats()["users"] == 40
    plain = served.location.replace("grpc+tls", "grpc")
    for stranger in (
        served.connect(READER, tls=authority, timeout=0.5),
        served.connect(READER, timeout=0.5),
        RemoteVault(plain, READER, timeout=0.5),
    ):
        with stranger, pytest.raises(OSError, match=r"not available|no answer"):
            stranger.stats()


def test_bad_requests_are_one_sentence(standing: tuple[Path, Served], rng: np.random.Generator) -> None:
    with standing[1].connect() as remote:
        events = make_events(rng, 2)
        for expected, ask in {
            "no event field 'colour'": lambda: remote.read([1], fields=["colour"]),
            "last_n is -1": lambda: remote.read([1], last_n=-1),
            "expected 'raw' or 'codes'": lambda: remote.read([1], ids="other"),  # type: ignore[arg-type]
            "cannot be filtered by": lambda: remote.read([1], where={"weight": [1]}),
            "expected a whole number": lambda: remote.read([1], where={"delta": ["x"]}),
            "option last_n of a read is": lambda: remote.read([1], last_n=2**70),
            "missing: ": lambda: remote.append([1, 2], {"time": [1, 2]}),
            "one row per event": lambda: remote.append([1], events),
        }.items():
            with pytest.raises(ValueError, match=expected) as caught:
                ask()
            assert "\n" not in str(caught.value)
            assert "Traceback" not in str(caught.value)
        with pytest.raises(OSError, match="is not an action"):
            _act(remote, "drop-everything")
        assert remote.health()["status"] == "serving"


def _act(remote: RemoteVault, name: str) -> None:
    try:
        list(remote._client.do_action(flight.Action(name, b""), flight.FlightCallOptions(headers=remote._headers)))
    except flight.FlightError as error:
        raise OSError(str(error)) from None


def test_figures_for_prometheus(served: Served) -> None:
    with served.connect(READER) as remote:
        for _ in range(3):
            remote.read([1, 2], last_n=10)
    at = f"http://127.0.0.1:{served.metrics_port}"
    told = urllib.request.urlopen(f"{at}/metrics", timeout=10).read().decode()
    assert 'laser_vault_requests_total{method="read",status="ok"} 3' in told
    assert 'laser_vault_seconds_bucket{method="read",le="+Inf"} 3' in told
    assert "laser_vault_events_read_total 60" in told
    assert "laser_vault_store_events 6000" in told
    assert urllib.request.urlopen(f"{at}/health", timeout=10).read() == b"serving\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{at}/tokens", timeout=10)


def test_readers_beside_the_service_that_writes(filled: Path, start: Start, rng: np.random.Generator) -> None:
    writing, reading = start(filled), start(filled, "--mode", "r")
    with writing.connect() as writer, reading.connect() as reader:
        writer.append([777], make_events(rng, 1))
        for _ in range(100):
            if len(reader.read([777])["time"]):
                break
        assert_same(reader.read([777]), writer.read([777]))
        with pytest.raises(ValueError, match="is open for reading"):
            reader.append([777], make_events(rng, 1))


def test_the_operators_mistakes(
    filled: Path, tmp_path: Path, tokens: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("1234\n")
    certificate(tmp_path, "a")
    certificate(tmp_path, "b")
    mistakes = {
        "has no tokens": (filled,),
        "no vault at": (tmp_path / "none", *tokens),
        "is empty": (filled, "--read_tokens_file", tmp_path / "empty"),
        "fewer than 16": (filled, "--read_tokens_file", tmp_path / "short"),
        "cannot be read": (filled, "--read_tokens_file", tmp_path / "nothing"),
        "travel unencrypted": (filled, *tokens, "--host", "0.0.0.0"),
        "one is missing": (filled, *tokens, "--tls_key", tmp_path / "empty"),
        "cannot serve on": (filled, *tokens, "--port", 1_000_000),
        "limit running is 0": (filled, *tokens, "--limits.running", 0),
        "choose another port or": (
            filled, *tokens, "--tls_certificate", tmp_path / "empty", "--tls_key", tmp_path / "b.key",
        ),
    }  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for expected, arguments in mistakes.items():
            assert program(["vault", "serve", *map(str, arguments)]) == 2, expected
            told = capsys.readouterr().err
            assert expected in told
            assert len(told.splitlines()) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
