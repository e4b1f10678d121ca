// The pair on the screen: its texts, and a judgment's details (edit, reason, flags, criteria).
// All texts arrive as HTML that the server sanitised.
const MAX_EDITED_CHARACTERS = 100000; // the server's limit
const SAVE_AFTER_MS = 800; // so that a draft is on the server within two seconds of a change
const IDLE_AFTER_MS = 60000;
const BREAK_MS = 300000; // so long without a move is a break
const BREAK_SHOWN_MS = 20000;

let current = null;
const ranks = () => current.answers.length > 2;
const isSingle = () => current.answers.length === 1;
const isReview = () => current.task === 'review';
let mode = 'scale'; // meaning of the number keys: scale, aspect, flags or skip
let aspectAt = 0;
let drafted = null; // the button of the undone answer: Enter keeps it
let saveTimer = 0;
let unsaved = false; // something was typed that the server does not have
let shownAt = 0;
let idleMs = 0;
let lastMove = 0;

function show(pair) {
  current = pair;
  desk.dataset.pair = pair ? pair.pair_id : '';
  for (const part of ['.prompt', '.flagged', '.answers', '.dock']) find(part).hidden = !pair;
  find('.rest').hidden = Boolean(pair);
  find('.compose').hidden = true;
  desk.setAttribute('aria-busy', 'false');
  if (!pair) { find('.title').textContent = props.value.title; return; }
  hideDifferences();
  spans = [];
  selected = null;
  marker.hidden = true;
  find('.flagged').hidden = !pair.flagged?.length;
  find('.flagged').textContent = say('flagged', { reasons: (pair.flagged || []).join('; ') });
  const prompt = find('.prompt');
  prompt.replaceChildren(...pair.messages.map(turn));
  find('.answers').replaceChildren(...pair.answers.map(answer));
  find('.answers').style.setProperty('--columns', pair.answers.length);
  drawMedia(find('.stage'));
  addCopyButtons();
  desk.dataset.task = pair.task;
  find('.title').textContent = isSingle() ? words[`title.${pair.task}`] : props.value.title;
  find('.scale').hidden = ranks() || isSingle();
  find('.values').hidden = !isSingle();
  if (isSingle()) layOutValues(pair.task);
  if (isReview()) find('[data-step=\'"edit"\']').disabled = paneOf('A').querySelector('.edit').disabled; // with images, say
  find('[data-do=both_bad]').hidden = isSingle();
  find('.reason').hidden = !props.value.reason && !isReview(); // a rejection needs one
  reason.placeholder = words[isReview() && props.value.reasons !== 'always' ? 'reason.review' : reasonNeeded()];
  find('.ranking').hidden = !ranks();
  layOutAsked(lettersShown());
  find('[data-do=both_bad] span').textContent = words[ranks() ? 'all_bad' : 'both_bad'];
  find('.stage').scrollTop = 0;
  const last = prompt.lastElementChild; // the last turn: its beginning is scrolled into view
  prompt.scrollTop = last ? last.offsetTop - prompt.firstElementChild.offsetTop : 0;
  const draft = keptDraft(pair);
  const begun = draft || pair.draft || {};
  restore(begun);
  unfold(Boolean(begun.rationale || begun.flags?.length || Object.keys(begun.aspects || {}).length)); // else the pair is seen first
  unsaved = false;
  if (draft) changed();
  enter('scale');
  shownAt = lastMove = performance.now();
  idleMs = 0;
  appeared();
  // A button that was pressed by Enter or Space would take the next press too.
  if (find('.dock').contains(document.activeElement)) find('.stage').focus({ preventScroll: true });
}

function turn(message) {
  return make('div', { class: `turn ${message.role}`, dir: directionOf(message.content) },
    make('span', { class: 'who' }, words[message.role]),
    make('div', { class: 'text', html: message.html }));
}

// The direction of a text's first letter.
function directionOf(text) {
  const [letter] = /\p{L}/u.exec(text) || ['a'];
  return RIGHT_TO_LEFT.test(letter) ? 'rtl' : 'ltr';
}

function answer({ text, html }, n) {
  const letter = LETTERS[n];
  const side = isSingle() ? 'only' : n === 0 ? 'left' : n === 1 ? 'right' : letter;
  const editable = text.length <= MAX_EDITED_CHARACTERS && (!isSingle() || isReview()) && !html.includes("<figure class='media'");
  return make('article', { class: 'answer', 'data-side': side, 'data-letter': letter, 'aria-label': say('answer', { letter }) },
    make('header', {}, make('h2', {}, isSingle() ? words.answered : letter),
      ranks() ? make('button', { type: 'button', class: 'place', 'aria-label': say('ranking.place', { letter }) }, keycap(String(n + 1))) : null,
      make('span', { class: 'note' }),
      props.value.spans.length ? make('button', { type: 'button', class: 'view', 'data-source': letter, 'aria-pressed': 'false', 'aria-label': say('source.aria', { letter }) }, words.source) : null,
      make('button', { type: 'button', class: 'edit', 'aria-label': say('edit.aria', { letter }), disabled: !editable, hidden: isSingle() && !isReview() }, words.edit)),
    make('div', { class: 'text', tabindex: '0', dir: directionOf(text), html }),
    make('textarea', { 'aria-label': say('edit.field', { letter }), maxlength: MAX_EDITED_CHARACTERS, dir: 'auto', hidden: true }));
}

