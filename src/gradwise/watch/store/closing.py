"""What `with` means for everything that writes a run."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from gradwise.watch.store.files import WriteError

__all__ = ["Closing"]


class Closing(ABC):
    """Closes at the end of a `with` block; a disk that refuses hides no error of the caller's."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left.

        Raises:
            WriteError: where that could not be written and is lost.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except WriteError:
            if kind is None:  # otherwise the caller's own error is the one to see
                raise
