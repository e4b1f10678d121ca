// Passages of an answer that a rater marks, with a label and a comment. A passage selected in the rendered text is located
// by the server, exactly or not at all; in the source its place is known. Offsets are in code points of the raw text.
const AFTER_SELECTING_MS = 150;
const LETTERS_OF_A_QUOTE = 80;
let spans = []; // {completion: its letter, start, end, label, comment, text, shown: [start, end] as rendered, or null}
let selected = null; // {letter, start, end, text}: as rendered, or {letter, raw: [start, end], text}
let selecting = 0; // the timer that waits for the end of a selection
let pointerIsDown = false;

const labels = () => props.value.spans;
const points = (text) => [...text].length;
const marker = find('.marker');

function layOutMarker() {
  marker.replaceChildren(...labels().map(({ label }, n) => make('button', { type: 'button', 'data-mark': n }, keycap(String(n + 1)), label)));
}

// --- selecting: by mouse or touch in the text, or by keys in the source

document.addEventListener('pointerdown', (event) => {
  pointerIsDown = true;
  if (selected && !marker.contains(event.target)) closeMarker();
});
document.addEventListener('pointerup', () => { pointerIsDown = false; lookAtSelection(); });
document.addEventListener('selectionchange', lookAtSelection);

function lookAtSelection() {
  clearTimeout(selecting);
  if (labels().length && current && !pointerIsDown) selecting = setTimeout(offerMarker, AFTER_SELECTING_MS);
}

function offerMarker() {
  const range = getSelection().rangeCount ? getSelection().getRangeAt(0) : null;
  const ends = range && !range.collapsed ? [range.startContainer, range.endContainer].map(paneAround) : [];
  if (!ends[0] || ends[0] !== ends[1]) { if (selected && !selected.raw) closeMarker(); return; }
  const before = document.createRange();
  before.setStart(ends[0], 0);
  before.setEnd(range.startContainer, range.startOffset);
  const whole = range.toString();
  const text = whole.trim();
  if (!text) return;
  const start = points(before.toString()) + points(whole) - points(whole.trimStart());
  openMarker({ letter: ends[0].parentElement.dataset.letter, start, end: start + points(text), text }, range.getBoundingClientRect());
}

const paneAround = (node) => (node.nodeType === Node.TEXT_NODE ? node.parentElement : node).closest('.answer > .text');

