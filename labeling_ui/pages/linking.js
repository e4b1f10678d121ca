// The identity provider's account that this one is linked to: link it, and unlink it, both with the password.
async function linking() {
  if (!props.value.oidc) return [];
  const { linked, password } = await call('/api/oidc/identity');
  const form = make('form', { class: 'account', hidden: !password },
    make('input', { name: 'password', type: 'password', required: true, autocomplete: 'current-password', placeholder: words['password.current'], 'aria-label': words['password.current'] }),
    make('button', { class: 'plain' }, words[linked ? 'linking.unlink' : 'linking.link']), make('span', { class: 'note', role: 'status' }));
  form.addEventListener('submit', (event) => { event.preventDefault(); changeLink(form, linked); });
  const about = linked ? (password ? 'linking.linked' : 'linking.only') : 'linking.none';
  return [make('section', { class: 'linking' }, make('h3', {}, words.linking), make('p', { class: 'note' }, words[about]), form)];
}

async function changeLink(form, linked) {
  try {
    const reply = await call(`/api/oidc/${linked ? 'unlink' : 'link'}`, { method: 'POST', body: { password: form.elements.password.value } });
    if (reply.address) window.location.href = reply.address;
    else find('.linking').replaceWith(...await linking());
  } catch (error) {
    form.querySelector('.note').textContent = error.status ? error.message : words.waiting;
  }
}
