"use strict";
// Smoothing, search, values under the pointer, word differences. The page reads well without it.
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  for (const one of all(".controls, .more")) one.hidden = false;
  const groupOf = new Map(report.runs.map((run) => [run.name, run.group]));
  const format = (v) => {
    const text = v === 0 ? "0" : Math.abs(v) < 1e-3 ? v.toExponential(1) : Number(v.toPrecision(4)).toString();
    return text.replace(/-/g, "\u2212");
  };

  // --- curves ---
  const runSearch = byId("run-search");
  const wanted = (name) => {
    const words = runSearch ? runSearch.value.trim().toLowerCase() : "";
    return !words || `${name} ${groupOf.get(name) ?? ""}`.toLowerCase().includes(words);
  };
  const smooth = (points, weight) => {
    let average = 0, rest = 1;
    return points.map(([x, y]) => {
      average = weight * average + (1 - weight) * y;
      rest *= weight;
      return [x, average / (1 - rest)];
    });
  };
  const at = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (points[middle][0] <= x) low = middle; else high = middle; }
    const [x0, y0] = points[low], [x1, y1] = points[high];
    return x1 === x0 ? y0 : y0 + ((y1 - y0) * (Math.min(Math.max(x, x0), x1) - x0)) / (x1 - x0);
  };
  const styles = new Map();  // group → its classes, read off the drawn legend
  for (const entry of all("#curves .legend > span")) {
    const tone = entry.querySelector(".mark");
    if (tone) styles.set(entry.textContent, [...tone.classList].filter((c) => c.startsWith("tone-")).join(" "));
  }
  const shape = (name, classes, points) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    made.setAttribute("class", classes);
    made.setAttribute("points", points.map((p) => `${p[0].toFixed(1)},${p[1].toFixed(1)}`).join(" "));
    return made;
  };
  const plots = all("svg[data-panel]").map((plot) => {
    const [left, right, top, base, x0, x1, y0, y1, width] = plot.dataset.scale.split(",").map(Number);
    const px = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
    const py = (y) => base - ((y - y0) / (y1 - y0)) * (base - top);
    return { plot, panel: report.panels[plot.dataset.panel], px, py, left, right, x0, x1, width, drawn: [] };
  });
  const redraw = (one, weight) => {
    const groups = new Map();
    for (const curve of one.panel.curves) {
      if (!wanted(curve.run)) continue;
      const key = JSON.stringify([curve.key, groupOf.get(curve.run), curve.held_out]);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(curve);
    }
    const parts = [], means = [];
    const place = (points) => points.map(([x, y]) => [one.px(x), one.py(y)]);
    one.drawn = [];
    for (const [key, curves] of groups) {
      const [name, group, heldOut] = JSON.parse(key);
      const style = `${styles.get(group) ?? ""}${heldOut ? " held-out" : ""}`;
      const several = curves.length > 1;
      const lines = curves.map((c) => (c.points.length > 3 ? smooth(c.points, weight) : c.points));
      curves.forEach((curve, n) => {
        one.drawn.push({ name: `${curve.run} ${name}`, points: lines[n] });
        if (lines[n].length === 1) {
          const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
          const [[x, y]] = place(lines[n]);
          for (const [k, v] of Object.entries({ class: `dot ${style}`, cx: x, cy: y, r: 2.6 })) dot.setAttribute(k, v);
          parts.push(dot);
          return;
        }
        if (!several && curve.points.length > 3) parts.push(shape("polyline", `curve raw ${style}`, place(curve.points)));
        parts.push(shape("polyline", `curve ${several ? "thin" : ""} ${style}`, place(lines[n])));
      });
      const low = Math.max(...lines.map((l) => l[0][0])), high = Math.min(...lines.map((l) => l[l.length - 1][0]));
      if (several && low < high) {
        const grid = Array.from({ length: 60 }, (_, n) => low + ((high - low) * n) / 59);
        const values = grid.map((x) => lines.map((l) => at(l, x)));
        const edge = (pick) => grid.map((x, n) => [one.px(x), one.py(pick(values[n]))]);
        const upper = edge((v) => Math.max(...v)).reverse();
        parts.push(shape("polygon", `band ${style}`, [...edge((v) => Math.min(...v)), ...upper]));
        means.push(shape("polyline", `curve mean ${style}`, edge((v) => v.reduce((a, b) => a + b) / v.length)));
      }
    }
    one.plot.querySelector(".curves").replaceChildren(...parts, ...means);
  };
  const smoothing = byId("smoothing");
  const visible = new Set();
  const drawVisible = () => { for (const one of visible) redraw(one, Number(smoothing.value)); };
  if (smoothing) {
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const one = plots.find((p) => p.plot === entry.target);
        if (entry.isIntersecting) { visible.add(one); redraw(one, Number(smoothing.value)); } else visible.delete(one);
      }
    });
    for (const one of plots) watcher.observe(one.plot);
    smoothing.addEventListener("input", drawVisible);
  }
  for (const one of plots) {
    const cursor = one.plot.querySelector(".cursor"), readout = one.plot.parentElement.querySelector(".readout");
    one.plot.addEventListener("pointermove", (event) => {
      if (!one.drawn.length) return;
      const box = one.plot.getBoundingClientRect();
      const where = ((event.clientX - box.left) / box.width) * one.width;
      const step = one.x0 + ((where - one.left) / (one.right - one.left)) * (one.x1 - one.x0);
      const x = one.px(Math.min(Math.max(step, one.x0), one.x1));
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.style.visibility = "visible";
      const y = (event.clientY - box.top) / box.height;
      const near = one.drawn.map((d) => ({ ...d, value: at(d.points, step) }));
      const height = one.plot.viewBox.baseVal.height;
      near.sort((a, b) => Math.abs(one.py(a.value) - y * height) - Math.abs(one.py(b.value) - y * height));
      readout.textContent = `step ${format(Math.round(step))}: ${near.slice(0, 3).map((d) => `${d.name} ${format(d.value)}`).join(", ")}`;
    });
    one.plot.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; readout.textContent = ""; });
  }
  const figureSearch = byId("figure-search");
  figureSearch?.addEventListener("input", () => {
    const words = figureSearch.value.trim().toLowerCase();
    for (const figure of all("#curves figure")) figure.hidden = Boolean(words) && !figure.dataset.figure.includes(words);
    if (words) for (const details of all("#curves details")) details.open = true;
  });
  runSearch?.addEventListener("input", () => {
    for (const cell of all("[data-run]")) cell.hidden = !wanted(cell.dataset.run);
    const shown = report.runs.filter((run) => wanted(run.name)).length;
    byId("run-tally").textContent = runSearch.value.trim() ? `${shown} of ${report.runs.length} runs` : "";
    drawVisible();
  });

  // --- the section in view ---
  const links = new Map(all("nav a").map((a) => [a.getAttribute("href").slice(1), a]));
  const mark = () => {
    let here = null;
    for (const [id] of links) if (byId(id).getBoundingClientRect().top < 120) here = id;
    for (const [id, a] of links) a.classList.toggle("here", id === here);
  };
  addEventListener("scroll", mark, { passive: true });
  mark();

  // --- answers ---
  const list = byId("sample-list");
  if (list) {
    const page = 6;
    let shown = page;
    const samples = [...list.children];
    const [order, subject, against, marked, search, more, tally] =
      ["order", "subject", "against", "marked", "search", "more", "tally"].map(byId);
    const answers = new Map(samples.map((s) => [s, new Map(all(".answer", s).map((a) => [a.dataset.policy, a]))]));
    const texts = new Map(samples.map((s) => [s, s.textContent.toLowerCase()]));
    const originals = new Map(all(".answer .text").map((p) => [p, p.textContent]));
    const value = (s, name) => Number(answers.get(s).get(name).dataset.value);
    const change = (s) => value(s, subject.value) - value(s, against.value);
    const orders = {
      none: () => 0,
      gain: (a, b) => change(b) - change(a),
      loss: (a, b) => change(a) - change(b),
      apart: (a, b) => Math.abs(change(b)) - Math.abs(change(a)),
    };
    const words = (text) => text.split(/(\s+)/);
    const differing = (text, other) => {  // words outside the longest common subsequence
      const a = words(text), b = words(other);
      const table = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
      for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) {
        table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
      }
      const parts = [];
      let i = 0, j = 0;
      while (i < a.length) {
        if (j < b.length && a[i] === b[j]) { parts.push([a[i], false]); i++; j++; }
        else if (j < b.length && table[i + 1][j] < table[i][j + 1]) j++;
        else { parts.push([a[i], Boolean(a[i].trim())]); i++; }
      }
      return parts;
    };
    const markWords = (sample) => {
      const reference = answers.get(sample).get(marked.value)?.querySelector(".text");
      for (const [name, answer] of answers.get(sample)) {
        const text = answer.querySelector(".text");
        if (!text) continue;
        if (!reference || name === marked.value) { text.textContent = originals.get(text); continue; }
        text.replaceChildren(...differing(originals.get(text), originals.get(reference)).map(([word, differs]) => {
          if (!differs) return document.createTextNode(word);
          const made = document.createElement("mark");
          made.textContent = word;
          return made;
        }));
      }
    };
    const draw = () => {
      const wantedWords = search.value.trim().toLowerCase();
      const sorted = [...samples].sort((a, b) => orders[order.value](a, b) || samples.indexOf(a) - samples.indexOf(b));
      const found = sorted.filter((s) => !wantedWords || texts.get(s).includes(wantedWords));
      for (const sample of samples) sample.hidden = true;
      list.append(...sorted);
      for (const sample of found.slice(0, shown)) { sample.hidden = false; markWords(sample); }
      const policies = new Set(all("input[name=policy]:checked").map((box) => box.value));
      for (const answer of all(".answer", list)) answer.hidden = !policies.has(answer.dataset.policy);
      more.hidden = found.length <= shown;
      tally.textContent = found.length ? `${Math.min(shown, found.length)} of ${found.length} prompts shown` : "No prompt holds these words.";
    };
    for (const one of [order, subject, against, search, marked]) one.addEventListener("input", () => { shown = page; draw(); });
    for (const box of all("input[name=policy]")) box.addEventListener("input", draw);
    more.addEventListener("click", () => { shown += page; draw(); });
    draw();
  }

  // --- live ---
  if (document.documentElement.dataset.live) {
    const version = document.documentElement.dataset.live;
    setInterval(async () => {
      try {
        const answer = await fetch("version");
        if (answer.ok && (await answer.text()) !== version) location.reload();
      } catch { /* the server has stopped: the page stays as it is */ }
    }, 3000);
  }
})();