// --- modes of the number keys

function enter(next, at = 0) {
  mode = next;
  aspectAt = at;
  armedFlag = -1;
  desk.dataset.mode = next;
  find('.skipping').hidden = next !== 'skip';
  find('.judging').hidden = next === 'skip';
  if (next === 'aspect' || next === 'flags') unfold(true);
  const armed = next === 'aspect' ? fields()[at] : null;
  for (const field of fields()) field.classList.toggle('armed', field === armed);
  for (const row of all('.aspect')) row.classList.toggle('armed', row.contains(armed));
  find('.question').textContent = armed ? armed.getAttribute('aria-label') : '';
  markFlags();
}

// In a small window, aspects, flags and reason are folded away until they are needed.
function unfold(open) {
  desk.classList.toggle('unfolded', open);
  find('[data-more]').setAttribute('aria-expanded', String(open));
}

// --- the bar and the reasons of a skip

// What the field for a reason says; only a pair can be "much better".
function reasonNeeded() {
  const { reasons } = props.value;
  if (reasons === 'always') return 'reason.always';
  return reasons === 'strong' && current && !isSingle() && !ranks() ? 'reason.strong' : 'reason';
}

function layOutDock() {
  find('.reason').hidden = !props.value.reason;
  find('.links').hidden = !props.value.links;
  reason.placeholder = words[reasonNeeded()];
  find('.scale').append(...[-3, -2, -1, 0, 1, 2, 3].map((value) => make('button', {
    type: 'button', 'data-answer': value, class: value === 0 ? 'tie' : value < 0 ? 'left' : 'right', 'aria-label': words[`scale.${value}`],
  }, keycap(String(value + 4)), make('span', { class: 'long' }, words[`scale.${value}`]), make('span', { class: 'short' }, words[`short.${value}`]), make('span', { class: 'tiny' }, words[`tiny.${value}`]))));
  find('.skipping').append(...props.value.skip_reasons.map((name, n) => make('button', { type: 'button', 'data-reason': name },
    keycap(String(n + 1)), make('span', {}, words[`skip.${name}`]))),
    make('button', { type: 'button', 'data-reason': '' }, make('kbd', {}, '↵'), make('span', {}, words['skip.plain'])),
    make('button', { type: 'button', 'data-back': true }, make('kbd', {}, 'Esc'), make('span', {}, words.back)));
}

// The steps of a rating, the verdicts of a review, or the classes: one button each, by number.
function layOutValues(task) {
  const steps = {
    rate: () => props.value.ratings.map((name, n) => [n + 1, name]),
    review: () => ['accept', 'edit', 'reject'].map((name) => [name, words[`review.${name}`]]),
    classify: () => props.value.classes.map((name) => [name, name]),
  }[task]();
  find('.values').replaceChildren(...steps.map(([value, name], n) => make('button', { type: 'button', 'data-step': JSON.stringify(value) },
    keycap(String(n + 1)), make('span', { dir: 'auto' }, name))));
}

function restore(draft) {
  restoreAsked(draft);
  restoreSpans(draft);
  order = ranks() ? (draft.ranking || []).map((group) => group.map(letterOf)) : [];
  drawOrder();
  drafted = draft.both_bad ? find('[data-do=both_bad]') : draft.skip ? find(`[data-reason="${draft.skip_reason}"]`)
    : draft.value ? find(`[data-step="${CSS.escape(JSON.stringify(draft.value))}"]`) : Number.isInteger(draft.answer) ? find(`[data-answer="${draft.answer}"]`) : null;
  const chosen = draft.skip ? find('[data-skip]') : drafted;
  for (const button of all('.judging button')) button.classList.toggle('chosen', button === chosen);
  if (draft.edited_text && best(draft)) edit(best(draft), draft.edited_text);
}

// --- editing the best answer in place

const paneOf = (letter) => find(`[data-letter=${letter}]`);
const editor = (letter) => paneOf(letter).querySelector('textarea');
const textOf = (letter) => current.answers[LETTERS.indexOf(letter)].text;
const opened = () => lettersShown().find((letter) => !editor(letter).hidden);
const lettersShown = () => current.answers.map((_, n) => LETTERS[n]);

function edit(letter, text) {
  const pane = paneOf(letter);
  editor(letter).hidden = text === null;
  pane.querySelector('.text').hidden = text !== null;
  pane.querySelector('.edit').textContent = words[text === null ? 'edit' : 'edit.drop'];
  if (!ranks()) pane.querySelector('.note').textContent = text === null ? '' : say(isSingle() ? 'edit.hint.single' : 'edit.hint', { letter });
  editor(letter).value = text === null ? '' : text;
}

