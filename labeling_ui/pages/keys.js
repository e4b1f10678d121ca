// The rater's own keys. A key that is given to an action acts by its position on the keyboard, whatever the layout; the action's
// own key then does nothing. Kept for each rater in the browser.
const CHANGEABLE = [...'123456789', 't', 'b', 's', 'u', 'e', 'r', 'f', 'a', 'm', 'k', 'd', 'l', 'x', 'i', 'q', 'c', 'g', 'w'];
const FIXED_KEYS = ['Enter', 'Escape', 'Backspace', 'Tab', ' ', '=', '+', '-', '?', 'ArrowUp', 'ArrowDown', 'ArrowLeft', 'ArrowRight', 'PageUp', 'PageDown', 'Home', 'End'];
let own = {}; // {action's key: {code, label}}
let asked = null; // the button whose action waits for a key
const ownKey = () => `tiebreak-keys:${raterId}`;

const labelOf = (key) => (own[key] ? own[key].label : key.toUpperCase());
const keycap = (key, attributes = {}) => make('kbd', { ...attributes, 'data-key': key }, labelOf(key));

// The key of an event by the names that the actions have; empty if its action has been given another.
function pressedKey(event) {
  if (mode === 'flags' && armedFlag >= 0 && /^[a-z]$/i.test(keyOf(event))) return keyOf(event); // the letter of an answer
  const [mine] = Object.entries(own).find(([, { code }]) => code === event.code) || [];
  if (mine) return event.shiftKey ? mine.toUpperCase() : mine;
  const key = keyOf(event);
  return own[key.toLowerCase()] ? '' : key;
}

function restoreKeys() {
  card('bindings').addEventListener('close', stopAsking);
  const kept = parsed(settings.getItem(ownKey())) || {};
  own = Object.fromEntries(Object.entries(kept).filter(([key, bound]) => CHANGEABLE.includes(key) && bound && bound.code && bound.label));
  paintKeys();
}

function keepKeys() {
  keep(ownKey(), JSON.stringify(own), settings);
  paintKeys();
}

function paintKeys() {
  for (const cap of all('[data-key]')) cap.textContent = labelOf(cap.dataset.key);
}

// What the key does already, in words; empty if it is free.
function taken(event, action) {
  if (FIXED_KEYS.includes(event.key) && !/^Numpad[0-9]$/.test(event.code)) return words['bind.fixed']; // without Num Lock, 9 is Page Up
  const [other] = Object.entries(own).find(([key, { code }]) => code === event.code && key !== action) || [];
  if (other) return aboutKey(other);
  const key = keyOf(event).toLowerCase();
  return key !== action && CHANGEABLE.includes(key) && !own[key] ? aboutKey(key) : '';
}

const aboutKey = (key) => words[/^[1-9]$/.test(key) ? 'bind.number' : `bind.${key}`].replace('{n}', key);

function keyRow(key) {
  return make('div', { class: 'binding' }, make('span', {}, aboutKey(key)),
    make('button', { type: 'button', class: 'plain', 'data-bind': key, 'aria-label': say('bind.aria', { action: aboutKey(key) }) }, keycap(key)));
}

function drawBindings() {
  stopAsking();
  find('.bindings').replaceChildren(...CHANGEABLE.filter((key) => key !== 'c' || props.value.converse).map(keyRow));
}

function bindNote(text, refused = false) {
  const note = find('.bind-note');
  note.textContent = text;
  note.classList.toggle('refused', refused);
}

function askKey(button) {
  if (asked) asked.classList.remove('asked');
  asked = button;
  button.classList.add('asked');
  bindNote(say('bind.press', { action: aboutKey(button.dataset.bind) }));
}

function stopAsking() {
  if (asked) asked.classList.remove('asked');
  asked = null;
}

function resetKeys() {
  stopAsking();
  own = {};
  settings.removeItem(ownKey());
  paintKeys();
  bindNote(words['bind.reset.done']);
}

// The key pressed for an action: refused if it does something else.
function bindKey(event) {
  if (['Shift', 'Control', 'Alt', 'Meta', 'AltGraph', 'CapsLock', 'Dead', 'Process', 'Unidentified'].includes(event.key)) return;
  event.preventDefault();
  event.stopPropagation();
  const action = asked.dataset.bind;
  if (event.key === 'Escape') { stopAsking(); bindNote(''); return; }
  const [, pad] = /^Numpad([0-9])$/.exec(event.code) || [];
  const label = pad ? say('bind.numpad', { key: pad }) : event.key.length === 1 ? event.key.toUpperCase() : event.key;
  const already = event.code ? taken(event, action) : words['bind.fixed'];
  if (already) { bindNote(say('bind.taken', { key: label, action: already }), true); return; }
  if (keyOf(event).toLowerCase() === action) delete own[action];
  else own[action] = { code: event.code, label };
  keepKeys();
  const button = asked;
  stopAsking();
  bindNote(say('bind.done', { key: labelOf(action), action: aboutKey(action) }));
  button.focus();
}

document.addEventListener('keydown', (event) => { if (asked) bindKey(event); }, { capture: true });