function openMarker(passage, box) {
  selected = passage;
  marker.hidden = false;
  const { width, height } = marker.getBoundingClientRect();
  marker.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, box.left))}px`;
  marker.style.top = `${Math.max(50, Math.min(innerHeight - height - 8, box.bottom + 6))}px`;
  if (mode !== 'mark') enter('mark');
}

function closeMarker() {
  selected = null;
  marker.hidden = true;
  if (mode === 'mark') enter('scale');
}

// --- marking

async function mark(n) {
  const label = labels()[n];
  const passage = selected;
  const pair = current;
  if (!label || !passage) return;
  closeMarker();
  try {
    const place = passage.raw ? { start: passage.raw[0], end: passage.raw[1] } : await locate(pair, passage);
    if (pair !== current) return;
    if (place.start === null) {
      openSource(passage.letter);
      flash(words['mark.source']);
      return;
    }
    getSelection().removeAllRanges();
    addSpan({ completion: passage.letter, start: place.start, end: place.end, label: label.name, comment: '', text: passage.text, shown: passage.raw ? null : [passage.start, passage.end] });
  } catch (error) {
    warn(error.refused ? error.message : words['mark.lost'], 'edit');
  }
}

function locate(pair, { letter, start, end, text }) {
  const path = `/api/passages/${encodeURIComponent(pair.pair_id)}`;
  return call(path, { method: 'POST', body: { answer: letter, start, end, text }, patience_ms: 10000 });
}

function addSpan(span) {
  spans = spans.filter((one) => one.completion !== span.completion || one.start !== span.start || one.end !== span.end || one.label !== span.label);
  spans.push(span);
  spans.sort((one, other) => one.start - other.start || one.end - other.end);
  drawSpans();
  changed();
}

function removeSpan(n) {
  spans.splice(n, 1);
  drawSpans();
  changed();
}

function drawSpans() {
  for (const pane of all('.answer')) {
    const rows = spans.map((span, n) => (span.completion === pane.dataset.letter ? rowOfSpan(span, n) : null)).filter(Boolean);
    const list = pane.querySelector('.spans') || (rows.length ? pane.appendChild(make('ul', { class: 'spans', 'aria-label': say('mark.list', { letter: pane.dataset.letter }) })) : null);
    if (list) { list.replaceChildren(...rows); list.hidden = !rows.length; }
  }
  highlightSpans();
}

function rowOfSpan(span, n) {
  const label = labels().find(({ name }) => name === span.label) || { label: span.label, value: 0 };
  const quoted = [...span.text].slice(0, LETTERS_OF_A_QUOTE).join('') + (points(span.text) > LETTERS_OF_A_QUOTE ? '…' : '');
  const comment = make('input', { 'data-comment': n, maxlength: 1000, dir: 'auto', placeholder: words['mark.comment'], 'aria-label': say('mark.comment.on', { text: quoted }) });
  comment.value = span.comment;
  return make('li', { class: `span value${label.value}` }, make('strong', {}, label.label), make('q', { dir: 'auto' }, quoted), comment,
    make('button', { type: 'button', class: 'plain', 'data-unmark': n, 'aria-label': say('mark.remove', { text: quoted }) }, '×'));
}

find('.answers').addEventListener('input', ({ target }) => {
  if (target.dataset.comment) spans[target.dataset.comment].comment = target.value;
});

// The marked passages in the rendered text, without touching it.
function highlightSpans() {
  if (!window.Highlight) return;
  for (const value of [-1, 0, 1]) {
    const ranges = spans.filter(({ shown, label }) => shown && (labels().find(({ name }) => name === label) || { value: 0 }).value === value).map(rangeOf).filter(Boolean);
    if (ranges.length) CSS.highlights.set(`span${value}`, new Highlight(...ranges));
    else CSS.highlights.delete(`span${value}`);
  }
}

// A rendered passage as a range of the page.
function rangeOf({ completion, shown: [start, end] }) {
  const texts = document.createTreeWalker(paneOf(completion).querySelector('.text'), NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  let at = 0;
  let begun = false;
  while (texts.nextNode()) {
    const { data } = texts.currentNode;
    const next = at + points(data);
    const unit = (point) => [...data].slice(0, point - at).join('').length;
    if (!begun && start < next) { range.setStart(texts.currentNode, unit(start)); begun = true; }
    if (begun && end <= next) { range.setEnd(texts.currentNode, unit(end)); return range; }
    at = next;
  }
  return null;
}

const spansToSend = () => spans.map(({ completion, start, end, label, comment }) => ({ completion, start, end, label, comment: storable(comment) }));

function restoreSpans(draft) {
  spans = (draft.spans || []).map((span) => ({ shown: null, ...span, text: span.text || passageOf(span) }));
  selected = null;
  marker.hidden = true;
  drawSpans();
}

const passageOf = ({ completion, start, end }) => [...textOf(completion)].slice(start, end).join('');

// --- the source: the raw text in a field, where keys select; it takes no other input

const sourceOf = (letter) => paneOf(letter).querySelector('.source');
const openedSource = () => lettersShown().find((letter) => sourceOf(letter));

function toggleSource(letter) {
  if (sourceOf(letter)) closeSource(letter);
  else openSource(letter);
}

function openSource(letter) {
  if (openedSource()) closeSource(openedSource());
  if (opened() === letter) toggleEdit(letter);
  const pane = paneOf(letter);
  const field = make('textarea', { class: 'source', dir: 'auto', spellcheck: 'false', 'aria-label': say('mark.field', { letter }) });
  field.value = textOf(letter);
  pane.querySelector('.text').hidden = true;
  pane.querySelector('.text').after(field);
  pane.querySelector('[data-source]').setAttribute('aria-pressed', 'true');
  for (const kind of ['beforeinput', 'paste', 'drop', 'cut']) field.addEventListener(kind, (event) => event.preventDefault());
  field.addEventListener('keydown', (event) => keyInSource(event, letter));
  field.addEventListener('pointerup', () => setTimeout(() => offerSource(letter)));
  field.focus();
  field.setSelectionRange(0, 0);
  field.scrollTop = 0;
  flash(words['mark.how']);
}

function closeSource(letter) {
  const pane = paneOf(letter);
  sourceOf(letter).remove();
  pane.querySelector('.text').hidden = false;
  pane.querySelector('[data-source]').setAttribute('aria-pressed', 'false');
}

// The next answer's source; after the last one, none.
function nextSource() {
  const letters = lettersShown();
  const open = openedSource();
  if (open) closeSource(open);
  const next = letters[open ? letters.indexOf(open) + 1 : 0];
  if (next) openSource(next);
  else document.activeElement.blur();
}

function keyInSource(event, letter) {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = pressedKey(event);
  const passage = selectedIn(letter);
  if (/^[1-9]$/.test(key) && passage) { selected = passage; mark(Number(key) - 1); }
  else if (key === 'Escape') closeSource(letter);
  else if (key.toLowerCase() === 'm') nextSource();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function offerSource(letter) {
  const passage = sourceOf(letter) && selectedIn(letter);
  if (passage) openMarker(passage, sourceOf(letter).getBoundingClientRect());
}

function selectedIn(letter) {
  const field = sourceOf(letter);
  if (field.selectionStart === field.selectionEnd) return null;
  const raw = [rawOffset(textOf(letter), field.selectionStart), rawOffset(textOf(letter), field.selectionEnd)];
  return { letter, raw, text: passageOf({ completion: letter, start: raw[0], end: raw[1] }) };
}

// A field counts UTF-16 units and each line break as one; the raw text's code points may have \r\n.
function rawOffset(text, units) {
  let at = 0;
  let count = 0;
  for (let unit = 0; unit < units && at < text.length; count += 1) {
    if (text[at] === '\r' && text[at + 1] === '\n') { at += 1; continue; }
    const width = text.codePointAt(at) > 0xffff ? 2 : 1;
    at += width;
    unit += width;
  }
  return count;
}
