"""What the commands of `analysis` and `diversity` share: arguments, the device that computes, and how a command ends."""

import argparse
import sys
from collections.abc import Callable, Sequence

from trainer.errors import UserError

DTYPES = ("float16", "bfloat16", "float32")


def main(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], object], arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and do the work; return its exit status.

    2 with the message on stderr for a UserError and for a file that cannot be read or written, 130 for Ctrl-C.
    """
    options = parser.parse_intermixed_args(arguments)
    try:
        work(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parser_of(module_doc: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser that shows a module's docstring as it stands."""
    return argparse.ArgumentParser(prog=prog, description=module_doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def positive(text: str) -> int:
    """Read an argument that counts from 1."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Read an argument that counts from 0."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is less than {least}")
    return number


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype, which `resolve_device` fills in."""
    parser.add_argument("--device", help="cuda, cuda:1, cpu; default: a GPU if there is one")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="auto: bfloat16 on a GPU, float32 on a CPU")


def resolve_device(options: argparse.Namespace) -> None:
    """Put a device and the name of a dtype where nothing was asked for."""
    import torch  # seconds that --help need not take

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {options.device}: torch sees no GPU here.")
    if options.dtype == "auto":
        options.dtype = "bfloat16" if options.device.startswith("cuda") else "float32"
