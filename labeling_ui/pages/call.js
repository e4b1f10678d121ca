// Shared by all pages: words, requests with the session's token, and DOM functions.
const desk = element.querySelector('.desk');
const words = props.value.words;
const { base } = props.value; // the path that the server is under, behind a proxy
const find = (selector) => desk.querySelector(selector);
const all = (selector) => [...desk.querySelectorAll(selector)];
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const settings = openStorage(); // how the pages look, and keys
// What was typed or judged and is not on the server yet: never in the browser's storage if the campaign says so.
const storage = props.value.unsent_in_browser === false ? openMemory() : settings;
let csrfToken = '';

// The browser's local storage; memory where that is forbidden.
function openStorage() {
  try {
    localStorage.setItem('tiebreak', '');
    return localStorage;
  } catch (error) {
    return openMemory();
  }
}

// The same for as long as the window is open.
function openMemory() {
  return Object.create({
    ends: true,
    getItem(key) { return this[key] ?? null; },
    setItem(key, value) { this[key] = String(value); },
    removeItem(key) { delete this[key]; },
  });
}

// A request's JSON; an ended session redirects to the login page. `refused` marks errors that a retry cannot fix.
// A reply without our header is another program's, and counts as none.
async function request(path, { method = 'GET', body, file, patience_ms = 60000 } = {}) {
  const headers = { Accept: 'application/json' };
  if (method !== 'GET') headers['X-CSRF-Token'] = csrfToken;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  if (file) headers['Content-Type'] = 'application/octet-stream';
  const response = await fetch(base + path, {
    method, headers, credentials: 'same-origin', body: file || (body === undefined ? undefined : JSON.stringify(body)),
    signal: AbortSignal.timeout(patience_ms),
  });
  if (response.status >= 500 || !response.headers.has('X-Tiebreak')) throw new Error('server');
  const reply = await response.json();
  if (response.ok) return reply;
  if (response.status === 401 && path !== '/api/login' && mayLeave()) {
    beforeLogin();
    window.location.href = `${base}/login/`;
  }
  const refused = new Error(typeof reply.detail === 'string' ? reply.detail : [reply.detail || 'refused'].flat().join('; '));
  refused.refused = ![421, 429].includes(response.status);
  refused.status = response.status;
  throw refused;
}

const sending = new Map(); // changes on their way: the same one again, by a double press, shares the reply

function call(path, options = {}) {
  if (!options.method || options.method === 'GET') return request(path, options);
  const { method, body, file } = options;
  const key = JSON.stringify([method, path, body, file && [file.name, file.size, file.lastModified]]);
  if (!sending.has(key)) sending.set(key, request(path, options).finally(() => sending.delete(key)));
  return sending.get(key);
}

// A double click on a button that sends something is a single one.
const SENDS = 'form button:not([type=button]), [data-invite], [data-publish], [data-upload], [data-reject], [data-erase-now], [data-rater]';
desk.addEventListener('click', (event) => {
  if (event.detail < 2 || !event.target.closest(SENDS)) return;
  event.preventDefault();
  event.stopImmediatePropagation();
}, { capture: true });

// A field takes no more than its limit, and the browser silently cuts pasted text.
const CUT_SHOWN_MS = 20000;
desk.addEventListener('paste', ({ target, clipboardData }) => {
  const most = target.maxLength || 0;
  const pasted = clipboardData ? clipboardData.getData('text').length : 0;
  if (most <= 0 || target.value.length - (target.selectionEnd - target.selectionStart) + pasted <= most) return;
  const cut = say('cut', { n: most.toLocaleString(words.language) });
  if (typeof flash === 'function') flash(cut, CUT_SHOWN_MS);
  else warn(cut, 'lost');
});

let mayLeave = () => true; // whether nothing would be lost with this window
let beforeLogin = () => {}; // called when the session has ended

// The view of the lead's page to which the next login in this window returns. Every login leads to the raters' page, which then opens that view.
const RETURN = `tiebreak-return:${base}`;

function returnTo(view) {
  try {
    sessionStorage.setItem(RETURN, view);
  } catch (error) {
    // forbidden: the login leads to the raters' page
  }
}

function returning() {
  try {
    const view = sessionStorage.getItem(RETURN);
    sessionStorage.removeItem(RETURN);
    return view;
  } catch (error) {
    return null;
  }
}

// Put text into the browser's storage; false if it is full.
function keep(key, text, place = storage) {
  try {
    place.setItem(key, text);
    return true;
  } catch (error) {
    return false;
  }
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

const TURNING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g; // characters that turn the text behind them

// A name in letters of the other direction than the page's, or with characters that turn text: isolated, so that it does not
// turn the words around it.
function isolated(value) {
  if (typeof value !== 'string') return value;
  const plain = value.replace(TURNING, '');
  const turns = /\p{L}/u.test(plain) && RIGHT_TO_LEFT.test(plain) !== (desk.dir === 'rtl');
  return turns ? `\u2068${plain}\u2069` : plain;
}

// The words under `key`, with {name} filled in.
function say(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => isolated(values[name]));
}

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'html') made.innerHTML = value; // only HTML from the server's safe_markup.render
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Replace a place's children; the focused button, matched by its first data attribute, keeps the focus.
function refill(place, ...children) {
  const [focused] = place.contains(document.activeElement) ? Object.entries(document.activeElement.dataset) : [];
  const unsent = (event) => event.stopImmediatePropagation(); // of the field that is typed into, when the browser removes it
  place.addEventListener('change', unsent, { capture: true });
  place.replaceChildren(...children);
  place.removeEventListener('change', unsent, { capture: true });
  if (focused) place.querySelector(`[data-${focused[0]}="${CSS.escape(focused[1])}"]`)?.focus();
}

