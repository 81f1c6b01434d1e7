"""``laser serve``: a bundle and a history store behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laser.seqvault import SeqVault


def serve(
    bundle: Path,
    vault: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "cpu",
    cache_bytes: int = 256 << 20,
    max_candidates: int = 10_000,
    max_bytes: int = 1 << 20,
    max_requests: int = 64,
    token_file: Path | None = None,
    tls_authority: Path | None = None,
    compiled: bool = False,
) -> None:
    """Score requests over HTTP, with a page that shows the gates; it changes nothing.

    Args:
        bundle: folder that laser export wrote.
        vault: history store, such as prepared/movielens_small/vault, or grpc://host:port of a laser vault serve;
            appends of other processes are seen.
        host: address to listen at. There is no authentication: leave it to loopback or put a proxy before it.
        port: to listen at.
        device: of the dense part, cpu or cuda.
        cache_bytes: of what is kept of users between requests.
        max_candidates: of a request.
        max_bytes: of a request.
        max_requests: in work at once.
        token_file: for a service: its token, in the first line.
        tls_authority: for a service: PEM file of the authority that signed its certificate.
        compiled: run the bundle's native code, which laser export --compile wrote: loading it is trusting it.
    """
    try:
        from laser.serve.server import Limits, run
    except ModuleNotFoundError as error:
        raise ValueError(
            f"laser serve needs {error.name}, which is not installed; install the extra with pip install -c "
            "constraints.txt -e '.[serve]'"
        ) from None
    from laser.serve.scorer import Scorer

    if vault is None:
        raise ValueError("--vault is missing; give the history store, such as prepared/movielens_small/vault")
    with _open(vault, token_file, tls_authority) as opened:
        scorer = Scorer(bundle, opened, device=device, cache_bytes=cache_bytes, compiled=compiled)
        print(f"http://{host}:{port} serves {scorer.bundle.facts['data_set']} from {bundle}", flush=True)
        run(scorer, host, port, Limits(max_candidates, max_bytes, requests=max_requests))


def _open(vault: str, token_file: Path | None, tls_authority: Path | None) -> Any:
    if not vault.startswith("grpc"):
        return SeqVault.open(vault)
    from laser.seqvault.service import RemoteVault
    from laser.seqvault.service.authorization import read_tokens

    return RemoteVault(vault, read_tokens(token_file)[0] if token_file else None, tls=tls_authority)


def main(arguments: list[str]) -> int:
    """Run ``laser serve``.

    Returns:
        0 when it was told to stop.

    Raises:
        ValueError: on a user's mistake.
    """
    from jsonargparse import auto_cli

    try:
        auto_cli(serve, args=arguments, prog="laser serve", exit_on_error=False)
    except OSError as error:
        raise ValueError(f"{error.strerror or error}; give another --port, --host or --vault") from None
    return 0
