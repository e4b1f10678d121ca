// Batches: how far each is, its order, pool, overlap and deadline, and whether it is paused; new batches and pairs;
// withdrawn pairs to restore.
const FIELDS = {
  priority: { type: 'number', min: -100, max: 100 }, pool: { type: 'text', maxlength: 100 }, overlap: { type: 'number', min: 1, max: 100 },
  deadline: { type: 'date' }, goal: { type: 'number', min: 0 },
};
const AS_TEXT = ['pool', 'deadline'];
const DAY_MS = 86400000;
let uploading = null; // the file whose preview is on the screen, and its batch

async function showBatches() {
  try {
    const [batches, withdrawn] = await Promise.all(['batches', 'pairs/withdrawn'].map((name) => call(`/api/lead/${name}`)));
    batches.sort((a, b) => b.priority - a.priority || a.name.localeCompare(b.name));
    refill(find('.batches tbody'), ...batches.map(batchRow));
    giveBack(find('.batches tbody'));
    const chosen = find('.filling select').value;
    refill(find('.filling select'), ...batches.filter((batch) => batch.steered).map((batch) => make('option', { value: batch.name, selected: batch.name === chosen }, batch.name || words['batches.default'])));
    find('.withdrawn').hidden = !withdrawn.length;
    refill(find('.withdrawn tbody'), ...withdrawn.map(withdrawnRow));
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
  }
}

function batchRow(batch) {
  const name = batch.name || words['batches.default'];
  const placeholders = { pool: words['batches.everybody'], goal: words['batches.goal.all'] };
  const fields = Object.entries(FIELDS).map(([key, attributes]) => make('td', {}, batch.steered
    ? make('input', { ...attributes, value: batch[key] === 0 && key === 'goal' ? '' : String(batch[key]), 'data-field': `${key}/${batch.name}`, 'data-keep': `cell/${key}/${batch.name}`, 'data-sends': true, 'aria-label': `${words[`batches.${key}`]}: ${name}`, placeholder: placeholders[key] || false })
    : String(batch[key] || '–'), key === 'deadline' ? paceNeeded(batch) : key === 'pool' && batch.without_raters ? make('span', { class: 'note late' }, words['batches.nobody']) : null));
  const done = batch.judged / Math.max(1, batch.wanted);
  return make('tr', { class: batch.paused ? 'paused' : false },
    make('th', { scope: 'row' }, name, batch.inspection ? make('span', { class: batch.inspection.passed === false ? 'note late' : 'note' }, inspected(batch.inspection)) : null),
    make('td', {}, whole(batch.pairs), batch.single_answers ? make('span', { class: 'note' }, say('batches.single', { n: whole(batch.single_answers) })) : null),
    make('td', {}, say('lead.of', { done: whole(batch.judged), total: whole(batch.wanted) }), make('div', { class: 'bar' }, make('div', { class: 'fill', style: `width:${percent(between(done))}` }))),
    ...fields,
    make('td', {}, batch.steered ? make('button', { type: 'button', class: 'plain', 'data-batch': batch.name, 'data-paused': String(!batch.paused) },
      words[batch.paused ? 'batches.resume' : 'batches.pause'], make('span', { class: 'unseen' }, ` ${name}`)) : null));
}

// A lot that is inspected by a sample, and what came of it.
function inspected(one) {
  const about = { ...one, most: one.most_defects };
  if (one.flagged) return say(one.passed ? 'inspection.flagged.passed' : 'inspection.flagged.open', about);
  return say(one.passed === null ? 'inspection.open' : one.passed ? 'inspection.passed' : 'inspection.failed', about);
}

// Judgments a day that a batch needs from now to the end of its last day.
function paceNeeded(batch) {
  if (!batch.deadline) return null;
  const missing = Math.max(0, (batch.goal || batch.wanted) - batch.judged);
  const days = (Date.parse(batch.deadline) + DAY_MS - Date.now()) / DAY_MS;
  const late = missing > 0 && days <= 0;
  const note = !missing ? words['batches.done'] : late ? say('batches.late', { n: whole(missing) }) : say('batches.needs', { n: whole(Math.ceil(missing / Math.max(1, days))) });
  return make('span', { class: late ? 'note late' : 'note' }, note);
}

