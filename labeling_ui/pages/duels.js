// Duels on the overview: whether policies that people compare are decided yet. Below them, model judges beside people.

async function showDuels() {
  const duels = await call('/api/lead/duels');
  find('.duels').hidden = !duels.length;
  const several = new Set(duels.map((duel) => duel.evaluation)).size > 1;
  refill(find('.duels tbody'), ...duels.map((duel) => duelRow(duel, several)));
}

function duelRow(duel, several) {
  const [first, second] = duel.policies;
  const [low, high] = duel.interval;
  const of = { first, second, n: whole(duel.more), most: percent(duel.most) };
  const range = duel.win_rate === null ? '' : make('span', { class: 'note' }, say('duels.interval', { low: percent(low), high: percent(high) }));
  return make('tr', {},
    make('th', { scope: 'row' }, say('duels.names', of), several ? make('div', { class: 'note' }, say('duels.evaluation', { id: duel.evaluation.slice(0, 8) || '–' })) : ''),
    make('td', { class: duel.state === 'undecided' ? 'note' : 'verdict' }, say(`duels.${duel.state.replace(' ', '_')}`, of)),
    make('td', {}, duel.win_rate === null ? '–' : percent(duel.win_rate), ' ', range),
    make('td', {}, say('lead.of', { done: whole(duel.n), total: whole(duel.pairs) })));
}

function showJudges() {
  const judges = measured.judges || [];
  const awaited = !measured.judges && [measured.kind, ...Object.keys(measured.other_kinds || {})].includes('model');
  find('.judges').hidden = !judges.length && !awaited;
  const people = judges.length && measured.kind !== 'model' && measured.percent_with_ties && measured.percent_with_ties.value !== null ? [peopleRow()] : [];
  const computing = make('tr', {}, make('td', { class: 'note', colspan: 8 }, words['lead.measuring']));
  refill(find('.judges tbody'), ...people, ...(awaited ? [computing] : judges.map(judgeRow)));
}

function peopleRow() {
  const name = words[measured.kind === 'simulated' ? 'judges.simulated' : 'judges.people'];
  const figures = [measured.percent_with_ties, measured.percent_without_ties, null, null, null, null, null];
  return make('tr', {}, make('th', { scope: 'row' }, name), ...figures.map((figure) => figureCell(figure)));
}

function judgeRow({ rater, habits, people }) {
  const shared = people ? [people.accuracy, people.accuracy_without_ties, people.kappa] : [null, null, null];
  const own = [habits.consistency, habits.left, habits.longer, habits.more_markdown];
  const note = people ? '' : make('span', { class: 'note' }, words['judges.none']);
  return make('tr', {}, make('th', { scope: 'row' }, nameOf(rater), note), ...[...shared, ...own].map((figure, n) => figureCell(figure, n === 2 ? plain : percent)));
}

// A figure, and below it its interval and n.
function figureCell(figure, form = percent) {
  if (!figure || figure.value === null) return make('td', {}, '–');
  const [low, high] = (figure.interval || []).map(form);
  const edges = figure.interval ? `${say('duels.interval', { low, high })} · ` : '';
  return make('td', {}, form(figure.value), make('span', { class: 'note' }, `${edges}n ${whole(figure.n)}`));
}
