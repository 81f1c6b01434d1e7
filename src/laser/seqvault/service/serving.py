"""The verb ``laser vault serve``."""

from __future__ import annotations

import ipaddress
import json
import signal
import threading
from pathlib import Path
from typing import Literal

from laser.seqvault.service.authorization import Role, Tokens, read_tokens
from laser.seqvault.service.limits import Limits
from laser.seqvault.service.metrics import MetricsEndpoint
from laser.seqvault.service.server import Tls, VaultServer
from laser.seqvault.syncing import Sync
from laser.seqvault.vault import SeqVault


def serve(
    path: Path,
    host: str = "127.0.0.1",
    port: int = 8815,
    mode: Literal["r", "a"] = "a",
    sync: Sync = "always",
    read_tokens_file: Path | None = None,
    write_tokens_file: Path | None = None,
    anonymous: Role | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
    tls_client_authority: Path | None = None,
    plaintext: bool = False,
    metrics_port: int | None = None,
    cache_bytes: int = 0,
    drain_seconds: float = 30.0,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
) -> None:
    """Serve a vault over Arrow Flight until SIGTERM or SIGINT; then finish what runs, make it durable, and exit with 0.

    Args:
        path: folder of the vault.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        mode: 'a' to serve reads and appends, as the one process that writes; 'r' to serve reads beside it.
        sync: when appends become durable; 'always': before they are acknowledged.
        read_tokens_file: tokens that may read, one a line.
        write_tokens_file: tokens that may read and append, one a line.
        anonymous: what callers without a token may do; by default nothing.
        tls_certificate: PEM file of the certificate, with those between it and its authority.
        tls_key: PEM file of its key.
        tls_client_authority: PEM file; only clients with a certificate signed by it may connect.
        plaintext: allow an address other than this machine's without TLS: tokens can be read on the way.
        metrics_port: serve /metrics for Prometheus and /health over HTTP on this port of the same address.
        cache_bytes: memory for decoded histories of users that are read often.
        drain_seconds: how long running calls may take to finish at the end.
        limits: of sizes, places at work and times.
    """
    tokens = Tokens(read_tokens(read_tokens_file), read_tokens(write_tokens_file), anonymous)
    tls = _tls(tls_certificate, tls_key, tls_client_authority)
    if tls is None and not plaintext and not _on_this_machine(host):
        raise ValueError(
            f"host {host} can be reached from other machines, and tokens would travel unencrypted; give "
            f"tls_certificate and tls_key, or say --plaintext true where the network encrypts"
        )
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    shown = f"[{host}]" if ":" in host else host
    with SeqVault.open(path, mode, sync=sync, cache_bytes=cache_bytes) as vault:
        vault.read(vault.users()[:1], before=0, last_n=1)  # the first read after an installation compiles its kernels
        server = VaultServer(vault, f"grpc{'+tls' if tls else ''}://{shown}:{port}", tokens, limits, tls)
        endpoint = None
        try:
            if metrics_port is not None:
                endpoint = MetricsEndpoint(host, metrics_port, server.metrics, lambda: not server.stopping)
            started = {"serving": str(path), "location": f"grpc{'+tls' if tls else ''}://{shown}:{server.port}"}
            print(json.dumps(started | ({"metrics_port": endpoint.port} if endpoint else {})), flush=True)
            while not ended.wait(1.0):  # a signal that another thread receives does not end a wait without limit
                pass
        finally:
            server.stop(drain_seconds)
            if endpoint is not None:
                endpoint.stop()
    print(json.dumps({"stopped": str(path)}), flush=True)


def _tls(certificate: Path | None, key: Path | None, authority: Path | None) -> Tls | None:
    if (certificate is None) != (key is None) or (authority is not None and certificate is None):
        raise ValueError("TLS needs both tls_certificate and tls_key; one is missing")
    if certificate is None or key is None:
        return None
    try:
        return Tls(certificate.read_bytes(), key.read_bytes(), authority.read_bytes() if authority else None)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}); give PEM files") from None


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
