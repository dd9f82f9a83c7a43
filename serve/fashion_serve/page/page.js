// The page: one picture in, three bars out. No third-party code; nothing leaves for anywhere but this server.
import { makeMany } from './many.js';
import { TEXTS, SAMPLES } from './texts.js';

const $ = id => document.getElementById(id);
const state = {
  lang: 'en',
  models: new Map(), // name -> as /v1/models describes it
  limits: { max_bytes: 10_000_000, max_pixels: 25_000_000, max_webp_pixels: 16_000_000, max_side: 12_000 },
  picture: null, // { blob, sample } on show
  answer: null, // the last prediction
  problem: null, // or the last problem
  request: null, // AbortController of the request on its way
  taking: false, // whether a new picture is being read
  key: '', // for a server that asks for one, until the window is closed
};

const text = (key, ...args) => {
  const found = TEXTS[state.lang][key] ?? TEXTS.en[key];
  return typeof found === 'function' ? found(...args) : found;
};
const element = (tag, content = '', props = {}) => Object.assign(document.createElement(tag), { textContent: content, ...props });
const digits = { style: 'percent', minimumFractionDigits: 1, maximumFractionDigits: 1 };
function percent(p) { // never quite nothing, never quite all
  const show = x => new Intl.NumberFormat(state.lang, digits).format(x);
  return p < .0005 ? `< ${show(.001)}` : p > .9995 ? `> ${show(.999)}` : show(p);
}

// ---- language
const KEPT = 'fashion_nbdev.lang'; // other programs under the same address keep things, too
function remember(lang) { try { localStorage.setItem(KEPT, lang); } catch { /* private mode */ } }
function recall() { try { return localStorage.getItem(KEPT); } catch { return null; } }

function setLang(lang) {
  state.lang = lang;
  document.documentElement.lang = lang;
  document.title = text('title');
  for (const el of document.querySelectorAll('[data-t]')) el.textContent = text(el.dataset.t);
  for (const b of document.querySelectorAll('[data-lang]')) b.setAttribute('aria-pressed', b.dataset.lang === lang);
  showModels();
  showAnswer();
  many.translate();
}

const labelName = (model, key, fallback) =>
  state.models.get(model)?.labels.find(l => l.key === key)?.[state.lang] ?? fallback;

// ---- models
async function loadModels() {
  let found;
  for (let wait = 200; ; wait = Math.min(wait * 1.5, 3000)) { // the server may still be loading them
    try {
      const answer = await fetch('v1/models');
      if (answer.ok) { found = await answer.json(); break; }
    } catch { /* not up yet */ }
    await new Promise(done => setTimeout(done, wait));
  }
  Object.assign(state, { models: new Map(found.models.map(m => [m.name, m])), limits: found.limits });
  showModels();
  useModel(found.default);
}

function showModels() {
  const select = $('model'), now = select.value;
  select.replaceChildren(...[...state.models.keys()].map(name => new Option(text('modelNames')[name] ?? name, name)));
  if (now) useModel(now);
}

const isSmall = name => state.models.get(name)?.resize === 'fashion_mnist';

function useModel(name) {
  if (!state.models.has(name)) return;
  $('model').value = name;
  $('note').textContent = isSmall(name) ? text('smallNote') : '';
  const { origin, pathname } = location;
  $('curl').textContent = `curl --data-binary @photo.jpg '${origin}${pathname}v1/predict?model=${encodeURIComponent(name)}&lang=${state.lang}'`;
  showSamples();
}

// ---- pictures
const bitmap = blob => createImageBitmap(blob, { imageOrientation: 'from-image' });

const KNOWN = /^(\xff\xd8\xff|\x89PNG|GIF8|BM|RIFF....WEBP)/s; // how the files begin that the server reads; others, such as AVIF, this browser may turn into one
const LARGE = 1_000_000; // bytes that are long on their way where the line is slow; the network sees a few hundred pixels

async function smallEnough(blob) { // what is large, or over the server's limits, is made smaller here
  const { max_bytes, max_pixels, max_webp_pixels, max_side } = state.limits;
  let head, image;
  try { head = String.fromCharCode(...new Uint8Array(await blob.slice(0, 12).arrayBuffer())); } catch { return { problem: { code: 'unreadable' } }; } // a folder, or a file that is no longer there
  try { image = await bitmap(blob); } catch { return blob.size > max_bytes ? { problem: { code: 'too_large' } } : { blob }; } // the server says what is wrong with it
  const { width, height } = image, most = head.endsWith('WEBP') ? Math.min(max_pixels, max_webp_pixels) : max_pixels;
  const taken = KNOWN.test(head) && blob.size <= max_bytes && width * height <= most && Math.max(width, height) <= max_side;
  if (taken && blob.size <= LARGE) return { blob, image };
  const scale = Math.min(1, 2048 / Math.max(width, height));
  const canvas = Object.assign(document.createElement('canvas'), { width: Math.max(1, width * scale), height: Math.max(1, height * scale) });
  const paint = canvas.getContext('2d');
  paint.fillStyle = '#fff'; // transparent parts would turn black in a JPEG
  paint.fillRect(0, 0, canvas.width, canvas.height);
  paint.drawImage(image, 0, 0, canvas.width, canvas.height);
  const smaller = await new Promise(done => canvas.toBlob(done, 'image/jpeg', .9));
  return { blob: smaller && !(taken && smaller.size > blob.size) ? smaller : blob, image };
}

