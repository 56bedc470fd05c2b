"""A tab of the browser: real mouse and keyboard events, and everything that it did written down."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tests.page.chromium import Chromium

ALT, CTRL, META, SHIFT = 1, 2, 4, 8
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    " ": ("Space", 32, " "),
}
PATIENCE_MS = 10_000

# Resolves with the value of `look()` as soon as it is truthy.
_WAIT = """new Promise((resolve, reject) => {
  const end = performance.now() + %d;
  const again = () => {
    let value, failure = "";
    try { value = (() => (%s))(); } catch (error) { failure = " " + error; }
    if (value) return resolve(value);
    if (performance.now() > end) return reject(new Error("waited in vain for: " + %s + failure));
    setTimeout(again, 15);
  };
  again();
})"""

_POINT = """(() => {
  const found = [...document.querySelectorAll(%(selector)s)];
  const node = found.find((item) => item.getClientRects().length);
  if (!node) throw new Error("nothing to click: " + %(selector)s + " (" + found.length + " hidden)");
  node.scrollIntoView({block: "center", inline: "nearest", behavior: "instant"});
  const box = node.getBoundingClientRect();
  const point = {x: box.left + box.width / 2, y: box.top + box.height / 2};
  const hit = document.elementFromPoint(point.x, point.y);
  const cover = (hit?.outerHTML ?? "nothing").slice(0, 200);
  if (!node.contains(hit)) throw new Error(%(selector)s + " is covered by " + cover);
  return point;
})()"""


class ScriptError(AssertionError):
    """A script in the page threw."""


class Tab:
    """A page in a browser context of its own: no storage is shared with another tab."""

    def __init__(self, browser: Chromium, *, width: int = 1280, height: int = 900, language: str = "en-GB") -> None:
        self._browser = browser
        self._context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.requests: list[dict[str, Any]] = []  # of the network domain
        self.problems: list[str] = []  # exceptions, console errors and warnings, violations of the policy
        browser.listen(self._session, self._note)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.speak(language)
        self.resize(width, height)

    def call(self, method: str, **parameters: Any) -> Any:
        """A DevTools command of this tab."""
        return self._browser.call(method, session=self._session, **parameters)

    def renew(self, *, width: int = 1280, height: int = 900, language: str = "en-GB") -> None:
        """As a new tab, on the same site: nothing stored, nothing emulated, nothing written down."""
        self.run("localStorage.clear(); sessionStorage.clear()")
        self.call("Page.stopLoading")
        self.requests.clear()
        self.problems.clear()
        self.speak(language)
        self.resize(width, height)

    def speak(self, language: str) -> None:
        """Set the reader's language: the browser's, as the page and servers see it."""
        agent = self._browser.version["userAgent"]
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)

    def close(self) -> None:
        """Close the tab and forget its context."""
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"])
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.problems.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.problems.append(f"console.{event['type']}: {event['args']}")
        elif method == "Log.entryAdded":
            entry = event["entry"]
            # A refused request is logged by the browser itself; the page says so to its reader.
            if entry["level"] in ("error", "warning") and entry["source"] != "network":
                self.problems.append(f"{entry['source']}: {entry['text']}")

    # --- the page -------------------------------------------------------------------------------------------

    def resize(self, width: int, height: int = 900, scale: float = 1) -> None:
        """Set the viewport, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def prefer(self, **features: str) -> None:
        """Emulate media features: `prefers_color_scheme="dark"`."""
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=media)

    def open(self, url: str) -> None:
        """Go to a page and wait until it has started and knows the gateway's state, or why not."""
        self.run("delete document.documentElement.dataset.started")  # the page before is not to be taken for it
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement.dataset.started && document.body.dataset.connection !== 'connecting'")

    def come_back(self) -> None:
        """Return to the tab from another one: the page looks at the gateway at once."""
        self.run("void document.dispatchEvent(new Event('visibilitychange'))")

    def run(self, script: str) -> Any:
        """The value of an expression, promises awaited. Raises ScriptError."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise ScriptError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Look again and again until an expression is true; its value."""
        return self.run(_WAIT % (PATIENCE_MS, condition, json.dumps(condition)))

    def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def wait_text(self, selector: str, part: str) -> str:
        """Wait until an element shows a text."""
        node = f"(document.querySelector({json.dumps(selector)})?.innerText ?? '')"
        return str(self.wait(f"{node}.includes({json.dumps(part)}) && {node}"))

    def focused(self) -> str:
        """The id of the focused element, or its tag."""
        return str(self.run("document.activeElement.id || document.activeElement.tagName"))

    # --- the reader -----------------------------------------------------------------------------------------

    def click(self, selector: str) -> None:
        """Press the left button on the middle of an element that is really there to be pressed."""
        point = self.run(_POINT % {"selector": json.dumps(selector)})
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **point, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def fill(self, selector: str, text: str) -> None:
        """Replace the text of a field."""
        self.click(selector)
        self.run("document.activeElement.select?.()")
        self.type(text)

    def key(self, name: str, modifiers: int = 0) -> None:
        """Press and release a key."""
        code, number, text = KEYS[name]
        common = {"key": name, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        typed = {"text": text} if text and not modifiers & (CTRL | ALT | META) else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **common, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self, path: Path, *, whole: bool = True, height: int | None = None) -> None:
        """Write a PNG of the page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        options = {"clip": clip, "captureBeyondViewport": True} if whole else {}
        data = self.call("Page.captureScreenshot", format="png", **options)["data"]
        path.write_bytes(base64.b64decode(data))
