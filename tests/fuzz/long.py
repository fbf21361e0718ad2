"""The long form: `python -m tests.fuzz.long` (`make fuzz`). Writes what came of it to a JSON file, fails on a fault.

Targets run in child processes, so that one that ends its process is caught: the number of the input is written to a
pipe before it is tried. Repeat a single input with `python -m tests.fuzz.long --only picture --first 1298 --inputs 1`.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

from pinstream_cli.benchmark import environment
from tests.fuzz.served import run_served
from tests.fuzz.targets import TARGETS, everything
from yolox_steps.decode import mute_decoders

CHUNK = 5000
# One input may not take longer than this, on any machine.
PATIENCE_S = 30.0
# Most memory that a process may come to hold: a small input that takes more than this is a bomb that went off.
MOST_RESIDENT_MIB = 700
# By so much a process may grow after the first fifth of its inputs, which is 5 KiB an input of a whole chunk; of no
# target more than 4 MiB were seen.
GROWTH_MIB = 20


@dataclass
class Failure:
    """An input that did what none may do: `seed` makes it again."""

    seed: int
    text: str


@dataclass
class Chunk:
    """What came of a range of inputs.

    Attributes:
        outcomes: How many ended how.
        failures: Those that failed.
        slowest_s: Seconds of the slowest input.
        resident_mib: Most memory held, in MiB.
        growth_mib: By how much a process grew after the first fifth of its inputs, in MiB.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    slowest_s: float = 0.0
    resident_mib: float = 0.0
    growth_mib: float = 0.0

    def add(self, other: Chunk) -> None:
        """Take in another range."""
        self.outcomes.update(other.outcomes)
        self.failures += other.failures
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.resident_mib = max(self.resident_mib, other.resident_mib)
        self.growth_mib = max(self.growth_mib, other.growth_mib)


def run_chunk(name: str, first: int, count: int) -> Chunk:
    """Try `count` inputs of a target, or of all in turn, from number `first` on. Memory that they keep is a fault."""
    done = run_inputs(TARGETS[name][0] if name in TARGETS else everything, first, count)
    if done.growth_mib > GROWTH_MIB:
        grown = f"{done.growth_mib:.0f} MiB"
        done.failures.append(Failure(first, f"memory grew by {grown} from a fifth of {count} inputs on"))
    if done.resident_mib > MOST_RESIDENT_MIB:
        done.failures.append(Failure(first, f"some input from this one on took {done.resident_mib:.0f} MiB"))
    return done


def run_inputs(target: Callable[[int], str], first: int, count: int) -> Chunk:
    """Try inputs of a target, each once, in child processes: another one where an input ends the one before."""
    # What they write goes with the directory: one that an input ends removes nothing itself.
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        return _run_inputs(target, first, count, directory)


def _run_inputs(target: Callable[[int], str], first: int, count: int, directory: str) -> Chunk:
    total = Chunk()
    context = multiprocessing.get_context("spawn")
    while count > 0:
        receiving, sending = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(target, first, count, sending, directory), daemon=True)
        child.start()
        sending.close()
        try:
            done, tried = _follow(receiving, total)
            child.join(PATIENCE_S)
            # Unless it is done it has ended, or hangs, within this input, or before its first one.
            how = "took too long" if child.is_alive() else f"ended the process with code {child.exitcode}"
        finally:
            # Also where this run is ended, and its directory goes next.
            child.kill()
            child.join(PATIENCE_S)
        if done:
            break
        if tried is None:
            # The next child would fare no better, and what did not run may not pass.
            total.failures.append(Failure(first, f"{how} before this input: {count} were not tried"))
            total.outcomes["fault"] += 1
            break
        total.failures.append(Failure(tried, how))
        total.outcomes["fault"] += 1
        count -= tried + 1 - first
        first = tried + 1
    return total


def _follow(receiving: Connection, total: Chunk) -> tuple[bool, int | None]:
    """Read a child's notes to their end: whether it is done, and the number of the last input it has tried, if any."""
    seed: int | None = None
    while True:
        try:
            if not receiving.poll(PATIENCE_S):
                return False, seed
            kind, value = receiving.recv()
        except EOFError:
            return False, seed
        if kind == "trying":
            seed = value
        elif kind == "done":
            total.add(value)
            return True, seed
        elif kind == "failure":
            total.failures.append(value)
        else:
            total.outcomes[value] += 1


def _child(target: Callable[[int], str], first: int, count: int, notes: Connection, directory: str) -> None:
    tempfile.tempdir = directory
    mute_decoders()
    done, warm_mib = Chunk(), 0.0
    for seed in range(first, first + count):
        notes.send(("trying", seed))
        began = time.perf_counter()
        try:
            outcome = target(seed)
        except Exception as error:
            notes.send(("failure", Failure(seed, "".join(traceback.format_exception(error, limit=-3)))))
            outcome = "fault"
        notes.send(("outcome", outcome))
        # The first one makes the corpus, too.
        if seed > first:
            done.slowest_s = max(done.slowest_s, time.perf_counter() - began)
        if seed == first + count // 5:
            warm_mib = _resident_mib("VmRSS")
    done.growth_mib = _resident_mib("VmRSS") - warm_mib
    done.resident_mib = _resident_mib("VmHWM")
    notes.send(("done", done))


def _resident_mib(key: str) -> float:
    """Memory of this process in MiB: VmRSS of now, VmHWM the most it has held.

    Of the most getrusage would count what its parent held when it started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def run_target(name: str, first: int, count: int) -> dict[str, Any]:
    """A target's whole run, with the memory of its processes from the first chunk to the last."""
    total, resident, growth, began = Chunk(), [], [], time.monotonic()
    for start in range(first, first + count, CHUNK):
        done = run_chunk(name, start, min(CHUNK, first + count - start))
        total.add(done)
        resident.append(round(done.resident_mib))
        growth.append(round(done.growth_mib, 1))
        print(f"{name}: {sum(total.outcomes.values())} of {count}, {len(total.failures)} faults", flush=True)
    return {
        "inputs": count,
        "outcomes": dict(total.outcomes.most_common()),
        "faults": [{"seed": failure.seed, "text": failure.text} for failure in total.failures],
        "slowest_ms": round(total.slowest_s * 1e3, 1),
        "resident_mib_by_chunk": resident,
        "growth_mib_by_chunk": growth,
        "seconds": round(time.monotonic() - began, 1),
    }


@click.command()
@click.option("--inputs", type=click.IntRange(0), help="Inputs of each target, instead of its own number.")
@click.option("--served", type=click.IntRange(0), default=12_000, show_default=True, help="Inputs to a real server.")
@click.option("--first", type=click.IntRange(0), default=0, help="Number of the first input.")
@click.option("--only", type=click.Choice(list(TARGETS)), help="This target alone, and no server.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; else to the screen.")
def main(inputs: int | None, served: int, first: int, only: str | None, out: Path | None) -> None:
    """Give bad input to everything that reads what others wrote."""
    # As Ctrl-C does: its directories are removed and its server is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    about = environment.origin(environment.command(["python", "-m", "tests.fuzz.long", *sys.argv[1:]]))
    names = [only] if only else list(TARGETS)
    report: dict[str, Any] = {
        name: run_target(name, first, TARGETS[name][1] if inputs is None else inputs) for name in names
    }
    if served and not only:
        report["served"] = run_served(0, served)
    text = json.dumps({**about, **report}, indent=2) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    faults = sum(len(part["faults"]) for part in report.values())
    print(f"{faults} faults", file=sys.stderr)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
