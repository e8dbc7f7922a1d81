"""Entry point of the command line: parse the arguments, run the command, and report errors in one line."""

import atexit
import gc
import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import cast

from semflow._memory import is_out_of_memory, keep_freed_memory, memory_advice
from semflow._optional import import_large
from semflow._version import __version__
from semflow.errors import ConfigError, SemflowError, WeightsError

from .command import printed, without_weights
from .halves import shorten_waits
from .option_checks import check_numbers
from .options import Benchmark, Calibrate, Command, Demo, Evaluate, Export, Fit, Predict, Remember, Score

DESCRIPTION = (
    "Find defects in images with normalizing flows trained on good parts only. semflow --version prints the version."
)
COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command
    for command in (Demo, Fit, Calibrate, Remember, Evaluate, Predict, Score, Export, Benchmark)
}
ERROR, INTERRUPTED = 2, 130
CONTINUE = "run the same command again to continue"
CONTINUE_BY_COMMAND = {"fit": "run the same command with --resume to continue", "predict": CONTINUE, "score": CONTINUE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, the words after `semflow` on the command line, and return the exit code.

    It is 0, 1 if the command is done but something that looks like an image was not read, 2 after an error (reported in
    one line on standard error), or 130 after an interrupt. If the environment variable SEMFLOW_TRACEBACK is set, an
    error raises instead.

    Example:
        >>> main(["evaluate", "--model", "no/such/run", "--data", "."])  # and a line on standard error
        2
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:  # the process does nothing else
        keep_freed_memory()
    atexit.register(gc.freeze)  # a last collection of all modules would take half a second
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may contain characters that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        with _process_settings():
            if words == ["--version"]:
                print(f"semflow {__version__}")
                return 0
            name, options = _parse(words)
            check_numbers(options)
            _greet(options)
            if isinstance(options, Evaluate) or (isinstance(options, Predict) and options.watch is None):
                shorten_waits()  # of batches; a single image that arrives is faster without
            code: int | None = import_large(f"semflow.app.cli.{name}").run(options)
            sys.stdout.flush()
            return code or 0
    except SystemExit as done:  # --help
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        hint = CONTINUE_BY_COMMAND.get(words[0]) if words else None
        return _report(f"interrupted; {hint}" if hint else "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader closed the pipe, as in `semflow --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        message = without_weights(error, words) if isinstance(error, WeightsError) else _message(error)
        if message is None or os.environ.get("SEMFLOW_TRACEBACK"):
            raise
        return _report(f"error: {message}", ERROR)
    return 0


@contextmanager
def _process_settings() -> Iterator[None]:
    """Show semflow's warnings only, handle SIGTERM like Ctrl-C, and restore the previous settings at the end."""
    disabled, handler = logging.root.manager.disable, signal.getsignal(signal.SIGTERM)
    on_main_thread = threading.current_thread() is threading.main_thread()
    try:
        logging.disable(logging.WARNING)
        if on_main_thread:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"semflow(\.|$)")
            warnings.showwarning = lambda message, *_, **__: print(_one_line(f"warning: {message}"), file=sys.stderr)
            yield
    finally:
        logging.disable(disabled)
        if handler is not None and on_main_thread:
            signal.signal(signal.SIGTERM, handler)


def _parse(words: list[str]) -> tuple[str, Command]:
    """Return the command's name and options. Raise ConfigError with tyro's reason for a usage error."""
    import tyro

    captured = io.StringIO()
    try:
        with redirect_stderr(captured):
            config = (tyro.conf.FlagCreatePairsOff,)
            options = tyro.extras.subcommand_cli_from_dict(
                dict(COMMANDS), prog="semflow", description=DESCRIPTION, args=words or ["--help"], config=config
            )
    except SystemExit as done:
        if done.code in (0, None):
            raise
        raise ConfigError(_usage_error(captured.getvalue(), words)) from None
    return type(options).__name__.lower(), cast(Command, options)


def _greet(options: Command) -> None:
    """Print a first line before torch is imported, which takes seconds."""
    training = isinstance(options, Demo) or (isinstance(options, Fit) and not options.print_config)
    if training and os.environ.get("RANK", "0") == "0":
        print(f"semflow {__version__} is starting", flush=True)


def _usage_error(box: str, words: list[str]) -> str:
    """Extract one line from the box that tyro draws around a usage error."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]|-{9,}", "", box)  # without colors and frame
    lines = [line.strip() for line in plain.splitlines()]
    text = " ".join(line for line in lines[1:] if line)  # the first line is the frame with a title
    text = re.split(r"(?:Argument helptext|For full helptext|Perhaps you meant|Got errors)", text)[0].strip(" .:")
    command = printed([*(words[:1] if words and words[0] in COMMANDS else ()), "--help"])
    return f"{text or 'invalid arguments'}; see {command}"


def _message(error: Exception) -> str | None:
    """Return the message for errors that a user can fix. Other errors return None and keep their traceback."""
    if is_out_of_memory(error) and not isinstance(error, SemflowError):
        return memory_advice(error) or "out of memory; choose fewer images or a smaller --batch-size or --image-size"
    if isinstance(error, RuntimeError) and ("DataLoader worker" in str(error) or "shared memory" in str(error)):
        return (
            f"workers must be able to load images, but got {error}; use --workers 0"  # in whatever code it was noticed
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) if isinstance(error, SemflowError | OSError) else None


def _report(text: str, code: int) -> int:
    print(_one_line(text), file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split())
