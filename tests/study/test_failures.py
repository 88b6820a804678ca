"""What counts as whose failure. The texts are Ray 2.60's own, from killed workers, raylets and nodes."""

import pickle

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    LocalRayletDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayTaskError,
    UnserializableException,
)

from study.failures import MOST_LOSSES, SETTLING, Failures, Unexpected, classify
from trainables.memory import OutOfMemory

PROCESS_DIED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed."
)
NODE_DIED = (
    "The actor died because its node has died. Node Id: 5d50ee80ee6f9407bbb4aeead46ca7d377fefa863c6a9e10d1e4f3f7\n"
    "\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"
)
OWNER_DIED = (
    "The actor is dead because its owner has died. Owner Id: 01ff Owner Ip address: 192.0.2.2 Owner worker exit type: "
    "SYSTEM_ERROR Worker exit detail: Owner's node has crashed."
)
TRACEBACK = """\
ray::ResourceTrainable.train() (pid=1, ip=192.0.2.2)
  File "ray/tune/trainable/trainable.py", line 329, in train
    raise skipped from exception_cause(skipped)
  File "study.py", line 25, in step
    raise ValueError("bad")
          ^^^^^^^^^^^^^^^^^
"""
MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 9012) was "
    "9.46GB used / 23.54GB limit (0.401670)\nConsidered workers: [\nSelected to kill: (Actor(7c81): job ID=0100, "
    "pid=6612, actual memory used=7.88GB, worker ID=b984)\n]"
)


def died(text, reason=None):
    context = ActorDiedErrorContext(
        error_message=text, actor_id=b"\x01" * 16, pid=24756, node_ip_address="192.0.2.2", class_name="Trial"
    )
    if reason is not None:
        context.node_death_info.CopyFrom(NodeDeathInfo(reason=reason))
    return ActorDiedError(context)


def raised(cause):
    return RayTaskError(
        "train", TRACEBACK + f"{type(cause).__name__}: {cause}", cause, proctitle="train", pid=1, ip="x"
    )


def raised_in_setup(text):
    return ActorDiedError.from_task_error(
        RayTaskError("__init__", TRACEBACK + text, ValueError(), proctitle="x", pid=1, ip="x")
    )


LOST = {
    "a dead node": died(NODE_DIED),
    "the driver's dead node": died(OWNER_DIED),
    "a drained node": died("drained", NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED),
    "a silent actor": ActorUnavailableError("RpcError: RPC error: Socket closed rpc_code: 14.", b"\x01" * 16),
    "a lost answer": Unexpected(ObjectLostError("ab", None, "")),
    "no place": Unexpected(ActorUnschedulableError("its placement group is gone")),
    "the raylet": Unexpected(LocalRayletDiedError()),
}


@pytest.mark.parametrize("what", LOST)
def test_what_happens_to_a_node_is_a_loss(what):
    failure = classify(LOST[what])
    assert failure.kind == "lost"
    assert "\n" not in failure.reason
    assert "node is gone" in failure.reason or "its node 5d50ee80 is gone" in failure.reason


def test_a_loss_names_the_node_and_what_ray_knows():
    assert classify(died(NODE_DIED)).reason == (
        "its node 5d50ee80 is gone (terminated unexpectedly: health check failed due to missing too many heartbeats)"
    )


def test_a_killed_process_on_a_living_node_is_a_failure_of_the_trial():
    failure = classify(died(PROCESS_DIED))
    assert failure.kind == "died"
    assert failure.reason == (
        "the worker process died (killed by a signal, by the system when memory ran out, or by a crash in native code) "
        "on node 192.0.2.2"
    )


def test_a_process_that_ends_itself_says_how():
    text = "Worker exit type: USER_ERROR Worker exit detail: Worker exits by SystemExit(3)."
    failure = classify(died(f"The actor is dead because its worker process has died. {text}"))
    assert failure.kind == "died"
    assert failure.reason == "the worker process ended on node 192.0.2.2 (Worker exits by SystemExit(3).)"


def test_an_exception_is_said_in_its_own_line_without_rays():
    failure = classify(raised(ValueError("bad step\nsecond line")))
    assert (failure.kind, failure.reason) == ("error", "ValueError: bad step second line")
    assert classify(raised(KeyError())).reason == "KeyError"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ValueError: bad setup\nsecond line", "ValueError: bad setup second line"),
        ("trainables.data.DataError: there is: no data", "DataError: there is: no data"),
        ("AssertionError", "AssertionError"),
    ],
)
def test_an_exception_in_setup_is_read_from_rays_text(text, reason):
    assert classify(raised_in_setup(text)).reason == reason
    assert classify(raised_in_setup(text)).kind == "error"


