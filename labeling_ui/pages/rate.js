// The raters' page: queue, keys and buttons. Pairs are prefetched, so showing the next one needs no request.
const AHEAD = 2; // with the pair on the screen, as many as one rater may hold
const LOOK_AGAIN_MS = 60000;
const SCROLL_STEP = 80;

let queue = []; // the pairs after the one on the screen
let exhausted = false; // the server had nothing more
let lastJudgment = null; // the id of the judgment that undo takes back
let busy = false; // a judgment is being taken back or amended
let done = 0;
let today = 0;
let goal = null; // judgments asked for a day

// --- the flow of pairs

const normal = (pair) => pair && { ...pair, answers: pair.task === 'ranking' ? pair.completions : [pair.left, pair.right].filter(Boolean) };
const held = () => [...(current ? [current] : []), ...queue].map((pair) => pair.pair_id);

function take(pair) {
  if (pair && ![...held(), ...unsent().map(([, body]) => body.pair_id)].includes(pair.pair_id)) {
    queue.push(normal(pair));
    exhausted = false;
  } else if (!pair && !unsent().length) exhausted = true;
  if (!current && !talk) proceed();
}

function proceed() {
  if (queue.length && find('.rest').classList.contains('finished')) noticeWork();
  const next = queue.shift() || null;
  show(next);
  if (next) report(next);
  undoButton().disabled = !lastJudgment && !unsent().length;
  if (!next) rest();
  else fetchAhead();
}

// Tell the server which pair is on the screen: its lease starts. A pair that is no longer the rater's, since they judged it in
// another window or a lead withdrew it, makes room for the next one, unless something was typed. After other errors, the
// judgment reports it.
function report(pair) {
  const body = { client_at_ms: Date.now() };
  call(`/api/shown/${encodeURIComponent(pair.pair_id)}`, { method: 'POST', body }).catch((error) => {
    if (error.status !== 409 || pair !== current || amending || talk || pair.draft) return;
    flash(error.message, BREAK_SHOWN_MS);
    current = null;
    insist(mePath()).then((me) => { lastJudgment = me.last_judgment; countFrom(me); }, () => {});
    proceed();
  });
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && current && !amending && !talk && !busy) report(current); // back from another window
});

function rest() {
  const finished = exhausted && !unsent().length;
  find('.rest').classList.toggle('finished', finished);
  const talking = finished && props.value.converse;
  find('.rest h2').textContent = finished ? words[talking ? 'talk.rest' : 'done'] : '';
  find('.rest p').textContent = words[talking ? 'talk.rest.more' : finished ? 'done.more' : 'fetching'];
  if (finished) insist(mePath()).then(standWith, () => {}); // perhaps a lead wants to speak first
  desk.setAttribute('aria-busy', String(!finished));
  find('.dock').hidden = !finished;
}

const mePath = () => `/api/me?since_ms=${midnight()}`;
const nextPath = () => `/api/next?holding=${encodeURIComponent(JSON.stringify([...held(), ...unsent().map(([, body]) => body.pair_id)]))}`;
let fetching = false;

async function fetchAhead() {
  if (fetching || exhausted || queue.length >= AHEAD || unsent().length) return; // the reply to a judgment brings a pair
  fetching = true;
  const before = held().length;
  try {
    take(await insist(nextPath()));
  } catch (error) {
    warn(error.message, 'refused');
    exhausted = true;
  }
  fetching = false;
  if (held().length > before) fetchAhead();
}

setInterval(() => {
  if (current || talk || (document.hidden && !wantsNotices()) || busy || unsent().length) return;
  exhausted = false; // another rater may have released a pair
  fetchAhead();
}, LOOK_AGAIN_MS);

function judge(vote, button) {
  if (!current || busy || desk.dataset.fresh) return;
  const letter = edited();
  if (letter && best(vote) !== letter) {
    warn(say(isSingle() ? 'edit.single' : ranks() ? 'edit.first' : 'edit.other', { letter }), 'edit');
    return;
  }
  if (vote.value === 'edit' && isReview() && !letter) {
    if (opened()) warn(words['edit.begin'], 'edit');
    else toggleEdit('A');
    return;
  }
  const missing = goToMissing(vote);
  heldBack = missing ? { vote, button } : null;
  if (missing) {
    warn(missing, 'edit');
    return;
  }
  clearTimeout(saveTimer);
  saveTimer = 0;
  clearWarning('edit', 'refused', 'undo');
  if (!amending) forgetDraft(current);
  const body = {
    ...details(), ...vote, ...timeSpent(),
    client_id: newId(),
    pair_id: current.pair_id,
    guideline_version: documents.guidelines.id,
    client_at_ms: Date.now(),
  };
  if (amending) { amend(body); return; }
  if (button) button.classList.add('chosen');
  count(1);
  const judged = current;
  current = null; // now in the outbox
  post(body, acknowledged, turnedDown);
  if (talk) continueTalk(judged, body);
  else proceed();
}

