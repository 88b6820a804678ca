"""What was promised to be on record is on record, once and in order, whatever happens in between."""

import io
import itertools
import multiprocessing
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_folder import MOMENTS, Crash, MemoryFolder

from study import records
from study.records import KINDS, Piece, Recording, from_parquet, pieces, read, tidy, to_parquet
from study.store import StoreError, StudyFolder

ROWS = [
    {"trial": f"t{i % 3}", "cell": "c", "seed": i, "value": i / 7, "reason": None if i % 2 else "x", "stop": i > 4}
    for i in range(9)
]


@pytest.fixture
def small_fan(monkeypatch):
    """Merges of several levels within a few rows."""
    monkeypatch.setattr(records, "FAN", 3)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(records, "ENDS_EVERY", 0.0)
    monkeypatch.setattr(records, "EPOCHS_EVERY", 0.0)


# A file


def test_any_reader_of_parquet_reads_a_piece(tmp_path):
    (tmp_path / "p.parquet").write_bytes(to_parquet(ROWS))
    frame = pd.read_parquet(tmp_path / "p.parquet")
    pd.testing.assert_frame_equal(frame, pd.DataFrame(ROWS))
    assert from_parquet(to_parquet(ROWS), "p").to_pylist() == ROWS


def test_a_table_without_rows_or_columns_is_one():
    assert len(from_parquet(to_parquet([]), "p")) == 0


def test_every_truncation_of_a_piece_is_named():
    data = to_parquet(ROWS)
    for size in range(len(data)):
        with pytest.raises(StoreError, match=r"^runs/p is damaged .* put its copy back"):
            from_parquet(data[:size], "runs/p")


def test_every_flipped_byte_of_a_piece_is_named():
    data = to_parquet(ROWS)
    for at, flip in itertools.product(range(len(data)), (1, 128)):
        damaged = bytearray(data)
        damaged[at] ^= flip
        with pytest.raises(StoreError, match="is damaged"):
            from_parquet(bytes(damaged), "p")


@given(st.binary(max_size=200), st.integers(0, 3000), st.integers(0, 100))
def test_any_other_bytes_in_a_piece_are_named(noise, at, cut):
    data = to_parquet(ROWS)
    damaged = data[:at] + noise + data[at + cut :]
    if damaged != data:
        with pytest.raises(StoreError, match="is damaged"):
            from_parquet(damaged, "p")


def test_a_file_that_somebody_has_rewritten_is_not_believed():
    out = io.BytesIO()
    pd.DataFrame(ROWS).to_parquet(out)
    with pytest.raises(StoreError, match="checksum"):
        from_parquet(out.getvalue(), "p")
    assert from_parquet(out.getvalue(), "p", sealed=False).to_pylist() == ROWS


# Pieces


def put(folder, run, kind, first, last, rows=None):
    rows = [{"trial": "t", "number": n} for n in range(first, last + 1)] if rows is None else rows
    folder.write(to_parquet(rows), "records", run, Piece(run, kind, first, last).name)


def numbers(folder, kind="ends", run=None):
    return [row["number"] for row in folder.rows(kind) if run is None or row["run"] == run]


def test_a_piece_inside_another_of_its_run_and_kind_is_superseded():
    folder = MemoryFolder()
    for first, last in [(1, 4), (1, 1), (2, 2), (3, 4), (5, 5), (1, 2)]:
        put(folder, "r", "ends", first, last)
    put(folder, "r", "history", 1, 1)
    put(folder, "q", "ends", 1, 1)
    folder.write(b"", "records", "r", "ends-00000006-00000006.parquet.1234.tmp")
    folder.write(b"", "records", "r", "notes.txt")
    assert [(p.run, p.kind, p.first, p.last) for p in pieces(folder)] == [
        ("q", "ends", 1, 1), ("r", "ends", 1, 4), ("r", "ends", 5, 5), ("r", "history", 1, 1),
    ]  # fmt: skip
    assert numbers(folder) == [1, 1, 2, 3, 4, 5]


