"""The HTTP front: answers, refusals, limits, its page in a browser, and random requests after its own description."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from laser.seqvault import SeqVault
from laser.serve import Scorer

NOW = 1_700_000_000
BODY = {"user": "user-9", "candidates": ["item-1", "item-2", "nothing"], "context": {"device": 1}, "now": NOW}
ONE = {"user": "user-9", "candidate": "item-1", "context": {"device": 1}, "now": NOW}


@pytest.fixture(scope="module")
def address(trained, prepared: Path, tmp_path_factory) -> Iterator[str]:
    """A server in a process of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "laser.cli", "serve", str(trained("laser") / "bundle"), "--vault"]
    command += [str(prepared / "vault"), "--port", str(port), "--max_candidates", "500"]
    errors = tmp_path_factory.mktemp("server") / "errors"
    with errors.open("w") as told:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
    try:
        for _ in range(1200):
            assert server.poll() is None, errors.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None, errors.read_text()  # nothing that was asked took it down
        server.terminate()
        assert server.wait(60) == 0
        assert "Traceback" not in errors.read_text()
    finally:
        server.kill()


def ask(address: str, path: str, body: object) -> tuple[int, dict]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/{path}", content, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.load(found)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_scores_are_the_scorers(address, trained, prepared):
    status, found = ask(address, "score", BODY)
    assert status == 200
    with SeqVault.open(prepared / "vault") as vault:
        wanted = Scorer(trained("laser") / "bundle", vault).score(*BODY.values())
    np.testing.assert_allclose(found["probabilities"], wanted, rtol=0, atol=2e-6)
    assert (found["known_user"], found["unknown_candidates"], found["events"], found["now"]) == (True, [2], 12, NOW)


def test_an_explanation(address):
    """The same score; segments cover the history; gates are those of their events."""
    status, found = ask(address, "explain", ONE)
    assert status == 200
    assert found["probability"] == pytest.approx(ask(address, "score", BODY)[1]["probabilities"][0], abs=2e-6)
    segments = found["segments"]
    assert [s["start"] for s in segments] + [12] == [0] + [s["stop"] for s in segments]
    assert len(found["age"]) == len(found["gates"]) == 12
    assert segments[0]["strength"] == pytest.approx(np.mean(found["gates"][0:3]))
    assert all(0 < gate < 1 for event in found["gates"] for gate in event)
    assert any(abs(s["contribution"]) > 1e-5 for s in segments)
    assert found["events"]["item"][0].startswith("item-")
    assert found["target"]["item"] == "item-1"
    status, found = ask(address, "explain", ONE | {"user": "nobody"})
    assert (status, found["segments"], found["known_user"]) == (200, [], False)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 422, "the request"),
        (b"{", 422, "JSON decode error"),
        ([1], 422, "valid dictionary"),
        ({}, 422, "user: Field required"),
        (BODY | {"user": True}, 422, "user"),
        (BODY | {"user": 5}, 422, "user 5 is a int; user is text here"),
        (BODY | {"candidates": "item-1"}, 422, "candidates: Input should be a valid list"),
        (BODY | {"candidates": ["item-1"] * 501}, 422, "501 candidates; this server takes 500 at most"),
        (BODY | {"candidates": [1.5]}, 422, "candidates.0"),
        (BODY | {"now": "soon"}, 422, "now"),
        (BODY | {"now": 2**80}, 422, "within 62 bits"),
        (BODY | {"context": {}}, 422, "context lacks 'device'"),
        (BODY | {"context": {"device": "x"}}, 422, "context device 'x' is a str"),
        (BODY | {"file": "/etc/passwd"}, 422, "file: Extra inputs are not permitted"),
        (b" " * (1 << 20) + b"x", 413, "more than 1048576 bytes"),
    ],
)
def test_wrong_requests_are_told(address, body, status, sentence):
    found = ask(address, "score", body)
    assert found[0] == status, found
    assert sentence in found[1]["detail"]
    assert ask(address, "score", BODY)[0] == 200


def test_histories_that_cannot_be_read(trained):
    """The service of histories is away: told as such, and the scorer goes on."""
    from laser.serve.server import create_app

    class Away:
        def read(self, *_args, **_options):
            raise ConnectionError("grpc://histories is not available")

    said: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}

    async def send(message: dict) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": "/score", "query_string": b"", "http_version": "1.1"}
    scope |= {"headers": [(b"content-type", b"application/json")]}
    asyncio.run(create_app(Scorer(trained("laser") / "bundle", Away()))(scope, receive, send))
    assert said[0]["status"] == 503
    assert json.loads(said[1]["body"]) == {"detail": "the histories cannot be read: grpc://histories is not available"}


