// Disagreements that a lead settles: the pair, its raters' answers, and the lead's own.
const SETTLING_KEYS = { t: '[data-answer="0"]', b: '[data-both_bad]', n: '[data-next]' };
let disputes = [];
let opened = null; // the dispute on the screen; null also while its answer is being sent
let requested = ''; // id of the last one requested: replies about others are late
let blind = settings.getItem('tiebreak-blind') === 'true'; // votes are hidden until the lead has answered
let settled = false; // whether settled disputes are listed

async function showDisputes(openNext = true) {
  try {
    disputes = await call(`/api/lead/disputes?limit=200&adjudicated=${settled}`);
    listDisputes();
    if (openNext && (!opened || !disputes.some((one) => one.item_id === opened.pair.pair_id))) {
      if (disputes.length) await openDispute(disputes[0].item_id);
      else closeDispute();
    }
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
  }
}

function listDisputes() {
  refill(find('.disputes'), ...disputes.map((one, n) => {
    const single = valuesOf(one.task) !== undefined;
    const votes = single ? Object.values(one.values) : [one.for_left, one.for_neither, one.for_right];
    const given = single ? givenValues(one) : say('disputes.votes', { left: one.for_left, right: one.for_right, neither: one.for_neither });
    const about = say(`disputes.about.${single && ['side', 'tie'].includes(one.about) ? one.task : one.about}`, { n: one.skips });
    const chosen = opened && opened.pair.pair_id === one.item_id;
    return make('li', {}, make('button', { type: 'button', 'data-dispute': one.item_id, 'aria-current': String(Boolean(chosen)) },
      make('span', { class: 'asked', dir: 'auto' }, `${n + 1}. ${one.prompt}`),
      blind && !settled ? null : voteBar(votes),
      blind && !settled ? null : make('span', { class: 'note' }, `${about}: `, given, one.settled_by ? ` · ${say('disputes.by', { name: nameOf(one.settled_by) })}` : '')));
  }));
}

// The raters' values of a single answer, each with its number of raters.
function givenValues({ task, values }) {
  const name = (value) => (task === 'rate' ? value : describeValue({ task, value }));
  return Object.entries(values).map(([value, n]) => say('disputes.value', { n, value: name(value) })).join(', ') || '–';
}

function closeDispute() {
  opened = null;
  find('.case').replaceChildren(make('p', { class: 'note' }, words[settled ? 'disputes.none_settled' : 'disputes.none']));
}

async function openDispute(id) {
  requested = id;
  const dispute = await call(`/api/lead/disputes/${encodeURIComponent(id)}`);
  if (requested !== id) return;
  opened = dispute;
  appeared();
  listDisputes();
  const { pair, judgments, adjudicated } = opened;
  const sides = ['left', 'right'].filter((side) => pair[side]);
  find('.case').replaceChildren(
    make('div', { class: 'turns', tabindex: '0', 'aria-label': words.prompt, role: 'group' }, ...pair.messages.map((message) => make('div', { class: 'turn' },
      make('span', { class: 'who' }, words[message.role]), make('div', { class: 'text', dir: 'auto', html: message.html })))),
    make('div', { class: pair.right ? 'sides' : 'sides alone' }, ...sides.map((side) => make('div', { class: pair.right ? `side-${side}` : '', tabindex: '0', role: 'group', 'aria-label': pair.right ? say('answer', { letter: side === 'left' ? 'A' : 'B' }) : words.answered },
      make('h3', {}, pair.right ? (side === 'left' ? 'A' : 'B') : words.answered), make('div', { class: 'text', dir: 'auto', html: pair[side].html })))),
    blind && !adjudicated ? make('p', { class: 'note' }, words['sample.hidden']) : make('div', { class: 'said' }, make('h3', {}, words['disputes.said']), make('table', { class: 'plain-table' }, make('tbody', {}, ...judgments.map(vote)))),
    adjudicated ? make('p', { class: 'note' }, say('disputes.earlier', { answer: describe(adjudicated, opened.pair.left.id), name: nameOf(adjudicated.rater_id) }), ' ', make('button', { type: 'button', class: 'plain', 'data-unsettle': pair.pair_id }, words['items.unsettle'])) : make('span'),
    make('div', { class: 'answering' },
      make('input', { name: 'rationale', maxlength: '4000', dir: 'auto', 'data-keep': `settle/${pair.pair_id}`, placeholder: words['disputes.reason'], 'aria-label': words['disputes.reason'] }),
      pair.task === 'review' ? make('textarea', { name: 'edited', rows: '8', dir: 'auto', hidden: true, 'data-keep': `edit/${pair.pair_id}`, 'aria-label': words['disputes.edited'] }, pair.left.text) : '',
      make('div', { class: pair.right ? 'bar7' : 'bar7 alone' }, ...(pair.right ? comparing() : valuing(pair.task)),
        make('button', { type: 'button', 'data-next': true }, make('kbd', {}, 'N'), words['disputes.next'])),
      make('span', { class: 'note' }, pair.right ? words['disputes.hint'] : say('disputes.hint.single', { n: valuesOf(pair.task).length }))),
  );
  giveBack(find('.case'));
  drawMedia(find('.case'));
}

