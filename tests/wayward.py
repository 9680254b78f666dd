"""Functions of an item that go wrong, importable by another process (tests/test_parallel.py)."""

import os
import sys
import time


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(a)


def wayward(item):
    """Twice the item, or what its name says."""
    if item == "raise":
        raise Unpicklable("out of luck", 1)
    if item == "hang":
        time.sleep(1000)
    if item == "die":
        os._exit(3)
    if item == "exit":
        sys.exit(3)
    if item == "nan":
        return float("nan")
    if item == "infinite":
        return float("-inf")
    if item == "print":
        os.write(1, b"printed by a library")
        print("and by Python")
        return 5
    return 2 * item


def process(_):
    return os.getpid()


def threads(_):
    return int(os.environ["OMP_NUM_THREADS"])


def pause(seconds):
    """The seconds, after as many."""
    time.sleep(seconds)
    return seconds
