// The raters' page. A judgment is on the server's disk before the next pair is shown; the next pairs are fetched ahead, so
// that showing one takes no request. All texts arrive as HTML that the server made inert.
const desk = element.querySelector('.desk');
const find = (selector) => desk.querySelector(selector);
const all = (selector) => [...desk.querySelectorAll(selector)];
const banner = find('.banner');
const reason = find('[name=rationale]');
const answers = all('.dock button:not([data-undo])');
const undoButton = find('[data-undo]');

const IDLE_AFTER_MS = 60000;
const SAVE_AFTER_MS = 800; // a draft is on the server within two seconds of a change
const words = {
  lost: 'Not saved yet: the server does not answer. Your judgment is kept here and sent again…',
  done: ['All done', 'There is no pair left for you. Thank you.'],
  waiting: 'The server does not answer; this page tries again by itself.',
  otherSide: (edited, judged) => `You edited ${edited} and judged ${judged} the better one. Judge ${edited} better, or undo the edit.`,
};

let current = null; // the pair on the screen
let queue = []; // the pairs after it
let judged = []; // ids of judgments that undo takes back, the latest last
let sending = false;
let drafted = null; // the answer given before undo: Enter keeps it
let saveTimer = 0;
let shownAt = 0;
let idleMs = 0;
let lastMove = 0;
let done = 0;
let total = 0;

// Try until the server answers: a judgment is not given up because a cable was pulled.
async function insist(path, options, message = words.waiting) {
  for (let wait = 250; ; wait = Math.min(wait * 2, 5000)) {
    try {
      const reply = await call(path, options);
      if (banner.dataset.kind === 'lost') say('');
      return reply;
    } catch (error) {
      if (error.refused) throw error;
      say(message, 'lost');
      await pause(wait);
    }
  }
}

function say(text, kind = '') {
  banner.textContent = text;
  banner.dataset.kind = kind;
  banner.hidden = !text;
}

// --- showing a pair

function show(pair) {
  current = pair;
  desk.dataset.pair = pair ? pair.pair_id : '';
  for (const part of ['.prompt', '.answers', '.details']) find(part).hidden = !pair;
  find('.rest').hidden = Boolean(pair);
  for (const button of answers) button.disabled = !pair;
  undoButton.disabled = !judged.length;
  desk.setAttribute('aria-busy', 'false');
  if (!pair) {
    [find('.rest h2').textContent, find('.rest p').textContent] = words.done;
    return;
  }
  const prompt = find('.prompt');
  prompt.replaceChildren(...pair.messages.map(turn));
  prompt.scrollTop = pair.messages.length > 1 ? prompt.scrollHeight : 0; // the last turn is the one that is answered
  for (const side of ['left', 'right']) {
    const text = find(`[data-side=${side}] .text`);
    text.innerHTML = pair[side].html;
    text.scrollTop = 0;
    edit(side, null);
  }
  restore(pair.draft || {});
  shownAt = lastMove = performance.now();
  idleMs = 0;
}

function turn(message) {
  const block = document.createElement('div');
  block.className = `turn ${message.role}`;
  const who = document.createElement('span');
  who.className = 'who';
  who.textContent = { user: 'User', assistant: 'Assistant', system: 'System' }[message.role];
  const text = document.createElement('div');
  text.className = 'text';
  text.innerHTML = message.html;
  block.append(who, text);
  return block;
}

function restore(draft) {
  reason.value = draft.rationale || '';
  for (const box of all('.flag input')) box.checked = (draft.flags || []).includes(box.value);
  drafted = answers.find((button) => (button.dataset.do ? draft[button.dataset.do] : Number(button.dataset.answer) === draft.answer)) || null;
  for (const button of answers) button.classList.toggle('chosen', button === drafted);
  if (draft.edited_text && draft.answer) edit(draft.answer < 0 ? 'left' : 'right', draft.edited_text);
}

// --- editing