function withdrawnRow(one) {
  const restore = make('button', { type: 'button', class: 'plain', 'data-restore': one.pair_id }, words['withdrawn.restore'], make('span', { class: 'unseen' }, ` ${one.pair_id}`));
  return make('tr', {}, make('th', { scope: 'row' }, one.pair_id), make('td', {}, one.replaced_by ? say('withdrawn.now', { pair: one.replaced_by }) : one.reason || '–'), make('td', {}, one.replaced_by ? null : restore));
}

// `field`: the cell that was changed. What is typed into it before the reply is kept.
async function changeBatch(name, body, field = null) {
  const typed = field?.value;
  const done = await change(`/api/lead/batches?name=${encodeURIComponent(name)}`, 'PUT', body);
  if (done) warn('');
  if (done && field && field.value === typed) sent(field);
  await showBatches();
  if (done) refresh();
}

async function restorePair(id) {
  await change('/api/lead/pairs/restore', 'POST', { pair_ids: [id] });
  await showBatches();
  refresh();
}

desk.addEventListener('change', (event) => {
  const [, key, name] = (event.target.dataset.field || '').match(/^(\w+)\/(.*)$/s) || [];
  if (!key) return;
  const value = key === 'goal' ? event.target.value || '0' : event.target.value;
  if (!event.target.checkValidity() || (!AS_TEXT.includes(key) && !/^-?\d+$/.test(value))) event.target.reportValidity();
  else changeBatch(name, { [key]: AS_TEXT.includes(key) ? value : Number(value) }, event.target);
});

// --- new batches and pairs

desk.addEventListener('submit', (event) => {
  event.preventDefault();
  const { form } = event.target.dataset;
  if (form === 'batch') createBatch(event.target);
  else if (form === 'upload') previewUpload(event.target);
});

async function createBatch(form) {
  if (!await change('/api/lead/batches', 'POST', { name: form.elements.name.value.trim() })) return;
  warn('');
  sent(form);
  form.reset();
  await showBatches();
}

async function previewUpload(form) {
  uploading = { file: form.elements.file.files[0], batch: form.elements.batch.value };
  const looked = await sendFile(true);
  if (!looked) return;
  const place = find('.looked');
  place.hidden = false;
  place.replaceChildren(
    make('p', {}, say('batches.found', { name: uploading.file.name, pairs: whole(looked.pairs), new: whole(looked.new) })),
    ...looked.notes.map((note) => make('p', { class: 'note', dir: 'auto' }, note)),
    looked.new ? make('button', { type: 'button', class: 'primary', 'data-upload': true }, say('batches.add', { n: whole(looked.new) })) : '',
    make('p', { class: 'note' }, words['batches.first']),
    ...looked.shown.map((pair) => make('article', { class: 'sample' },
      make('div', { class: 'text', dir: 'auto', html: pair.messages.map((message) => message.html).join('') }),
      make('div', { class: 'sides' }, ...pair.completions.map((html, n) => make('div', {}, make('h3', {}, pair.completions.length === 1 ? words.answered : LETTERS[n]), make('div', { class: 'text', dir: 'auto', html })))))),
  );
  drawMedia(place);
}

async function addUpload() {
  const added = await sendFile(false);
  if (!added) return;
  find('.looked').replaceChildren(make('p', {}, say('batches.added', { n: whole(added.new) })));
  find('[data-form=upload]').reset();
  await showBatches();
  refresh();
}

async function sendFile(preview) {
  const about = new URLSearchParams({ name: uploading.file.name, batch: uploading.batch, preview });
  try {
    const reply = await call(`/api/lead/pairs/upload?${about}`, { method: 'POST', file: uploading.file, patience_ms: 300000 });
    warn('');
    return reply;
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
    return null;
  }
}

desk.addEventListener('click', (event) => {
  if (event.target.closest('[data-upload]')) addUpload();
});
