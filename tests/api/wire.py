"""Raw HTTP for what client libraries hide: frames, half-sent bodies, sockets that close, a thousand streams."""
import json
import re
import socket


def request_bytes(path, body, headers=(), method="POST"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {len(data)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def connect(port, timeout=30):
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def post(port, path, body, headers=(), timeout=30):
    """The whole reply of one request, bytes until the server closes."""
    with connect(port, timeout) as s:
        s.sendall(request_bytes(path, body, [*headers, "Connection: close"]))
        reply = b""
        while part := s.recv(65536):
            reply += part
    return reply


def unchunk(reply):
    """(status, headers, body) of a reply, chunked or not."""
    head, _, body = reply.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if headers.get(b"transfer-encoding") != b"chunked":
        return status, headers, body
    out, at = b"", 0
    while True:
        end = body.index(b"\r\n", at)
        n = int(body[at:end], 16)
        if n == 0:
            return status, headers, out
        out += body[end + 2 : end + 2 + n]
        at = end + 2 + n + 2


def metric(text, name):
    """The sum of a metric's samples in an exposition text."""
    values = [float(m.group(1)) for m in re.finditer(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", text, re.M)]
    assert values, f"no metric {name}"
    return sum(values)
