// Finding pairs and judgments: a search whose filters are in the address, one pair with all its judgments and its
// history, a rater's judgments, and the rejection of either.
const CHOICES = {
  answer: ['first', 'second', 'neither', 'skip'], agreement: ['one', 'agree', 'tie', 'side'],
  state: ['unjudged', 'open', 'full', 'gold', 'settled', 'withdrawn', 'rejected'],
};
const SEARCH_MS = 250; // after the last key
const PAGE = 50;
let found = []; // the pairs listed
let foundAfter = null; // where the next page begins
let picked = new Set(); // ids of the selected ones
let searchTimer = 0;
let searched = 0; // number of the latest search: replies to earlier ones are late
let item = null; // the pair on the screen
let person = null; // the rater on the screen, and their judgments
let rejecting = null; // the selection that the dialog is about
const filters = find('.filters');

async function showItems() {
  if (!filters.elements.state.options.length) layOutFilters();
  try {
    const batches = await call('/api/lead/batches');
    const named = (batch) => batch.name || words['batches.default'];
    fillSelect(filters.elements.batch, batches.map((batch) => [`=${batch.name}`, named(batch)]));
    fillSelect(filters.elements.rater, Object.values(names).sort((a, b) => a.name.localeCompare(b.name)).map((one) => [one.id, one.name]));
    refill(find('.acting [name=to]'), ...batches.filter((batch) => batch.steered).map((batch) => make('option', { value: batch.name }, named(batch))));
    for (const [name, value] of Object.entries(pending)) if (filters.elements[name]) filters.elements[name].value = value;
    pending = {};
    await search();
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
  }
}

function layOutFilters() {
  for (const [name, values] of Object.entries(CHOICES)) fillSelect(filters.elements[name], values.map((value) => [value, words[`items.${name}.${value}`]]));
  fillSelect(filters.elements.flag, props.value.flags.map(({ name, label }) => [name, label]));
}

// The options of a filter, below "any"; what was chosen stays so.
function fillSelect(select, options) {
  const chosen = select.value;
  select.replaceChildren(make('option', { value: '' }, words['items.any']), ...options.map(([value, text]) => make('option', { value }, text)));
  select.value = chosen;
}

// --- the search

function filterValues() {
  return Object.fromEntries([...new FormData(filters)].filter(([, value]) => value !== ''));
}

async function search(after = -1) {
  const values = filterValues();
  if (after < 0) keepAddress(values);
  searched += 1;
  const mine = searched;
  const about = { ...values, after, limit: PAGE };
  if (values.batch !== undefined) about.batch = values.batch.slice(1);
  const page = await call(`/api/lead/items?${new URLSearchParams(about)}`);
  if (mine !== searched) return;
  if (after < 0) picked = new Set();
  found = after < 0 ? page.items : [...found, ...page.items];
  foundAfter = page.after;
  warn('');
  listItems();
}

// The view, its filters and the pair on the screen are in the address: it can be sent to a colleague.
function keepAddress(values) {
  const about = new URLSearchParams({ view: 'items', ...values, ...(item ? { item: item.item_id } : {}) });
  window.history.replaceState(null, '', `#${about}`);
}

let pending = {}; // filters of the address, until the lists that they choose from are there

function openAddress(hash) {
  const values = Object.fromEntries(new URLSearchParams(hash.slice(1)));
  if (values.view !== 'items') return false;
  for (const field of filters.elements) if (field.name) field.value = '';
  pending = values;
  view('items');
  if (values.item) openItem(values.item);
  return true;
}

function listItems() {
  find('.counted').textContent = found.length ? say(foundAfter === null ? 'items.counted' : 'items.counted.more', { n: whole(found.length) }) : '';
  refill(find('.found'), ...(found.length ? found.map(foundRow) : [make('li', { class: 'note' }, words['items.none'])]));
  find('.more').hidden = foundAfter === null;
  showPicked();
}

