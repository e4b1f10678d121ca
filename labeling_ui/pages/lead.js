// The lead's page: progress, label quality, raters, and disagreements to settle.
// Refreshes every 20 s; every 2 s while the figures are being computed.
const REFRESH_MS = 20000;
const MEASURING_MS = 2000;
const OLD_SECONDS = 90; // figures older than this show their age
const MOST_COUNTED = 500; // open disagreements
const MOST_IDLE_DAYS = 30; // on the chart, after the last judgment
const IN_MATRIX = { least: 4, most: 12 }; // raters; with fewer, all κ are listed, with more the lowest

const plain = (value) => value.toFixed(3).replace('-', '−');
const whole = (value) => value.toLocaleString(words.language);
let names = {};
let measured = null; // the figures; null until the first reply
let timer = 0; // of the next refresh
let asked = null; // the rater whom the next press disables
let myself = null; // my id: nobody disables themselves
let sorting = { column: 'rater', down: false };

// --- overview

function showStatus(status, waiting) {
  const disputed = waiting < MOST_COUNTED ? whole(waiting) : `${whole(waiting)}+`;
  const { judged } = status;
  const beside = Object.values(status.judgments).reduce((a, b) => a + b, 0) - judged;
  const counted = Object.entries(status.judgments).filter(([kind]) => !beside || kind !== 'model').map(([kind, n]) => `${whole(n)} ${kind}`);
  const kinds = [...counted, ...(beside ? [say('lead.judges', { n: whole(beside) })] : [])].join('; ') || words['lead.none'];
  const days = status.days_left;
  const left = days === null ? '–' : days === 0 ? words['lead.nothing'] : days < 2 ? say('lead.hours', { n: Math.ceil(days * 24) }) : say('lead.days', { n: Math.ceil(days) });
  const of = (done, total) => say('lead.of', { done: whole(done), total: whole(total) });
  find('.tiles').replaceChildren(
    tile(words['lead.judgments'], of(judged, status.judgments_wanted), kinds, judged / Math.max(1, status.judgments_wanted)),
    ...(status.items || !status.single_answers ? [tile(words['lead.judged'], of(status.items_judged, status.items), say('lead.pairs', { n: whole(status.pairs) }), status.items_judged / Math.max(1, status.items))] : []),
    ...(status.single_answers ? [tile(words['lead.single'], of(status.single_answers_judged, status.single_answers), words['lead.single.note'], status.single_answers_judged / status.single_answers)] : []),
    tile(words['lead.day'], whole(status.last_day.judgments), say('lead.by', { n: whole(status.last_day.raters) })),
    tile(words['lead.togo'], left, days === 0 ? '' : words[days === null ? 'lead.still' : 'lead.pace']),
    tile(words['lead.disputed'], disputed, words['lead.disputed.note']),
  );
  const badge = find('.badge');
  badge.textContent = disputed;
  badge.hidden = !waiting;
  showProgress(status.by_day, judged, status.judgments_wanted);
}

// What has changed since the last export, and the export itself.
function showExport(since, judged) {
  const counts = since && ['new', 'changed', 'gone', 'settled'].filter((name) => since[name] || name === 'new').map((name) => say(`export.${name}`, { n: whole(since[name]) }));
  find('.since').textContent = since ? `${say('export.since', { where: since.where, at: timeOf(since.at_ms) })} ${counts.join(', ')}.` : words['export.none'];
  find('.zip').hidden = !judged || desk.dataset.role !== 'lead';
  find('.zip').href = `${base}/api/lead/export.zip`;
  find('.log').hidden = desk.dataset.role !== 'lead';
  find('.log').href = `${base}/api/lead/audit.csv`;
}

// Cumulative judgments by day, and a dashed line to the day when all will be in at last week's mean pace.
function showProgress(byDay, judged, wanted) {
  const days = fillDays(Object.entries(byDay));
  const week = days.slice(-7); // with days without any judgment, such as those since the last one
  const pace = week.reduce((sum, [, n]) => sum + n, 0) / Math.max(1, week.length);
  const togo = Math.max(0, wanted - judged);
  const ahead = pace ? Math.ceil(togo / pace) : 0;
  const note = find('.forecast');
  if (!days.length) note.textContent = words['lead.novotes'];
  else if (!togo) note.textContent = words['lead.finished'];
  else {
    const date = new Date(Date.now() + ahead * DAY_MS).toLocaleDateString(words.language, { day: 'numeric', month: 'long', year: 'numeric', timeZone: 'UTC' });
    note.textContent = pace ? say('lead.forecast', { pace: pace < 1 ? pace.toFixed(1) : whole(Math.round(pace)), date }) : words['lead.idle'];
  }
  find('.chart').replaceChildren(...(days.length ? [progressChart(days, wanted, ahead)] : []));
}

