"""The console script ``laser``.

Nothing heavy is imported before the verb is known: ``laser vault`` and ``laser --help`` need no torch.

A user's mistake (``ValueError``, a bad option, a file that cannot be written, a mismatched installation) ends in one
sentence on stderr and exit code 2, also when many processes make it at once. Anything else is a fault of ours and keeps
its traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from laser.saying import one_of_a_launch, say_once

TRAINING = ("fit", "validate", "test", "predict")
MODULES = {
    "plan": "laser.train.plan_command",
    "export": "laser.exporting",
    "serve": "laser.serve.serve_command",
    "study": "laser.study.commands",
    "vault": "laser.seqvault.commands",
    "checkpoint": "laser.train.checkpoint_commands",
}
"""Verbs whose module has ``main(arguments)``, which returns an exit code or ``None``."""
PLACES = (errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS)
"""Errors of files which say that a place that was given cannot be used; any other is a fault of ours."""
HELP = """usage: laser VERB [options]

  fit       train a model:                laser fit -c conf/demo.yaml
  validate  metrics on the validation split
  test      metrics, predictions and gates on the test split, from checkpoints/best.ckpt of the run
  predict   probabilities as Parquet; --gates adds the gates of every event, for laser.analysis
  plan      who would hold which table:   laser plan -c conf/demo.yaml --cluster.processes 64
  export    a bundle to serve from:       laser export -c conf/demo.yaml --out bundles/demo
  serve     score over HTTP:              laser serve bundles/demo --vault prepared/movielens_small/vault
  report    write report.html of a run:   laser report runs/demo
  study     compare models over seeds:    laser study conf/study/movielens_small.yaml
  vault     look into a history store:    laser vault --help
  checkpoint  inspect, compare, convert:  laser checkpoint --help
  doctor    check the installation

fit, validate, test, predict, plan and export take recipes: -c RECIPE [-c OVERLAY ...] [--key value ...]:
laser fit --help lists all.
LASER_TRACEBACK=1 shows the traceback of a reported mistake."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0, or 2 after a user's mistake.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    with one_of_a_launch() if verb in TRAINING else nullcontext():
        return _reported(verb, rest)


def _reported(verb: str, rest: list[str]) -> int:
    """Run a verb; a user's mistake is one sentence."""
    try:
        return _run(verb, rest)
    except (ValueError, argparse.ArgumentError, ImportError) as error:
        if os.environ.get("LASER_TRACEBACK") or (isinstance(error, ImportError) and not _is_ours(error)):
            raise
        say_once(f"laser {verb}: {one_line(str(error))}")
        return 2
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output, such as head, has what it wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if os.environ.get("LASER_TRACEBACK") or error.errno not in PLACES or error.filename is None:
            raise
        say_once(f"laser {verb}: {error.filename} cannot be used ({error.strerror}); give another place or make room")
        return 2


def _run(verb: str, rest: list[str]) -> int:
    if verb in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if verb in TRAINING:
        from laser.versions import check_triple

        check_triple()
        from laser.train.command_line import run_training

        run_training([verb, *rest])
        return 0
    if verb == "doctor":
        from laser.doctor import examine

        return examine()
    if verb == "report":
        return _report(rest)
    if verb in MODULES:
        return import_module(MODULES[verb]).main(rest) or 0
    raise ValueError(f"{verb!r} is not a verb; expected one of {', '.join([*TRAINING, 'report', *MODULES, 'doctor'])}")


def _report(rest: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="laser report", description="Write report.html of a run.")
    parser.add_argument("run", type=Path, help="folder of the run, such as runs/demo")
    run = parser.parse_args(rest).run
    from laser.report import write_report

    print(write_report(run))
    from laser.report.tracking import hand_over

    hand_over(run)
    return 0


def _is_ours(error: ImportError) -> bool:
    """Whether an ImportError is the sentence of ``laser.versions``, not a fault in a package."""
    from laser.versions import triple_problem

    return str(error) == triple_problem()


def one_line(message: str) -> str:
    """A message as a single line, without the parser's account of the types around a mistake."""
    line = " ".join(message.split())
    if line.startswith("Unexpected config:"):
        return "a recipe given with -c is empty or not a mapping; start from conf/demo.yaml"
    if unknown := re.search(r"Parser key \"([\w.]+)\".*Option '([\w.-]+)' is not accepted", line):
        where, name = unknown.groups()
        return f"{where} has no option {name!r}; --print_config shows all that there are"
    if nested := re.search(r"Parser key \"([\w.]+)\".*Parser key \"([\w.]+\".*?)\. Got value: Namespace", line):
        where, rest = nested.groups()
        line = f'Parser key "{where}.{rest}'
    if word := re.search(r"Parser key \"([\w.]+)\".*NestedArg\(key='([\w.]+)'", line):
        where, name = word.groups()
        return f"{where} is a word, which takes no option {name!r}; write it as class_path and init_args instead"
    if given := re.match(r"Parser key \"([\w.]+)\": (.*) (?:Got value|Given value): (.*)$", line):
        where, account, value = given.groups()
        if "not accessible or invalid" in account:
            return f"{where} is {value}, which cannot be imported; expected a class by its full name"
        if types := re.findall(r"Expected an? (.+?)(?=\.$|\. Got| - Expected| Given|$)", account):
            return f"{where} is {value}; expected {' or '.join(map(readable, types))}"
    return re.sub(r"^Parser key \"([\w.]+)\": ", r"\1: ", line)


def readable(kind: str) -> str:
    """A type as a person writes it: ``<class 'NoneType'>`` is null, ``typing.Literal['a', 'b']`` is 'a' or 'b'."""
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return choices[1].replace(", ", " or ")
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace("NoneType", "null")


if __name__ == "__main__":
    sys.exit(main())
