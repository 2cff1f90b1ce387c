"""What the gateway is measured against: FastAPI with an endpoint that answers a constant, and a stream that sends one.

    python benchmarks/gateway_bare.py FILE

FILE is JSON with `status`, what `GET /status/{job}` answers, and `events`, a list of [seconds, kind, text] that `POST
/go` sends to everybody who listens to `/events`, at those moments. An event is put into bytes once. Prints its address.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse


def create(status: dict[str, Any], events: list[tuple[float, str, str]]) -> FastAPI:
    """The application."""
    app = FastAPI()
    listeners: set[asyncio.Queue[bytes]] = set()

    @app.get("/status/{job}")
    async def show(job: str) -> dict[str, Any]:
        return status | {"job_id": job}

    @app.get("/events")
    async def follow() -> StreamingResponse:
        async def stream() -> AsyncIterator[bytes]:
            queue: asyncio.Queue[bytes] = asyncio.Queue()
            listeners.add(queue)
            yield b"id: bare-0\r\nevent: snapshot\r\ndata: {}\r\n\r\n"
            try:
                while True:
                    yield await queue.get()
            finally:
                listeners.discard(queue)

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.post("/go")
    async def go() -> str:
        began = time.monotonic()
        for number, (seconds, kind, text) in enumerate(events, start=1):
            await asyncio.sleep(max(began + seconds - time.monotonic(), 0))
            event = f"id: bare-{number}\r\nevent: {kind}\r\ndata: {text}\r\n\r\n".encode()
            for queue in listeners:
                queue.put_nowait(event)
        return f"bare-{len(events)}"

    return app


def main() -> None:
    """Serve until told to stop, as the gateway does."""
    app = create(**json.loads(Path(sys.argv[1]).read_text()))
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvicorn has it on sockets of its own
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
