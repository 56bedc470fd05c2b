"""Pictures of the page for the README: `python -m tests.page.pictures docs/images [http://127.0.0.1:9300 [PROMPT]]`.

Of a running gateway where its address is given, else with the sample data of the tests, whose figures mean nothing.
Both themes show the same answer.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.page.chromium import MISSING, Chromium, find_chromium
from tests.page.stub import Stub
from tests.page.tab import CTRL, Tab

PROMPT = "How wide must a 3 A track be on 1 oz copper in KiCad?"
PACE_S = 0.035  # between two pieces of the answer


def main() -> int:
    """Write page-light.png and page-dark.png into the folder named on the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    running = sys.argv[2] if len(sys.argv) > 2 else None
    prompt = sys.argv[3] if len(sys.argv) > 3 else PROMPT
    binary = find_chromium()
    if binary is None:
        print(MISSING, file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser, stub = Chromium(binary, Path(profile)), Stub()
        stub.pace_s = PACE_S
        try:
            tab = Tab(browser)
            tab.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")
            tab.open((running or stub.url).rstrip("/") + "/")
            tab.click("#prompt")
            tab.type(prompt)
            tab.key("Enter", CTRL)
            tab.wait("document.querySelector('#answer').dataset.state === 'done'")
            tab.wait("document.querySelector('tr.past')")
            tab.run("document.activeElement.blur()")
            for scheme in ("light", "dark"):
                tab.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
                path = folder / f"page-{scheme}.png"
                tab.picture(path, height=1240)
                Image.open(path).convert("RGB").quantize(dither=Image.Dither.NONE).save(path, optimize=True)
        finally:
            stub.close()
            browser.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
