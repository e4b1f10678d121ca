// What is asked beside the vote: aspects and the campaign's criteria, flags, a reason and links. Each criterion has one
// field, or one for each answer; the digits answer the field that is armed.
const reason = find('[name=rationale]');
const links = find('[name=links]');
const BAR = [['-3', '◂'], ['-2', '·'], ['-1', '·'], ['0', '='], ['1', '·'], ['2', '·'], ['3', '▸']];
const STARS = 5;
let laidOut = ''; // letters of the answers for which the fields are there
let armedFlag = -1; // the flag whose answers the letter keys choose
let carried = []; // flags of an earlier judgment that does not say which answer they are about
let heldBack = null; // {vote, button}: a vote that waits for what is required

const byName = ({ name }) => ({ name, label: words[`aspect.${name}`], question: '', scale: 'bar', choices: [], each: false, required: false });
const questions = () => [...props.value.aspects.map((name) => ({ ...byName({ name }), aspect: true })), ...props.value.criteria];
const fields = () => all('.field');

function layOutAsked(letters) {
  if (laidOut === letters.join('')) return;
  laidOut = letters.join('');
  const rows = questions().filter((one) => one.scale !== 'bar' || letters.length === 2).map((one) => rowOf(one, letters));
  find('.aspects').replaceChildren(...(rows.length ? [keycap('a')] : []), ...rows);
  find('.aspects').hidden = !rows.length;
  find('.flags').replaceChildren(keycap('f'), ...props.value.flags.map((flag, n) => flagOf(flag, n, letters)));
}

function rowOf(one, letters) {
  const of = one.each ? letters : [''];
  return make('div', { class: 'aspect', 'data-scale': one.scale, title: one.question || null },
    make('span', { class: 'name' }, one.label, one.required ? make('span', { class: 'needed', title: words.required }, '*') : null),
    ...of.map((letter) => fieldOf(one, letter)));
}

function fieldOf(one, letter) {
  const label = `${one.question || one.label}${letter ? `, ${say('answer', { letter })}` : ''}`;
  const attributes = {
    class: 'field', role: 'radiogroup', 'aria-label': label, 'aria-required': one.required ? 'true' : null,
    'data-name': one.name, 'data-of': letter || null, 'data-aspect': one.aspect ? one.name : null, 'data-required': one.required || null,
  };
  const ends = one.scale === 'bar' ? [make('span', { class: 'end left' }, 'A'), make('span', { class: 'end right' }, 'B')] : [letter ? make('span', { class: 'end' }, letter) : null, null];
  return make('div', attributes, ends[0], ...optionsOf(one).map(([value, shown, name], n) => make('button', {
    type: 'button', role: 'radio', 'aria-checked': 'false', 'data-value': value, 'aria-label': `${label}: ${name}`, title: name,
  }, ['bar', 'stars'].includes(one.scale) ? null : keycap(String(n + 1), { class: 'digit' }), shown)), ends[1]);
}

// The values of a scale: as JSON, as shown, and in words.
function optionsOf(one) {
  if (one.scale === 'bar') return BAR.map(([value, shown]) => [value, shown, words[`scale.${value}`]]);
  if (one.scale === 'stars') return [...Array(STARS).keys()].map((n) => [String(n + 1), '★', say('stars', { n: n + 1, of: STARS })]);
  if (one.scale === 'yes_no') return [['true', words.yes, words.yes], ['false', words.no, words.no]];
  return one.choices.map((choice) => [JSON.stringify(choice), choice, choice]);
}

const chosenIn = (field) => field.querySelector('[aria-checked=true]');
const valueIn = (field) => (chosenIn(field) ? JSON.parse(chosenIn(field).dataset.value) : undefined);

// Set a field's value, in JSON; null empties it.
function fill(field, value) {
  const steps = [...field.querySelectorAll('[role=radio]')];
  const at = steps.findIndex((step) => step.dataset.value === value);
  steps.forEach((step, n) => {
    step.setAttribute('aria-checked', String(n === at));
    step.classList.toggle('lit', n < at && field.parentElement.dataset.scale === 'stars');
  });
}

// The same value again empties the field.
function setField(field, value) {
  fill(field, chosenIn(field) && chosenIn(field).dataset.value === value ? null : value);
  changed();
  sendHeldBack();
}

function answerField(digit) {
  const field = fields()[aspectAt];
  const option = field.querySelectorAll('[role=radio]')[digit - 1];
  if (!option) return;
  fill(field, option.dataset.value);
  changed();
  if (heldBack) sendHeldBack();
  else if (aspectAt + 1 < fields().length) enter('aspect', aspectAt + 1);
  else enter('scale');
}

function aspects() {
  return Object.fromEntries(fields().filter((one) => one.dataset.aspect && chosenIn(one)).map((one) => [one.dataset.name, valueIn(one)]));
}

function criteria() {
  const values = {};
  for (const field of fields().filter((one) => !one.dataset.aspect && chosenIn(one))) {
    const { name, of } = field.dataset;
    if (of) (values[name] ||= {})[of] = valueIn(field);
    else values[name] = valueIn(field);
  }
  return values;
}

