"""Debian's Chromium, headless, over the DevTools protocol on two pipes: no driver, no package."""
import json
import os
import select
import shutil
import subprocess
import tempfile
import time


class Browser:
    """with Browser() as b: b.open(url); b.js("document.title"). on(method, f) hears events; `console` holds errors of the page."""

    def __init__(self):
        self.program = shutil.which("chromium")
        assert self.program, "chromium is not installed: deploy/setup tests"
        self.folder = tempfile.TemporaryDirectory(prefix="rs-chromium-")
        self.next_id, self.buffer, self.answers, self.handlers, self.console = 0, b"", {}, {}, []

    def __enter__(self):
        to_read, self.write_fd = os.pipe()
        self.read_fd, to_write = os.pipe()

        def place():  # the protocol's ends are 3 and 4; high copies first, so that neither overwrites the other
            a, b = os.dup2(to_read, 60), os.dup2(to_write, 61)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [self.program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions",
             "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}", "about:blank"],
            close_fds=False, preexec_fn=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.session = None
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.on("Runtime.exceptionThrown", lambda p: self.console.append(p["exceptionDetails"].get("exception", {}).get("description") or p["exceptionDetails"]["text"]))
        self.on("Runtime.consoleAPICalled", lambda p: self.console.append(str(p["args"])) if p["type"] in ("error", "warning", "assert") else None)
        self.on("Log.entryAdded", lambda p: self.console.append(p["entry"]["text"] + " " + p["entry"].get("url", "")) if p["entry"]["level"] in ("error", "warning") else None)
        return self

    def __exit__(self, *_):
        os.close(self.write_fd)
        os.close(self.read_fd)
        self.process.kill()
        self.process.wait()
        for _ in range(20):  # its helpers end a moment later
            try:
                return self.folder.cleanup()
            except OSError:
                time.sleep(0.1)

    def on(self, method, handler):
        self.handlers[method] = handler

    def _read(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser did not answer in time"
            data = os.read(self.read_fd, 1 << 20)
            assert data, "the browser ended"
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        if "id" in message:
            self.answers[message["id"]] = message
        elif message["method"] in self.handlers:
            self.handlers[message["method"]](message["params"])

    def post(self, method, **params):
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": params, **({"sessionId": self.session} if self.session else {})}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.write_fd, data):]
        return self.next_id

    def send(self, method, wait_s=15, **params):
        number, deadline = self.post(method, **params), time.monotonic() + wait_s
        while number not in self.answers:
            self._read(deadline)
        answer = self.answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def js(self, expression):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression, wait_s=15):
        deadline = time.monotonic() + wait_s
        while not (value := self.js(f"(v => v instanceof Node || v)({expression})")):
            assert time.monotonic() < deadline, f"not within {wait_s} s: {expression}; the page says: {self.js('document.body.innerText')[:1500]} {self.console}"
            time.sleep(0.05)
        return value

    def open(self, url):
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def key(self, key, text=None, shift=False):
        code = {"Tab": 9, "Enter": 13, " ": 32, "Escape": 27}.get(key, 0)
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"Enter": "\r", " ": " "}.get(key, text)
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **({"text": text} if text else {}), **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def screen(self, width, height, dark=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def picture(self, path):
        import base64
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
