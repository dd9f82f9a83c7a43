"""Whether two runs of the benchmarks say the same: ratios, with the spread that each run states, beside those of an earlier commit.

    make bench
    python benchmarks/agree.py [COMMIT]        compares results/ with those of COMMIT (HEAD if none is given) and writes results/agreement.csv

Two figures agree where their spreads overlap. Milliseconds of a machine that is never the same twice are not compared."""
import subprocess
import sys
import tempfile
from pathlib import Path

from fashion_nbdev.results import conditions, read_results, write_results

ROOT = Path(__file__).resolve().parents[1]
STATED = { # file -> what names a row, and the ratio whose columns NAME_low and NAME_high hold its spread
    'runtimes.csv': (('model', 'runtime', 'batch_size', 'threads'), 'slower'),
    'service_overhead.csv': (('model', 'name'), 'ratio'),
    'rivals.csv': (('model', 'service'), 'ours_is'),
    'limits.csv': (('model',), 'share'),
}


def earlier(commit: str, name: str) -> list[dict]:
    "The rows of a results file as they were; none if it was not there"
    shown = subprocess.run(['git', 'show', f'{commit}:results/{name}'], cwd=ROOT, capture_output=True)
    if shown.returncode: return []
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / name).write_bytes(shown.stdout)
        return read_results(path)


def compare(before: list[dict], after: list[dict], names: tuple[str, ...], ratio: str) -> list[dict]:
    "Figures that were measured in both runs; the row that others are compared with is none"
    def named(rows): return {', '.join(str(r[n]) for n in names): r for r in rows if float(r[ratio + '_low']) != float(r[ratio + '_high'])}
    old = named(before)
    pairs = {name: (b, a) for name, a in named(after).items() if (b := old.get(name)) and a['date'] != b['date'] and a.get('version') == b.get('version')} # of the same model file
    def row(b, a):
        found = {f'{run}{end}': float(r[ratio + end]) for run, r in (('before', b), ('after', a)) for end in ('', '_low', '_high')}
        return found | dict(agree=max(found['before_low'], found['after_low']) <= min(found['before_high'], found['after_high']))
    return [dict(measured=name) | row(b, a) for name, (b, a) in pairs.items()]


def main(commit: str = 'HEAD') -> int: # 1 if figures disagree
    rows = []
    for name, how in STATED.items():
        now = ROOT / 'results' / name
        if now.is_file(): rows += [dict(file=name) | row for row in compare(earlier(commit, name), read_results(now), *how)]
    if not rows: sys.exit(f'nothing was measured again since {commit}: run make bench, or name an earlier commit that has results')
    for r in rows: print('{0}  {measured:60} {before:6.2f} ({before_low:.2f} to {before_high:.2f})  {after:6.2f} ({after_low:.2f} to {after_high:.2f})'.format('  ' if r['agree'] else '!!', **r))
    out = write_results(ROOT / 'results/agreement.csv', rows, **conditions(f'python benchmarks/agree.py {commit}'))
    print(f'{sum(r["agree"] for r in rows)} of {len(rows)} agree within the spread they state\n  -> {out}')
    return int(not all(r['agree'] for r in rows))


if __name__ == '__main__': sys.exit(main(*sys.argv[1:2]))
