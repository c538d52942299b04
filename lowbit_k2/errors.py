"""One clear line for what the user can mend: the error class and the wrapper of every script's main.

Anything that a user can put right (a missing file, a flag, a damaged archive) is a `UserError` whose text is one
line naming the thing and the remedy. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable

from lowbit_k2.core.text import printable

EXIT_USER_ERROR = 1
# What the file system refuses because of its state, not because of a bug: wrong kind of path, no right, no room.
REFUSALS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


class UserError(Exception):
    """Bad input. Its text is a single line that names the file or flag and says what to do."""

    one_line = True


class ReportedError(UserError):
    """Something went wrong that has been printed already: the script goes on to its end, and then fails."""


def is_one_line_error(error: BaseException) -> bool:
    """True for errors that are shown without a traceback (`UserError`, and `packed`'s own error class)."""
    return bool(getattr(error, "one_line", False))


OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # of CUDA's and of the CPU's allocator in torch's errors


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory for something."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)
    )


def file_system_refusal(error: BaseException) -> str | None:
    """A line for a path that cannot be read or written, None for any other error."""
    if not isinstance(error, OSError) or error.errno not in REFUSALS or error.filename is None:
        return None
    return f"{error.filename}: {error.strerror}: choose another path, or put it right"


def is_of_output(error: OSError) -> bool:
    """Whether stdout could not be written: a full disk, or a pipe whose reader has ended."""
    return error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT)


def print_error(line: str) -> None:
    """`error: ...` on stderr, in one line; what files say in it never drives the terminal."""
    print("error: " + printable(" ".join(line.split())), file=sys.stderr, flush=True)


def end_interrupted(number: int, frame: object) -> None:
    """A handler of Ctrl-C for the time in which a script imports what it needs (`launch.use_project_interpreter`)."""
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


def run_main(main: Callable[[], object]) -> None:
    """Run a script's main; print user errors as `error: ...` on stderr and exit with status 1."""
    if signal.getsignal(signal.SIGINT) is end_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on there may be something to clean up
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except ReportedError:
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        if not is_of_output(error):
            line = file_system_refusal(error)
            if line is None:
                raise
        else:
            line = f"the output cannot be written: {error.strerror}"
            # what is left in the buffer cannot be written either, and Python would say so again at its end
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print_error(line)
        sys.exit(EXIT_USER_ERROR)
    except Exception as error:
        spell = getattr(error, "as_flag", error.__str__)  # errors about a setting name its flag
        if not is_one_line_error(error):
            raise
        print_error(spell())
        sys.exit(EXIT_USER_ERROR)
