"""The service at twice what it can do: `python -m tests.load` (`make load`).

Clients come whether or not earlier ones have been answered, with one image or several, small and large, and some give
up. What cannot be done in time has to be refused soon, the rest to be done at the rate of the peak, and nothing to be
computed for those who have left.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np

from pinstream_cli.benchmark import environment
from tests.giving_up import computed
from tests.load_requests import Mix
from tests.places import regions, taken
from tests.server.running import Running, running
from yolox_steps.places import MOST

MODELS = Path(__file__).parents[1] / "models"
SHAPES, PICTURE = MODELS / "shapes_nano.onnx", MODELS / "demo.jpg"
TIMEOUT_S = 60.0
# Clients at a time with which the peak is looked for, for each core.
PEAK_CLIENTS_PER_CORE = (2, 4)
# Back to idle: the median of so many calls, one after the other, within so much of what it was before.
CALLS_LIKE_IDLE, LIKE_IDLE = 5, 1.5
# What may not be missed. Nine in ten refusals come sooner than an answer where nobody else asks; the last, of what has
# waited, come with the models' default_timeout_microseconds.
LEAST_GOODPUT, MOST_COMPUTED, LONGEST_BACK_S = 0.9, 1.05, 5.0
# Of what was to be sent: clients that are slower themselves ask for less than twice what the service can do.
LEAST_SENT = 0.95
LONGEST_REFUSAL_MS = 3000 + 1000
# How a request may end.
STATUSES = frozenset({"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
# By so many MiB the memory at the end may be above the median of the run; it was by 10. What grows all the time grows
# by twice as much in a run.
GROWTH_MIB = 50
# Characters of Triton's log that are shown where it ended.
LAST_WORDS = 4000


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Attributes:
        images: In the request.
        sent: Seconds since the phase began.
        took: Seconds to the end.
        status: gRPC's, OK for an answer.
        gives_up: Whether its client was not going to wait.
    """

    images: int
    sent: float
    took: float
    status: str
    gives_up: bool


@dataclass
class Overload:
    """Requests that come faster than they can be answered.

    Attributes:
        began: Seconds of `time.perf_counter`.
        ended: When the last one was sent.
        sent: How many were.
        outcomes: Of those that have ended.
    """

    began: float
    ended: float = 0.0
    sent: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def wait(self) -> None:
        """Wait until every request has ended."""
        while len(self.outcomes) < self.sent:
            time.sleep(0.05)


@dataclass(frozen=True)
class Peak:
    """What the service does when nobody has to be refused.

    Attributes:
        images_per_s: That it answers.
        images_per_cpu_s: By seconds of its CPU time.
    """

    images_per_s: float
    images_per_cpu_s: float


class Service:
    """A server as its clients see it."""

    def __init__(self, server: Running) -> None:
        self.server = server
        # Without serializers: what is sent are bytes already, and nobody reads the answers.
        self._infer = grpc.insecure_channel(server.grpc_url).unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def call(self, request: bytes) -> float:
        """Seconds of one call that has to succeed."""
        began = time.perf_counter()
        self._infer(request, timeout=TIMEOUT_S)
        return time.perf_counter() - began

    def peak(self, mix: Mix, seconds: float, clients: int) -> Peak:
        """What is done for `clients` that wait for each answer before they send again."""
        cpu = self.cpu_s()
        until = time.perf_counter() + seconds
        lock = threading.Lock()

        def work(_: int) -> int:
            images = 0
            while time.perf_counter() < until:
                with lock:
                    request, count = mix.request()
                with contextlib.suppress(grpc.RpcError):  # a machine that others load as well may be too slow for some
                    self.call(request)
                    images += count
            return images

        began = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            done = sum(pool.map(work, range(clients)))
        return Peak(done / (time.perf_counter() - began), done / (self.cpu_s() - cpu))

    def overload(self, mix: Mix, seconds: float, rate: float, each_second: Callable[[], None]) -> Overload:
        """Send `rate` requests a second whatever becomes of them, each second doing something more."""
        overload = Overload(time.perf_counter())
        due, seconds_gone = 0.0, 0
        while due < seconds:
            due += mix.pause(rate)
            time.sleep(max(0.0, overload.began + due - time.perf_counter()))
            self._send(mix, overload)
            if due >= seconds_gone + 1:
                seconds_gone = int(due)
                each_second()
        overload.ended = time.perf_counter()
        return overload

    def _send(self, mix: Mix, overload: Overload) -> None:
        request, images = mix.request()
        if patience := mix.patience():
            request += mix.told(patience)
        sent = time.perf_counter()
        future = self._infer.future(request, timeout=patience or TIMEOUT_S)
        overload.sent += 1

        def ended(call: Any) -> None:
            took = time.perf_counter() - sent
            status, gives_up = call.code().name, patience is not None
            overload.outcomes.append(Outcome(images, sent - overload.began, took, status, gives_up))

        future.add_done_callback(ended)

    def recovery(self, probe: bytes, idle: float, ended: float) -> float:
        """Seconds since the overload has ended until calls take what they took before it."""
        last: deque[float] = deque(maxlen=CALLS_LIKE_IDLE)
        while len(last) < CALLS_LIKE_IDLE or statistics.median(last) > LIKE_IDLE * idle:
            try:
                last.append(self.call(probe))
            except grpc.RpcError:
                last.append(float("inf"))
            if time.perf_counter() - ended > TIMEOUT_S:
                return float("inf")
        return time.perf_counter() - ended

    def computed(self) -> float:
        """Images that the detector has run so far, those among them that nobody waited for any more."""
        return computed(self.server, "yolox_detector")

    def require_running(self) -> None:
        """Raises SystemExit with the end of its log where tritonserver has ended."""
        code = self.server.server.wait(0)
        if code is not None:
            log = self.server.console.getvalue()[-LAST_WORDS:]
            raise SystemExit(f"Triton ended with code {code} while it was under load:\n{log}")

    def places_taken(self) -> float:
        """Of the places in shared memory that pictures may come to have, the share that somebody is to read."""
        prefix = self.server.server.shm_prefix
        return taken(prefix) / max(1, MOST * len(regions(prefix)))

    def memory_mib(self) -> float:
        """MiB that tritonserver and its stubs have for themselves; what they share grows to the largest batch."""
        group = self.server.server.pid
        return sum(_resident(pid) for pid in _members(group)) / 1024

    def cpu_s(self) -> float:
        """Seconds of CPU time that tritonserver and its stubs have taken."""
        ticks = sum(int(t) for pid in _members(self.server.server.pid) for t in _status(pid)[11:13])
        return ticks / os.sysconf("SC_CLK_TCK")


