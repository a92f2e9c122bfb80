"""What a provider says in each protocol, as bytes, and how to tell the end of an answer from an error."""

from __future__ import annotations

import json
from dataclasses import dataclass

MODEL = "chaos"
"""The model that replies name; the gateway under attack has prices for it."""


@dataclass(frozen=True)
class Wire:
    """One protocol. Counts are JSON literals, so that they may be anything."""

    name: str
    path: str
    door: str
    """Path at the provider."""
    end: bytes
    """The terminal event."""
    error: bytes
    """An error event of the provider's."""
    error_type: str
    usage: str
    """Template of a usage object: %(input)s, %(output)s, %(cached)s."""

    def request(self, model: str, *, stream: bool, **members: object) -> bytes:
        asked: dict[str, object] = {"max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
        if self.name == "responses":
            asked = {"max_output_tokens": 50, "input": [{"role": "user", "content": "hi"}]}
        elif self.name == "embeddings":
            asked = {"input": ["hi"]}
        return json.dumps(
            {"model": model, **asked, **({"stream": True} if stream else {}), **members}
        ).encode()

    def usage_of(self, *, prompt: str = "11", output: str = "7", cached: str = "3") -> str:
        return self.usage % {"input": prompt, "output": output, "cached": cached}

    def whole(self, usage: str | None = "default") -> bytes:
        """Return a whole reply; `usage` None leaves the member out."""
        if usage == "default":
            usage = self.usage_of()
        tail = b"" if usage is None else b',"usage":' + usage.encode()
        return self._whole_head() + tail + b"}"

    @property
    def bound(self) -> str:
        """Name of the member that bounds the output."""
        return "max_output_tokens" if self.name == "responses" else "max_tokens"

    @property
    def chat(self) -> bool:
        return self.name == "chat_completions"

    def _whole_head(self) -> bytes:
        if self.name == "chat_completions":
            return (
                b'{"id":"c-1","object":"chat.completion","model":"chaos",'
                b'"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]'
            )
        if self.name == "responses":
            return RESPONSE_HEAD
        if self.name == "embeddings":
            return b'{"object":"list","model":"chaos","data":[{"index":0,"embedding":[0.25,-1e-05]}]'
        return (
            b'{"id":"m-1","type":"message","role":"assistant","model":"chaos",'
            b'"content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn"'
        )

    def content(self, text: str = "hi") -> bytes:
        """Return one content event."""
        if self.name == "chat_completions":
            chunk = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            value = {"id": "c-1", "model": MODEL, "choices": [chunk], "usage": None}
            return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
        if self.name == "responses":
            value = {"type": "response.output_text.delta", "item_id": "msg_1", "delta": text}
            return b"event: response.output_text.delta\ndata: " + json.dumps(value).encode() + b"\n\n"
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        return b"event: content_block_delta\ndata: " + json.dumps(delta).encode() + b"\n\n"

    def opening(self) -> bytes:
        """Return what stands before the content."""
        if self.name == "chat_completions":
            return self.content("")
        if self.name == "responses":
            created = {"type": "response.created", "response": {"id": "r-1", "model": MODEL, "usage": None}}
            return b"event: response.created\ndata: " + json.dumps(created).encode() + b"\n\n"
        message = {"id": "m-1", "model": MODEL, "usage": {"input_tokens": 8, "output_tokens": 1}}
        start = {"type": "message_start", "message": message}
        return b"event: message_start\ndata: " + json.dumps(start).encode() + b"\n\n"

    def closing(self, usage: str | None = "default") -> bytes:
        """Return what stands between content and terminal event: finish reason and usage."""
        if usage == "default":
            usage = self.usage_of()
        if self.name == "chat_completions":
            finish = (
                b'data: {"id":"c-1","model":"chaos",'
                b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
            )
            return finish + (b"" if usage is None else self.usage_event(usage))
        if self.name == "responses":
            done = {"type": "response.output_text.done", "item_id": "msg_1", "text": "hi"}
            return b"event: response.output_text.done\ndata: " + json.dumps(done).encode() + b"\n\n"
        if usage is None:
            return (
                b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n'
            )
        return self.usage_event(usage)

    def terminal(self, usage: str | None = "default") -> bytes:
        """Return the terminal event; of responses it is the one that carries usage."""
        if self.name != "responses":
            return self.end
        return (
            b'event: response.completed\ndata: {"type":"response.completed","response":'
            + self.whole(usage)
            + b"}\n\n"
        )

    def usage_event(self, usage: str) -> bytes:
        """Return the event that carries usage."""
        if self.name == "responses":
            return self.terminal(usage)
        if self.name == "chat_completions":
            return b'data: {"id":"c-1","model":"chaos","choices":[],"usage":' + usage.encode() + b"}\n\n"
        return (
            b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
            b'"usage":' + usage.encode() + b"}\n\n"
        )

    def stream(self, usage: str | None = "default") -> bytes:
        """Return a whole stream."""
        return self.opening() + self.content() + self.closing(usage) + self.terminal(usage)

    def shown(self, stream: bytes) -> bytes:
        """Return what a caller who did not ask for usage gets of a stream."""
        if not self.chat:
            return stream
        events = [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]
        return b"".join(event for event in events if b'"choices":[],"usage"' not in event)

    def is_error_body(self, body: bytes) -> bool:
        value = json.loads(body)
        if self.name != "messages":
            return set(value) == {"error"} and set(value["error"]) == {"message", "type", "param", "code"}
        return value["type"] == "error" and set(value["error"]) == {"type", "message"}

    def split_error_event(self, body: bytes) -> bytes | None:
        """Return what stands before the gateway's own last error event; None if there is none."""
        opening = b'data: {"error":' if self.chat else b'event: error\ndata: {"type":"er'
        at = body.rfind(opening)
        if at < 0 or not body.endswith(b"\n\n"):
            return None
        payload = body[at:].split(b"data: ", 1)[1]
        if self.name == "responses":
            value = json.loads(payload)
            told = {"type", "code", "message", "param", "sequence_number", "error"}
            return body[:at] if set(value) == told and value["error"]["message"] == value["message"] else None
        return body[:at] if self.is_error_body(payload) else None


CHAT = Wire(
    name="chat_completions",
    path="/v1/chat/completions",
    door="/v1/chat/completions",
    end=b"data: [DONE]\n\n",
    error=b'data: {"error":{"message":"busy","type":"server_error","code":"overloaded"}}\n\n',
    error_type="overloaded",
    usage='{"prompt_tokens":%(input)s,"completion_tokens":%(output)s,'
    '"prompt_tokens_details":{"cached_tokens":%(cached)s}}',
)
MESSAGES = Wire(
    name="messages",
    path="/v1/messages",
    door="/v1/messages",
    end=b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    error=b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n',
    error_type="overloaded_error",
    usage='{"input_tokens":%(input)s,"output_tokens":%(output)s,"cache_read_input_tokens":%(cached)s}',
)
RESPONSE_HEAD = (
    b'{"id":"r-1","object":"response","status":"completed","error":null,"model":"chaos",'
    b'"output":[{"type":"message","content":[{"type":"output_text","text":"hi"}]}]'
)
RESPONSES = Wire(
    name="responses",
    path="/v1/responses",
    door="/v1/responses",
    end=b'event: response.completed\ndata: {"type":"response.completed","response":'
    + RESPONSE_HEAD
    + b',"usage":{"input_tokens":11,"output_tokens":7,"input_tokens_details":{"cached_tokens":3}}}}\n\n',
    error=b'event: error\ndata: {"type":"error","code":"overloaded","message":"busy","param":null}\n\n',
    error_type="overloaded",
    usage='{"input_tokens":%(input)s,"output_tokens":%(output)s,'
    '"input_tokens_details":{"cached_tokens":%(cached)s}}',
)
EMBEDDINGS = Wire(
    name="embeddings",
    path="/v1/embeddings",
    door="/v1/embeddings",
    end=b"",
    error=b'data: {"error":{"message":"busy","type":"server_error","code":"overloaded"}}\n\n',
    error_type="overloaded",
    usage='{"prompt_tokens":%(input)s,"completion_tokens":%(output)s,'
    '"prompt_tokens_details":{"cached_tokens":%(cached)s}}',
)
"""Has no streams."""
WIRES = (CHAT, MESSAGES, RESPONSES)


def head(status: str = "200 OK", *lines: str, kind: str = "application/json") -> bytes:
    """Return the head of a reply, without framing unless `lines` has it."""
    return "".join(
        f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"content-type: {kind}", *lines, "")
    ).encode("latin-1")


def sized(body: bytes, status: str = "200 OK", *lines: str, kind: str = "application/json") -> bytes:
    """Return a reply framed by its length."""
    return head(status, f"content-length: {len(body)}", *lines, kind=kind) + body


STREAM_HEAD = head("200 OK", "transfer-encoding: chunked", kind="text/event-stream")
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def streamed(*pieces: bytes) -> list[bytes]:
    """Return the steps of a stream that ends in order, each piece a chunk."""
    return [STREAM_HEAD, *[chunk(piece) for piece in pieces], LAST_CHUNK]
