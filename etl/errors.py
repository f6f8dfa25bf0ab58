"""Every error this package raises on purpose, grouped by what the caller does next.

    EtlError                      one clear line for a person; `exit_code` says how a command ends
    ├── ConfigError               exit 3: a setting is wrong; fix it and start again
    │   └── DatabaseRefusedError  exit 3: the database is not ours, or is newer than this program
    ├── DatabaseError             exit 1: the database cannot be read or written now
    │   └── RowRefusedError       a value among these rows is too large for it; others can be written
    ├── LeaseHeldError            exit 1: another process writes to this database
    ├── LeaseLostError            exit 1: this process may not write any more; nothing of the page was kept
    ├── ExportError               exit 1: what was asked for is not there, or the folder cannot be written
    │   └── UnknownSessionError   the session is not stored; Langfuse may have it
    ├── StdoutError               exit 1: what was asked for cannot be printed
    ├── ClockError                exit 1: the clock contradicts what is stored
    ├── ApiError                  exit 1: Langfuse did not give what was asked for
    │   ├── AuthError             exit 4: the key is wrong or may not read
    │   ├── ApiGoneError          this endpoint does not exist in this server's generation (404 or 410)
    │   ├── NotFoundError         the one object asked for does not exist
    │   ├── RequestRejectedError  400: the server refuses the request as sent; asking again will not help
    │   ├── TooMuchError          the same request with less (a smaller window or limit) may succeed
    │   ├── UnexpectedAnswerError 200 with something that is not an answer of Langfuse
    │   └── RetriableApiError     passing trouble that outlasted the retries
    ├── RowError                  exit 1: an object that Langfuse answered cannot become a row
    └── ShutdownRequested         exit 130: a signal asked us to stop at the next safe point

Messages hold no key, no header, no query string and no body (`docs/decisions.md`, "Private").
"""

from __future__ import annotations


class EtlError(Exception):
    """Base of every expected failure; its text is one line that says what happened and what to do.

    `needs_person`: it will not pass by waiting.
    """

    exit_code = 1
    needs_person = False


class ConfigError(EtlError):
    """A setting is wrong. `problems` holds one line per mistake, each naming its key."""

    exit_code = 3
    needs_person = True

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DatabaseRefusedError(ConfigError):
    """The database belongs to another application, or to a newer version of this program."""


class DatabaseError(EtlError):
    """The database could not be opened, read or written."""

    def __init__(self, message: str, *, needs_person: bool = False) -> None:
        self.needs_person = needs_person
        super().__init__(message)


class RowRefusedError(DatabaseError):
    """A value is beyond a limit of the database; nothing of its transaction was kept, other rows can be written."""


class LeaseHeldError(EtlError):
    """Another process holds the right to write. The text says who and since when."""


class LeaseLostError(EtlError):
    """This process lost the right to write; the transaction at hand is rolled back."""


class ExportError(EtlError):
    """A selection that does not exist, or a folder that cannot be written."""


class UnknownSessionError(ExportError):
    """A session that is named is not stored."""


class ClockError(EtlError):
    """The clock contradicts what is stored, such as coverage that ends in the future."""

    needs_person = True


class StdoutError(EtlError):
    """Standard output takes nothing."""


class ApiError(EtlError):
    """Langfuse did not give what was asked for.

    `path` is the endpoint without its query, `status` the HTTP status or None if there was no answer.
    """

    def __init__(self, message: str, *, path: str, status: int | None = None) -> None:
        self.path = path
        self.status = status
        super().__init__(message)


class AuthError(ApiError):
    """401 or 403: the key pair is wrong, of the wrong kind, or may not read."""

    exit_code = 4
    needs_person = True


class ApiGoneError(ApiError):
    """The endpoint does not exist here.

    `left_behind` is true if Langfuse itself says that this server's generation has no such endpoint any more; false
    if it may as well be a wrong address or a proxy.
    """

    needs_person = True

    def __init__(self, message: str, *, path: str, status: int | None = None, left_behind: bool = False) -> None:
        self.left_behind = left_behind
        super().__init__(message, path=path, status=status)


class NotFoundError(ApiError):
    """The one object asked for does not exist (a 404 with Langfuse's own error body)."""


class RequestRejectedError(ApiError):
    """400: the server refuses the request as it was sent."""

    needs_person = True


class TooMuchError(ApiError):
    """The answer was too large or took too long; the same question with less may succeed.

    `timed_out` is true if the server (or we) gave up waiting, false if the answer was too large.
    """

    def __init__(self, message: str, *, path: str, status: int | None = None, timed_out: bool) -> None:
        self.timed_out = timed_out
        super().__init__(message, path=path, status=status)


class UnexpectedAnswerError(ApiError):
    """A success status with something that is not an answer of Langfuse."""


class RetriableApiError(ApiError):
    """Passing trouble (429, 5xx, a broken connection) that outlasted every retry."""


class RowError(EtlError):
    """An object of an answer cannot be read, or has no usable key: there is no row it could be."""


class ShutdownRequested(EtlError):  # noqa: N818 - a signal, not an error
    """A signal asked to stop; raised at the next safe point, after the page at hand was stored."""

    exit_code = 130
