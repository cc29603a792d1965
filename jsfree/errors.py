"""The exceptions a user of jsfree can meet.

    JsfreeError
    +-- ConfigError     a setting, key or argument is wrong                        (exit code 2)
    +-- SourceError     the images of a run cannot be listed                       (exit code 2)
    +-- RunError        a run folder does not fit what was asked of it             (exit code 2)
    +-- LeaseError      another driver works on the run                            (exit code 1)
    +-- CodeError       code or libraries are not those that the work needs        (exit code 1)
    +-- StorageError    a path cannot be read or written                           (exit code 1)
    +-- DeviceError     a GPU, its driver, memory or a disk is not what is needed  (exit code 1)
    +-- ModelError      a model, processor or tokenizer cannot be loaded or saved  (exit code 1)
    +-- StageError      a stage ran and failed                                     (exit code 1)
    +-- PreflightError  a run was not begun, because it cannot work                (exit code 1)
    +-- ServeError      a server cannot start, or a replica of it cannot answer    (exit code 1)
    +-- DecodingError   captions cannot be decoded now, or decoding has ended      (exit code 1)
    |   +-- NoTokenError    the model gives no token of a caption any probability  (exit code 1)
    +-- RowError        one sample cannot be used; becomes a row of ``errors/``

An error has a problem (what is wrong, and where: file, row or key) and a remedy (what to do about it). Its text is
both, joined by a semicolon. All of them can be pickled, so that a worker's error reaches the driver as it was raised.
"""

from __future__ import annotations


class JsfreeError(Exception):
    """Base of all errors that jsfree raises on purpose; the text is written for users.

    Args:
        problem: what is wrong, and where.
        remedy: what the user can do; empty if nothing can be said.
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
    """A run folder exists, but does not fit what was asked of it."""

    exit_code = 2


class LeaseError(JsfreeError):
    """Another driver works on the run, or took it over."""


class CodeError(JsfreeError):
    """A process has other code or libraries than the driver, or than the uploaded code was made for."""


class StorageError(JsfreeError):
    """A path cannot be read or written."""


class DeviceError(JsfreeError):
    """A machine lacks what the settings ask of it: a GPU, a driver, memory, disk space."""


class ModelError(JsfreeError):
    """A model, processor or tokenizer cannot be loaded or saved."""


class StageError(JsfreeError):
    """A stage ran and failed as a whole."""


class PreflightError(JsfreeError):
    """A run was not begun: preflight found that it cannot work."""


class ServeError(JsfreeError):
    """A server cannot start, or a model replica does not decode."""


class DecodingError(JsfreeError):
    """There is no memory to decode a caption now, or the decoding of all captions has ended; its cause says why."""


class NoTokenError(DecodingError):
    """The model gives no token that may be drawn any probability; other captions are not affected."""


class RowError(JsfreeError):
    """One sample cannot be used.

    Args:
        kind: a short stable identifier (``missing``, ``undecodable``, ``too_large``...) by which rows of ``errors/``
            are grouped.
        problem: what is wrong, and where.
        remedy: what the user can do; empty if nothing can be said.
    """

    def __init__(self, kind: str, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.kind = kind

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str, str]]:
        return type(self), (self.kind, self.problem, self.remedy)
