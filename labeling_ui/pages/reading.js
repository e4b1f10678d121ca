// Ways to read a pair: size of the text, wrapped code, panes that scroll together, words that differ.
// The first three are kept for each rater.
const SIZES = [13, 14, 15, 16, 17, 18, 20, 22, 25, 28];
const view = { size: 16, wrap: false, linked: false };
const viewKey = () => `tiebreak-view:${raterId}`;

function applyView() {
  desk.style.setProperty('--size', `${view.size}px`);
  desk.style.setProperty('--scale', view.size / 15); // of the panes' width, which counts in the page's own size
  desk.classList.toggle('wrap', view.wrap);
}

function changeView(changes) {
  Object.assign(view, changes);
  applyView();
  keep(viewKey(), JSON.stringify(view), settings);
}

function restoreView() {
  const kept = parsed(settings.getItem(viewKey())) || {};
  if (SIZES.includes(kept.size)) Object.assign(view, { size: kept.size, wrap: Boolean(kept.wrap), linked: Boolean(kept.linked) });
  applyView();
}

function resize(steps) {
  const at = SIZES.indexOf(view.size) + steps;
  changeView({ size: SIZES[Math.max(0, Math.min(SIZES.length - 1, at))] });
}

function toggleView(name) {
  changeView({ [name]: !view[name] });
  flash(say(`view.${name}.${view[name] ? 'on' : 'off'}`, { key: labelOf(name === 'linked' ? 'l' : 'x') }));
}

// --- code is copied by a button, which has no text of its own: the texts stay as they are
function addCopyButtons() {
  for (const code of all('.stage .text pre:not(.plain)')) {
    const box = make('div', { class: 'code' });
    code.replaceWith(box);
    box.append(code, make('button', { type: 'button', class: 'copy', 'data-copy': true, title: words.copy, 'aria-label': words.copy }));
  }
}

async function copyCode(button) {
  const text = button.parentElement.querySelector('pre').textContent;
  try {
    await navigator.clipboard.writeText(text); // only over HTTPS and on this machine
  } catch (error) {
    const field = button.parentElement.appendChild(make('textarea', { 'aria-hidden': 'true' }));
    field.value = text;
    field.select();
    document.execCommand('copy');
    field.remove();
  }
  flash(words.copied);
}

// --- a line that stays for three seconds
const FLASH_MS = 3000;
let flashTimer = 0;

function flash(text, shownMs = FLASH_MS) {
  find('.saved').textContent = text;
  clearTimeout(flashTimer);
  flashTimer = setTimeout(() => { find('.saved').textContent = ''; }, shownMs);
}

// --- panes that scroll together, each by its share of the way
let leader = null; // the pane that the rater scrolls
let leaderTimer = 0;

function follow(pane) {
  if (!view.linked || (leader && leader !== pane)) return;
  leader = pane;
  clearTimeout(leaderTimer);
  leaderTimer = setTimeout(() => { leader = null; }, 150);
  const way = (one) => one.scrollHeight - one.clientHeight;
  const share = way(pane) > 0 ? pane.scrollTop / way(pane) : 0;
  for (const other of all('.answer > .text')) if (other !== pane) other.scrollTop = share * way(other);
}

find('.answers').addEventListener('scroll', (event) => {
  if (event.target.matches('.answer > .text')) follow(event.target);
}, { capture: true, passive: true });

// --- words that differ between two answers, marked without touching the texts
const MOST_WORDS = 6000;
const MOST_EDITS = 600;
let differing = false;

function hideDifferences() {
  if (differing) CSS.highlights.delete('differs');
  differing = false;
}

function toggleDifferences() {
  if (differing) { hideDifferences(); return; }
  if (ranks() || isSingle() || !window.Highlight) return;
  const [left, right] = all('.answer > .text').map(wordsIn);
  const common = Math.max(left.length, right.length) <= MOST_WORDS ? commonWords(left, right) : null;
  if (!common) { flash(words['differences.many']); return; }
  const ranges = [...left.filter((_, n) => !common[0].has(n)), ...right.filter((_, n) => !common[1].has(n))].map(({ node, start, end }) => {
    const range = document.createRange();
    range.setStart(node, start);
    range.setEnd(node, end);
    return range;
  });
  CSS.highlights.set('differs', new Highlight(...ranges));
  differing = true;
  flash(ranges.length ? say('differences', { n: ranges.length, key: labelOf('d') }) : words['differences.none']);
}

// The words of a rendered text, with their places.
function wordsIn(pane) {
  const found = [];
  const texts = document.createTreeWalker(pane, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    for (const match of texts.currentNode.data.matchAll(/[\p{L}\p{N}\p{M}_]+|[^\s\p{L}\p{N}\p{M}_]/gu)) {
      found.push({ word: match[0], node: texts.currentNode, start: match.index, end: match.index + match[0].length });
    }
  }
  return found;
}

// Positions of the words that two texts share in order: Myers 1986, the shortest edit script; null beyond MOST_EDITS.
function commonWords(left, right) {
  const reached = [];
  let furthest = new Map([[1, 0]]);
  for (let edits = 0; edits <= Math.min(MOST_EDITS, left.length + right.length); edits += 1) {
    for (let k = -edits; k <= edits; k += 2) {
      const down = k === -edits || (k !== edits && furthest.get(k - 1) < furthest.get(k + 1));
      let x = down ? furthest.get(k + 1) : furthest.get(k - 1) + 1;
      while (x < left.length && x - k < right.length && left[x].word === right[x - k].word) x += 1;
      furthest.set(k, x);
      if (x >= left.length && x - k >= right.length) return traceBack(left, right, [...reached, furthest]);
    }
    reached.push(furthest);
    furthest = new Map(furthest);
  }
  return null;
}

function traceBack(left, right, reached) {
  const shared = [new Set(), new Set()];
  let [x, y] = [left.length, right.length];
  for (let edits = reached.length - 1; edits >= 0; edits -= 1) {
    const before = edits ? reached[edits - 1] : new Map([[1, 0]]);
    const k = x - y;
    const down = k === -edits || (k !== edits && before.get(k - 1) < before.get(k + 1));
    const from = down ? before.get(k + 1) : before.get(k - 1) + 1;
    while (x > from && x > 0 && y > 0) { x -= 1; y -= 1; shared[0].add(x); shared[1].add(y); }
    if (edits) [x, y] = down ? [x, y - 1] : [x - 1, y];
  }
  return shared;
}