function foundRow(one) {
  const marks = [one.withdrawn && 'withdrawn', one.gold && 'gold', one.settled && 'settled'].filter(Boolean).map((state) => words[`items.state.${state}`]);
  if (one.rejected) marks.push(words['items.state.rejected']);
  const votes = [one.for_first, one.for_neither, one.for_second];
  const isSingle = `task.${one.task}` in words;
  const counted = isSingle ? `${words[`task.${one.task}`]} ${say('items.taken', one)}` : say('items.votes', { first: one.for_first, second: one.for_second, neither: one.for_neither });
  return make('li', {},
    make('input', { type: 'checkbox', 'data-pick': one.item_id, checked: picked.has(one.item_id), 'aria-label': say('items.pick', { id: one.item_id }) }),
    make('button', { type: 'button', 'data-item': one.item_id, 'aria-current': String(Boolean(item && item.item_id === one.item_id)) },
      make('span', { class: 'asked', dir: 'auto' }, one.prompt || one.item_id),
      isSingle ? null : voteBar(votes),
      make('span', { class: 'note' }, [isolated(one.item_id), isolated(one.batch), counted, one.skips ? say('items.skips', { n: one.skips }) : '', ...marks].filter(Boolean).join(' · '))));
}

function showPicked() {
  find('.acting').hidden = !picked.size;
  find('.picked').textContent = say('items.picked', { n: whole(picked.size) });
}

async function act(name) {
  const ids = [...new Set(found.filter((one) => picked.has(one.item_id)).map((one) => one.pair_id))];
  let done = null;
  if (name === 'move') done = await change('/api/lead/pairs/move', 'POST', { pair_ids: ids, batch: find('.acting [name=to]').value });
  if (name === 'restore') done = await change('/api/lead/pairs/restore', 'POST', { pair_ids: ids });
  if (name === 'withdraw') {
    const reason = askReason('items.withdraw.why', 'withdraw', 1000);
    if (reason === null) return;
    done = await change('/api/lead/pairs/withdraw', 'POST', { pair_ids: ids, reason });
    if (done) forgetText('withdraw');
  }
  if (!done) return;
  await search();
  if (item) await openItem(item.item_id);
  refresh();
}

// --- one pair

async function openItem(id) {
  try {
    item = await call(`/api/lead/items/${encodeURIComponent(id)}`);
    keepAddress(filterValues());
    listItems();
    drawItem();
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
  }
}

const letterOf = (id) => LETTERS[item.completions.findIndex((one) => one.id === id)];

function drawItem() {
  const ranking = item.task !== 'pair';
  const choose = (value, text) => make('option', { value, selected: goldValue() === value }, text);
  refill(find('.item'),
    make('header', {}, make('h2', {}, item.item_id), make('span', { class: 'note' }, [isolated(item.batch), item.withdrawn && `${words['items.state.withdrawn']}: ${isolated(item.withdrawn_why) || '–'}`].filter(Boolean).join(' · '))),
    make('div', { class: 'turns', tabindex: '0', role: 'group', 'aria-label': words.prompt }, ...item.messages.map((message) => make('div', { class: 'turn' },
      make('span', { class: 'who' }, words[message.role]), make('div', { class: 'text', dir: 'auto', html: message.html })))),
    make('div', { class: 'sides' }, ...item.completions.map((one, n) => make('div', { class: ranking ? '' : ['side-left', 'side-right'][n], tabindex: '0', role: 'group', 'aria-label': say('answer', { letter: LETTERS[n] }) },
      make('h3', {}, item.completions.length === 1 ? words.answered : LETTERS[n]), make('div', { class: 'text', dir: 'auto', html: one.html })))),
    make('h3', {}, words['items.judgments']),
    judgmentTable(item.judgments, false),
    item.settled_as ? make('p', { class: 'note' }, say('items.settled', { answer: describe(item.settled_as, item.completions[0].id) }), ' ', make('button', { type: 'button', class: 'plain', 'data-unsettle': item.item_id }, words['items.unsettle'])) : '',
    singleGold(),
    ranking ? '' : make('p', { class: 'line-form' }, make('label', {}, words['items.gold'], ' ', make('select', { name: 'gold', 'data-gold': true },
      choose('none', words['items.gold.none']), choose('A', words['items.gold.A']), choose('B', words['items.gold.B']), choose('neither', words['items.gold.neither'])))),
    correction(),
    make('details', { class: 'about', open: true }, make('summary', {}, words['items.history']), make('ol', { class: 'history' }, ...item.history.map(happened))),
  );
  giveBack(find('.item'));
  drawMedia(find('.item'));
  showItemNotes().catch(() => {}); // the pair itself is there
}

