"""``laser-prep``: prepares data sets and checks prepared ones."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from data_prep.adding import Late, Period, extend
from data_prep.engine import EngineName
from data_prep.first_recipe import first_recipe
from data_prep.inspection import inspect as inspect_user
from data_prep.leakage import check_prepared
from data_prep.pipeline import plain_errors, prepare
from data_prep.report_page import page_of
from data_prep.summary import quantiles
from data_prep.synthetic.command import synthetic

PLACES = {
    "recipe": "YAML file such as conf/prep/movielens_small.yaml",
    "files": "of the log: Parquet, CSV, TSV or JSON lines",
    "folder": "that `laser-prep run` wrote",
    "out": "new folder for the log, its recipe and truth.json",
}


def run(
    recipe: Path,
    out: Path,
    raw: Path | None = None,
    memory: str | None = None,
    threads: int | None = None,
    engine: EngineName = "duckdb",
    spark_master: str | None = None,
) -> None:
    """Prepare a data set from raw files.

    Args:
        recipe: YAML file such as conf/prep/movielens_small.yaml.
        out: folder of the prepared data set; one that exists is replaced when all has gone well.
        raw: folder of the raw files, in place of the one that the recipe names.
        memory: limit of the whole job such as 4GB; beyond it works on disk. Default: 80 % of the machine's. On Spark:
            of the driver, and of each executor.
        threads: of the engine. Default: all cores.
        engine: duckdb runs inside this process, spark on a cluster; the data set is the same.
        spark_master: address of the cluster such as spark://host:7077. Default: Spark inside this machine.
    """
    report = prepare(recipe, out, raw, memory, threads, engine, spark_master)
    rows = report["rows"]
    rejected = sum(rows["rejected"].values())
    read = f"{rows['read']:,} rows read, {rejected:,} rejected"
    print(f"{out}: {read}, {report['users']:,} users, {report['items']:,} items, {report['events']:,} events")
    for split, found in report["samples"].items():
        length = "history p50 {p50:,} max {max:,}".format(**found["history_length"])
        print(f"  {split:<5} {found['samples']:>12,} samples, label share {found['label_share']:.4f}, {length}")
    checked = report["leakage_check"]
    cuts = checked["histories_read_as_in_training"]
    print(f"  leakage check passed: {checked['samples_checked']:,} samples, {cuts:,} of them read as training reads")


def add(
    recipe: Path,
    to: Path,
    raw: Path,
    late: Late = "refuse",
    test_from: int | None = None,
    test_end: int | None = None,
    memory: str | None = None,
    threads: int | None = None,
) -> None:
    """Add new log files, of another day say, to a prepared data set.

    Args:
        recipe: YAML file that the data set was prepared with.
        to: folder of the data set; its files of samples stay as they are.
        raw: folder of the new files of the log, and of side tables that know the new items.
        late: of rows that are not newer than the data set: refuse them all and stop, or reject them with their reason.
        test_from: timestamp of the first new test sample, in ticks; new rows before it are history only.
        test_end: first timestamp that is no longer test, in place of the recipe's.
        memory: limit of the whole job such as 4GB. Default: 80 % of the machine's.
        threads: of the engine. Default: all cores.
    """
    added = extend(recipe, to, raw, late, Period(test_from, test_end), memory, threads)
    if added.get("already"):
        print(f"{to}: already added, nothing to do: {', '.join(added['files'])}")
        return
    rows = added["rows"]
    print(f"{to}: {rows['read']:,} rows read, {sum(rows['rejected'].values()):,} rejected")
    told = ", ".join(f"{count:,} {split}" for split, count in added["samples"].items())
    print(f"  added {added['events']:,} events, {added['users']:,} users, {added['items']:,} items; samples: {told}")


def check(folder: Path) -> None:
    """Look for leakage in a prepared data set.

    Args:
        folder: that ``laser-prep run`` wrote.
    """
    try:
        report = json.loads((folder / "report.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no report.json in {folder}; give a folder that laser-prep wrote") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'report.json'} is not JSON ({error}); prepare the data set again") from None
    with plain_errors(folder):
        found = check_prepared(folder, report)
    for split, counts in found.lengths.items():
        print(f"{split}: history length {quantiles(counts)}")
    if found.problems:
        raise ValueError(f"{folder} leaks: {'; '.join(found.problems)}; prepare it again")
    print(f"no leakage found in {found.samples:,} samples, {found.cuts:,} of them read as training reads")


def report(folder: Path) -> None:
    """Write report.html of a prepared data set again.

    Args:
        folder: that ``laser-prep run`` wrote.
    """
    with plain_errors(folder):
        print(f"wrote {page_of(folder)}")


def init(files: list[Path], out: Path | None = None) -> None:
    """Look at a log and write a first recipe for it, with the reason of each guess.

    Args:
        files: Parquet, CSV, TSV or JSON lines of one layout in one folder.
        out: YAML file to write; one that exists is left alone. Default: print it.
    """
    with plain_errors(out or Path()):
        text = first_recipe(files)
    if out is None:
        print(text)
    elif out.exists():
        raise ValueError(f"--out {out} exists and is left alone; name another file")
    else:
        out.write_text(text + "\n")


VERBS = {
    "init": init,
    "run": run,
    "add": add,
    "check": check,
    "inspect": inspect_user,
    "report": report,
    "synthetic": synthetic,
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; a user's mistake is one sentence on standard error and exit code 2."""
    parser = ArgumentParser(prog="laser-prep", description="Raw logs to data sets for LASER.")
    verbs = parser.add_subcommands()
    for name, verb in VERBS.items():
        sub = ArgumentParser(description=(verb.__doc__ or "").split("\n")[0])
        place = next(iter(inspect.signature(verb).parameters))
        sub.add_argument(place, type=Path, help=PLACES[place], nargs="+" if place == "files" else None)
        sub.add_function_arguments(verb, skip={place})
        verbs.add_subcommand(name, sub, help=(verb.__doc__ or "").split("\n")[0])
    chosen = parser.parse_args(arguments)
    options = chosen[chosen.subcommand].as_dict()
    try:
        VERBS[chosen.subcommand](**options)
    except ValueError as error:
        print(f"laser-prep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("laser-prep: interrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
