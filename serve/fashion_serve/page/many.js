// Several pictures: a row for each, answered a few at a time, and a table to take away.
const AT_ONCE = 3;

export function makeMany({ $, text, element, percent, ask, name, said }) {
  const many = { rows: [], running: null, model: null, told: 0 };

  function row(file) {
    const tr = element('tr', '', { role: 'row' }), look = element('canvas', '', { width: 40, height: 40 });
    look.setAttribute('aria-hidden', true);
    const cell = { role: 'cell' }; // said aloud as a table even where CSS makes a grid of it
    const cells = [element('td', '', cell), element('th', file.name, { scope: 'row', role: 'rowheader' }), element('td', text('queued'), cell), element('td', '', cell)];
    cells[0].append(look);
    tr.append(...cells);
    return { file, tr, look, category: cells[2], share: cells[3], answer: null, problem: null };
  }

  function show(r) {
    r.tr.classList.toggle('bad', Boolean(r.problem));
    if (r.problem) { r.category.textContent = said(r.problem); r.share.textContent = ''; return; }
    if (!r.answer) { r.category.textContent = text('queued'); return; }
    const [first] = r.answer.predictions;
    r.category.textContent = name(r.answer.model, first.label, first.name);
    r.share.textContent = percent(first.probability);
    r.tr.dataset.label = first.label;
    r.tr.classList.toggle('unsure', first.probability < .8);
  }

  function progress() {
    const answered = many.rows.filter(r => r.answer).length, failed = many.rows.filter(r => r.problem).length, all = many.rows.length;
    const ended = !many.running || answered + failed === all;
    Object.assign($('many-progress'), { max: all, value: answered + failed });
    $('many-save').disabled = !ended;
    $('many-stop').hidden = ended;
    $('many-again').hidden = !ended || answered === all;
    if (!ended && Date.now() - many.told < 1000) return; // it is read aloud
    many.told = Date.now();
    $('many-count').textContent = text('counted', answered, all, failed);
  }

  async function work(r, model, signal) {
    try {
      const { answer, problem } = await ask(r.file, r.look, model, signal);
      Object.assign(r, { answer, problem });
    } catch (error) {
      if (signal.aborted) return;
      r.problem = { code: 'no_answer' };
    }
    show(r);
    progress();
  }

  many.start = (files, model) => { // one model for all of them, whatever is chosen meanwhile
    Object.assign(many, { rows: files.map(row), model });
    $('many-rows').replaceChildren(...many.rows.map(r => r.tr));
    $('many').hidden = false;
    return run();
  };

  async function run() { // what has no answer yet
    many.running?.abort();
    const { signal } = many.running = new AbortController();
    for (const r of many.rows) if (!r.answer) { r.problem = null; show(r); }
    progress();
    const todo = many.rows.filter(r => !r.answer).values();
    const worker = async () => { for (const r of todo) { if (signal.aborted) return; await work(r, many.model, signal); } };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
  }

  many.again = () => { if (many.rows.some(r => r.problem)) run(); };

  function stop() {
    many.running.abort();
    many.running = null;
    progress();
  }

  many.translate = () => { many.rows.forEach(show); if (many.rows.length) progress(); };

  many.csv = () => {
    const cell = v => /^[=+\-@\t\r]/.test(v) ? `"'${v.replaceAll('"', '""')}"` : `"${String(v).replaceAll('"', '""')}"`; // no formula in somebody's spreadsheet
    const lines = many.rows.map(r => [r.file.name, ...(r.answer
      ? [r.answer.predictions[0].label, name(r.answer.model, r.answer.predictions[0].label, ''), r.answer.predictions[0].probability.toFixed(4), r.answer.model, r.answer.version, '']
      : ['', '', '', '', '', r.problem?.code ?? ''])]);
    return '\ufeff' + [['file', 'label', 'name', 'probability', 'model', 'version', 'error'], ...lines].map(l => l.map(v => cell(String(v))).join(',')).join('\r\n') + '\r\n';
  };

  $('many-stop').addEventListener('click', stop);
  $('many-again').addEventListener('click', run);
  $('many-save').addEventListener('click', () => {
    const link = element('a', '', { href: URL.createObjectURL(new Blob([many.csv()], { type: 'text/csv' })), download: 'categories.csv' });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
  return many;
}
