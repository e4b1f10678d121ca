// What a lead has typed and not sent. It stays in the browser until it is sent, so that neither an ended session nor another view
// loses it. `data-keep` names what the text of a field is for; the field gets the text back when it is drawn again.
const KEPT = 'tiebreak-kept:';
const KEPT_MS = 7 * 86400000;
const unkept = new Set(); // names of the texts for which the storage had no room

const keptKey = (name) => `${KEPT}${base}:${myself}:${name}`;
const asTyped = (text) => text.replace(/\r\n?/g, '\n'); // as a text field normalises it

// The text kept under a name; empty if there is none.
function keptText(name) {
  try {
    const { text, at_ms: at } = JSON.parse(storage.getItem(keptKey(name)));
    return at > Date.now() - KEPT_MS ? text : '';
  } catch (error) {
    return ''; // nothing is there
  }
}

function keepText(name, text) {
  if (keep(keptKey(name), JSON.stringify({ text, at_ms: Date.now() }))) unkept.delete(name);
  else unkept.add(name);
}

function forgetText(name) {
  storage.removeItem(keptKey(name));
  unkept.delete(name);
}

function keepField(field) {
  if (!field.value.trim() || field.value === asTyped(field.defaultValue)) forgetText(field.dataset.keep);
  else keepText(field.dataset.keep, field.value);
}

const keptFields = (root) => [...root.querySelectorAll('[data-keep]')];

// Texts that were typed into these fields and not sent; beside each a button that discards it. A field with `data-sends` sends
// itself when it changes: it gets a button for that, since a browser reports no change of a text that it did not see typed.
function giveBack(root) {
  for (const field of keptFields(root)) {
    const text = keptText(field.dataset.keep);
    const place = field.closest('label') || field;
    if (place.nextElementSibling?.matches('.kept')) place.nextElementSibling.remove();
    if (text === asTyped(field.defaultValue)) forgetText(field.dataset.keep); // it has arrived nevertheless
    if (!text || text === field.value) continue;
    field.value = text;
    field.hidden = false;
    field.closest('details')?.setAttribute('open', '');
    const drop = make('button', { type: 'button', class: 'plain', 'data-drop': true }, words['kept.drop']);
    const send = field.dataset.sends === undefined ? null : make('button', { type: 'button', class: 'plain', 'data-send': true }, words['kept.send']);
    place.after(make('span', { class: 'note kept', role: 'status' }, words.kept, ' ', send, drop));
    send?.addEventListener('click', () => field.dispatchEvent(new Event('change', { bubbles: true })));
    drop.addEventListener('click', () => { sent(field); field.value = field.defaultValue; field.focus(); });
  }
}

// The texts of these fields, or of one, have been sent: the browser forgets them.
function sent(root) {
  for (const field of root.dataset.keep === undefined ? keptFields(root) : [root]) {
    forgetText(field.dataset.keep);
    const place = field.closest('label') || field;
    if (place.nextElementSibling?.matches('.kept')) place.nextElementSibling.remove();
  }
}

// A reason, asked for in a window of the browser's own; null if it was cancelled.
function askReason(word, name, most) {
  const reason = window.prompt(words[word], keptText(name));
  if (reason !== null) keepText(name, reason.slice(0, most));
  return reason === null ? null : reason.slice(0, most);
}

desk.addEventListener('input', ({ target }) => { if (target.dataset.keep !== undefined) keepField(target); });

mayLeave = () => !unkept.size;
window.addEventListener('beforeunload', (event) => { if (unkept.size) event.preventDefault(); });
beforeLogin = () => returnTo(window.location.hash);
