// Log in, or create an account from an invitation, then open the rating page.
const form = element.querySelector('.login');
const problem = element.querySelector('.problem');
const [, token] = window.location.hash.match(/^#invitation=([\w-]+)$/) || [];
form.elements.username.focus();
if (/^#view=/.test(window.location.hash)) returnTo(window.location.hash); // an address of the lead's page, which the server has sent here
if (token) {
  form.querySelector('.invited').hidden = false;
  form.querySelector('button').textContent = words['invited.begin'];
  form.elements.password.autocomplete = 'new-password';
  const meter = showStrength(form.elements.password, (password) => call('/api/invitations/strength', { method: 'POST', body: { token, username: form.elements.username.value, password } }));
  (form.elements.password.closest('label') || form).after(meter); // not in a row of fields
}

// The campaigns in which this account is, where the server has several.
function choose(campaigns) {
  form.replaceWith(make('nav', { class: 'login choosing', 'aria-label': words['login.choose'] }, make('h1', {}, words['login.choose']),
    ...campaigns.map((one) => make('a', { href: base + one.path }, one.title, make('span', { class: 'note' }, one.role === 'rater' ? one.name : `${one.name}, ${words[`role.${one.role}`]}`)))));
  find('.choosing a').focus();
}

const reveal = form.querySelector('[data-reveal]');
reveal.addEventListener('change', () => { form.elements.password.type = reveal.checked ? 'text' : 'password'; });

const singleSignOn = form.querySelector('.single-sign-on');
if (props.value.oidc) {
  singleSignOn.hidden = false;
  singleSignOn.textContent = props.value.oidc;
  singleSignOn.href = `${base}/api/oidc/start`;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  problem.hidden = true;
  reveal.checked = false;
  form.elements.password.type = 'password'; // so that no browser offers the text as a form's
  const body = { username: form.elements.username.value, password: form.elements.password.value, ...(form.elements.code.value && { code: form.elements.code.value }), ...(token && { token }) };
  try {
    const { campaigns } = await call(token ? '/api/invitations/accept' : '/api/login', { method: 'POST', body });
    if (campaigns && campaigns.length > 1) choose(campaigns);
    else window.location.href = base + (campaigns ? campaigns[0].path : '/rate/');
  } catch (error) {
    const code = form.elements.code;
    if (error.status === 428) { // the password is right, and the account has a second factor
      code.closest('label').hidden = false;
      code.required = true;
      code.focus();
      return;
    }
    problem.textContent = error.status ? error.message : words['login.failed'];
    problem.hidden = false;
    (code.required ? code : form.elements.password).select();
  }
});
