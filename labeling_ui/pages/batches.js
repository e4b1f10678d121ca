// Batches: how far each is, its order, pool and overlap, and whether it is paused; withdrawn pairs to restore.
const FIELDS = { priority: { type: 'number', min: -100, max: 100 }, pool: { type: 'text', maxlength: 100 }, overlap: { type: 'number', min: 1, max: 100 } };

async function showBatches() {
  try {
    const [batches, withdrawn] = await Promise.all(['batches', 'pairs/withdrawn'].map((name) => call(`/api/lead/${name}`)));
    refill(find('.batches tbody'), ...batches.map(batchRow));
    find('.withdrawn').hidden = !withdrawn.length;
    refill(find('.withdrawn tbody'), ...withdrawn.map(withdrawnRow));
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
  }
}

function batchRow(batch) {
  const name = batch.name || words['batches.default'];
  const fields = Object.entries(FIELDS).map(([key, attributes]) => make('td', {}, batch.steered
    ? make('input', { ...attributes, value: String(batch[key]), 'data-field': `${key}/${batch.name}`, 'aria-label': `${words[`batches.${key}`]}: ${name}`, placeholder: key === 'pool' ? words['batches.everybody'] : false })
    : String(batch[key] || '–')));
  const done = batch.judged / Math.max(1, batch.wanted);
  return make('tr', { class: batch.paused ? 'paused' : false },
    make('th', { scope: 'row' }, name),
    make('td', {}, whole(batch.pairs)),
    make('td', {}, say('lead.of', { done: whole(batch.judged), total: whole(batch.wanted) }), make('div', { class: 'bar' }, make('div', { class: 'fill', style: `width:${percent(between(done))}` }))),
    ...fields,
    make('td', {}, batch.steered ? make('button', { type: 'button', class: 'plain', 'data-batch': batch.name, 'data-paused': String(!batch.paused) },
      words[batch.paused ? 'batches.resume' : 'batches.pause'], make('span', { class: 'unseen' }, ` ${name}`)) : null));
}

function withdrawnRow(one) {
  const restore = make('button', { type: 'button', class: 'plain', 'data-restore': one.pair_id }, words['withdrawn.restore'], make('span', { class: 'unseen' }, ` ${one.pair_id}`));
  return make('tr', {}, make('th', { scope: 'row' }, one.pair_id), make('td', {}, one.replaced_by ? say('withdrawn.now', { pair: one.replaced_by }) : one.reason || '–'), make('td', {}, one.replaced_by ? null : restore));
}

async function changeBatch(name, body) {
  if (await change(`/api/lead/batches?name=${encodeURIComponent(name)}`, 'PUT', body)) warn('');
  await showBatches();
  refresh();
}

async function restorePair(id) {
  await change('/api/lead/pairs/restore', 'POST', { pair_ids: [id] });
  await showBatches();
  refresh();
}

desk.addEventListener('change', (event) => {
  const [, key, name] = (event.target.dataset.field || '').match(/^(\w+)\/(.*)$/s) || [];
  if (!key) return;
  const { value } = event.target;
  if (!event.target.checkValidity() || (key !== 'pool' && !/^-?\d+$/.test(value))) event.target.reportValidity();
  else changeBatch(name, { [key]: key === 'pool' ? value : Number(value) });
});
