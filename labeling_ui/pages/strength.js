// The meter of how hard a new password is to guess, by the server's rule, while it is typed. `ask` gets the reply.
const TYPING_MS = 250;

function showStrength(input, ask) {
  const meter = make('meter', { min: 0, max: 4, low: 2, high: 2.5, optimum: 4, value: 0, 'aria-label': words.strength });
  const said = make('output', {});
  const shown = make('div', { class: 'strength', hidden: true }, meter, said);
  let timer = 0;
  const hide = () => { clearTimeout(timer); shown.hidden = true; };
  input.form.addEventListener('reset', hide);
  input.addEventListener('input', () => {
    hide();
    if (input.value) timer = setTimeout(tell, TYPING_MS);
  });
  async function tell() {
    const password = input.value;
    const { score, refusal } = await ask(password).catch(() => ({}));
    if (score === undefined || input.value !== password) return;
    meter.value = score;
    said.textContent = refusal ? refusal[0].toUpperCase() + refusal.slice(1) : words[`strength.${score}`];
    shown.hidden = false;
  }
  return shown;
}
