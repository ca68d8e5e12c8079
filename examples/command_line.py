"""The command line of an example: what is wrong with it is said before training."""

import argparse
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Shows the example's docstring as help, and reports errors in one sentence.

    Args:
      docstring: of the example.
      picture: where the example draws unless `--output` says otherwise; None if it
        draws nothing.
    """

    def __init__(self, docstring: str | None, picture: str | None = None):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=docstring, formatter_class=layout)
        if picture is not None:
            self.add_argument(
                "--output",
                type=Path,
                default=Path(picture),
                metavar="FILE",
                help=f"the picture, by default {picture}",
            )

    def add_seed(self) -> None:
        """Let the user choose the seed of all that is random."""
        self.add_argument("--seed", type=int, default=0, metavar="N")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removesuffix('.')}.\n")

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, and check the seed and that the picture can be written."""
        parsed = super().parse_args(*args, **kwargs)
        if not 0 <= getattr(parsed, "seed", 0) < 2**32:
            self.error(f"--seed must be from 0 to 2**32 - 1, not {parsed.seed}")
        if hasattr(parsed, "output"):
            self._check_writable(parsed.output)
        return parsed

    def _check_writable(self, file: Path) -> None:
        try:
            is_new = not file.exists()
            file.open("ab").close()
            if is_new:
                file.unlink()
        except OSError as error:
            self.error(f"--output {file} cannot be written: {error.strerror}")