// A key as the shortcuts name it, on any layout. Digits are also found by their position (AZERTY and Czech give others
// only with Shift) and in other scripts; letters by position where the layout has no Latin ones.
function keyOf({ key, code = '', shiftKey }) {
  if (/^[0-9]$/.test(key)) return key;
  if (/^\p{Nd}$/u.test(key)) return String(valueOf(key));
  const [, digit] = /^Digit([0-9])$/.exec(code) || [];
  if (digit && !shiftKey) return digit;
  if (key === '\u061f') return '?'; // Arabic
  const [, letter] = /^Key([A-Z])$/.exec(code) || [];
  return letter && !/^[\x00-\x7f]+$/.test(key) ? letter.toLowerCase() : key;
}

// The value of a digit in any script: in Unicode, each script's ten digits follow its zero.
function valueOf(digit) {
  let zero = digit.codePointAt(0);
  while (zero % 16 !== 0 && /^\p{Nd}$/u.test(String.fromCodePoint(zero - 1)) && digit.codePointAt(0) - zero < 9) zero -= 1;
  return digit.codePointAt(0) - zero;
}

const LETTERS = 'ABCDEFGHIJKLMNOPQRST';

// A judgment in words; `left`: the id of the completion on the reader's left.
function describe(judgment, left = judgment.left) {
  if (judgment.skip) return [words.skip, judgment.skip_reason && words[`skip.${judgment.skip_reason}`]].filter(Boolean).join(': ');
  if (judgment.both_bad) return words[judgment.shown.length > 2 ? 'all_bad' : 'both_bad'];
  if (judgment.task) return describeValue(judgment);
  const edited = judgment.edited_text === null ? '' : `, ${words['said.edited']}`;
  if (judgment.ranking) {
    const letters = (group) => group.map((id) => LETTERS[judgment.shown.indexOf(id)]).join(' = ');
    return say('said.ranking', { order: judgment.ranking.map(letters).join(' › ') }) + edited;
  }
  return words[`scale.${judgment.left === left ? judgment.answer : 0 - judgment.answer}`] + edited;
}

function describeValue({ task, value }) {
  if (task === 'review') return words[`said.${value}`];
  return task === 'rate' ? say('said.rating', { n: value, of: props.value.ratings.length, name: props.value.ratings[value - 1] || '' }) : value;
}

const percent = (value) => `${(100 * value).toFixed(1)}%`;
const between = (value) => Math.max(0, Math.min(1, value));

// A figure under its name; `share` draws a bar.
function tile(name, value, note = '', share = null) {
  const bar = share === null ? null : make('div', { class: 'bar' }, make('div', { class: 'fill', style: `width:${percent(between(share))}` }));
  return make('div', { class: 'tile' }, make('span', { class: 'name' }, name), make('strong', {}, value), make('span', { class: 'note' }, note), bar);
}

// Votes of each kind, as wide as their shares; `votes` from left to right.
function voteBar(votes) {
  return make('span', { class: 'votes', 'aria-hidden': 'true' }, ...votes.map((n) => make('i', { style: `flex:${n}`, hidden: n === 0 })));
}

function warn(text, kind = '') {
  const banner = find('.banner');
  if (banner.textContent !== text) banner.textContent = text;
  banner.dataset.kind = text ? kind : '';
  banner.hidden = !text;
}

// A pair has appeared. An answer right after that was meant for the previous pair: a double press or click.
const FRESH_MS = 300;
let freshTimer = 0;

function appeared() {
  desk.dataset.fresh = 'true';
  clearTimeout(freshTimer);
  freshTimer = setTimeout(() => { delete desk.dataset.fresh; }, FRESH_MS);
}

function leave() {
  return call('/api/logout', { method: 'POST' }).finally(() => { window.location.href = `${base}/login/`; });
}

// A dialog opens at its top. The browser would focus its first button, and scroll down to it.
function openCard(dialog, first = dialog.querySelector('h2')) {
  dialog.showModal();
  first.focus({ preventScroll: true });
  dialog.scrollTop = 0;
}

function switchTheme() {
  const dark = document.body.classList.toggle('dark');
  keep('tiebreak-theme', dark ? 'dark' : 'light', settings);
}

document.documentElement.lang = words.language;
// The document's own direction is Gradio's. The sides of a pair stay as they are: see desk.css.
desk.dir = /^(ar|arc|ckb|dv|fa|he|ks|ps|sd|ug|ur|yi)(-|$)/.test(words.language) ? 'rtl' : 'ltr';
const chosenTheme = settings.getItem('tiebreak-theme');
if (chosenTheme) document.body.classList.toggle('dark', chosenTheme === 'dark');
for (const title of all('.title')) {
  title.textContent = props.value.title;
  title.dir = 'auto'; // it is cut off at its end
}

