"""The exceptions that jsfree raises for its users.

    JsfreeError
    +-- ConfigError     a setting, key or argument is wrong                   (exit code 2)
    +-- SourceError     the images of a run cannot be listed                  (exit code 2)
    +-- RunError        a run's folder does not match the request             (exit code 2)
    +-- LeaseError      another driver works on the run                       (exit code 1)
    +-- CodeError       a process has other code or libraries than required   (exit code 1)
    +-- StorageError    a path cannot be read or written                      (exit code 1)
    +-- DeviceError     a GPU, driver, memory or disk is insufficient         (exit code 1)
    +-- ModelError      a model, processor or tokenizer cannot be used        (exit code 1)
    +-- StageError      a stage failed                                        (exit code 1)
    +-- PreflightError  a run was not started, because preflight failed       (exit code 1)
    +-- ServeError      a server cannot start, or a replica does not decode   (exit code 1)
    +-- DecodingError   captions cannot be decoded, now or any more           (exit code 1)
    |   +-- NoTokenError    all tokens of a caption have probability zero     (exit code 1)
    +-- JudgeError      a judge cannot be asked, or its budget is spent       (exit code 1)
    +-- RowError        one sample cannot be used; becomes a row of ``errors/``

An error has a problem (what is wrong, and in which file, row or key) and a remedy (what to do). Its text joins them
with a semicolon. All errors can be pickled, so that the driver can raise a worker's error unchanged.
"""

from __future__ import annotations


class JsfreeError(Exception):
    """Base class of all errors that jsfree raises on purpose; the text is written for users.

    Args:
        problem: what is wrong, and where.
        remedy: what the user can do; may be empty.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class ConfigError(JsfreeError):
    """A setting, key or command-line argument is wrong."""

    exit_code = 2


class SourceError(JsfreeError):
    """The image source of a run cannot be read or holds no images."""

    exit_code = 2


class RunError(JsfreeError):
    """The folder of a run does not match the request: its configuration, its stages or its format."""

    exit_code = 2


class LeaseError(JsfreeError):
    """Another driver works on the run, or has taken it over."""


class CodeError(JsfreeError):
    """A process has other code or libraries than the driver, or than the uploaded code requires."""


class StorageError(JsfreeError):
    """A path cannot be read or written."""


class DeviceError(JsfreeError):
    """A machine lacks what the settings require: a GPU, a driver, memory or disk space."""


class ModelError(JsfreeError):
    """A model, processor or tokenizer cannot be loaded or saved."""


class StageError(JsfreeError):
    """A stage failed as a whole."""


class PreflightError(JsfreeError):
    """A run was not started, because preflight failed."""


class ServeError(JsfreeError):
    """A server cannot start, or a model replica does not decode."""


class DecodingError(JsfreeError):
    """A caption cannot be decoded for lack of memory, or the decoding loop has ended; see its cause."""


class NoTokenError(DecodingError):
    """All tokens that can be drawn have probability zero; other captions are not affected."""


class JudgeError(JsfreeError):
    """A judge cannot be asked further: the key is refused, the server does not reply, or the budget is spent."""


class RowError(JsfreeError):
    """One sample cannot be used.

    Args:
        kind: a short stable identifier, such as ``missing`` or ``undecodable``, that groups the rows of ``errors/``.
        problem: what is wrong, and where.
        remedy: what the user can do; may be empty.
    """

    def __init__(self, kind: str, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.kind = kind

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str, str]]:
        return type(self), (self.kind, self.problem, self.remedy)
