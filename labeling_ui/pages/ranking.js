// Ranking of more than two answers, best to worst, by number keys or dragging; equal answers share a place.
let order = []; // groups of letters, best first

const letterOf = (id) => LETTERS[current.answers.findIndex((one) => one.id === id)];
const idOf = (letter) => current.answers[LETTERS.indexOf(letter)].id;

function place(letter, equal = false) {
  if (order.flat().includes(letter)) return;
  if (equal && order.length) order[order.length - 1].push(letter);
  else order.push([letter]);
  tieNext = false;
  reordered();
}

let tieNext = false; // "=" was pressed: the next answer shares the last one's place

// The order with one answer moved to first place, alone.
const withFirst = (letter) => [[letter], ...order.map((group) => group.filter((other) => other !== letter)).filter((group) => group.length)];

function putFirst(letter) {
  order = withFirst(letter);
  drawOrder();
}

function takeBack() {
  if (!order.length) return;
  order[order.length - 1].pop();
  order = order.filter((group) => group.length);
  tieNext = false;
  reordered();
}

function reordered() {
  drawOrder();
  changed();
}

function flatOrder() {
  return order.flatMap((group) => group.map((letter, n) => ({ letter, equal: n > 0 })));
}

function fromFlat(flat) {
  order = [];
  flat.forEach(({ letter, equal }, n) => { if (equal && n) order[order.length - 1].push(letter); else order.push([letter]); });
}

function drawOrder() {
  if (!current || !ranks()) return;
  const letters = lettersShown();
  const placed = order.flat();
  const chips = flatOrder().flatMap(({ letter, equal }, n) => [
    n === 0 ? null : make('button', { type: 'button', class: 'relation', 'data-relation': n, 'aria-label': words[equal ? 'ranking.equal' : 'ranking.better'] }, equal ? '=' : '›'),
    chip(letter),
  ]).filter(Boolean);
  if (tieNext) chips.push(make('span', { class: 'relation' }, '='));
  find('.order').replaceChildren(...chips);
  find('.tray').replaceChildren(...letters.filter((letter) => !placed.includes(letter)).map(chip));
  find('.ranking .hint').textContent = placed.length ? '' : words['ranking.hint'];
  find('.ranking .hint').hidden = placed.length > 0;
  find('[data-rank]').disabled = placed.length < letters.length;
  find('[data-clear]').hidden = !placed.length;
  for (const pane of all('.answer')) {
    const at = order.findIndex((group) => group.includes(pane.dataset.letter));
    pane.querySelector('.note').textContent = at < 0 ? '' : say('ranking.badge', { place: 1 + order.slice(0, at).flat().length });
    pane.classList.toggle('placed', at >= 0);
  }
}

function chip(letter) {
  const at = order.findIndex((group) => group.includes(letter));
  const label = at < 0 ? say('ranking.place', { letter }) : say('ranking.chip', { letter, place: 1 + at });
  const key = at < 0 ? keycap(String(1 + LETTERS.indexOf(letter))) : null; // the key that places it
  return make('button', { type: 'button', class: 'chip', 'data-chip': letter, 'aria-label': label }, letter, key);
}

// Move a chip to `at` in the flat order, where it shares its place with no other.
function moveChip(letter, at) {
  const flat = flatOrder();
  const from = flat.findIndex((one) => one.letter === letter);
  if (from >= 0) {
    const [moved] = flat.splice(from, 1);
    if (!moved.equal && flat[from]) flat[from].equal = false; // the rest of its group keeps the place
  }
  flat.splice(at, 0, { letter, equal: false });
  if (flat[at + 1]) flat[at + 1].equal = false; // dropped into a group, it splits the group
  fromFlat(flat);
  reordered();
}

function chipKey(letter, key) {
  const at = flatOrder().findIndex((one) => one.letter === letter);
  const last = order.flat().length - (at < 0 ? 0 : 1);
  const to = at < 0 ? last : Math.max(0, Math.min(last, at + (key === 'ArrowLeft' ? -1 : 1)));
  moveChip(letter, to);
  find(`[data-chip=${letter}]`).focus();
}

let dragged = null; // {letter, x, moved}

find('.ranking').addEventListener('pointerdown', (event) => {
  const pressed = event.target.closest('[data-chip]');
  if (pressed && event.button === 0) dragged = { letter: pressed.dataset.chip, x: event.clientX, moved: false };
});

document.addEventListener('pointermove', (event) => {
  if (!dragged || (!dragged.moved && Math.abs(event.clientX - dragged.x) < 5)) return;
  dragged.moved = true;
  const others = all('.order [data-chip]').filter((one) => one.dataset.chip !== dragged.letter);
  const at = others.filter((one) => { const box = one.getBoundingClientRect(); return box.left + box.width / 2 < event.clientX; }).length;
  if (order.flat().indexOf(dragged.letter) !== at) moveChip(dragged.letter, at);
  find(`[data-chip=${dragged.letter}]`).classList.add('dragged');
});

document.addEventListener('pointerup', () => {
  if (!dragged) return;
  const { letter, moved } = dragged;
  dragged = null;
  for (const one of all('.dragged')) one.classList.remove('dragged');
  if (!moved) place(letter, tieNext); // a press without a drag
});

