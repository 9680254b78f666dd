"""Items in processes of their own: order, and that one that goes wrong loses one value only."""

import functools
import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import wayward

from rgdm_lib import parallel


def test_one_that_raises_hangs_dies_or_gives_nan_loses_its_own_value_only():
    items = [1, "raise", 2, "hang", 3, "die", 4, "exit", 5, "nan", "infinite", "print", 6]
    start = time.monotonic()
    found = parallel.evaluate(wayward.wayward, items, seconds=4, workers=2)
    assert time.monotonic() - start < 100
    reasons = {
        "raise": "Unpicklable: out of luck",
        "hang": "longer than 4 s",
        "die": parallel.DIED,
        "exit": "SystemExit: 3",
        "nan": "not finite",
        "infinite": "not finite",
    }
    for item, (value, why) in zip(items, found, strict=True):
        if item in reasons:
            assert math.isnan(value) and why == reasons[item]
        else:
            assert value == (5 if item == "print" else 2 * item) and why is None


def test_values_stay_in_order_whichever_is_ready_first():
    items = [0.3, 0.0, 0.2, 0.1, 0.0]
    found = parallel.evaluate(wayward.pause, items, workers=3)
    assert found == [(seconds, None) for seconds in items]


def test_the_limit_is_one_items_and_not_the_batchs():
    assert [v for v, _ in parallel.evaluate(wayward.pause, [1.2] * 4, 4.0, workers=1)] == [1.2] * 4


def test_processes_are_as_many_as_asked_and_compute_on_one_thread():
    pids = {pid for pid, _ in parallel.evaluate(wayward.process, range(8), workers=1)}
    assert len(pids) == 1
    assert parallel.evaluate(wayward.threads, [0], workers=1) == [(1.0, None)]


@pytest.fixture
def started(monkeypatch):
    """The processes started during the test."""
    processes, popen = [], subprocess.Popen

    def remember(*arguments, **options):
        processes.append(popen(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", remember)
    return processes


def test_one_process_serves_until_it_dies_and_none_is_left_behind(started):
    found = parallel.evaluate(wayward.wayward, [1, 2, "die", 3, "hang", "hang"], 3.0, workers=1)
    assert [math.isnan(value) for value, _ in found] == [False, False, True, False, True, True]
    assert [process.returncode for process in started] == [3, -9, -9]


@pytest.fixture
def ctrl_c_is_heard():
    """Also in a test run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_waits_for_nothing_and_leaves_no_process_behind(started):
    def interrupt():
        while len(started) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        parallel.evaluate(wayward.pause, [100.0] * 3, seconds=1000, workers=2)
    assert time.monotonic() - start < 20
    assert [process.returncode for process in started] == [-9, -9]


def test_no_items_need_no_process(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert parallel.evaluate(wayward.wayward, []) == []


def test_what_cannot_be_sent_is_refused_with_what_to_do():
    for function in (lambda item: 1.0, functools.partial(lambda item: 1.0)):
        with pytest.raises(ValueError, match="define it with def, at the top level"):
            parallel.evaluate(function, [1])
    for seconds in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match="both must be above 0, and seconds finite"):
            parallel.evaluate(wayward.wayward, [1], seconds=seconds)
    with pytest.raises(ValueError, match="both must be above 0"):
        parallel.evaluate(wayward.wayward, [1], workers=0)


def test_an_item_that_cannot_be_sent_has_no_value_and_the_others_have():
    found = parallel.evaluate(wayward.pause, [0.0, lambda: 1, 0.25], workers=1)
    assert [value for value, _ in found][::2] == [0.0, 0.25]
    assert math.isnan(found[1][0]) and "cannot be sent to another process" in found[1][1]


def test_a_module_that_cannot_be_imported_there_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.endswith("tests")])
    with pytest.raises(RuntimeError, match="No module named 'wayward'"):
        parallel.evaluate(wayward.wayward, [1])


def test_a_script_needs_no_guard_and_its_own_functions_are_refused(tmp_path, root):
    script = tmp_path / "script.py"
    script.write_text(
        "import math\n"
        "from rgdm_lib import parallel\n"
        "def own(x):\n    return x\n"
        "print(parallel.evaluate(math.sqrt, [4.0, -1.0], workers=2))\n"
        "parallel.evaluate(own, [1])\n"
    )
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=100, cwd=root
    )
    assert run.stdout.startswith("[(2.0, None), (nan, 'ValueError: ")
    assert "own is of the notebook or script that runs" in run.stderr