// Clear a warning of these kinds; while a judgment is being changed, the banner shows that instead.
function clearWarning(...kinds) {
  if (kinds.includes(find('.banner').dataset.kind)) warn(amending ? words.amending : '', 'amending');
}

function acknowledged(reply) {
  lastJudgment = reply.judgment_id;
  undoButton().disabled = false;
  flash(say('saved', { answer: describe(reply.judgment), key: labelOf('u') }));
  if (test || !reply.next) insist(mePath()).then(standWith, () => {});
  take(reply.next);
  fetchAhead();
}

function turnedDown(error) {
  warn(say('refused', { detail: error.message }), 'refused');
  count(-1);
  insist(mePath()).then(standWith, () => {});
  exhausted = false;
  fetchAhead();
}

// Undo the latest judgment: show its pair again, with the answer.
async function undo() {
  if (amending) { stopAmending(); return; }
  if (busy || (talk && talk.phase !== 'writing')) return;
  busy = true;
  const slow = setTimeout(() => warn(words['undo.waiting'], 'lost'), 600);
  try {
    if (current && current.draft) saveDraft();
    if (!(await drained(acknowledged, turnedDown))) throw new Error('server');
    if (!lastJudgment) return;
    const reply = await call(`/api/judgments/${encodeURIComponent(lastJudgment)}/undo`, { method: 'POST', patience_ms: 10000 });
    clearWarning('lost', 'undo');
    lastJudgment = unchangeable.has(reply.last_judgment) ? await latestToUndo() : reply.last_judgment;
    if (current) queue.unshift(current);
    queue = queue.filter((pair) => pair.pair_id !== reply.pair.pair_id);
    count(-1);
    show(normal(reply.pair));
    if (talk) Object.assign(talk, { number: talk.number - 1, phase: 'judging' });
  } catch (error) {
    warn(error.refused ? error.message : words['undo.lost'], error.refused ? 'refused' : 'undo');
    if (error.refused) {
      unchangeable.add(lastJudgment); // undone already, or settled by a lead, say: the next undo goes further back
      lastJudgment = await latestToUndo().catch(() => lastJudgment);
    }
  } finally {
    clearTimeout(slow);
    busy = false;
    undoButton().disabled = !lastJudgment || Boolean(talk);
  }
}

const unchangeable = new Set(); // ids of judgments of which the server says that they stay

async function latestToUndo() {
  const past = await call('/api/history?limit=100');
  return past.find((one) => !unchangeable.has(one.judgment_id))?.judgment_id || null;
}

let test = null; // the attempt at the test before work begins

// A rater who is held sees why nothing comes; one who takes the test, how far it is.
function standWith(me) {
  const held = ['failed', 'stopped'].includes(me.standing);
  find('.rest').classList.toggle('held', held);
  if (held) {
    queue = []; // nobody would take the answers
    warn('');
    flash(''); // their last answer can no longer be undone
    if (current) show(null);
    find('.rest').classList.add('finished');
    find('.dock').hidden = true;
    find('.rest h2').textContent = words[`standing.${me.standing}.title`];
    find('.rest p').textContent = words[`standing.${me.standing}.more`];
  }
  if (test && !me.test && !held) flash(words['test.passed'], BREAK_SHOWN_MS);
  else if (test && me.test && me.test.number > test.number) flash(say('test.again', { ...me.test, left: me.test.attempts - me.test.number + 1 }), BREAK_SHOWN_MS);
  test = me.test;
  count(0);
}

function countFrom(me, waiting = 0) {
  done = me.progress.done + waiting;
  today = me.today.judged + waiting;
  goal = me.progress.goal_per_day;
  standWith(me);
}

function count(more) {
  done += more;
  today += more;
  const bar = find('.progress');
  bar.classList.toggle('without', !goal);
  bar.setAttribute('aria-valuenow', Math.min(today, goal || today));
  bar.setAttribute('aria-valuemax', goal || today);
  bar.firstElementChild.style.width = goal ? `${Math.min(100, (100 * today) / goal)}%` : '0';
  if (test) find('.count').textContent = say('test.count', { ...test, done: Math.min(test.questions, test.done + 1) });
  else find('.count').textContent = goal ? say(today < goal ? 'progress.today' : 'progress.reached', { today, goal }) : say('progress.done', { done });
}

// --- buttons

