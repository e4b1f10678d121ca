"use strict";
// Values under the pointer on the training curves; order and filters of the samples. The page reads well without it.
(() => {
  const format = (v) => {
    const text = v === 0 ? "0" : Math.abs(v) < 1e-3 ? v.toExponential(1) : Number(v.toPrecision(4)).toString();
    return text.replace(/-/g, "\u2212");
  };
  for (const plot of document.querySelectorAll("svg[data-series]")) {
    const series = JSON.parse(plot.dataset.series);
    const [left, right, low, high, width] = plot.dataset.scale.split(",").map(Number);
    const cursor = plot.querySelector(".cursor");
    const readout = plot.parentElement.querySelector(".readout");
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * width;
      const wanted = low + ((at - left) / (right - left)) * (high - low);
      const nearest = (points) => points.reduce((a, b) => (Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a));
      const step = nearest(series.flatMap((s) => s.points))[0];
      const here = series.flatMap((s) => s.points.filter((p) => p[0] === step).map((p) => `${s.name} ${format(p[1])}`));
      const x = left + ((step - low) / (high - low)) * (right - left);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.style.visibility = "visible";
      readout.textContent = `step ${format(step)}: ${here.join(", ")}`;
    });
    plot.addEventListener("pointerleave", () => {
      cursor.style.visibility = "hidden";
      readout.textContent = "";
    });
  }

  const list = document.getElementById("sample-list");
  if (!list) return;
  const page = 6;
  let shown = page;
  const samples = [...list.children];
  const control = (id) => document.getElementById(id);
  const [order, subject, search, more, tally] = ["order", "subject", "search", "more", "tally"].map(control);
  const change = (sample) => Number(JSON.parse(sample.dataset.change)[subject.value] ?? 0);
  const orders = {
    gain: (a, b) => change(b) - change(a),
    loss: (a, b) => change(a) - change(b),
    random: () => 0,
  };
  const texts = new Map(samples.map((s) => [s, s.textContent.toLowerCase()]));
  const draw = () => {
    const words = search.value.trim().toLowerCase();
    const sorted = [...samples].sort((a, b) => orders[order.value](a, b) || a.dataset.place - b.dataset.place);
    const found = sorted.filter((s) => !words || texts.get(s).includes(words));
    for (const sample of samples) sample.hidden = true;
    list.append(...sorted);
    for (const sample of found.slice(0, shown)) sample.hidden = false;
    const policies = new Set([...document.querySelectorAll("input[name=policy]:checked")].map((box) => box.value));
    for (const answer of list.querySelectorAll(".answer")) answer.hidden = !policies.has(answer.dataset.policy);
    more.hidden = found.length <= shown;
    tally.textContent = found.length ? `${Math.min(shown, found.length)} of ${found.length} prompts shown` : "No prompt holds these words.";
  };
  const restart = () => { shown = page; draw(); };
  for (const one of [order, subject, search]) one.addEventListener("input", restart);
  for (const box of document.querySelectorAll("input[name=policy]")) box.addEventListener("input", draw);
  more.addEventListener("click", () => { shown += page; draw(); });
  for (const one of document.querySelectorAll(".controls, .more")) one.hidden = false;
  draw();
})();