// [day, n] for every UTC day from the first judgment to today, but at most a month from the last one; 0 for days without any.
function fillDays(entries) {
  if (!entries.length) return [];
  const counts = Object.fromEntries(entries);
  const filled = [];
  const last = Date.parse(entries[entries.length - 1][0]);
  const end = Math.max(last, Math.min(Date.now(), last + MOST_IDLE_DAYS * DAY_MS));
  for (let at = Date.parse(entries[0][0]); at <= end; at += DAY_MS) {
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
  const cut = (days.length + ahead) > span; // the forecast leaves the chart: clip it at the edge
  const endShare = cut ? (span - days.length) / ahead : 1;
  const mostInDay = Math.max(...days.map(([, n]) => n), 1);
  const chart = drawn('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': say('lead.progress.aria', { done: whole(sum), total: whole(wanted), days: days.length }) });
  const step = Math.ceil(span / 6);
  const begun = Date.parse(days[0][0]);
  const dates = Array.from({ length: span }, (_, day) => [day, new Date(begun + day * DAY_MS).toISOString().slice(5, 10)]);
  chart.append(
    ...[0, 0.5, 1].flatMap((share) => [
      drawn('line', { class: 'grid', x1: left, x2: width - 8, y1: y(share * top), y2: y(share * top) }),
      drawn('text', { class: 'tick', x: left - 8, y: y(share * top) + 4, 'text-anchor': 'end' }, whole(Math.round(share * top))),
    ]),
    ...days.map(([, n], day) => drawn('rect', { class: 'column', x: x(day) + 1, width: Math.max(1, x(1) - x(0) - 2), y: height - bottom - 46 * (n / mostInDay), height: 46 * (n / mostInDay) })),
    drawn('path', { class: 'area', d: `${path} L${points[points.length - 1][0].toFixed(1)} ${y(0)} L${x(0)} ${y(0)} Z` }),
    drawn('path', { class: 'sum', d: path }),
    ...dates.filter(([day]) => day % step === 0).map(([day, date]) => drawn('text', { class: 'tick', x: x(day), y: height - 6 }, date)),
  );
  if (ahead && sum < wanted) {
    chart.append(drawn('line', { class: 'forecast-line', x1: x(days.length), y1: y(sum), x2: x(days.length + ahead * endShare), y2: y(sum + (wanted - sum) * endShare) }));
  }
  return chart;
}

// A figure and its interval on a line from 0 to 1 (negative α and κ are clipped to 0), with published figures as ticks.
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

// Each aspect and criterion: how often two raters agree, and α.
function criterionFigures() {
  const nameOf = (name) => props.value.criteria.find((one) => one.name === name)?.label || words[`aspect.${name}`] || name;
  return Object.entries(measured.criteria || {}).flatMap(([name, one]) => [
    interval(say('lead.criterion.agree', { name: nameOf(name) }), one.agreement, percent), interval(say('lead.criterion.alpha', { name: nameOf(name) }), one.krippendorff_alpha, plain)]);
}

// Each task of single answers: how often two raters agree, and α.
function singleFigures() {
  return Object.entries(measured.single_answers || {}).flatMap(([task, one]) => [
    interval(words[`lead.single.agree.${task}`], one.agreement, percent), interval(words[`lead.single.alpha.${task}`], one.krippendorff_alpha, plain)]);
}

function showAgreement() {
  if (!measured.judgments) {
    const waiting = measured.measuring && words['lead.measuring'];
    const single = singleFigures();
    find('.figures').replaceChildren(...(single.length ? single : [make('p', { class: 'note' }, waiting || words['lead.novotes'])]));
    find('.kappas').replaceChildren(make('p', { class: 'note' }, waiting || words['lead.kappa.none']));
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
    ...(measured.gwet_ac ? [interval(words['lead.ac.nominal'], measured.gwet_ac.nominal, plain), interval(words['lead.ac.interval'], measured.gwet_ac.interval, plain)] : []),
    interval(words['lead.self'], measured.self_consistency, percent),
    ...criterionFigures(),
    ...singleFigures(),
  );
  find('.published').replaceChildren(
    make('p', { class: 'note' }, `${say('lead.kind', { n: whole(measured.judgments), kind: measured.kind })} ${words['lead.interval']} ${words['lead.published']}:`),
    make('ol', { class: 'note', type: 'a' }, ...published.map((one) => make('li', {}, `${one.what}: ${one.figure}`))),
    make('p', { class: 'note' }, words['lead.meaning']),
    make('p', { class: 'note' }, pooledNote(measured)),
    make('p', { class: 'note' }, powerNote(measured)),
    ...(measured.age_seconds > OLD_SECONDS ? [make('p', { class: 'note' }, say('lead.age', { minutes: Math.round(measured.age_seconds / 60) }))] : []),
  );
  showKappas(measured.cohen_kappa);
  showInTime(measured);
}