// The buttons that settle a pair.
function comparing() {
  return [...[-3, -2, -1, 0, 1, 2, 3].map((value) => make('button', { type: 'button', 'data-answer': value, class: value < 0 ? 'left' : value ? 'right' : '' },
    make('kbd', {}, String(value + 4)), words[`scale.${value}`])),
  make('button', { type: 'button', 'data-both_bad': true }, make('kbd', {}, 'B'), words.both_bad)];
}

// The buttons that settle a single answer.
function valuing(task) {
  return valuesOf(task).map(([value, name], n) => make('button', { type: 'button', 'data-value': value }, n < 9 ? make('kbd', {}, String(n + 1)) : null, task === 'rate' ? name.replace(/^\d+: /, '') : task === 'review' ? words[`review.${value}`] : name));
}

function vote(judgment) {
  return make('tr', {}, make('th', { scope: 'row' }, nameOf(judgment.rater_id)), make('td', {}, describe(judgment, opened.pair.left.id),
    judgment.task && judgment.edited_text !== null ? make('details', {}, make('summary', { class: 'note' }, words['items.edited']), make('div', { class: 'written', dir: 'auto' }, judgment.edited_text)) : null), make('td', {}, judgment.rationale));
}

// A value of a single answer. An edit is written first, and a rejection needs a reason.
function settleAs(value) {
  const edited = find('.case [name=edited]');
  const reason = find('.case [name=rationale]');
  if (value === 'edit' && edited.hidden) {
    edited.hidden = false;
    edited.focus();
  } else if (value === 'edit' && edited.value.trim() === opened.pair.left.text.trim()) {
    warn(words['disputes.unchanged'], 'lost');
    edited.focus();
  } else if (value === 'reject' && !reason.value.trim()) {
    warn(words['disputes.needs_reason'], 'lost');
    reason.focus();
  } else {
    warn('');
    settle({ value: opened.pair.task === 'rate' ? Number(value) : value, ...(value === 'edit' ? { edited_text: edited.value } : {}) });
  }
}

async function settle(answer) {
  if (desk.dataset.fresh) return;
  const settling = opened;
  opened = null; // a second press does nothing
  const body = { ...answer, pair_id: settling.pair.pair_id, replaces: settling.settled_seq, client_id: `settled-${Date.now()}`, rationale: find('.case [name=rationale]').value };
  if (!await change('/api/lead/adjudications', 'POST', body)) {
    opened = opened || settling;
    return;
  }
  for (const name of ['settle', 'edit']) forgetText(`${name}/${settling.pair.pair_id}`);
  if (blind) { // now the raters' answers are shown; N goes on
    await showDisputes(false);
    await openDispute(settling.pair.pair_id);
  } else await showDisputes();
  refresh();
}

async function drawSample(form) {
  const done = await change('/api/lead/disputes/sample', 'POST', { count: Number(form.elements.count.value) });
  if (!done) return;
  sent(form);
  warn(done.drawn ? '' : words['sample.none'], 'lost');
  await showDisputes();
  refresh();
}

desk.addEventListener('submit', (event) => {
  if (event.target.dataset.form === 'sample') drawSample(event.target);
});

find('[data-blind]').checked = blind;
find('[data-blind]').addEventListener('change', (event) => {
  blind = event.target.checked;
  keep('tiebreak-blind', String(blind), settings);
  opened = null;
  showDisputes();
});

function nextDispute() {
  const at = disputes.findIndex((one) => one.item_id === opened.pair.pair_id);
  if (!disputes.length) closeDispute();
  else look(disputes[(at + 1) % disputes.length].item_id);
}

function look(id) {
  openDispute(id).catch((error) => warn(error.status ? error.message : words.waiting, 'lost'));
}

function settleBy(button) {
  if (button.dataset.settled !== undefined) {
    settled = !settled;
    button.setAttribute('aria-pressed', String(settled));
    showDisputes();
    return;
  }
  if (button.dataset.dispute) look(button.dataset.dispute);
  else if (!opened) return;
  else if (button.dataset.answer !== undefined) settle({ answer: Number(button.dataset.answer) });
  else if (button.dataset.value !== undefined) settleAs(button.dataset.value);
  else if (button.dataset.both_bad !== undefined) settle({ both_bad: true });
  else if (button.dataset.next !== undefined) nextDispute();
}

document.addEventListener('keydown', (event) => {
  if (desk.dataset.view !== 'disputes' || !opened || event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest && event.target.closest('textarea, select')) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  if (event.target.closest && event.target.closest('input')) {
    if (event.key === 'Escape' || event.key === 'Enter') event.target.blur();
    return;
  }
  const key = keyOf(event).toLowerCase();
  const button = /^[1-9]$/.test(key) && !opened.pair.right ? all('.case [data-value]')[Number(key) - 1] : /^[1-7]$/.test(key) ? find(`.case [data-answer="${Number(key) - 4}"]`) : SETTLING_KEYS[key] && find(`.case ${SETTLING_KEYS[key]}`);
  if (!button) return;
  event.preventDefault();
  settleBy(button);
});

