"""What Polars and pandas do of a preparation, hand-written for one log, in a process of its own.

    python benchmarks/data/peers.py polars RAW OUT

Dense codes of user and item in the order of the raw values, histories sorted by user and time, samples of three periods
in the order of time. Left out, as neither has them: checks of each row, rejected rows, item side info,
the history store, the leakage check and the report. Prints seconds and peak memory as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

HISTORY = ["user", "time", "item", "click", "scenario"]
SAMPLE = ["user", "item", "time", "click", "scenario", "hour", "weekday"]


def with_polars(raw: Path, out: Path, validation: int, test: int) -> dict[str, int]:
    import polars as pl

    log = pl.scan_parquet(raw / "log/*.parquet").select(SAMPLE)
    for name in ("user", "item", "scenario"):
        codes = log.select(name).unique().sort(name).with_row_index("code", offset=1).collect(engine="streaming")
        codes.write_parquet(out / f"{name}.parquet")
        log = log.join(codes.lazy(), on=name, how="left").drop(name).rename({"code": name})
    log.sort("user", "time").select(HISTORY).sink_parquet(out / "history.parquet")
    when, rows = pl.col("time"), {}
    periods = {"train": when < validation, "val": (when >= validation) & (when < test), "test": when >= test}
    for split, period in periods.items():
        log.filter(period).sort("time").select(SAMPLE).sink_parquet(out / f"{split}.parquet")
        rows[split] = pl.scan_parquet(out / f"{split}.parquet").select(pl.len()).collect().item()
    return rows


def with_pandas(raw: Path, out: Path, validation: int, test: int) -> dict[str, int]:
    import pandas as pd

    log = pd.read_parquet(raw / "log", columns=SAMPLE)
    for name in ("user", "item", "scenario"):
        codes, values = pd.factorize(log[name], sort=True)
        log[name] = codes + 1
        pd.DataFrame({"raw": values}).to_parquet(out / f"{name}.parquet")
    log.sort_values(["user", "time"], kind="stable")[HISTORY].to_parquet(out / "history.parquet")
    log = log.sort_values("time", kind="stable")
    when, rows = log["time"], {}
    periods = {"train": when < validation, "val": (when >= validation) & (when < test), "test": when >= test}
    for split, period in periods.items():
        log[period].to_parquet(out / f"{split}.parquet")
        rows[split] = int(period.sum())
    return rows


ENGINES: dict[str, Callable[..., dict[str, int]]] = {"polars": with_polars, "pandas": with_pandas}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--validation", type=int, required=True, help="first timestamp of validation")
    parser.add_argument("--test", type=int, required=True, help="first timestamp of test")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    start = time.perf_counter()
    rows = ENGINES[options.engine](options.raw, options.out, options.validation, options.test)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump({"seconds": seconds, "peak_bytes": peak, "rows": rows}, sys.stdout)


if __name__ == "__main__":
    main()