const undoButton = () => find('[data-undo]');
const card = (name) => find(`[data-card=${name}]`);

function press(button) {
  if (button.disabled) return;
  const { answer: value, do: what, reason: why } = button.dataset;
  if (button === undoButton()) undo();
  else if (value !== undefined) judge({ answer: Number(value) }, button);
  else if (button.dataset.step !== undefined) judge({ value: JSON.parse(button.dataset.step) }, button);
  else if (what) judge({ [what]: true }, button);
  else if (button.dataset.more !== undefined) unfold(!desk.classList.contains('unfolded'));
  else if (button.dataset.skip !== undefined) enter('skip');
  else if (why !== undefined) judge({ skip: true, skip_reason: why });
  else if (button.dataset.back !== undefined) enter('scale');
  else if (button.dataset.rank !== undefined) judge({ ranking: order.map((group) => group.map(idOf)) });
  else if (button.dataset.clear !== undefined) { order = []; tieNext = false; reordered(); }
  else if (button.dataset.relation !== undefined) {
    const flat = flatOrder();
    flat[button.dataset.relation].equal = !flat[button.dataset.relation].equal;
    fromFlat(flat);
    reordered();
  } else if (button.dataset.value !== undefined) setField(button.parentElement, button.dataset.value);
}

function open(name) {
  if (card(name).open) card(name).close();
  else if (name === 'guidelines') openGuidelines();
  else {
    if (name === 'work') showWork();
    if (name === 'bindings') { drawBindings(); bindNote(''); }
    openCard(card(name));
  }
}

function toggleMenu(opened) {
  find('nav').classList.toggle('open', opened);
  find('[data-menu]').setAttribute('aria-expanded', String(opened));
}

desk.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.closest('nav') && !button.dataset.size) toggleMenu(false);
  if (button.dataset.open) open(button.dataset.open);
  else if (button.dataset.note) openNote(button.dataset.note, button.dataset.about);
  else if (button.dataset.bind) askKey(button);
  else if (button.dataset.bindings !== undefined) { card('keys').close(); open('bindings'); }
  else if (button.dataset.resetKeys !== undefined) resetKeys();
  else if (button.dataset.menu !== undefined) toggleMenu(!find('nav').classList.contains('open'));
  else if (button.dataset.theme !== undefined) switchTheme();
  else if (button.dataset.size) resize(Number(button.dataset.size));
  else if (button.dataset.talk !== undefined) { if (talk) endTalk(); else beginTalk(); }
  else if (button.dataset.send !== undefined) send();
  else if (button.dataset.leave !== undefined) drain(acknowledged, turnedDown).then(leave);
  else if (button.dataset.amend) { card('work').close(); beginAmending(button.dataset.amend); }
  else if (button.dataset.earlier !== undefined) showEarlier();
  else if (button.dataset.others !== undefined) endOtherSessions();
  else if (button.dataset.chip) { if (event.detail === 0) place(button.dataset.chip, tieNext); return; }
  else if (button.dataset.mark !== undefined) mark(Number(button.dataset.mark));
  else if (button.dataset.copy !== undefined) copyCode(button);
  else if (button.dataset.unmark !== undefined) removeSpan(Number(button.dataset.unmark));
  else if (button.dataset.source !== undefined) toggleSource(button.dataset.source);
  else if (button.classList.contains('edit')) toggleEdit(button.closest('.answer').dataset.letter);
  else if (button.classList.contains('place')) place(button.closest('.answer').dataset.letter, tieNext);
  else if (button.closest('.dock')) press(button);
  else return;
  if (!button.closest('dialog') && event.detail > 0) button.blur(); // otherwise Enter would press it again
});

desk.addEventListener('input', changed);

// --- keys: ignored while typing, with modifiers, on repeat and during input-method composition

const typing = 'input:not([type=checkbox]), textarea, select, [contenteditable=true]';
const PLAIN = {
  t: () => find('[data-answer="0"]'), b: () => find('[data-do=both_bad]'), s: () => find('[data-skip]'), u: undoButton,
};

