"""The command line: parsing only. What a command does is in `levada.commands`, imported when it runs."""

from __future__ import annotations

import argparse
import errno
import math
import re
import sys
from collections.abc import Callable, Sequence

from levada import __version__
from levada._errors import MeasurementError, TakenError, UsageError
from levada._ranks import is_first
from levada._termination import TERMINATED, Terminated
from levada.parsing import UNUSABLE, Parser, at_least, number

__all__ = ["main"]

UNMEASURED, INTERRUPTED = 3, 130
# As PyTorch says it of a CPU, of a GPU, and on Windows.
_NO_MEMORY = re.compile(
    "can't allocate memory|out of memory|not enough memory|Storage size calculation overflowed"
    "|integer multiplication overflow"
)
_COMPUTING = ("bench", "check", "fix", "replay", "run", "study", "train")  # where a model takes the memory
_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
# What the user of a command can do where a run is in the way of a new one.
TAKEN = {
    "train": "Name another run.folder, or continue the run with --resume.",
    "study": "Name another folder with --out, or give the same command again: it continues the run.",
}


_TWENTY = "20 is every twentieth step"
_PROCESSES = number("must be in [1, 1024]", lambda value: 0 < value <= 1024, "torchrun starts more", kind=int)
_PORT = number("must be in [0, 65535]", lambda value: 0 <= value < 2**16, kind=int)


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="levada",
        description="Keep the learning signal alive at any depth: carry it, measure it, prove it.",
        epilog="A target is path/to/file.py:name or package.module:name.",
    )
    parser.add_argument("--version", action="version", version=f"levada {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback behind an error")
    parser.set_defaults(command=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_check(commands)
    _add_fix(commands)
    _add_run(commands)
    _add_train(commands)
    _add_replay(commands)
    _add_study(commands)
    _add_report(commands)
    _add_serve(commands)
    _add_explore(commands)
    _add_export(commands)
    _add_doctor(commands)
    _add_bench(commands)
    _add_list(commands)
    return parser


def _command(commands: argparse._SubParsersAction[Parser], name: str, text: str) -> Parser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=name, parser=parser)
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _add_check(commands: argparse._SubParsersAction[Parser]) -> None:
    check = _command(
        commands, "check", "say where a model's learning signal dies or explodes, why, and what repairs it"
    )
    span = number("must be a number of seconds of at least 0", lambda value: value >= 0)
    run = "keep the report as a run folder, for 'levada report'"
    _add_model(check, "time for repeated measurements (60)", 60.0, span, run)


def _add_fix(commands: argparse._SubParsersAction[Parser]) -> None:
    fix = _command(commands, "fix", "try on copies of a model what repairs it, and write what helps as a patch")
    span = number("must be a positive finite number of seconds", _is_positive)
    run = "keep the checks as runs, DIR/before of the model as it is and DIR/after as repaired, for 'levada report'"
    _add_model(fix, "time for all of it (120)", 120.0, span, run)
    add = fix.add_argument
    add("--out", metavar="FILE.patch", help="write the change: a unified diff where it is one, otherwise code")
    # As `levada.fix`, said before torch is imported.
    add("--trials", type=at_least(3), default=3, metavar="N", help="seeds of the verification (3)")
    add("--steps", type=at_least(50), default=100, metavar="N", help="optimizer steps of each training (100)")