function showPicture(image) {
  const canvas = $('preview');
  canvas.hidden = !image;
  $('empty').hidden = Boolean(image);
  $('drop').classList.toggle('full', Boolean(image));
  $('choose').dataset.t = image ? 'again' : 'choose';
  $('choose').textContent = text($('choose').dataset.t);
  if (!image) return;
  const scale = Math.min(1, 1400 / Math.max(image.width, image.height));
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  canvas.classList.toggle('tiny', image.width <= 100 && image.height <= 100);
  canvas.classList.toggle('tall', image.height > image.width);
  canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
}

const many = makeMany({
  $, text, element, percent, said, name: (model, key, fallback) => labelName(model, key, fallback),
  ask: async (file, thumbnail, model, signal) => {
    const { blob, image, problem } = await smallEnough(file);
    if (image) {
      const side = Math.min(image.width, image.height);
      thumbnail.getContext('2d').drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, thumbnail.width, thumbnail.height);
      image.close();
    }
    return problem ? { answer: null, problem } : send(blob, model, signal);
  },
});

function takeAll(files) { // one is shown large, several in a table
  if (files.length === 1) return take(files[0]);
  many.start(files, $('model').value);
  $('many').scrollIntoView({ block: 'nearest', behavior: calm() ? 'auto' : 'smooth' });
}

async function take(blob, sample = null) {
  state.request?.abort();
  const request = state.request = new AbortController();
  state.taking = true;
  const { blob: small, image, problem } = await smallEnough(blob);
  if (request.signal.aborted) return image?.close(); // another picture came meanwhile
  state.taking = false;
  state.picture = problem ? null : { blob: small, sample };
  showPicture(image);
  image?.close();
  markSample();
  if (problem) {
    Object.assign(state, { answer: null, problem });
    busy(false);
    return showAnswer();
  }
  await ask();
}

// ---- asking and showing
const AGAIN = [429, 502, 503, 504]; // statuses that another try may change
const PATIENCE = 10; // seconds that a person waits without a word

