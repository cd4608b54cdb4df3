"""The faults this package tells apart, because each has another cure."""


class SampleError(ValueError):
    """The bytes are what was indexed, yet they cannot be decoded: the sample becomes a placeholder."""


class FormatError(ValueError):
    """A shard or a sample does not follow docs/data_format.md; found when indexing, before any training."""


class MismatchError(ValueError):
    """Index, tokenizer, shards or a saved cursor do not belong together; the message lists what differs."""


class DataFaults(MismatchError):
    """Tokenizer and sources of a recipe: every message of them, in `args`."""

    def __str__(self) -> str:
        return "; ".join(self.args)


class BudgetError(ValueError):
    """A sample or a mixture does not fit the configured budgets; the message has the numbers."""


class BadSamples(RuntimeError):
    """More samples are bad than the recipe allows; the message has the numbers and the last of them."""


class ShardFault(OSError):
    """Stored bytes differ from what was indexed, twice in a row: an environment fault, never skipped over."""


class StoreError(OSError):
    """An object store does not give what was asked, whatever was tried: ends the job. Names object, range, request."""


class MissingObject(StoreError, FileNotFoundError):
    """There is no such object."""


class ExistingObject(StoreError, FileExistsError):
    """There is an object where there must not be one."""
