"""One value for each of many items, in processes of their own: what goes wrong in one stays there.

Why not a pool of `concurrent.futures`: there, a process that dies takes the batch with it, one that
hangs cannot be stopped, and spawned processes run a script a second time unless it is guarded.
"""

from __future__ import annotations

import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

START_SECONDS = 120  # to start a process and import the function's module
DIED = "its process died"
Outcome = tuple[float, str | None]  # the value; NaN and why there is none


def late(seconds: float) -> str:
    """The reason of an item over its time limit."""
    return f"longer than {seconds:g} s"


def evaluate(
    function: Callable[[Any], float],
    items: Sequence[Any],
    seconds: float = 20.0,
    workers: int | None = None,
) -> list[Outcome]:
    """(function(item), None) for each item, in order; (NaN, why) where there is no value.

    No value has an item on which the function raises, takes longer than ``seconds``, kills its
    process, or gives a number that is not finite; nor one that cannot be pickled. Each process
    computes on one thread.

    Args:
        function: picklable, of a module that can be imported.
        items: what is sent to the processes, by pickle.
        seconds: time limit of one item, finite.
        workers: number of processes; None: one for each CPU.

    Raises:
        ValueError: the function cannot be sent to another process, or a limit is not above 0.
        RuntimeError: a process cannot be started or cannot import the function's module.
    """
    if not 0 < seconds < math.inf or (workers is not None and workers < 1):
        raise ValueError(
            f"seconds = {seconds}, workers = {workers}: both must be above 0, and seconds finite"
        )
    sent = _pickled(function)
    if len(items) == 0:
        return []
    n = min(workers or os.cpu_count() or 1, len(items))
    processes = [_Process(sent, seconds) for _ in range(n)]
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def one(item: Any) -> Outcome:
        process = idle.get()
        try:
            return process.value(item)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(n)
    try:
        return list(threads.map(one, items))
    finally:  # Ctrl-C, too, ends here: nothing may wait for the items that are left
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.end()
        threads.shutdown()


def _pickled(function: Callable) -> bytes:
    name = getattr(function, "__qualname__", repr(function))
    try:
        sent = pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{name} cannot be sent to another process ({error}): define it with def, at the top"
            " level of a module"
        ) from error
    if b"__main__" in sent:
        raise ValueError(
            f"{name} is of the notebook or script that runs, which another process cannot import:"
            " put it in a .py file beside it and import it from there"
        )
    return sent


class _Process:
    """A process that holds the function; started for its first item and after each death."""

    def __init__(self, function: bytes, seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._process: subprocess.Popen | None = None
        self._ended = False

    def value(self, item: Any) -> Outcome:
        try:
            request = pickle.dumps(item)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            return math.nan, f"it cannot be sent to another process: {_text(error)}"
        process = self._process or self._start()
        answer, is_late = self._ask(process, request, self._seconds)
        if answer is None:
            return math.nan, late(self._seconds) if is_late else DIED
        return answer

    def end(self) -> None:
        """Kill it for good, from another thread: even one that is being started has no item."""
        self._ended = True
        self._stop()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdout.close()
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass  # what it had not read yet

    def _start(self) -> subprocess.Popen:
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        process = self._process = subprocess.Popen(
            [sys.executable, "-c", "from rgdm_lib.parallel import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        if self._ended:  # `end` may have come too early to see it
            self._stop()
        answer, _ = self._ask(process, self._function, START_SECONDS)
        if answer is None or answer[1] is not None:
            why = DIED if answer is None else answer[1]
            raise RuntimeError(f"a process for the reward cannot be started: {why}")
        return process

    def _ask(
        self, process: subprocess.Popen, request: bytes, seconds: float
    ) -> tuple[Outcome | None, bool]:
        """The answer, None if there is none; and whether the process was killed for being late."""
        killed = threading.Event()

        def kill() -> None:
            killed.set()
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            answer = None
        timer.cancel()
        timer.join()
        if (
            answer is None or killed.is_set()
        ):  # an answer may come while the process is being killed
            self._stop()
        return answer, killed.is_set()


def serve() -> None:
    """The other side: read a function, then items, from stdin; write an `Outcome` for each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent stops its processes
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the function prints is no answer
    function = None

    def answer(outcome: Outcome) -> None:
        pickle.dump(outcome, answers)
        answers.flush()

    try:
        function = pickle.loads(pickle.load(sys.stdin.buffer))
        answer((0.0, None))
    except Exception as error:  # noqa: BLE001  told to the parent, which raises
        answer((math.nan, _text(error)))
        return
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:  # the parent is gone
            return
        try:
            value = float(function(pickle.loads(request)))
            why = None if math.isfinite(value) else "not finite"
        except (Exception, SystemExit) as error:  # noqa: BLE001
            value, why = math.nan, _text(error)
        answer((value if why is None else math.nan, why))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
