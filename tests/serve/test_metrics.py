"""Figures against the rules of Prometheus's text format, version 0.0.4, and counts made by hand."""

from __future__ import annotations

import re

import pytest

from triscale.serve.metrics import WIDTH, Metrics

# https://prometheus.io/docs/instrumenting/exposition_formats/
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ([-+0-9.eE]+|NaN|[+-]Inf)")


def parse(text: str) -> dict[str, float]:
    """Each sample's value; it fails where the text breaks a rule."""
    assert text.endswith("\n")
    kinds, found = dict[str, str](), dict[str, float]()
    current = ""
    for line in text.splitlines():
        if match := re.fullmatch(rf"# (HELP|TYPE) ({NAME}) (.+)", line):
            current = match[2]
            if match[1] == "TYPE":
                assert current not in kinds, "a second TYPE line"
                kinds[current] = match[3]
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        family = re.sub(r"_(bucket|sum|count)$", "", match[1])
        assert current in (match[1], family), "the lines of a metric are one group"
        key = line.rsplit(" ", 1)[0]
        assert key not in found
        found[key] = float(match[3])
    for name in (name for name, kind in kinds.items() if kind == "histogram"):
        buckets = [v for k, v in found.items() if k.startswith(f"{name}_bucket")]
        assert buckets == sorted(buckets)
        assert found[f'{name}_bucket{{le="+Inf"}}'] == found[f"{name}_count"]
        assert f"{name}_sum" in found
    return found


def test_empty() -> None:
    assert set(parse(Metrics(bytearray(8 * WIDTH)).text()).values()) == {0}


def test_counts() -> None:
    metrics = Metrics(bytearray(8 * WIDTH))
    for path, status, seconds in [
        ("/detect", 200, 0.05),  # a limit belongs to its own bucket
        ("/detect", 200, 0.051),
        ("/detect", 503, 99.0),
        ("/metrics", 200, 0.0),
        ('/"no\n', 404, 0.0),
        ("/", 418, 0.0),  # not a status of ours: a mistake
    ]:
        metrics.request(path, status=status, seconds=seconds)
    metrics.batch(3, seconds=0.2)
    metrics.queue(5)
    metrics.queue(-2)
    metrics.ready()
    found = parse(metrics.text())
    expected = {
        'triscale_requests_total{path="/detect",status="200"}': 2,
        'triscale_requests_total{path="/detect",status="503"}': 1,
        'triscale_requests_total{path="other",status="404"}': 1,
        'triscale_requests_total{path="/",status="500"}': 1,
        'triscale_request_seconds_bucket{le="0.025"}': 0,
        'triscale_request_seconds_bucket{le="0.05"}': 1,
        'triscale_request_seconds_bucket{le="0.1"}': 2,
        'triscale_request_seconds_bucket{le="30.0"}': 2,
        "triscale_request_seconds_count": 3,
        "triscale_request_seconds_sum": pytest.approx(99.101),
        'triscale_batch_pictures_bucket{le="2.0"}': 0,
        'triscale_batch_pictures_bucket{le="4.0"}': 1,
        "triscale_batch_pictures_sum": 3,
        "triscale_queue_pictures": 3,
        "triscale_ready_workers": 1,
    }
    assert {key: found[key] for key in expected} == expected


def test_processes_add_up_and_a_new_one_goes_on() -> None:
    cells = bytearray(2 * 8 * WIDTH)
    for row in (0, 1, 1):  # the second one of row 1 takes the first one's place
        metrics = Metrics(cells, row=row)
        metrics.request("/detect", status=200, seconds=0.1)
        metrics.queue(2)
        metrics.ready()
    found = parse(metrics.text())
    assert found['triscale_requests_total{path="/detect",status="200"}'] == 3
    assert found["triscale_queue_pictures"] == 4
    assert found["triscale_ready_workers"] == 2
