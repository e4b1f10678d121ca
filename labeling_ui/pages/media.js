// Images and recordings beside texts: the server sends empty figures, which are filled here. An image opens in a window of its own,
// where keys and the mouse zoom and move it.
const MOST_ZOOM = 8;
const zoomed = { scale: 1, x: 0, y: 0, from: null };

function drawMedia(root) {
  for (const figure of root.querySelectorAll('figure.media:empty')) {
    const { kind, file, number } = figure.dataset;
    const about = figure.title;
    figure.removeAttribute('title');
    const name = say(kind === 'image' ? 'media.image' : 'media.audio', { n: number });
    const source = `${base}/api/media/${file}`;
    if (file === 'within') figure.append(make('span', { class: 'note' }, words['media.within']));
    else if (!file) figure.append(make('span', { class: 'missing' }, words['media.missing']));
    else if (kind === 'image') {
      figure.append(make('button', { type: 'button', 'data-picture': source, 'aria-label': say('media.open', { name }) }, make('img', { src: source, alt: about || words['media.without'], loading: 'lazy', decoding: 'async' })));
    } else figure.append(make('audio', { src: source, controls: true, preload: 'metadata', 'aria-label': about || name }));
    figure.append(make('figcaption', {}, name, about ? `: ${about}` : ` · ${words['media.without']}`));
  }
}

const pictureCard = () => find('[data-card=picture]');
const pictures = () => all('[data-picture]').filter((button) => button.checkVisibility());

function openPicture(button) {
  const image = pictureCard().querySelector('img');
  image.src = button.dataset.picture;
  image.alt = button.querySelector('img').alt;
  pictureCard().querySelector('h2').textContent = button.parentElement.querySelector('figcaption').textContent;
  zoomTo(1);
  if (!pictureCard().open) pictureCard().showModal();
}

// The next image of the pair; after the last one, none.
function nextPicture() {
  const shown = pictureCard().querySelector('img').getAttribute('src');
  const list = pictures();
  const at = pictureCard().open ? list.findIndex((button) => button.dataset.picture === shown) + 1 : 0;
  if (list[at]) openPicture(list[at]);
  else if (pictureCard().open) pictureCard().close();
}

function zoomTo(scale, x = 0, y = 0) {
  const frame = pictureCard().querySelector('.frame');
  zoomed.scale = Math.max(1, Math.min(MOST_ZOOM, scale));
  const reach = (size) => (size * (zoomed.scale - 1)) / 2;
  zoomed.x = Math.max(-reach(frame.clientWidth), Math.min(reach(frame.clientWidth), x));
  zoomed.y = Math.max(-reach(frame.clientHeight), Math.min(reach(frame.clientHeight), y));
  frame.firstElementChild.style.transform = `translate(${zoomed.x}px, ${zoomed.y}px) scale(${zoomed.scale})`;
}

const MOVES = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

function pictureKey(event) {
  const key = typeof pressedKey === 'function' ? pressedKey(event) : keyOf(event); // raters may have keys of their own
  if (key === '+' || key === '=') zoomTo(zoomed.scale * 1.5, zoomed.x * 1.5, zoomed.y * 1.5);
  else if (key === '-') zoomTo(zoomed.scale / 1.5, zoomed.x / 1.5, zoomed.y / 1.5);
  else if (key === '0') zoomTo(1);
  else if (MOVES[key]) zoomTo(zoomed.scale, zoomed.x + MOVES[key][0], zoomed.y + MOVES[key][1]);
  else if (key.toLowerCase() === 'i') nextPicture();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

if (pictureCard()) {
  const frame = pictureCard().querySelector('.frame');
  pictureCard().addEventListener('keydown', pictureKey);
  frame.addEventListener('wheel', (event) => {
    event.preventDefault();
    zoomTo(zoomed.scale * (event.deltaY < 0 ? 1.2 : 1 / 1.2), zoomed.x, zoomed.y);
  }, { passive: false });
  frame.addEventListener('dblclick', () => zoomTo(zoomed.scale > 1 ? 1 : 3));
  frame.addEventListener('pointerdown', (event) => {
    zoomed.from = [event.clientX - zoomed.x, event.clientY - zoomed.y];
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener('pointermove', (event) => { if (zoomed.from) zoomTo(zoomed.scale, event.clientX - zoomed.from[0], event.clientY - zoomed.from[1]); });
  frame.addEventListener('pointerup', () => { zoomed.from = null; });
  desk.addEventListener('click', (event) => {
    const button = event.target.closest('[data-picture]');
    if (button) openPicture(button);
  });
}
