// Duels on the overview: whether policies that people compare are decided yet.

async function showDuels() {
  const duels = await call('/api/lead/duels');
  find('.duels').hidden = !duels.length;
  refill(find('.duels tbody'), ...duels.map(duelRow));
}

function duelRow(duel) {
  const [first, second] = duel.policies;
  const [low, high] = duel.interval;
  const of = { first, second, n: whole(duel.more), most: percent(duel.most) };
  const range = duel.win_rate === null ? '' : make('span', { class: 'note' }, say('duels.interval', { low: percent(low), high: percent(high) }));
  return make('tr', {},
    make('th', { scope: 'row' }, say('duels.names', of)),
    make('td', { class: duel.state === 'undecided' ? 'note' : 'verdict' }, say(`duels.${duel.state.replace(' ', '_')}`, of)),
    make('td', {}, duel.win_rate === null ? '–' : percent(duel.win_rate), ' ', range),
    make('td', {}, say('lead.of', { done: whole(duel.n), total: whole(duel.pairs) })));
}
