const form = element.querySelector('.login');
const problem = element.querySelector('.problem');
element.querySelector('.title').textContent = props.value.title;
form.elements.username.focus();

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  problem.hidden = true;
  const body = { username: form.elements.username.value, password: form.elements.password.value };
  try {
    await call('/api/login', { method: 'POST', body });
    window.location.href = '/rate/';
  } catch (error) {
    problem.textContent = error.refused ? error.message : 'The server does not answer. Try again.';
    problem.hidden = false;
    form.elements.password.select();
  }
});
