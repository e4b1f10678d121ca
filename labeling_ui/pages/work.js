// My work: today's count and pace, and the rater's judgments, which can be changed.
let amending = null; // the id of the judgment being changed
let earliest = null; // the `seq` of the oldest judgment in the history
let openings = 0; // times the card was opened: replies to an earlier opening are dropped

const midnight = () => Math.max(0, new Date().setHours(0, 0, 0, 0)); // a clock that was reset is in 1970

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? say('time.minutes', { minutes }) : say('time.hours', { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
}

async function showWork() {
  const place = find('.work');
  const mine = ++openings;
  place.setAttribute('aria-busy', 'true');
  place.replaceChildren(); // otherwise stale rows would change while the rater uses them
  try {
    const since = dayStarts()[0];
    const [me, past, hours, sentBack, feedback, threads] = await Promise.all([call(mePath()), call('/api/history?limit=20'), call(`/api/hours?since_ms=${since}`), call('/api/rejections'), call('/api/feedback'), call('/api/notes')]);
    if (mine !== openings) return;
    const { today, gold_agreement: gold } = me;
    const share = gold && gold.n ? `${Math.round((100 * gold.right) / gold.n)}%` : '–';
    earliest = null;
    place.replaceChildren(
      make('div', { class: 'tiles' },
        tile(words['work.today'], String(today.judged)),
        tile(words['work.total'], String(me.progress.done)),
        tile(words['work.pace'], today.pace_per_hour === null ? '–' : String(Math.round(today.pace_per_hour)), words['work.pace.unit']),
        tile(words['work.active'], duration(today.active_seconds)),
        tile(words['work.idle'], duration(today.idle_seconds)),
        ...(gold ? [tile(words['work.gold'], share, gold.n ? say('work.gold.note', gold) : '')] : [])),
      ...trend(hours),
      ...rejectedTexts(),
      ...rejectedByLead(sentBack),
      ...settledByLead(feedback),
      ...noteThreads(threads),
      make('h3', {}, words['work.history']),
      past.length ? make('div', { class: 'history', tabindex: '0' }, make('table', { class: 'plain-table' }, make('tbody'))) : make('p', { class: 'note' }, words['work.none']),
      make('button', { type: 'button', class: 'plain', 'data-earlier': true, hidden: true }, words['work.more']),
    );
    addHistory(past);
    place.append(...noticeSwitch());
    if (csrfToken) place.append(...mailSettings(await call('/api/mail')), ...account(await call('/api/sessions')), ...factor(await call('/api/second-factor')), ...await linking(), ...ownData());
  } catch (error) {
    if (mine !== openings) return;
    place.textContent = error.status ? error.message : words.waiting;
  }
  place.setAttribute('aria-busy', 'false');
}

// --- the last two weeks: judgments a day as bars, with the pace of each
const DAYS = 14;

function dayStarts() {
  const day = new Date(midnight());
  return [...Array(DAYS).keys()].map((n) => Math.max(0, new Date(day.getFullYear(), day.getMonth(), day.getDate() - DAYS + 1 + n).getTime()));
}

function trend(hours) {
  const starts = dayStarts();
  const days = starts.map((start, n) => {
    const mine = hours.filter(({ at_ms: at }) => at >= start && (n + 1 === DAYS || at < starts[n + 1]));
    const sum = (key) => mine.reduce((total, hour) => total + hour[key], 0);
    return { start, judged: Math.max(0, sum('judged')), seconds: sum('active_seconds') };
  });
  const most = Math.max(...days.map(({ judged }) => judged));
  if (days.filter(({ judged }) => judged).length < 2) return []; // one day has no trend
  const date = (start) => new Date(start).toLocaleDateString(words.language, { day: 'numeric', month: 'short' });
  const bars = days.map(({ start, judged, seconds }) => {
    const about = say('work.day', { day: date(start), judged, pace: seconds ? Math.round((3600 * judged) / seconds) : '–' });
    return make('li', { title: about }, make('span', { class: 'unseen' }, about), make('span', { class: 'bar', 'aria-hidden': 'true', style: `height:${percent(judged / most)}` }));
  });
  return [make('h3', {}, words['work.trend']), make('ol', { class: 'trend' }, ...bars),
    make('p', { class: 'note ends' }, make('span', {}, date(starts[0])), make('span', {}, date(starts[DAYS - 1])))];
}

// One's own password and sessions.
function account(sessions) {
  const others = sessions.filter(({ current: mine }) => !mine);
  const field = (name, word, complete) => make('input', { name, type: 'password', required: true, autocomplete: complete, placeholder: words[word], 'aria-label': words[word] });
  const form = make('form', { class: 'account' }, field('current', 'password.current', 'current-password'), field('new', 'password.new', 'new-password'),
    make('button', { class: 'plain' }, words['password.change']), make('span', { class: 'note', role: 'status' }));
  const meter = showStrength(form.elements.new, (password) => call('/api/password/strength', { method: 'POST', body: { password } }));
  form.addEventListener('submit', (event) => { event.preventDefault(); changePassword(form); });
  const seen = others.map(({ began_at_ms: at }) => whenOf(at)).join(', ');
  return [make('h3', {}, words.account), form, meter, make('p', { class: 'note sessions' }, others.length ? say('sessions', { n: others.length, seen }) : words['sessions.none'], ' ',
    others.length ? make('button', { type: 'button', class: 'plain', 'data-others': true }, words['sessions.end']) : '')];
}

async function changePassword(form) {
  const note = form.querySelector('.note');
  note.textContent = '';
  try {
    await call('/api/password', { method: 'POST', body: { current: form.elements.current.value, new: form.elements.new.value } });
    form.reset();
    note.textContent = words['password.changed'];
    find('.sessions').textContent = words['sessions.none'];
  } catch (error) {
    note.textContent = error.status ? error.message : words.waiting;
  }
}

// The second factor: the code of an authenticator app.
function factor({ set, needed }) {
  const password = make('input', { name: 'password', type: 'password', required: true, autocomplete: 'current-password', placeholder: words['password.current'], 'aria-label': words['password.current'] });
  const form = set
    ? make('form', { class: 'account' }, password, codeField(), make('button', { class: 'plain' }, words['factor.remove']), make('span', { class: 'note', role: 'status' }))
    : make('form', { class: 'account' }, make('button', { class: 'plain' }, words['factor.begin']), make('span', { class: 'note', role: 'status' }));
  form.addEventListener('submit', (event) => { event.preventDefault(); if (set) sendCode(form, 'remove'); else beginFactor(form); });
  return [make('section', { class: 'factor' }, make('h3', {}, words.factor), make('p', { class: 'note' }, words[set ? 'factor.set' : needed ? 'factor.needed' : 'factor.none']), form)];
}

function codeField() {
  return make('input', { name: 'code', required: true, inputmode: 'numeric', autocomplete: 'one-time-code', maxlength: '7', pattern: '[0-9]{3} ?[0-9]{3}', placeholder: words['factor.code'], 'aria-label': words['factor.code'] });
}

async function beginFactor(form) {
  try {
    const { secret, qr } = await call('/api/second-factor', { method: 'POST', body: {} });
    const picture = make('div', { class: 'qr', role: 'img', 'aria-label': words['factor.qr'] });
    picture.innerHTML = qr; // the server's own drawing
    const confirm = make('form', { class: 'account' }, codeField(), make('button', { class: 'primary' }, words['factor.confirm']), make('span', { class: 'note', role: 'status' }));
    confirm.addEventListener('submit', (event) => { event.preventDefault(); sendCode(confirm, 'confirm'); });
    form.replaceWith(make('p', { class: 'note' }, words['factor.scan']), picture, make('code', { class: 'secret' }, secret.match(/.{4}/g).join(' ')), confirm);
    confirm.elements.code.focus();
  } catch (error) {
    form.querySelector('.note').textContent = error.status ? error.message : words.waiting;
  }
}

async function sendCode(form, what) {
  const body = { code: form.elements.code.value, ...(form.elements.password && { password: form.elements.password.value }) };
  try {
    await call(`/api/second-factor/${what}`, { method: 'POST', body });
    find('.factor').replaceWith(...factor(await call('/api/second-factor')));
  } catch (error) {
    form.querySelector('.note').textContent = error.status ? error.message : words.waiting;
    form.elements.code.select();
  }
}

async function endOtherSessions() {
  try {
    await call('/api/sessions/end-others', { method: 'POST' });
    find('.sessions').textContent = words['sessions.none'];
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'refused');
  }
}