async function send(body, model, signal) {
  const query = new URLSearchParams({ lang: state.lang, ...(model && { model }) });
  const headers = { 'Content-Type': 'application/octet-stream', ...(state.key && { Authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(state.key))}` }) };
  for (let tries = 0; ; tries++) {
    let answer = null;
    try { answer = await fetch(`v1/predict?${query}`, { method: 'POST', body, headers, signal }); } catch (error) { if (error.name === 'AbortError' || tries === 4) throw error; } // it may be starting again
    if (answer?.ok) return { answer: await answer.json(), problem: null };
    const wait = Number(answer?.headers.get('Retry-After')) || .5 * 2 ** tries; // seconds
    if (answer && (!AGAIN.includes(answer.status) || tries === 4 || wait > PATIENCE)) return { answer: null, problem: await problemOf(answer) };
    await new Promise((done, stop) => {
      signal?.addEventListener('abort', () => stop(signal.reason), { once: true });
      setTimeout(done, 1000 * wait);
    });
  }
}

async function problemOf(answer) {
  let problem;
  try { problem = await answer.json(); } catch { problem = { code: 'no_answer' }; } // something before the server said no
  if (problem.code === 'no_key') $('key-form').hidden = false;
  return problem;
}

async function ask() {
  state.request?.abort();
  const request = state.request = new AbortController();
  busy(true);
  try {
    Object.assign(state, await send(state.picture.blob, $('model').value, request.signal));
  } catch (error) {
    if (error.name === 'AbortError') return; // a newer request took over
    Object.assign(state, { answer: null, problem: { code: 'no_answer' } });
  }
  busy(false);
  showAnswer();
  $(state.problem ? 'problem' : 'result').scrollIntoView({ block: 'nearest', behavior: calm() ? 'auto' : 'smooth' }); // on a phone it may be out of sight
}

const calm = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

const busy = on => document.querySelector('.answer').setAttribute('aria-busy', on);

function showAnswer() {
  showProblem();
  const { answer } = state, headline = $('headline');
  if (!answer) {
    headline.hidden = Boolean(state.problem);
    headline.textContent = text('waiting');
    showBars([]);
    $('made').textContent = '';
    return;
  }
  const [first] = answer.predictions;
  headline.hidden = false;
  headline.replaceChildren(
    element('span', text(guesses(answer) ? 'unsure' : first.probability >= .8 ? 'sure' : first.probability >= .5 ? 'likely' : 'unsure')),
    element('strong', labelName(answer.model, first.label, first.name)));
  showBars(answer.predictions);
  const ms = new Intl.NumberFormat(state.lang, { maximumFractionDigits: 1 }).format(answer.timing_ms.total);
  $('made').textContent = text('made', answer.model, answer.version, ms);
}

const guesses = answer => isSmall(answer.model) !== Boolean(state.picture?.sample?.tiny); // about pictures unlike those it learnt from

function showProblem() {
  const { problem } = state;
  if (!problem) return $('problem').replaceChildren();
  $('problem').replaceChildren(element('strong', text('sorry')), element('span', said(problem)));
}

function said({ code, detail }) { // about a problem
  const known = text('problems')[code];
  if (known) return typeof known === 'function' ? known(Math.floor(state.limits.max_bytes / 1e6)) : known;
  return detail ? `${detail[0].toUpperCase()}${detail.slice(1)}.` : text('problems').no_answer;
}

function showBars(predictions) {
  const list = $('bars'), ghost = !predictions.length;
  list.hidden = ghost && Boolean(state.problem);
  list.classList.toggle('ghost', ghost);
  list.setAttribute('aria-hidden', ghost);
  list.setAttribute('aria-label', text('bars'));
  [...list.children].forEach((item, i) => {
    const [name, share, track] = item.children, p = predictions[i];
    item.hidden = !ghost && !p;
    name.textContent = p ? labelName(state.answer.model, p.label, p.name) : '';
    share.textContent = p ? percent(p.probability) : '';
    item.dataset.label = p?.label ?? '';
    const bar = track.firstElementChild;
    bar.style.transform = `translateX(${p ? Math.max(p.probability, .008) * 100 - 100 : -101}%)`;
  });
}

// ---- samples
function sampleItem(sample) {
  const item = element('li'), button = element('button', '', { type: 'button' });
  button.dataset.sample = sample.file;
  button.append(element('img', '', { className: sample.tiny ? 'tiny' : '', alt: '', loading: 'lazy', src: `page/${sample.file}` }));
  button.addEventListener('click', async () => {
    try { await take(await (await fetch(`page/${sample.file}`)).blob(), sample); }
    catch { Object.assign(state, { answer: null, problem: { code: 'no_answer' } }); showAnswer(); }
  });
  item.append(button);
  return item;
}

function showSamples() { // those that the model on show is for
  const list = $('samples'), model = $('model').value;
  if (!list.children.length) list.replaceChildren(...SAMPLES.map(sampleItem));
  [...list.children].forEach((item, i) => {
    const sample = SAMPLES[i], name = labelName(model, sample.label, sample[state.lang]);
    item.hidden = sample.tiny !== isSmall(model);
    item.firstElementChild.setAttribute('aria-label', text('sample', name));
    item.firstElementChild.title = name;
  });
  markSample();
}

function markSample() {
  for (const b of document.querySelectorAll('[data-sample]')) b.setAttribute('aria-pressed', b.dataset.sample === state.picture?.sample?.file);
}

// ---- wiring
const takeFrom = (list, e) => { const files = [...(list ?? [])]; if (files.length) { e.preventDefault(); takeAll(files); } };
$('drop').addEventListener('click', () => $('file').click());
$('shoot').addEventListener('click', () => $('camera').click());
for (const id of ['file', 'camera']) $(id).addEventListener('change', e => {
  takeFrom(e.target.files, e);
  e.target.value = ''; // so that the same file can be chosen again
});
document.addEventListener('paste', e => takeFrom(e.clipboardData?.files, e));
const over = on => $('drop').classList.toggle('over', on);
document.addEventListener('dragover', e => { e.preventDefault(); over(true); }); // the whole page takes a drop
document.addEventListener('dragleave', e => { if (!e.relatedTarget) over(false); });
document.addEventListener('drop', e => { e.preventDefault(); over(false); takeFrom(e.dataTransfer?.files, e); });
$('model').addEventListener('change', e => { useModel(e.target.value); if (state.picture && !state.taking) ask(); });
for (const b of document.querySelectorAll('[data-lang]')) b.addEventListener('click', () => { remember(b.dataset.lang); setLang(b.dataset.lang); });

$('key-form').addEventListener('submit', e => {
  e.preventDefault();
  state.key = $('key').value.trim();
  $('key-form').hidden = true;
  if (state.picture && state.problem) ask();
  many.again();
});

const kept = recall();
setLang(Object.hasOwn(TEXTS, kept ?? '') ? kept : navigator.language?.toLowerCase().startsWith('ru') ? 'ru' : 'en');
loadModels();