function toggleEdit(letter) {
  if (paneOf(letter).querySelector('.edit').disabled) return;
  if (sourceOf(letter)) closeSource(letter);
  if (!editor(letter).hidden) edit(letter, null);
  else {
    if (opened()) edit(opened(), null);
    edit(letter, textOf(letter));
    if (ranks()) putFirst(letter);
    editor(letter).focus();
    editor(letter).setSelectionRange(0, 0);
    editor(letter).scrollTop = 0;
  }
  changed();
}

function edited() {
  const letter = opened();
  if (!letter) return undefined;
  const before = textOf(letter).replace(/\r\n?/g, '\n'); // as a text field normalises it
  return editor(letter).value.trim() && editor(letter).value !== before ? letter : undefined;
}

// The letter of the answer that a vote prefers to all others.
function best(vote) {
  if (isSingle()) return isReview() && vote.value === 'edit' ? 'A' : undefined;
  if (vote.ranking) return vote.ranking[0].length === 1 ? letterOf(vote.ranking[0][0]) : undefined;
  return vote.answer ? (vote.answer < 0 ? 'A' : 'B') : undefined;
}

// --- drafts

// Text that every database can store: no NUL, no surrogate half left by a field's length limit.
const storable = (text) => (text.toWellFormed ? text.toWellFormed() : text).replaceAll('\0', '');

function details() {
  const letter = edited();
  return {
    rationale: storable(reason.value),
    flags: [...new Set([...all('.flag input:checked').map((box) => box.value), ...carried])],
    answer_flags: answerFlags(),
    aspects: aspects(),
    criteria: criteria(),
    spans: spansToSend(),
    links: linkLines().filter(isAddress).slice(0, MOST_LINKS),
    edited_text: letter ? storable(editor(letter).value) : null,
  };
}

function draftOf() {
  const letter = edited();
  const ranking = letter && ranks() ? withFirst(letter) : order;
  return {
    ...details(),
    answer: letter && !ranks() && !isSingle() ? (letter === 'A' ? -1 : 1) : null,
    value: letter && isSingle() ? 'edit' : null,
    ranking: ranking.length ? ranking.map((group) => group.map(idOf)) : null,
  };
}

function changed() {
  clearWarning('edit');
  unsaved = Boolean(current);
  if (!current || amending) return;
  current.draft = draftOf();
  if (!saveTimer) saveTimer = setTimeout(saveDraft, SAVE_AFTER_MS);
}

async function saveDraft() {
  clearTimeout(saveTimer);
  saveTimer = 0;
  const pair = current;
  if (!pair || !pair.draft || amending) return;
  try {
    const saved = pair.draft;
    await call(`/api/drafts/${encodeURIComponent(pair.pair_id)}`, { method: 'PUT', body: saved });
    if (pair.draft === saved) forgetDraft(pair);
    if (find('.banner').dataset.kind === 'draft') warn('');
  } catch (error) {
    if (error.refused || pair !== current) return;
    warn(words['lost.draft'], 'draft');
    saveTimer = saveTimer || setTimeout(saveDraft, 1000);
  }
}

// What was typed and not yet saved, when the page is left: by a closed window, or because the session has ended.
const DRAFT = 'tiebreak-draft:';
const KEPT_MS = 86400000;
const draftKey = (pair) => `${DRAFT}${raterId}:${pair.pair_id}`;

function keepDraft() {
  if (current && unsaved) keep(draftKey(current), JSON.stringify({ ...draftOf(), at_ms: Date.now() }));
}

function keptDraft(pair) {
  const draft = parsed(storage.getItem(draftKey(pair)));
  return draft && draft.at_ms > Date.now() - KEPT_MS ? draft : null;
}

function forgetDraft(pair) {
  storage.removeItem(draftKey(pair));
  if (pair === current) unsaved = false;
}

window.addEventListener('pagehide', keepDraft);

// --- active and idle time

let workingSince = performance.now(); // since the last break
const breakAfter = props.value.break_after_minutes * 60000; // 0: none is suggested

function moved() {
  const now = performance.now();
  if (now - lastMove > IDLE_AFTER_MS) idleMs += now - lastMove;
  if (now - lastMove > BREAK_MS) workingSince = now;
  else if (breakAfter && now - workingSince > breakAfter) suggestBreak(now);
  lastMove = now;
}

// Once for each stretch of work; the next judgment's own message replaces it.
function suggestBreak(now) {
  flash(say('break', { minutes: Math.round((now - workingSince) / 60000) }), BREAK_SHOWN_MS);
  workingSince = now;
}

for (const kind of ['mousemove', 'keydown', 'scroll', 'pointerdown']) {
  document.addEventListener(kind, moved, { capture: true, passive: true });
}

document.addEventListener('visibilitychange', () => {
  const now = performance.now();
  if (!document.hidden) idleMs += now - lastMove; // the page was hidden
  lastMove = now;
});

function timeSpent() {
  const whole = performance.now() - shownAt;
  const idle = Math.min(whole, idleMs);
  const seconds = (ms) => Math.round(ms / 100) / 10;
  return { seconds_active: seconds(whole - idle), seconds_idle: seconds(idle) };
}