def _add_model(
    parser: argparse.ArgumentParser, budget: str, seconds: float, span: Callable[[str], float], run: str
) -> None:
    """Add what says which model is looked at, how it is trained, and where the report goes."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="target: an nn.Module, or a function without arguments that returns one")
    add("--batch", metavar="BATCH", help="target: a function that returns (inputs, targets), a mapping, or batches")
    add("--loss", metavar="LOSS", help="target: loss(outputs, targets); or cross_entropy, mse, output")
    add("--optimizer", metavar="OPT", help="a name in torch.optim, or a target: (parameters) -> optimizer")
    rate = number("must be a positive finite number", _is_positive, "Leave it out for the optimizer's")
    add("--lr", type=rate, metavar="F", help="learning rate")
    seed = number("must be in [0, 2^63)", lambda value: 0 <= value < 2**63, kind=int)
    add("--seed", type=seed, default=0, metavar="N", help="seed of the model's construction and of every draw (0)")
    add("--budget", type=span, default=seconds, metavar="SECONDS", help=budget)
    add(
        "--json", metavar="FILE", help="write the report as JSON; '-' is standard output, which then holds nothing else"
    )
    add("--sarif", metavar="FILE", help="write the findings as SARIF 2.1.0")
    add("--html", metavar="FILE", help="write the report as one self-contained page")
    add("--run", metavar="DIR", help=run)
    add("--fail-on", choices=("error", "warn", "never"), default="error", help="exit with 1 at this severity (error)")


def _add_study(commands: argparse._SubParsersAction[Parser]) -> None:
    study = _command(commands, "study", "reproduce a claim of the literature on real data; see 'levada list studies'")
    add = study.add_argument
    add("names", metavar="NAME", nargs="+", help="studies to run; 'all' are all of them")
    add("--scale", choices=("smoke", "small", "full"), default="small", help="how much to compute (small)")
    add("--out", metavar="DIR", default="runs", help="where the run folders go; existing results are kept (runs)")
    add(
        "--seeds",
        type=at_least(1, "Leave it out for the seeds of the scale"),
        metavar="N",
        help="number of seeds; a claim is decided with 5 or more",
    )
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting of the study")
    add("--executor", choices=("local", "slurm", "ray"), default="local", help="where configurations run (local)")
    text = "an option of the executor, e.g. slurm_partition=gpu, cluster=local, address=auto"
    add("--executor-set", metavar="KEY=VALUE", action="append", default=[], help=text)


def _add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    train = _command(commands, "train", "train a stack as a TOML file says, on one process or several")
    add = train.add_argument
    add("config", metavar="CONFIG.toml", help="the configuration; docs/train.md lists its keys")
    add("--set", metavar="TABLE.KEY=VALUE", action="append", default=[], help="change one setting of the file")
    add("--processes", type=_PROCESSES, metavar="N", help="start N on this machine; torchrun starts them on several")
    add("--resume", action="store_true", help="continue the run, if there is one, from its newest complete checkpoint")


def _add_run(commands: argparse._SubParsersAction[Parser]) -> None:
    run = _command(commands, "run", "run a training script as it is, and watch every model that it trains")
    run.usage = "levada run [options] SCRIPT [ARG ...]\n       levada run [options] -m MODULE [ARG ...]"
    add = run.add_argument
    add("--run", metavar="DIR", help="where the record goes, a folder without one (runs/SCRIPT-1, -2, ...)")
    add(
        "--every",
        type=number(
            "must be less than 2^62",
            lambda value: value < 2**62,
            _TWENTY,
            kind=number("must be at least 1", lambda value: value >= 1, _TWENTY, kind=int),
        ),
        default=20,
        metavar="N",
        help="sample every Nth optimizer step (20)",
    )
    add(
        "--max-overhead",
        type=number(
            "must be a share of the time, in (0, 1]",
            lambda value: 0 < value <= 1 or value == math.inf,
            "0.01 is one percent; inf is without a limit",
        ),
        default=0.01,
        metavar="F",
        help="share of the time that watching may take (0.01)",
    )
    shown = run.add_mutually_exclusive_group()
    for name, text in (
        ("live", "show the live view (as it is where standard error is a terminal)"),
        ("plain", "print plain lines once in a while, and findings as they come (as it is elsewhere)"),
        ("quiet", "print nothing"),
    ):
        shown.add_argument(f"--{name}", dest="view", action="store_const", const=name, help=text)
    # Everything behind SCRIPT or MODULE is the script's, also what looks like an option of ours.
    add("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="run a module, as python -m does")
    add("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="the script, and behind it its own arguments")


def _add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    report = _command(commands, "report", "make one self-contained page from run folders")
    report.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, or a folder that holds some")
    report.add_argument("-o", "--output", metavar="FILE", default="report.html", help="the page (report.html)")


def _add_serve(commands: argparse._SubParsersAction[Parser]) -> None:
    serve = _command(commands, "serve", "show the runs below a folder in a browser, also while they are written")
    add = serve.add_argument
    add("folder", metavar="DIR", help="a folder that holds runs")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1: this machine alone)")
    add("--port", type=_PORT, metavar="N", help="port to listen on, 0 for any that is free (8765)")
    add("--token", action="store_true", help="reading, too, needs the token of the printed address")
    add("--open", action="store_true", help="open the page in a browser")


def _add_explore(commands: argparse._SubParsersAction[Parser]) -> None:
    explore = _command(commands, "explore", "try networks of any depth in a browser: signal and gradient by layer")
    add = explore.add_argument
    add("--out", metavar="FILE", help="write the page as one file that opens from a disk, and serve nothing")
    add("--port", type=_PORT, metavar="N", help="port to listen on, 0 for any that is free (8765)")
    add("--no-open", dest="open", action="store_false", help="open no browser")


def _add_export(commands: argparse._SubParsersAction[Parser]) -> None:
    export = _command(commands, "export", "put a watched run into TensorBoard, Weights & Biases, MLflow or trackio")
    add = export.add_argument
    add("run", metavar="RUN", help="a run folder, or its address")
    add("--to", choices=("tensorboard", "wandb", "mlflow", "trackio"), required=True, help="the tracker")
    add("--out", metavar="DIR", default="exports", help="the folder that is written to (exports)")
    add(
        "--sites",
        type=at_least(1),
        default=8,
        metavar="N",
        help="how many sites' signals: first, last, and between them (8)",
    )


def _add_doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    doctor = _command(commands, "doctor", "check every checksum of a run folder and say what was lost")
    doctor.add_argument("run", metavar="RUN", help="a run folder, or a folder that holds some")
    text = "write the manifest, events and signals again, with what can be read; what was damaged is kept beside"
    doctor.add_argument("--reseal", action="store_true", help=text)
    doctor.epilog = "Exit codes: 0 sound, or mended with nothing missing; 1 something is lost or not certain; 2 no run."


def _add_replay(commands: argparse._SubParsersAction[Parser]) -> None:
    replay = _command(commands, "replay", "run a step that a watched run kept again, with everything measured")
    add = replay.add_argument
    add("bundle", metavar="BUNDLE", help="its folder, in RUN/bundles, or its address")
    add(
        "--model",
        metavar="MODEL",
        help="target, always needed: an nn.Module, or a function that returns one; or config.toml of a training",
    )
    add("--loss", metavar="LOSS", help="target: loss(outputs, noted targets), or loss(outputs); or a name as for check")
    add("--as-built", action="store_true", help="keep the weights that MODEL has, where the bundle holds none")
    add(
        "--json", metavar="FILE", help="write the report as JSON; '-' is standard output, which then holds nothing else"
    )
    add("--fail-on", choices=("error", "warn", "never"), default="error", help="exit with 1 at this severity (error)")


def _add_bench(commands: argparse._SubParsersAction[Parser]) -> None:
    bench = _command(
        commands, "bench", "run benchmarks of a checkout of levada: speed, memory, and how good verdicts are"
    )
    add = bench.add_argument
    add("names", metavar="NAME", nargs="*", help="benchmarks, e.g. diagnosis; their names are listed if left out")
    add("--quick", action="store_true", help="small cases; nothing is kept")


def _add_list(commands: argparse._SubParsersAction[Parser]) -> None:
    listing = _command(commands, "list", "list what the library holds")
    kinds = ("connections", "cells", "diagnostics", "remedies", "studies", "initialisations")
    text = f"what to list: {', '.join(kinds)}; these are told if left out"
    listing.add_argument("kind", choices=kinds, metavar="KIND", nargs="?", help=text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Exit codes: 0 done, and nothing at or above `--fail-on` (is left), or lost; 1 something is; 2 the command line or a
    target is unusable; 3 it could not be measured; 130 interrupted. Of `run`, those of the script.

    Args:
        arguments: the words after `levada`; the process's own if left out.

    Returns:
        The exit code.

    Example:
        >>> main(["doctor", "no/such/folder"])
        2
    """
    try:
        parser = _parser()
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            options.parser.unrecognized(unknown)
        if options.command is None:
            parser.error("a command is needed")
    except SystemExit as stop:  # the parser has said why
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _say("", "interrupted; nothing was written.", INTERRUPTED) if is_first() else INTERRUPTED
    if empty := _empty(options):
        told = f"{empty} must not be empty. Is a variable of the shell not set?"
        return _say(options.command, told, UNUSABLE)
    try:
        from levada import commands

        commands.output.FINISHED.clear()
        return commands.COMMANDS[options.command](options)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Terminated:
        return _say(options.command, f"ended by SIGTERM; {_kept(options.command)}.", TERMINATED)
    except SystemExit as stop:  # not ours: parsing is over
        return _say(options.command, f"the code that was run called sys.exit({stop.code!r}).", UNUSABLE)
    except KeyboardInterrupt:
        return _interrupted(options.command)
    except Exception as error:
        if options.debug:
            raise
        return _say(options.command, *_explain(error, options.command))