// Judgments that the server rejected, with the text that was written for them.
function rejectedTexts() {
  const rows = rejected().map(([, body]) => make('tr', {},
    make('td', {}, whenOf(body.client_at_ms)), make('td', {}, body.detail), make('td', { class: 'written', dir: 'auto' }, [body.rationale, body.edited_text].filter(Boolean).join('\n\n'))));
  return rows.length ? [make('h3', {}, words['work.rejected']), make('table', { class: 'plain-table rejected' }, make('tbody', {}, ...rows))] : [];
}

// Judgments that a lead rejected, with the reasons.
function rejectedByLead(rows) {
  if (!rows.length) return [];
  return [make('h3', {}, words['work.rejected.lead']), make('table', { class: 'plain-table rejected by-lead' }, make('tbody', {}, ...rows.map((row) => make('tr', {},
    make('td', {}, whenOf(row.rejected_at_ms)), make('td', { class: 'about', dir: 'auto' }, row.prompt), make('td', {}, describe(row.judgment)), make('td', { class: 'written', dir: 'auto' }, row.reason))))),
    make('p', { class: 'note' }, words['work.rejected.note'])];
}

// Pairs that a lead settled otherwise, with the lead's reason.
function settledByLead(rows) {
  if (!rows.length) return [];
  return [make('h3', {}, words['work.feedback']), make('table', { class: 'plain-table feedback' }, make('tbody', {}, ...rows.map((row) => make('tr', {},
    make('td', {}, whenOf(row.at_ms)), make('td', { class: 'about', dir: 'auto' }, row.prompt), make('td', {}, say('work.feedback.both', { mine: describe(row.judgment), settled: describe(row.settled) })), make('td', { class: 'written', dir: 'auto' }, row.settled.rationale)))))];
}