def test_half_a_request_holds_nobody_up(address):
    host, port = address.removeprefix("http://").split(":")
    waiting = []
    for start in (
        b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
        b"POST /sco",
        b"\x00\xff\r\n\r\n",
    ):
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(start)
        waiting.append(connection)
    assert ask(address, "score", BODY)[0] == 200
    for connection in waiting:
        connection.close()


def test_more_requests_than_it_takes_are_turned_away():
    """And one that does not arrive in time is given up."""
    from laser.serve.limits import Gate, Limits

    async def serve() -> list[int]:
        async def app(_scope, receive, send) -> None:
            assert (await receive())["body"] == b"ab"
            await send({"type": "http.response.start", "status": 200, "headers": []})

        gate, statuses = Gate(app, Limits(seconds=0.2, requests=2)), []

        async def request(parts: list[bytes]) -> None:
            async def receive() -> dict:
                if not parts:
                    await asyncio.sleep(5)
                return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts) or stuck}

            async def send(message: dict) -> None:
                if "status" in message:
                    statuses.append(message["status"])

            stuck = parts == [b"never"]
            await gate({"type": "http", "headers": []}, receive, send)

        await request([b"a", b"b"])
        await asyncio.gather(request([b"never"]), request([b"never"]), request([b"a", b"b"]))
        await request([b"a", b"b"])
        assert gate.inside == 0
        return statuses

    assert asyncio.run(serve()) == [200, 503, 408, 408, 200]


def test_random_requests_after_its_own_description(address):
    """schemathesis: no answer outside of the description, and none that is a fault of ours."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.label for operation in operations} == {
        "GET /health",
        "GET /model",
        "POST /score",
        "POST /explain",
    }
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for operation in operations:
        for mode in modes if operation.method == "post" else modes[:1]:

            @settings(
                max_examples=40,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case) -> None:
                case.call_and_validate(excluded_checks=[schemathesis.checks.positive_data_acceptance])

            check()


def browser():
    spec = importlib.util.spec_from_file_location("laser_browser", Path(__file__).with_name("browser.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_can_be_clicked_through(address, tmp_path):
    chromium = browser()
    if chromium.find_chromium() is None:
        pytest.skip("no chromium: apt-get install chromium")

    async def visit() -> None:
        async with chromium.Page(tmp_path / "profile") as page:
            await page.open(address)
            await page.until("document.body?.dataset.ready === 'yes'")
            await page.type("document.getElementById('user')", "user-9")
            await page.type("document.getElementById('candidate')", "item-1")
            await page.type("document.getElementById('now')", str(NOW))
            await page.value("document.querySelector('select[data-field=device]').value = '1'")
            await page.click("document.getElementById('score')")
            await page.until("!document.getElementById('answer').hidden")
            probability = ask(address, "explain", ONE)[1]["probability"]
            assert await page.value("probability.textContent") == f"{100 * probability:.2f} %"
            assert await page.value("segments.children.length") == 4
            newest = await page.value("events.innerText")
            await page.click("segments.children[0]")
            await page.until("chosen.textContent.startsWith('Segment 1 of 4')")
            assert await page.value("events.innerText") != newest
            assert await page.value("events.rows.length") == 1 + 3
            await page.screenshot(tmp_path / "page.png")
            assert (tmp_path / "page.png").stat().st_size > 10_000
            await page.type("document.getElementById('now')", "tomorrow")
            await page.click("document.getElementById('score')")
            await page.until("problem.textContent.length > 0")
            assert await page.value("document.getElementById('answer').hidden")
            assert page.errors == []

    asyncio.run(visit())


def test_laser_serve_says_what_is_wrong(address, trained, prepared, tmp_path, capsys):
    from laser.cli import main

    bundle, vault = str(trained("laser") / "bundle"), str(prepared / "vault")
    for arguments, sentence in [
        ([], "bundle"),
        ([str(tmp_path), "--vault", vault], "no bundle at"),
        ([bundle, "--vault", str(tmp_path)], "no vault at"),
        ([bundle, "--vault", vault, "--prot", "1"], "prot"),
        ([bundle], "--vault is missing"),
        ([bundle, "--vault", "grpc://127.0.0.1:1"], "grpc://127.0.0.1:1 is not available"),
        ([bundle, "--vault", vault, "--device", "tpu"], "device is 'tpu'; expected cpu or cuda"),
        ([bundle, "--vault", vault, "--port", address.rpartition(":")[2]], "Address already in use"),
    ]:
        assert main(["serve", *arguments]) == 2
        told = capsys.readouterr().err
        assert sentence in told, told
        assert told.count("\n") == 1
