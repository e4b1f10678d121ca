// Unsent judgments. The next pair is shown at once; each judgment stays in the browser's storage until the server has
// acknowledged it, so that neither a lost connection nor a closed window loses it. Judgments get their id here: sent
// twice, even from two windows, they are stored once.
const OUTBOX = 'tiebreak-judgment:';
let outboxKey = OUTBOX; // followed by the rater's id: two raters may share a browser
let draining = null;

function unsent() {
  return Object.keys(storage)
    .filter((key) => key.startsWith(outboxKey))
    .map((key) => [key, JSON.parse(storage.getItem(key))])
    .sort(([, one], [, other]) => one.client_at_ms - other.client_at_ms);
}

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

// Store a judgment and send it. `arrived` is called with each reply, `turnedDown` with each refusal.
function post(body, arrived, turnedDown) {
  storage.setItem(outboxKey + body.client_id, JSON.stringify(body));
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
      storage.removeItem(key);
      arrived(reply, body);
    } catch (error) {
      if (error.status === 401 || error.status === 403) { // stays stored: sent after the next login
        warn(error.message, 'refused');
        if (error.status === 403) startAgain();
        return;
      }
      storage.removeItem(key);
      turnedDown(error, body);
    }
  }
}

// Reload the page, which asks for missing consent (new guidelines, say); at most once a minute.
function startAgain() {
  const lately = Number(storage.getItem('tiebreak-started')) > Date.now() - 60000;
  storage.setItem('tiebreak-started', Date.now());
  if (!lately) window.location.reload();
}

// Retry until the server responds, with a banner meanwhile.
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

