"""Faults at exact points of a real `study run`, which knows nothing of them.

Python imports this module at the start of every process that finds its folder on PYTHONPATH: the command, which is the
study's driver, and Ray's workers, which inherit the environment. The plan is JSON in STUDY_FAULTS:

    control    a folder of this case's own: markers, process ids, the log of epochs
    study      the study's folder
    roles      {role: a word of the command line that tells it}
    settings   {module: {name: value}} set once the module is imported
    faults     a list of {name, role, event, actions, path, epoch, seed, step, nth, lasting}

A fault happens once over all processes of all runs, at the `nth` time (of the process) that its event comes:

    open       a file whose path matches `path` is opened to be written
    rename     a file is renamed to a path that matches; what it holds is written, and nobody sees it yet
    renamed    that has just happened
    delete     a path that matches is about to be deleted by `study.files`
    planned    `study.plan.make_plan` has its plan
    step       step `step` of epoch `epoch` of seed `seed` begins
    trained    that epoch of that seed is over

Its `actions`, in their order: `kill` and `terminate` the process itself; `kill driver`, `terminate driver`, `kill
worker`; `hold`: say so by `held` in the control folder and wait until it has `release`; `hang` for good; `full`: what
was asked fails as on a full disk and, if the fault is `lasting`, so does every later write of this process below the
study's folder; `truncate` and `flip`: damage the newest checkpoint.

Every epoch that a replicate begins is a line `gamma seed epoch process` in the control folder's `epochs`.
"""

import errno
import functools
import glob
import importlib.machinery
import importlib.util
import json
import os
import re
import signal
import sys
import time

#: The events of Python's own auditing that matter here.
AUDITED = frozenset({"open", "os.rename"})

WRITING = os.O_WRONLY | os.O_RDWR


