// Shared by all pages: the words, requests that carry the session's token, and small tools for the document.
const desk = element.querySelector('.desk');
const words = props.value.words;
const find = (selector) => desk.querySelector(selector);
const all = (selector) => [...desk.querySelectorAll(selector)];
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const kept = openStorage();
let csrfToken = '';

// The browser's storage; this window's memory where it is forbidden.
function openStorage() {
  try {
    localStorage.setItem('tiebreak', '');
    return localStorage;
  } catch (error) {
    return Object.create({
      getItem(key) { return this[key] ?? null; },
      setItem(key, value) { this[key] = String(value); },
      removeItem(key) { delete this[key]; },
    });
  }
}

// A request's JSON; ends at the login page when the session has ended. `refused` marks errors that no repetition mends.
async function call(path, { method = 'GET', body } = {}) {
  const headers = { Accept: 'application/json' };
  if (method !== 'GET') headers['X-CSRF-Token'] = csrfToken;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const response = await fetch(path, {
    method, headers, credentials: 'same-origin', body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.status >= 500) throw new Error('server');
  const reply = await response.json();
  if (response.ok) return reply;
  if (response.status === 401 && path !== '/api/login') window.location.href = '/login/';
  const refused = new Error(typeof reply.detail === 'string' ? reply.detail : [reply.detail || 'refused'].flat().join('; '));
  refused.refused = response.status !== 429;
  refused.status = response.status;
  throw refused;
}

// The words under `key`, with {name} filled in.
function say(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function make(tag, attributes = {}, ...children) {
  const one = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'html') one.innerHTML = value; // only ever what the server's markup.render made inert
    else if (value !== null && value !== false) one.setAttribute(name, value === true ? '' : value);
  }
  one.append(...children.filter((child) => child !== null));
  return one;
}

// Fill a place anew; the button that had the focus there, known by its first data attribute, has it again.
function refill(place, ...children) {
  const [known] = place.contains(document.activeElement) ? Object.entries(document.activeElement.dataset) : [];
  place.replaceChildren(...children);
  if (known) place.querySelector(`[data-${known[0]}="${CSS.escape(known[1])}"]`)?.focus();
}

const LETTERS = 'ABCDEFGHIJKLMNOPQRST';

// What a judgment says, in words; `left` is the completion that stands left before whoever reads it.
function said(judgment, left = judgment.left) {
  if (judgment.skip) return [words.skip, judgment.skip_reason && words[`skip.${judgment.skip_reason}`]].filter(Boolean).join(': ');
  if (judgment.both_bad) return words[judgment.shown.length > 2 ? 'all_bad' : 'both_bad'];
  const edited = judgment.edited_text === null ? '' : `, ${words['said.edited']}`;
  if (judgment.ranking) {
    const letters = (group) => group.map((id) => LETTERS[judgment.shown.indexOf(id)]).join(' = ');
    return say('said.ranking', { order: judgment.ranking.map(letters).join(' › ') }) + edited;
  }
  return words[`scale.${judgment.left === left ? judgment.answer : 0 - judgment.answer}`] + edited;
}

const percent = (value) => `${(100 * value).toFixed(1)}%`;
const between = (value) => Math.max(0, Math.min(1, value));

// A figure under its name; `share` draws a bar.
function tile(name, value, note = '', share = null) {
  const bar = share === null ? null : make('div', { class: 'bar' }, make('div', { class: 'fill', style: `width:${percent(between(share))}` }));
  return make('div', { class: 'tile' }, make('span', { class: 'name' }, name), make('strong', {}, value), make('span', { class: 'note' }, note), bar);
}

function warn(text, kind = '') {
  const banner = find('.banner');
  if (banner.textContent !== text) banner.textContent = text;
  banner.dataset.kind = text ? kind : '';
  banner.hidden = !text;
}

function leave() {
  return call('/api/logout', { method: 'POST' }).finally(() => { window.location.href = '/login/'; });
}

function switchTheme() {
  const dark = document.body.classList.toggle('dark');
  kept.setItem('tiebreak-theme', dark ? 'dark' : 'light');
}

document.documentElement.lang = words.language;
const chosenTheme = kept.getItem('tiebreak-theme');
if (chosenTheme) document.body.classList.toggle('dark', chosenTheme === 'dark');
for (const title of all('.title')) title.textContent = props.value.title;