def _empty(options: argparse.Namespace) -> str:
    """Name the argument that is an empty word, which as a path would be the current folder; "" without one."""
    for action in options.parser._actions:
        value = getattr(options, action.dest, None)
        words = value if isinstance(value, list) else [value]
        # Behind the script, words are the script's.
        if "" in (words[:1] if action.nargs == argparse.REMAINDER else words):
            return str((action.option_strings or [action.metavar or action.dest])[-1])
    return ""


def _interrupted(command: str) -> int:
    """Say what an interruption leaves: files are written whole or not at all."""
    if not is_first():
        return INTERRUPTED
    return _say(command, f"interrupted; {_kept(command)}.", INTERRUPTED)


def _kept(command: str) -> str:
    output = sys.modules.get("levada.commands.output")  # imported after torch, which may take seconds
    if output is not None and output.FINISHED:
        return f"{', '.join(output.FINISHED)} was written, and nothing after it"
    alone = output is None or command in ("check", "fix", "replay", "report", "explore", "list")
    return "nothing was written" if alone else "what was finished is kept"


def _say(command: str, sentence: str, code: int) -> int:
    sys.stderr.write(f"{f'levada {command}'.rstrip()}: {sentence.removeprefix(f'{command}: ')}\n")
    return code


def _explain(error: Exception, command: str) -> tuple[str, int]:
    if isinstance(error, TakenError):
        return f"{error.rule} {TAKEN.get(command, 'Name another folder with --run.')}", UNUSABLE
    if isinstance(error, UsageError):
        return str(error), UNUSABLE
    if isinstance(error, MeasurementError):
        return str(error), UNMEASURED
    if isinstance(error, OSError) and error.errno in _FULL:
        what = "what was written" if error.filename is None else repr(str(error.filename))
        return f"the disk did not take {what}: {error.strerror}. Make room, or write to another disk.", UNUSABLE
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename)!r} cannot be used: {error.strerror}.", UNUSABLE
    told = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(told)):
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", told, re.IGNORECASE)
        at_once = f": {asked[1]} were asked for at once" if asked else ""
        advice = (
            "Use a smaller model or batch." if command in _COMPUTING else "End other programs, or use another machine."
        )
        return f"there is not enough memory{at_once}. {advice}", UNMEASURED
    return f"levada itself failed, which is a defect: {told} (--debug shows where).", UNMEASURED
