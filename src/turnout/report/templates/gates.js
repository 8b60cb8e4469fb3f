"use strict";
// The sequence reader: tokens as text on rails, one rail per layer (layer 0 lowest); a filled rail means the gate is open.
(() => {
  const source = document.getElementById("gate-data");
  const root = document.getElementById("reader");
  if (!source || !root) return;
  const runs = JSON.parse(source.textContent);
  if (!runs.length) return;
  const SVG = "http://www.w3.org/2000/svg";
  const LEAST_MARK = 3;
  const make = (name, props = {}, ...children) => {
    const node = Object.assign(document.createElement(name), props);
    node.append(...children);
    return node;
  };
  const draw = (name, attributes) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };

  const ui = {};
  for (const part of ["run", "sequence", "legend", "strip", "tokens", "live", "tip", "stats", "previous", "next"]) {
    ui[part] = root.querySelector(`[data-part="${part}"]`);
  }
  const hiddenLayers = new Set();
  let run, item, cursor = -1, spans = [], answers = new Map(), dense = false;

  const probability = (layer, i) => {
    const code = item.gate[layer].slice(2 * i, 2 * i + 2);
    return code === "zz" ? NaN : parseInt(code, 36) / 1000;
  };
  const isOpen = (layer, i) => item.taken[layer][i] === "1" && !hiddenLayers.has(layer);
  const openLayers = (i) => {
    const found = [];
    for (let layer = 0; layer < run.layers; layer++) if (isOpen(layer, i)) found.push(layer);
    return found;
  };
  const railHeight = () => (run.layers <= 4 ? 4 : run.layers <= 8 ? 3 : 2);
  const visible = (token) => {
    if (token === "\n") return "↵";
    if (token === "\t") return "⇥\t";
    return token.replace(/\n/g, "↵\n");
  };

  function fillRuns() {
    runs.forEach((entry, k) => ui.run.append(make("option", { value: String(k), textContent: entry.label })));
    ui.run.closest("label").hidden = runs.length < 2;
  }

  function pickRun(k) {
    run = runs[k];
    hiddenLayers.clear();
    ui.sequence.replaceChildren();
    run.sequences.forEach((sequence, s) => {
      const gates = sequence.taken.reduce((sum, row) => sum + [...row].filter((bit) => bit === "1").length, 0);
      const known = sequence.at.filter((_, q) => sequence.targets[q] !== "");
      const right = sequence.at.filter((_, q) => sequence.targets[q] !== "" && sequence.targets[q] === sequence.predictions[q]);
      const score = known.length ? `, ${right.length} of ${known.length} right` : "";
      const words = `${s + 1}: ${gates} open gate${gates === 1 ? "" : "s"}${score}`;
      ui.sequence.append(make("option", { value: String(s), textContent: words }));
    });
    drawLegend();
    pickSequence(0);
  }

  function drawLegend() {
    ui.legend.replaceChildren();
    for (let layer = 0; layer < run.layers; layer++) {
      const button = make("button", { type: "button", className: "layer-toggle", textContent: `layer ${run.index[layer]}` });
      button.style.setProperty("--swatch", `var(--l${layer})`);
      button.setAttribute("aria-pressed", "true");
      button.title = "show or hide this layer";
      button.addEventListener("click", () => {
        if (!hiddenLayers.delete(layer)) hiddenLayers.add(layer);
        button.setAttribute("aria-pressed", String(!hiddenLayers.has(layer)));
        drawTokens();
        drawStrip();
      });
      ui.legend.append(button);
    }
  }

  function pickSequence(s) {
    item = run.sequences[s];
    cursor = -1;
    answers = new Map(item.at.map((position, q) => [position, { target: item.targets[q], prediction: item.predictions[q] }]));
    dense = item.at.length > item.tokens.length / 4;
    drawTokens();
    drawStrip();
    hideTip();
    ui.tokens.scrollTop = 0;
    const first = spans.find((span) => span.classList.contains("open"));
    if (first) bringIntoView(first);
  }

  function bringIntoView(span) {
    const box = ui.tokens.getBoundingClientRect(), at = span.getBoundingClientRect();
    if (at.top < box.top || at.bottom > box.bottom) ui.tokens.scrollTop += at.top - box.top - box.height / 2;
  }

  function background(i) {
    const h = railHeight();
    const layers = [];
    for (let layer = 0; layer < run.layers; layer++) {
      if (hiddenLayers.has(layer)) continue;
      const open = isOpen(layer, i);
      const p = probability(layer, i);
      if (!open && !(p >= 0.05)) continue;
      const strength = open ? 100 : Math.round(12 + 40 * p);
      const colour = `color-mix(in srgb, var(--l${layer}) ${strength}%, transparent)`;
      const thick = open ? h : Math.max(1, h - 2);
      layers.push(`linear-gradient(${colour}, ${colour}) 0 calc(100% - ${layer * (h + 1)}px) / 100% ${thick}px no-repeat`);
    }
    return layers;
  }

  function drawTokens() {
    const h = railHeight();
    const flows = item.tokens.some((token) => /\s/.test(token)) || item.tokens.every((token) => [...token].length === 1);
    ui.tokens.className = flows ? "tokens flows" : "tokens apart";
    ui.tokens.style.setProperty("--rails-height", `${run.layers * (h + 1)}px`);
    const rails = [];
    // With many layers the lines would run into one grey block; then only the lowest is drawn.
    for (let layer = 0; layer < (run.layers > 6 ? 1 : run.layers); layer++) {
      rails.push(`linear-gradient(var(--rail-line), var(--rail-line)) 0 calc(100% - ${layer * (h + 1)}px) / 100% 1px no-repeat`);
    }
    ui.tokens.style.setProperty("--rails", rails.join(", "));
    const fragment = document.createDocumentFragment();
    let total = 0, openTokens = 0;
    spans = item.tokens.map((token, i) => {
      const span = make("span", { className: "t", textContent: visible(token) });
      span.dataset.i = String(i);
      const own = background(i);
      const open = openLayers(i);
      if (own.length) span.style.background = [...own, "var(--rails)"].join(", ");
      if (open.length) {
        span.classList.add("open");
        openTokens += 1;
        total += open.length;
      }
      fragment.append(span);
      const answer = answers.get(i);
      if (answer && !dense) {
        span.classList.add("ask");
        fragment.append(badge(answer));
      }
      if (token === "\n") fragment.append(document.createElement("br"));
      return span;
    });
    ui.tokens.replaceChildren(fragment);
    const share = (100 * openTokens) / item.tokens.length;
    ui.stats.textContent =
      `${openTokens.toLocaleString("en")} of ${item.tokens.length.toLocaleString("en")} tokens took attention ` +
      `(${share.toPrecision(3)} %), ${total.toLocaleString("en")} open gate${total === 1 ? "" : "s"}.`;
    if (cursor >= 0) spans[cursor].classList.add("here");
  }

  function badge(answer) {
    if (answer.target === "" && answer.prediction === "") return make("span", { className: "answer", textContent: "query" });
    const right = answer.target === answer.prediction;
    const words = right ? `→ ${answer.prediction} ✓` : `→ ${answer.prediction || "?"} ✗, target ${answer.target}`;
    return make("span", { className: `answer ${right ? "right" : "wrong"}`, textContent: words });
  }

  function drawStrip() {
    const width = Math.max(240, Math.floor(ui.strip.clientWidth));
    const left = 24, row = 13, top = dense ? 2 : 10, n = item.tokens.length;
    const plot = width - left - 4;
    const height = top + run.layers * row + 2;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
    for (let layer = 0; layer < run.layers; layer++) {
      const y = top + (run.layers - 1 - layer) * row;
      svg.append(draw("rect", { class: "rail", x: left, y: y + 1, width: plot, height: row - 3 }));
      const name = draw("text", { class: "tick", x: left - 5, y: y + row - 3, "text-anchor": "end" });
      name.textContent = String(run.index[layer]);
      svg.append(name);
      let d = "";
      for (let i = 0; i < n; i++) {
        if (!isOpen(layer, i)) continue;
        let last = i;
        while (last + 1 < n && isOpen(layer, last + 1)) last++;
        let from = left + (i / n) * plot, to = left + ((last + 1) / n) * plot;
        if (to - from < LEAST_MARK) {
          const middle = (from + to) / 2;
          from = middle - LEAST_MARK / 2;
          to = middle + LEAST_MARK / 2;
        }
        d += `M${from.toFixed(1)} ${y + 1}H${to.toFixed(1)}v${row - 3}H${from.toFixed(1)}z`;
        i = last;
      }
      const mark = draw("path", { d });
      mark.style.fill = `var(--l${layer})`;
      svg.append(mark);
    }
    if (!dense) {
      const d = item.at.map((i) => `M${(left + ((i + 0.5) / n) * plot - 3.5).toFixed(1)} 1h7l-3.5 6z`).join("");
      svg.append(draw("path", { class: "query", d }));
    }
    const line = draw("line", { class: "strip-cursor", y1: 0, y2: height, x1: -9, x2: -9 });
    svg.append(line);
    svg.onclick = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * width;
      let i = Math.min(n - 1, Math.max(0, Math.floor(((x - left) / plot) * n)));
      const reach = Math.ceil((6 / plot) * n);
      for (let d = 0; d <= reach && !openLayers(i).length; d++) {
        if (openLayers(i + d).length && i + d < n) i += d;
        else if (i - d >= 0 && openLayers(i - d).length) i -= d;
      }
      select(i, true);
    };
    ui.strip.replaceChildren(svg);
    placeCursor();
  }

  function placeCursor() {
    const line = ui.strip.querySelector(".strip-cursor");
    if (!line) return;
    const width = line.ownerSVGElement.viewBox.baseVal.width;
    const x = cursor < 0 ? -9 : 24 + ((cursor + 0.5) / item.tokens.length) * (width - 28);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
  }

  function describe(i) {
    const answer = answers.get(i);
    const lines = [`position ${i}: ${JSON.stringify(item.tokens[i])}`];
    if (answer && (answer.target !== "" || answer.prediction !== "")) {
      const verdict = answer.target === answer.prediction ? "right" : "wrong";
      lines.push(`target ${JSON.stringify(answer.target)}, predicted ${JSON.stringify(answer.prediction)}: ${verdict}`);
    } else if (answer) {
      lines.push("query");
    }
    return lines;
  }

  function showTip(i) {
    const span = spans[i];
    ui.tip.replaceChildren(...describe(i).map((words) => make("div", { textContent: words })));
    for (let layer = run.layers - 1; layer >= 0; layer--) {
      const p = probability(layer, i);
      const open = item.taken[layer][i] === "1";
      const bar = make("span", { className: "bar" }, make("span"));
      bar.firstChild.style.width = `${100 * (p || 0)}%`;
      bar.firstChild.style.background = `var(--l${layer})`;
      const words = `${Number.isNaN(p) ? "gate" : p.toFixed(3)} ${open ? "open" : "closed"}`;
      ui.tip.append(make("div", { className: open ? "gate is-open" : "gate" }, make("span", { textContent: `layer ${run.index[layer]}` }), bar, words));
    }
    ui.tip.hidden = false;
    const at = span.getClientRects()[0] || span.getBoundingClientRect();
    const home = root.getBoundingClientRect();
    const room = home.width - ui.tip.offsetWidth - 4;
    ui.tip.style.left = `${Math.max(0, Math.min(room, at.left - home.left))}px`;
    const below = at.bottom - home.top + 8;
    const above = at.top - home.top - ui.tip.offsetHeight - 8;
    ui.tip.style.top = `${at.bottom + ui.tip.offsetHeight + 12 > window.innerHeight && above > 0 ? above : below}px`;
  }

  function hideTip() {
    ui.tip.hidden = true;
  }

  function select(i, scroll) {
    if (spans[cursor]) spans[cursor].classList.remove("here");
    cursor = Math.max(0, Math.min(item.tokens.length - 1, i));
    const span = spans[cursor];
    span.classList.add("here");
    if (scroll) bringIntoView(span);
    placeCursor();
    showTip(cursor);
    const gates = openLayers(cursor);
    ui.live.textContent = `${describe(cursor).join("; ")}; ${gates.length ? `open in layer ${gates.map((layer) => run.index[layer]).join(", ")}` : "all gates closed"}`;
  }

  function jump(direction) {
    for (let i = cursor + direction; i >= 0 && i < item.tokens.length; i += direction) {
      if (openLayers(i).length) return select(i, true);
    }
    ui.live.textContent = "no further open gate in this direction";
  }

  ui.run.addEventListener("change", () => pickRun(Number(ui.run.value)));
  ui.sequence.addEventListener("change", () => pickSequence(Number(ui.sequence.value)));
  ui.next.addEventListener("click", () => jump(1));
  ui.previous.addEventListener("click", () => jump(cursor < 0 ? 1 : -1));
  ui.tokens.addEventListener("pointerover", (event) => {
    const span = event.target.closest(".t");
    if (span) showTip(Number(span.dataset.i));
  });
  ui.tokens.addEventListener("pointerleave", hideTip);
  ui.tokens.addEventListener("click", (event) => {
    const span = event.target.closest(".t");
    if (span) select(Number(span.dataset.i), false);
  });
  ui.tokens.addEventListener("blur", hideTip);
  ui.tokens.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };
    if (event.key === "n") jump(1);
    else if (event.key === "p") jump(-1);
    else if (event.key === "Escape") return hideTip();
    else if (event.key in moves) select(cursor + moves[event.key], true);
    else return;
    event.preventDefault();
  });
  let resized;
  window.addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => { hideTip(); drawStrip(); }, 120);
  });

  root.hidden = false;
  fillRuns();
  pickRun(0);
})();
