"""Clients of a gateway, in processes of their own: a crowd of listeners, and one that asks at a steady pace.

    python benchmarks/gateway_clients.py listen URL COUNT
    python benchmarks/gateway_clients.py ask URL TIMES_A_SECOND PATH...

Each prints `ready`, goes on until a line comes on its input, and prints one JSON object. The line for `listen` is the
id of the last event that everybody has to get. What came is kept as it came and read only then, so that the listeners
take little of the processor that the gateway wants too. A question is timed from the moment at which it was due, so
that a long answer counts for those that had to wait behind it. Knows server-sent events, nothing of jobs.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import re
import statistics
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from itertools import cycle
from typing import Any, NamedTuple
from urllib.parse import urlsplit

CONNECTING = 50  # listeners that connect side by side
PATIENCE_SECONDS = 60.0  # for the last event at the last listener
LINGER_SECONDS = 1.0  # after that, for what comes twice
SHOWN = 20  # faults that are told; the rest is counted

_BLOCK = re.compile(rb"(.*?)(?:\r\n\r\n|\n\n)", re.DOTALL)


class Heard(NamedTuple):
    """An event at one listener."""

    at: float  # monotonic seconds
    number: int  # its place in the row
    kind: str
    text: str


class Listener(asyncio.Protocol):
    """One open stream, kept as it comes."""

    def __init__(self, host: str) -> None:
        self.raw = bytearray()
        self.arrivals: list[tuple[int, float]] = []  # (bytes until then, monotonic seconds)
        self.begun = asyncio.Event()  # the snapshot is there
        self.is_open = True
        self._host = host

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(f"GET /events HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        """Keep what came."""
        self.raw += data
        self.arrivals.append((len(self.raw), time.monotonic()))
        if not self.begun.is_set() and b"event: snapshot" in self.raw:
            self.begun.set()

    def connection_lost(self, _: Exception | None) -> None:
        """The server has ended it."""
        self.is_open = False
        self.begun.set()

    def heard(self) -> list[Heard]:
        """Every event that came, in its order; ValueError for an answer that is no stream of events."""
        head, _, _ = bytes(self.raw).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError(head[:200].decode(errors="replace"))
        body, ends = _dechunked(self.raw, len(head) + 4)
        found = []
        for block in _BLOCK.finditer(body):
            fields = dict(line.split(b": ", 1) for line in block[1].splitlines() if not line.startswith(b":"))
            if b"data" in fields:
                place = ends[bisect.bisect_left(ends, (block.end(),))][1]
                at = self.arrivals[bisect.bisect_left(self.arrivals, (place,))][1]
                number = int(fields[b"id"].rpartition(b"-")[2])
                found.append(Heard(at, number, fields[b"event"].decode(), fields[b"data"].decode()))
        return found


def _dechunked(raw: bytearray, place: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The body from a place on, and for each chunk (bytes of the body until its end, bytes of `raw` until then)."""
    body, ends = bytearray(), []
    while (line := raw.find(b"\r\n", place)) >= 0:
        size = int(raw[place:line], 16)
        place = line + 2 + size + 2
        if place > len(raw) or not size:
            break
        body += raw[line + 2 : place - 2]
        ends.append((len(body), place))
    return bytes(body), ends


def faults(crowd: list[list[Heard]], last: int) -> list[str]:
    """What is wrong with what each listener heard: every event after its snapshot up to `last`, once, in order."""
    found, told = [], {}
    for name, events in enumerate(crowd):
        kinds = [event.kind for event in events]
        if kinds[:1] != ["snapshot"] or "snapshot" in kinds[1:]:
            found.append(f"listener {name}: {kinds.count('snapshot')} snapshots, the first event is {kinds[:1]}")
            continue
        numbers = [event.number for event in events[1:]]
        times = Counter(numbers)
        wanted = range(events[0].number + 1, last + 1)
        found += [f"listener {name}: event {number} did not come" for number in wanted if number not in times]
        found += [f"listener {name}: event {number} came {count} times" for number, count in times.items() if count > 1]
        if numbers != sorted(numbers):
            found.append(f"listener {name}: events came out of order")
        for event in events[1:]:
            if told.setdefault(event.number, (event.kind, event.text)) != (event.kind, event.text):
                found.append(f"listener {name}: event {event.number} says something else than at another listener")
    return found


async def listen(url: str, count: int) -> dict[str, Any]:
    """Have so many listeners until a line says which event is the last; what they heard."""
    address = urlsplit(url)
    crowd = [Listener(address.netloc) for _ in range(count)]
    gate = asyncio.Semaphore(CONNECTING)
    began = time.monotonic()

    async def connect(listener: Listener) -> None:
        async with gate:
            await asyncio.get_running_loop().create_connection(lambda: listener, address.hostname, address.port)
            await listener.begun.wait()

    await asyncio.gather(*map(connect, crowd))
    connected = time.monotonic() - began
    print("ready", flush=True)
    identity = (await asyncio.to_thread(sys.stdin.readline)).strip()
    mark = f"id: {identity}\r\n".encode()
    end = time.monotonic() + PATIENCE_SECONDS
    for listener in crowd:
        while mark not in listener.raw and time.monotonic() < end:  # noqa: ASYNC110  what arrives costs nothing more
            await asyncio.sleep(0.1)
    await asyncio.sleep(LINGER_SECONDS)
    heard = [listener.heard() for listener in crowd]
    found = faults(heard, int(identity.rpartition("-")[2]))
    found += [f"listener {name}: its stream ended" for name, listener in enumerate(crowd) if not listener.is_open]
    times: dict[int, list[float]] = {}
    for events in heard:
        for event in events[1:]:
            times.setdefault(event.number, []).append(event.at)
    return {
        "faults": found[:SHOWN] + ([f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []),
        "connected": connected,
        "received": sum(len(events) - 1 for events in heard),
        "spread": [max(each) - min(each) for each in times.values()],  # from the first listener to the last
        "events": [(event.at, event.kind, event.text) for event in heard[0][1:]],
    }


def ask(url: str, times_a_second: float, *paths: str) -> dict[str, Any]:
    """Ask for one path after the other until a line comes; how long each answer took."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    client = HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS)
    seconds: list[float] = []
    print("ready", flush=True)
    due = time.monotonic()
    for path in cycle(paths):
        if ended.wait(max(due - time.monotonic(), 0)):
            break
        client.request("GET", path)
        answer = client.getresponse()
        body = answer.read()
        if answer.status != 200:  # noqa: PLR2004
            raise RuntimeError(f"{path}: {answer.status} {body[:200]!r}")
        seconds.append(time.monotonic() - due)
        due += 1 / times_a_second
    return {"answers": len(seconds), **percentiles(seconds)}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and highest."""
    ordered = sorted(seconds)
    return {
        "median": statistics.median(ordered),
        "p99": ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)],
        "highest": ordered[-1],
    }


def main() -> None:
    """Be the clients that the command line asks for."""
    kind, url, number, *paths = sys.argv[1:]
    found = asyncio.run(listen(url, int(number))) if kind == "listen" else ask(url, float(number), *paths)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