def test_tidying_leaves_one_small_piece_of_a_kind_and_nothing_superseded():
    folder = MemoryFolder()
    for run, first, last in [("q", 1, 1), ("r", 1, 3), ("r", 2, 2), ("r", 4, 4), ("r", 5, 5), ("r", 7, 7), ("r", 8, 8)]:
        put(folder, run, "ends", first, last)
    before = numbers(folder)
    tidy(folder, ["q"])
    assert len(folder.walk("records", "r")) == 6, "of another run"
    tidy(folder)
    assert list(folder.walk("records", "r")) == [Piece("r", "ends", *span).name for span in [(1, 3), (4, 5), (7, 8)]], (
        "what is missing between pieces stays missing"
    )
    assert numbers(folder) == before


def test_one_column_may_be_empty_in_one_piece_and_text_or_numbers_in_another():
    folder = MemoryFolder()
    put(folder, "r", "ends", 1, 1, [{"trial": "t", "reason": None, "value": None}])
    put(folder, "r", "ends", 2, 2, [{"trial": "t", "reason": "x", "value": 0.5, "more": 1}])
    expected = [{"trial": "t", "reason": None, "value": None, "more": None}, {
        "trial": "t", "reason": "x", "value": 0.5, "more": 1}]  # fmt: skip
    assert folder.rows("ends") == expected
    tidy(folder)
    assert folder.rows("ends") == expected
    assert folder.rows("ends", ["value", "nothing"]) == [{"value": None}, {"value": 0.5}]


def test_a_damaged_piece_is_not_merged_and_takes_nothing_with_it():
    folder = MemoryFolder()
    for n in (1, 2):
        put(folder, "r", "ends", n, n)
    path = f"records/r/{Piece('r', 'ends', 2, 2).name}"
    whole = folder.kept[path]
    folder.kept[path] = whole[:-1]
    before = dict(folder.kept)
    with pytest.raises(StoreError, match=r"00000002-00000002\.parquet is damaged"):
        tidy(folder)
    assert folder.kept == before
    folder.kept[path] = whole
    assert numbers(folder) == [1, 2]


# A run's recording


def test_ends_are_written_within_a_second_and_epochs_of_trials_that_go_on_less_often(monkeypatch):
    now = 100.0
    monkeypatch.setattr(records.time, "monotonic", lambda: now)
    folder = MemoryFolder()
    recording = Recording(folder, "r")
    recording.end("t", [{"number": 1}])
    recording.tick()
    assert numbers(folder) == [1], "the first end at once"
    recording.end("t", [{"number": 2}])
    recording.history("t", [{"number": 1}])
    recording.tick()
    now += records.ENDS_EVERY / 2
    recording.tick()
    assert numbers(folder) == [1]
    now += records.ENDS_EVERY / 2
    recording.tick()
    assert (numbers(folder), numbers(folder, "history")) == ([1, 2], [1])
    recording.history("t", [{"number": 2}])
    now += records.ENDS_EVERY
    recording.tick()
    assert numbers(folder, "history") == [1]
    now += records.EPOCHS_EVERY
    recording.tick()
    assert numbers(folder, "history") == [1, 2]


def test_however_many_rows_there_are_each_is_merged_a_few_times(small_fan):
    class Counting(MemoryFolder):
        written = 0

        def write(self, data, *parts):
            self.written += len(from_parquet(data, "p"))
            super().write(data, *parts)

    folder = Counting()
    recording = Recording(folder, "r")
    for n in range(3**5 + 1):
        recording.decide("t", {"number": n})
        assert len(folder.kept) <= 2 * 5 + 1, "at most FAN - 1 of each level"
    assert numbers(folder, "decisions") == list(range(3**5 + 1))
    # 243 rows once by themselves and once in each of the levels that are left: what fills several is merged at once.
    assert folder.written < 5 * 3**5


def test_a_run_goes_on_after_it_was_closed(small_fan, at_once):
    folder = MemoryFolder()
    recording = Recording(folder, "r")
    for n in range(10):
        recording.decide("t", {"number": n})
        recording.end("t", [{"number": n}])
        recording.close()
    assert numbers(folder, "decisions") == numbers(folder) == list(range(10))