def _members(group: int) -> list[int]:
    pids = [int(directory.name) for directory in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if _status(pid)[2:3] == [str(group)]]


def _status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on, which is the third; none where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _resident(pid: int) -> int:
    """KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def quantile(values: Sequence[float], q: float) -> float:
    """A quantile; 0 where there is nothing."""
    return float(np.quantile(values, q)) if values else 0.0


def on_cores(cores: Sequence[int]) -> None:
    """Let this thread, and the threads and processes that it starts from now on, run on these cores only."""
    os.sched_setaffinity(0, cores)


def load(
    model: Path, picture: Path, seconds: float, factor: float, peak_s: float, client_cores: int = 0
) -> dict[str, Any]:
    """Run it; see the report's keys.

    Args:
        model: What `pinstream serve --model` takes: a YOLOX.
        picture: What it is shown.
        seconds: Of overload.
        factor: Of what it can do.
        peak_s: Seconds to find out what that is, for each number of clients.
        client_cores: What the clients have of the cores for themselves, who else would take them from the server the
            more of them there are; with 0 all share all.
    """
    about = environment.origin(environment.command(["python", "-m", "tests.load", *sys.argv[1:]]))
    mix = Mix(picture)
    cores = sorted(os.sched_getaffinity(0))
    server_cores = cores[: len(cores) - client_cores]
    with contextlib.ExitStack() as stack:
        stack.callback(on_cores, cores)
        on_cores(server_cores)
        server = stack.enter_context(running(model))
        on_cores(cores[-client_cores:])
        service = Service(server)
        probe = mix.probe()
        calls = [service.call(probe) for _ in range(60)]
        idle = statistics.median(calls[10:])
        peaks = {
            clients: service.peak(mix, peak_s, clients)
            for clients in (len(server_cores) * each for each in PEAK_CLIENTS_PER_CORE)
        }
        best = max(peaks, key=lambda clients: peaks[clients].images_per_s)
        before, memory, places = service.computed(), [service.memory_mib()], [service.places_taken()]
        rate = factor * peaks[best].images_per_s / mix.mean_images
        cpu = service.cpu_s()

        def look() -> None:
            service.require_running()
            memory.append(service.memory_mib())
            places.append(service.places_taken())

        overload = service.overload(mix, seconds, rate, look)
        good = sum(o.images for o in list(overload.outcomes) if o.status == "OK")
        spent = good / (service.cpu_s() - cpu)
        recovered = service.recovery(probe, idle, overload.ended)
        service.require_running()
        overload.wait()
        outcomes = overload.outcomes
        time.sleep(1)
        # The probes are computed as well; they are few.
        images_computed = service.computed() - before
        after = service.peak(mix, peak_s, best)
    # A machine that others use is another one after ten minutes.
    peak = statistics.mean((peaks[best].images_per_s, after.images_per_s))
    frugal = statistics.mean((peaks[best].images_per_cpu_s, after.images_per_cpu_s))
    return {
        **about,
        "machine": {**about["machine"], "load_average": os.getloadavg()[1]},
        "seconds": seconds,
        "factor": factor,
        "client_cores": client_cores,
        "idle_p50_ms": round(idle * 1e3, 1),
        "peak_images_per_s": {str(clients): round(found.images_per_s, 1) for clients, found in peaks.items()},
        "peak_afterwards_images_per_s": round(after.images_per_s, 1),
        "offered_requests_per_s": round(rate, 1),
        "sent_requests_per_s": round(overload.sent / (overload.ended - overload.began), 1),
        **report(outcomes, seconds, peak),
        "goodput_of_peak_per_cpu_second": round(spent / frugal, 3),
        "computed_of_answered": round(images_computed / max(1, sum(o.images for o in outcomes if o.status == "OK")), 3),
        "back_to_idle_s": round(recovered, 2),
        # At its beginning, at every twentieth of it, and at its end.
        "memory_mib": [round(mib) for mib in (*memory[:: max(1, len(memory) // 20)], memory[-1])],
        # Of those that there may be; what finds none goes through Triton.
        "places_taken": [round(share, 2) for share in (*places[:: max(1, len(places) // 20)], places[-1])],
    }


def report(outcomes: Sequence[Outcome], seconds: float, peak: float) -> dict[str, Any]:
    """What became of the requests of an overload."""
    answered = [o for o in outcomes if o.status == "OK"]
    refused = [o for o in outcomes if o.status == "UNAVAILABLE"]
    windows = Counter(int(o.sent + o.took) for o in answered for _ in range(o.images))
    # Of the last seconds some are empty, since nobody comes any more, and the first ones fill the queue.
    steady = [windows[second] for second in range(int(seconds))]
    goodput = sum(steady) / max(1, len(steady))
    milliseconds = {
        name: {f"p{q}": round(quantile([o.took for o in some], q / 100) * 1e3, 1) for q in (50, 90, 99, 100)}
        for name, some in (("answered", answered), ("refused", refused))
    }
    return {
        "requests": len(outcomes),
        "by_status": dict(sorted(Counter(o.status for o in outcomes).items())),
        "gave_up": sum(o.gives_up for o in outcomes),
        "goodput_images_per_s": round(goodput, 1),
        # Rounded down, since it is held to a least value.
        "goodput_of_peak": math.floor(1000 * goodput / peak) / 1000,
        "milliseconds": milliseconds,
    }


def missed(report: dict[str, Any]) -> list[str]:
    """What a report of `load` falls short of, in words."""
    statuses, memory = report["by_status"], report["memory_mib"]
    most_mib = statistics.median(memory) + GROWTH_MIB
    sent, offered = report["sent_requests_per_s"], report["offered_requests_per_s"]
    held = {
        f"sent_requests_per_s of at least {LEAST_SENT} of those offered": sent >= LEAST_SENT * offered,
        f"no status but {', '.join(sorted(STATUSES))}": statuses.keys() <= STATUSES,
        "no more DEADLINE_EXCEEDED than clients gave_up": statuses.get("DEADLINE_EXCEEDED", 0) <= report["gave_up"],
        f"memory_mib at the end within {GROWTH_MIB} of its median": memory[-1] <= most_mib,
        f"goodput_of_peak of at least {LEAST_GOODPUT}": report["goodput_of_peak"] >= LEAST_GOODPUT,
        "nine in ten refusals within idle_p50_ms": report["milliseconds"]["refused"]["p90"] <= report["idle_p50_ms"],
        f"refusals within {LONGEST_REFUSAL_MS} ms": report["milliseconds"]["refused"]["p100"] <= LONGEST_REFUSAL_MS,
        f"computed_of_answered of at most {MOST_COMPUTED}": report["computed_of_answered"] <= MOST_COMPUTED,
        f"back to {LIKE_IDLE} x idle_p50_ms within {LONGEST_BACK_S} s": report["back_to_idle_s"] <= LONGEST_BACK_S,
    }
    return [name for name, well in held.items() if not well]


@click.command()
@click.option("--model", type=click.Path(path_type=Path), default=SHAPES)
@click.option("--picture", type=click.Path(path_type=Path), default=PICTURE)
@click.option("--seconds", default=600.0, show_default=True, help="How long the overload lasts.")
@click.option("--factor", default=2.0, show_default=True, help="Of what the service can do.")
@click.option("--peak-s", default=20.0, show_default=True, help="Seconds to find out what that is.")
@click.option(
    "--client-cores",
    type=click.IntRange(0, max(0, len(os.sched_getaffinity(0)) - 1)),
    default=0,
    show_default=True,
    help="Cores that only the clients have; 0: all share all.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Where the report goes; else to the screen.")
def main(
    model: Path, picture: Path, seconds: float, factor: float, peak_s: float, client_cores: int, out: Path | None
) -> None:
    """Send the YOLOX service more than it can do."""
    found = load(model, picture, seconds, factor, peak_s, client_cores)
    found["missed"] = missed(found)
    text = json.dumps(found, indent=2) + "\n"
    if out:
        out.write_text(text)
    else:
        print(text)
    for name in found["missed"]:
        print(f"missed: {name}", file=sys.stderr)
    raise SystemExit(1 if found["missed"] else 0)


if __name__ == "__main__":
    main()
