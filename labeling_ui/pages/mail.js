// E-mail, if the campaign sends any: the rater's address under My work, confirmed by a code, and removed at any time.
function mailSettings(state) {
  if (!state.offered && !state.email) return [];
  const place = make('section', { class: 'mail' });
  drawMail(place, state);
  return [make('h3', {}, words.mail), make('p', { class: 'note' }, words['mail.note']), place];
}

function drawMail(place, { offered, email, confirmed }, status = '') {
  const note = make('span', { class: 'note', role: 'status' }, status);
  const forget = email ? make('button', { type: 'button', class: 'plain', 'data-mail': 'forget' }, words['mail.forget']) : null;
  if (email && confirmed) place.replaceChildren(make('p', { class: 'account' }, make('span', {}, say('mail.confirmed', { email })), forget, note));
  else if (email) place.replaceChildren(mailForm('confirm', make('input', { name: 'code', required: true, inputmode: 'numeric', autocomplete: 'one-time-code', maxlength: '7', 'aria-label': words['mail.code'], placeholder: words['mail.code'] }), forget, note));
  else if (offered) place.replaceChildren(mailForm('set', make('input', { name: 'email', type: 'email', required: true, maxlength: '254', autocomplete: 'email', 'aria-label': words['mail.address'], placeholder: words['mail.address'] }), null, note));
  forget?.addEventListener('click', () => changeMail(place, '', { method: 'DELETE' }, ''));
}

function mailForm(what, field, forget, note) {
  const form = make('form', { class: 'account' }, field, make('button', { class: 'plain' }, words[`mail.${what}`]), forget, note);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const place = form.parentElement;
    if (what === 'set') changeMail(place, '', { method: 'PUT', body: { email: field.value.trim() } }, say('mail.sent', { email: field.value.trim() }));
    else changeMail(place, '/confirm', { method: 'POST', body: { code: field.value } }, '');
  });
  return form;
}

async function changeMail(place, path, options, done) {
  try {
    await call(`/api/mail${path}`, options);
    drawMail(place, await call('/api/mail'), done);
    place.querySelector('input, button')?.focus();
  } catch (error) {
    place.querySelector('.note').textContent = error.status ? error.message : words.waiting;
  }
}