// The values that a single answer can get, and their names.
function valuesOf(task) {
  const { ratings, classes } = props.value;
  return { rate: ratings.map((name, n) => [String(n + 1), `${n + 1}: ${name}`]), review: ['accept', 'edit', 'reject'].map((name) => [name, words[`said.${name}`]]), classify: classes.map((name) => [name, name]) }[task];
}

// The known answer of a single answer: a step of the scale, a verdict, or a class.
function singleGold() {
  const values = valuesOf(item.task);
  if (!values) return '';
  const now = item.gold ? String(item.gold_value) : '';
  return make('p', { class: 'line-form' }, make('label', {}, words['items.gold'], ' ', make('select', { name: 'gold', 'data-gold': true },
    make('option', { value: 'none' }, words['items.gold.none']), ...values.map(([value, text]) => make('option', { value: `value:${value}`, selected: value === now }, text)))));
}

function goldValue() {
  return !item.gold ? 'none' : item.gold_id === null ? 'neither' : letterOf(item.gold_id);
}

function correction() {
  return make('details', { class: 'about' }, make('summary', {}, words['items.correct']),
    make('form', { 'data-form': 'correct', class: 'correcting' },
      ...item.completions.map((one, n) => make('textarea', { name: one.id, rows: '6', dir: 'auto', 'data-keep': `correct/${item.item_id}/${one.id}`, 'aria-label': say('items.correct.field', { letter: LETTERS[n] }) }, one.text)),
      make('p', { class: 'note' }, words['items.correct.note']), make('button', { class: 'plain' }, words['items.correct.save'])));
}

async function correctItem(form) {
  const completions = item.pair.completions.map((one) => {
    const text = form.elements[one.id]?.value ?? one.text;
    // A text that a lead has written was drawn by no policy.
    return text === one.text ? one : { ...one, text, ids: undefined, tokenizer_sha256: undefined };
  });
  const made = await change('/api/lead/pairs/correct', 'POST', { pairs: [{ ...item.pair, completions }] });
  if (!made) return;
  sent(form);
  await search();
  if (made.length) await openItem(made[0].replaced_by);
  refresh();
}

async function unsettle(id) {
  if (!await change(`/api/lead/adjudications/${encodeURIComponent(id)}`, 'DELETE')) return;
  warn('');
  if (desk.dataset.view === 'disputes') await showDisputes();
  else await openItem(id);
  refresh();
}

async function setGold(value) {
  const path = `/api/lead/gold/${encodeURIComponent(item.item_id)}`;
  const [a, b] = item.completions;
  const single = value.startsWith('value:') && value.slice(6);
  const done = single ? await change(path, 'PUT', { value: item.task === 'rate' ? Number(single) : single }) : value === 'none' ? await change(path, 'DELETE') : await change(path, 'PUT', { preferred_id: { A: a.id, B: b.id, neither: null }[value] });
  if (done) warn('');
  await search();
  await openItem(item.item_id);
}

// The answer with the pair's own letters, whichever side the rater saw.
function judgmentTable(given, ofRater) {
  if (!given.length) return make('p', { class: 'note' }, words['person.none']);
  const left = (judgment) => (ofRater ? judgment.left : item.completions[0].id);
  return make('div', { class: 'scroll' }, make('table', { class: 'plain-table given' }, make('tbody', {}, ...given.map((one) => make('tr', { class: one.rejected === null ? false : 'rejected' },
    make('th', { scope: 'row' }, ofRater ? make('button', { type: 'button', 'data-item': one.item_id, class: 'asked', dir: 'auto' }, one.prompt || one.item_id) : nameOf(one.judgment.rater_id)),
    make('td', {}, describe(one.judgment, left(one.judgment)), one.repeat ? make('span', { class: 'note' }, words['items.repeat']) : null,
      ...beside(one.judgment, ofRater).map((line) => make('span', { class: 'note', dir: 'auto' }, line)),
      one.judgment.edited_text === null ? null : make('details', {}, make('summary', { class: 'note' }, words['items.edited']), make('div', { class: 'written', dir: 'auto' }, one.judgment.edited_text)),
      one.judgment.rationale ? make('span', { class: 'note', dir: 'auto' }, one.judgment.rationale) : null,
      one.rejected === null ? null : make('span', { class: 'note late' }, say('rejected.for', { reason: one.rejected }))),
    make('td', { class: 'note' }, `${timeOf(one.at_ms)} · ${Math.round(one.active_ms / 1000)} s`),
    make('td', {}, one.rejected === null ? make('button', { type: 'button', class: 'plain', 'data-reject-one': one.judgment_id }, words['reject.one'], make('span', { class: 'unseen' }, ` ${nameOf(one.judgment.rater_id)} ${one.item_id}`)) : make('button', { type: 'button', class: 'plain', 'data-take-back': one.judgment_id }, words['reject.back'])))))));
}

