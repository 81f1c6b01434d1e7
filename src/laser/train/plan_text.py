"""A sharding plan as two tables of text: by table and by process."""

from __future__ import annotations

from laser.train.planning import Load, Plan


def describe(found: Plan) -> str:
    """The plan as two tables: by table, and by process, with equal processes in one line."""
    lines = [f"{'table':20} {'rows':>16} {'width':>6} {'sharding':14} {'held by':14} {'ids a step':>14}"]
    for size in found.sizes:
        placement = found.placements[size.name]
        ranks = f"process {placement.ranks[0]}" if len(placement.ranks) == 1 else f"{len(placement.ranks)} processes"
        ids = found.ids[size.name]
        lines.append(f"{size.name:20} {size.rows:16,} {size.width:6} {placement.kind:14} {ranks:14} {ids:14,.0f}")
    head = ("process", "weights", "optimizer", "ids served", "exchanged", "between hosts", "exchange ms", "look-up ms")
    lines += ["", f"{head[0]:12}" + "".join(f"{name:>14}" for name in head[1:])]
    for ranks, load in _alike(found.loads):
        cells = [
            f"{ranks:12}",
            f"{_bytes(load.weights):>14}",
            f"{_bytes(load.state):>14}",
            f"{load.ids:14,.0f}",
            f"{_bytes(load.exchanged):>14}",
            f"{_bytes(load.exchanged * found.cluster.share_between_hosts):>14}",
            f"{1e3 * found.cluster.seconds(load.exchanged):14.3f}",
            f"{1e3 * load.touched / found.cluster.memory_rate:14.3f}",
        ]
        lines.append("".join(cells))
    most = max(load.held() for load in found.loads)
    room = found.cluster.room
    total = sum(load.held() for load in found.loads)
    verdict = "fits" if found.fits else "DOES NOT FIT: shard it row_wise, add processes, or keep smaller tables"
    lines += ["", f"{_bytes(total)} in all; the fullest process holds {_bytes(most)} of {_bytes(room)}: {verdict}"]
    if host := max(load.host for load in found.loads):
        lines += [f"besides, up to {_bytes(host)} of host memory a process"]
    return "\n".join(lines)


def _alike(loads: list[Load]) -> list[tuple[str, Load]]:
    """Runs of neighbours with the same load."""
    found: list[tuple[int, int, Load]] = []
    for rank, load in enumerate(loads):
        if found and found[-1][2] == load:
            found[-1] = (found[-1][0], rank, load)
        else:
            found.append((rank, rank, load))
    return [(f"{first}" if first == last else f"{first}-{last}", load) for first, last, load in found]


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:,.4g} TB"