# Any order of anything

OPERATIONS = st.one_of(
    st.tuples(st.just("history"), st.integers(0, 3)),
    st.tuples(st.just("end"), st.integers(1, 2)),
    st.just(("decide",)),
    st.just(("decide",)),
    st.just(("tick",)),
    st.just(("flush",)),
    st.just(("close",)),
    st.just(("tidy",)),
    st.just(("next run",)),
    st.tuples(st.just("run"), st.integers(0, 2)),
    st.tuples(
        st.just("fault"), st.integers(0, 12), st.sampled_from(MOMENTS), st.sampled_from([Crash, Crash, StoreError])
    ),
)


class Drivers:
    """Runs on one folder, one after the other or (as they must not, and could) at once; and what each was promised."""

    def __init__(self):
        self.folder = MemoryFolder()
        self.handed: dict[tuple[str, str], list[int]] = {}  # (run, kind) -> rows handed over, in their order
        self.refused: set[int] = set()  # decisions that were not promised: on record or not
        self.promised: dict[tuple[str, str], set[int]] = {}
        self.count = itertools.count()
        self.alive: list[Recording] = []
        self.begin()

    def begin(self):
        self.recording = Recording(self.folder, f"run{len(self.handed):03d}")
        for kind in KINDS:
            self.handed[self.recording.run, kind] = []
            self.promised[self.recording.run, kind] = set()
        self.alive = [self.recording, *self.alive][:3]

    def do(self, operation, *how):
        try:
            getattr(self, operation.replace(" ", "_"))(*how)
        except Crash:
            self.alive.remove(self.recording)
            self.begin()
            self.folder.tidy()
        except StoreError:
            # Nothing was promised. A run would end here; one that goes on does no harm.
            pass

    def give(self, kind, count):
        run = self.recording.run
        epochs = len(self.handed[run, "history"])
        rows = [{"number": next(self.count), "run": run, "epochs": epochs} for _ in range(count)]
        self.handed[run, kind] += [row["number"] for row in rows]
        return rows

    def history(self, count):
        self.recording.history("t", self.give("history", count))

    def end(self, count):
        self.recording.end("t", self.give("ends", count))

    def decide(self):
        (row,) = self.give("decisions", 1)
        self.refused.add(row["number"])
        self.recording.decide("t", row)
        self.refused.remove(row["number"])
        self.promised[self.recording.run, "decisions"].add(row["number"])

    def flush(self):
        self.recording.flush()
        self.keep()

    def tick(self):
        self.recording.tick()
        self.keep()

    def close(self):
        self.recording.close()
        self.keep()

    def keep(self):
        for kind in ("history", "ends"):
            self.promised[self.recording.run, kind] |= set(self.handed[self.recording.run, kind])

    def tidy(self):
        self.folder.tidy()

    def next_run(self):
        self.begin()

    def run(self, which):
        self.recording = self.alive[which % len(self.alive)]

    def fault(self, after, moment, error):
        self.folder.fail(after, moment, error)

    def check(self):
        found = {kind: self.folder.rows(kind) for kind in KINDS}
        for (run, kind), handed in self.handed.items():
            there = [row["number"] for row in found[kind] if row["run"] == run]
            assert self.promised[run, kind] <= set(there), "every promised row"
            assert len(there) == len(set(there)), "no row twice"
            sure = [n for n in handed if n not in self.refused or n in there]
            assert there == sure[: len(there)], "in its order, and none left out before the last"
        for row in found["ends"]:
            epochs = self.handed[row["run"], "history"][: row["epochs"]]
            assert set(epochs) <= {r["number"] for r in found["history"]}, "who has an end has every epoch"


