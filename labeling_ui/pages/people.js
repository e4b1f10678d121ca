// Invitations, roles and passwords. Reviewers and observers see the page; the server refuses what is for leads alone.
const ROLES = ['rater', 'reviewer', 'observer', 'lead'];

if (props.value.oidc) find('[data-form=invite]').elements.names.placeholder = words['invite.oidc'];

async function showPeople() {
  if (desk.dataset.role !== 'lead') return;
  const invited = await call('/api/lead/invitations');
  find('.invited').hidden = !invited.length;
  refill(find('.invited tbody'), ...invited.map((one) => make('tr', {},
    make('th', { scope: 'row' }, one.name || '–', one.email || one.subject ? make('span', { class: 'note' }, one.email || one.subject) : null), make('td', {}, words[`role.${one.role}`]), make('td', {}, one.pool || words['batches.everybody']),
    make('td', {}, one.state === 'used' ? say('invite.used', { name: nameOf(one.used_by) }) : words[`invite.${one.state}`], one.state === 'open' ? make('span', { class: 'note' }, timeOf(one.expires_at_ms)) : null),
    make('td', {}, one.state === 'open' ? make('button', { type: 'button', class: 'plain', 'data-revoke': one.id }, words['invite.revoke'], make('span', { class: 'unseen' }, ` ${one.name}`)) : null))));
}

async function inviteMany(form) {
  const { names: field, role, pool, days } = form.elements;
  const lines = field.value.split('\n').map((line) => line.trim()).filter(Boolean);
  const made = await change('/api/lead/invitations', 'POST', { names: lines.length ? lines : [''], role: role.value, pool: pool.value.trim(), days: Number(days.value) });
  if (!made) return;
  warn('');
  const links = made.invitations.map((one) => `${one.name}\t${window.location.origin + base + one.path}`.trim());
  const place = find('.links');
  place.hidden = false;
  place.querySelector('textarea').value = links.join('\n');
  place.querySelector('textarea').select();
  sent(form);
  field.value = '';
  await showPeople();
}

// What a lead may change of the rater on the screen.
function personActions(rater) {
  if (desk.dataset.role !== 'lead' || rater.id === myself) return '';
  return make('p', { class: 'line-form' },
    make('label', {}, words['person.role'], make('select', { 'data-role-of': rater.id }, ...ROLES.map((role) => make('option', { value: role, selected: role === rater.role }, words[`role.${role}`])))),
    make('button', { type: 'button', class: 'plain', 'data-password-of': rater.id }, words['person.password']),
    ...standingsOf(rater).map((standing) => make('button', { type: 'button', class: 'plain', 'data-stand': standing, 'data-stand-of': rater.id }, words[`standing.do.${standing || 'again'}`])),
    rater.standing ? make('span', { class: 'note' }, standingOf(rater)) : '',
    erasingAction(rater),
    make('output', { class: 'password' }));
}

const standingsOf = (rater) => (rater.role !== 'rater' || rater.kind !== 'human' ? [] : { '': ['qualified', 'stopped'], qualified: ['stopped'] }[rater.standing] || ['qualified', '']);

// A standing in words, with its figures: "gold 11/20".
function standingOf(rater) {
  const [, name, figures] = /^(\w+) (\d+\/\d+)$/.exec(rater.standing_note) || [];
  const note = name && words[`standing.test.${name}`] ? `${words[`standing.test.${name}`]} ${figures}` : rater.standing_note;
  return [words[`standing.${rater.standing}`], note].filter(Boolean).join(': ');
}

async function resetPassword(id) {
  if (!window.confirm(say('person.password.sure', { name: nameOf(id) }))) return;
  const made = await change(`/api/lead/raters/${encodeURIComponent(id)}/password`, 'POST', {});
  if (made) find('.person .password').textContent = say('person.password.new', { password: made.password });
}

// One row per rater; the file for a spreadsheet has one for each day and batch.
async function showPay(form) {
  const about = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ''));
  const report = await change(`/api/lead/work?${about}`, 'GET');
  if (!report) return;
  warn('');
  sent(form);
  const rate = Number(form.elements.rate.value);
  const byRater = {};
  for (const row of report.work) (byRater[row.rater_id] ||= []).push(row);
  const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);
  const hours = (rows, name) => sum(rows, name) / 3600;
  find('.paid').hidden = false;
  refill(find('.paid tbody'), ...Object.entries(byRater).sort(([a], [b]) => nameOf(a).localeCompare(nameOf(b))).map(([id, rows]) => make('tr', {},
    make('th', { scope: 'row' }, nameOf(id)),
    ...[whole(new Set(rows.map((row) => row.day)).size), whole(sum(rows, 'judgments')), whole(sum(rows, 'rejected')), hours(rows, 'active_seconds').toFixed(2), hours(rows, 'idle_seconds').toFixed(2), breaksOf(report.days.filter((day) => day.rater_id === id)),
      rate ? (hours(rows, 'active_seconds') * rate).toFixed(2) : '–', report.clocks[id] ?? '–'].map((cell) => make('td', {}, String(cell))))));
  for (const [name, link] of [['days', '.csv.days'], ['work', '.csv.batch']]) {
    find(link).hidden = false;
    find(link).href = `${base}/api/lead/${name}.csv?${about}`;
  }
}

// Pauses of five minutes or more, and their sum.
function breaksOf(days) {
  const count = days.reduce((total, day) => total + day.breaks, 0);
  const minutes = days.reduce((total, day) => total + day.break_seconds, 0) / 60;
  const rounded = Math.round(minutes);
  const long = rounded < 60 ? say('time.minutes', { minutes: rounded }) : say('time.hours', { hours: whole(Math.floor(rounded / 60)), minutes: rounded % 60 });
  return count ? `${whole(count)} · ${long}` : '–';
}

desk.addEventListener('submit', (event) => {
  if (event.target.dataset.form === 'invite') inviteMany(event.target);
  if (event.target.dataset.form === 'pay') showPay(event.target);
});

desk.addEventListener('change', async (event) => {
  const id = event.target.dataset.roleOf;
  if (!id) return;
  if (await change(`/api/lead/raters/${encodeURIComponent(id)}`, 'PUT', { role: event.target.value })) warn('');
  refresh();
});

desk.addEventListener('click', async (event) => {
  const button = event.target.closest('button');
  if (button?.dataset.standOf) {
    const { stand: standing, standOf: id } = button.dataset;
    const reason = standing === 'stopped' ? askReason('standing.why', 'stop', 500) : '';
    if (reason === null) return;
    if (await change(`/api/lead/raters/${encodeURIComponent(id)}/standing`, 'POST', { standing, reason })) {
      warn('');
      forgetText('stop');
    }
    await refresh();
    await openPerson(id);
  }
  if (button?.dataset.passwordOf) resetPassword(button.dataset.passwordOf);
  if (button?.dataset.revoke && await change(`/api/lead/invitations/${button.dataset.revoke}`, 'DELETE')) showPeople();
});
