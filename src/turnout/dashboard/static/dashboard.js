"use strict";
// Live pages: ask for this page again with the mark of what is shown, and swap the parts that changed. Everything works
// without this script, except that nothing moves by itself.
(() => {
  const PACE = 1000, SLOW = 5000;
  const root = document.documentElement;
  const lamp = document.getElementById("live"), lampWords = document.getElementById("live-words");
  const banner = document.getElementById("banner");
  let mark = "", timer = 0, failures = 0, asking = null;
  const shown = new Map();

  // --- theme
  const theme = document.getElementById("theme");
  theme.closest("label").hidden = false;
  theme.value = root.dataset.theme || "auto";
  theme.addEventListener("change", () => {
    if (theme.value === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme.value;
    try { localStorage.setItem("turnout-theme", theme.value); } catch { /* not kept, still applied */ }
  });
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  // --- swapping
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  const parts = (doc) => [...doc.querySelectorAll("[data-live]")];
  for (const part of parts(document)) shown.set(part.id, part.innerHTML);

  function keep() {
    const active = document.activeElement;
    const key = active && (active.dataset.keep || active.id);
    const open = new Map([...document.querySelectorAll("details[data-keep]")].map((d) => [d.dataset.keep, d.open]));
    const picked = new Set([...document.querySelectorAll('#compare input[name="run"]:checked')].map((box) => box.value));
    const scrolled = new Map([...document.querySelectorAll("[data-live] .scroll")].map((box) => [box.getAttribute("aria-label"), [box.scrollLeft, box.scrollTop]]));
    return () => {
      for (const d of document.querySelectorAll("details[data-keep]")) if (open.has(d.dataset.keep)) d.open = open.get(d.dataset.keep);
      for (const box of document.querySelectorAll('#compare input[name="run"]')) box.checked = picked.has(box.value);
      for (const box of document.querySelectorAll("[data-live] .scroll")) {
        const at = scrolled.get(box.getAttribute("aria-label"));
        if (at) [box.scrollLeft, box.scrollTop] = at;
      }
      if (key && document.activeElement !== active) {
        const again = document.querySelector(`[data-keep="${CSS.escape(key)}"]`) || document.getElementById(key);
        if (again) again.focus({ preventScroll: true });
      }
    };
  }

  function swap(doc) {
    const restore = keep();
    let changed = 0;
    const style = doc.querySelector("style");
    if (style) sheet.replaceSync(style.textContent);
    for (const fresh of parts(doc)) {
      const old = document.getElementById(fresh.id);
      if (!old || shown.get(fresh.id) === fresh.innerHTML) continue;
      // A text selection or an open export is not pulled from under the reader.
      const selection = getSelection();
      if (selection && !selection.isCollapsed && old.contains(selection.anchorNode)) continue;
      shown.set(fresh.id, fresh.innerHTML);
      old.replaceChildren(...document.importNode(fresh, true).childNodes);
      changed += 1;
    }
    if (changed) { restore(); dress(); }
    return changed;
  }

  // --- asking again
  function say(state, words) {
    lamp.dataset.state = state;
    if (lampWords.textContent !== words) lampWords.textContent = words;
  }
  async function ask(address, fresh) {
    asking?.abort();
    asking = new AbortController();
    const headers = mark && !fresh ? { "If-None-Match": mark } : {};
    const answer = await fetch(address, { headers, signal: asking.signal, cache: "no-store" });
    if (answer.status === 304) return { status: 304 };
    const text = await answer.text();
    mark = answer.headers.get("ETag") || "";
    return { status: answer.status, doc: new DOMParser().parseFromString(text, "text/html") };
  }
  async function look() {
    clearTimeout(timer);
    if (document.hidden) return;
    let pace = PACE;
    try {
      const { status, doc } = await ask(location.href);
      failures = 0;
      if (status === 200) {
        banner.textContent = "";
        say(swap(doc) ? "new" : "on", "live");
      } else if (status === 304) {
        if (banner.textContent) banner.textContent = "";
        say("on", "live");
      } else {
        const gone = doc.querySelector("[data-gone]");
        const words = gone ? gone.textContent.trim().replace(/\.$/, "") : `the server answered ${status}`;
        banner.textContent = `${words}. What you see is the last state that was read.`;
        say("lost", "gone");
        pace = SLOW;
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      failures += 1;
      if (failures > 1) {
        banner.textContent = "The dashboard does not answer; this page shows what it read last and goes on trying.";
        say("lost", "not connected");
      }
      pace = SLOW;
    }
    timer = setTimeout(look, pace);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });

  // --- moving within a page without losing the place: the step slider
  async function go(address) {
    clearTimeout(timer);
    history.replaceState(null, "", address);
    try {
      const { doc } = await ask(address, true);
      if (doc) swap(doc);
    } catch (error) {
      if (error.name === "AbortError") return;
    }
    timer = setTimeout(look, PACE);
  }
  let sliding = 0;
  document.addEventListener("input", (event) => {
    const slider = event.target;
    if (slider.id !== "step-slider") return;
    const step = slider.dataset.steps.split(",")[Number(slider.value)];
    const words = `step ${Number(step).toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", words);
    document.getElementById("step-words").textContent = words;
    clearTimeout(sliding);
    sliding = setTimeout(() => {
      const address = new URL(location.href);
      address.searchParams.set("step", step);
      go(address);
    }, 60);
  });
  document.addEventListener("change", (event) => {
    if (event.target.id === "step-select") {
      const address = new URL(location.href);
      address.searchParams.set("step", event.target.value);
      go(address);
    } else if (event.target.matches("form[data-auto] select")) {
      event.target.form.requestSubmit();
    } else if (event.target.name === "run") {
      count();
    }
  });
  // Empty fields do not belong into a permanent link.
  document.addEventListener("submit", (event) => {
    for (const field of event.target.querySelectorAll("select, input")) if (field.value === "") field.disabled = true;
  });
  addEventListener("pageshow", () => {
    for (const field of document.querySelectorAll("form.filters :disabled")) field.disabled = false;
  });

  // --- comparing
  function count() {
    const button = document.getElementById("compare-button");
    if (!button) return;
    const n = document.querySelectorAll('#compare input[name="run"]:checked').length;
    button.disabled = n === 0;
    document.getElementById("compare-count").textContent = n ? `${n} selected` : "select at least one";
  }

  // --- export as PNG: the SVG of the same address, drawn twice its size
  document.addEventListener("click", async (event) => {
    const button = event.target.closest('[data-export="png"]');
    if (!button) return;
    button.disabled = true;
    try {
      const svg = await (await fetch(`${button.dataset.source}theme=${isDark() ? "dark" : "light"}`)).text();
      const address = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
      const image = new Image();
      image.src = address;
      await image.decode();
      const canvas = document.createElement("canvas");
      canvas.width = 2 * image.naturalWidth;
      canvas.height = 2 * image.naturalHeight;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      URL.revokeObjectURL(address);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
      const save = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${button.dataset.name}.png` });
      save.click();
      setTimeout(() => URL.revokeObjectURL(save.href), 10000);
    } catch (error) {
      banner.textContent = `The figure could not be drawn as PNG (${error.message}); the SVG link has the same figure.`;
    } finally {
      button.disabled = false;
    }
  });

  // --- what the server cannot know: how long ago, the reader's theme
  function dress() {
    const now = Date.now() / 1000;
    for (const time of document.querySelectorAll("time[data-when]")) {
      const seconds = Math.max(0, now - Number(time.dataset.when));
      const [n, unit] = seconds < 90 ? [seconds, "s"] : seconds < 5400 ? [seconds / 60, "min"] : seconds < 129600 ? [seconds / 3600, "h"] : [seconds / 86400, "days"];
      const words = `${Math.round(n)} ${unit} ago`;
      if (time.textContent !== words) time.textContent = words;
    }
    for (const button of document.querySelectorAll('[data-export="png"]')) button.hidden = false;
    count();
  }
  dress();
  setInterval(() => { if (!document.hidden) dress(); }, 5000);
  say("on", "live");
  timer = setTimeout(look, PACE);
})();