// What a judgment says beside the vote, in lines; the letters are those of the answer above them.
function beside(judgment, ofRater) {
  const shown = judgment.shown.length ? judgment.shown : [judgment.left, judgment.right];
  const letter = (id) => (ofRater ? LETTERS[shown.indexOf(id)] : letterOf(id));
  const turned = !ofRater && judgment.left !== item.completions[0].id ? -1 : 1;
  const said = (value) => (value === true ? words.yes : value === false ? words.no : Number.isInteger(value) ? String(value) : value);
  const flagged = (flag) => Object.entries(judgment.answer_flags || {}).filter(([, flags]) => flags.includes(flag)).map(([id]) => letter(id)).sort().join(', ');
  const flags = judgment.flags.map((flag) => flagName(flag) + (flagged(flag) && ` (${flagged(flag)})`));
  const criteria = Object.entries(judgment.criteria || {}).map(([name, value]) => {
    const { label, scale } = props.value.criteria.find((one) => one.name === name) || { label: name };
    if (scale === 'bar') return `${label}: ${words[`scale.${turned * value || 0}`]}`;
    const parts = value !== null && typeof value === 'object' ? Object.entries(value).map(([id, one]) => `${letter(id)} ${said(one)}`).sort().join(', ') : said(value);
    return `${label}: ${parts}`;
  });
  const spans = (judgment.spans || []).map(({ completion, label, text, comment }) => `${spanName(label)} (${letter(completion)}): “${text}” ${comment}`.trim());
  return [flags.join(', '), ...criteria, ...spans, ...(judgment.links || [])].filter(Boolean);
}

const spanName = (label) => props.value.spans.find(({ name }) => name === label)?.label || label;
const flagName = (flag) => props.value.flags.find(({ name }) => name === flag)?.label || flag;
const timeOf = (ms) => new Date(ms).toLocaleString(words.language, { dateStyle: 'short', timeStyle: 'short' });

function happened(one) {
  const answer = one.judgment ? describe(one.judgment, item.completions[0].id) : '';
  const note = letterOf(one.note) || one.note;
  return make('li', {}, make('span', { class: 'note' }, timeOf(one.at_ms)), ` ${[one.rater_id && nameOf(one.rater_id), words[`event.${one.kind}`] || one.kind].filter(Boolean).join(' ')}`, [answer, note].filter(Boolean).length ? `: ${[answer, isolated(note)].filter(Boolean).join(' · ')}` : '');
}

// --- one rater

async function openPerson(id) {
  const given = await call(`/api/lead/raters/${encodeURIComponent(id)}/judgments?limit=${PAGE}`);
  person = { id, given, complete: given.length < PAGE };
  drawPerson();
  find('.person').scrollIntoView({ block: 'start' });
  find('.person').focus();
}

async function morePerson() {
  const last = person.given[person.given.length - 1];
  const given = await call(`/api/lead/raters/${encodeURIComponent(person.id)}/judgments?limit=${PAGE}&before=${last.seq}`);
  person = { ...person, given: [...person.given, ...given], complete: given.length < PAGE };
  drawPerson();
}