function restoreAsked(draft) {
  for (const field of fields()) {
    const { name, of, aspect } = field.dataset;
    const whole = (draft[aspect ? 'aspects' : 'criteria'] || {})[name];
    const value = of && whole ? whole[of] : whole;
    fill(field, value === undefined ? null : JSON.stringify(value));
  }
  const said = draft.answer_flags || {};
  for (const box of all('.flag input')) {
    const { of } = box.dataset;
    box.checked = of ? (said[of] || []).includes(box.value) : (draft.flags || []).includes(box.value);
  }
  const shownFlags = all('.flag input:checked').map((box) => box.value);
  carried = (draft.flags || []).filter((flag) => !shownFlags.includes(flag));
  reason.value = draft.rationale || '';
  links.value = (draft.links || []).join('\n');
  for (const field of [reason, links]) grow(field);
  heldBack = null;
  markFlags();
}

// --- flags: of the prompt, or of each answer

function flagOf({ name, label, of }, n, letters) {
  const digit = keycap(String(n + 1), { class: 'digit' });
  if (of === 'prompt') return make('label', { class: 'flag', title: words['flags.prompt'] }, make('input', { type: 'checkbox', value: name }), digit, label);
  if (letters.length === 1) return make('label', { class: 'flag' }, make('input', { type: 'checkbox', value: name, 'data-of': letters[0] }), digit, label);
  return make('div', { class: 'flag each', role: 'group', 'aria-label': label }, digit, label, ...letters.map((letter) => make('label', {},
    make('input', { type: 'checkbox', value: name, 'data-of': letter, 'aria-label': say('flags.answer', { flag: label, letter }) }), letter)));
}

function armFlag(digit) {
  const flag = all('.flag')[digit - 1];
  if (!flag) return;
  if (flag.classList.contains('each')) {
    armedFlag = digit - 1;
    markFlags();
  } else toggleBox(flag.querySelector('input'));
}

// Whether a letter key chose an answer for the armed flag.
function flagLetter(letter) {
  const flag = mode === 'flags' && all('.flag')[armedFlag];
  const box = flag && flag.querySelector(`[data-of="${CSS.escape(letter.toUpperCase())}"]`);
  return box ? () => toggleBox(box) : undefined;
}

function toggleBox(box) {
  box.checked = !box.checked;
  markFlags();
  changed();
}

function markFlags() {
  const checked = all('.flag input:checked').map((box) => box.value);
  carried = carried.filter((flag) => !checked.includes(flag));
  all('.flag').forEach((flag, n) => {
    flag.classList.toggle('armed', mode === 'flags' && n === armedFlag);
    flag.classList.toggle('carried', carried.includes(flag.querySelector('input').value));
  });
}

function answerFlags() {
  const said = {};
  for (const box of all('.flag [data-of]:checked')) (said[box.dataset.of] ||= []).push(box.value);
  return said;
}

// --- fields that grow with their text

const LONG = 60; // characters: a longer text gets a line of its own, instead of a high and narrow field

function grow(field) {
  field.parentElement.classList.toggle('long', field.value.length > LONG);
  field.style.height = 'auto';
  if (field.value) field.style.height = `${field.scrollHeight + 2}px`;
}

find('.details').addEventListener('input', (event) => {
  if (event.target.matches('textarea')) grow(event.target);
  else if (event.target.matches('.flag input')) markFlags();
});

const linkLines = () => storable(links.value).split('\n').map((line) => line.trim()).filter(Boolean);

function isAddress(line) {
  try {
    return /^https?:\/\/[^\s]+$/i.test(line) && line.length <= 2000 && Boolean(new URL(line).hostname);
  } catch (error) {
    return false;
  }
}

// --- what a vote needs: it waits, and is sent once everything is there

// Go to what is missing for a vote; false if nothing is.
function goToMissing(vote) {
  const wrong = linkLines().find((line) => !isAddress(line));
  if (wrong || linkLines().length > MOST_LINKS) {
    unfold(true);
    links.focus();
    return say(wrong ? 'links.wrong' : 'links.many', { link: (wrong || '').slice(0, 60), n: MOST_LINKS });
  }
  if (vote.skip) return '';
  const at = fields().findIndex((field) => field.dataset.required !== undefined && !chosenIn(field));
  if (at >= 0) {
    enter('aspect', at);
    return say('required.criterion', { question: fields()[at].getAttribute('aria-label') });
  }
  const { reasons } = props.value;
  if (isReview() && vote.value === 'reject' && !reason.value.trim()) {
    unfold(true);
    reason.focus();
    return words['required.rejection'];
  }
  if ((reasons === 'always' || (reasons === 'strong' && Math.abs(vote.answer || 0) === 3)) && !reason.value.trim()) {
    unfold(true);
    reason.focus();
    return vote.answer === undefined ? words['required.reason'] : say('required.reason.for', { vote: words[`scale.${vote.answer}`] });
  }
  return '';
}
const MOST_LINKS = 10;

function sendHeldBack() {
  if (!heldBack) return;
  const { vote, button } = heldBack;
  heldBack = null;
  enter('scale');
  judge(vote, button);
}