function edit(side, text) {
  const pane = find(`[data-side=${side}]`);
  const field = pane.querySelector('textarea');
  field.hidden = text === null;
  pane.querySelector('.text').hidden = text !== null;
  pane.querySelector('.edit').textContent = text === null ? 'Edit' : 'Drop edit';
  field.value = text === null ? '' : text;
}

function toggleEdit(side) {
  const field = find(`[data-side=${side}] textarea`);
  if (!field.hidden) edit(side, null);
  else {
    edit(side === 'left' ? 'right' : 'left', null);
    edit(side, current[side].text);
    field.focus();
  }
  changed();
}

function editedSide() {
  return ['left', 'right'].find((side) => {
    const field = find(`[data-side=${side}] textarea`);
    return !field.hidden && field.value.trim() && field.value !== current[side].text;
  });
}

// --- drafts

function details() {
  const side = editedSide();
  return {
    rationale: reason.value,
    flags: all('.flag input:checked').map((box) => box.value),
    edited_text: side ? find(`[data-side=${side}] textarea`).value : null,
  };
}

function changed() {
  if (!saveTimer && current) saveTimer = setTimeout(saveDraft, SAVE_AFTER_MS);
}

async function saveDraft() {
  saveTimer = 0;
  if (!current || sending) return;
  const side = editedSide();
  const body = { ...details(), answer: side ? (side === 'left' ? -1 : 1) : null };
  current.draft = body;
  try {
    await call(`/api/drafts/${encodeURIComponent(current.pair_id)}`, { method: 'PUT', body });
  } catch (error) {
    if (!error.refused) changed();
  }
}

// --- judging

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

async function judge(said, button) {
  if (!current || sending) return;
  const side = editedSide();
  if (side && !(said.answer && (said.answer < 0) === (side === 'left'))) {
    const name = { left: 'A', right: 'B' };
    say(words.otherSide(name[side], said.answer ? name[side === 'left' ? 'right' : 'left'] : 'neither'), 'edit');
    return;
  }
  sending = true;
  clearTimeout(saveTimer);
  saveTimer = 0;
  desk.setAttribute('aria-busy', 'true');
  for (const one of answers) one.classList.toggle('chosen', one === button);
  const body = {
    ...details(), ...said,
    client_id: newId(),
    pair_id: current.pair_id,
    guideline_version: props.value.guideline_version,
    seconds_active: Math.max(0, Math.round((performance.now() - shownAt - idleMs) / 100) / 10),
    client_at_ms: Date.now(),
    holding: queue.map((pair) => pair.pair_id),
  };
  let following = null;
  try {
    const reply = await insist('/api/judgments', { method: 'POST', body }, words.lost);
    judged.push(reply.judgment_id);
    following = reply.next;
    say('');
    count(1);
  } catch (error) {
    say(error.message, 'refused');
    following = await insist(nextPath());
  }
  if (following) queue.push(following);
  sending = false;
  show(queue.shift() || null);
  fetchAhead();
}

async function undo() {
  if (sending || !judged.length) return;
  sending = true;
  try {
    const reply = await insist(`/api/judgments/${judged.pop()}/undo`, { method: 'POST' });
    if (current) queue.unshift(current);
    if (!judged.length && reply.last_judgment) judged.push(reply.last_judgment);
    count(-1);
    sending = false;
    show(reply.pair);
  } catch (error) {
    say(error.message, 'refused');
  }
  sending = false;
  undoButton.disabled = !judged.length;
}

function nextPath() {
  const holding = [...queue, ...(current ? [current] : [])].map((pair) => pair.pair_id);
  return `/api/next?holding=${encodeURIComponent(holding.join(','))}`;
}

async function fetchAhead() {
  if (queue.length || !current) return;
  const shown = current;
  try {
    const pair = await call(nextPath());
    if (pair && current === shown && !sending && !queue.length) queue.push(pair);
  } catch (error) { /* the reply to the judgment brings the next pair too */ }
}

