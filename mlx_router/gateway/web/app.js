/** The page: wires its parts together and shows how the gateway is. */

import { startAdapters } from "./adapters.js";
import { byId, forever, h, keyed, remember, setText } from "./dom.js";
import { startDecisions } from "./decisions.js";
import { errorBox } from "./errors.js";
import { currentLanguage, duration, LANGUAGES, number, onLanguage, say, setLanguage, t, translate } from "./i18n.js";
import { startProcesses } from "./processes.js";
import { startPrompt } from "./prompt.js";
import { startRouter } from "./router.js";
import { known, onStatus, watchStatus } from "./state.js";
import { openToken, renderToken } from "./token.js";

const STATUS_MS = 2000;
const DECISIONS_MS = 2000;

function startTheme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    button.dataset.theme = isDark() ? "dark" : "light";
  };
  button.addEventListener("click", () => {
    const dark = !isDark();
    const follows = dark === system.matches; // back to what the system says
    if (follows) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = dark ? "dark" : "light";
    remember(forever, "mlx-router.theme", follows ? null : dark ? "dark" : "light");
    show();
  });
  system.addEventListener("change", show);
  show();
}

function startLanguages() {
  const show = () => {
    for (const tag of LANGUAGES) byId(`language-${tag}`).setAttribute("aria-pressed", String(tag === currentLanguage()));
    document.title = t("page.title");
  };
  for (const tag of LANGUAGES) byId(`language-${tag}`).addEventListener("click", () => setLanguage(tag));
  onLanguage(show);
  show();
}

/** The headline: connected, ready, which parts are not. */
function renderHealth() {
  const { status, error } = known;
  const mark = byId("health");
  const parts = Object.entries(status?.parts ?? {}).filter(([, part]) => part.ready === false);
  const [state, key] = error
    ? ["bad", error.code === "invalid_api_key" ? "health.locked" : error.status ? "health.failing" : "health.unreachable"]
    : !status
      ? ["idle", "health.connecting"]
      : !status.ready
        ? ["bad", "health.not_ready"]
        : parts.length
          ? ["warn", "health.degraded"]
          : ["good", "health.ready"];
  mark.dataset.state = state;
  say(mark, key, { parts: parts.map(([name]) => name).join(", ") });
  const trouble = byId("trouble");
  const shownCode = trouble.dataset.code ?? "";
  const code = error ? `${error.code} ${error.status}` : "";
  if (code !== shownCode) {
    trouble.dataset.code = code;
    trouble.replaceChildren(...(error ? [errorBox(error, openToken)] : []));
    trouble.hidden = !error;
  }
  const gateway = status?.gateway ?? {};
  const items = status && !error
    ? [
        ["head.rate", number(gateway.requests_per_s, 1)],
        ["head.p50", duration(gateway.p50_ms)],
        ["head.active", number(gateway.active)],
      ]
    : [];
  keyed(byId("glance"), items, ([name]) => name, ([name]) => h("div", {}, say(h("dt"), name), h("dd")), (row, [, value]) => setText(row.lastChild, value));
  document.body.dataset.connection = error ? "lost" : status ? "open" : "connecting";
}

translate();
startTheme();
startLanguages();
renderToken();
byId("token").addEventListener("click", openToken);
onStatus(renderHealth);
onLanguage(renderHealth);
renderHealth();
startPrompt(openToken);
startAdapters();
startProcesses();
startRouter();
startDecisions(DECISIONS_MS);
watchStatus(STATUS_MS);
document.documentElement.dataset.started = "yes";
