// Conversations: the rater writes, two policies answer side by side, and the conversation continues with the better
// answer. Turns are ordinary pairs; only their source differs.
const ASK_AGAIN_MS = 600;
const turnField = find('[name=turn]');

let talk = null; // {id, number, messages, phase: writing, waiting or judging}

// A message that was typed and not sent when the page was left.
const turnKey = () => `tiebreak-turn:${raterId}`;
window.addEventListener('pagehide', () => { if (talk && turnField.value) keep(turnKey(), turnField.value); });

function beginTalk() {
  if (amending) stopAmending();
  if (current) { saveDraft(); queue.unshift(current); }
  talk = { id: newId(), number: 0, messages: [], phase: 'writing' };
  turnField.value = storage.getItem(turnKey()) || '';
  write();
}

function endTalk() {
  if (amending) stopAmending();
  talk = null;
  find('.compose').hidden = true;
  current = null;
  proceed();
}

// The conversation so far, and a field for the next message.
function write(status = '') {
  show(null);
  talk.phase = 'writing';
  find('.rest').hidden = true;
  find('.prompt').hidden = !talk.messages.length;
  find('.prompt').replaceChildren(...talk.messages.map(turn));
  find('.prompt').scrollTop = find('.prompt').scrollHeight;
  find('.compose').hidden = false;
  find('.compose').classList.remove('waiting');
  find('.compose .status').textContent = status || words[talk.number ? 'talk.next' : 'talk.first'];
  find('.dock').hidden = !lastJudgment || !talk.number;
  turnField.disabled = false;
  turnField.focus();
}

async function send() {
  const text = turnField.value.trim();
  if (!text || !talk || talk.phase !== 'writing') return;
  const mine = talk;
  wait();
  try {
    await drain(acknowledged, turnedDown); // the server continues from the judged answer
    await awaitAnswers(mine, await insist('/api/turns', { method: 'POST', body: { conversation_id: mine.id, number: mine.number, text } }));
  } catch (error) {
    if (talk === mine) write(error.message);
  }
}

function wait() {
  talk.phase = 'waiting';
  turnField.disabled = true;
  find('.dock').hidden = true;
  find('.compose').classList.add('waiting');
  const mine = talk;
  const begun = Date.now();
  const tick = () => {
    if (talk !== mine || mine.phase !== 'waiting') return clearInterval(ticking);
    find('.compose .status').textContent = say('talk.waiting', { seconds: Math.round((Date.now() - begun) / 1000) });
    return undefined;
  };
  const ticking = setInterval(tick, 1000);
  tick();
}

// Poll until the answers arrive or the rater leaves the conversation.
async function awaitAnswers(mine, firstReply) {
  let reply = firstReply;
  while (talk === mine && (reply.state === 'waiting' || reply.state === 'working')) {
    await pause(ASK_AGAIN_MS);
    reply = await insist(`/api/turns/${encodeURIComponent(reply.turn_id)}`);
  }
  if (talk !== mine) return;
  if (reply.state === 'failed') {
    write(reply.error);
    return;
  }
  turnField.value = '';
  storage.removeItem(turnKey());
  talk.phase = 'judging';
  queue = queue.filter((pair) => pair.pair_id !== reply.pair.pair_id);
  show(normal(reply.pair));
  report(reply.pair);
  undoButton().disabled = true; // the previous turn is part of this one
}

// After a judgment: continue with the better answer; without one, the conversation is over.
function continueTalk(pair, vote) {
  if (vote.answer === undefined) {
    talk = { id: newId(), number: 0, messages: [], phase: 'writing' };
    write(words['talk.over']);
    return;
  }
  const better = vote.answer > 0 ? pair.right : pair.left;
  const answer = vote.edited_text ? make('div', {}, vote.edited_text).innerHTML.replaceAll('\n', '<br>') : better.html;
  talk.messages = [...pair.messages, { role: 'assistant', html: answer }];
  talk.number += 1;
  write();
}

// Resume the conversation that an earlier window left open, if any.
async function resumeTalk() {
  const reply = await insist('/api/turns/latest');
  if (!reply || reply.judged) return;
  talk = { id: reply.conversation_id, number: reply.number, messages: reply.messages.slice(0, -1), phase: 'writing' };
  turnField.value = reply.messages[reply.messages.length - 1].content;
  write(reply.error);
  if (reply.state === 'failed') return;
  wait();
  awaitAnswers(talk, reply).catch((error) => warn(error.message, 'refused'));
}

