"use strict";
// Before the first paint: the theme that this reader chose last.
(() => {
  let chosen = "auto";
  try { chosen = localStorage.getItem("turnout-theme") || "auto"; } catch { /* storage is off: follow the system */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  document.documentElement.dataset.script = "on";
})();