def test_an_exception_that_cannot_travel_is_read_from_its_text():
    failure = classify(Unexpected(UnserializableException(f"{TRACEBACK}odd.Error: it has two arguments\n")))
    assert (failure.kind, failure.reason) == ("error", "Error: it has two arguments")


def test_an_exception_that_cannot_be_made_again_says_so():
    failure = classify(Unexpected(TypeError("Odd.__init__() missing 1 required positional argument: 'two'")))
    assert failure.kind == "error"
    assert failure.reason.startswith("it raised an exception that cannot be read outside its process (TypeError: Odd.")


def test_what_rays_memory_monitor_ends_is_out_of_memory_with_its_figures():
    failure = classify(Unexpected(OutOfMemoryError(MEMORY)))
    assert failure.kind == "memory"
    assert failure.reason == (
        "ended by Ray because node 192.0.2.2 ran out of memory (9.46GB of 23.54GB in use, 7.88GB by this worker)"
    )


@pytest.mark.parametrize("make", [raised, lambda error: raised_in_setup(f"trainables.memory.OutOfMemory: {error}")])
def test_what_ran_out_in_the_trials_process_keeps_its_own_words(make):
    failure = classify(make(OutOfMemory("out of memory on the CPU: batch_size 128")))
    assert (failure.kind, failure.reason) == ("memory", "out of memory on the CPU: batch_size 128")


def test_the_driver_adds_what_to_change_only_where_the_process_could_not():
    failures = Failures(0, remedy=lambda trial: f"smaller {trial}")
    failures.take("a", Unexpected(OutOfMemoryError(MEMORY)))
    failures.take("b", raised(OutOfMemory("out of memory: smaller batches")))
    assert failures.reason("a").endswith("by this worker); smaller a")
    assert failures.reason("b") == "out of memory: smaller batches"


def test_a_failure_is_retried_as_often_as_the_study_says_and_then_given_up_with_its_reason():
    failures = Failures(2)
    assert [failures.take("a", died(PROCESS_DIED)) for _ in range(3)] == [True, True, False]
    assert failures.reason("a").startswith("the worker process died")
    assert failures.reason("a").endswith("before the first epoch (tried 3 times)")
    assert failures.take("b", raised(ValueError("x"))), "another trial has retries of its own"
    assert failures.counts() == {"lost": 0, "memory": 0, "died": 3, "error": 1, "retried": 3, "given_up": 1}


def test_a_death_says_after_which_epoch():
    failures = Failures(0)
    failures.reported("a", 7)
    assert not failures.take("a", died(PROCESS_DIED))
    assert failures.reason("a").endswith("on node 192.0.2.2, after epoch 7")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_losses_are_not_counted_as_failures_and_leave_the_retries_alone():
    failures = Failures(0, clock=(clock := Clock()))
    for epoch in range(3 * MOST_LOSSES):
        failures.reported("a", epoch)
        clock.now += SETTLING
        assert failures.take("a", died(NODE_DIED))
    assert failures.counts()["lost"] == 3 * MOST_LOSSES
    assert not failures.take("a", raised(ValueError("x")))


def test_a_trial_that_is_lost_again_and_again_without_an_epoch_is_given_up():
    failures = Failures(0, clock=(clock := Clock()))
    taken = []
    for _ in range(MOST_LOSSES):
        clock.now += SETTLING
        taken.append(failures.take("a", died(NODE_DIED)))
    assert taken == [True] * (MOST_LOSSES - 1) + [False]
    assert f"{MOST_LOSSES} times in a row" in failures.reason("a")
    assert "5d50ee80" in failures.reason("a")


def test_losses_while_ray_has_not_noticed_a_dead_node_are_one():
    failures = Failures(0, clock=(clock := Clock()))
    for _ in range(5 * MOST_LOSSES):
        clock.now += SETTLING / 5
        again = failures.take("a", died(NODE_DIED))
    assert not again, "even quick losses come to an end"
    clock.now = 0.0
    failures = Failures(0, clock=clock)
    assert all(failures.take("a", died(NODE_DIED)) for _ in range(5 * MOST_LOSSES))


def test_an_error_that_ray_takes_for_a_bug_of_its_own_travels():
    original = OutOfMemoryError(MEMORY)
    error = pickle.loads(pickle.dumps(Unexpected(original)))
    assert classify(error) == classify(Unexpected(original))


def test_no_reason_is_longer_than_a_few_lines():
    assert len(classify(raised(ValueError("x" * 100_000))).reason) < 600
