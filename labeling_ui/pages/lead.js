// The lead's page: how far the campaign has come, how far its labels can be trusted, and the disagreements to settle.
// Reads itself again every 20 s.
const REFRESH_MS = 20000;
const MOST_COUNTED = 500; // disagreements that wait
const MOST_IN_MATRIX = 12; // raters; beyond that the lowest κ are listed

const plain = (value) => value.toFixed(3).replace('-', '−');
const whole = (value) => value.toLocaleString(words.language);
let names = {};

// --- overview

function showStatus(status, waiting) {
  const disputed = waiting < MOST_COUNTED ? whole(waiting) : `${whole(waiting)}+`;
  const judged = Object.values(status.judgments).reduce((a, b) => a + b, 0);
  const kinds = Object.entries(status.judgments).map(([kind, n]) => `${whole(n)} ${kind}`).join(', ') || words['lead.none'];
  const days = status.days_left;
  const left = days === null ? '–' : days === 0 ? words['lead.nothing'] : days < 2 ? say('lead.hours', { n: Math.ceil(days * 24) }) : say('lead.days', { n: Math.ceil(days) });
  const of = (done, total) => say('lead.of', { done: whole(done), total: whole(total) });
  find('.tiles').replaceChildren(
    tile(words['lead.judgments'], of(judged, status.judgments_wanted), kinds, judged / Math.max(1, status.judgments_wanted)),
    tile(words['lead.judged'], of(status.items_judged, status.items), say('lead.pairs', { n: whole(status.pairs) }), status.items_judged / Math.max(1, status.items)),
    tile(words['lead.day'], whole(status.last_day.judgments), say('lead.by', { n: whole(status.last_day.raters) })),
    tile(words['lead.togo'], left, words[days === null ? 'lead.still' : 'lead.pace']),
    tile(words['lead.disputed'], disputed, words['lead.disputed.note']),
  );
  const badge = find('.badge');
  badge.textContent = disputed;
  badge.hidden = !waiting;
  showProgress(status.by_day, judged, status.judgments_wanted);
}

