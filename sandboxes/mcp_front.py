"""`sandkeep mcp`: the front that holds the client's pipe, whatever becomes of the worker that does what it asks.

Between them go lines of JSON-RPC. The front answers nothing by itself but what no worker can: what is no message, what
is too large, and what is asked while no worker lives. A worker that crashes, or says nothing for `patience` seconds
though it is asked to, is ended and started again (see `mcp_breaker`), and told what it must know (see `mcp_session`).

One thread, and nothing but the standard library, so that it starts at once and has little to crash with. What is held
is bounded: nothing is read from a worker while the client does not take what it was sent, and nothing from a client
that has too much under way.

When the client hangs up, or the front is told to end, the worker's input ends: it is given time to put its things in
order, and goes on with that even if the front is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import final

from sandkeep.sandboxes.mcp_breaker import Breaker
from sandkeep.sandboxes.mcp_lines import Lines, Outbox, TooLong, decode, encode, said
from sandkeep.sandboxes.mcp_session import ALIVE, DOWN, INVALID_REQUEST, PING, Refused, Session

HEARTBEAT_SECONDS, PATIENCE_SECONDS = 5.0, 30.0
"""How often a worker is asked for a sign of life, and how long it may owe one."""

LAST_SECONDS, ORDER_SECONDS = 1.0, 20.0
"""How long requests may go on when the client has hung up, and how long the worker may put things in order then."""

_CHUNK = 1 << 16
_MOST_UNREAD = 4 << 20
_PARSE_ERROR = -32700
_PING = encode({"jsonrpc": "2.0", "method": PING})
_OPEN = (
    "the server behind this one crashed again and again, and is only tried from time to time; its log says why, and"
    " 'sandkeep doctor' what to do"
)


@final
class Worker:
    """A worker process: its pipes, and when it was last heard."""

    def __init__(self, command: Sequence[str], now: float) -> None:
        # A session of its own, so that who ends all that the client started lets it put things in order.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self.ended = os.pidfd_open(self.process.pid)
        self.outbox, self.lines = Outbox(self.stdin.fileno()), Lines(sys.maxsize)
        self.heard = self.asked = now
        self.owes = True
        self.begun: float | None = None

    def close(self) -> int:
        """Bury it; returns how it ended."""
        os.close(self.ended)
        self.stdout.close()
        with contextlib.suppress(OSError):
            self.stdin.close()
        return self.process.wait()


@final
class Front:
    """The front of one client, which writes to `stdin` and reads from `stdout`. `command` starts a worker."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int = 0,
        stdout: int = 1,
        heartbeat: float = HEARTBEAT_SECONDS,
        patience: float = PATIENCE_SECONDS,
        breaker: Breaker | None = None,
        say: Callable[[str], None] = lambda line: print(f"sandkeep: {line}", file=sys.stderr, flush=True),
    ) -> None:
        self._command, self._stdin = command, stdin
        self._heartbeat, self._patience, self._say = heartbeat, patience, say
        self._breaker = breaker or Breaker()
        self._session, self._lines, self._client = Session(), Lines(), Outbox(stdout)
        self._worker: Worker | None = None
        self._due = 0.0
        self._hung_up: float | None = None
        self._gone = False
        self._woken, self._wake = os.pipe()

    def run(self) -> None:
        """Serve until the client hangs up, or a signal says to end."""
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._told_to_end)
        try:
            self._start()
            while self._hung_up is None or self._lingers(self._hung_up):
                self._turn()
            self._end()
        finally:
            if self._worker is not None:  # something failed here: it must not be left alone
                self._worker.process.kill()
                self._worker.close()

    def _lingers(self, hung_up: float) -> bool:
        """Whether a client that has said all may still be given answers. A worker that begins has its time."""
        worker, now = self._worker, time.monotonic()
        begun = now if worker is None or worker.begun is None else worker.begun
        waits = bool(self._session.waiting or self._client) and not self._gone
        return waits and now < min(max(hung_up, begun) + LAST_SECONDS, hung_up + ORDER_SECONDS)

    def _turn(self) -> None:
        """Wait until something happens, and deal with it."""
        now = time.monotonic()
        worker, ready = self._worker, select.poll()
        room = len(self._client) < _MOST_UNREAD and not self._gone
        ready.register(self._woken, select.POLLIN)
        if not self._gone:
            ready.register(self._client.fd, select.POLLOUT if self._client else 0)
        taken = worker is None or len(worker.outbox) < _MOST_UNREAD
        if self._hung_up is None and room and taken and not self._session.full:
            ready.register(self._stdin, select.POLLIN)
        if worker is not None:
            ready.register(worker.ended, select.POLLIN)
            if worker.outbox:
                ready.register(worker.outbox.fd, select.POLLOUT)
            if room:
                ready.register(worker.stdout.fileno(), select.POLLIN)
            else:
                worker.heard = now  # it may have told much that nobody has read
        events = dict(ready.poll(self._pause(now) * 1000))
        if self._woken in events:
            os.read(self._woken, _CHUNK)
        if self._client.fd in events:
            self._write_client(events[self._client.fd])
        if self._stdin in events:
            self._read_client()
        if worker is not None:
            if worker.outbox.fd in events:
                with contextlib.suppress(OSError):  # it has ended, which is seen by itself
                    worker.outbox.flush()
            if worker.stdout.fileno() in events:
                self._read_worker(worker)
            if worker.ended in events:
                self._crashed(worker)
        self._watch(time.monotonic())

    def _pause(self, now: float) -> float:
        """For how long nothing has to be done."""
        until = now + self._heartbeat
        if self._worker is None:
            until = min(until, self._due)
        if self._hung_up is not None:
            until = min(until, now + LAST_SECONDS / 10)
        return max(until - now, 0.0)

    def _watch(self, now: float) -> None:
        """Start a worker if it is time to, and see whether the one there is lives."""
        worker = self._worker
        if worker is None:
            if now >= self._due and self._hung_up is None:
                self._start()
        elif now - worker.heard > self._patience and worker.owes:
            self._say(f"the worker {worker.process.pid} says nothing any more, and is ended")
            worker.process.kill()
            worker.heard = now
        elif now - max(worker.heard, worker.asked) >= self._heartbeat:
            worker.outbox.put(_PING)
            worker.asked = now
            if not worker.owes:
                worker.owes, worker.heard = True, now

    def _start(self) -> None:
        self._worker = Worker(self._command, time.monotonic())
        for line in self._session.again():
            self._worker.outbox.put(line)

    def _crashed(self, worker: Worker) -> None:
        """Tell the client what is lost with a worker, and when the next one is to come."""
        while self._read_worker(worker):  # what it said last counts
            continue
        status = worker.close()
        self._worker = None
        self._tell(self._session.crashed())
        pause = self._breaker.crashed(time.monotonic())
        self._due = time.monotonic() + pause
        self._say(f"the worker {worker.process.pid} ended ({_words(status)}); another one is started in {pause:g} s")
        if self._breaker.open:
            self._tell(self._session.fail_all(DOWN, _OPEN))

    def _read_client(self) -> None:
        data = os.read(self._stdin, _CHUNK)
        if not data:
            self._hung_up = time.monotonic()
        for line in self._lines.feed(data):
            try:
                self._heed(line)
            except Refused as refused:
                self._client.put(encode(refused.answer))

    def _heed(self, line: bytes | TooLong) -> None:
        """Pass on what the client says. Raises `Refused`."""
        if isinstance(line, TooLong):
            raise Refused(line.id, INVALID_REQUEST, "a message has at most 16 MiB; put what is larger into a file")
        try:
            message = decode(line)
        except (ValueError, RecursionError):
            raise Refused(None, _PARSE_ERROR, "that is no JSON; a message is one line of it") from None
        if self._breaker.open and isinstance(message, dict) and "method" in message and "id" in message:
            number = message["id"]
            raise Refused(number if isinstance(number, int | str) else None, DOWN, _OPEN, code="server-crashed")
        given = self._session.from_client(message)
        if given is not None and self._worker is not None:
            self._worker.outbox.put(given)

    def _read_worker(self, worker: Worker) -> bool:
        """Pass on what the worker says; false if that is all."""
        try:
            data = os.read(worker.stdout.fileno(), _CHUNK)
        except BlockingIOError:
            return False
        for line in worker.lines.feed(data):
            worker.heard, worker.owes = time.monotonic(), False
            worker.begun = worker.begun or worker.heard
            self._heed_worker(line)
        return bool(data)

    def _heed_worker(self, line: bytes | TooLong) -> None:
        message: object = None
        with contextlib.suppress(ValueError, RecursionError):
            message = said(line) if isinstance(line, bytes) else None
        if not isinstance(line, bytes) or not isinstance(message, dict):
            self._say("the worker says what is no message, which is dropped")
        elif message.get("method") == ALIVE:
            self._breaker.lives()
            self._session.alive((message.get("params") or {}).get("head"))
        elif (given := self._session.from_worker(message, line)) is not None:
            self._client.put(given)

    def _write_client(self, events: int) -> None:
        try:
            if events & select.POLLOUT:
                self._client.flush()
                return
        except OSError:
            pass
        self._gone = True  # nobody reads any more
        self._hung_up = self._hung_up or time.monotonic()

    def _tell(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._client.put(line)

    def _end(self) -> None:
        """Have the worker put its things in order, and wait for that; then end it."""
        worker = self._worker
        if worker is None:
            return
        with contextlib.suppress(OSError):
            worker.stdin.close()
        until = time.monotonic() + ORDER_SECONDS
        said, ready = worker.stdout.fileno(), select.poll()
        for fd in (worker.ended, said):
            ready.register(fd, select.POLLIN)
        while worker.ended not in (events := dict(ready.poll(max(until - time.monotonic(), 0) * 1000))):
            if said in events and not os.read(said, _CHUNK):
                ready.unregister(said)
            if time.monotonic() >= until:
                worker.process.kill()
                break
        worker.close()
        self._worker = None

    def _told_to_end(self, number: int, frame: object) -> None:
        self._gone = True
        self._hung_up = self._hung_up or time.monotonic()


def _words(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
