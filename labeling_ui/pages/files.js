// Images and recordings in the store: chosen or dropped, described, and added under the names by which pairs refer to them.
let chosen = []; // {file, state: '' | 'added' | 'there' | an error}
let fileLimits = { bytes: 0, pixels: 0, minutes: 0 };
let lastName = ''; // the last name of the list
const BIG = 1000000;

async function showFiles(after = '') {
  if (desk.dataset.role !== 'lead') return;
  try {
    const page = await call(`/api/lead/media?${new URLSearchParams({ after })}`);
    fileLimits = page.limits;
    find('.files .limits').textContent = say('files.limits', { megabytes: fileLimits.bytes / BIG, megapixels: fileLimits.pixels / BIG, minutes: fileLimits.minutes });
    const rows = page.files.map(fileRow);
    if (after) find('.files tbody').append(...rows);
    else refill(find('.files tbody'), ...rows);
    giveBack(find('.files tbody'));
    find('.files .scroll').hidden = !find('.files tbody').childElementCount;
    find('.files [data-more-files]').hidden = !page.more;
    lastName = page.files.length ? page.files[page.files.length - 1].name : after;
  } catch (error) {
    warn(error.status ? error.message : words.waiting, 'lost');
  }
}

function fileRow(file) {
  const source = `${base}/api/media/${file.sha256}`;
  const isImage = file.media_type.startsWith('image/');
  const shown = isImage ? make('img', { src: source, alt: file.alt, loading: 'lazy', decoding: 'async' }) : make('audio', { src: source, controls: true, preload: 'none', 'aria-label': file.alt || file.name });
  return make('tr', {}, make('td', {}, shown),
    make('th', { scope: 'row', dir: 'auto' }, file.name, make('span', { class: 'note' }, isImage ? `${file.width} × ${file.height}` : file.media_type.slice(6))),
    make('td', {}, make('input', { value: file.alt, maxlength: '2000', dir: 'auto', 'data-describe': file.name, 'data-keep': `file/${file.name}`, 'data-sends': true, placeholder: words['media.without'], 'aria-label': say('files.alt', { name: file.name }) })));
}

function choose(files) {
  chosen = [...files].map((file) => ({ file, state: file.size > fileLimits.bytes ? say('files.large', { megabytes: fileLimits.bytes / BIG }) : '' }));
  drawChosen();
}

function drawChosen() {
  const form = find('[data-form=files]');
  form.hidden = !chosen.length;
  form.querySelector('ul').replaceChildren(...chosen.map(({ file, state }, n) => make('li', {},
    make('label', {}, make('span', { dir: 'auto' }, file.name), make('input', { name: `alt${n}`, maxlength: '2000', dir: 'auto', placeholder: words['files.alt.hint'], disabled: Boolean(state) })),
    make('span', { class: state ? 'note late' : 'note' }, state))));
  const ready = chosen.filter(({ state }) => !state).length;
  form.querySelector('button').hidden = !ready;
  form.querySelector('button').textContent = say('files.add', { n: whole(ready) });
}

// One after another: each is decoded and written anew, which takes memory.
async function addFiles(form) {
  const button = form.querySelector('button');
  const status = find('.files .state');
  button.disabled = true;
  let added = 0;
  const left = [];
  for (const [n, one] of chosen.entries()) {
    const alt = form.elements[`alt${n}`].value.trim();
    status.textContent = say('files.adding', { name: one.file.name });
    try {
      if (!one.state) {
        await call(`/api/lead/media?${new URLSearchParams({ name: one.file.name, alt })}`, { method: 'POST', file: one.file, patience_ms: 300000 });
        added += 1;
        continue;
      }
    } catch (error) {
      one.state = error.status ? error.message : words.waiting;
    }
    left.push(one);
  }
  chosen = left;
  button.disabled = false;
  drawChosen();
  find('.files [name=media]').value = '';
  status.textContent = say('files.added', { n: whole(added) });
  await showFiles();
}

async function describeFile(field) {
  const done = await change('/api/lead/media', 'PUT', { name: field.dataset.describe, alt: field.value.trim() });
  if (!done) return;
  warn('');
  sent(field);
  find('.files .state').textContent = say('files.described', { name: field.dataset.describe });
  const picture = field.closest('tr').querySelector('img');
  if (picture) picture.alt = field.value.trim();
}

const dropZone = find('.files .drop');
desk.addEventListener('change', (event) => {
  if (event.target.name === 'media') choose(event.target.files);
  else if (event.target.dataset.describe !== undefined) describeFile(event.target);
});
desk.addEventListener('submit', (event) => { if (event.target.dataset.form === 'files') addFiles(event.target); });
desk.addEventListener('click', (event) => { if (event.target.closest('[data-more-files]')) showFiles(lastName); });
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  dropZone.addEventListener(kind, (event) => {
    event.preventDefault(); // otherwise the browser opens the file in this window
    dropZone.classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop' && event.dataTransfer.files.length) choose(event.dataTransfer.files);
  });
}
