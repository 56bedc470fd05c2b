"""Pictures of the page for the README: `python -m tests.page.pictures docs/images [http://127.0.0.1:9300]`.

Of a running gateway where its address is given, else with the sample data of the tests, whose figures mean nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.page.chromium import MISSING, Chromium, find_chromium
from tests.page.stub import Stub
from tests.page.tab import CTRL, Tab

PROMPT = "How wide must a 3 A track be on 1 oz copper in KiCad?"
PACE_S = 0.035  # between two pieces of the answer


def main() -> int:
    """Write page-light.png and page-dark.png into the folder named on the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    running = sys.argv[2] if len(sys.argv) > 2 else None
    binary = find_chromium()
    if binary is None:
        print(MISSING, file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser, stub = Chromium(binary, Path(profile)), Stub()
        stub.pace_s = PACE_S
        try:
            for scheme in ("light", "dark"):
                tab = Tab(browser)
                tab.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
                tab.open((running or stub.url).rstrip("/") + "/")
                tab.click("#prompt")
                tab.type(PROMPT)
                tab.key("Enter", CTRL)
                tab.wait("document.querySelector('#answer').dataset.state === 'done'")
                tab.wait("document.querySelector('tr.past')")
                tab.run("document.activeElement.blur()")
                tab.picture(folder / f"page-{scheme}.png", height=1240)
        finally:
            stub.close()
            browser.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
