"""Images that are decoded from their files in every epoch, by processes of their own.

The processes come from a fork server. A plain fork would copy the locks of Ray's gRPC threads and a CUDA context,
neither of which survives it; a spawn would import torch anew in each process (3 s on one shared core). The server
imports it once. The processes stay from one epoch to the next, and end with the object or, should this process be
killed, within seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainables.data.decode import cropped, evaluated
from trainables.data.files import DataError
from trainables.data.images import Images

#: Batches that each process decodes ahead.
PREFETCH = 2

#: One batch as the processes are told it: which files, which positions (for the draws), and the crops' seed.
Wanted = tuple[list[int], list[int], int | None]


class Files:
    """Image files and the processes that decode them, shared by the splits of one data set.

    Args:
        name: of the data set, for messages.
        base: folder of the files.
        paths: relative to `base`.
        side: of the images given out.
        device: where they go.
        workers: processes; 0 decodes in this one.
    """

    def __init__(
        self, name: str, base: str, paths: Sequence[str], *, side: int, device: torch.device, workers: int
    ) -> None:
        self.name, self.side, self.device, self.workers = name, side, device, workers
        self._decoding = _Decoding(base, paths, side)
        self._order = _Order()
        self._loader: DataLoader | None = None
        self._latest: object = None

    def batches(self, wanted: Sequence[Wanted]) -> Iterator[Tensor]:
        """Each batch in turn. A second iteration ends the first one: there is one set of processes.

        Raises:
            DataError: an image cannot be decoded, or a process ended unexpectedly.
            RuntimeError: the next batch of an iteration is asked for after another one has begun.
        """
        token = self._latest = object()
        self._order.wanted = wanted
        iterator = None
        for _ in range(len(wanted)):
            if token is not self._latest:
                raise RuntimeError(f"{self.name}: another pass over the images began before this one had ended")
            try:
                if iterator is None:
                    iterator = iter(self._started())
                batch = next(iterator)
            except (RuntimeError, OSError, EOFError) as error:
                if not self.workers:
                    raise  # no process is to blame
                iterator = None
                self.close()
                raise DataError(
                    f"{self.name}: a process that decodes images ended unexpectedly ({' '.join(str(error).split())});"
                    " it was killed, or ran out of memory: lower loader_workers or batch_size"
                ) from None
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch.to(self.device, non_blocking=True)

    def close(self) -> None:
        """End the processes; another iteration starts new ones."""
        self._loader = None

    def _started(self) -> DataLoader:
        if self._loader is None:
            several: dict[str, Any] = {}
            if self.workers:
                context = multiprocessing.get_context("forkserver")
                # The main module too, or every process would import it anew: in a Ray worker that is all of Ray.
                context.set_forkserver_preload(["__main__", __name__])
                several = {
                    "multiprocessing_context": context,
                    "persistent_workers": True,
                    "prefetch_factor": PREFETCH,
                    "worker_init_fn": _end_with_parent,
                }
            self._loader = DataLoader(
                self._decoding,
                batch_sampler=self._order,  # type: ignore[arg-type]  # its items go to the dataset as they are
                collate_fn=_as_it_is,
                num_workers=self.workers,
                pin_memory=self.device.type == "cuda",
                generator=torch.Generator(),  # else it would draw from the global one
                **several,
            )
        return self._loader


class Streamed(Images):
    """Some of the images of `Files`.

    Args:
        files: shared with the other splits.
        rows: (N,) which of the files.
        y: (N,) int64 labels, on the device of the files' images.
    """

    def __init__(self, files: Files, rows: NDArray[np.int64], y: Tensor) -> None:
        self.files, self.rows, self.y = files, rows, y

    @property
    def channels(self) -> int:
        return 3

    @property
    def side(self) -> int:
        return self.files.side

    def batches(
        self,
        index: Sequence[Tensor],
        *,
        crop_seed: int | None = None,
        parts: Sequence[slice] | None = None,
        together: int = 1,
    ) -> Iterator[Tensor]:
        """See `Images.batches`. A crop is a function of the seed and the image's position, whatever the order.

        Only the parts are decoded. Several batches together are a copy: they come from the processes one by one.
        """
        if parts is not None:
            index = [batch[part] for batch, part in zip(index, parts, strict=True)]
        found = self.files.batches(_Pass(self.rows, index, crop_seed))
        if together == 1:
            return found
        return (torch.cat([batch, *islice(found, together - 1)]) for batch in found)


class _Pass(Sequence[Wanted]):
    """Batches of positions, looked up when they are asked for: a million of Python's integers fill memory."""

    def __init__(self, rows: NDArray[np.int64], index: Sequence[Tensor], crop_seed: int | None) -> None:
        self.rows, self.positions, self.crop_seed = rows, [batch.cpu().numpy() for batch in index], crop_seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: Any) -> Any:
        return self.rows[self.positions[i]].tolist(), self.positions[i].tolist(), self.crop_seed


class _Order:
    """What to decode next; DataLoader asks it anew for each pass."""

    wanted: Sequence[Wanted] = ()

    def __iter__(self) -> Iterator[Wanted]:
        return iter(self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)


class _Decoding(Dataset):
    """What each process holds. The paths are one array of bytes: a million Python strings would be far more."""

    def __init__(self, base: str, paths: Sequence[str], side: int) -> None:
        self.base = os.fsencode(base)
        self.paths: NDArray[np.bytes_] = np.array([os.fsencode(path) for path in paths])
        self.side = side

    def __getitems__(self, wanted: Wanted) -> Tensor | str:
        """A batch, or the line that says which image cannot be decoded: an exception would come with its traceback."""
        files, positions, seed = wanted
        batch = torch.empty(len(files), 3, self.side, self.side, dtype=torch.uint8)
        into = batch.numpy()
        for i, (file, position) in enumerate(zip(files, positions, strict=True)):
            path = os.fsdecode(os.path.join(self.base, bytes(self.paths[file])))
            try:
                if seed is None:
                    into[i] = evaluated(path, self.side)
                else:
                    into[i] = cropped(path, self.side, seed, position)
            except DataError as error:
                return str(error)
        return batch


def _end_with_parent(worker: int) -> None:
    """End this process when the one that reads its batches is gone, as when Ray kills an actor.

    torch's own watch looks at the parent's id, which here is the fork server's; and the server lives on while one of
    its children does. The parent's sentinel is readable as soon as the parent is gone.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def _as_it_is(batch: Any) -> Any:
    return batch
