"""How much of the detector's speed is left behind HTTP, and what do batches give?

Clients in threads of another process send one JPEG after another over kept connections, as fast as
the answers come. `batches` is the server with its defaults, `one by one` with --batch-size 1; both
run at the same time and are asked in turns. `detector` is the Detector in a process without HTTP,
from the file's bytes, one picture at a time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from harness import SHARED, Report, arguments, ratio

from triscale.data.pictures import decode_picture
from triscale.predict import Detector

COLUMNS = ("clients", "server", "img/s", "p50 ms", "p95 ms", "p99 ms", "x one by one", "mean batch")
SERVERS = {"batches": (), "one by one": ("--batch-size", "1")}
Row = tuple[str | float, ...]


def main() -> None:
    """Print the table, or be one of the processes that send."""
    parser = arguments(__doc__, rounds=3, peers=False)
    parser.add_argument("--weights", default=str(SHARED / "weights" / "yolov3-tiny.weights"))
    parser.add_argument("--picture", default=str(SHARED / "data" / "pictures" / "dog.jpg"))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--send", type=int, metavar="PORT", help="used by the script itself")
    words = parser.parse_args()
    data = Path(words.picture).read_bytes()
    if words.send:
        print(json.dumps(send(words.send, data, clients=words.clients[0], seconds=words.seconds)))
        return
    rows: list[Row] = []
    with serving(words.weights, "batches") as first, serving(words.weights, "one by one") as second:
        ports = {"batches": first, "one by one": second}
        for port in ports.values():
            asked(port, words, clients=2)  # warm-up
        for clients in words.clients:
            rows += compared(clients, ports, words)
    detector = Detector(words.weights, device="cpu")
    seconds = timed(detector, data, seconds=words.seconds)
    rate = 1 / statistics.mean(seconds)
    rows.append(("-", "detector", rate, *percentiles(seconds), "-", 1.0))
    note = (
        f"`{Path(words.weights).name}`, a JPEG of {len(data):,} bytes, {words.seconds:g} s a "
        f"measurement, {words.rounds} rounds in turns; the clients take their share of the cores."
    )
    Report("Serving", COLUMNS, rows, (note,)).show(as_json=words.json)


def compared(clients: int, ports: dict[str, int], words: argparse.Namespace) -> list[Row]:
    """A row for each server."""
    rates: dict[str, list[float]] = {name: [] for name in ports}
    times: dict[str, list[float]] = {name: [] for name in ports}
    batches: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(words.rounds):
        for name, port in ports.items():
            before = batch_figures(port)
            seconds, took = asked(port, words, clients=clients)
            after = batch_figures(port)
            rates[name].append(len(seconds) / took)
            times[name] += seconds
            batches[name].append((after[0] - before[0]) / (after[1] - before[1]))
    return [
        (
            *(str(clients), name, statistics.median(rates[name]), *percentiles(times[name])),
            *(ratio(rates[name], rates["one by one"]), statistics.median(batches[name])),
        )
        for name in ports
    ]


def asked(port: int, words: argparse.Namespace, *, clients: int) -> tuple[list[float], float]:
    """The seconds of each request that `clients` threads of another process sent, and of all."""
    flags = ["--send", str(port), "--clients", str(clients), "--seconds", str(words.seconds)]
    command = [sys.executable, __file__, *flags, "--picture", words.picture]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return answer["seconds"], answer["took"]


def send(port: int, data: bytes, *, clients: int, seconds: float) -> dict[str, object]:
    """What the clients measured."""
    found: list[float] = []
    end = time.perf_counter() + seconds

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while (began := time.perf_counter()) < end:
            connection.request("POST", "/detect", data, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}")
            found.append(time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": found, "took": time.perf_counter() - began}


@contextmanager
def serving(weights: str, name: str) -> Generator[int]:
    """The port of a running server."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "triscale", "serve", weights, "--port", "0"]
        process = subprocess.Popen([*command, *SERVERS[name]], stderr=log)
        try:
            while True:
                log.seek(0)
                said = log.read()
                if "ready" in said:
                    break
                if process.poll() is not None:
                    raise SystemExit(said)
                time.sleep(0.1)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
            assert found
            yield int(found[1])
        finally:
            process.terminate()
            process.wait()


def batch_figures(port: int) -> tuple[float, float]:
    """How many pictures, in how many batches."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    pictures, batches = (
        re.search(rf"^triscale_batch_pictures_{word} (.+)$", text, re.M)
        for word in ("sum", "count")
    )
    assert pictures
    assert batches
    return float(pictures[1]), float(batches[1])


def timed(detector: Detector, data: bytes, *, seconds: float) -> list[float]:
    """The seconds of single pictures."""
    found: list[float] = []
    detector(decode_picture(data, "picture"))
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        detector(decode_picture(data, "picture"))
        found.append(time.perf_counter() - began)
    return found


def percentiles(seconds: list[float]) -> tuple[float, float, float]:
    """p50, p95 and p99 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return cuts[49] * 1000, cuts[94] * 1000, cuts[98] * 1000


if __name__ == "__main__":
    main()
