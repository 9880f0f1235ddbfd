"""What can go wrong, as a tree.

    MinillmError
      ConfigError      the run file asks for something impossible     (also a ValueError)
      DataError        a prompt, text or record is not usable         (also a ValueError)
      ModelError       a model cannot play the part it was given      (also a ValueError)
      ClusterError     Ray or its machines cannot hold this run       (also a RuntimeError)
      NonFiniteLoss    training met a loss that is no number          (also an ArithmeticError)
      WorkerDied       an actor or rank died                          (also a RuntimeError)

Each says what was found, where, and a way out. They survive pickling, since they cross processes.
"""


class MinillmError(Exception):
    """The root of all errors that a person is meant to read."""


class ConfigError(MinillmError, ValueError):
    """One or more settings cannot be used; all faults are listed at once."""

    def __init__(self, *faults: str, source: str = "this run"):
        super().__init__(*faults)
        self.faults = faults
        self.source = source

    def __reduce__(self):
        return _rebuild_config_error, (self.faults, self.source)

    def __str__(self) -> str:
        return "\n  ".join([f"{self.source} cannot be used:", *self.faults])


def _rebuild_config_error(faults: tuple[str, ...], source: str) -> ConfigError:
    return ConfigError(*faults, source=source)


class DataError(MinillmError, ValueError):
    """A data set or one of its records is not what it should be."""


class ModelError(MinillmError, ValueError):
    """A model cannot play its part: missing, of the wrong kind, or with another tokenizer."""


class ClusterError(MinillmError, RuntimeError):
    """Ray cannot be reached, or its machines cannot hold what the run needs."""


class NonFiniteLoss(MinillmError, ArithmeticError):
    """A loss or gradient is not a finite number; the message names the batch."""


class WorkerDied(MinillmError, RuntimeError):
    """An actor or a learner rank is gone; the message names it."""
