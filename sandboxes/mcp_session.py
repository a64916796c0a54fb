"""What must be remembered of a session so that another worker can go on with it: the handshake, what the client is
subscribed to, and the requests that have no answer yet. Pure: messages in, messages out.

Each request is given a key (`params._meta["sandkeep/key"]`) before it is first sent. A worker that is given it again is
told so, and behind which position of the log to look for what came of it (`sandkeep/since`): the last head that a
worker told of before the request was sent. No worker does anything before it has told the first one, so a request
without such a position has had no effect.

Questions of the worker to the client get ids that name the worker, so that an answer to one that is dead is never
taken for an answer to the next.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any, final

from sandkeep.sandboxes.mcp_lines import Message, decode, encode, failure

KEY, AGAIN, SINCE = "sandkeep/key", "sandkeep/again", "sandkeep/since"
"""What stands in `_meta` of the requests that a worker gets."""

PING, ALIVE = "sandkeep/ping", "sandkeep/alive"
"""What the front asks a worker, and what it says: how far the log has come, if it has looked."""

OURS = "sandkeep/"

MOST_TRIES = 3
"""How often a request is given to a worker, if each crashes with it."""

MOST_HELD, MOST_BYTES = 1000, 64 << 20
"""How many requests may be without an answer, and how many bytes they may have together."""

INVALID_REQUEST, NO_METHOD, INVALID_PARAMS, BUSY, DOWN, GONE = -32600, -32601, -32602, -32003, -32004, -32005

_MOST_WANTED = 1 << 16

_SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"
_UPDATED = "notifications/resources/updated"
_ACKNOWLEDGED = "notifications/subscriptions/acknowledged"

Id = int | str


class Refused(Exception):
    """A message of the client that no worker is given; `answer` says why."""

    def __init__(self, number: Id | None, code: int, text: str, /, **data: object) -> None:
        super().__init__(text)
        self.answer = failure(number, code, text, **data)


class Request:
    """A request that has no answer yet. `line` is what was sent for it."""

    def __init__(self, message: Message, line: bytes, token: object) -> None:
        self.id: Id = message["id"]
        self.method: str = message["method"]
        self.line = line
        self.token = token
        self.tries = 0
        self.since: int | None = None
        self.shown = self.begun_at = 0.0
        self.acknowledged = False


@final
class Session:
    """A session as the front knows it."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(6)
        self._count = 0
        self._worker = 0
        self._head: int | None = None
        self._requests: dict[Id, Request] = {}
        self._bytes = 0
        self._handshake: bytes | None = None
        self._initialized: bytes | None = None
        self._wanted: dict[str, bytes] = {}
        self._asked: dict[str, Id] = {}
        self._internal: set[str] = set()

    @property
    def waiting(self) -> int:
        """How many requests have no answer."""
        return len(self._requests)

    @property
    def full(self) -> bool:
        """Whether the client has to wait for answers before it is heard again."""
        return len(self._requests) >= MOST_HELD or self._bytes >= MOST_BYTES

    def from_client(self, message: object) -> bytes | None:
        """The line that a worker is given for it, if any. Raises `Refused`."""
        if not isinstance(message, dict):
            raise Refused(None, INVALID_REQUEST, "a message is one JSON object; batches are not served")
        number = message.get("id")
        known = isinstance(number, int | str) and not isinstance(number, bool)
        try:
            return self._given(message, number if known else None, known=known)
        except UnicodeEncodeError:
            raise Refused(number if known else None, INVALID_REQUEST, "a text in it holds half a character") from None

    def _given(self, message: Message, number: Id | None, *, known: bool) -> bytes | None:
        if "method" not in message and known and ("result" in message or "error" in message):
            return self._answered(message)
        method = message.get("method")
        if message.get("jsonrpc") != "2.0" or not isinstance(method, str) or ("id" in message and not known):
            raise Refused(
                number, INVALID_REQUEST, "a request has jsonrpc '2.0', a method, and an integer or text as id"
            )
        if not isinstance(message.get("params", {}), dict):
            raise Refused(number, INVALID_PARAMS, "params is an object, or left out")
        if method.startswith(OURS):
            raise Refused(number, NO_METHOD, f"{method[:60]} is no method for clients")
        return self._notified(method, message) if "id" not in message else self._requested(message)

    def from_worker(self, message: Message, line: bytes) -> bytes | None:
        """The line that the client is given for it, if any; it came as a `line`, which is passed on where nothing has
        to be changed: a result may be large."""
        method, number = message.get("method"), message.get("id")
        if method is None:
            return line if self._answers(message) else None
        if number is not None:  # a question; the client must not mix it up with another worker's
            name = f"w{self._worker}-{number}"
            self._asked[name] = number
            return encode(message | {"id": name})
        params = message.get("params") or {}
        if method == "notifications/progress":
            return self._progressed(message, params)
        if method == "notifications/cancelled":
            name = f"w{self._worker}-{params.get('requestId')}"
            known = self._asked.pop(name, None) is not None
            return encode(message | {"params": params | {"requestId": name}}) if known else None
        if method == _ACKNOWLEDGED:
            request = self._requests.get((params.get("_meta") or {}).get(_SUBSCRIPTION_ID, ""))
            if request is not None and request.acknowledged:
                return None
            if request is not None:
                request.acknowledged = True
        return line

    def alive(self, head: object) -> None:
        """A worker has told how far the log has come."""
        if isinstance(head, int):
            self._head = head
            for request in self._requests.values():
                if request.since is None and request.tries:
                    request.since = head

    def again(self) -> Iterator[bytes]:
        """The lines that a new worker is given, so that it goes on where the last one was."""
        self._worker += 1
        self._internal.clear()
        if self._handshake is not None:
            yield self._internally(self._handshake)
            if self._initialized is not None:
                yield self._initialized
        for line in self._wanted.values():
            yield self._internally(line)
        for request in self._requests.values():
            yield self._sent(request)

    def crashed(self) -> Iterator[bytes]:
        """The lines that the client is given when a worker has crashed: what nobody will answer or ask any more, and
        what it may have missed."""
        for name in self._asked:
            yield encode(
                {
                    "jsonrpc": "2.0",
                    "method": "notifications/cancelled",
                    "params": {"requestId": name, "reason": "the server was restarted"},
                }
            )
        self._asked.clear()
        for request in [each for each in self._requests.values() if each.tries >= MOST_TRIES]:
            text = (
                f"the server crashed {request.tries} times while it did this; look at what it did before you repeat it"
            )
            yield encode(self.fail(request, GONE, text))
        for name in self._wanted:
            if name.startswith("resource "):
                yield _updated(name.removeprefix("resource "), {})
        for request in self._requests.values():
            if request.method == "subscriptions/listen" and request.acknowledged:
                yield from _listened(request)

    def fail_all(self, code: int, text: str) -> Iterator[bytes]:
        """The lines that answer all requests with an error."""
        for request in list(self._requests.values()):
            yield encode(self.fail(request, code, text))

    def fail(self, request: Request, code: int, text: str) -> Message:
        """An error as the answer to one request, which is forgotten."""
        self._forget(request)
        return failure(request.id, code, text, code="server-crashed", tries=request.tries)

    def _requested(self, message: Message) -> bytes:
        number: Id = message["id"]
        if number in self._requests:
            raise Refused(None, INVALID_REQUEST, "another request with this id has no answer yet; choose a new one")
        if self.full:
            raise Refused(number, BUSY, "too many requests have no answer yet; wait for some")
        params = dict(message.get("params") or {})
        given = params.get("_meta", {})
        if not isinstance(given, dict):
            raise Refused(number, INVALID_PARAMS, "_meta is an object, or left out")
        meta: Message = {name: value for name, value in given.items() if not name.startswith(OURS)}
        self._count += 1
        params["_meta"] = meta | {KEY: f"{self._nonce}-{self._count}"}
        line = encode(message | {"params": params})
        if message["method"] == "resources/subscribe" and (len(self._wanted) >= MOST_HELD or len(line) > _MOST_WANTED):
            raise Refused(number, BUSY, f"there are {MOST_HELD} subscriptions, the most there may be; end some")
        token = meta.get("progressToken")
        request = Request(message, line, token if isinstance(token, int | str) else None)
        self._requests[number] = request
        self._bytes += len(line)
        return self._sent(request)

    def _sent(self, request: Request) -> bytes:
        request.tries += 1
        if request.since is None:
            request.since = self._head
        if request.tries == 1:
            return request.line
        request.begun_at = request.shown
        message: Any = decode(request.line)
        message["params"]["_meta"] |= {AGAIN: True} | ({} if request.since is None else {SINCE: request.since})
        return encode(message)

    def _notified(self, method: str, message: Message) -> bytes | None:
        if method == "notifications/cancelled":
            params: Message = message.get("params") or {}
            number = params.get("requestId")
            request = self._requests.get(number) if isinstance(number, int | str) else None
            if request is None:
                return None
            self._forget(request)
        line = encode(message)
        if method == "notifications/initialized":
            self._initialized = line
        return line

    def _answered(self, message: Message) -> bytes | None:
        """An answer of the client to a question, if the worker that asked it is the one that runs."""
        name = message["id"]
        number = self._asked.pop(name, None) if isinstance(name, str) else None
        return None if number is None else encode(message | {"id": number})

    def _answers(self, message: Message) -> bool:
        """Whether an answer of the worker is one for the client."""
        number = message.get("id")
        if isinstance(number, str) and number in self._internal:
            self._internal.discard(number)
            return False
        request = self._requests.get(number) if isinstance(number, int | str) else None
        if request is None:
            return number is None
        self._forget(request)
        if "error" not in message:
            self._remember(request)
        return True

    def _remember(self, request: Request) -> None:
        """Keep what every worker has to be told from now on."""
        if request.method == "initialize":
            self._handshake = request.line
        elif request.method == "logging/setLevel":
            self._wanted["level"] = request.line
        elif request.method in ("resources/subscribe", "resources/unsubscribe"):
            message: Any = decode(request.line)
            name = f"resource {message['params'].get('uri')}"
            if request.method == "resources/subscribe":
                self._wanted[name] = request.line
            else:
                self._wanted.pop(name, None)

    def _progressed(self, message: Message, params: Message) -> bytes | None:
        """Progress only ever grows, also when what makes it began anew."""
        token, value = params.get("progressToken"), params.get("progress")
        for request in self._requests.values():
            if request.token is not None and request.token == token and isinstance(value, int | float):
                request.shown = request.begun_at + value
                return encode(message | {"params": params | {"progress": request.shown}})
        return None  # its request has its answer, or was cancelled

    def _internally(self, line: bytes) -> bytes:
        """A request of the client once more, whose answer it has had."""
        self._count += 1
        name = f"{OURS}{self._nonce}-{self._count}"
        self._internal.add(name)
        return encode(json.loads(line) | {"id": name})

    def _forget(self, request: Request) -> None:
        del self._requests[request.id]
        self._bytes -= len(request.line)


def _updated(uri: object, meta: Message) -> bytes:
    params: Message = {"uri": uri} | ({"_meta": meta} if meta else {})
    return encode({"jsonrpc": "2.0", "method": _UPDATED, "params": params})


def _listened(request: Request) -> Iterator[bytes]:
    message: Any = decode(request.line)
    wanted = message["params"].get("notifications")
    uris = wanted.get("resourceSubscriptions") if isinstance(wanted, dict) else None
    for uri in uris if isinstance(uris, list) else []:
        yield _updated(uri, {_SUBSCRIPTION_ID: request.id})