document.addEventListener('keydown', (event) => {
  if (event.isComposing || event.keyCode === 229 || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const target = event.target.closest ? event.target : document.body;
  const key = pressedKey(event);
  if (target.closest(typing)) {
    if (key === 'Escape' || (key === 'Enter' && !event.shiftKey && (target === reason || target.dataset.comment))) {
      target.blur();
      if (key === 'Escape' && heldBack) { heldBack = null; clearWarning('edit'); }
      else if (target === reason && reason.value.trim()) sendHeldBack();
    }
    if (key === 'Enter' && target === turnField && !event.shiftKey) { event.preventDefault(); send(); }
    return;
  }
  if (scroll(target, key)) { event.preventDefault(); return; }
  if (event.repeat) return;
  const button = target.closest('button, a');
  if (key === 'Enter' && button && button.checkVisibility()) return; // a hidden button of a closed card may keep the focus
  if (key === '?' || (!find('dialog[open]:modal') && ['g', 'w'].includes(key.toLowerCase()))) {
    const name = { '?': 'keys', g: 'guidelines', w: 'work' }[key.toLowerCase()];
    if (name === 'guidelines' && !documents.guidelines.html) return;
    event.preventDefault();
    open(name);
    return;
  }
  if (find('dialog[open]:modal')) return;
  if (key === '+' || key === '-') { resize(key === '+' ? 1 : -1); return; }
  const act = actOf(key, event.shiftKey, target);
  if (!act) return;
  event.preventDefault();
  act();
});

// The action of a key in the current state; undefined if none.
function actOf(key, shift, target) {
  const letter = key.toLowerCase();
  const digit = /^[1-9]$/.test(key) ? Number(key) : 0;
  if (key === 'Escape' && card('guidelines').open) return () => card('guidelines').close();
  if (letter === 'c' && props.value.converse) return talk ? endTalk : beginTalk;
  if (!current) return letter === 'u' ? () => press(undoButton()) : undefined;
  if (key === 'Escape' && mode === 'mark') return () => { getSelection().removeAllRanges(); closeMarker(); };
  if (key === 'Escape') return mode !== 'scale' ? () => { heldBack = null; clearWarning('edit'); enter('scale'); } : amending ? stopAmending : undefined;
  if (mode === 'skip') return skipAct(digit, key, letter);
  if (mode === 'mark' && digit) return () => mark(digit - 1);
  if (letter === 'm' && labels().length) return nextSource;
  if (flagLetter(letter)) return flagLetter(letter);
  if (mode === 'flags' && (digit || key === 'Enter' || letter === 'f')) return () => (digit ? armFlag(digit) : enter('scale'));
  if (mode === 'aspect' && digit) return () => answerField(digit);
  if (letter === 'a' && !find('.aspects').hidden) return () => enter('aspect', mode === 'aspect' ? (aspectAt + 1) % fields().length : 0);
  if (letter === 'f') return () => enter('flags');
  if (letter === 'l' || letter === 'x') return () => toggleView(letter === 'l' ? 'linked' : 'wrap');
  if (letter === 'd') return toggleDifferences;
  if (letter === 'q') return () => openNote(current.pair_id);
  if (letter === 'i' && pictures().length) return nextPicture;
  if (letter === 'r' && !find('.reason').hidden) return () => { unfold(true); reason.focus(); };
  if (letter === 'k' && props.value.links) return () => { unfold(true); links.focus(); };
  if (desk.dataset.task === 'ranking') return rankAct(digit, key, letter, target);
  if (isSingle()) return singleAct(digit, key, letter);
  if (letter === 'e') return () => toggleEdit(shift || (drafted && Number(drafted.dataset.answer) > 0) ? 'B' : 'A');
  if (digit && digit <= 7) return () => press(find(`[data-answer="${digit - 4}"]`));
  if (key === 'Enter') return drafted ? () => press(drafted) : undefined;
  return PLAIN[letter] && (() => press(PLAIN[letter]()));
}

function skipAct(digit, key, letter) {
  if (digit) {
    const button = find(`[data-reason="${props.value.skip_reasons[digit - 1] || 'none'}"]`);
    return button ? () => press(button) : undefined;
  }
  return key === 'Enter' || letter === 's' ? () => press(find('[data-reason=""]')) : undefined;
}

function singleAct(digit, key, letter) {
  const button = digit ? all('.values button')[digit - 1] : null;
  if (button) return () => press(button);
  if (letter === 'e' && isReview()) return () => toggleEdit('A');
  if (key === 'Enter') return drafted ? () => press(drafted) : undefined;
  return 'su'.includes(letter) ? () => press(PLAIN[letter]()) : undefined;
}

function rankAct(digit, key, letter, target) {
  const focused = target.closest('[data-chip]');
  if (focused && (key === 'ArrowLeft' || key === 'ArrowRight')) return () => chipKey(focused.dataset.chip, key);
  if (digit) return digit <= current.answers.length ? () => place(LETTERS[digit - 1], tieNext) : undefined;
  if (key === '=' || letter === 't') return () => { tieNext = Boolean(order.length) && !tieNext; drawOrder(); };
  if (key === 'Backspace') return takeBack;
  if (key === 'Enter') return () => press(drafted && !order.length ? drafted : find('[data-rank]'));
  if (letter === 'e') return editBest;
  return 'bsu'.includes(letter) ? () => press(PLAIN[letter]()) : undefined;
}

// Edit the answer that is alone in first place; an open field is closed instead.
function editBest() {
  const letter = opened() || (order.length && order[0].length === 1 ? order[0][0] : undefined);
  if (letter) toggleEdit(letter);
  else warn(words['edit.none'], 'edit');
}

// Arrow keys, Space, Page Up and Page Down scroll all answers together, unless a single pane has the focus.
function scroll(target, key) {
  const page = find('.answers').clientHeight * 0.85;
  const by = { ArrowDown: SCROLL_STEP, ArrowUp: -SCROLL_STEP, PageDown: page, PageUp: -page, ' ': page }[key];
  if (by === undefined || target.closest('button, a, label, input, dialog, .prompt, .answer .text')) return false;
  for (const pane of [...all('.answer .text'), find('.stage')]) pane.scrollBy({ top: by, behavior: 'auto' });
  return true;
}

// --- consent and guidelines: accepted once per version; the guidelines then open as a panel beside the answers

let documents = { guidelines: { id: '', html: '' }, consent: { html: '' } }; // the texts that count; leads may change them

function layOutGuidelines() {
  const { html, version } = documents.guidelines;
  card('guidelines').querySelector('.text').innerHTML = html; // from the server's safe_markup.render
  card('guidelines').querySelector('.version').textContent = say('guidelines.version', { version });
  find('[data-open=guidelines]').hidden = false;
  card('guidelines').addEventListener('close', () => desk.classList.remove('with-guidelines'));
}

// Show a document until it is accepted; the server takes no judgment before that.
async function ask(name, version) {
  const panel = card(name);
  const button = panel.querySelector('form button');
  const keepOpen = (event) => event.preventDefault();
  const close = button.textContent;
  button.textContent = words[`${name}.accept`];
  button.classList.replace('plain', 'primary');
  panel.classList.add('asking');
  panel.addEventListener('cancel', keepOpen);
  openCard(panel, panel.querySelector('.text'));
  await new Promise((resolve) => { panel.addEventListener('close', resolve, { once: true }); });
  panel.removeEventListener('cancel', keepOpen);
  panel.classList.remove('asking');
  button.classList.replace('primary', 'plain');
  button.textContent = close;
  await insist(`/api/${name}/accept`, { method: 'POST', body: { version } });
}

function openGuidelines() {
  desk.classList.add('with-guidelines');
  card('guidelines').show();
  document.activeElement.blur(); // the panel stays open beside the work
}

// --- start

async function begin() {
  layOutDock();
  layOutMarker();
  for (const part of all('[data-talk], .for-talk')) part.hidden = !props.value.converse;
  for (const line of all('.for-aspects')) line.hidden = !questions().length;
  for (const line of all('.for-spans')) line.hidden = !labels().length;
  for (const line of all('.for-links')) line.hidden = !props.value.links;
  const me = await insist(mePath());
  csrfToken = me.csrf_token;
  raterId = me.rater_id;
  const isViewer = ['lead', 'reviewer', 'observer'].includes(me.role);
  const view = returning();
  if (view !== null && isViewer) { window.location.replace(`${base}/lead/${view}`); return; }
  restoreView();
  restoreKeys();
  find('[data-leave]').hidden = !csrfToken;
  find('.lead').hidden = !isViewer;
  lastJudgment = me.last_judgment;
  const waiting = unsent().length;
  countFrom(me, waiting);
  documents = await insist('/api/documents');
  card('consent').querySelector('.text').innerHTML = documents.consent.html; // likewise
  if (documents.guidelines.html) layOutGuidelines();
  if (me.progress.done) card('guidelines').querySelector('.first').textContent = words['guidelines.changed'];
  card('consent').querySelector('.first').hidden = !me.consent_withdrawn;
  if (me.consent_withdrawn || !me.consent_given) await ask('consent', me.consent_version);
  if (!me.guidelines_accepted) await ask('guidelines', me.guideline_version);
  await drain(acknowledged, turnedDown); // what an earlier window could not send
  if (waiting) countFrom(await insist(mePath())); // some had arrived before that window closed
  if (props.value.converse) await resumeTalk();
  take(await insist(nextPath()));
  if (!current && !talk && props.value.converse) beginTalk(); // nothing else to do, as in a campaign of conversations alone
  fetchAhead();
  lookForAnswers();
  if (window.location.hash === '#second-factor') open('work'); // from the lead's page, which needs one
}

begin().catch((error) => warn(error.message, 'refused'));
