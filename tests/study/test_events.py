"""Another reader of TensorBoard's files finds in ours what was reported."""

import math
import struct

import pytest

from study.events import EVERY, Events, encode, place
from study.plan import make_plan
from study.spec import Study
from study.store import StudyFolder

CONTENT = {
    "name": "small",
    "question": "Is it drawn?",
    "recipe": {"dataset": "synthetic", "model": "mlp", "batch_size": 32, "epochs": 4, "optimiser": "fsam"},
    "grid": {"gamma": [0.05], "eta": [1e-4]},
    "seeds": 2,
    "tensorboard": True,
}


def crc32c(data):
    """CRC-32C bit by bit, as RFC 3720 defines it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read(data):
    """step -> tag -> value, by the format's own definition."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
        body, rest = data[12 : 12 + size], data[12 + size :]
        assert struct.unpack("<I", rest[:4])[0] == masked(body)
        events.append(Event.FromString(body))
        data = rest[4:]
    assert events[0].file_version == "brain.Event:2"
    return {e.step: {v.tag: v.simple_value for v in e.summary.value} for e in events[1:]}


def test_the_reference_checksum_is_that_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283


def row(seed, epoch, **more):
    return {"seed": seed, "epoch": epoch, "train_loss": 2.0 / epoch, "validation_accuracy": 0.25 * epoch, **more}


def report(*epochs, done=False, **more):
    rows = [row(seed, epoch, **more) for epoch in epochs for seed in (0, 1)]
    last = [{**r, **({"test_accuracy": 0.875} if done else {})} for r in rows[-2:]]
    return {"rows": rows, "replicates": last, "epoch": epochs[-1], "done": done}


@pytest.fixture
def made(tmp_path):
    folder = StudyFolder(str(tmp_path / "small"))
    plan = make_plan(Study.of(CONTENT), folder)
    return folder, plan.todo[0]


def test_each_seed_is_a_run_with_every_epoch_once_and_the_test_accuracy_at_its_end(made):
    folder, trial = made
    events = Events(folder, ["gamma", "eta"])
    events.report(trial, report(1, eps_norm=0.5))
    # Lost and restored: the earlier epochs again.
    events.report(trial, report(1, 2, eps_norm=0.5))
    events.report(trial, report(3, done=True, eps_norm=0.5))
    assert folder.names("tensorboard", "default") or folder.names("tensorboard")
    for seed in (0, 1):
        found = read(folder.read(*place(trial, ["gamma", "eta"], seed)))
        assert list(found) == [1, 2, 3]
        assert found[3] == {"loss/train": pytest.approx(2 / 3), "accuracy/validation": 0.75, "accuracy/test": 0.875,
                            "optimiser/eps_norm": 0.5}  # fmt: skip
        assert "accuracy/test" not in found[2]


def test_a_trial_in_training_is_written_now_and_then(made):
    folder, trial = made
    now = [0.0]
    events = Events(folder, [], lambda: now[0])
    events.report(trial, report(1))
    assert folder.read(*place(trial, [], 0)) is None
    now[0] += EVERY
    events.report(trial, report(2))
    assert list(read(folder.read(*place(trial, [], 0)))) == [1, 2]


def test_names_say_what_is_varied_and_leave_the_folder_nowhere(made):
    _, trial = made
    assert place(trial, ["gamma", "eta"], 1)[2] == f"gamma=0.05_eta=0.0001_{trial.id}"
    assert all("/" not in part and part not in ("", ".", "..") for part in place(trial, ["gamma"], 0))


def test_what_is_no_number_is_left_out():
    found = read(encode([(1.0, row(0, 1, eps_norm=math.nan, lr=None, validation_loss=math.inf))]))
    assert found == {1: {"loss/train": 2.0, "accuracy/validation": 0.25}}


def test_tensorboard_itself_reads_them(made):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder, trial = made
    Events(folder, []).report(trial, report(1, 2, done=True))
    file = folder.path(*place(trial, [], 0))
    seen = accumulator.EventAccumulator(file).Reload()
    assert [e.value for e in seen.Scalars("accuracy/validation")] == [0.25, 0.5]
