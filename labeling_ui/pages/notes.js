// Messages with the leads about a pair, and notices of the browser when there is work again.
let notedItem = ''; // the pair whose thread is open

function noteRow({ at_ms: at, mine, text }) {
  return make('p', { class: mine ? 'mine' : 'theirs' }, make('span', { class: 'who' }, words[mine ? 'note.you' : 'note.lead'], ' · ', whenOf(at)), make('span', { dir: 'auto' }, text));
}

async function openNote(itemId, about = '') {
  notedItem = itemId;
  const panel = card('note');
  panel.querySelector('.about').textContent = about;
  panel.querySelector('textarea').value = storage.getItem(noteKey()) || '';
  panel.querySelector('.thread').replaceChildren();
  panel.querySelector('.problem').textContent = '';
  if (!panel.open) panel.showModal();
  panel.querySelector('textarea').focus();
  try {
    const thread = (await call('/api/notes')).find((one) => one.item_id === itemId);
    if (thread && notedItem === itemId) panel.querySelector('.thread').replaceChildren(...thread.notes.map(noteRow));
  } catch (error) {
    panel.querySelector('.problem').textContent = error.status ? error.message : words.waiting;
  }
}

// What is being written stays in the browser until it is sent, for each pair by itself.
const noteKey = () => `tiebreak-note:${raterId}:${notedItem}`;

function keepNote({ target }) {
  if (target.value.trim()) keep(noteKey(), target.value);
  else storage.removeItem(noteKey());
}

async function sendNote(event) {
  event.preventDefault();
  const panel = card('note');
  const field = panel.querySelector('textarea');
  if (!field.value.trim()) return;
  try {
    await call('/api/notes', { method: 'POST', body: { item_id: notedItem, text: storable(field.value) } });
    field.value = '';
    storage.removeItem(noteKey());
    panel.close();
    flash(words['note.sent']);
  } catch (error) {
    panel.querySelector('.problem').textContent = error.status ? error.message : words['note.lost'];
  }
}

find('[data-card=note] form').addEventListener('submit', sendNote);
find('[data-card=note] textarea').addEventListener('input', keepNote);
find('[data-close-note]').addEventListener('click', () => card('note').close());

// The rater's threads, under My work; those that a lead answered last are seen with it.
function noteThreads(threads) {
  if (!threads.length) return [];
  markSeen(threads);
  return [make('h3', {}, words['note.threads']), ...threads.map((thread) => make('section', { class: 'thread' },
    make('p', { class: 'about note' }, make('bdi', {}, thread.prompt)), ...thread.notes.map(noteRow),
    make('button', { type: 'button', class: 'plain', 'data-note': thread.item_id, 'data-about': thread.prompt }, words['note.reply'])))];
}

const seenKey = () => `tiebreak-notes:${raterId}`;
const lastAnswer = (threads) => Math.max(0, ...threads.flatMap(({ notes }) => notes.filter(({ mine }) => !mine).map(({ at_ms: at }) => at)));
const workButton = () => find('[data-open=work]');

function markSeen(threads) {
  keep(seenKey(), String(lastAnswer(threads)), settings);
  workButton().classList.remove('new');
}

async function lookForAnswers() {
  const threads = await call('/api/notes').catch(() => []);
  if (lastAnswer(threads) <= Number(settings.getItem(seenKey()) || 0)) return;
  workButton().classList.add('new');
  flash(say('note.answered', { key: labelOf('w') }), BREAK_SHOWN_MS);
}
const ANSWERS_MS = 300000;
setInterval(() => { if (!document.hidden) lookForAnswers(); }, ANSWERS_MS);

// --- notices, if the rater wants them

const noticeKey = () => `tiebreak-notices:${raterId}`;
const canNotify = () => 'Notification' in window && window.isSecureContext;
const wantsNotices = () => canNotify() && settings.getItem(noticeKey()) === 'on' && Notification.permission === 'granted';

function noticeSwitch() {
  if (!canNotify()) return [];
  const box = make('input', { type: 'checkbox', checked: wantsNotices() });
  const state = make('span', { class: 'note', role: 'status' });
  box.addEventListener('change', async () => {
    const granted = box.checked && await Notification.requestPermission() === 'granted';
    if (box.checked && !granted) state.textContent = words['notice.denied'];
    box.checked = granted;
    keep(noticeKey(), granted ? 'on' : 'off', settings);
  });
  return [make('h3', {}, words.notice), make('p', {}, make('label', { class: 'notice' }, box, words['notice.want']), ' ', state)];
}

// There is work again after there was none, and the rater is not looking at the page.
function noticeWork() {
  if (!wantsNotices() || !document.hidden) return;
  const notice = new Notification(words['notice.title'], { body: props.value.title, tag: 'tiebreak' });
  notice.addEventListener('click', () => { window.focus(); notice.close(); });
}
