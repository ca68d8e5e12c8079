"""What all examples share: arguments that are checked before training, and Ctrl-C.

Scripts import it before JAX, since Ctrl-C ends them in one line from here on.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

NOTHING = "it was interrupted before there was anything to show"


def _end(*_: Any) -> NoReturn:
    """End the program, wherever it is.

    Not by an exception: in one of seven cases, an import of JAX swallowed it or made
    another of it.
    """
    os.write(2, f"{Path(sys.argv[0]).name}: {NOTHING}.\n".encode())
    os._exit(2)


# Not where Ctrl-C is ignored, as behind nohup.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a type of argument: whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        expected = f"at least {low}" if high is None else f"from {low} to {high}"
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(
                f"it must be a whole number, {expected}, not {text}"
            )
        return number

    return parse


@contextmanager
def until_interrupted(kept: Sized = (), told: str = NOTHING) -> Iterator[None]:
    """Let Ctrl-C end a block early, and go on with what was kept by then.

    If nothing was kept, the program ends. It also decorates a function.

    Args:
      kept: what the block fills.
      told: the program's last sentence if that is empty.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        if not len(kept):
            Parser(None).error(told)
        print("Interrupted: this is what there is so far.")
    finally:
        signal.signal(signal.SIGINT, before)


class Parser(argparse.ArgumentParser):
    """Shows an example's docstring as help, and reports errors in one sentence.

    Args:
      docstring: of the example.
      picture: the file that is drawn if `--output` names no other; None if none is.
      seeded: whether there is a `--seed`.
    """

    def __init__(
        self, docstring: str | None, picture: str | None = None, seeded: bool = False
    ):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=docstring, formatter_class=layout)
        if picture is not None:
            told = f"the picture; by default {picture}"
            self.add_argument(
                "--output", type=Path, default=picture, metavar="FILE", help=told
            )
        if seeded:
            kind, told = (
                whole_number(0, 2**32 - 1),
                "of all that is random; 0 by default",
            )
            self.add_argument("--seed", type=kind, default=0, metavar="N", help=told)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end the program."""
        self.exit(2, f"{self.prog}: {message.removesuffix('.')}.\n")

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and see whether the output can be written."""
        parsed = super().parse_args(*args, **kwargs)
        if getattr(parsed, "output", None):
            self._try_to_write(parsed.output)
        return parsed

    def _try_to_write(self, file: Path) -> None:
        is_new = not file.exists()
        try:
            file.open("ab").close()
        except OSError as error:
            self.error(f"--output {file} cannot be written: {error.strerror}")
        if is_new:
            file.unlink(missing_ok=True)  # Other processes try, too.
