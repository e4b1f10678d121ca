// Erasing a person's data: what it would do, then the erasure.
function erasingAction(rater) {
  if (rater.erased) return make('span', { class: 'note' }, words['erase.erased']);
  const { consent_withdrawn: withdrawn } = rater;
  const asks = withdrawn && say(withdrawn.judgments ? 'erase.asks.judgments' : 'erase.asks', { at: timeOf(withdrawn.at_ms) });
  const button = rater.kind === 'human' ? make('button', { type: 'button', class: 'plain', 'data-erase': rater.id }, words.erase) : '';
  return make('span', { class: 'erasing' }, asks ? make('span', { class: 'note late' }, asks) : '', button);
}

async function askErasure(id) {
  const dialog = find('.erasure');
  dialog.dataset.rater = id;
  dialog.querySelector('h2').textContent = say('erase.of', { name: nameOf(id) });
  dialog.querySelector(`[value=${names[id].consent_withdrawn?.judgments ? 'withdraw' : 'keep'}]`).checked = true;
  dialog.querySelector('[name=sure]').value = '';
  if (await showErasure()) openCard(dialog);
}

async function showErasure() {
  const dialog = find('.erasure');
  const judgments = dialog.querySelector('[name=judgments]:checked').value === 'withdraw';
  const effect = await change(`/api/lead/raters/${encodeURIComponent(dialog.dataset.rater)}/erase?judgments=${judgments}`, 'GET');
  if (!effect) return false;
  const rows = ['judgments', 'kept', 'conversations'].filter((name) => effect[name]);
  dialog.querySelector('.effect').replaceChildren(...rows.map((name) => make('div', {}, make('dt', {}, words[`erase.${name}`]), make('dd', {}, whole(effect[name])))));
  return true;
}

async function erase() {
  const dialog = find('.erasure');
  const id = dialog.dataset.rater;
  if (dialog.querySelector('[name=sure]').value.trim() !== nameOf(id)) {
    dialog.querySelector('[name=sure]').focus();
    return;
  }
  const done = await change(`/api/lead/raters/${encodeURIComponent(id)}/erase`, 'POST', { judgments: dialog.querySelector('[name=judgments]:checked').value === 'withdraw' });
  dialog.close();
  if (!done) return;
  warn('');
  await refresh();
  await openPerson(id);
}

desk.addEventListener('change', (event) => {
  if (event.target.name === 'judgments' && event.target.closest('.erasure')) showErasure();
});

desk.addEventListener('click', (event) => {
  const about = event.target.closest('button')?.dataset || {};
  if (about.erase) askErasure(about.erase);
  if (about.eraseNow !== undefined) erase();
});
