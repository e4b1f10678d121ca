// One's own data: a file of all of it, and consent, which can be withdrawn.
function ownData() {
  const download = make('a', { class: 'plain', href: `${base}/api/own-data`, download: 'my-data.json' }, words['own.download']);
  const withdraw = make('button', { type: 'button', class: 'plain' }, words['own.withdraw']);
  const place = make('section', { class: 'own' }, make('h3', {}, words.own), make('p', { class: 'note' }, words['own.note']), make('p', { class: 'account' }, download, withdraw));
  withdraw.addEventListener('click', () => { withdraw.remove(); place.append(withdrawing()); });
  return [place];
}

function withdrawing() {
  const choice = (value, checked) => make('label', {}, make('input', { type: 'radio', name: 'judgments', value, checked }), ` ${words[`own.${value}`]}`);
  const form = make('form', { class: 'withdrawing' }, make('p', {}, words['own.sure']), choice('keep', true), choice('remove', false),
    make('p', { class: 'account' }, make('button', { class: 'plain' }, words['own.do']), make('span', { class: 'note', role: 'status' })));
  form.addEventListener('submit', (event) => { event.preventDefault(); withdrawConsent(form); });
  return form;
}

// The page starts again and says so; what has not been sent is sent first.
async function withdrawConsent(form) {
  try {
    await call('/api/consent/withdraw', { method: 'POST', body: { judgments: form.elements.judgments.value === 'remove' } });
    window.location.reload();
  } catch (error) {
    form.querySelector('.note').textContent = error.status ? error.message : words.waiting;
  }
}
