// Agreement in parts: over time, by batch, and of one rater as they judge more.
const MOST_BATCHES = 20; // with more, those of the lowest agreement are listed

function drawn(tag, attributes, text = '') {
  const shape = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
  shape.textContent = text;
  return shape;
}

// A point with its interval for each part, from left to right; `ticks` name the parts, as many as fit.
function timeline(parts, ticks, name) {
  const [width, height, left, bottom] = [560, 170, 46, 22];
  const x = (n) => left + (width - left - 12) * ((n + 0.5) / parts.length);
  const y = (share) => 8 + (height - 8 - bottom) * (1 - between(share));
  const chart = drawn('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': name });
  const step = Math.ceil(parts.length / 7);
  const [values, points] = [parts.map(({ value }) => percent(value)), parts.map(({ value }, n) => `${n ? 'L' : 'M'}${x(n).toFixed(1)} ${y(value).toFixed(1)}`)];
  chart.append(
    ...[0, 0.5, 1].flatMap((share) => [
      drawn('line', { class: 'grid', x1: left, x2: width - 8, y1: y(share), y2: y(share) }),
      drawn('text', { class: 'tick', x: left - 8, y: y(share) + 4, 'text-anchor': 'end' }, `${100 * share}%`),
    ]),
    drawn('path', { class: 'sum thin', d: points.join(' ') }),
    ...parts.flatMap(({ value, interval: edges, n: count }, n) => {
      const dot = drawn('circle', { class: 'point', cx: x(n), cy: y(value), r: 4 });
      dot.append(drawn('title', {}, `${ticks[n]}: ${values[n]}${edges ? ` [${edges.map(percent).join(', ')}]` : ''}, n = ${whole(count)}`));
      return [...(edges ? [drawn('line', { class: 'span', x1: x(n), x2: x(n), y1: y(edges[0]), y2: y(edges[1]) })] : []), dot];
    }),
    ...ticks.map((tick, n) => [tick, n]).filter(([, n]) => n % step === 0).map(([tick, n]) => drawn('text', { class: 'tick', x: x(n), y: height - 6, 'text-anchor': 'middle' }, tick)),
  );
  return chart;
}

// The overview's panel: agreement over time, and by batch.
function showInTime({ drift, batches }) {
  const parts = (drift && drift.parts) || [];
  const byBatch = Object.entries(batches || {});
  const panel = find('.in-time');
  panel.hidden = !parts.length && byBatch.length < 2;
  panel.querySelector('.chart').replaceChildren(...(parts.length ? [timeline(parts, parts.map((part) => part.to.slice(5)), words['lead.drift'])] : []));
  panel.querySelector('.change').textContent = parts.length ? changeOf(drift) : '';
  const lowest = [...byBatch].sort(([, one], [, other]) => (one.value ?? 2) - (other.value ?? 2)).slice(0, MOST_BATCHES);
  panel.querySelector('.by-batch').replaceChildren(
    ...(byBatch.length > MOST_BATCHES ? [make('p', { class: 'note' }, say('lead.drift.many', { n: MOST_BATCHES, total: whole(byBatch.length) }))] : []),
    ...(byBatch.length > 1 ? (byBatch.length > MOST_BATCHES ? lowest : byBatch).map(([name, figure]) => interval(name || words['batches.default'], figure, percent)) : []));
}

function changeOf({ first, second, p }) {
  const about = { first: percent(first.value), second: percent(second.value), p: p === null ? '= –' : p < 0.001 ? '< 0.001' : `= ${p.toFixed(p < 0.1 ? 3 : 2)}` };
  return say(p !== null && p < 0.05 ? (second.value < first.value ? 'lead.drift.fallen' : 'lead.drift.risen') : 'lead.drift.steady', about);
}

// A rater's agreement with the others as they judge more; nothing with too few judgments.
function personCurve(id) {
  const parts = measured && measured.curves && measured.curves[id];
  if (!parts) return '';
  return make('div', { class: 'chart curve' }, make('h3', {}, words['person.curve']), timeline(parts, parts.map((part) => whole(part.judgments)), words['person.curve']));
}

// How many more pairs would halve the interval of the agreement.
function powerNote({ to_halve: more }) {
  return more ? say('lead.power', { n: whole(more.items), raters: Math.max(2, Math.round(more.raters)) }) : '';
}