function pooledNote({ pooled, not_counted: not }) {
  const { value } = pooled.percent_with_ties;
  return say('lead.pooled', { gold: whole(not.gold), repeats: whole(not.repeats), share: value === null ? '–' : percent(value) });
}

const nameOf = (id) => (names[id] && names[id].name) || id;

function showKappas(kappas) {
  const computed = kappas.filter((kappa) => kappa.value !== null);
  const raters = [...new Set(computed.flatMap((kappa) => kappa.raters))].sort((a, b) => nameOf(a).localeCompare(nameOf(b)));
  if (!computed.length) find('.kappas').textContent = words['lead.kappa.none'];
  else if (raters.length >= IN_MATRIX.least && raters.length <= IN_MATRIX.most) find('.kappas').replaceChildren(matrix(computed, raters));
  else {
    const lowest = [...computed].sort((a, b) => a.value - b.value).slice(0, 20);
    const left = lowest.length < computed.length;
    find('.kappas').replaceChildren(
      ...(left ? [make('p', { class: 'note' }, say('lead.kappa.many', { n: lowest.length, total: computed.length }))] : []),
      ...lowest.map((kappa) => interval(kappa.raters.map(nameOf).sort((a, b) => a.localeCompare(b)).join(' – '), kappa, plain)),
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

// Columns of the raters' table: sort key and cell. `row` holds the rater and, once computed, their figures.
const COLUMNS = {
  rater: { by: ({ rater }) => rater.name.toLowerCase(), show: ({ rater }) => [make('button', { type: 'button', class: 'link', 'data-person': rater.id, title: say('person.open', { name: rater.name }) }, rater.name), describeRater(rater)] },
  judgments: { by: (row) => row.judgments, show: (row) => [whole(row.judgments), ''] },
  marks: { by: (row) => row.marks.length || null, show: (row) => [row.marks.map((mark) => words[`mark.${mark.replace(' ', '_')}`]).join(', ') || '–', ''] },
  gold: shareColumn((row) => row.gold),
  agrees: shareColumn((row) => row.agrees),
  self: shareColumn((row) => row.self_consistency),
  dawid_skene: estimateColumn('dawid_skene'),
  bradley_terry: estimateColumn('bradley_terry'),
  left: shareColumn((row) => row.left_side),
  longer: shareColumn((row) => row.longer_side),
  seconds: { by: (row) => row.median_seconds, show: (row) => [row.median_seconds ?? '–', row.speed.hasty ? say('lead.hasty', { share: `${Math.round(100 * row.speed.hasty)}%` }) : ''] },
  neither: { by: (row) => row.ties + row.both_bad + row.skipped, show: (row) => [[row.ties, row.both_bad, row.skipped].map(whole).join(' · '), ''] },
};

// A share, and below it the interval, n and, for side and length, p.
function shareColumn(of) {
  const show = (row) => {
    const figure = of(row);
    if (!figure || figure.value === null) return ['–', ''];
    const edges = figure.interval ? `${figure.interval.map((edge) => Math.round(100 * edge)).join('–')} · ` : '';
    const p = figure.p_adjusted === undefined || figure.p_adjusted === null ? '' : ` · p ${figure.p_adjusted < 0.001 ? '<0.001' : Number(figure.p_adjusted.toFixed(figure.p_adjusted < 0.1 ? 3 : 2))}`;
    return [percent(figure.value), `${edges}n ${whole(figure.n)}${p}`];
  };
  return { by: (row) => of(row)?.value ?? null, show };
}

// A share that a reliability model estimates: computed after the others.
function estimateColumn(model) {
  const { by, show } = shareColumn((row) => row[model]);
  return { by, show: (row) => (measured.measuring && !measured.reliability ? ['–', words['lead.measuring']] : show(row)) };
}

function describeRater(rater) {
  return [rater.erased ? words['erase.erased'] : rater.consent_withdrawn ? words['erase.withdrawn'] : '', rater.role === 'rater' ? '' : words[`role.${rater.role}`], rater.kind === 'human' ? '' : rater.kind, rater.pool, rater.standing ? standingOf(rater) : '', rater.id].filter(Boolean).join(', ');
}

// One row per rater: agreement, gold accuracy and the reliability models' estimates.
function gatherRaters() {
  const kinds = measured.judgments ? { [measured.kind]: measured, ...measured.other_kinds } : {};
  const rows = Object.fromEntries(Object.values(names).map((rater) => [rater.id, { rater }]));
  for (const [kind, { raters }] of Object.entries(kinds)) {
    for (const row of raters) Object.assign(rows[row.rater] || {}, row, { rater: names[row.rater], gold: measured.gold[row.rater] });
    for (const [model, fit] of Object.entries(measured.reliability?.[kind] || {})) {
      for (const estimate of fit.raters) Object.assign(rows[estimate.rater] || {}, { [model]: estimate.accuracy });
    }
  }
  return Object.values(rows).sort(compareRaters);
}

const byName = new Intl.Collator(words.language, { numeric: true }).compare; // Rater 2 before Rater 10

// Rows without a figure come last in either direction.
function compareRaters(one, other) {
  const value = (row) => (sorting.column === 'rater' || row.judgments ? COLUMNS[sorting.column].by(row) : null) ?? null;
  const [a, b] = [value(one), value(other)];
  if (a === null || b === null) return (a === null) - (b === null) || one.rater.name.localeCompare(other.rater.name);
  return (sorting.down ? -1 : 1) * (typeof a === 'string' ? byName(a, b) : a - b) || byName(one.rater.name, other.rater.name);
}

function showRaters() {
  refill(find('.raters thead'), make('tr', {}, ...Object.keys(COLUMNS).map(columnHead), make('th', { scope: 'col' }, words['col.part'])));
  refill(find('.raters tbody'), ...gatherRaters().map(raterRow));
  find('.columns').replaceChildren(...Object.keys(COLUMNS).filter((name) => `about.${name}` in words)
    .map((name) => make('div', {}, make('dt', {}, words[`col.${name}`]), make('dd', {}, words[`about.${name}`]))));
}

function columnHead(name) {
  const order = sorting.column !== name ? 'none' : sorting.down ? 'descending' : 'ascending';
  return make('th', { scope: 'col', 'aria-sort': order },
    make('button', { type: 'button', 'data-sort': name, title: words[`about.${name}`] || false }, words[`col.${name}`],
      make('span', { class: 'arrow', 'aria-hidden': 'true' }, { none: '', ascending: '▲', descending: '▼' }[order])));
}

// First click: names from A, figures from the largest. Second click: reversed.
function sortRaters(column) {
  sorting = { column, down: sorting.column === column ? !sorting.down : column !== 'rater' };
  showRaters();
}

function raterRow(row) {
  const { rater } = row;
  const cells = row.judgments ? Object.entries(COLUMNS).map(([name, column]) => raterCell(name, column.show(row))) : [
    raterCell('rater', COLUMNS.rater.show(row)),
    make('td', { class: 'note', colspan: Object.keys(COLUMNS).length - 1 }, words[measured.measuring && !measured.judgments ? 'lead.measuring' : 'lead.novotes']),
  ];
  const asking = asked === rater.id;
  const word = rater.disabled ? 'lead.enable' : asking ? 'lead.disable.ask' : 'lead.disable';
  const attributes = { type: 'button', class: asking ? 'plain sure' : 'plain', 'data-rater': rater.id, 'data-disabled': String(!rater.disabled), disabled: rater.id === myself || rater.erased };
  return make('tr', { class: ['failed', 'stopped'].includes(rater.standing) ? 'held' : false }, ...cells, make('td', {}, make('button', { ...attributes, title: asking && say('lead.disable.sure', { name: rater.name }) },
    words[word], make('span', { class: 'unseen' }, ` ${asking ? say('lead.disable.sure', { name: rater.name }) : rater.name}`))));
}

function raterCell(name, [value, note]) {
  const attributes = name === 'rater' ? { scope: 'row' } : { class: name === 'marks' && value !== '–' ? 'marked' : false };
  return make(name === 'rater' ? 'th' : 'td', attributes, value instanceof Node ? value : String(value), note ? make('span', { class: 'note' }, note) : null);
}

// The first press asks, the second one does it; any other press, or a refresh, takes the question back.
async function changeRater(button) {
  if (button.dataset.disabled === 'true' && asked !== button.dataset.rater) {
    asked = button.dataset.rater;
    showRaters();
    return;
  }
  asked = null;
  await change(`/api/lead/raters/${encodeURIComponent(button.dataset.rater)}`, 'PUT', { disabled: button.dataset.disabled === 'true' });
  refresh();
}

// A link that creates one account, once. Browsers do not send the part after # to servers.
async function invite(role) {
  const made = await change('/api/lead/invitations', 'POST', { role });
  if (!made) return;
  const field = find('.invitation input');
  field.value = window.location.origin + base + made.path;
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

// Progress is shown as soon as it arrives: the figures may take longer.
async function refresh() {
  try {
    const figures = refreshFigures();
    figures.catch(() => {}); // reported below, where it is awaited
    const [status, raters, waiting, since] = await Promise.all(['status', 'raters', `disputes?limit=${MOST_COUNTED}`, 'export'].map((name) => call(`/api/lead/${name}`)));
    names = Object.fromEntries(raters.map((rater) => [rater.id, rater]));
    showStatus(status, waiting.length);
    showExport(since, status.judged);
    await showDuels();
    await showPulls();
    await showWaiting();
    await figures;
    showFigures();
    warn('');
    desk.setAttribute('aria-busy', 'false');
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
    refreshIn(REFRESH_MS);
  }
}

async function refreshFigures() {
  measured = await call('/api/lead/agreement');
  refreshIn(measured.measuring ? MEASURING_MS : REFRESH_MS);
}

function refreshIn(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(refreshIfVisible, milliseconds);
}

function showFigures() {
  showAgreement();
  showJudges();
  showRaters();
}

function refreshIfVisible() {
  if (document.hidden) refreshIn(REFRESH_MS);
  else if (measured && measured.measuring) refreshFigures().then(showFigures, refresh);
  else refresh();
}

function view(name) {
  desk.dataset.view = name;
  for (const part of all('.view')) part.hidden = part.dataset.for !== name;
  for (const button of all('.views button')) button.setAttribute('aria-current', button.dataset.view === name ? 'page' : 'false');
  if (name === 'disputes') showDisputes();
  if (name === 'batches') { showBatches(); showFiles(); }
  if (name === 'raters') showPeople().catch((error) => warn(error.status ? error.message : words.waiting, 'lost'));
  if (name === 'documents') showDocuments();
  if (name === 'items') showItems();
  else window.history.replaceState(null, '', `#view=${name}`);
}

desk.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (asked && button?.dataset.rater !== asked) {
    asked = null;
    if (measured) showRaters();
  }
  if (!button) return;
  if (button.dataset.view) view(button.dataset.view);
  else if (button.dataset.theme !== undefined) switchTheme();
  else if (button.dataset.leave !== undefined) leave();
  else if (button.dataset.sort) sortRaters(button.dataset.sort);
  else if (button.dataset.rater) changeRater(button);
  else if (button.dataset.batch !== undefined) changeBatch(button.dataset.batch, { paused: button.dataset.paused === 'true' });
  else if (button.dataset.restore) restorePair(button.dataset.restore);
  else if (button.dataset.invite) invite(button.dataset.invite);
  else settleBy(button);
});

async function begin() {
  const me = await call('/api/me');
  csrfToken = me.csrf_token;
  myself = me.rater_id;
  desk.dataset.role = me.role;
  find('[data-leave]').hidden = !csrfToken;
  names = Object.fromEntries((await call('/api/lead/raters')).map((rater) => [rater.id, rater]));
  giveBack(desk);
  if (window.matchMedia('(max-width: 720px)').matches) find('.about').open = false; // a screen and more of a phone
  const { hash } = window.location; // read now: a view that was chosen meanwhile stays
  showAddress(hash);
  await refresh();
}

// The view that an address names, after #.
function showAddress(hash) {
  const wanted = new URLSearchParams(hash.slice(1)).get('view') || '';
  if (!openAddress(hash)) view(find(`.views [data-view="${CSS.escape(wanted)}"]`) ? wanted : 'overview');
}

// A colleague's link that is opened in this window, or an earlier one by the back button.
window.addEventListener('hashchange', () => { if (myself !== null) showAddress(window.location.hash); });

begin().catch((error) => warn(error.message, 'lost'));
