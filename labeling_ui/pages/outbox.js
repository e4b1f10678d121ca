// Unsent judgments. The next pair is shown at once; each judgment stays in the browser's storage until the server has
// acknowledged it, so that neither a lost connection nor a closed window loses it. Judgments get their id here: sent
// twice, even from two windows, they are stored once. A judgment that the server rejects is set aside with its text.
const OUTBOX = 'tiebreak-judgment:';
const REJECTED = 'tiebreak-rejected:';
const FINAL = [400, 409, 413, 422]; // statuses with which the server rejects a judgment; after any other one it is sent again
let raterId = ''; // part of every key: two raters may share a browser
let draining = null;
let failing = false; // the server has not replied to the latest request
const failures = new Set(); // called when it does not
const unstored = new Map(); // judgments for which the storage had no room
const leavesNothing = () => !(storage.ends ? unsent().length : unstored.size); // whether all that is unsent outlives the window

const outboxKey = (id) => `${OUTBOX}${raterId}:${id}`;
// Judgments stored before the campaign set unsent_in_browser: false are still there, and are sent.
const places = () => (storage === settings ? [storage] : [storage, settings]);
const entries = (prefix) => places().flatMap((place) => Object.keys(place).filter((key) => key.startsWith(prefix)).map((key) => [key, parsed(place.getItem(key))])).filter(([, value]) => value);

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    return null;
  }
}

function unsent() {
  return [...entries(outboxKey('')), ...unstored].sort(([, one], [, other]) => one.client_at_ms - other.client_at_ms);
}

const rejected = () => entries(`${REJECTED}${raterId}:`).sort(([, one], [, other]) => other.client_at_ms - one.client_at_ms);

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

// Store a judgment and send it. `arrived` is called with each reply, `turnedDown` with each rejection.
function post(body, arrived, turnedDown) {
  const key = outboxKey(body.client_id);
  if (!keep(key, JSON.stringify(body))) unstored.set(key, body);
  return drain(arrived, turnedDown);
}

function forget(key) {
  for (const place of places()) place.removeItem(key);
  unstored.delete(key);
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
      forget(key);
      arrived(reply, body);
    } catch (error) {
      if (!FINAL.includes(error.status)) { // stays stored: sent after the next login
        warn(leavesNothing() ? error.message : words['session.memory'], 'refused');
        if (leavesNothing()) {
          if (error.status === 403) startAgain();
          return;
        }
        await pause(5000);
        csrfToken = await call('/api/me').then((me) => me.csrf_token, () => csrfToken);
        continue;
      }
      forget(key);
      keep(`${REJECTED}${raterId}:${body.client_id}`, JSON.stringify({ ...body, detail: error.message }));
      turnedDown(error, body);
    }
  }
}

// Whether all judgments are sent; false as soon as the server does not respond.
async function drained(arrived, turnedDown) {
  if (unsent().length && !failing) {
    let stop;
    const failed = new Promise((resolve) => { stop = resolve; });
    failures.add(stop);
    await Promise.race([drain(arrived, turnedDown), failed]);
    failures.delete(stop);
  }
  return !unsent().length;
}

// Reload the page, which asks for missing consent (new guidelines, say); at most once a minute.
function startAgain() {
  const lately = Number(settings.getItem('tiebreak-started')) > Date.now() - 60000;
  keep('tiebreak-started', Date.now(), settings);
  if (!lately) window.location.reload();
}

// Retry until the server responds, with a banner meanwhile.
async function insist(path, options) {
  for (let wait = 250; ; wait = Math.min(wait * 2, 5000)) {
    try {
      const reply = await call(path, options);
      failing = false;
      if (['lost', 'undo'].includes(find('.banner').dataset.kind)) warn('');
      return reply;
    } catch (error) {
      failing = !error.refused;
      if (error.refused) throw error;
      for (const tell of failures) tell();
      const { kind = '' } = find('.banner').dataset;
      // A message about the rater's own action stays; this one is repeated at the next attempt.
      if (['', 'lost', 'draft'].includes(kind)) warn(words[!leavesNothing() ? 'lost.memory' : unsent().length ? 'lost' : 'waiting'], 'lost');
      await pause(wait);
    }
  }
}

mayLeave = leavesNothing;
window.addEventListener('beforeunload', (event) => { if (!leavesNothing()) event.preventDefault(); });
