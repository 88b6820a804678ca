"""A study's folder in memory, whose writes fail as a test asks: thousands of crashes in a second."""

from collections.abc import Callable

from study.store import StoreError, StudyFolder

#: When a write or a deletion goes wrong: before it has happened, when half of it has, or after it has.
MOMENTS = ("before", "half", "after")


class Crash(BaseException):
    """The process is gone: nothing catches it, nothing is tidied up."""


class MemoryFolder(StudyFolder):
    """What is written is in `kept`, by path; the folder of a next process is made of the same one.

    `faults` counts down the changes to the folder: at zero the moment's exception comes.
    """

    def __init__(self, kept: dict[str, bytes] | None = None) -> None:
        super().__init__("/memory/n")
        self.kept = {} if kept is None else kept
        self.faults: list[tuple[int, str, type[BaseException]]] = []

    def __getstate__(self):
        raise TypeError("stays in its process")

    def fail(self, after: int, moment: str = "before", error: type[BaseException] = Crash) -> None:
        """Let the change after so many more go wrong."""
        self.faults = [(after, moment, error)]

    def write(self, data: bytes, *parts: str) -> None:
        name = "/".join(parts)
        self._change(
            lambda: self.kept.__setitem__(name, bytes(data)),
            lambda: self.kept.__setitem__(f"{name}.1234.tmp", bytes(data)[: len(data) // 2]),
        )

    def delete(self, *parts: str) -> None:
        self._change(lambda: self.kept.pop("/".join(parts), None), lambda: None)

    def read(self, *parts: str) -> bytes | None:
        return self.kept.get("/".join(parts))

    def names(self, *parts: str) -> list[str]:
        return sorted({path.split("/")[0] for path in self.walk(*parts)})

    def walk(self, *parts: str) -> dict[str, int]:
        root = "".join(f"{part}/" for part in parts)
        return {path.removeprefix(root): len(data) for path, data in list(self.kept.items()) if path.startswith(root)}

    def _change(self, whole: Callable[[], object], half: Callable[[], object]) -> None:
        if not self.faults or self.faults[0][0] > 0:
            self.faults = [(n - 1, moment, error) for n, moment, error in self.faults]
            whole()
            return
        (_, moment, error), *self.faults = self.faults
        if moment != "before":
            (whole if moment == "after" else half)()
        raise error("cannot write: as asked") if error is StoreError else error()
