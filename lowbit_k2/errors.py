"""One clear line for what the user can mend: the error class and the wrapper of every script's main.

Anything that a user can put right (a missing file, a flag, a damaged archive) is a `UserError` whose text is one
line naming the thing and the remedy. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_USER_ERROR = 1


class UserError(Exception):
    """Bad input. Its text is a single line that names the file or flag and says what to do."""

    one_line = True


def is_one_line_error(error: BaseException) -> bool:
    """True for errors that are shown without a traceback (`UserError`, and `packed`'s own error class)."""
    return bool(getattr(error, "one_line", False))


def run_main(main: Callable[[], object]) -> None:
    """Run a script's main; print user errors as `error: ...` on stderr and exit with status 1."""
    try:
        main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_one_line_error(error):
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
