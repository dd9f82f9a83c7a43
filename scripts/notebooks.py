"Run notebooks in place, each in a fresh process, and store their outputs; what is slow or not evaluated keeps the ones it has"
import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIP = {'notest', 'slow', 'gpu'}


def run_one(path: Path, flags: set[str]) -> None:
    "Run one notebook in its own folder and replace it; at an error it stays as it was"
    from execnb.nbio import write_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb
    from nbdev.process import NBProcessor

    def skipped(cell):
        if cell.cell_type != 'code': return True
        return 'nbdev_export(' in cell.source or cell.directives_.get('eval:') == ['false'] or (SKIP - flags) & cell.directives_.keys()

    os.chdir(path.parent)
    nb = NBProcessor(path, rm_directives=False).nb
    shell = CaptureShell(path)
    shell.set_path(path.parent)
    try: shell.run_all(nb, exc_stop=True, preproc=skipped)
    except BaseException: sys.exit(shell.prettytb(fname=path.name))
    clean_nb(nb)
    part = path.with_suffix('.part')
    write_nb(nb, part)
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', help='notebooks such as 01_image (default: all)')
    parser.add_argument('--flags', default='', help='also run cells with these flags, such as "slow"')
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    found = {p.stem: p for p in sorted((ROOT/'nbs').glob('*.ipynb'))}
    if unknown := [n for n in args.names if n.removesuffix('.ipynb') not in found]:
        parser.error(f'no notebook {unknown[0]}: there are {", ".join(found)}')
    paths = [found[n.removesuffix('.ipynb')] for n in args.names] or list(found.values())
    if args.inside: return run_one(paths[0], set(args.flags.split()))

    def run(path):
        command = [sys.executable, __file__, '--inside', '--flags', args.flags, path.stem]
        done = subprocess.run(command, capture_output=True, text=True)
        print(f'{path.name}: {"failed" if done.returncode else "done"}', flush=True)
        if done.returncode: print(done.stderr, file=sys.stderr)
        return done.returncode

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool: failed = sum(map(bool, pool.map(run, paths)))
    print(f'{len(paths) - failed} notebooks done, {failed} failed')
    sys.exit(failed > 0)


if __name__ == '__main__': main()