function drawPerson() {
  const place = find('.person');
  place.hidden = false;
  const since = place.querySelector('[name=since]')?.value || '';
  const until = place.querySelector('[name=until]')?.value || '';
  refill(place,
    make('header', {}, make('h2', {}, say('person.of', { name: nameOf(person.id) })),
      make('form', { class: 'line-form', 'data-form': 'period' },
        make('label', {}, words['person.since'], make('input', { type: 'date', name: 'since', value: since })),
        make('label', {}, words['person.until'], make('input', { type: 'date', name: 'until', value: until })),
        make('button', { class: 'plain' }, words['person.reject']))),
    names[person.id] ? personActions(names[person.id]) : '',
    personCurve(person.id),
    judgmentTable(person.given, true),
    person.complete ? '' : make('button', { type: 'button', class: 'plain', 'data-more-person': true }, words['person.more']));
}

// --- rejecting

async function askRejection(selection) {
  const effect = await change('/api/lead/rejections/preview', 'POST', selection);
  if (!effect) return;
  rejecting = selection;
  const rows = ['judgments', 'items', 'requeued', 'unjudged', 'turned', 'settled', 'gold'].filter((name) => effect[name] || name === 'judgments').map((name) => [words[`reject.${name}`], whole(effect[name])]);
  rows.push([words['reject.seconds'], say('time.minutes', { minutes: whole(Math.round(effect.active_seconds / 60)) })]);
  find('.effect').replaceChildren(...rows.map(([name, value]) => make('div', {}, make('dt', {}, name), make('dd', {}, value))));
  find('.rejecting').showModal();
  find('.rejecting [name=reason]').focus();
}

async function takeBack(id) {
  const done = await change('/api/lead/rejections/take-back', 'POST', { judgment_ids: [id] });
  if (!done) return;
  warn(done.stay ? words['reject.stays'] : '', 'lost');
  if (item) await openItem(item.item_id);
  if (person && !find('.person').hidden) await openPerson(person.id);
}

async function reject() {
  const reason = find('.rejecting [name=reason]');
  if (!reason.value.trim()) {
    reason.reportValidity();
    return;
  }
  const body = { selection: rejecting, reason: reason.value.trim(), again: find('.rejecting [name=again]').checked };
  const done = await change('/api/lead/rejections', 'POST', body);
  find('.rejecting').close();
  if (!done) return;
  warn('');
  sent(reason);
  reason.value = '';
  if (item) await openItem(item.item_id);
  if (person && !find('.person').hidden) await openPerson(person.id);
  refresh();
}

const startOfDay = (day) => Date.parse(day); // UTC

desk.addEventListener('submit', (event) => {
  event.preventDefault();
  const { form } = event.target.dataset;
  if (form === 'correct') correctItem(event.target);
  if (form === 'period') {
    const { since, until } = event.target.elements;
    askRejection({ rater_id: person.id, since_ms: since.value ? startOfDay(since.value) : null, until_ms: until.value ? startOfDay(until.value) + DAY_MS : null });
  }
});

function searchSoon() {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(() => search().catch((error) => warn(error.status ? error.message : words.waiting, 'lost')), SEARCH_MS);
}

filters.addEventListener('input', searchSoon);
filters.addEventListener('reset', searchSoon);

desk.addEventListener('change', (event) => {
  const { pick, gold } = event.target.dataset;
  if (pick) {
    if (event.target.checked) picked.add(pick);
    else picked.delete(pick);
    showPicked();
  } else if (gold !== undefined) setGold(event.target.value);
});

desk.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  const about = button.dataset;
  if (about.item) {
    if (desk.dataset.view !== 'items') view('items');
    openItem(about.item).then(() => find('.item').focus());
  } else if (about.more !== undefined) search(foundAfter).catch((error) => warn(error.message, 'lost'));
  else if (about.act) act(about.act);
  else if (about.unsettle) unsettle(about.unsettle);
  else if (about.person) openPerson(about.person).catch((error) => warn(error.message, 'lost'));
  else if (about.morePerson !== undefined) morePerson().catch((error) => warn(error.message, 'lost'));
  else if (about.takeBack) takeBack(about.takeBack).catch((error) => warn(error.message, 'lost'));
  else if (about.rejectOne) askRejection({ judgment_ids: [about.rejectOne] });
  else if (about.reject !== undefined) reject();
  else if (about.close !== undefined) button.closest('dialog').close();
});
