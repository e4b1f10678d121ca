// Conversations: the rater writes, two policies answer side by side, and the answer that is judged the better one is what
// the conversation goes on with. Turns are pairs like any other; only where the next one comes from differs.
const ASK_AGAIN_MS = 600;
const turnField = find('[name=turn]');

let talk = null; // {id, number, messages, phase: writing, waiting or judging}

function beginTalk() {
  if (amending) stopAmending();
  if (current) { saveDraft(); queue.unshift(current); }
  talk = { id: newId(), number: 0, messages: [], phase: 'writing' };
  turnField.value = '';
  write();
}

function endTalk() {
  if (amending) stopAmending();
  talk = null;
  find('.compose').hidden = true;
  current = null;
  proceed();
}

// The conversation so far, and a field for what comes next.
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
    await drain(acknowledged, turnedDown); // the server continues with what was judged
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
  find('.compose .status').textContent = words['talk.waiting'];
}

// Look until the answers are there, or until the rater has gone on to something else.
async function awaitAnswers(mine, told) {
  let reply = told;
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
  talk.phase = 'judging';
  queue = queue.filter((pair) => pair.pair_id !== reply.pair.pair_id);
  show(normal(reply.pair));
  report(reply.pair);
  undoButton().disabled = true; // the turn before is part of this one
}

// After a judgment: go on with the better answer; where there is none, the conversation is over.
function continueTalk(pair, said) {
  if (said.answer === undefined) {
    talk = { id: newId(), number: 0, messages: [], phase: 'writing' };
    write(words['talk.over']);
    return;
  }
  const better = said.answer > 0 ? pair.right : pair.left;
  const answer = said.edited_text ? make('div', {}, said.edited_text).innerHTML.replaceAll('\n', '<br>') : better.html;
  talk.messages = [...pair.messages, { role: 'assistant', html: answer }];
  talk.number += 1;
  write();
}

// Where an earlier window left off, if it left off in a conversation.
async function resumeTalk() {
  const told = await insist('/api/turns/latest');
  if (!told || told.judged) return;
  talk = { id: told.conversation_id, number: told.number, messages: told.messages.slice(0, -1), phase: 'writing' };
  turnField.value = told.messages[told.messages.length - 1].content;
  write(told.error);
  if (told.state === 'failed') return;
  wait();
  awaitAnswers(talk, told).catch((error) => warn(error.message, 'refused'));
}

