// The lead's page: how far the campaign has come, and how far its labels can be trusted. Reads itself again every 20 s.
const desk = element.querySelector('.desk');
const find = (selector) => desk.querySelector(selector);
const REFRESH_MS = 20000;

function make(tag, attributes = {}, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  one.append(...children);
  return one;
}

const percent = (value) => `${(100 * value).toFixed(1)}%`;
const whole = (value) => value.toLocaleString('en');

function tile(name, value, note, share) {
  const box = make('div', { class: 'tile' }, make('span', { class: 'name' }, name), make('strong', {}, value), make('span', { class: 'note' }, note));
  if (share !== undefined) {
    const fill = make('div', { class: 'fill' });
    fill.style.width = percent(Math.min(1, share));
    box.append(make('div', { class: 'bar' }, fill));
  }
  return box;
}

function showStatus(status) {
  const judged = Object.values(status.judgments).reduce((a, b) => a + b, 0);
  const kinds = Object.entries(status.judgments).map(([kind, n]) => `${whole(n)} ${kind}`).join(', ') || 'none yet';
  const days = status.days_left;
  find('.tiles').replaceChildren(
    tile('Judgments', `${whole(judged)} of ${whole(status.judgments_wanted)}`, kinds, status.judgments_wanted ? judged / status.judgments_wanted : 0),
    tile('Pairs judged', `${whole(status.items_judged)} of ${whole(status.items)}`, `${whole(status.pairs)} pairs`, status.items ? status.items_judged / status.items : 0),
    tile('Last 24 hours', whole(status.last_day.judgments), `by ${whole(status.last_day.raters)} raters`),
    tile('To go', days === null ? '–' : days === 0 ? 'done' : days < 2 ? `${Math.ceil(days * 24)} h` : `${Math.ceil(days)} days`, 'at the pace of the last 24 hours'),
  );
  const byDay = Object.entries(status.by_day).slice(-30);
  const most = Math.max(1, ...byDay.map(([, n]) => n));
  find('.days').replaceChildren(...byDay.map(([day, n]) => {
    const column = make('div', { class: 'day', title: `${day}: ${n}` }, make('span', { class: 'n' }, whole(n)), make('div', { class: 'column' }), make('span', { class: 'date' }, day.slice(5)));
    column.children[1].style.height = `${(90 * n) / most}px`;
    return column;
  }));
  if (!byDay.length) find('.days').textContent = 'None yet.';
}

// A figure with its interval on a line from 0 to 1 (alpha and kappa can be less; they are cut at 0).
function interval(name, figure, form) {
  const row = make('div', { class: 'figure' }, make('span', { class: 'name' }, name));
  if (figure.value === null) {
    row.append(make('span', { class: 'note' }, 'not enough judgments yet'));
    return row;
  }
  const line = make('div', { class: 'line' });
  if (figure.interval) {
    const [low, high] = figure.interval.map((edge) => Math.max(0, Math.min(1, edge)));
    const range = make('div', { class: 'range' });
    range.style.left = percent(low);
    range.style.width = percent(high - low);
    line.append(range);
  }
  const dot = make('div', { class: 'dot' });
  dot.style.left = percent(Math.max(0, Math.min(1, figure.value)));
  line.append(dot);
  const edges = figure.interval ? ` [${figure.interval.map(form).join(', ')}]` : '';
  row.append(line, make('span', { class: 'value' }, make('b', {}, form(figure.value)), edges), make('span', { class: 'note' }, `n = ${whole(figure.n)}`));
  return row;
}

function showAgreement(measured, raters) {
  if (!measured.judgments) {
    find('.figures').textContent = 'No judgments yet.';
    return;
  }
  const plain = (value) => value.toFixed(3);
  find('.figures').replaceChildren(
    interval('Percent, ties among them', measured.percent_with_ties, percent),
    interval('Percent, without ties', measured.percent_without_ties, percent),
    interval('Krippendorff’s α, which side', measured.krippendorff_alpha.nominal, plain),
    interval('Krippendorff’s α, how much', measured.krippendorff_alpha.interval, plain),
    interval('Raters with themselves', measured.self_consistency, percent),
  );
  const others = Object.keys(measured.other_kinds);
  find('[aria-label=Agreement] p.note').textContent =
    `Of ${measured.kind} judgments${others.length ? ` (also in the store: ${others.join(', ')})` : ''}. Published: `
    + measured.published.map((one) => `${one.what}: ${one.figure}`).join('; ') + '.';
  showRaters(measured, raters);
}

function leaning(figure) {
  const cell = make('td', {}, figure.value === null ? '–' : percent(figure.value));
  if (figure.interval) {
    cell.append(make('span', { class: 'note' }, ` ${figure.interval.map((edge) => Math.round(100 * edge)).join('–')}`));
    if (figure.interval[0] > 0.5 || figure.interval[1] < 0.5) cell.className = 'marked';
  }
  return cell;
}

function showRaters(measured, raters) {
  const names = Object.fromEntries(raters.map((rater) => [rater.id, rater]));
  const head = ['Rater', 'Id', 'Judgments', 'With others', 'Left side', 'Longer side', 'Ties', 'Both bad', 'Skipped', 'Median s'];
  find('.raters thead').replaceChildren(make('tr', {}, ...head.map((name) => make('th', { scope: 'col' }, name))));
  const rows = [measured, ...Object.values(measured.other_kinds)].flatMap((kind) => kind.raters);
  find('.raters tbody').replaceChildren(...rows.map((row) => {
    const rater = names[row.rater] || {};
    const state = rater.disabled ? ' (disabled)' : rater.kind && rater.kind !== 'human' ? ` (${rater.kind})` : '';
    const share = (n) => make('td', {}, `${whole(n)}`);
    const agrees = make('td', {}, row.agrees.value === null ? '–' : percent(row.agrees.value));
    if (row.agrees.interval) agrees.append(make('span', { class: 'note' }, ` ${row.agrees.interval.map((edge) => Math.round(100 * edge)).join('–')}`));
    return make('tr', {}, make('th', { scope: 'row' }, (rater.name || '') + state), make('td', {}, row.rater), share(row.judgments), agrees,
      leaning(row.left_side), leaning(row.longer_side), share(row.ties), share(row.both_bad), share(row.skipped),
      make('td', {}, row.median_seconds === null ? '–' : String(row.median_seconds)));
  }));
}

async function refresh() {
  try {
    const [status, measured, raters] = await Promise.all(['status', 'agreement', 'raters'].map((name) => call(`/api/lead/${name}`)));
    showStatus(status);
    showAgreement(measured, raters);
    find('.banner').hidden = true;
    desk.setAttribute('aria-busy', 'false');
  } catch (error) {
    find('.banner').textContent = error.refused ? error.message : 'The server does not answer; this page tries again by itself.';
    find('.banner').hidden = false;
  }
}

async function begin() {
  find('.title').textContent = props.value.title;
  const me = await call('/api/me');
  csrfToken = me.csrf_token;
  find('[data-leave]').hidden = !csrfToken;
  find('[data-leave]').addEventListener('click', () => call('/api/logout', { method: 'POST' }).finally(() => { window.location.href = '/login/'; }));
  await refresh();
  setInterval(refresh, REFRESH_MS);
}

begin();
