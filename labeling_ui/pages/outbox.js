// Judgments on their way to the server. The next pair is shown at once; what was said lies in the browser's own storage
// until the server has acknowledged it, so that neither a pulled cable nor a closed window loses it. Each judgment has an
// id made here: sending it twice, from two windows even, stores it once.
const OUTBOX = 'tiebreak-judgment:';
let outboxKey = OUTBOX; // and the rater's id: two raters may share a browser
let draining = null;

function unsent() {
  return Object.keys(kept)
    .filter((key) => key.startsWith(outboxKey))
    .map((key) => [key, JSON.parse(kept.getItem(key))])
    .sort(([, one], [, other]) => one.client_at_ms - other.client_at_ms);
}

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

// Keep a judgment and send it. `arrived` is called with each reply, `turnedDown` with each refusal.
function post(body, arrived, turnedDown) {
  kept.setItem(outboxKey + body.client_id, JSON.stringify(body));
  return drain(arrived, turnedDown);
}

function drain(arrived, turnedDown) {
  draining = draining || sendAll(arrived, turnedDown).finally(() => { draining = null; });
  return draining;
}

async function sendAll(arrived, turnedDown) {
  for (let waiting = unsent(); waiting.length; waiting = unsent()) {
    const [key, body] = waiting[0];
    try {
      const reply = await insist('/api/judgments', { method: 'POST', body: { ...body, holding: held() } });
      kept.removeItem(key);
      arrived(reply, body);
    } catch (error) {
      if (error.status === 401 || error.status === 403) { // kept: sent after the next login
        warn(error.message, 'refused');
        if (error.status === 403) startAgain();
        return;
      }
      kept.removeItem(key);
      turnedDown(error, body);
    }
  }
}

// Load the page again, which asks for whatever is missing (a new version of the guidelines, say); once a minute at most.
function startAgain() {
  const lately = Number(kept.getItem('tiebreak-started')) > Date.now() - 60000;
  kept.setItem('tiebreak-started', Date.now());
  if (!lately) window.location.reload();
}

// Try until the server answers, and say so while it does not.
async function insist(path, options) {
  for (let wait = 250; ; wait = Math.min(wait * 2, 5000)) {
    try {
      const reply = await call(path, options);
      if (find('.banner').dataset.kind === 'lost') warn('');
      return reply;
    } catch (error) {
      if (error.refused) throw error;
      warn(words[unsent().length ? 'lost' : 'waiting'], 'lost');
      await pause(wait);
    }
  }
}

