"""From the words on the command line to a command, and from what goes wrong to one line and an exit code."""

__all__ = ["main"]

import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib import import_module
from typing import cast

from semflow.errors import ConfigError, SemflowError

from .options import Calibrate, Command, Demo, Evaluate, Export, Fit, Predict, Score, check_numbers

DESCRIPTION = "Find defects in images with normalizing flows trained on good parts only."
COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "fit": Fit,
    "calibrate": Calibrate,
    "evaluate": Evaluate,
    "predict": Predict,
    "score": Score,
    "export": Export,
}
WRONG, INTERRUPTED = 2, 130
GOES_ON = "; the same command goes on"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the entry point of `semflow`.

    Args:
        arguments: the words after the program's name; None takes those of this process.

    Returns:
        The exit code: 0, 2 for a mistake (one line on standard error says which), or 130 when interrupted. With the
        environment variable SEMFLOW_TRACEBACK set, a mistake shows where it was found instead.

    Example:
        >>> main(["evaluate", "--model", "no/such/run", "--data", "."])  # and a line on standard error
        2
    """
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if arguments is None and os.environ.get("WORLD_SIZE", "1") not in ("0", "1"):
        # One of several that torchrun has started: while Python takes itself down, a thread of gloo may still ask for
        # it, and C++ then ends the process with an abort, after all is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(words: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot write must not end the program
            stream.reconfigure(errors="backslashreplace")
    silenced, on_terminate = logging.root.manager.disable, signal.getsignal(signal.SIGTERM)
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings():
            # A library's warnings, logged or not, are for programmers; its own, semflow says in one line.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"semflow(\.|$)")
            warnings.showwarning = _show_warning
            name, options = _parse(words)
            check_numbers(options)
            _stop_on_terminate()
            import_module(f"semflow.app.cli.{name}").run(options)
            sys.stdout.flush()
    except SystemExit as done:  # --help
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        return _say("interrupted" + (_resume_hint(words)), INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has had enough, as in `semflow --help | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("SEMFLOW_TRACEBACK") or not _expected(error):
            raise
        return _say(f"error: {_message(error)}", WRONG)
    finally:  # who calls this from a program of his own gets both back
        logging.disable(silenced)
        if on_terminate is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
    return 0


def _stop_on_terminate() -> None:
    """Let a polite kill (of a job queue, of `timeout`) end like Ctrl-C, which leaves no half-written folder behind."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _parse(words: list[str]) -> tuple[str, Command]:
    """The command's name and its options; ConfigError with tyro's reason if the words make no sense."""
    import tyro

    if not words:
        words = ["--help"]
    captured = io.StringIO()
    try:
        with redirect_stderr(captured):
            options = tyro.extras.subcommand_cli_from_dict(
                dict(COMMANDS),
                prog="semflow",
                description=DESCRIPTION,
                args=words,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as done:
        if done.code in (0, None):
            raise
        raise ConfigError(_reason(captured.getvalue(), words)) from None
    name = next(name for name, kind in COMMANDS.items() if isinstance(options, kind))
    return name, cast(Command, options)


def _reason(box: str, words: list[str]) -> str:
    """One line out of the frame that tyro draws around a usage error."""
    lines = [re.sub(r"[\u2500-\u257f]", "", line).strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    text = " ".join(line for line in lines[1:] if line)  # the first line is the frame with a title
    text = re.split(r"(?:Argument helptext|For full helptext|Perhaps you meant|Got errors)", text)[0].strip(" .:")
    help_of = f"semflow {words[0]} --help" if words and words[0] in COMMANDS else "semflow --help"
    return f"{text or 'the arguments were not understood'}; see {help_of}"


def _expected(error: Exception) -> bool:
    """What the user can do something about; anything else is a mistake of ours and keeps its traceback."""
    return isinstance(error, SemflowError | OSError) or _out_of_memory(error)


def _out_of_memory(error: Exception) -> bool:
    """Python's, CUDA's, and that of torch's allocator on the CPU, which has no class of its own."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    if _out_of_memory(error):
        return "out of memory; choose a smaller --batch-size or --image-size"
    return str(error)


def _say(text: str, code: int) -> int:
    print(" ".join(text.split()), file=sys.stderr)
    return code


def _resume_hint(words: list[str]) -> str:
    hints = {"fit": "; go on with the same command and --resume", "predict": GOES_ON, "score": GOES_ON}
    return hints.get(words[0], "") if words else ""


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print("warning: " + " ".join(str(message).split()), file=sys.stderr)
