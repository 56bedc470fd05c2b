/* Loaded before the first paint, so that a chosen theme or language does not flash. */
"use strict";
(() => {
  try {
    const theme = localStorage.getItem("mlx-router.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    /* storage is switched off: the system's theme it is */
  }
})();