async function showEarlier() {
  const mine = openings;
  find('[data-earlier]').disabled = true; // otherwise a second press would add the same rows again
  try {
    const past = await call(`/api/history?limit=20&before=${earliest}`);
    if (mine === openings) addHistory(past);
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'refused');
  }
  if (mine === openings) find('[data-earlier]').disabled = false;
}

function addHistory(past) {
  if (!past.length) { find('[data-earlier]').hidden = true; return; }
  find('.history tbody').append(...past.map((row) => make('tr', {},
    make('td', {}, whenOf(row.at_ms)),
    make('td', { class: 'about', dir: 'auto' }, row.prompt),
    make('td', {}, describe(row.judgment)),
    make('td', { class: 'act' }, make('button', { type: 'button', class: 'plain', 'data-amend': row.judgment_id }, words['work.amend']), make('button', { type: 'button', class: 'plain', 'data-note': row.item_id, 'data-about': row.prompt }, words['note.ask'])))));
  earliest = past[past.length - 1].seq;
  find('[data-earlier]').hidden = past.length < 20;
}

function whenOf(at) {
  const time = new Date(at);
  const hour = time.toLocaleTimeString(words.language, { hour: '2-digit', minute: '2-digit' });
  return at >= midnight() ? hour : `${time.toLocaleDateString(words.language, { day: 'numeric', month: 'short' })} ${hour}`;
}

// --- amending: the judgment counts until another answer replaces it

async function beginAmending(id) {
  if (talk && talk.phase !== 'writing') return;
  try {
    const past = await call(`/api/judgments/${encodeURIComponent(id)}`);
    if (current && !amending) { saveDraft(); queue.unshift(current); }
    show(normal({ ...past.pair, draft: past.judgment }));
    amending = id;
    undoButton().disabled = false;
    warn(words.amending, 'amending');
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'refused');
  }
}

async function amend(body) {
  const id = amending;
  const { pair_id: _, ...answer } = body;
  busy = true;
  try {
    await call(`/api/judgments/${encodeURIComponent(id)}`, { method: 'PUT', body: answer, patience_ms: 10000 });
    forgetDraft(current);
    stopAmending();
  } catch (error) {
    warn(error.refused ? error.message : words['amend.lost'], 'amending');
  }
  busy = false;
}

function stopAmending() {
  amending = null;
  warn('');
  current = null;
  if (talk) write();
  else proceed();
}

