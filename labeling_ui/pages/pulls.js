// On the overview: training pairs of a reward model that pull against the rest, and whose judgments they are.

async function showPulls() {
  const reports = await call('/api/lead/pulls');
  find('.pulls').hidden = !reports.length;
  refill(find('.pulls .reports'), ...reports.map(pullReport));
}

function pullReport(one) {
  const counted = say('pulls.counted', { report: one.report, pairs: whole(one.pairs), n: whole(one.against) });
  const head = make('tr', {}, ...['pulls.pair', 'pulls.pull', 'pulls.raters'].map((name) => make('th', { scope: 'col' }, words[name])));
  const table = make('table', { class: 'plain-table', 'aria-label': words.pulls }, make('thead', {}, head), make('tbody', {}, ...one.rows.map(pullRow)));
  return make('div', { class: 'report' },
    one.problem ? make('p', { class: 'note late', role: 'status' }, say('pulls.problem', { report: one.report, problem: one.problem })) : '',
    one.pairs ? make('p', {}, counted) : '',
    one.rows.length ? make('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': words.pulls }, table) : '',
    one.raters.length ? make('h3', {}, words['pulls.by']) : '',
    ...[...one.raters].sort((a, b) => b.value - a.value || b.n - a.n).map((rater) => interval(nameOf(rater.rater), rater, percent)));
}

function pullRow({ item_id: id, prompt, pull, raters }) {
  const open = make('button', { type: 'button', class: 'link', dir: 'auto', 'data-pulled': id, title: say('pulls.open', { id }) }, prompt || id);
  return make('tr', {},
    make('th', { scope: 'row' }, open),
    make('td', {}, pull.toFixed(1).replace('-', '−')),
    make('td', {}, raters.map(nameOf).join(', ')));
}

desk.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pulled]');
  if (button) { view('items'); openItem(button.dataset.pulled); }
});
