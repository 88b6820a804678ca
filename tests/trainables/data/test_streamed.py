"""Streamed images are those of the files, whoever decodes them, and a process that dies is one clear error."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from trainables.data.decode import cropped, evaluated
from trainables.data.files import DataError
from trainables.data.streamed import Files, Streamed

SIDE = 14
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    base = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (20 + i, 31 - i, 3), dtype=np.uint8)).save(base / f"{i}.png")
    return base


def files_of(base, workers, paths=None):
    paths = [f"{i}.png" for i in range(12)] if paths is None else paths
    return Files("made", str(base), paths, side=SIDE, device=CPU, workers=workers)


def streamed(base, workers, rows=range(12)):
    rows = np.array(rows, dtype=np.int64)
    return Streamed(files_of(base, workers), rows, torch.from_numpy(rows % 3))


ROWS = (7, 2, 11, 5, 0)
EPOCHS = ([[4, 0], [1, 2, 3]], [[0], [3, 1], [2, 2, 4]])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_decoded_files_whatever_the_number_of_processes(pictures, workers):
    images = streamed(pictures, workers, ROWS)
    state = torch.get_rng_state()
    for seed, epoch in ((5, EPOCHS[0]), (6, EPOCHS[1]), (None, EPOCHS[0])):
        found = list(images.batches([torch.tensor(batch) for batch in epoch], crop_seed=seed))
        for batch, positions in zip(found, epoch, strict=True):
            paths = [str(pictures / f"{ROWS[i]}.png") for i in positions]
            expected = [
                evaluated(path, SIDE) if seed is None else cropped(path, SIDE, seed, i)
                for path, i in zip(paths, positions, strict=True)
            ]
            assert np.array_equal(batch.numpy(), np.stack(expected))
            assert batch.dtype == torch.uint8
    assert (len(images), images.channels, images.side) == (5, 3, SIDE)
    assert torch.equal(torch.get_rng_state(), state)
    images.files.close()


@pytest.mark.parametrize("together", [1, 2, 5])
def test_parts_and_batches_together_are_of_the_images_given_out_batch_by_batch(pictures, together):
    images = streamed(pictures, 1)
    index, parts = torch.arange(12).split(5), [slice(1, 4), slice(0, 0), slice(0, 2)]
    expected = [batch[part] for batch, part in zip(images.batches(index, crop_seed=3), parts, strict=True)]
    found = list(images.batches(index, crop_seed=3, parts=parts, together=together))
    assert len(found) == -(-3 // together)
    for i, batches in enumerate(found):
        assert torch.equal(batches, torch.cat(expected[i * together : (i + 1) * together]))
    images.files.close()


def test_one_set_of_processes_serves_all_splits_and_epochs(pictures):
    files = files_of(pictures, 1)
    parts = [Streamed(files, np.array(rows), torch.tensor(rows)) for rows in ([0, 1, 2], [3, 4])]
    before = set(multiprocessing.active_children())
    seen = set()
    for part in parts * 2:
        assert len(list(part.batches([torch.arange(len(part))]))) == 1
        seen |= {child.pid for child in set(multiprocessing.active_children()) - before}
    assert len(seen) == 1
    files.close()
    assert set(multiprocessing.active_children()) <= before


def test_a_pass_that_was_left_does_not_reach_into_the_next(pictures):
    images = streamed(pictures, 1)
    left = images.batches(torch.arange(12).split(2))
    next(left)
    whole = torch.cat(list(images.batches(torch.arange(12).split(4))))
    assert np.array_equal(whole.numpy(), np.stack([evaluated(str(pictures / f"{i}.png"), SIDE) for i in range(12)]))
    with pytest.raises(RuntimeError, match="another pass"):
        next(left)
    images.files.close()


def test_no_batches_are_asked_of_no_process(pictures):
    images = streamed(pictures, 2)
    assert list(images.batches([])) == []
    assert images.files._loader is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_decoded_is_one_line(pictures, tmp_path, workers):
    (tmp_path / "good.png").write_bytes((pictures / "0.png").read_bytes())
    (tmp_path / "bad.jpg").write_text("text")
    files = files_of(tmp_path, workers, ["good.png", "bad.jpg"])
    images = Streamed(files, np.arange(2), torch.arange(2))
    found = images.batches([torch.tensor([0]), torch.tensor([0, 1])])
    next(found)
    with pytest.raises(DataError, match=r"bad\.jpg cannot be decoded") as caught:
        next(found)
    assert "\n" not in str(caught.value)
    files.close()


def test_names_of_any_bytes_are_read(pictures, tmp_path):
    odd = os.fsdecode("grün \udcff".encode("utf-8", "surrogateescape")) + ".png"
    (tmp_path / odd).write_bytes((pictures / "3.png").read_bytes())
    files = files_of(tmp_path, 0, [odd, "a much longer name than that.png"])
    found = next(Streamed(files, np.arange(1), torch.arange(1)).batches([torch.tensor([0])]))
    assert np.array_equal(found[0].numpy(), evaluated(str(pictures / "3.png"), SIDE))


def test_a_process_that_is_killed_is_one_line_and_the_next_pass_has_new_ones(pictures):
    before = set(multiprocessing.active_children())
    images = streamed(pictures, 2)
    found = images.batches(torch.arange(12).repeat(4).split(1))
    next(found)
    for child in set(multiprocessing.active_children()) - before:
        os.kill(child.pid, signal.SIGKILL)
    start = time.perf_counter()
    with pytest.raises(DataError, match="a process that decodes images ended unexpectedly") as caught:
        list(found)
    assert time.perf_counter() - start < 30  # torch looks every 5 s
    assert "\n" not in str(caught.value)
    assert len(list(images.batches(torch.arange(12).split(6)))) == 2
    images.files.close()


SCRIPT = """
import os, sys, time
import numpy as np, torch
from trainables.data.streamed import Files, Streamed
if __name__ == "__main__":
    files = Files("made", sys.argv[1], ["0.png", "1.png"], side=14, device=torch.device("cpu"), workers=2)
    images = Streamed(files, np.arange(2), torch.arange(2))
    next(images.batches([torch.tensor([0]), torch.tensor([1])]))
    print("ready", flush=True)
    time.sleep(60)
"""


def running(marker):
    """Processes whose environment holds the marker: forked ones have no command line of their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_no_process_outlives_a_killed_parent(pictures, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    marker = f"streamed-test-{os.getpid()}"
    parent = subprocess.Popen(
        [sys.executable, str(script), str(pictures)],
        env={**os.environ, "STREAMED_TEST": marker},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout.readline() == "ready\n"
    assert len(running(marker)) >= 4  # it, its fork server and two that decode
    parent.kill()
    parent.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while (left := running(marker)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
