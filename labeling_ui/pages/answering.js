// Messages of raters about pairs, which leads and reviewers answer: those that wait, on the overview; all of a pair, beside it.
function threadOf(thread, withLink) {
  const field = make('textarea', { name: 'text', rows: '2', maxlength: '4000', dir: 'auto', required: true, 'data-keep': `note/${thread.item_id}/${thread.rater_id}`, 'aria-label': words['notes.reply'] });
  const problem = make('span', { class: 'note', role: 'status' });
  const form = make('form', { class: 'line-form' }, make('label', { class: 'grow' }, field), make('button', { class: 'plain' }, words['notes.send']), problem);
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      await call('/api/lead/notes', { method: 'POST', body: { item_id: thread.item_id, rater_id: thread.rater_id, text: field.value } });
      sent(form);
      form.parentElement.remove();
      if (withLink) showWaiting(); else showItemNotes();
    } catch (error) {
      problem.textContent = error.status ? error.message : words.waiting;
    }
  });
  return make('article', { class: 'thread' },
    withLink ? make('p', { class: 'about note' }, make('bdi', {}, thread.prompt), ' ', make('button', { type: 'button', class: 'plain', 'data-thread-item': thread.item_id }, words['notes.open'])) : null,
    ...thread.notes.map((note) => make('p', { class: note.by_rater ? 'theirs' : 'mine' },
      make('span', { class: 'who' }, say('notes.by', { name: nameOf(note.by_id), at: new Date(note.at_ms).toLocaleString(words.language, { dateStyle: 'short', timeStyle: 'short' }) })),
      make('span', { dir: 'auto' }, note.text))),
    mayAnswer() ? form : null);
}

const mayAnswer = () => ['lead', 'reviewer'].includes(desk.dataset.role);

async function showWaiting() {
  if (find('.notes').contains(document.activeElement)) return; // an answer is being written
  const threads = await call('/api/lead/notes');
  find('.notes').hidden = !threads.length;
  find('.notes .threads').replaceChildren(...threads.map((thread) => threadOf(thread, true)));
  giveBack(find('.notes'));
}

async function showItemNotes() {
  const id = item.item_id;
  const threads = await call(`/api/lead/notes?item_id=${encodeURIComponent(id)}`);
  if (!item || item.item_id !== id) return;
  find('.item .item-notes')?.remove();
  if (!threads.length) return;
  find('.item').append(make('section', { class: 'item-notes' }, make('h3', {}, words['notes.item']), ...threads.map((thread) => threadOf(thread, false))));
  giveBack(find('.item .item-notes'));
}

desk.addEventListener('click', (event) => {
  const button = event.target.closest('[data-thread-item]');
  if (button) { view('items'); openItem(button.dataset.threadItem); }
});
