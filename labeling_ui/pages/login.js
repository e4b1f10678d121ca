// Log in, or create an account from an invitation, then open the rating page.
const form = element.querySelector('.login');
const problem = element.querySelector('.problem');
const [, token] = window.location.hash.match(/^#invitation=([\w-]+)$/) || [];
form.elements.username.focus();
if (token) {
  form.querySelector('.invited').hidden = false;
  form.querySelector('button').textContent = words['invited.begin'];
  form.elements.password.autocomplete = 'new-password';
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  problem.hidden = true;
  const body = { username: form.elements.username.value, password: form.elements.password.value, ...(token && { token }) };
  try {
    await call(token ? '/api/invitations/accept' : '/api/login', { method: 'POST', body });
    window.location.href = `${base}/rate/`;
  } catch (error) {
    problem.textContent = error.status ? error.message : words['login.failed'];
    problem.hidden = false;
    form.elements.password.select();
  }
});