function count(more) {
  done += more;
  const bar = find('.progress');
  bar.setAttribute('aria-valuenow', done);
  bar.setAttribute('aria-valuemax', Math.max(total, done));
  bar.firstElementChild.style.width = total ? `${Math.min(100, (100 * done) / total)}%` : '0';
  find('.count').textContent = `${done} of ${total}`;
}

// --- keys and buttons

function press(button) {
  if (button.disabled) return;
  if (button === undoButton) undo();
  else if (button.dataset.answer !== undefined) judge({ answer: Number(button.dataset.answer) }, button);
  else judge({ [button.dataset.do]: true }, button);
}

function open(name) {
  const card = find(`[data-card=${name}]`);
  if (card.open) card.close();
  else card.showModal();
}

desk.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.open) open(button.dataset.open);
  else if (button.classList.contains('edit')) toggleEdit(button.closest('.answer').dataset.side);
  else if (button.dataset.leave !== undefined) call('/api/logout', { method: 'POST' }).finally(() => { window.location.href = '/login/'; });
  else if (button.closest('.dock')) press(button);
  else return;
  if (!button.closest('dialog')) button.blur(); // or Enter would press it again
});

desk.addEventListener('input', changed);

const KEYS = { t: '[data-answer="0"]', b: '[data-do=both_bad]', s: '[data-do=skip]', u: '[data-undo]' };

document.addEventListener('keydown', (event) => {
  if (event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.closest && event.target.closest('input:not([type=checkbox]), textarea, select, [contenteditable=true]');
  if (field) {
    if (event.key === 'Escape' || (event.key === 'Enter' && field === reason)) field.blur();
    return;
  }
  if (event.key === '?') { event.preventDefault(); open('keys'); return; }
  if (find('dialog[open]')) return;
  const key = event.key.toLowerCase();
  if (key === 'e' && current) { event.preventDefault(); toggleEdit(event.shiftKey ? 'right' : 'left'); return; }
  if (key === 'r' && current) { event.preventDefault(); reason.focus(); return; }
  if (key === 'enter' && event.target.closest && event.target.closest('button, a')) return;
  const button = /^[1-7]$/.test(key) ? find(`[data-answer="${Number(key) - 4}"]`)
    : key === 'enter' ? drafted : KEYS[key] && find(KEYS[key]);
  if (!button) return;
  event.preventDefault();
  press(button);
});

for (const kind of ['mousemove', 'keydown', 'scroll', 'pointerdown']) {
  document.addEventListener(kind, () => {
    const now = performance.now();
    if (now - lastMove > IDLE_AFTER_MS) idleMs += now - lastMove;
    lastMove = now;
  }, { capture: true, passive: true });
}

// --- the beginning

async function begin() {
  find('.title').textContent = props.value.title;
  const me = await insist('/api/me');
  csrfToken = me.csrf_token;
  find('[data-leave]').hidden = !csrfToken;
  find('.lead').hidden = me.role !== 'lead';
  judged = me.last_judgment ? [me.last_judgment] : [];
  done = me.progress.done;
  total = me.progress.done + me.progress.available;
  count(0);
  if (props.value.guidelines) guidelines(me);
  show(await insist('/api/next'));
  fetchAhead();
}

function guidelines(me) {
  const card = find('[data-card=guidelines]');
  card.querySelector('.text').innerHTML = props.value.guidelines;
  find('[data-open=guidelines]').hidden = false;
  if (!csrfToken || me.guidelines_accepted) return; // one's own machine asks nobody to agree
  card.showModal();
  card.addEventListener('cancel', (event) => { if (!me.guidelines_accepted) event.preventDefault(); });
  card.addEventListener('close', () => {
    if (me.guidelines_accepted) return;
    me.guidelines_accepted = true;
    insist('/api/guidelines/accept', { method: 'POST', body: { version: props.value.guideline_version } });
  });
}

begin().catch((error) => say(error.message, 'refused'));