class Faults:
    """What the plan wants of this process."""

    def __init__(self, plan, role):
        self.control, self.study = plan["control"], plan["study"]
        self.settings = plan.get("settings", {})
        self.faults = [fault for fault in plan["faults"] if fault["role"] == role]
        self.times = {fault["name"]: 0 for fault in self.faults}
        #: Folders into which a fault's file is being renamed.
        self.renaming = {}
        #: The epoch that is being trained: seed, epoch, step.
        self.now = None
        self.full = False
        #: Whether it is this module that opens files just now.
        self.own = False
        if role == "driver":
            # The first one: a second driver is nobody's target.
            self._note(f"{role}.pid", str(os.getpid()), os.O_EXCL)

    def audit(self, event, arguments):
        """Python tells every opening and renaming beforehand."""
        if event not in AUDITED or self.own:
            return
        if event == "os.rename":
            self._rename(os.fsdecode(arguments[1]))
            return
        path, _, flags = arguments
        if not isinstance(path, int):
            self._open(os.fsdecode(path), flags)

    def _open(self, path, flags):
        if path in self.renaming:
            # The first that `study.files` does after a rename is to open the folder, to force it to the disk.
            self._do(self.renaming.pop(path), path)
        if not flags & WRITING:
            return
        for fault in self._due("open", path):
            self._do(fault, path)
        self._room(path)

    def _rename(self, path):
        for fault in self._due("renamed", path):
            self.renaming[os.path.dirname(path)] = fault
        for fault in self._due("rename", path):
            self._do(fault, path)
        self._room(path)

    def delete(self, path):
        for fault in self._due("delete", path):
            self._do(fault, path)

    def planned(self):
        for fault in self._due("planned"):
            self._do(fault)

    def step(self):
        self.now["step"] += 1
        for fault in self._due("step"):
            self._do(fault)

    def begin(self, gamma, seed, epoch):
        self._note("worker.pid", str(os.getpid()), os.O_TRUNC)
        self._note("epochs", f"{gamma!r} {seed} {epoch} {os.getpid()}\n", os.O_APPEND)
        self.now = {"seed": seed, "epoch": epoch, "step": 0}

    def end(self):
        for fault in self._due("trained"):
            self._do(fault)

    def _due(self, event, path=None):
        """The faults whose turn it is, each claimed for good."""
        for fault in self.faults:
            if fault["event"] != event:
                continue
            if path is not None and not re.search(fault["path"], path):
                continue
            if path is None and self.now and any(self.now[k] != fault.get(k, self.now[k]) for k in self.now):
                continue
            self.times[fault["name"]] += 1
            if self.times[fault["name"]] == fault.get("nth", 1) and self._claim(fault, path):
                yield fault

    def _claim(self, fault, path):
        what = {"process": os.getpid(), "path": path, "now": self.now, "time": time.time()}
        return self._note(f"{fault['name']}.reached", json.dumps(what), os.O_EXCL)

    def _do(self, fault, path=None):
        for action in fault["actions"]:
            what, _, whom = action.partition(" ")
            if what in ("kill", "terminate"):
                self._signal(signal.SIGKILL if what == "kill" else signal.SIGTERM, whom)
            elif what == "full":
                self.full = fault.get("lasting", False)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            else:
                getattr(self, f"_{what}")()

    def _signal(self, number, whom):
        pid = os.getpid()
        if whom:
            with self._unseen(), open(os.path.join(self.control, f"{whom}.pid")) as file:
                pid = int(file.read())
        os.kill(pid, number)

    def _hold(self):
        self._note("held", str(os.getpid()), os.O_CREAT)
        while not os.path.exists(os.path.join(self.control, "release")):
            time.sleep(0.02)

    def _hang(self):
        while True:
            time.sleep(60)

    def _truncate(self):
        with self._unseen(), open(self._newest(), "r+b") as file:
            file.truncate(os.fstat(file.fileno()).st_size // 2)

    def _flip(self):
        with self._unseen(), open(self._newest(), "r+b") as file:
            file.seek(os.fstat(file.fileno()).st_size // 2)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))

    def _newest(self):
        return max(glob.glob(f"{self.study}/trials/*/checkpoints/*.pt"), key=os.path.getmtime)

    def _room(self, path):
        if self.full and path.startswith(self.study):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _note(self, name, text, flags):
        """Write into the control folder; False if it is there and must not be."""
        with self._unseen():
            try:
                file = os.open(os.path.join(self.control, name), os.O_WRONLY | os.O_CREAT | flags, 0o644)
            except FileExistsError:
                return False
            try:
                # In one call: no other process's line comes between.
                os.write(file, text.encode())
            finally:
                os.close(file)
            return True

    def _unseen(self):
        return _Unseen(self)


class _Unseen:
    def __init__(self, faults):
        self.faults = faults

    def __enter__(self):
        self.faults.own = True

    def __exit__(self, *_):
        self.faults.own = False


class Changing:
    """A finder of modules that changes some of them once they are there."""

    def __init__(self, changes):
        self.changes = changes

    def find_spec(self, name, path=None, target=None):
        if name not in self.changes:
            return None
        for finder in sys.meta_path:
            found = None if finder is self else finder.find_spec(name, path, target)
            if found is not None:
                found.loader.exec_module = self._changed(found.loader.exec_module, self.changes[name])
                return found
        return None

    @staticmethod
    def _changed(inner, changes):
        def execute(module):
            inner(module)
            for change in changes:
                change(module)

        return execute


def changes(faults):
    """Of each module that is changed, how."""
    found = {
        "trainables.replicate": [lambda module: _watch_epochs(module.Replicate, faults)],
        "trainables.sharpness.optimiser": [lambda module: _watch_steps(module.SharpnessAware, faults)],
        "study.files": [lambda module: _watch_deletions(module.Files, faults)],
        "study.plan": [lambda module: _watch_plans(module, faults)],
    }
    for name, values in faults.settings.items():
        # A module may have both.
        found.setdefault(name, []).append(lambda module, values=values: vars(module).update(values))
    return found


def _watch_epochs(kind, faults):
    inner = kind.train_epoch

    @functools.wraps(inner)
    def train_epoch(self):
        faults.begin(self.recipe.gamma, self.seed, self.epoch + 1)
        row = inner(self)
        faults.end()
        return row

    kind.train_epoch = train_epoch


def _watch_steps(kind, faults):
    inner = kind.step

    @functools.wraps(inner)
    def step(self, *arguments, **named):
        if faults.now:
            faults.step()
        return inner(self, *arguments, **named)

    kind.step = step


def _watch_deletions(kind, faults):
    inner = kind.delete

    @functools.wraps(inner)
    def delete(self, *parts):
        faults.delete(self.path(*parts))
        return inner(self, *parts)

    kind.delete = delete


def _watch_plans(module, faults):
    inner = module.make_plan

    @functools.wraps(inner)
    def make_plan(*arguments, **named):
        plan = inner(*arguments, **named)
        faults.planned()
        return plan

    module.make_plan = make_plan


def _role(roles):
    # `sys.argv` is not set yet.
    return next((role for role, word in roles.items() if any(word in part for part in sys.orig_argv)), None)


def _next_of_this_name():
    """Another sitecustomize further down the path is still due."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    found = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if found is not None and found.loader is not None:
        found.loader.exec_module(importlib.util.module_from_spec(found))


def _begin():
    text = os.environ.get("STUDY_FAULTS")
    if not text:
        return
    plan = json.loads(text)
    role = _role(plan["roles"])
    if role is None:
        return
    faults = Faults(plan, role)
    sys.meta_path.insert(0, Changing(changes(faults)))
    sys.addaudithook(faults.audit)


_begin()
_next_of_this_name()
