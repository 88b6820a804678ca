"""What a driver would have recorded, for tests that need a folder with a past."""

import uuid


def ended(folder, trial, rows):
    recording = folder.recording(uuid.uuid4().hex)
    recording.end(trial, rows)
    recording.flush()


def trained(folder, trial, rows):
    recording = folder.recording(uuid.uuid4().hex)
    recording.history(trial, rows)
    recording.flush()


def decided(folder, trial, rows):
    recording = folder.recording(uuid.uuid4().hex)
    for row in rows:
        recording.decide(trial, row)