@given(st.lists(OPERATIONS, max_size=40), st.integers(2, 4))
@settings(max_examples=250, deadline=None)
def test_any_order_of_runs_writes_and_crashes_keeps_every_promised_row_once_and_in_order(operations, fan):
    before = records.FAN, records.ENDS_EVERY, records.EPOCHS_EVERY
    records.FAN, records.ENDS_EVERY, records.EPOCHS_EVERY = fan, 0.0, 0.0
    try:
        drivers = Drivers()
        for operation in operations:
            drivers.do(*operation)
            drivers.check()
        drivers.folder.faults = []
        drivers.folder.tidy()
        drivers.check()
        names = drivers.folder.walk("records")
        assert not [name for name in names if name.endswith(".tmp")]
        assert len(names) == len(pieces(drivers.folder)), "nothing superseded is left"
    finally:
        records.FAN, records.ENDS_EVERY, records.EPOCHS_EVERY = before


# Readers beside writers


class Watched(MemoryFolder):
    """A folder in which others work while one lists and reads; what they change meanwhile a listing may miss."""

    def __init__(self, kept, work, misses):
        super().__init__(kept)
        self.work, self.misses = work, misses

    def walk(self, *parts):
        before = super().walk(*parts)
        self.work()
        after = super().walk(*parts)
        changed = sorted(before.keys() ^ after.keys())
        return dict.fromkeys([*before.keys() & after.keys(), *(name for name in changed if not self.misses(name))], 1)

    def read(self, *parts):
        self.work()
        return super().read(*parts)


class OneByOne:
    """A pool without threads: a failing example fails again."""

    def __init__(self, threads):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@given(st.integers(0, 60), st.lists(st.integers(0, 2), max_size=80), st.data())
@settings(max_examples=250, deadline=None)
def test_a_reader_misses_nothing_that_was_there_when_it_began(first, writes, data):
    """Listings are as bad as they may be. Fewer than FAN writes pass during two of them, as with 64 they do."""
    before = records.FAN, records.ThreadPoolExecutor
    records.FAN, records.ThreadPoolExecutor = 5, OneByOne
    try:
        folder = MemoryFolder()
        recording, count, plan = Recording(folder, "r"), itertools.count(), iter(writes)

        def work():
            nonlocal plan
            try:
                for _ in range(next(plan, 0)):
                    recording.decide("t", {"number": next(count)})
            except StoreError:
                # Somebody tidied what was still being written: the writer is told, and the reader sees no error.
                plan = iter([])
            if not next(plan, 1):
                tidy(folder)

        for _ in range(first):
            recording.decide("t", {"number": next(count)})
        misses = data.draw(st.sampled_from([lambda n: True, lambda n: len(n) % 2 == 0, lambda n: hash(n) % 3 > 0]))
        found = [row["number"] for row in read(Watched(folder.kept, work, misses), "decisions").to_pylist()]
        assert found == list(range(len(found)))
        assert len(found) >= first
    finally:
        records.FAN, records.ThreadPoolExecutor = before


def write_and_merge(uri, promised):
    """What a driver does that decides as fast as it can, run after run, until it is killed."""
    folder = StudyFolder(uri)
    for run in itertools.count():
        folder.tidy()
        recording = folder.recording(f"run{promised.value:08d}-{run}")
        for _ in range(150):
            recording.decide("t", {"number": promised.value})
            promised.value += 1
        if run % 2:
            recording.close()


def test_a_reader_in_another_process_sees_every_promised_row_while_runs_write_merge_and_are_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    promised = context.Value("q", 0, lock=False)
    folder, listings = StudyFolder(str(tmp_path)), 0
    for _ in range(2):
        writer = context.Process(target=write_and_merge, args=(folder.uri, promised))
        writer.start()
        began, stop = promised.value, time.monotonic() + 30
        while promised.value < began + 250 and time.monotonic() < stop:
            least = promised.value
            found = np.sort(folder.table("decisions", ["number"])["number"].to_numpy()) if least else np.array([])
            # One more than was promised: it is on record, and its writer has not come round to saying so.
            assert np.array_equal(found, np.arange(len(found)))
            assert least <= len(found) <= promised.value + 1
            listings += bool(least)
        writer.kill()
        writer.join()
        # A decision that was recorded and not acted on any more stands: the next driver finds it.
        promised.value = len(folder.table("decisions"))
    assert promised.value >= 500
    assert listings > 5
