"""A headless Chromium for tests, driven over its debugging pipe: no driver, no port and no package is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# What a reader cannot read: text of low contrast (WCAG asks for 4.5), text beyond the window that no scrolling box holds.
_LOOK = """(() => {
  const numbers = (colour) => { const found = colour.match(/[\\d.]+/g).map(Number); return found.length < 4 ? [...found, 1] : found; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(c[i] / 255), 0);
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
  const faint = [], outside = [];
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("svg, [disabled]") || !e.checkVisibility()) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const chain = [];
    for (let p = e; p; p = p.parentElement) chain.unshift(getComputedStyle(p));
    const back = chain.reduce((below, style) => over(numbers(style.backgroundColor), below), canvas);
    const colour = numbers(getComputedStyle(e).color);
    const opacity = chain.reduce((product, style) => product * Number(style.opacity), colour[3]);
    const [high, low] = [light(over([...colour.slice(0, 3), opacity], back)), light(back)].sort((a, b) => b - a);
    const name = `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 30)}`;
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(name);
    if (e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !e.closest(".wide")) outside.push(name);
  }
  const none = (selector, wanted) => [...document.querySelectorAll(selector)].filter((e) => !wanted(e)).map((e) => e.outerHTML);
  return {faint, outside, dark: canvas[0] === 18, sideways: document.documentElement.scrollWidth - innerWidth,
    alt: none("img", (e) => e.alt), scope: none("th", (e) => e.scope && e.textContent.trim()), text: document.body.innerText};
})()"""


class Browser:
    """A browser with one tab; ``profile``: an empty folder for its files."""

    def __init__(self, profile: Path):
        assert CHROMIUM is not None
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()

        def pipes() -> None:  # the protocol's places are 3 and 4
            high = [os.dup2(fd, 100 + i) for i, fd in enumerate((commands, answers))]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        args = [CHROMIUM, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(args, preexec_fn=pipes, close_fds=False, **quiet)
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self._session, self._events = b"", 0, "", list[dict[str, Any]]()
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._send("Page.enable")

    def look(self, page: Path, width: int, dark: bool = False, scripts: bool = True) -> dict[str, Any]:
        """Open a page in a window of this width and return what is wrong with it, and its visible text."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._send("Emulation.setEmulatedMedia", features=scheme)
        self._send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._events.clear()
        self._send("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        return self._send("Runtime.evaluate", expression=_LOOK, returnByValue=True)["result"]["value"]

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
