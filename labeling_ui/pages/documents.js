// Guidelines and consent: the current text, edited with a preview; every version, and who has accepted it.
let written = { document: 'guidelines', versions: [] }; // what is on the screen

async function showDocuments(document = written.document) {
  const form = find('[data-form=document]');
  form.elements.text.readOnly = true; // what is typed before the text is here would be lost
  try {
    written = { document, ...await call(`/api/lead/documents/${document}`) };
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
    return;
  }
  for (const button of all('[data-document]')) button.setAttribute('aria-pressed', String(button.dataset.document === document));
  for (const [name, value] of [['text', written.text], ['version', nextVersion(written.versions[0])]]) {
    form.elements[name].value = form.elements[name].defaultValue = value;
    form.elements[name].dataset.keep = `document/${document}/${name}`;
  }
  form.elements.text.readOnly = false;
  giveBack(form);
  find('.preview').hidden = true;
  find('.versions').hidden = !written.versions.length;
  refill(find('.versions tbody'), ...written.versions.map(versionRow));
}

// The name after this one, where it is a number.
function nextVersion(latest) {
  if (!latest) return '1';
  return /^\d+$/.test(latest.version) ? String(Number(latest.version) + 1) : latest.version;
}

function versionRow(one, n) {
  const by = one.by ? nameOf(one.by) : words[one.configured ? 'documents.configured' : 'documents.command'];
  return make('tr', {}, make('th', { scope: 'row' }, one.id, n ? null : make('span', { class: 'note' }, words['documents.present'])),
    make('td', {}, timeOf(one.at_ms)), make('td', {}, by), make('td', {}, say('lead.of', { done: whole(one.accepted), total: whole(written.raters) })),
    make('td', {}, make('button', { type: 'button', class: 'plain', 'data-version': String(one.seq) }, words['documents.open'], make('span', { class: 'unseen' }, ` ${one.id}`))));
}

function preview(html, ...beside) {
  const place = find('.preview');
  place.hidden = false;
  place.replaceChildren(...beside, make('div', { class: 'sample' }, make('div', { class: 'text', dir: 'auto', html: html || '' })));
}

async function previewDocument(form) {
  const looked = await change(`/api/lead/documents/${written.document}/preview`, 'POST', { text: form.elements.text.value });
  if (!looked) return;
  warn('');
  const publish = make('button', { type: 'button', class: 'primary', 'data-publish': true }, words['documents.publish']);
  preview(looked.html, make('p', {}, looked.changed ? say('documents.asks', { n: whole(looked.raters) }) : words['documents.same']), looked.changed ? publish : '');
}

async function publishDocument() {
  const form = find('[data-form=document]');
  const { text, version } = form.elements;
  if (!await change(`/api/lead/documents/${written.document}`, 'POST', { text: text.value, version: version.value.trim() })) return;
  warn('');
  sent(form);
  await showDocuments();
}

async function openVersion(seq) {
  const one = await change(`/api/lead/documents/${written.document}/${seq}`, 'GET');
  if (!one) return;
  warn('');
  find('[data-form=document]').elements.text.value = one.text;
  preview(one.html, make('p', {}, say('documents.version', { version: one.id, at: timeOf(one.at_ms) })));
}

desk.addEventListener('submit', (event) => {
  if (event.target.dataset.form === 'document') previewDocument(event.target);
});

desk.addEventListener('change', async (event) => {
  const [file] = (event.target.name === 'file' && event.target.closest('[data-form=document]') && event.target.files) || [];
  if (!file) return;
  const { text } = find('[data-form=document]').elements;
  text.value = await file.text();
  keepField(text);
});

desk.addEventListener('click', (event) => {
  const { document, version, publish } = event.target.closest('button')?.dataset || {};
  if (document) showDocuments(document);
  if (version) openVersion(version);
  if (publish !== undefined) publishDocument();
});
