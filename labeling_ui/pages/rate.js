// The raters' page. A judgment is on the server's disk before the next pair is shown; the next pair is fetched ahead, so
// that showing it takes no request. All texts arrive as HTML that the server made inert.
const desk = element.querySelector('.desk');
const find = (selector) => desk.querySelector(selector);
const banner = find('.banner');
const buttons = [...desk.querySelectorAll('.dock button')];

let current = null; // the pair on the screen
let ahead = null; // the pair after it
let sending = false;
let shownAt = 0;
let idleMs = 0;
let lastMove = 0;
const IDLE_AFTER_MS = 60000;

const words = {
  lost: 'Not saved yet: the server does not answer. Your judgment is kept here and sent again…',
  done: ['All done', 'There is no pair left for you. Thank you.'],
  stopped: ['No pair could be loaded', 'The server does not answer; this page tries again by itself.'],
};

async function call(path, body) {
  const options = { headers: { Accept: 'application/json' }, credentials: 'same-origin' };
  if (body !== undefined) {
    options.method = 'POST';
    options.headers['Content-Type'] = 'application/json';
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const reply = await response.json();
  if (response.ok) return reply;
  if (response.status >= 500) throw new Error('server');
  const refused = new Error(typeof reply.detail === 'string' ? reply.detail : (reply.detail || ['refused']).join('; '));
  refused.refused = true;
  throw refused;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Try until the server answers: a judgment is not given up because a cable was pulled.
async function insist(path, body, message) {
  for (let wait = 250; ; wait = Math.min(wait * 2, 5000)) {
    try {
      const reply = await call(path, body);
      if (message) say('');
      return reply;
    } catch (error) {
      if (error.refused) throw error;
      if (message) say(message);
      await pause(wait);
    }
  }
}

function say(text) {
  banner.textContent = text;
  banner.hidden = !text;
}

function show(pair) {
  current = pair;
  desk.dataset.pair = pair ? pair.pair_id : '';
  for (const part of ['.prompt', '.answers', '.dock']) find(part).hidden = !pair;
  find('.rest').hidden = Boolean(pair);
  desk.setAttribute('aria-busy', 'false');
  if (!pair) {
    [find('.rest h2').textContent, find('.rest p').textContent] = words.done;
    return;
  }
  const prompt = find('.prompt');
  prompt.replaceChildren(...pair.messages.map(turn));
  for (const side of ['left', 'right']) {
    const text = find(`[data-side=${side}] .text`);
    text.innerHTML = pair[side].html;
    text.scrollTop = 0;
  }
  prompt.scrollTop = prompt.scrollHeight; // the last turn is the one that is answered
  if (pair.messages.length === 1) prompt.scrollTop = 0;
  for (const button of buttons) button.classList.remove('chosen');
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

async function fetchAhead() {
  if (ahead || !current) return;
  const holding = current.pair_id;
  try {
    const pair = await call(`/api/next?holding=${encodeURIComponent(holding)}`);
    if (current && current.pair_id === holding && !sending) ahead = pair;
  } catch (error) { /* the reply to the judgment brings the next pair too */ }
}

function secondsActive() {
  return Math.round((performance.now() - shownAt - idleMs) / 100) / 10;
}

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

async function judge(said, button) {
  if (!current || sending) return;
  sending = true;
  desk.setAttribute('aria-busy', 'true');
  button.classList.add('chosen');
  const body = {
    client_id: newId(),
    pair_id: current.pair_id,
    ...said,
    guideline_version: props.value.guideline_version,
    seconds_active: secondsActive(),
    holding: ahead ? [ahead.pair_id] : [],
  };
  let following = null;
  try {
    following = (await insist('/api/judgments', body, words.lost)).next;
    count(1);
  } catch (error) {
    say(error.message);
    following = await insist('/api/next' + (ahead ? `?holding=${encodeURIComponent(ahead.pair_id)}` : ''));
  }
  const next = ahead || following;
  ahead = ahead ? following : null;
  sending = false;
  show(next);
  if (!ahead) fetchAhead();
}

let done = 0;
let total = 0;
function count(more) {
  done += more;
  const bar = find('.progress');
  bar.setAttribute('aria-valuenow', done);
  bar.setAttribute('aria-valuemax', total);
  bar.firstElementChild.style.width = total ? `${Math.min(100, (100 * done) / total)}%` : '0';
  find('.count').textContent = `${done} of ${total}`;
}

function press(button) {
  if (button.dataset.answer !== undefined) judge({ answer: Number(button.dataset.answer) }, button);
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
  else if (buttons.includes(button)) press(button);
});

document.addEventListener('keydown', (event) => {
  if (event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest && event.target.closest('input, textarea, select, [contenteditable=true]')) return;
  const card = find('dialog[open]');
  if (event.key === '?') { event.preventDefault(); open('keys'); return; }
  if (card) return;
  const key = event.key.toLowerCase();
  const at = { t: '[data-answer="0"]', b: '[data-do=both_bad]', s: '[data-do=skip]' }[key];
  const button = /^[1-7]$/.test(key) ? find(`[data-answer="${Number(key) - 4}"]`) : at && find(at);
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

async function begin() {
  find('.title').textContent = props.value.title;
  if (props.value.guidelines) {
    find('[data-card=guidelines] .text').innerHTML = props.value.guidelines;
    find('[data-open=guidelines]').hidden = false;
  }
  const me = await insist('/api/me', undefined, words.stopped[1]);
  done = me.progress.done;
  total = me.progress.done + me.progress.available;
  count(0);
  show(await insist('/api/next', undefined, words.stopped[1]));
  fetchAhead();
}

begin().catch((error) => say(error.message));