// Judgments so far by day, and a dashed line to the day on which all will be in at the mean pace of the last week.
function showProgress(byDay, judged, wanted) {
  const days = fillDays(Object.entries(byDay));
  const week = days.slice(-7);
  const pace = week.reduce((sum, [, n]) => sum + n, 0) / Math.max(1, week.length);
  const togo = Math.max(0, wanted - judged);
  const ahead = pace ? Math.ceil(togo / pace) : 0;
  const note = find('.forecast');
  if (!days.length) note.textContent = words['lead.novotes'];
  else if (!togo) note.textContent = words['lead.finished'];
  else {
    const date = new Date(Date.now() + ahead * 86400000).toLocaleDateString(words.language, { day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' });
    note.textContent = pace ? say('lead.forecast', { pace: whole(Math.round(pace)), date }) : '';
  }
  find('.chart').replaceChildren(...(days.length ? [progressChart(days, wanted, ahead)] : []));
}

// [day, n] of every day from the first to the last, days without any as 0.
function fillDays(known) {
  if (!known.length) return [];
  const counts = Object.fromEntries(known);
  const filled = [];
  for (let at = Date.parse(known[0][0]); at <= Date.parse(known[known.length - 1][0]); at += 86400000) {
    const day = new Date(at).toISOString().slice(0, 10);
    filled.push([day, counts[day] || 0]);
  }
  return filled;
}

function progressChart(days, wanted, ahead) {
  const [width, height, left, bottom] = [560, 250, 46, 22];
  const span = Math.max(7, days.length + Math.min(ahead, 2 * days.length + 7));
  let sum = 0;
  const sums = days.map(([, n]) => (sum += n));
  const top = Math.max(wanted, sum, 1);
  const x = (day) => left + (width - left - 8) * (day / span);
  const y = (n) => 8 + (height - 8 - bottom) * (1 - n / top);
  const points = [[x(0), y(0)], ...sums.map((n, day) => [x(day + 1), y(n)])];
  const path = points.map(([px, py], n) => `${n ? 'L' : 'M'}${px.toFixed(1)} ${py.toFixed(1)}`).join(' ');
  const cut = (days.length + ahead) > span; // the forecast leaves the chart: draw it as far as the chart goes
  const endShare = cut ? (span - days.length) / ahead : 1;
  const draw = (tag, attributes, text = '') => {
    const one = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
    one.textContent = text;
    return one;
  };
  const mostInDay = Math.max(...days.map(([, n]) => n), 1);
  const chart = draw('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': say('lead.progress.aria', { done: whole(sum), total: whole(wanted), days: days.length }) });
  const step = Math.max(1, Math.ceil(days.length / 6));
  chart.append(
    ...[0, 0.5, 1].flatMap((share) => [
      draw('line', { class: 'grid', x1: left, x2: width - 8, y1: y(share * top), y2: y(share * top) }),
      draw('text', { class: 'tick', x: left - 8, y: y(share * top) + 4, 'text-anchor': 'end' }, whole(Math.round(share * top))),
    ]),
    ...days.map(([, n], day) => draw('rect', { class: 'column', x: x(day) + 1, width: Math.max(1, x(1) - x(0) - 2), y: height - bottom - 46 * (n / mostInDay), height: 46 * (n / mostInDay) })),
    draw('path', { class: 'area', d: `${path} L${points[points.length - 1][0].toFixed(1)} ${y(0)} L${x(0)} ${y(0)} Z` }),
    draw('path', { class: 'sum', d: path }),
    ...days.map(([day], n) => [day, n]).filter(([, n]) => n % step === 0).map(([day, n]) => draw('text', { class: 'tick', x: x(n), y: height - 6 }, day.slice(5))),
  );
  if (ahead && sum < wanted) {
    chart.append(draw('line', { class: 'forecast-line', x1: x(days.length), y1: y(sum), x2: x(days.length + ahead * endShare), y2: y(sum + (wanted - sum) * endShare) }));
  }
  return chart;
}

// A figure with its interval on a line from 0 to 1 (α and κ can be less; they are cut at 0), and published ones as ticks.
function interval(name, figure, form, marks = []) {
  const row = make('div', { class: 'figure' }, make('span', { class: 'name' }, name));
  if (figure.value === null) {
    row.append(make('span', { class: 'note few' }, words['lead.few']));
    return row;
  }
  const line = make('div', { class: 'line' });
  if (figure.interval) {
    const [low, high] = figure.interval.map(between);
    line.append(make('div', { class: 'range', style: `left:${percent(low)};width:${percent(high - low)}` }));
  }
  line.append(...marks.map((mark) => make('div', { class: 'mark', style: `left:${percent(mark.value)}`, title: `${mark.what}: ${mark.figure}` }, make('span', {}, mark.letter))));
  line.append(make('div', { class: 'dot', style: `left:${percent(between(figure.value))}` }));
  const edges = figure.interval ? ` [${figure.interval.map(form).join(', ')}]` : '';
  row.append(line, make('span', { class: 'value' }, make('b', {}, form(figure.value)), edges), make('span', { class: 'note' }, `n = ${whole(figure.n)}`));
  return row;
}

function showAgreement(measured) {
  if (!measured.judgments) {
    find('.figures').textContent = words['lead.novotes'];
    find('.kappas').textContent = words['lead.kappa.none'];
    return;
  }
  const published = measured.published.map((one, n) => ({ ...one, letter: 'abcdefgh'[n], value: parseFloat(one.figure.match(/[\d.]+/)[0]) / 100 }));
  const withoutTies = published.filter((one) => /without ties/.test(one.what));
  const withTies = published.filter((one) => !withoutTies.includes(one));
  find('.figures').replaceChildren(
    interval(words['lead.with_ties'], measured.percent_with_ties, percent, withTies),
    interval(words['lead.without_ties'], measured.percent_without_ties, percent, withoutTies),
    interval(words['lead.alpha.nominal'], measured.krippendorff_alpha.nominal, plain),
    interval(words['lead.alpha.interval'], measured.krippendorff_alpha.interval, plain),
    interval(words['lead.self'], measured.self_consistency, percent),
  );
  find('.published').replaceChildren(
    make('p', { class: 'note' }, `${say('lead.kind', { n: whole(measured.judgments), kind: measured.kind })} ${words['lead.interval']} ${words['lead.published']}:`),
    make('ol', { class: 'note', type: 'a' }, ...published.map((one) => make('li', {}, `${one.what}: ${one.figure}`))),
  );
  showKappas(measured.cohen_kappa);
}

const nameOf = (id) => (names[id] && names[id].name) || id;

function showKappas(kappas) {
  const known = kappas.filter((one) => one.value !== null);
  const raters = [...new Set(known.flatMap((one) => one.raters))].sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
  if (!known.length) find('.kappas').textContent = words['lead.kappa.none'];
  else if (raters.length <= MOST_IN_MATRIX) find('.kappas').replaceChildren(matrix(known, raters));
  else {
    const lowest = [...known].sort((a, b) => a.value - b.value).slice(0, 20);
    find('.kappas').replaceChildren(
      make('p', { class: 'note' }, say('lead.kappa.many', { n: lowest.length, total: known.length })),
      ...lowest.map((one) => interval(one.raters.map(nameOf).join(' – '), one, plain)),
    );
  }
}

function matrix(kappas, raters) {
  const between2 = Object.fromEntries(kappas.flatMap((one) => [[one.raters.join('\n'), one], [[...one.raters].reverse().join('\n'), one]]));
  const head = make('tr', {}, make('td', {}), ...raters.map((id) => make('th', { scope: 'col' }, nameOf(id))));
  const rows = raters.map((one) => make('tr', {}, make('th', { scope: 'row' }, nameOf(one)), ...raters.map((other) => {
    const figure = between2[`${one}\n${other}`];
    if (!figure) return make('td', {}, '');
    const strength = Math.round(60 * between(figure.value));
    return make('td', { class: 'kappa', style: `--strength:${strength}%`, title: figure.interval ? `[${figure.interval.map(plain).join(', ')}], n = ${figure.n}` : `n = ${figure.n}` }, figure.value.toFixed(2).replace('-', '−'));
  })));
  return make('table', { class: 'matrix' }, make('thead', {}, head), make('tbody', {}, ...rows));
}

// --- raters

function shareCell(figure) {
  if (!figure || figure.value === null) return make('td', {}, '–');
  const edges = figure.interval ? make('span', { class: 'note' }, ` ${figure.interval.map((edge) => Math.round(100 * edge)).join('–')}`) : null;
  return make('td', {}, percent(figure.value), edges);
}

function showRaters(measured) {
  const head = ['rater', 'judgments', 'agrees', 'self', 'left', 'longer', 'ties', 'both_bad', 'skipped', 'seconds', 'marks', 'part'];
  find('.raters thead').replaceChildren(make('tr', {}, ...head.map((name) => make('th', { scope: 'col' }, words[`col.${name}`]))));
  const rows = measured.judgments ? [measured, ...Object.values(measured.other_kinds)].flatMap((kind) => kind.raters) : [];
  const judging = Object.fromEntries(rows.map((row) => [row.rater, row]));
  const raters = Object.values(names).sort((a, b) => a.name.localeCompare(b.name));
  find('.raters tbody').replaceChildren(...raters.map((rater) => raterRow(rater, judging[rater.id])));
}

function raterRow(rater, row) {
  const state = [rater.id, rater.role === 'lead' ? words['lead.lead'] : '', rater.kind === 'human' ? '' : rater.kind, rater.pool];
  const who = make('th', { scope: 'row' }, rater.name, ' ', make('span', { class: 'note' }, state.filter(Boolean).join(', ')));
  const change = make('td', {}, make('button', { type: 'button', class: 'plain', 'data-rater': rater.id, 'data-disabled': String(!rater.disabled) },
    words[rater.disabled ? 'lead.enable' : 'lead.disable']));
  if (!row) return make('tr', {}, who, make('td', { class: 'note', colspan: '10' }, words['lead.novotes']), change);
  const seconds = row.median_seconds === null ? '–' : String(row.median_seconds);
  const marks = row.marks || [];
  return make('tr', {}, who, make('td', {}, whole(row.judgments)),
    ...[row.agrees, row.self_consistency, row.left_side, row.longer_side].map(shareCell),
    ...[whole(row.ties), whole(row.both_bad), whole(row.skipped), seconds].map((text) => make('td', {}, text)),
    make('td', { class: marks.length ? 'marked' : '' }, marks.join(', ')), change);
}

async function changeRater(button) {
  await change(`/api/lead/raters/${encodeURIComponent(button.dataset.rater)}`, 'PUT', { disabled: button.dataset.disabled === 'true' });
  refresh();
}

// A link that makes one account, once. What follows the # is sent to no server.
async function invite(role) {
  const made = await change('/api/lead/invitations', 'POST', { role });
  if (!made) return;
  const field = find('.invitation input');
  field.value = window.location.origin + made.path;
  find('.invitation').hidden = false;
  field.select();
}

async function change(path, method, body) {
  try {
    return await call(path, { method, body });
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
    return null;
  }
}

// --- the page

async function refresh() {
  try {
    const asked = ['status', 'agreement', 'raters', `disputes?limit=${MOST_COUNTED}`];
    const [status, measured, raters, waiting] = await Promise.all(asked.map((name) => call(`/api/lead/${name}`)));
    names = Object.fromEntries(raters.map((rater) => [rater.id, rater]));
    showStatus(status, waiting.length);
    showAgreement(measured);
    showRaters(measured);
    warn('');
    desk.setAttribute('aria-busy', 'false');
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
  }
}

function view(name) {
  desk.dataset.view = name;
  for (const part of all('.view')) part.hidden = part.dataset.for !== name;
  for (const button of all('.views button')) button.setAttribute('aria-current', button.dataset.view === name ? 'page' : 'false');
  if (name === 'disputes') showDisputes();
}

desk.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.view) view(button.dataset.view);
  else if (button.dataset.theme !== undefined) switchTheme();
  else if (button.dataset.leave !== undefined) leave();
  else if (button.dataset.rater) changeRater(button);
  else if (button.dataset.invite) invite(button.dataset.invite);
  else settleBy(button);
});

async function begin() {
  view('overview');
  const me = await call('/api/me');
  csrfToken = me.csrf_token;
  find('[data-leave]').hidden = !csrfToken;
  await refresh();
  setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_MS);
}

begin().catch((error) => warn(error.message, 'lost'));
